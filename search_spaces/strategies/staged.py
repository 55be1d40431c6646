"""Searches in stages, each a race whose entrants the last one's outcome decides: coordinate and refine.

Both are what one does by hand: sweep one setting and keep its best; or sweep coarsely, then closer around the best.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice, product

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.estimates import estimate
from search_spaces.requests import Settings, Trial, Value
from search_spaces.strategies import Assignment, Report
from search_spaces.strategies.halving import KEEP, Race, rungs
from search_spaces.strategies.trials import Trials

COARSE = 5
"""Values of a range that a refinement begins with."""

FINEST = 1 / 64
"""Of a range of floats: values nearer than this share of it are not told apart."""


class _Staged:
    """Runs one race after the other until `_next` gives no more entrants; none drops the trials of `always`."""

    def __init__(self, trials: Trials, instances: int, keep: float, always: Collection[int]) -> None:
        self._trials, self._instances, self._keep, self._always = trials, instances, keep, always
        self._race: Race | None = None
        self._gone = set(trials.infeasible)
        self._met: dict[int, Trial] = {}
        self._advance()

    def ask(self, free: int) -> Sequence[Assignment]:
        """The present race's assignments."""
        return [] if self._race is None or free <= 0 else self._race.ask(free)

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        """Drop who is infeasible or has left the race; begin the next race when this one is over."""
        gone = set(self._trials.take(reports))
        if self._race is not None:
            gone |= set(self._race.report(((r.trial, r.instance) for r in reports), set(gone)))
        self._advance()
        gone -= self._gone
        self._gone |= gone
        return sorted(gone)

    def _advance(self) -> None:
        while self._race is None or self._race.over:
            entrants = self._next()
            if not entrants:
                self._race = None
                return
            self._met |= {trial.number: trial for trial in entrants}
            # Who left an earlier race may enter again: beside others.
            self._gone -= {trial.number for trial in entrants} - self._trials.infeasible
            course = rungs(len(entrants), self._instances, self._keep)
            self._race = Race(self._trials, entrants, course, self._keep, always=self._always)

    def _next(self) -> list[Trial]:
        raise NotImplementedError

    def _best(self, among: Iterable[Trial]) -> Trial | None:
        """The trial with the largest mean over all instances; of equal ones the lower number."""
        means = [(self._trials.mean(trial.number, self._instances), trial) for trial in among]
        complete = [(-mean, trial.number, trial) for mean, trial in means if mean is not None]
        return min(complete, key=lambda item: item[:2])[2] if complete else None


class Coordinate(_Staged):
    """One setting at a time, in a given order, each holding the best of those before; `rounds` times over.

    `start` are the settings that the others hold at first; the trials of the numbers in `always` are judged on all
    instances wherever they enter. A round in which nothing changed is the last.
    """

    def __init__(
        self,
        trials: Trials,
        axes: Mapping[str, Domain],
        order: Sequence[str],
        start: Settings,
        instances: int,
        rounds: int = 1,
        keep: float = KEEP,
        first: Sequence[Settings] = (),
        always: Collection[int] = (),
    ) -> None:
        self._axes, self._held = axes, dict(start)
        names = [*order, *(name for name in axes if name not in order)]
        self._turns = [name for _ in range(rounds) for name in names]
        self._turn, self._round, self._unchanged = 0, len(names), 0
        self._first = list(first)
        super().__init__(trials, instances, keep, always)

    def _next(self) -> list[Trial]:
        """All values of the setting whose turn it is, beside what the others are held at."""
        if self._race is not None:
            best = self._best(self._race.entrants)
            held = dict(best.settings) if best else self._held
            self._unchanged = self._unchanged + 1 if held == self._held else 0
            self._held = held
        if self._turn >= len(self._turns) or self._unchanged >= self._round:
            return []
        name = self._turns[self._turn]
        cells: list[Settings] = [{**self._held, name: value} for value in self._axes[name].points() or ()]
        if self._turn == 0:
            cells = [*self._first, *cells]
        self._turn += 1
        entrants = list(self._trials.candidates([self._held, *cells]))
        return entrants or self._next()


class Refine(_Staged):
    """Coarse at first, then closer around the best, until its neighbours cannot be told apart from it.

    The rule: a race over the coarse values of all settings; then, for every ordered setting, the values halfway
    between the best and its nearest tried neighbours on either side, unless that neighbour's paired 95 %
    interval includes the best already or no value lies between; all others hold the best's values. A round that
    has nothing to try, or whose best is the one before it and tied with all it tried, is the last. At most
    `limit` trials; those of the numbers in `always` are judged on all instances wherever they enter.
    """

    def __init__(
        self,
        trials: Trials,
        axes: Mapping[str, Domain],
        instances: int,
        limit: int | None = None,
        keep: float = KEEP,
        first: Sequence[Settings] = (),
        always: Collection[int] = (),
    ) -> None:
        self._axes, self._limit, self._first = axes, limit, list(first)
        super().__init__(trials, instances, keep, always)

    def _next(self) -> list[Trial]:
        if self._race is None:
            return self._within_limit(coarse_cells(self._axes, self._first))
        best = self._best(self._met.values())
        if best is None:
            return []
        fresh = self._within_limit(self._closer(best))
        return [best, *fresh] if fresh else []

    def _within_limit(self, cells: Iterable[Settings]) -> list[Trial]:
        room = None if self._limit is None else max(0, self._limit - len(self._met))
        new = (trial for trial in self._trials.candidates(cells) if trial.number not in self._met)
        return list(islice(new, room))

    def _closer(self, best: Trial) -> list[dict[str, Value]]:
        """The values halfway from the best to its neighbours, one setting at a time."""
        cells: list[dict[str, Value]] = []
        for name, domain in self._axes.items():
            here = best.settings[name]
            if not isinstance(here, int | float) or isinstance(here, bool):
                continue
            for neighbour in self._neighbours(best, name, here):
                value = between(domain, here, neighbour)
                if value is not None:
                    cells.append({**best.settings, name: value})
        return cells

    def _neighbours(self, best: Trial, name: str, here: float) -> list[float]:
        """The nearest tried values on either side that are not tied with the best."""
        sides: dict[bool, tuple[float, Trial]] = {}
        for trial in self._met.values():
            there = trial.settings.get(name)
            if not isinstance(there, int | float) or isinstance(there, bool) or there == here:
                continue
            if any(trial.settings[other] != best.settings[other] for other in self._axes if other != name):
                continue
            nearest = sides.get(there > here)
            if nearest is None or abs(there - here) < abs(nearest[0] - here):
                sides[there > here] = there, trial
        return [there for there, trial in sides.values() if not self._tied(best, trial)]

    def _tied(self, best: Trial, other: Trial) -> bool:
        """Whether the paired 95 % interval of best − other, over what both were judged on, includes 0.

        False with fewer than two shared instances: then nobody knows, and closer is worth a try.
        """
        scores = [
            (self._trials.score(best.number, instance), self._trials.score(other.number, instance))
            for instance in range(self._instances)
        ]
        gaps = [one - two for one, two in scores if one is not None and two is not None]
        return len(gaps) > 1 and bool(estimate(gaps).includes_zero)


def coarse_cells(axes: Mapping[str, Domain], first: Sequence[Settings] = ()) -> Iterable[Settings]:
    """The settings to begin with: those of `first`, then every combination of lists and coarse ranges."""
    yield from first
    names = list(axes)
    for values in product(*(coarse(domain) for domain in axes.values())):
        yield dict(zip(names, values, strict=True))


def coarse(domain: Domain) -> Sequence[Value]:
    """A list's values; of a range `COARSE` values from end to end, evenly apart, by ratio where it is `log`."""
    if isinstance(domain, Choices):
        return domain.values
    low, high = domain.low, domain.high
    if domain.log:
        steps = [low * (high / low) ** (step / (COARSE - 1)) for step in range(COARSE)]
    else:
        steps = [low + (high - low) * step / (COARSE - 1) for step in range(COARSE)]
    return list(dict.fromkeys(_fitting(domain, value) for value in steps))


def between(domain: Domain, here: float, there: float) -> Value:
    """The value halfway, by ratio where the domain is `log`, that the domain allows; None where there is none.

    Between the values of a list lie whole numbers where all of them are, and floats to three digits otherwise.
    """
    halfway = (
        math.sqrt(here * there) if not isinstance(domain, Choices) and domain.log else (here + there) / 2
    )
    if isinstance(domain, Choices):
        numbers = [value for value in domain.values if isinstance(value, int | float)]
        if all(isinstance(value, int) for value in numbers):
            value: float = round(halfway)
        else:
            value = float(f"{halfway:.3g}")
            if abs(here - there) < FINEST * (max(numbers) - min(numbers)):
                return None
    else:
        value = _fitting(domain, halfway)
        if isinstance(domain, FloatRange) and abs(here - there) < FINEST * (domain.high - domain.low):
            return None
    return value if min(here, there) < value < max(here, there) else None


def _fitting(domain: FloatRange | IntRange, value: float) -> float:
    """The value of a range that is nearest."""
    points = domain.points()
    if points is None:
        return min(max(float(f"{value:.4g}"), domain.low), domain.high)
    numbers = [point for point in points if isinstance(point, int | float)]
    return min(numbers, key=lambda point: abs(point - value))
