"""A search replayed against the score table: the strategy decides as ever, its pictures are looked up.

**What a replay may see.** Each replay shuffles all the table's seeds. The first 16 are the search's instances, in
the shuffled order; the other 64 tell the truth, and no strategy ever hears of them. So the grid itself is not one
answer but as many as there are replays, and a strategy is compared with it on the same 16 and judged on the same
64. Candidates stand in the lattice's order, which knows nothing of scores.

**What it costs** is counted in UNet rows: calls × rows a call (two with guidance, one without). An early look costs
the calls up to it, going on from it costs the rest; it is taken for granted that the engine still has what it set
aside. Decoding and scoring of looks are not counted. A picture is paid for when it is begun; of one that is
dropped while it is drawn, the calls already made.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from search_spaces.requests import Failed, Looked, Outcome, Scored
from search_spaces.strategies import Assignment, Report, Strategy
from tests.bench.score_table import Floats, Ints, ScoreTable

INSTANCES = 16
SHARES = np.round(np.concatenate([np.arange(0.01, 0.3, 0.01), np.arange(0.3, 1.01, 0.05)]), 2)
"""Costs, as shares of the full grid's, at which a search is asked what it would recommend."""

SLOTS = 16
"""Pictures that the simulated crew draws at a time: two workers of eight. As many more wait beside it."""

FLUSH = 4
"""Results that are reported together, as the loop does between two writes of the catalog."""


@dataclass(frozen=True)
class Split:
    """The seeds that a replay's search sees, as its instances 0, 1, …, and those that tell the truth."""

    search: Ints
    truth: Ints


def split(seeds: int, number: int, instances: int = INSTANCES) -> Split:
    """The split of one replay, the same for every strategy."""
    shuffled = np.random.default_rng([seeds, number]).permutation(seeds)
    return Split(shuffled[:instances], shuffled[instances:])


@dataclass(frozen=True)
class Replayed:
    """What became of a replay. `winners` are table rows, one for each of `SHARES`; -1 is no recommendation.

    `cost` is a share of the full grid's, `complete` the rows that were judged on every instance.
    """

    winners: Ints
    winner: int
    cost: float
    complete: Ints


def grid_winner(table: ScoreTable, seen: Split) -> int:
    """What the full grid recommends."""
    return best_row(table.scores[:, seen.search].mean(axis=1), range(len(table.scores)))


def best_row(means: Floats, rows: Collection[int]) -> int:
    """Of some rows, that of the largest mean; -1 where none has one."""
    return max((row for row in rows if math.isfinite(means[row])), key=lambda row: means[row], default=-1)


def replay(
    table: ScoreTable,
    strategy: Strategy,
    seen: Split,
    seed: int,
    until: float = math.inf,
    slots: int = SLOTS,
) -> Replayed:
    """Let a strategy search until it is done, or until it has spent a share of the grid's cost."""
    crew = _Crew(table, seen, random.Random(seed), slots)
    grid_cost = float(table.costs.sum() * len(seen.search))
    means = table.scores[:, seen.search].mean(axis=1)
    scored: dict[int, int] = {}
    complete: list[int] = []
    best, winners = -1, list[int]()
    while True:
        dealt = strategy.ask(crew.free) if crew.spent < until * grid_cost else ()
        crew.submit(dealt)
        while len(winners) < len(SHARES) and crew.spent > SHARES[len(winners)] * grid_cost:
            winners.append(best)
        reports = crew.next_done()
        if not reports and not dealt:
            break
        for report in reports:
            if isinstance(report.outcome, Scored):
                row = crew.rows[report.trial]
                scored[row] = scored.get(row, 0) + 1
                if scored[row] == len(seen.search):
                    complete.append(row)
                    best = best_row(means, (row, best) if best >= 0 else (row,))
        crew.cancel(set(strategy.report(reports)))
    winners += [best] * (len(SHARES) - len(winners))
    return Replayed(np.array(winners), best, crew.spent / grid_cost, np.array(complete, np.int64))


@dataclass(order=True)
class _Picture:
    """A picture that is drawn from `begun` to `ends`, in UNet calls of an average worker."""

    ends: float
    order: int
    begun: float = field(compare=False)
    calls: int = field(compare=False)
    assignment: Assignment = field(compare=False)


class _Crew:
    """Workers that draw several pictures at a time, each as long as its calls take, more or less."""

    def __init__(self, table: ScoreTable, seen: Split, chance: random.Random, slots: int) -> None:
        self._table, self._seeds, self._chance, self._slots = table, seen.search, chance, slots
        self._calls, self._row_costs = table.calls.tolist(), table.rows.tolist()
        self._now, self._order = 0.0, 0
        self._waiting: deque[Assignment] = deque()
        self._drawn: list[_Picture] = []
        self._finished: list[Report] = []
        self._calls_made: dict[tuple[int, int], int] = {}
        self.rows: dict[int, int] = {}
        self.spent = 0.0

    @property
    def free(self) -> int:
        """Pictures that could be asked for: as many waiting as are drawn."""
        return 2 * self._slots - len(self._waiting) - len(self._drawn)

    def submit(self, dealt: Sequence[Assignment]) -> None:
        """Take work in and begin what there is room for."""
        for assignment in dealt:
            if assignment.trial.number not in self.rows:
                self.rows[assignment.trial.number] = self._table.row(assignment.trial.settings)
        self._waiting.extend(dealt)
        self._begin()

    def cancel(self, trials: Collection[int]) -> None:
        """Drop what is waiting or being drawn; what was not drawn yet is not paid for."""
        if not trials:
            return
        self._waiting = deque(each for each in self._waiting if each.trial.number not in trials)
        for picture in self._drawn:
            number = picture.assignment.trial.number
            if number in trials:
                share = (self._now - picture.begun) / (picture.ends - picture.begun)
                unmade = picture.calls - math.ceil(share * picture.calls)
                self.spent -= unmade * self._row_costs[self.rows[number]]
        self._drawn = [each for each in self._drawn if each.assignment.trial.number not in trials]
        heapq.heapify(self._drawn)
        self._begin()

    def next_done(self) -> list[Report]:
        """The next few results, in the order in which they end."""
        while self._drawn and len(self._finished) < FLUSH:
            picture = heapq.heappop(self._drawn)
            self._now = picture.ends
            self._finished.append(self._result(picture.assignment))
            self._begin()
        finished, self._finished = self._finished, []
        return finished

    def _begin(self) -> None:
        while self._waiting and len(self._drawn) < self._slots:
            assignment = self._waiting.popleft()
            row = self.rows[assignment.trial.number]
            made = self._calls_made.get((assignment.trial.number, assignment.instance), 0)
            calls = (assignment.stop_after or self._calls[row]) - made
            self.spent += calls * self._row_costs[row]
            ends = self._now + calls * self._chance.lognormvariate(0.0, 0.25)  # no two workers are alike
            self._order += 1
            heapq.heappush(self._drawn, _Picture(ends, self._order, self._now, calls, assignment))

    def _result(self, assignment: Assignment) -> Report:
        trial, instance, after = assignment.trial.number, assignment.instance, assignment.stop_after
        row, seed = self.rows[trial], int(self._seeds[instance])
        score = float(self._table.scores[row, seed])
        outcome: Outcome
        if not math.isfinite(score):
            outcome = Failed("infeasible", "there is no picture")
        elif after is None:
            outcome = Scored({self._table.study.objective: score})
        else:
            outcome = Looked({self._table.study.objective: self._table.look(row, after, seed)}, after)
            self._calls_made[trial, instance] = after
        return Report(trial, instance, outcome)
