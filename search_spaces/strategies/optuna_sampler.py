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

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.requests import Failed, Outcome, Scored, Settings, Trial, Value
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report

optuna.logging.set_verbosity(optuna.logging.WARNING)

REPEATS_BEFORE_CHANCE = 50
"""Asks in a row that gave nothing new before an untried cell is drawn at random instead."""

CELLS_SEARCHED = 100_000
"""Cells walked in search of an untried one: a few seconds, once, at the end of a search."""


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
        self._axes = {name: _Axis(domain) for name, domain in space.axes.items()}
        self._distributions = {name: axis.distribution for name, axis in self._axes.items()}
        self._random = random.Random(seed + len(past))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._queue: deque[Assignment] = deque()
        self._open: dict[int, optuna.Trial] = {}
        self._outcomes: dict[int, dict[int, Outcome]] = {}
        self._candidates: dict[str, int] = {}
        self._values: dict[int, float] = {}
        self._shelved: set[int] = set()
        self._exhausted = False
        self._next_number = max((trial.number for trial in past), default=-1) + 1
        for trial in past:
            self._replay(trial)

    def ask(self, free: int) -> Sequence[Assignment]:
        """Assignments of trials already begun first; new trials while the budget lasts."""
        while len(self._queue) < free and len(self._candidates) < self._budget and not self._exhausted:
            self._exhausted = not self._begin()
        return [self._queue.popleft() for _ in range(min(free, len(self._queue)))]

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Tell the sampler of every trial that is decided; drop those with an infeasible instance."""
        dropped = []
        for report in reports:
            outcomes = self._outcomes[report.trial]
            outcomes[report.instance] = report.outcome
            if report.trial in self._open and self._decide(report.trial):
                dropped.append(report.trial)
        if self._space.continuous:  # the sampler may look elsewhere now
            self._exhausted = False
        if dropped:
            self._queue = deque(a for a in self._queue if a.trial.number not in dropped)
        return dropped

    def _begin(self) -> bool:
        """Put one new trial's assignments on the queue; False where nothing untried is left."""
        for _ in range(REPEATS_BEFORE_CHANCE):
            suggestion = self._study.ask(self._distributions)
            settings = {name: axis.value(suggestion.params[name]) for name, axis in self._axes.items()}
            if not self._answer_at_once(suggestion, settings):
                self._deal(suggestion, settings)
                return True
        untried = self._untried()
        if untried is None:
            return False
        self._study.enqueue_trial(self._params(untried))
        self._deal(self._study.ask(self._distributions), untried)
        return True

    def _answer_at_once(self, suggestion: optuna.Trial, settings: Settings) -> bool:
        """Tell a suggestion whose answer is known without a new picture."""
        if self._judge.obstacle(settings) is not None:
            self._tell_infeasible(suggestion)
            return True
        number = self._candidates.get(self._judge.candidate(settings))
        if number is None:
            return False
        if number in self._shelved:
            self._shelved.remove(number)
            self._take_up(suggestion, Trial(number, settings))
            return True
        value = self._values.get(number)
        if value is None:
            self._study.tell(suggestion, state=TrialState.FAIL)
        else:
            self._tell_value(suggestion, value)
        return True

    def _deal(self, suggestion: optuna.Trial, settings: Settings) -> None:
        trial = Trial(self._next_number, settings)
        self._next_number += 1
        self._candidates[self._judge.candidate(settings)] = trial.number
        self._outcomes[trial.number] = {}
        self._take_up(suggestion, trial)

    def _take_up(self, suggestion: optuna.Trial, trial: Trial) -> None:
        """Tell a trial's value where its outcomes give one, else queue the instances that it lacks."""
        self._open[trial.number] = suggestion
        self._decide(trial.number)
        if trial.number in self._open:
            missing = (i for i in range(self._instances) if i not in self._outcomes[trial.number])
            self._queue.extend(Assignment(trial, instance) for instance in missing)

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
        """Take up a trial of an earlier session; one that has left the space, only where a twin is suggested."""
        self._candidates[self._judge.candidate(past.settings)] = past.number
        self._outcomes[past.number] = {i: o for i, o in past.outcomes.items() if i < self._instances}
        try:
            self._study.enqueue_trial(self._params(past.settings))
        except ValueError:
            self._shelved.add(past.number)
            return
        self._take_up(self._study.ask(self._distributions), Trial(past.number, past.settings))

    def _untried(self) -> Settings | None:
        """An untried cell that can run, from a random position of the lattice on; None if none is found."""
        size = self._space.size
        if not size:
            return None
        start = self._random.randrange(size)
        for offset in range(min(size, CELLS_SEARCHED)):
            cell = self._space.cell((start + offset) % size)
            if self._judge.obstacle(cell) is None and self._judge.candidate(cell) not in self._candidates:
                return cell
        return None

    def _params(self, settings: Settings) -> dict[str, Value]:
        """A sampler's parameters for settings; ValueError where one is outside the space."""
        if set(settings) != set(self._axes):
            raise ValueError("other axes than the space's")
        return {name: axis.param(settings[name]) for name, axis in self._axes.items()}


class _Axis:
    """A domain as the sampler sees it: a position on a ladder of values, or a number of a range.

    Numbers stand on the ladder in ascending order, whatever their order in the file.
    """

    distribution: BaseDistribution

    def __init__(self, domain: Domain) -> None:
        self._domain, self._ladder = domain, list[Value]()
        if isinstance(domain, IntRange):
            last = domain.points()[-1]
            self.distribution = IntDistribution(domain.low, last, log=domain.log, step=domain.step)
        elif isinstance(domain, FloatRange) and domain.step is None:
            self.distribution = FloatDistribution(domain.low, domain.high, log=domain.log)
        elif isinstance(domain, Choices) and not domain.ordered:
            self._ladder = list(domain.values)
            self.distribution = CategoricalDistribution(range(len(self._ladder)))
        else:
            self._ladder = sorted(domain.points() or (), key=_number)
            self.distribution = IntDistribution(0, len(self._ladder) - 1)
        self._positions = {_typed(value): position for position, value in enumerate(self._ladder)}

    def value(self, param: Value) -> Value:
        """What a sampler's parameter stands for."""
        if not self._ladder:
            return param
        assert isinstance(param, int)
        return self._ladder[param]

    def param(self, value: Value) -> Value:
        """The sampler's parameter for a value. Raises ValueError where it is not in the domain."""
        domain = self._domain
        if self._ladder:
            inside = _typed(value) in self._positions
        elif isinstance(domain, IntRange):
            inside = type(value) is int and value in domain.points()
        else:
            assert isinstance(domain, FloatRange)
            inside = isinstance(value, int | float) and domain.low <= value <= domain.high
        if not inside:
            raise ValueError(f"{value!r} is not in the domain")
        return self._positions.get(_typed(value), value)


def _typed(value: Value) -> tuple[bool, Value]:
    """A key under which True is not 1, though Python says so, and 7 is 7.0."""
    return isinstance(value, bool), value


def _number(value: Value) -> float:
    assert isinstance(value, int | float)
    return value
