"""An honest fake: a catalog that keeps everything in this process."""

from collections.abc import Sequence

from orchestrator.catalog import Judged, Unscored
from orchestrator.pool import Done, Picture
from search_spaces.requests import Failed, ImageRequest, Outcome, Scored
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
                self.pictures.setdefault(image_id, item.picture)
            if isinstance(item.outcome, Scored):
                self.scores[image_id, item.request.score_text] = item.outcome
        self.judged += judged

    def past(self) -> list[PastTrial]:
        """The trials so far, by number."""
        trials: dict[int, PastTrial] = {}
        outcomes: dict[int, dict[int, Outcome]] = {}
        for item in self.judged:
            outcomes.setdefault(item.trial.number, {})[item.instance] = item.outcome
            trials[item.trial.number] = PastTrial(
                item.trial.number, item.trial.settings, outcomes[item.trial.number]
            )
        return [trials[number] for number in sorted(trials)]
