"""A peer that the product does not have: the grid, depth first, pruned by Optuna's rule of Wilcoxon's test."""

import math
import random
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from search_spaces.requests import Scored, Trial
from search_spaces.space import Judge, Space, survey
from search_spaces.strategies import Assignment, Report


class WilcoxonGrid:
    """Candidates in random order, each instance after instance, until the leader beats it with p below `p`.

    A trial has one picture under way at a time, and as many trials are open as the crew has room for. The rule
    is that of `optuna.pruners.WilcoxonPruner`, which a test holds it to; written anew, since Optuna's own takes
    a hundred times as long.
    """

    def __init__(
        self, space: Space, judge: Judge, instances: int, objective: str, p: float, seed: int
    ) -> None:
        candidates = survey(space, judge).candidates
        random.Random(seed).shuffle(candidates)
        self._trials = deque(Trial(number, settings) for number, settings in enumerate(candidates))
        self._instances, self._objective, self._p = instances, objective, p
        self._open: dict[int, Trial] = {}
        self._scores: dict[int, list[float]] = {}
        self._best: list[float] = []
        self._next: deque[Assignment] = deque()

    def ask(self, free: int) -> Sequence[Assignment]:
        """The next instance of every open trial that has none under way; then new trials."""
        dealt = [self._next.popleft() for _ in range(min(free, len(self._next)))]
        while len(dealt) < free and self._trials:
            trial = self._trials.popleft()
            self._open[trial.number], self._scores[trial.number] = trial, []
            dealt.append(Assignment(trial, 0))
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Put every result to the test; what is beaten has nothing under way to drop."""
        for report in reports:
            if not isinstance(report.outcome, Scored):
                continue
            scores = self._scores[report.trial]
            scores.append(report.outcome.scores[self._objective])
            if len(scores) == self._instances:
                if not self._best or math.fsum(scores) > math.fsum(self._best):
                    self._best = scores
            elif not self._best or not is_beaten(scores, self._best, self._p):
                self._next.append(Assignment(self._open[report.trial], report.instance + 1))
        return []


def is_beaten(scores: Sequence[float], best: Sequence[float], p: float) -> bool:
    """Whether scores of the first instances are below the leader's by the one-sided signed-rank test.

    Never of one instance, nor while their mean is no worse than the leader's over all instances.
    """
    if len(scores) < 2 or math.fsum(scores) / len(scores) >= math.fsum(best) / len(best):
        return False
    gains = sorted((score - other for score, other in zip(scores, best, strict=False)), key=abs)
    return sum(rank for rank, gain in enumerate(gains, 1) if gain > 0) <= critical_sum(len(gains), p)


@lru_cache
def critical_sum(pairs: int, p: float) -> int:
    """The largest sum of positive ranks whose probability, by chance or less, is below `p`; -1 if none is."""
    ways = [1]  # subsets of the ranks by their sum
    for rank in range(1, pairs + 1):
        longer = [*ways, *[0] * rank]
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    below, largest = 0, -1
    for total, count in enumerate(ways):
        below += count
        if below / 2**pairs >= p:
            break
        largest = total
    return largest
