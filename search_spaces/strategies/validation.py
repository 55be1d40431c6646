"""After the search: its best few settings and the baseline, on fresh seeds that it never saw."""

import math
from collections.abc import Callable, Sequence

from search_spaces.objectives import Constraint
from search_spaces.requests import Failed, Scored, Settings, Trial
from search_spaces.strategies import Assignment, PastTrial, Report

VALIDATED = 3
"""Settings that are validated beside the baseline."""


class Validation:
    """Deals the best trials of a search and its baseline on `fresh` instances.

    `past` is all that the search came to. The best are those with the largest mean of the `objective` over all
    `instances` of the search, whose means keep the `constraints`.
    """

    def __init__(
        self,
        past: Sequence[PastTrial],
        objective: str,
        instances: int,
        fresh: int,
        is_baseline: Callable[[Settings], bool],
        constraints: Sequence[Constraint] = (),
    ) -> None:
        means = {}
        for trial in past:
            found = _means(trial, instances)
            if found and all(bound.violation(found[bound.score]) <= 0 for bound in constraints):
                means[trial.number] = found[objective]
        best = sorted(means, key=lambda number: (-means[number], number))[:VALIDATED]
        chosen = [t for t in past if t.number in best or is_baseline(t.settings)]
        self._failed = {
            t.number
            for t in chosen
            if any(map(_is_infeasible, [*t.validation.values(), *t.outcomes.values()]))
        }
        self._queue = [
            Assignment(Trial(t.number, t.settings), instance, role="validate")
            for instance in range(fresh)
            for t in chosen
            if t.number not in self._failed and instance not in t.validation
        ]

    def ask(self, free: int) -> Sequence[Assignment]:
        """The next assignments, each fresh instance for all trials before the next."""
        dealt, self._queue = self._queue[: max(0, free)], self._queue[max(0, free) :]
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Drop a trial that turns out infeasible on a fresh instance."""
        lost = {report.trial for report in reports if _is_infeasible(report.outcome)} - self._failed
        self._failed |= lost
        self._queue = [a for a in self._queue if a.trial.number not in self._failed]
        return sorted(lost)


def _means(trial: PastTrial, instances: int) -> dict[str, float]:
    """Each score's mean over instances 0 … `instances` - 1; nothing unless every instance has its scores."""
    outcomes = [trial.outcomes.get(instance) for instance in range(instances)]
    scores = [outcome.scores for outcome in outcomes if isinstance(outcome, Scored)]
    if len(scores) < instances:
        return {}
    return {name: math.fsum(each[name] for each in scores) / instances for name in scores[0]}


def _is_infeasible(outcome: object) -> bool:
    return isinstance(outcome, Failed) and outcome.kind == "infeasible"
