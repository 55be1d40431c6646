"""The full grid, lazily walked: every candidate on every instance."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from search_spaces.requests import Settings
from search_spaces.strategies import Assignment, Report
from search_spaces.strategies.trials import Trials


class Grid:
    """Deals the candidates among some cells in their order, each on all instances before the next.

    `cells` is walked as far as it is asked for, up to `limit` candidates. A trial that turns out infeasible
    on one instance is dropped: it can have no mean.
    """

    def __init__(
        self, trials: Trials, cells: Iterable[Settings], instances: int, limit: int | None = None
    ) -> None:
        self._trials = trials
        self._walk = self._assignments(cells, instances, limit)

    def ask(self, free: int) -> Sequence[Assignment]:
        """The next assignments of the walk, at most `free`."""
        return list(islice(self._walk, max(0, free)))

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Drop the trials that cannot have a mean any more."""
        return self._trials.take(reports)

    def _assignments(
        self, cells: Iterable[Settings], instances: int, limit: int | None
    ) -> Iterator[Assignment]:
        for trial in islice(self._trials.candidates(cells), limit):
            for instance in range(instances):
                if self._trials.settled(trial.number, instance):
                    continue
                yield Assignment(trial, instance)
