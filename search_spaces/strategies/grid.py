"""The full grid, lazily walked: every candidate on every instance."""

from collections.abc import Iterable, Iterator, Sequence

from search_spaces.requests import Failed, Outcome, Trial
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report


class Grid:
    """Deals candidates in the order of the lattice, each on all instances before the next.

    Neighbours then share steps, guidance and strength, so that one pipeline call can serve them. A
    trial that turns out infeasible on one instance is dropped: it can have no mean.
    """

    def __init__(self, space: Space, judge: Judge, instances: int, past: Sequence[PastTrial] = ()) -> None:
        self._numbers = {judge.candidate(trial.settings): trial.number for trial in past}
        self._settled = {(trial.number, i) for trial in past for i in trial.outcomes}
        self._dropped = {trial.number for trial in past if _infeasible(trial.outcomes.values())}
        self._next_number = max((trial.number for trial in past), default=-1) + 1
        self._walk = self._assignments(space, judge, instances)

    def ask(self, free: int) -> Sequence[Assignment]:
        """The next assignments of the walk, at most `free`."""
        dealt: list[Assignment] = []
        for assignment in self._walk if free > 0 else ():
            dealt.append(assignment)
            if len(dealt) == free:
                break
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Drop the trials that cannot have a mean any more."""
        lost = {r.trial for r in reports if _infeasible([r.outcome])} - self._dropped
        self._dropped |= lost
        return sorted(lost)

    def _assignments(self, space: Space, judge: Judge, instances: int) -> Iterator[Assignment]:
        dealt: set[int] = set()
        for settings in space.lattice():
            if judge.obstacle(settings) is not None:
                continue
            trial = Trial(self._number(judge.candidate(settings)), settings)
            if trial.number in dealt:
                continue
            dealt.add(trial.number)
            for instance in range(instances):
                if trial.number in self._dropped:
                    break
                if (trial.number, instance) not in self._settled:
                    yield Assignment(trial, instance)

    def _number(self, candidate: str) -> int:
        if candidate not in self._numbers:
            self._numbers[candidate] = self._next_number
            self._next_number += 1
        return self._numbers[candidate]


def _infeasible(outcomes: Iterable[Outcome]) -> bool:
    return any(isinstance(outcome, Failed) and outcome.kind == "infeasible" for outcome in outcomes)
