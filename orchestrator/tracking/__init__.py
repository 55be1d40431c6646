"""The seam `Tracker`: where a study's images go to be looked at. It observes; it cannot stop the work."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from search_spaces.requests import Role, Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedImage:
    """One stored image of a trial; `scores` maps scorer name → value, all finite.

    `prompt` is what it was drawn from, which may be a setting; empty where that is the instance's own.
    """

    image_id: str
    trial: int
    instance: int
    role: Role
    settings: Settings
    scores: Mapping[str, float]
    prompt: str = ""


@dataclass(frozen=True)
class TrackedTrial:
    """One finished trial; `mean` is its objective, None where a failed image leaves it without one.

    `scores` are the objective's, by instance; `keeps` says whether the trial keeps the study's constraints.
    """

    number: int
    settings: Settings
    mean: float | None
    scores: Sequence[float] = ()
    keeps: bool = True


class Tracker(Protocol):
    """Hears of images and trials once they are stored, in batches of any length, none included.

    An implementation may raise, provided that its error quotes no secret.
    """

    def images(self, records: Sequence[TrackedImage]) -> None:
        """Take note of images that the catalog holds."""

    def trials(self, records: Sequence[TrackedTrial]) -> None:
        """Take note of trials that are finished."""

    def close(self) -> str | None:
        """Finish, once; the result is one line for the user, None where there is nothing to say."""

    def abandon(self) -> None:
        """Let go of everything at once, closed or not; may be called more than once."""


class NullTracker:
    """The tracker of a study that is not tracked; it may have a `line` on why to say at the end."""

    def __init__(self, line: str | None = None) -> None:
        self._line = line

    def images(self, records: Sequence[TrackedImage]) -> None:
        """Ignore them."""

    def trials(self, records: Sequence[TrackedTrial]) -> None:
        """Ignore them."""

    def close(self) -> str | None:
        """There is the line alone to say."""
        return self._line

    def abandon(self) -> None:
        """There is nothing to let go of."""


class RecordingTracker:
    """Keeps what it was told, and refuses to be told more once it is closed."""

    def __init__(self) -> None:
        self.told_images: list[TrackedImage] = []
        self.told_trials: list[TrackedTrial] = []
        self.closed = False

    def images(self, records: Sequence[TrackedImage]) -> None:
        """Keep them; RuntimeError when closed."""
        self._refuse_when_closed()
        self.told_images.extend(records)

    def trials(self, records: Sequence[TrackedTrial]) -> None:
        """Keep them; RuntimeError when closed."""
        self._refuse_when_closed()
        self.told_trials.extend(records)

    def close(self) -> str | None:
        """Say how much was kept; RuntimeError when closed before."""
        self._refuse_when_closed()
        self.closed = True
        return f"recorded {len(self.told_images)} images and {len(self.told_trials)} trials"

    def abandon(self) -> None:
        """There is nothing to let go of."""

    def _refuse_when_closed(self) -> None:
        if self.closed:
            raise RuntimeError("the tracker is closed")


class Guarded:
    """A tracker whose failures stop nothing: the first is logged, all are counted in `failures`.

    `disk_failed` says whether a disk of this machine was the reason that it could not be closed.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._first = ""
        self.failures = 0
        self.disk_failed = False

    def images(self, records: Sequence[TrackedImage]) -> None:
        """Pass them on."""
        self._attempt(lambda: self._tracker.images(records))

    def trials(self, records: Sequence[TrackedTrial]) -> None:
        """Pass them on."""
        self._attempt(lambda: self._tracker.trials(records))

    def close(self) -> str | None:
        """Pass on the tracker's own line, with what failed on the way."""
        self.disk_failed = False  # what failed before is made good here, from the catalog
        line = self._attempt(self._tracker.close)
        if not self.failures:
            return line
        times = "once" if self.failures == 1 else f"{self.failures} times, first"
        failure = f"tracking failed {times} with {self._first}"
        return f"{line}; {failure}" if line else failure

    def abandon(self) -> None:
        """Pass it on."""
        self._attempt(self._tracker.abandon)

    def _attempt(self, call: Callable[[], str | None]) -> str | None:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 -- an observer's failure, of any kind, stops nothing
            self._count(error)
            return None

    def _count(self, error: Exception) -> None:
        self.failures += 1
        self.disk_failed = self.disk_failed or isinstance(error, OSError)
        if self.failures == 1:
            kind = "a disk's error" if isinstance(error, OSError) else type(error).__name__
            self._first = " ".join(f"{kind}: {error}".split())
            _log.warning("tracking failed with %s; the study goes on", self._first)
