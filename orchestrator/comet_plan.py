"""How much of a study goes to Comet, and how long that takes: found without asking Comet."""

from orchestrator.tracking.comet.pace import seconds_for
from search_spaces.study import Study

POINTS_PER_TRIAL = 4
"""Of curves: a trial's score, the ends of its interval, and the best so far."""

FACTS = 30
"""Submissions that a study takes once, about: its parameters, tags and files."""


def images_for_comet(study: Study, images: int, trials: int) -> int:
    """How many of a study's `images` go to Comet, at most: all, one of each of its `trials`, or so many."""
    rule = study.comet.images
    if rule == "all":
        return images
    return min(images, trials if rule == "best_per_trial" else rule.top_k)


def seconds_to_sync(images: int, trials: int) -> float:
    """The least time that Comet's quotas leave for bringing a whole study over."""
    return seconds_for(images + POINTS_PER_TRIAL * trials + FACTS)
