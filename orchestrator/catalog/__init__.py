"""The seam `Catalog`: what was made and judged, the truth that everything else is a projection of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestrator.pool import Done, Picture
from search_spaces.requests import Failed, ImageRequest, Outcome, Role, Scored, Trial


@dataclass(frozen=True)
class Judged:
    """One row of the trials table: what became of a trial on an instance."""

    trial: Trial
    instance: int
    request: ImageRequest
    outcome: Outcome
    role: Role = "search"


@dataclass(frozen=True)
class Unscored:
    """The catalog has the picture, which took a worker so many seconds, but not this study's score of it."""

    picture: Picture
    seconds: float = 0.0


class Catalog(Protocol):
    """Keeps pictures, scores and trials of a study; shares pictures and scores with all studies under its root."""

    def find(self, request: ImageRequest) -> Scored | Failed | Unscored | None:
        """What is known of a request; None where it has to be generated."""
        ...

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        """Keep results; on return they are durable, whatever is killed next."""
        ...


def state(outcome: Outcome) -> Literal["scored", "looked", "infeasible", "lost"]:
    """An outcome's word in the trials table."""
    if isinstance(outcome, Failed):
        return outcome.kind
    return "scored" if isinstance(outcome, Scored) else "looked"
