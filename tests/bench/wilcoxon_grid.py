"""A peer that the product does not have: the grid, depth first, pruned by Optuna's Wilcoxon test."""

import random
import warnings
from collections import deque
from collections.abc import Sequence

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import WilcoxonPruner
from optuna.trial import TrialState

from search_spaces.requests import Scored, Trial
from search_spaces.space import Judge, Space, survey
from search_spaces.strategies import Assignment, Report

optuna.logging.set_verbosity(optuna.logging.WARNING)


class WilcoxonGrid:
    """Candidates in random order, each instance after instance, until the leader beats it with p below `p`.

    As one writes it with Optuna's own study and pruner: a trial has one picture under way at a time, and as
    many trials are open as the crew has room for.
    """

    def __init__(
        self, space: Space, judge: Judge, instances: int, objective: str, p: float, seed: int
    ) -> None:
        candidates = survey(space, judge).candidates
        random.Random(seed).shuffle(candidates)
        self._trials = deque(Trial(number, settings) for number, settings in enumerate(candidates))
        self._instances, self._objective = instances, objective
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            pruner = WilcoxonPruner(p_threshold=p)
        self._study = optuna.create_study(direction="maximize", pruner=pruner)
        self._open: dict[int, tuple[Trial, optuna.Trial]] = {}
        self._scores: dict[int, list[float]] = {}
        self._next: deque[Assignment] = deque()

    def ask(self, free: int) -> Sequence[Assignment]:
        """The next instance of every open trial that has none under way; then new trials."""
        dealt = [self._next.popleft() for _ in range(min(free, len(self._next)))]
        while len(dealt) < free and self._trials:
            trial = self._trials.popleft()
            self._open[trial.number], self._scores[trial.number] = (trial, self._study.ask()), []
            dealt.append(Assignment(trial, 0))
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Put every result to the test; what is beaten has nothing under way to drop."""
        for report in reports:
            trial, asked = self._open[report.trial]
            if not isinstance(report.outcome, Scored):
                self._study.tell(asked, state=TrialState.FAIL)
                continue
            scores = self._scores[report.trial]
            scores.append(report.outcome.scores[self._objective])
            asked.report(scores[-1], report.instance)
            if len(scores) == self._instances:
                self._study.tell(asked, sum(scores) / len(scores))
            elif asked.should_prune():
                self._study.tell(asked, state=TrialState.PRUNED)
            else:
                self._next.append(Assignment(trial, report.instance + 1))
        return []
