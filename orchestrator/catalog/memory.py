"""An honest fake: a catalog that keeps everything in this process."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.catalog import Judged, Unscored
from orchestrator.pool import Done, Kept, Picture
from search_spaces.requests import Failed, ImageRequest, Looked, Scored
from search_spaces.strategies import PastTrial


class MemoryCatalog:
    """Keeps pictures, scores and judged trials in lists and dictionaries."""

    def __init__(self) -> None:
        self.pictures: dict[str, Picture] = {}
        self.infeasible: dict[str, Failed] = {}
        self.scores: dict[tuple[str, str], Scored] = {}
        self.judged: list[Judged] = []

    def find(self, request: ImageRequest) -> Scored | Failed | Unscored | None:
        """What is known of a request; None where it has to be generated."""
        if request.image_id in self.infeasible:
            return self.infeasible[request.image_id]
        if request.image_id not in self.pictures:
            return None
        score = self.scores.get((request.image_id, request.score_text))
        return score or Unscored(self.pictures[request.image_id])

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        """Keep results."""
        for item in done:
            image_id = item.request.image_id
            if isinstance(item.outcome, Failed):
                if item.outcome.kind == "infeasible":
                    self.infeasible[image_id] = item.outcome
                continue
            if item.picture is not None:
                assert not isinstance(item.picture, Kept), "this fake has no writer beside it"
                self.pictures.setdefault(image_id, item.picture)
            if isinstance(item.outcome, Scored):
                self.scores[image_id, item.request.score_text] = item.outcome
        self.judged += judged

    def past(self) -> list[PastTrial]:
        """The trials so far, by number."""
        trials: dict[int, PastTrial] = {}
        for item in self.judged:
            number, instance = item.trial.number, item.instance
            before = trials.get(number, PastTrial(number, item.trial.settings))
            if isinstance(item.outcome, Looked):
                looks = {**before.looks, instance: [*before.looks.get(instance, ()), item.outcome]}
                trials[number] = replace(before, looks=looks)
            elif item.role == "validate":
                trials[number] = replace(before, validation={**before.validation, instance: item.outcome})
            else:
                trials[number] = replace(before, outcomes={**before.outcomes, instance: item.outcome})
        return [trials[number] for number in sorted(trials)]
