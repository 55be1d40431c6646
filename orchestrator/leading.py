"""Who leads a study while it runs: what the report would say of it, kept up to date image by image."""

import math
from collections.abc import Mapping

from orchestrator.report.results import Results, TrialResult
from orchestrator.report.statistics import Nobody, Ranked, best, keeps_constraints, ranking
from orchestrator.session import Ended
from search_spaces.requests import Failed, Outcome, Scored, Trial
from search_spaces.study import Study


class Leading:
    """Hears every outcome of the search, and says who may be called the best so far.

    Of the trials that are judged in full only the leader is kept, and as long as the baseline is not judged in full,
    which says what is said of nobody, the others too.
    """

    def __init__(self, study: Study) -> None:
        judge = study.judge
        self._study, self._instances = study, len(study.instances)
        self._baseline = judge.candidate(study.baseline)
        self._has_baseline = judge.obstacle(study.baseline) is None
        self._own: Trial | None = None  # the baseline's
        self._scores: dict[int, Mapping[str, float]] = {}
        self._failures: dict[int, str] = {}
        self._others = set[int]()
        self._whole: list[TrialResult] = []
        self._leader: tuple[float, int] | None = None
        self._found: Ranked | Nobody | None = None

    def hear(self, trial: Trial, instance: int, outcome: Outcome) -> None:
        """One judged instance of a trial, which is kept where the trial is the baseline."""
        if self._own is None and trial.number not in self._others:
            if self._study.judge.candidate(trial.settings) == self._baseline:
                self._own = trial
            else:
                self._others.add(trial.number)
        if self._own is None or trial.number != self._own.number:
            return
        if isinstance(outcome, Scored):
            self._scores[instance] = outcome.scores
        elif isinstance(outcome, Failed):
            self._failures[instance] = outcome.reason
        self._found = None

    def complete(self, trial: Trial, scores: Mapping[int, Mapping[str, float]]) -> None:
        """A trial that has a score on every instance; `scores` are by instance and name."""
        result = self._result(trial, scores, {})
        if not keeps_constraints(result, self._results([result], "running")):
            return
        place = -math.fsum(result.scores.values()), trial.number
        leads = self._leader is None or place < self._leader
        baseline_is_whole = len(self._scores) == self._instances
        if leads:
            self._leader, self._found = place, None
        if leads or not baseline_is_whole:
            self._whole = [result] if baseline_is_whole else [*self._whole, result]

    def best(self, ended: Ended = "running") -> Ranked | Nobody:
        """Who may be called the best, of a study that ended so."""
        if self._found is None or ended != "running":
            trials = {trial.number: trial for trial in self._whole}
            if self._own is not None:
                trials[self._own.number] = self._result(self._own, self._scores, self._failures)
            results = self._results([*trials.values()], ended)
            self._found = best(results, ranking(results))
        return self._found

    def _result(
        self, trial: Trial, scores: Mapping[int, Mapping[str, float]], failures: Mapping[int, str]
    ) -> TrialResult:
        def of(name: str) -> dict[int, float]:
            return {instance: each[name] for instance, each in scores.items() if name in each}

        measured = {name: of(name) for name in self._study.measures}
        return TrialResult(
            trial.number, trial.settings, of(self._study.objective), failures, {}, measured=measured
        )

    def _results(self, trials: list[TrialResult], ended: Ended) -> Results:
        return Results(
            self._study.name,
            self._study.objective,
            self._instances,
            {},
            trials,
            lambda _: None,
            [],
            [],
            baseline=self._own.number if self._own else None,
            objectives=self._study.directions,
            constraints=self._study.constraints,
            ended=ended,
            has_baseline=self._has_baseline,
        )
