"""After the search: its best few settings and the baseline, on fresh seeds that it never saw."""

from collections.abc import Callable, Sequence

from search_spaces.requests import Failed, Settings, Trial
from search_spaces.strategies import Assignment, PastTrial, Report, Strategy
from search_spaces.strategies.trials import Trials

VALIDATED = 3
"""Settings that are validated beside the baseline."""


class Validated:
    """A strategy that, when another has done, tries its best trials and the baseline on fresh instances.

    The best are those of the largest mean over all `instances` of the search. `fresh` is the number of the
    validation's instances.
    """

    def __init__(
        self,
        search: Strategy,
        trials: Trials,
        instances: int,
        fresh: int,
        is_baseline: Callable[[Settings], bool],
        past: Sequence[PastTrial] = (),
    ) -> None:
        self._search, self._trials = search, trials
        self._instances, self._fresh, self._is_baseline = instances, fresh, is_baseline
        self._known = {trial.number: Trial(trial.number, trial.settings) for trial in past}
        self._done = {(trial.number, instance) for trial in past for instance in trial.validation}
        self._failed = {
            trial.number
            for trial in past
            for outcome in trial.validation.values()
            if isinstance(outcome, Failed) and outcome.kind == "infeasible"
        }
        self._open: set[tuple[int, int, int | None]] = set()
        self._queue: list[Assignment] | None = None

    def ask(self, free: int) -> Sequence[Assignment]:
        """The search's assignments; when it has none and none is under way, the validation's."""
        if self._queue is None:
            dealt = self._search.ask(free)
            self._known |= {a.trial.number: a.trial for a in dealt}
            self._open |= {(a.trial.number, a.instance, a.stop_after) for a in dealt}
            if dealt or self._open or free <= 0:
                return dealt
            self._queue = self._assignments()
        now, self._queue = self._queue[: max(0, free)], self._queue[max(0, free) :]
        return now

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Pass the search's outcomes on; a trial that fails on a fresh instance is dropped."""
        search = [report for report in reports if report.role != "validate"]
        self._trials.take(search)
        dropped = set(self._search.report(search))
        finished = {(report.trial, report.instance) for report in search}
        self._open = {key for key in self._open if key[:2] not in finished and key[0] not in dropped}
        for report in reports:
            outcome = report.outcome
            if report.role == "validate" and isinstance(outcome, Failed) and outcome.kind == "infeasible":
                dropped |= {report.trial} - self._failed
                self._failed.add(report.trial)
        if self._queue is not None:
            self._queue = [a for a in self._queue if a.trial.number not in self._failed]
        return sorted(dropped)

    def _assignments(self) -> list[Assignment]:
        means = {number: self._trials.mean(number, self._instances) for number in self._known}
        complete = sorted((-mean, number) for number, mean in means.items() if mean is not None)
        chosen = [number for _, number in complete[:VALIDATED]]
        baselines = [number for number, trial in self._known.items() if self._is_baseline(trial.settings)]
        chosen += [number for number in baselines if number not in chosen]
        return [
            Assignment(self._known[number], instance, role="validate")
            for instance in range(self._fresh)
            for number in chosen
            if number not in self._failed and (number, instance) not in self._done
        ]
