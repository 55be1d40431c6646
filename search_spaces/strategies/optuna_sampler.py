"""An Optuna sampler as a strategy, over an in-memory study."""

import math
import random
from collections import deque
from collections.abc import Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search_spaces.domains import Choices, Domain, IntRange
from search_spaces.requests import Failed, Outcome, Scored, Settings, Trial, Value
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report

optuna.logging.set_verbosity(optuna.logging.WARNING)

REPEATS_BEFORE_CHANCE = 50
"""Asks in a row that gave nothing new before an untried cell is drawn at random instead."""


class OptunaSampler:
    """Deals what a sampler suggests, each trial on all instances; a trial's value is their mean.

    A suggestion that draws the same pixels as an earlier trial is answered with that trial's value and
    not dealt; one that cannot run is told as a violated constraint. Numeric lists are an ordered index to
    the sampler. `trials` counts the trials dealt, those of earlier sessions included.
    """

    def __init__(
        self,
        space: Space,
        judge: Judge,
        instances: int,
        objective: str,
        trials: int,
        sampler: BaseSampler,
        seed: int = 0,
        past: Sequence[PastTrial] = (),
    ) -> None:
        self._space, self._judge, self._instances = space, judge, instances
        self._objective, self._budget = objective, trials
        self._random = random.Random(seed + len(past))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._queue: deque[Assignment] = deque()
        self._open: dict[int, optuna.Trial] = {}
        self._outcomes: dict[int, dict[int, Outcome]] = {}
        self._candidates: dict[str, int] = {}
        self._values: dict[int, float] = {}
        self._next_number = max((trial.number for trial in past), default=-1) + 1
        for trial in past:
            self._replay(trial)

    def ask(self, free: int) -> Sequence[Assignment]:
        """Assignments of trials already begun first; new trials while the budget lasts."""
        while len(self._queue) < free and len(self._candidates) < self._budget and self._begin():
            pass
        return [self._queue.popleft() for _ in range(min(free, len(self._queue)))]

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Tell the sampler of every trial that is decided; drop those with an infeasible instance."""
        dropped = []
        for report in reports:
            outcomes = self._outcomes[report.trial]
            outcomes[report.instance] = report.outcome
            if report.trial in self._open and self._decide(report.trial):
                dropped.append(report.trial)
        if dropped:
            self._queue = deque(a for a in self._queue if a.trial.number not in dropped)
        return dropped

    def _begin(self) -> bool:
        """Put one new trial's assignments on the queue; False where nothing untried is left."""
        for _ in range(REPEATS_BEFORE_CHANCE):
            suggestion = self._study.ask(self._distributions())
            settings = self._settings(suggestion.params)
            if not self._answer_at_once(suggestion, settings):
                self._deal(suggestion, settings)
                return True
        untried = self._untried()
        if untried is None:
            return False
        self._study.enqueue_trial(self._params(untried))
        self._deal(self._study.ask(self._distributions()), untried)
        return True

    def _answer_at_once(self, suggestion: optuna.Trial, settings: Settings) -> bool:
        """Tell a suggestion whose answer is known without a new picture."""
        if self._judge.obstacle(settings) is not None:
            self._tell_infeasible(suggestion)
            return True
        number = self._candidates.get(self._judge.candidate(settings))
        if number is None:
            return False
        value = self._values.get(number)
        if value is None:
            self._study.tell(suggestion, state=TrialState.FAIL)
        else:
            self._tell_value(suggestion, value)
        return True

    def _deal(self, suggestion: optuna.Trial, settings: Settings) -> None:
        trial = Trial(self._next_number, settings)
        self._next_number += 1
        self._open[trial.number] = suggestion
        self._outcomes[trial.number] = {}
        self._candidates[self._judge.candidate(settings)] = trial.number
        self._queue.extend(Assignment(trial, instance) for instance in range(self._instances))

    def _decide(self, number: int) -> bool:
        """Tell a trial's value once it has one; True where an infeasible instance ends it early."""
        outcomes = self._outcomes[number]
        if any(isinstance(o, Failed) and o.kind == "infeasible" for o in outcomes.values()):
            self._tell_infeasible(self._open.pop(number))
            return True
        if len(outcomes) == self._instances:
            scores = [o.scores[self._objective] for o in outcomes.values() if isinstance(o, Scored)]
            suggestion = self._open.pop(number)
            if len(scores) == self._instances:
                self._values[number] = math.fsum(scores) / len(scores)
                self._tell_value(suggestion, self._values[number])
            else:
                self._study.tell(suggestion, state=TrialState.FAIL)
        return False

    def _tell_value(self, suggestion: optuna.Trial, value: float) -> None:
        suggestion.set_constraint("can run", 0.0)
        self._study.tell(suggestion, value)

    def _tell_infeasible(self, suggestion: optuna.Trial) -> None:
        suggestion.set_constraint("can run", 1.0)
        self._study.tell(suggestion, state=TrialState.PRUNED)

    def _replay(self, past: PastTrial) -> None:
        """Take up a trial of an earlier session: what it lacks is dealt, what it has is told."""
        self._candidates[self._judge.candidate(past.settings)] = past.number
        self._outcomes[past.number] = dict(past.outcomes)
        try:
            self._study.enqueue_trial(self._params(past.settings))
        except ValueError:  # a value that has left the space: nothing the sampler could learn from
            return
        self._open[past.number] = self._study.ask(self._distributions())
        if self._decide(past.number) or past.number not in self._open:
            return
        trial = Trial(past.number, past.settings)
        missing = [i for i in range(self._instances) if i not in past.outcomes]
        self._queue.extend(Assignment(trial, instance) for instance in missing)

    def _untried(self) -> Settings | None:
        """An untried cell that can run, from a random position of the lattice on; None if there is none."""
        size = self._space.size
        if not size:
            return None
        start = self._random.randrange(size)
        for offset in range(size):
            cell = self._space.cell((start + offset) % size)
            if self._judge.obstacle(cell) is None and self._judge.candidate(cell) not in self._candidates:
                return cell
        return None

    def _distributions(self) -> dict[str, BaseDistribution]:
        return {name: _distribution(domain) for name, domain in self._space.axes.items()}

    def _settings(self, params: Settings) -> dict[str, Value]:
        axes = self._space.axes
        return {name: _value(axes[name], params[name]) for name in axes}

    def _params(self, settings: Settings) -> dict[str, Value]:
        """A sampler's parameters for settings; ValueError where one is outside the space."""
        if set(settings) != set(self._space.axes):
            raise ValueError("other axes than the space's")
        return {name: _param(domain, settings[name]) for name, domain in self._space.axes.items()}


def _ladder(domain: Choices) -> list[Value]:
    """A list as the sampler sees it: numbers ascending, whatever their order in the file."""
    return sorted(domain.values, key=_number) if domain.ordered else list(domain.values)


def _number(value: Value) -> float:
    assert isinstance(value, int | float)
    return value


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choices):
        if domain.ordered:
            return IntDistribution(0, len(domain.values) - 1)
        return CategoricalDistribution(range(len(domain.values)))
    if isinstance(domain, IntRange):
        return IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


def _value(domain: Domain, param: Value) -> Value:
    if isinstance(domain, Choices):
        assert isinstance(param, int)
        return _ladder(domain)[param]
    return param


def _param(domain: Domain, value: Value) -> Value:
    if isinstance(domain, Choices):
        return _ladder(domain).index(value)
    if not domain.low <= _number(value) <= domain.high:
        raise ValueError("outside the range")
    return value
