"""How far a study was to go when it was last run, and how that ended: kept in its folder as session.json."""

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Ended = Literal["running", "stopped", "budget", "finished", "cut off"]
"""How a study's last session ended: it runs still, was stopped by its user, used up the budget, had nothing left to
do, or died without a word.
"""


@dataclass(frozen=True)
class Extent:
    """How far a study is to go: so many `settings` and images of its search; `at_most` where fewer may do."""

    settings: int
    images: int
    at_most: bool = False


@dataclass(frozen=True)
class Session:
    """The latest session of a study; `signal` stopped it where it was stopped."""

    ended: Ended
    extent: Extent
    signal: str = ""

    def to_json(self) -> bytes:
        """As it is kept."""
        return json.dumps(asdict(self)).encode()


def from_json(text: str) -> Session:
    """A session as it was kept. Raises ValueError, TypeError or KeyError for anything else."""
    told = json.loads(text)
    extent = Extent(**told["extent"])
    if told["ended"] not in get_args(Ended) or not all(
        isinstance(count, int) and count >= 0 for count in (extent.settings, extent.images)
    ):
        raise ValueError("no session of this version")
    return Session(told["ended"], extent, str(told["signal"]))
