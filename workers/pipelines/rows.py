"""Who holds rows of the next UNet call: the slot engine's bookkeeping, pure and without torch."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class _Waiting:
    rows: int
    urgency: int  # UNet calls it needs, less the tick at which it came


class Rows(Generic[Key]):
    """`capacity` rows, filled anew before every tick with what fits of those that wait.

    A key stands for one request. The longest goes first, so that the last ones end together; each tick that
    a request has waited counts as one call more, so that none of its width waits for ever. A key that needs more rows
    than there are is admitted alone.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"{capacity} rows are below 1")
        self.capacity = capacity
        self._live: dict[Key, int] = {}
        self._waiting: dict[Key, _Waiting] = {}
        self._tick = 0

    @property
    def live(self) -> tuple[Key, ...]:
        """The keys that hold rows, in the order in which they were admitted."""
        return tuple(self._live)

    @property
    def waiting(self) -> tuple[Key, ...]:
        """The keys that wait for rows, in the order in which they came."""
        return tuple(self._waiting)

    @property
    def used(self) -> int:
        """Rows that are held."""
        return sum(self._live.values())

    def add(self, key: Key, rows: int, calls: int) -> None:
        """Let a request wait for `rows` rows over `calls` UNet calls. Raises ValueError for a key that is there."""
        if key in self._live or key in self._waiting:
            raise ValueError(f"{key!r} is here already")
        self._waiting[key] = _Waiting(rows, calls - self._tick)

    def remove(self, key: Key) -> None:
        """Free a key's rows, or its place among the waiting; unknown keys are ignored."""
        self._live.pop(key, None)
        self._waiting.pop(key, None)

    def admit(self) -> list[Key]:
        """Give rows to all that fit, the most urgent first; the keys that hold rows now and did not before."""
        free, admitted = self.capacity - self.used, []
        for key, waiting in sorted(self._waiting.items(), key=lambda item: -item[1].urgency):
            if waiting.rows <= free or not self._live:
                del self._waiting[key]
                self._live[key] = waiting.rows
                admitted.append(key)
                free -= waiting.rows
        return admitted

    def tick(self) -> None:
        """One UNet call has been made."""
        self._tick += 1
