"""An Optuna sampler as a strategy, over an in-memory study."""

import math
import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler
from optuna.trial import TrialState

from search_spaces.objectives import Constraint, Direction
from search_spaces.requests import Failed, Outcome, Scored, Settings, Trial
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report
from search_spaces.strategies.racing import has_lost, mean, stages
from search_spaces.strategies.samplers import Axes
from search_spaces.study_file import OWN_STRATEGIES

REPEATS_BEFORE_CHANCE = 50
"""Asks in a row that gave nothing new before an untried cell is drawn at random instead."""

REPEATS_OF_A_MODEL = 5
"""The same for a Gaussian process, each of whose asks fits a model: a tenth of a second and more."""

CELLS_SEARCHED = 100_000
"""Cells walked in search of an untried one: a few seconds, once, at the end of a search."""

DRAWS = 10_000
"""Points drawn in search of an untried one where there is no lattice: half a second; fewer after a vain search."""


@dataclass(frozen=True)
class _Verdict:
    """What a sampler is told of a trial; neither values nor constraints: that there is nothing to learn."""

    values: tuple[float, ...] | None = None
    constraints: Mapping[str, float] = field(default_factory=dict)


_CANNOT_RUN = _Verdict(constraints={"can run": math.inf})


@dataclass
class _Course:
    """A trial on its way: what is known of it and what is awaited.

    `suggestion` is what the sampler waits to hear of, None for settings that it cannot represent.
    """

    trial: Trial
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    suggestion: optuna.Trial | None = None
    awaited: set[int] = field(default_factory=set)
    under_way: bool = False
    dealt: bool = False

    @property
    def infeasible(self) -> bool:
        return any(isinstance(o, Failed) and o.kind == "infeasible" for o in self.outcomes.values())

    def missing(self, end: int) -> list[int]:
        """The instances before `end` of which nothing is known."""
        return [instance for instance in range(end) if instance not in self.outcomes]

    def scores(self, name: str, end: int) -> dict[int, float]:
        """The scores of a name by instance, those before `end` that have one."""
        return {
            instance: outcome.scores[name]
            for instance, outcome in self.outcomes.items()
            if instance < end and isinstance(outcome, Scored) and name in outcome.scores
        }


def gone_on_with(
    past: Sequence[PastTrial], instances: int, trials: int, enqueued: Collection[int] = ()
) -> set[int]:
    """The numbers of the past trials that a sampler of so many `trials` goes on with.

    Those are what is decided, whoever dealt it, and what is enqueued; then what a sampler left unfinished, by
    number, as far as `trials` reaches. What another strategy left behind waits until it is suggested.
    """
    chosen = {trial.number for trial in past if trial.number in enqueued or _is_decided(trial, instances)}
    for trial in sorted(past, key=lambda trial: trial.number):
        sampled = not trial.dealt_by or not set(trial.dealt_by.values()) <= OWN_STRATEGIES.keys()
        if len(chosen) < trials and sampled:
            chosen.add(trial.number)
    return chosen


def _is_decided(trial: PastTrial, instances: int) -> bool:
    known = [trial.outcomes[instance] for instance in range(instances) if instance in trial.outcomes]
    return len(known) == instances or any(isinstance(o, Failed) and o.kind == "infeasible" for o in known)


class OptunaSampler:
    """Deals what a sampler suggests; a trial's values are its means over all instances.

    A suggestion that draws the same pixels as an earlier trial is answered with what is known of that and
    not dealt; one that cannot run is told as a violated constraint. `enqueue` is tried before the sampler
    is asked; of settings there that are off the lattice the sampler hears nothing. `trials` counts the
    trials dealt, with those of `enqueue` and those of earlier sessions that it goes on with (`gone_on_with`).

    With `racing` a trial is dealt instances in stages (`racing.stages`), later stages before new trials.
    After a stage, and whenever there is a new leader, it is tested against the leader, the best complete
    trial that keeps the constraints, on the instances that both have. A loser is dropped, and the sampler
    is told its paired estimate: the leader's mean plus the mean paired difference. With several objectives
    nobody leads and nothing is raced. The `baseline` is judged on all instances in any case.

    An earlier session's unfinished trial stays dropped where it has lost against one that led then, as far
    as the numbers of the trials tell in which order they led.
    """

    def __init__(
        self,
        space: Space,
        judge: Judge,
        instances: int,
        objectives: Mapping[str, Direction],
        trials: int,
        sampler: BaseSampler,
        *,
        seed: int = 0,
        past: Sequence[PastTrial] = (),
        constraints: Sequence[Constraint] = (),
        enqueue: Sequence[Settings] = (),
        baseline: Settings | None = None,
        racing: bool = False,
    ) -> None:
        self._space, self._judge, self._instances, self._budget = space, judge, instances, trials
        self._objectives, self._constraints = dict(objectives), tuple(constraints)
        self._racing = racing and len(self._objectives) == 1
        self._stages = stages(instances) if self._racing else (instances,)
        self._axes = Axes(space)
        self._random = random.Random(seed + len(past))
        self._study = optuna.create_study(directions=list(self._objectives.values()), sampler=sampler)
        self._queue: deque[Assignment] = deque()
        self._ready: set[int] = set()
        self._courses: dict[int, _Course] = {}
        self._candidates: dict[str, int] = {}
        self._verdicts: dict[int, _Verdict] = {}
        self._shelved: set[int] = set()  # of earlier sessions, until they are suggested
        self._counted = 0
        self._led: list[int] = []
        self._tested_against: int | None = None
        self._exhausted, self._draws = False, DRAWS
        self._next_number = max((trial.number for trial in past), default=-1) + 1
        self._enqueued = deque(enqueue)
        self._baseline = "" if baseline is None else judge.candidate(baseline)
        self._replay(past)

    def ask(self, free: int) -> Sequence[Assignment]:
        """Assignments of trials already begun first; new trials while the budget lasts."""
        while len(self._queue) < free and (self._ready or self._begin()):
            self._deal_next_stage(min(self._ready, key=self._urgency))
        dealt = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        for assignment in dealt:
            self._courses[assignment.trial.number].dealt = True
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Tell the sampler of every trial that is decided; drop those that are infeasible or have lost."""
        for report in reports:
            course = self._courses[report.trial]
            course.outcomes[report.instance] = report.outcome
            course.awaited.discard(report.instance)
        touched = dict.fromkeys(report.trial for report in reports)
        dropped = [number for number in touched if self._settle(number)]
        dropped += self._race(touched)
        if dropped:
            self._queue = deque(a for a in self._queue if a.trial.number not in dropped)
        return [number for number in dropped if self._courses[number].dealt]

    # Beginning

    def _begin(self) -> bool:
        """Make a trial ready to be dealt; False where the budget or the space is exhausted."""
        if self._exhausted or self._counted >= self._budget:
            return False
        while self._enqueued:
            settings = self._enqueued.popleft()
            if self._is_open(settings):
                self._take_up(self._course(settings), self._suggested(settings))
                return True
        fits = isinstance(self._study.sampler, GPSampler)
        for _ in range(REPEATS_OF_A_MODEL if fits else REPEATS_BEFORE_CHANCE):
            suggestion = self._study.ask(self._axes.distributions)
            settings = self._axes.settings(suggestion.params)
            if self._is_open(settings):
                self._take_up(self._course(settings), suggestion)
            else:
                self._answer_at_once(suggestion, settings)
            if self._ready or self._counted >= self._budget:
                return bool(self._ready)
        untried = self._untried()
        if untried is None:
            self._exhausted = True
            return False
        self._take_up(self._course(untried), self._suggested(untried))
        return True

    def _is_open(self, settings: Settings) -> bool:
        """Whether settings can run and are not among the trials that this search has."""
        if self._judge.obstacle(settings) is not None:
            return False
        number = self._candidates.get(self._judge.candidate(settings))
        return number is None or number in self._shelved

    def _answer_at_once(self, suggestion: optuna.Trial, settings: Settings) -> None:
        """Tell a suggestion whose answer is known without a new picture."""
        if self._judge.obstacle(settings) is not None:
            self._tell(suggestion, _CANNOT_RUN)
        else:
            number = self._candidates[self._judge.candidate(settings)]
            self._tell(suggestion, self._verdicts.get(number, _Verdict()))

    def _course(self, settings: Settings) -> _Course:
        """The course of a new trial, or of the shelved one of the same candidate."""
        candidate = self._judge.candidate(settings)
        number = self._candidates.setdefault(candidate, self._next_number)
        if number == self._next_number:
            self._next_number += 1
            self._courses[number] = _Course(Trial(number, settings))
        self._courses[number].trial = Trial(number, settings)
        return self._courses[number]

    def _suggested(self, settings: Settings) -> optuna.Trial | None:
        """Settings as if the sampler had suggested them; None where it cannot represent them."""
        params = self._axes.params(settings)
        if params is None:
            return None
        self._study.enqueue_trial(params)
        return self._study.ask(self._axes.distributions)

    def _take_up(self, course: _Course, suggestion: optuna.Trial | None) -> None:
        """Decide a trial that its outcomes decide already, else make it ready for its next stage."""
        course.suggestion, course.under_way = suggestion, True
        self._counted += 1
        self._shelved.discard(course.trial.number)
        self._settle(course.trial.number)

    # Dealing

    def _deal_next_stage(self, number: int) -> None:
        self._ready.remove(number)
        course = self._courses[number]
        end = next(end for end in self._stages if course.missing(end))
        course.awaited = set(course.missing(end))
        self._queue.extend(Assignment(course.trial, instance) for instance in course.missing(end))

    def _urgency(self, number: int) -> tuple[int, float, int]:
        """Sorts ready trials: in a race the furthest first, so that a leader is soon known, and of those the best.

        Trials of one stage are compared on the same instances.
        """
        course = self._courses[number]
        judged = max((end for end in self._stages if not course.missing(end)), default=0)
        scores = course.scores(self._objective, judged).values()
        return -judged, -self._sign * mean([*scores]) if scores else math.inf, number

    # Deciding

    def _settle(self, number: int) -> bool:
        """Decide a trial whose outcomes decide it, or ready it for its next stage; True where it is infeasible."""
        course = self._courses[number]
        if not course.under_way:
            return False
        if course.infeasible:
            self._close(course, _CANNOT_RUN)
        elif not course.missing(self._instances):
            self._finish(course)
        elif not course.awaited:
            self._ready.add(number)
        return course.infeasible

    def _finish(self, course: _Course) -> None:
        """Decide a trial that was judged on every instance: by its means, else by what the pairs tell."""
        scores = {name: course.scores(name, self._instances) for name in self._score_names}
        if any(len(each) < self._instances for each in scores.values()):
            self._close(course, self._estimate(course) if self._has_lost(course) else _Verdict())
            return
        verdict = self._verdict({name: mean([*each.values()]) for name, each in scores.items()})
        self._close(course, verdict)
        if self._racing and all(violation <= 0 for violation in verdict.constraints.values()):
            best = self._verdicts[self._led[-1]].values if self._led else None
            assert verdict.values is not None
            if best is None or self._sign * verdict.values[0] > self._sign * best[0]:
                self._led.append(course.trial.number)

    def _race(self, touched: Iterable[int]) -> list[int]:
        """Drop the trials that have lost: of those just at the end of a stage, or of all where the leader is new."""
        if not self._led:
            return []
        at_stake = self._ready.intersection(touched)
        if self._tested_against != self._led[-1]:
            at_stake = {number for number, course in self._courses.items() if course.under_way}
        self._tested_against = self._led[-1]
        lost = [number for number in at_stake if self._has_lost(self._courses[number])]
        for number in lost:
            self._close(self._courses[number], self._estimate(self._courses[number]))
        return sorted(lost)

    def _has_lost(self, course: _Course, leader: int | None = None) -> bool:
        """Whether a trial has lost against the leader, or another trial that once led."""
        if leader is None and not self._led:
            return False
        if course.trial.number == self._candidates.get(self._baseline):
            return False
        leader = self._led[-1] if leader is None else leader
        gains = self._paired(course, leader, self._objective)
        return has_lost([self._sign * gain for gain in gains])

    def _paired(self, course: _Course, leader: int, name: str) -> list[float]:
        """A score's differences trial − leader on the instances that both have."""
        scores = self._courses[leader].scores(name, self._instances)
        return [value - scores[i] for i, value in course.scores(name, self._instances).items() if i in scores]

    def _estimate(self, course: _Course) -> _Verdict:
        """What the pairs tell of a trial's means: the leader's, and the mean difference from them."""
        leader = self._led[-1]
        estimates: dict[str, float] = {}
        for name in self._score_names:
            leading = self._courses[leader].scores(name, self._instances).values()
            gains = self._paired(course, leader, name)
            if not gains:
                return _Verdict()
            estimates[name] = mean([*leading]) + mean(gains)
        return self._verdict(estimates)

    def _verdict(self, means: Mapping[str, float]) -> _Verdict:
        values = tuple(means[name] for name in self._objectives)
        return _Verdict(values, {str(c): c.violation(means[c.score]) for c in self._constraints})

    def _close(self, course: _Course, verdict: _Verdict) -> None:
        number = course.trial.number
        course.under_way = False
        self._ready.discard(number)
        self._verdicts[number] = verdict
        if self._space.continuous:  # the sampler may look elsewhere now
            self._exhausted = False
        if course.suggestion is not None:
            self._tell(course.suggestion, verdict)

    def _tell(self, suggestion: optuna.Trial, verdict: _Verdict) -> None:
        if isinstance(self._study.sampler, GPSampler):
            verdict = self._as_a_model_learns(verdict)
        if not isinstance(self._study.sampler, CmaEsSampler):  # it would warn that it takes none
            for name, violation in verdict.constraints.items():
                suggestion.set_constraint(name, violation)
        if verdict.values is not None:
            self._study.tell(suggestion, verdict.values)
        else:
            self._study.tell(suggestion, state=TrialState.PRUNED if verdict.constraints else TrialState.FAIL)

    def _as_a_model_learns(self, verdict: _Verdict) -> _Verdict:
        """A verdict for a Gaussian process, which hears of complete trials with equal constraints only.

        It would suggest a cell that cannot run for ever. So such a one has the mean of what was told, which
        is all that is expected of a cell without a value, and a violated constraint beside it.
        """
        told = [each for each in self._verdicts.values() if each.values is not None]
        if verdict.values is not None:
            return _Verdict(verdict.values, {"can run": 0.0, **verdict.constraints})
        if not verdict.constraints or not told:
            return _Verdict()
        values = tuple(mean(column) for column in zip(*(each.values or () for each in told), strict=True))
        kept = {name: mean([each.constraints[name] for each in told]) for name in told[0].constraints}
        return _Verdict(values, {"can run": 1.0, **kept})

    @property
    def _objective(self) -> str:
        return next(iter(self._objectives))

    @property
    def _sign(self) -> int:
        """1 where more is better, −1 where less is."""
        return 1 if self._objectives[self._objective] == "maximize" else -1

    @property
    def _score_names(self) -> list[str]:
        """The scores of which a trial needs means."""
        return list(dict.fromkeys([*self._objectives, *(c.score for c in self._constraints)]))

    # Earlier sessions

    def _replay(self, past: Sequence[PastTrial]) -> None:
        """Take up the trials of earlier sessions, complete ones first, so that the others can be tested.

        One that has left the space is taken up where it is enqueued or a twin of it is suggested, and so is one
        that this search does not go on with.
        """
        for trial in past:
            self._candidates[self._judge.candidate(trial.settings)] = trial.number
            outcomes = {i: outcome for i, outcome in trial.outcomes.items() if i < self._instances}
            self._courses[trial.number] = _Course(Trial(trial.number, trial.settings), outcomes)
        enqueued = {self._judge.candidate(settings) for settings in self._enqueued}
        wanted = {self._candidates[candidate] for candidate in enqueued if candidate in self._candidates}
        there = [
            trial
            for trial in past
            if trial.number in wanted
            or (
                self._axes.params(trial.settings) is not None and self._judge.obstacle(trial.settings) is None
            )
        ]
        chosen = gone_on_with(there, self._instances, self._budget, wanted)
        sampler = self._study.sampler
        if isinstance(sampler, GPSampler):  # it would fit a model for each, only to be told the answer
            self._study.sampler = RandomSampler(seed=0)
        for course in sorted(self._courses.values(), key=self._has_gaps):
            if course.trial.number in chosen:
                self._take_up(course, self._suggested(course.trial.settings))
            else:
                self._shelved.add(course.trial.number)
        self._study.sampler = sampler
        for number in sorted(self._ready):
            course = self._courses[number]
            if any(self._has_lost(course, leader) for leader in self._led):
                self._close(course, self._estimate(course))

    def _has_gaps(self, course: _Course) -> bool:
        return any(len(course.scores(n, self._instances)) < self._instances for n in self._score_names)

    def _untried(self) -> Settings | None:
        """Untried settings that can run, from a random cell of the lattice on; None if none are found.

        Where there is no lattice, points are drawn at random.
        """
        size = self._space.size
        if size is None:
            drawn = (self._axes.drawn(self._random) for _ in range(self._draws))
            found = next(filter(self._is_open, drawn), None)
            self._draws = DRAWS if found is not None else self._draws // 10
            return found
        start = self._random.randrange(size)
        for offset in range(min(size, CELLS_SEARCHED)):
            cell = self._space.cell((start + offset) % size)
            if self._is_open(cell):
                return cell
        return None
