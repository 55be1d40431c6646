"""Sequential halving over paired instances: a few instances for all, the worse leave, the rest get more.

After Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits" (ICML 2013), with settings as
arms and the study's instances, the same for all, as draws. The first rungs may lie inside the trajectory: then
the pictures that a model predicts early on are judged, and only the settings that look well there are drawn out.

Races of many settings begin with scouts, each on one instance of its own, and what the outcomes tell of all settings
(`surrogate`) decides every cut: a setting stays where the best of those that stay would be worse without it. So few
are left where neighbours are alike, and as many as by the plain rule where nothing is known of them.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from search_spaces.requests import Settings, Trial
from search_spaces.strategies import Assignment, Report
from search_spaces.strategies.surrogate import Outcomes, Surrogate, draws, worth_keeping
from search_spaces.strategies.trials import Trials

KEEP = 1 / 3
"""Share of the settings that a rung leaves in the race."""

FINALISTS = 3
"""Settings that a race leaves at least, each then judged on all instances."""

LOOK_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the UNet calls after which a pilot looks, and the race then may."""

PILOTS = 16
"""Settings of a pilot, drawn at random."""

WORTH_A_PILOT = 3 * PILOTS
"""Settings below which looks save less than their pilot costs."""

LOOKS_TELL = 0.97
"""Correlation of looks with final scores, over the pilot's settings on one instance, from which looks are used.

What single looks err in comes out in the mean of many; what a look does a setting out of every time does not.
"""

LOOK_RUNGS = (1, 2, 4)
"""Instances of the rungs that look, where they are at most half of all: several looks tell what one does not."""

SCOUTS = 1 / 3
"""Share of the settings that a race with a surrogate begins with."""

SCOUTS_TELL = 0.5
"""Correlation of scouts' scores with what the other scouts let expect of them, from which others may leave unseen."""

PER_INSTANCE = 6
"""Scouts on one instance at least, where instances are many: as many as tell an instance's level from their own."""

MODELLED = (48, 1000)
"""The numbers of settings of which a surrogate is made: fewer teach it little, more take it too long."""

MOST_OUTCOMES = 1200
"""Outcomes from which on a cut is by the means alone: a surrogate's time grows with their third power."""

WORTH = 0.003
"""What a cut may lose of the expected best, in standard errors of the difference of two means over all instances."""

LOOKS_KEEP = 0.5
"""Share of the settings that a rung of looks leaves in the race at least: one look tells less than a picture."""


@dataclass(frozen=True)
class Forecast:
    """Looks after a `share` of the UNet calls, and the line from their scores to final ones."""

    share: float
    intercept: float
    slope: float


@dataclass(frozen=True)
class Rung:
    """Every setting still in the race is judged on instances 0 … `instances` - 1, by looks or by pictures.

    With `own` only the trials of these numbers are, each on the one instance that it names. An `open` rung leaves
    in the race whoever is worth it, a share of the settings or not.
    """

    instances: int
    forecast: Forecast | None = None
    own: Mapping[int, int] | None = None
    open: bool = False


def rungs(entrants: int, instances: int, keep: float) -> list[Rung]:
    """Rungs of doubling numbers of instances that end with all: as many as bring the entrants to the finalists."""
    sizes = [instances]
    needed = math.ceil(math.log(max(1.0, entrants / FINALISTS)) / -math.log(keep) - 1e-9)
    size = 1 << max(0, (instances - 1).bit_length() - 1)
    while size >= 1 and len(sizes) <= needed and size < instances:
        sizes.append(size)
        size //= 2
    return [Rung(size) for size in reversed(sizes)]


def scouted(course: Sequence[Rung], own: Mapping[int, int]) -> list[Rung]:
    """A course that begins with scouts: the first `SCOUTS` of `own`; then the others, each on its own instance.

    Then it goes on by doubling, as finely as from one instance on.
    """
    first, *others = course
    scouts = dict(islice(own.items(), math.ceil(len(own) * SCOUTS)))
    finer, size = list[Rung](), 2
    while size < first.instances:
        finer.append(Rung(size, first.forecast, open=True))
        size *= 2
    alone = first.instances == 1
    return [
        Rung(1, first.forecast, scouts, open=True),
        Rung(1, first.forecast, own, open=not alone),
        *finer,
        *([] if alone else [first]),
        *others,
    ]


def survivors(entrants: int, keep: float) -> int:
    """How many of a rung's settings stay in the race."""
    return max(FINALISTS, math.ceil(entrants * keep - 1e-9))


def pictures(entrants: int, instances: int, keep: float = KEEP, always: int = 0) -> int:
    """Pictures that a race takes at most, `always` of its entrants being kept to the end; fewer with early looks."""
    elsewhere = modelled(entrants, instances)  # each had its first picture of an instance of its own
    left = FINALISTS if elsewhere else 0  # for whom workers began a rung that they did not come to after all
    most, first, *others = entrants * instances, *rungs(entrants, instances, keep)
    drawn, before = entrants * first.instances, first.instances
    for rung in others:
        entrants = min(entrants, survivors(entrants, keep) + always)
        drawn += (entrants + left) * (rung.instances - before)
        if elsewhere:
            drawn, elsewhere = drawn + entrants, False
        before = rung.instances
    return min(drawn, most)


def modelled(entrants: int, instances: int) -> bool:
    """Whether a race is of few enough settings for a surrogate, and of enough to be worth one."""
    return MODELLED[0] <= entrants <= MODELLED[1] and instances > 1


class Race:
    """One race over some trials: deals instance by instance, and cuts when a rung is decided.

    `steps` gives a trial's UNet calls, None where they are not known: then it is never looked at. Decisions
    rest on outcomes alone, so a race that is begun again with the same outcomes takes the same course. The
    trials of the numbers in `always` stay to the end, whatever they come to. With a `surrogate` of all entrants,
    in their order, that decides the cuts.
    """

    def __init__(
        self,
        trials: Trials,
        entrants: Sequence[Trial],
        rungs: Sequence[Rung],
        keep: float,
        steps: Callable[[Settings], int | None] = lambda _: None,
        always: Collection[int] = (),
        surrogate: Surrogate | None = None,
    ) -> None:
        self._always = frozenset(always)
        self._surrogate, self._most = surrogate, len(entrants)
        self._rows = {trial.number: row for row, trial in enumerate(entrants)}
        self._heard: dict[tuple[int, int], tuple[float, bool]] = {}
        self._trials, self._rungs, self._keep, self._steps = trials, list(rungs), keep, steps
        self.entrants = list(entrants)
        self._dealt: set[tuple[int, int, int | None]] = set()
        self._queue: deque[Assignment] = deque()
        self._pending: set[tuple[int, int]] = set()
        self._place = -1
        self._advance()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be learnt."""
        return self._place >= len(self._rungs)

    def ask(self, free: int) -> list[Assignment]:
        """Assignments of this rung, then of the next one for those that will reach it."""
        dealt: list[Assignment] = []
        while self._queue and len(dealt) < free:
            dealt.append(self._queue.popleft())
        if len(dealt) < free and self._pending:
            dealt += self._ahead(free - len(dealt))
        self._dealt |= {_key(assignment) for assignment in dealt}
        return dealt

    def report(self, pairs: Iterable[tuple[int, int]], infeasible: Collection[int] = ()) -> list[int]:
        """Heed pairs whose outcomes the trials now know; the trials that leave the race by them.

        `infeasible` are those that have turned out so by these outcomes.
        """
        for number, instance in pairs:
            if (number, instance) in self._pending and self._has(number, instance, self._rungs[self._place]):
                self._pending.discard((number, instance))
        if infeasible:
            self._pending = {pair for pair in self._pending if pair[0] not in infeasible}
            self._queue = deque(a for a in self._queue if a.trial.number not in infeasible)
        return self._advance()

    def _advance(self) -> list[int]:
        """Go from rung to rung as long as nothing is pending; the trials that leave."""
        gone: list[int] = []
        while not self.over and not self._pending:
            if self._place >= 0:
                gone += self._cut(self._rungs[self._place])
            self._place += 1
            if not self.over:
                self._begin(self._rungs[self._place])
        return gone

    def _begin(self, rung: Rung) -> None:
        alive = [trial for trial in self.entrants if trial.number not in self._trials.infeasible]
        alive.sort(key=lambda trial: trial.number not in self._always)  # they are dealt first
        wanted = [
            (trial, instance)
            for trial, instance in _pairs(rung, alive)
            if not self._has(trial.number, instance, rung, trial)
        ]
        self._by_number = {trial.number: trial for trial in self.entrants}
        self._pending = {(trial.number, instance) for trial, instance in wanted}
        assignments = (self._assignment(trial, instance, rung) for trial, instance in wanted)
        self._queue = deque(a for a in assignments if _key(a) not in self._dealt)

    def _cut(self, rung: Rung) -> list[int]:
        """Leave the best in the race, and those that machines lost on all instances; the trials that go."""
        if self._place == len(self._rungs) - 1:
            return []
        failed = {trial.number for trial in self.entrants if self._fails(trial, rung)}
        stay = ({trial.number for trial in self._worth_keeping(rung, failed)} | self._always) - failed
        gone = [
            trial.number
            for trial in self.entrants
            if trial.number not in stay and trial.number not in self._trials.infeasible
        ]
        self.entrants = [trial for trial in self.entrants if trial.number in stay]
        return gone

    def _worth_keeping(self, rung: Rung, failed: Collection[int]) -> list[Trial]:
        """The best on this rung that have not failed, by the surrogate or else by their means."""
        if not rung.open:
            self._most = self._survivors(self._most, rung)
        alive = [trial for trial in self.entrants if trial.number not in failed]
        self._hear(rung, alive, failed)
        if self._surrogate is not None and 0 < len(self._heard) <= MOST_OUTCOMES:
            return self._by_surrogate(self._surrogate, alive, rung)
        best = self._standing(rung)
        known = {trial.number for trial in best}
        unknown = [trial for trial in alive if trial.number not in known]
        return [*best[: self._survivors(len(best), rung)], *unknown]

    def _by_surrogate(self, surrogate: Surrogate, alive: Sequence[Trial], rung: Rung) -> list[Trial]:
        """Those worth keeping, and at least as many as make the next rung as large as the last."""
        pairs = sorted(self._heard, key=lambda pair: (self._rows[pair[0]], pair[1]))
        known = Outcomes(
            np.array([self._rows[number] for number, _ in pairs]),
            np.array([instance for _, instance in pairs]),
            np.array([self._heard[pair][0] for pair in pairs]),
            np.array([self._heard[pair][1] for pair in pairs]),
        )
        mean, covariance = surrogate.values(known, np.array([self._rows[trial.number] for trial in alive]))
        if rung.own and len(rung.own) < len(self._rows) and surrogate.foretells < SCOUTS_TELL:
            return list(alive)
        instances = self._rungs[-1].instances
        loss = WORTH * surrogate.unsure(instances)
        least = math.ceil(FINALISTS * instances / (2 * rung.instances))
        kept = worth_keeping(draws(mean, covariance), loss, min(least, self._most), self._most)
        return [alive[place] for place in kept]

    def _hear(self, rung: Rung, alive: Sequence[Trial], failed: Collection[int]) -> None:
        """Remember what this rung's pairs came to, beside those of the rungs before, for the surrogate."""
        if self._surrogate is None:
            return
        self._heard = {pair: value for pair, value in self._heard.items() if pair[0] not in failed}
        for trial, instance in _pairs(rung, alive):
            value = self._value(trial, instance, rung)
            if value is not None:
                self._heard[trial.number, instance] = value, self._look(trial, instance, rung) is not None

    def _survivors(self, entrants: int, rung: Rung) -> int:
        return survivors(entrants, max(self._keep, LOOKS_KEEP) if rung.forecast else self._keep)

    def _standing(self, rung: Rung) -> list[Trial]:
        """The trials that have a value on this rung, best first; equals by number."""
        values = self._values(rung)
        return sorted(
            (trial for trial in self.entrants if trial.number in values),
            key=lambda trial: (-values[trial.number], trial.number),
        )

    def _values(self, rung: Rung) -> dict[int, float]:
        """Each trial's mean difference from what its instances gave to all, so that a lost one costs nothing."""
        rows: dict[int, dict[int, float]] = {}
        for trial, instance in _pairs(rung, [t for t in self.entrants if not self._fails(t, rung)]):
            value = self._value(trial, instance, rung)
            if value is not None:
                rows.setdefault(trial.number, {})[instance] = value
        columns: dict[int, list[float]] = {}
        for row in rows.values():
            for instance, value in row.items():
                columns.setdefault(instance, []).append(value)
        levels = {instance: math.fsum(column) / len(column) for instance, column in columns.items()}
        return {
            number: math.fsum(value - levels[instance] for instance, value in row.items()) / len(row)
            for number, row in rows.items()
        }

    def _fails(self, trial: Trial, rung: Rung) -> bool:
        """Whether a trial has turned out infeasible by what this rung judges.

        What a later rung finds does not change an earlier cut, so that a race begun again takes the same course.
        """
        return any(
            self._trials.fails(trial.number, instance) and self._value(trial, instance, rung) is None
            for _, instance in _pairs(rung, [trial])
        )

    def _value(self, trial: Trial, instance: int, rung: Rung) -> float | None:
        """What a look lets expect of the final score, or that score itself.

        The look goes first where there is one, so that a later score does not change an earlier cut.
        """
        look = self._look(trial, instance, rung)
        if look is None or rung.forecast is None:
            return self._trials.score(trial.number, instance)
        return rung.forecast.intercept + rung.forecast.slope * look

    def _look(self, trial: Trial, instance: int, rung: Rung) -> float | None:
        """The score of the look that a rung asks for; None where it asks for none or there is none."""
        after = look_after(self._steps(trial.settings), rung.forecast.share) if rung.forecast else None
        return None if after is None else self._trials.look(trial.number, instance, after)

    def _has(self, number: int, instance: int, rung: Rung, trial: Trial | None = None) -> bool:
        """Whether a rung knows enough of a pair."""
        if self._trials.settled(number, instance):
            return True
        trial = trial or self._by_number[number]
        return rung.forecast is not None and self._value(trial, instance, rung) is not None

    def _assignment(self, trial: Trial, instance: int, rung: Rung) -> Assignment:
        after = look_after(self._steps(trial.settings), rung.forecast.share) if rung.forecast else None
        return Assignment(trial, instance, after)

    def _ahead(self, free: int) -> list[Assignment]:
        """Work of the next rung for those who will be in it whatever is still out, so that none of it is in vain.

        With a surrogate nobody knows who will be, and it is for the finalists as they stand.
        """
        following = next((rung for rung in self._rungs[self._place + 1 :] if rung.own is None), None)
        if following is None:
            return []
        rung, waiting = self._rungs[self._place], {number for number, _ in self._pending}
        known = [trial for trial in self._standing(rung) if trial.number not in waiting]
        certain = FINALISTS
        if self._surrogate is None:
            certain = self._survivors(len(known) + len(waiting), rung) - len(waiting)
        through = [
            trial for place, trial in enumerate(known) if place < certain or trial.number in self._always
        ]
        pairs = _pairs(following, through)
        ahead: list[Assignment] = []
        for trial, instance in pairs:
            if len(ahead) == free:
                break
            assignment = self._assignment(trial, instance, following)
            if (
                not self._has(trial.number, instance, following, trial)
                and _key(assignment) not in self._dealt
            ):
                ahead.append(assignment)
        return ahead


class Halving:
    """Races some trials over the instances; those of the numbers in `always` stay to the end.

    With `early_look`, a random pilot is drawn first with looks on its way; where these tell enough of the final
    scores, the race begins with looks.
    """

    def __init__(
        self,
        trials: Trials,
        entrants: Sequence[Trial],
        instances: int,
        keep: float = KEEP,
        steps: Callable[[Settings], int | None] = lambda _: None,
        early_look: bool = False,
        seed: int = 0,
        always: Collection[int] = (),
    ) -> None:
        self._trials, self._instances, self._keep, self._steps = trials, instances, keep, steps
        self._entrants, self._always = list(entrants), always
        self._race: Race | None = None
        self._pilot = self._chosen(seed) if early_look else []
        pilots = {trial.number for trial in self._pilot}
        shuffled = random.Random(seed).sample(self._entrants, len(self._entrants))
        others = [trial for trial in shuffled if trial.number not in pilots]
        self._own: dict[int, int] | None = None
        if modelled(len(self._entrants), instances):
            over = min(instances, max(1, math.ceil(len(self._entrants) * SCOUTS) // PER_INSTANCE))
            self._own = {trial.number: 0 for trial in self._pilot}
            self._own |= {trial.number: place % over for place, trial in enumerate(others)}
            others = others[: math.ceil(len(self._own) * SCOUTS) - len(pilots)]
        self._others = iter(others)
        self._others_under_way: set[int] = set()
        self._dealt: set[tuple[int, int, int | None]] = set()
        self._gone = set(trials.infeasible)
        self._begin_race_when_piloted()

    def ask(self, free: int) -> Sequence[Assignment]:
        """The pilot's next looks, beside them first looks at others; then the race's assignments."""
        if free <= 0:
            return []
        if self._race is not None:
            return self._race.ask(free)
        wanted = [Assignment(trial, 0, after) for trial in self._pilot for after in self._next_look(trial)]
        dealt = [assignment for assignment in wanted if _key(assignment) not in self._dealt][:free]
        if wanted:
            dealt += islice(self._first_looks(), free - len(dealt))
        self._dealt |= {_key(assignment) for assignment in dealt}
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Drop what has turned out infeasible, and what a decided rung leaves behind."""
        infeasible = set(self._trials.take(reports))
        self._others_under_way -= {report.trial for report in reports}
        self._begin_race_when_piloted()
        gone = infeasible
        if self._race is not None:
            pairs = ((report.trial, report.instance) for report in reports)
            gone = infeasible | set(self._race.report(pairs, infeasible))
        gone -= self._gone
        self._gone |= gone
        return sorted(gone)

    def _chosen(self, seed: int) -> list[Trial]:
        able = [trial for trial in self._entrants if look_after(self._steps(trial.settings), LOOK_SHARES[-1])]
        if len(self._entrants) < WORTH_A_PILOT or len(able) < PILOTS:
            return []
        return random.Random(seed).sample(able, PILOTS)

    def _first_looks(self) -> Iterator[Assignment]:
        """The earliest looks at the other settings: steps that the race takes in any case, so nobody idles."""
        for trial in self._others:
            after = look_after(self._steps(trial.settings), LOOK_SHARES[0])
            instance = self._own[trial.number] if self._own else 0
            known = self._trials.settled(trial.number, instance)
            if after is not None and not known and self._trials.look(trial.number, instance, after) is None:
                self._others_under_way.add(trial.number)
                yield Assignment(trial, instance, after)

    def _next_look(self, trial: Trial) -> list[int | None]:
        """After how many UNet calls a pilot stops next, None at its end; nothing where that is done."""
        if self._trials.settled(trial.number, 0):
            return []
        missing = [after for after in self._looks(trial) if self._trials.look(trial.number, 0, after) is None]
        return [missing[0] if missing else None]

    def _looks(self, trial: Trial) -> list[int]:
        steps = self._steps(trial.settings)
        return sorted({after for share in LOOK_SHARES if (after := look_after(steps, share)) is not None})

    def _begin_race_when_piloted(self) -> None:
        if self._race is not None or self._others_under_way:
            return
        if not all(self._trials.settled(trial.number, 0) for trial in self._pilot):
            return
        failed = {trial.number for trial in self._pilot if self._trials.fails(trial.number, 0)}
        self._entrants = [trial for trial in self._entrants if trial.number not in failed]
        self._pilot = [trial for trial in self._pilot if self._trials.score(trial.number, 0) is not None]
        forecast = next(filter(None, map(self._forecast, LOOK_SHARES)), None)
        course = rungs(len(self._entrants), self._instances, self._keep)
        if forecast is not None:
            looks = [size for size in LOOK_RUNGS if size == 1 or 2 * size <= self._instances]
            course = [
                *(Rung(size, forecast) for size in looks),
                *(rung for rung in course if rung.instances >= looks[-1]),
            ]
        surrogate = None
        if self._own is not None:
            course = scouted(course, self._own)
            surrogate = Surrogate([trial.settings for trial in self._entrants])
        self._race = Race(
            self._trials, self._entrants, course, self._keep, self._steps, self._always, surrogate
        )

    def _forecast(self, share: float) -> Forecast | None:
        """The line through the pilot's looks at a share of the calls; None where they do not tell."""
        pairs = []
        for trial in self._pilot:
            after = look_after(self._steps(trial.settings), share)
            look = None if after is None else self._trials.look(trial.number, 0, after)
            score = self._trials.score(trial.number, 0)
            if look is not None and score is not None:
                pairs.append((look, score))
        if len(pairs) < PILOTS // 2:
            return None
        intercept, slope, correlation = line(pairs)
        return Forecast(share, intercept, slope) if correlation >= LOOKS_TELL else None


def _pairs(rung: Rung, trials: Iterable[Trial]) -> list[tuple[Trial, int]]:
    """What a rung asks of some trials, instance after instance."""
    if rung.own is not None:
        return [(trial, rung.own[trial.number]) for trial in trials if trial.number in rung.own]
    trials = list(trials)
    return [(trial, instance) for instance in range(rung.instances) for trial in trials]


def look_after(steps: int | None, share: float) -> int | None:
    """The UNet calls after which to look at a share of them; None where a look would come at the end."""
    if steps is None:
        return None
    after = max(1, round(share * steps))
    return after if after < steps else None


def line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The least-squares line y = intercept + slope·x through two points or more, and Pearson's correlation.

    Where x or y does not vary, slope and correlation are 0.
    """
    count = len(pairs)
    mean_x, mean_y = math.fsum(x for x, _ in pairs) / count, math.fsum(y for _, y in pairs) / count
    xx = math.fsum((x - mean_x) ** 2 for x, _ in pairs)
    yy = math.fsum((y - mean_y) ** 2 for _, y in pairs)
    xy = math.fsum((x - mean_x) * (y - mean_y) for x, y in pairs)
    if xx <= 0 or yy <= 0:
        return mean_y, 0.0, 0.0
    slope = xy / xx
    return mean_y - slope * mean_x, slope, xy / math.sqrt(xx * yy)


def _key(assignment: Assignment) -> tuple[int, int, int | None]:
    return assignment.trial.number, assignment.instance, assignment.stop_after
