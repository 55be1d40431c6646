"""How far a study was to go when it was last run, and how that ended: kept in its folder as session.json."""

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Ended = Literal["running", "stopped", "budget", "finished", "cut off", "unfinished"]
"""How a study's last session ended: it runs still, was stopped by its user, used up the budget, had nothing left to
do, died without a word, or left something to do and nobody wrote down why.
"""


@dataclass(frozen=True)
class Extent:
    """How far a study is to go: so many `settings` and images of its search; `at_most` where fewer may do."""

    settings: int
    images: int
    at_most: bool = False


@dataclass(frozen=True)
class Session:
    """The latest session of a study; `signal` stopped it where it was stopped.

    `scored` counts the scored instances that the catalog had of the study when this was written.
    """

    ended: Ended
    extent: Extent
    signal: str = ""
    scored: int = 0

    def to_json(self) -> bytes:
        """As it is kept."""
        return json.dumps(asdict(self)).encode()


def from_json(text: str) -> Session:
    """A session as it was kept. Raises ValueError, TypeError, KeyError or RecursionError for anything else."""
    told = json.loads(text)
    extent = Extent(**told["extent"])
    scored = told.get("scored", 0)  # which the first sessions had not
    counts = (extent.settings, extent.images, scored)
    if told["ended"] not in get_args(Ended) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError("no session of this version")
    return Session(told["ended"], extent, str(told["signal"]), scored)


def lost_text(lost: int) -> str:
    """What is said of so many scored instances that a catalog had and has no more."""
    what = "1 scored image" if lost == 1 else f"{lost:,} scored images"
    return f"{what} that the catalog had {'is' if lost == 1 else 'are'} gone from it"
