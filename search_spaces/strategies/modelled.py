"""A sampler's race that a model of all outcomes decides: which of its proposals get pictures, and how many.

The sampler proposes settings. The model (`surrogate`) tells, of everything proposed, how likely it is the best; who
may be it is judged on its next instances, a proposal on its first one. So settings that the model knows to be dull
for their neighbours' sake get no picture at all, and only the few that may be the best are judged on all instances.
Nobody is sent away for what the model believes: who is not worth a picture now may be when more is known. The sampler
hears of every proposal what the model expects of it, anew each time, so that one instance's luck is not its lesson.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search_spaces.objectives import Direction
from search_spaces.requests import Failed, Outcome, Scored, Settings, Trial, Value
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report
from search_spaces.strategies.optuna_sampler import CELLS_SEARCHED, gone_on_with
from search_spaces.strategies.racing import mean
from search_spaces.strategies.samplers import Axes
from search_spaces.strategies.surrogate import Outcomes, Surrogate, draws

FEWEST = 64
"""Trials from which on a search is worth a model."""

FIRST = 64
"""Trials that are begun before the model is asked, each on one instance; half of all where those are fewer."""

STAGES = (1, 4)
"""How many instances a trial has been dealt after each stage, as far as there are more; after the last one all."""

PROPOSED = 8
"""Proposals that the sampler is asked for each time that the model has learned."""

REPEATS = 30
"""Asks in a row that brought nothing new before one cell is drawn at random instead."""

MOST_WAITING = 256
"""Proposals without a picture above which none are asked for."""

LEARN_EVERY = 8
"""Outcomes after which the model learns, or a `LEARN_SHARE` of those that it has."""

LEARN_SHARE = 1 / 32

REFIT = 4 / 3
"""By how much outcomes have grown when lengths and variances are fitted again."""

MOST_OUTCOMES = 1200
"""Outcomes that the model learns from, those of the most promising trials: its time grows with their third power."""

ENOUGH = 0.03
"""What the best is expected to gain from going on, where a race ends.

In standard errors of the difference of two means over all instances.
"""


@dataclass
class _Entry:
    """Settings that were proposed: what is known of them and what is awaited. A trial once they are begun."""

    settings: Settings
    number: int | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)
    begun: bool = False
    dealt: bool = False
    gone: bool = False

    @property
    def infeasible(self) -> bool:
        return any(isinstance(o, Failed) and o.kind == "infeasible" for o in self.outcomes.values())


class ModelledSampler:
    """Deals what a sampler proposes and a model finds worth its pictures, for one objective on a finite lattice.

    `trials` counts the trials begun, with those of earlier sessions that it goes on with (`gone_on_with`); each
    gets one picture at least. `enqueue` is begun before all else. When all are begun, the race goes on until the
    best complete trial is as good as the best of all by `ENOUGH`; `baseline` is judged along, and on all instances in
    any case. Whoever is not complete is dropped only when the race ends.
    """

    def __init__(
        self,
        space: Space,
        judge: Judge,
        instances: int,
        objective: str,
        direction: Direction,
        trials: int,
        sampler: BaseSampler,
        *,
        seed: int = 0,
        past: Sequence[PastTrial] = (),
        enqueue: Sequence[Settings] = (),
        baseline: Settings | None = None,
    ) -> None:
        assert space.size is not None
        self._space, self._size, self._judge, self._instances = space, space.size, judge, instances
        self._objective, self._sign = objective, 1 if direction == "maximize" else -1
        self._budget, self._sampler = trials, sampler
        self._stages = [*(end for end in STAGES if end < instances), instances]
        self._axes = Axes(space)
        self._random = random.Random(seed + len(past))
        self._entries: list[_Entry] = []
        self._places: dict[str, int] = {}
        self._numbers: dict[int, int] = {}
        self._past = {judge.candidate(trial.settings): trial for trial in past}
        self._decided = set[str]()
        self._next_number = max((trial.number for trial in past), default=-1) + 1
        self._cannot_run: list[dict[str, Value]] = []
        self._queue: deque[Assignment] = deque()
        self._counted, self._heard, self._learned_at, self._fitted_at = 0, 0, 0, 0
        self._surrogate: Surrogate | None = None
        self._worth: dict[int, tuple[float, float]] = {}
        self._upper: dict[int, float] = {}
        self._settled, self._exhausted = False, False
        self._study = self._taught({})
        self._baseline = "" if baseline is None else judge.candidate(baseline)
        self._take_up(past, enqueue)

    def ask(self, free: int) -> Sequence[Assignment]:
        """The next instances of those most likely the best, begun or not."""
        while len(self._queue) < free and (place := self._chosen()) is not None:
            self._deal(self._before(place))
        dealt = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        for assignment in dealt:
            self._entries[self._numbers[assignment.trial.number]].dealt = True
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Drop what is infeasible, and at the race's end whoever is not complete."""
        gone = list[int]()
        for report in reports:
            place = self._numbers[report.trial]
            entry = self._entries[place]
            entry.outcomes[report.instance] = report.outcome
            entry.awaited.discard(report.instance)
            if entry.infeasible and not entry.gone:
                entry.gone = True
                gone.append(place)
        self._heard += len(reports)
        if gone:
            numbers = {self._entries[place].number for place in gone}
            self._queue = deque(each for each in self._queue if each.trial.number not in numbers)
        if reports and not self._awaits and self._chosen() is None:
            gone += [place for place, each in enumerate(self._entries) if each.begun and self._is_open(each)]
        for place in gone:
            self._entries[place].gone = True
        dropped = (each for place in gone if (each := self._entries[place]).dealt)
        return sorted(each.number for each in dropped if each.number is not None)

    # What is proposed

    def _take_up(self, past: Sequence[PastTrial], enqueue: Sequence[Settings]) -> None:
        """Begin with what earlier sessions came to, and with what is to be tried first."""
        first = {self._judge.candidate(settings) for settings in enqueue}
        for settings in enqueue:
            self._propose(settings)
        self._first = len(self._entries)
        for trial in past:
            if self._axes.params(trial.settings) is not None:
                self._propose(trial.settings)
        there = [self._past[candidate] for candidate in self._places if candidate in self._past]
        wanted = {trial.number for trial in there if self._judge.candidate(trial.settings) in first}
        for number in sorted(gone_on_with(there, self._instances, self._budget, wanted)):
            self._begin(self._entries[self._numbers[number]])
        # What has left the space and is decided is nothing to propose: nor would a later session know that it was.
        left = {each: trial for each, trial in self._past.items() if each not in self._places}
        self._decided = {each for each, trial in left.items() if not self._is_open(self._entry(trial))}

    def _propose(self, settings: Settings) -> bool:
        """Take settings among the proposals; False where they cannot run or are there."""
        if self._judge.obstacle(settings) is not None:
            return False
        candidate = self._judge.candidate(settings)
        if candidate in self._places or candidate in self._decided:
            return False
        entry, past = _Entry(settings), self._past.get(candidate)
        if past is not None:
            entry = replace(self._entry(past), settings=settings)
            self._numbers[past.number] = len(self._entries)
            self._heard += len(entry.outcomes)
        self._places[candidate] = len(self._entries)
        self._entries.append(entry)
        return True

    def _entry(self, past: PastTrial) -> _Entry:
        outcomes = {i: outcome for i, outcome in past.outcomes.items() if i < self._instances}
        return _Entry(past.settings, past.number, outcomes)

    def _begin(self, entry: _Entry) -> None:
        """Count settings among the trials, once."""
        self._counted += not entry.begun
        entry.begun = True

    def _ask_sampler(self, many: int) -> None:
        """So many new proposals of the sampler's, or one at random where it repeats itself."""
        found = repeats = 0
        while found < many and repeats < REPEATS and not self._exhausted:
            params = self._study.ask(self._axes.distributions).params
            settings = self._axes.settings(params)
            if self._propose(settings):
                found, repeats = found + 1, 0
            else:
                repeats += 1
                if self._judge.obstacle(settings) is not None and params not in self._cannot_run:
                    self._cannot_run.append(params)
        if many > 0 and not found and not self._exhausted:
            start, cells = self._random.randrange(self._size), min(self._size, CELLS_SEARCHED)
            untried = (self._space.cell((start + offset) % self._size) for offset in range(cells))
            self._exhausted = not any(self._propose(cell) for cell in untried)

    # What is dealt

    def _chosen(self) -> int | None:
        """The place of whoever gets its next pictures; None where nobody does for now."""
        self._learn()
        open_ = [
            place for place, each in enumerate(self._entries) if self._is_open(each) and not each.awaited
        ]
        may_begin = not self._all_begun
        new = [place for place in open_ if not self._entries[place].begun] if may_begin else []
        begun = [place for place in open_ if self._entries[place].begun]
        baseline = self._places.get(self._baseline)
        baseline = baseline if baseline in begun else None
        if new and new[0] < self._first:
            return new[0]
        if bare := [place for place in begun if not self._entries[place].outcomes]:  # its pictures were lost
            return bare[0]
        if not self._worth:  # the first ones, each on one instance; later only where no picture has a score
            return next(iter(new or ([] if self._awaits else begun)), None)
        if not may_begin and self._settled:
            return baseline
        hopeful = [place for place in begun + new if self._worth.get(place, (0.0, 0.0))[0] > 0]
        if hopeful:
            return max(hopeful, key=self._urgency)
        hopes = any(
            each.awaited and self._worth.get(p, (0, 0))[0] > 0 for p, each in enumerate(self._entries)
        )
        rest = new + begun if may_begin and hopes else new  # where nobody else may be the best, what is new
        if rest:
            return max(rest, key=lambda place: self._upper.get(place, -math.inf))
        if self._awaits:  # what is under way may be worth more than what is left
            return None
        return baseline

    def _before(self, place: int) -> int:
        """The baseline's place where another one's next stage would overtake it, else that one's own."""
        own, entry = self._places.get(self._baseline), self._entries[place]
        baseline = None if own is None else self._entries[own]
        if (
            own is None
            or baseline is None
            or not baseline.begun
            or baseline.awaited
            or not self._is_open(baseline)
        ):
            return place
        return own if len(baseline.outcomes) < len(entry.outcomes) + self._step(entry) else place

    def _deal(self, place: int) -> None:
        """Queue the next stage of a trial; its first picture is of an instance of its own."""
        entry = self._entries[place]
        missing = [i for i in range(self._instances) if i not in entry.outcomes]
        own = (self._counted if entry.number is None else entry.number) % self._instances
        missing = missing[: self._step(entry)] if entry.outcomes else [own]
        self._begin(entry)
        if entry.number is None:
            entry.number, self._next_number = self._next_number, self._next_number + 1
            self._numbers[entry.number] = place
        assert entry.number is not None
        entry.awaited = set(missing)
        trial = Trial(entry.number, entry.settings)
        self._queue.extend(Assignment(trial, instance) for instance in missing)

    def _step(self, entry: _Entry) -> int:
        """How many instances an open trial's next stage takes."""
        judged = len(entry.outcomes)
        return next(end for end in self._stages if end > judged) - judged

    def _urgency(self, place: int) -> float:
        """Sorts those that may be the best; among equals who is further goes first, so that some come to the end."""
        return self._worth[place][0] * math.sqrt(self._step(self._entries[place]))

    def _is_open(self, entry: _Entry) -> bool:
        return not entry.gone and not entry.infeasible and len(entry.outcomes) < self._instances

    @property
    def _all_begun(self) -> bool:
        """Whether nothing new is begun any more."""
        return self._counted >= self._budget or (
            self._exhausted and all(each.begun for each in self._entries)
        )

    @property
    def _awaits(self) -> bool:
        return any(each.awaited for each in self._entries if not each.gone)

    # What is learnt

    def _learn(self) -> None:
        """Ask the model what everything proposed is worth, where enough is new; then the sampler for more."""
        first = min(FIRST, math.ceil(self._budget / 2))
        if not self._worth and len(self._entries) < first:
            self._ask_sampler(first - len(self._entries))
        new, idle = self._heard - self._learned_at, not self._awaits
        enough = max(LEARN_EVERY, LEARN_SHARE * self._heard) if self._worth else first * 3 / 4
        if not new or (new < enough and not idle):
            return
        if not self._all_begun:
            waiting = sum(not each.begun and not each.outcomes for each in self._entries)
            self._ask_sampler(min(PROPOSED, MOST_WAITING - waiting))
        self._learned_at = self._heard
        ended = self._all_begun
        places, known = self._known(ended)
        if not len(known.scores):
            return
        settings = [self._entries[place].settings for place in places]
        # Whether the race ends is told from outcomes alone, so that one that is over stays over.
        self._surrogate = Surrogate(settings, None if ended else self._surrogate)
        refit = ended or self._heard >= REFIT * self._fitted_at
        self._fitted_at = self._heard if refit else self._fitted_at
        means, covariance = self._surrogate.values(known, np.arange(len(places)), refit)
        values = draws(means, covariance)
        entries = [self._entries[place] for place in places]
        # Who has lost a picture for good that others have is never the best.
        judged = set(known.instances.tolist())
        over = [
            row
            for row, each in enumerate(entries)
            if not self._is_open(each) and not judged <= self._scores(each).keys()
        ]
        values[:, over] = -np.inf
        best = np.bincount(values.argmax(axis=1), minlength=len(places)) / len(values)
        upper = means + np.sqrt(np.maximum(np.diag(covariance), 0))
        self._worth = {p: (float(b), float(u)) for p, b, u in zip(places, best, upper, strict=True)}
        self._upper |= {place: upper for place, (_, upper) in self._worth.items()}
        complete = [row for row, each in enumerate(entries) if self._mean(each) is not None]
        if complete:
            gain = float((values.max(axis=1) - values[:, complete].max(axis=1)).mean())
            self._settled = ended and gain <= ENOUGH * self._surrogate.unsure(self._instances)
        self._study = self._taught(dict(zip(places, means.tolist(), strict=True)))

    def _known(self, ended: bool) -> tuple[list[int], Outcomes]:
        """The places that the model is of, and the outcomes that it learns from, larger being better.

        In the end those are only of what was begun.
        """
        there = [place for place, each in enumerate(self._entries) if not each.infeasible]
        places = [place for place in there if self._entries[place].begun] if ended else there
        if ended:  # the model's draws and samples are by place in this list, and numbers are for ever
            places.sort(key=lambda place: self._entries[place].number or 0)
        found = {place: self._scores(self._entries[place]) for place in places}
        bare = [place for place in places if not found[place]][:MOST_WAITING]
        total, kept = 0, set(bare)
        for place in self._by_promise({place: each for place, each in found.items() if each}, ended):
            if (total := total + len(found[place])) > MOST_OUTCOMES:
                break
            kept.add(place)
        places = [place for place in places if place in kept]
        scores = [
            (row, instance, score)
            for row, place in enumerate(places)
            for instance, score in sorted(found[place].items())
        ]
        rows, instances, values = zip(*scores, strict=True) if scores else ((), (), ())
        known = Outcomes(
            np.array(rows, np.int64),
            np.array(instances, np.int64),
            np.array(values, np.float64),
            np.zeros(len(scores), np.bool_),
        )
        return places, known

    def _by_promise(self, found: dict[int, dict[int, float]], ended: bool) -> list[int]:
        """Places that have scores, the most promising first: by what the model last said of them, or by their means.

        Means are of what a score lies above its instance's others, drawn towards all for the few they are of. In the
        end they alone count, so that a later session comes to the same.
        """
        if sum(map(len, found.values())) <= MOST_OUTCOMES:
            return list(found)
        by_instance: dict[int, list[float]] = {}
        for scores in found.values():
            for instance, score in scores.items():
                by_instance.setdefault(instance, []).append(score)
        levels = {instance: mean(scores) for instance, scores in by_instance.items()}
        level = mean([score for scores in by_instance.values() for score in scores])

        def promise(place: int) -> float:
            if place in self._upper and not ended:
                return self._upper[place]
            above = [score - levels[instance] for instance, score in found[place].items()]
            return level + math.fsum(above) / (len(above) + 1)

        return sorted(found, key=lambda place: -promise(place))

    def _taught(self, means: dict[int, float]) -> optuna.Study:
        """A study in which the sampler has heard what is expected of everything proposed."""
        study = optuna.create_study(direction="maximize", sampler=self._sampler)
        params_of = [self._axes.params(each.settings) for each in self._entries]
        for place, params in enumerate(params_of):
            if params is not None and place in means:
                study.add_trial(
                    optuna.create_trial(
                        params=params, distributions=self._axes.distributions, value=means[place]
                    )
                )
        barred = [
            p for p, each in zip(params_of, self._entries, strict=True) if p is not None and each.infeasible
        ]
        for params in [*self._cannot_run, *barred]:
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.PRUNED,
                    params=params,
                    distributions=self._axes.distributions,
                    constraints={"can run": math.inf},
                )
            )
        return study

    def _scores(self, entry: _Entry) -> dict[int, float]:
        """Scores by instance, larger being better."""
        return {
            instance: self._sign * outcome.scores[self._objective]
            for instance, outcome in entry.outcomes.items()
            if isinstance(outcome, Scored) and self._objective in outcome.scores
        }

    def _mean(self, entry: _Entry) -> float | None:
        """The mean over all instances; None unless each has a score."""
        scores = self._scores(entry)
        return mean([*scores.values()]) if len(scores) == self._instances and not entry.infeasible else None
