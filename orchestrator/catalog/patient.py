"""A catalog that waits for its disk or store to come back, and ends with one sentence where it does not."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from orchestrator.catalog import Catalog, Judged, Unscored
from orchestrator.pool import Done
from search_spaces.requests import Failed, ImageRequest, Scored

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
"""That a run waits for its storage before it ends; object stores and network mounts are back in minutes."""

LONGEST_PAUSE = 30.0
BLINK = 0.2
"""Seconds after which a waiting run looks whether it is to stop."""


class StorageError(OSError):
    """Storage failed for longer than one may wait; the text is a whole sentence."""


class Patient:
    """Passes everything on; where that raises OSError it is tried again, at growing intervals up to half a minute.

    What was acknowledged before is whole all the while, and what was not is acknowledged once it is written.
    """

    def __init__(
        self,
        catalog: Catalog,
        say: Callable[[str], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
        patience: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` hears of a pause and of its end; `stopping` ends it at once; `patience` is in seconds."""
        self._catalog, self._say, self._stopping = catalog, say, stopping
        self._patience, self._sleep, self._clock = patience, sleep, clock

    def find(self, request: ImageRequest) -> Scored | Failed | Unscored | None:
        """What is known of a request; None where it has to be generated."""
        return self.persist(lambda: self._catalog.find(request))

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        """Keep results; on return they are durable. Raises StorageError where they cannot be kept."""
        self.persist(lambda: self._catalog.write(done, judged))

    def persist(self, act: Callable[[], T]) -> T:
        """What an act on storage returns, once it succeeds. Raises StorageError."""
        begun, pause = None, 1.0
        while True:
            try:
                found = act()
            except OSError as error:
                why = reason(error)
                if begun is None:
                    begun = self._clock()
                    self._say(f"the run waits: {why}; it goes on by itself once that is mended")
                if self._stopping() or self._clock() - begun >= self._patience:
                    waited = self._clock() - begun
                    raise StorageError(
                        f"{why}, for {waited:.0f} s; everything acknowledged is kept, and once that is mended the "
                        "same command goes on"
                    ) from error
                self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if begun is not None:
                self._say(f"the run goes on after {self._clock() - begun:.0f} s")
            return found

    def _wait(self, seconds: float) -> None:
        until = self._clock() + seconds
        while self._clock() < until and not self._stopping():
            self._sleep(BLINK)


def reason(error: OSError) -> str:
    """What is wrong with storage, for a sentence."""
    text = error.strerror or str(error).strip().partition("\n")[0].rstrip(".")
    if "usable temporary directory" in text:
        text += "; TMPDIR names another"
    return f"{error.filename}: {text}" if error.filename else text
