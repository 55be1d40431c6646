"""What a strategy over finite candidates remembers: the trials' numbers, and what became of each pair."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from search_spaces.requests import Failed, Looked, Outcome, Scored, Settings, Trial
from search_spaces.space import Judge
from search_spaces.strategies import PastTrial, Report


class Trials:
    """Trials by candidate: settings that draw the same pixels are one trial, and keep its number for ever.

    A trial keeps its settings too, which are the study file's own where it has such. `objective` names the score that
    counts; larger is better.
    """

    def __init__(self, judge: Judge, objective: str, past: Sequence[PastTrial] = ()) -> None:
        self._judge, self._objective = judge, objective
        self._numbers = {judge.candidate(trial.settings): trial.number for trial in past}
        self._trials: dict[str, Trial] = {}
        self._outcomes = {trial.number: dict(trial.outcomes) for trial in past}
        self._looks = {
            (trial.number, instance): {look.after: look for look in looks}
            for trial in past
            for instance, looks in trial.looks.items()
        }
        self._next = max((trial.number for trial in past), default=-1) + 1
        self.infeasible = {trial.number for trial in past if _any_infeasible(trial.outcomes.values())}

    def trial(self, settings: Settings) -> Trial | None:
        """The trial of some swept settings; None where they cannot run."""
        if self._judge.obstacle(settings) is not None:
            return None
        candidate = self._judge.candidate(settings)
        if candidate not in self._numbers:
            self._numbers[candidate] = self._next
            self._next += 1
        if candidate not in self._trials:
            self._trials[candidate] = Trial(self._numbers[candidate], self._judge.as_filed(settings))
        return self._trials[candidate]

    def candidates(self, cells: Iterable[Settings]) -> Iterator[Trial]:
        """The trials of some cells in their order, lazily, each once, without those that cannot run."""
        seen: set[int] = set()
        for cell in cells:
            trial = self.trial(cell)
            if trial is not None and trial.number not in seen:
                seen.add(trial.number)
                yield trial

    def take(self, reports: Sequence[Report]) -> list[int]:
        """Remember outcomes; the trials that turned out infeasible by them."""
        found = set()
        for report in reports:
            if isinstance(report.outcome, Looked):
                looks = self._looks.setdefault((report.trial, report.instance), {})
                looks[report.outcome.after] = report.outcome
            else:
                self._outcomes.setdefault(report.trial, {})[report.instance] = report.outcome
                if _any_infeasible([report.outcome]) and report.trial not in self.infeasible:
                    found.add(report.trial)
        self.infeasible |= found
        return sorted(found)

    def score(self, number: int, instance: int) -> float | None:
        """The score of a pair; None where there is none."""
        outcome = self._outcomes.get(number, {}).get(instance)
        return outcome.scores[self._objective] if isinstance(outcome, Scored) else None

    def settled(self, number: int, instance: int) -> bool:
        """Whether nothing more is to be learnt of a pair."""
        return number in self.infeasible or instance in self._outcomes.get(number, {})

    def fails(self, number: int, instance: int) -> bool:
        """Whether a pair has turned out infeasible."""
        outcome = self._outcomes.get(number, {}).get(instance)
        return outcome is not None and _any_infeasible([outcome])

    def look(self, number: int, instance: int, after: int) -> float | None:
        """The score of the picture that a look after so many UNet calls showed; None where there was none."""
        look = self._looks.get((number, instance), {}).get(after)
        return None if look is None else look.scores[self._objective]

    def mean(self, number: int, instances: int) -> float | None:
        """The mean over instances 0 … `instances` - 1; None unless each has a score."""
        scores = [self.score(number, instance) for instance in range(instances)]
        known = [score for score in scores if score is not None]
        return math.fsum(known) / instances if len(known) == instances else None


def as_filed(past: Iterable[PastTrial], judge: Judge) -> list[PastTrial]:
    """Past trials under the study file's own values, where it has such: an earlier version kept the model's."""
    return [replace(trial, settings=judge.as_filed(trial.settings)) for trial in past]


def _any_infeasible(outcomes: Iterable[Outcome]) -> bool:
    return any(isinstance(outcome, Failed) and outcome.kind == "infeasible" for outcome in outcomes)
