"""What a search costs until it is as good as the full grid: strategies replayed side by side on one score table.

    python -m tests.bench.search [--json FILE] [--quick] [--replays N] [--only NAME ...] [--tune]

The table (`tests.bench.score_table`) holds the real scores of 285 candidates on 80 seeds of the bundled model;
`tests.bench.replay` says what a replay sees and what it pays. `regret` is how far the recommendation, the largest
mean over all 16 instances among the complete trials, stays behind the truly best candidate, in CLIP points on the
64 seeds that no search of that replay has seen. A search is **as good as the grid** where its mean regret is at
most 0.25 points above that of the full grid on the same seeds: where the upper end of the one-sided 95 % interval
of the mean difference lies below 0.25. The interval is a bootstrap that draws both replays and seeds anew; the
replays share 80 seeds, so that drawing replays alone would promise too much.

Figures: `cost_to_best_NAME`, the UNet rows as a share of the full grid's (all candidates × 16): of a search that
ends by itself, what it spent on average, if it is as good as the grid; of one that can be stopped at any time, the
smallest share from which on it is. NaN: never. Also at that cost: `regret_over_grid_NAME` and its upper end,
`winner_within_1_NAME`, how often the recommendation is truly within 1 point of the best, and
`grid_winner_found_NAME`. The best of 285 noisy means flatters itself, in every replay anew, so that the first of
them is a harsh one even for the grid; `winner_within_1_pool_NAME` takes means over all 80 seeds instead.

`interval_coverage`: how often the report's 95 % interval of (winner − the model's defaults) on 16 fresh seeds covers
the truth, `interval_coverage_undoubted` the same of a plain t-interval; the seeds are drawn from the 64 with
replacement, so that the mean over the 64 is exactly the truth. `interval_coverage_unvalidated`: a plain one on the
seeds by which the winner was chosen (against the 64's mean, which errs itself). `false_tie_validated`: where winner
and defaults are truly more than 1 point apart, how often that validation calls a tie. `false_ties_NAME`: of the
trials that the report of a search calls tied with its winner, the share that is truly more than 1 point away.

`--tune` measures instead how many trials a second the loop itself manages (`tests.bench.trial_rate`).
"""

import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.wiring import make_strategy
from search_spaces.domains import Choices
from search_spaces.estimates import doubted_gain, paired_difference
from search_spaces.requests import Settings
from search_spaces.strategies import Strategy
from search_spaces.strategies.staged import Refine
from search_spaces.strategies.trials import Trials
from search_spaces.study_file import SearchSpec
from tests.bench.figures import command_line, tell
from tests.bench.replay import INSTANCES, SHARES, Replayed, Split, grid_winner, replay, split
from tests.bench.score_table import (
    TABLE,
    Floats,
    Ints,
    RememberingJudge,
    ScoreTable,
    StaleTableError,
    bench_study,
    load,
)
from tests.bench.wilcoxon_grid import WilcoxonGrid

MARGIN = 0.25
CLOSE = 1.0
"""CLIP points."""

BOOTSTRAPS = 1000
VALIDATION_SEEDS = 16
PER_JOB = 5
"""Replays that a process is given at a time."""

MOST_TRIALS = 10_000
"""A number of trials that no replay reaches: it ends at the cost that it is given, or with the last candidate."""

VALIDATIONS = 10
"""Validations drawn for each replay's winner."""


@dataclass(frozen=True)
class Search:
    """A strategy in the bench. `make(table, seed)` makes one; `seed` is to decide everything it draws.

    With `until`, a share of the grid's cost, it is one that can be stopped at any time: it is replayed so far
    and judged at every cost on the way. Without, it ends by itself and is judged there. `goal` is the cost
    that is aimed at, `times` how many times as many replays it gets as the others: what is quickly replayed
    may as well be known better.
    """

    make: Callable[[ScoreTable, int], Strategy]
    until: float | None = None
    goal: float | None = None
    times: int = 1


def product(**search: Any) -> Callable[[ScoreTable, int], Strategy]:
    """The product's own strategy, made as a study file's section `search` with these keys makes it."""
    unknown = set(search) - set(SearchSpec.model_fields)
    assert not unknown, f"a study file's search section has no {unknown}"

    def make(table: ScoreTable, seed: int) -> Strategy:
        spec = table.study.search.model_copy(update={**search, "seed": seed})
        seeds = tuple(range(INSTANCES))  # their numbers mean nothing: a replay's split says which they are
        return make_strategy(table.study.model_copy(update={"search": spec, "seeds": seeds}), [])

    return make


REFINED = Choices(values=(1, 5, 10, 20))
"""Guidance values that `refine` begins with; 3, 7.5, 15, then 2, 4 and 12.5 lie halfway and are in the table."""


class _TableJudge(RememberingJudge):
    """A judge to whom nothing can run that the table does not hold."""

    def __init__(self, table: ScoreTable) -> None:
        super().__init__(table.study.settings, table.study.model)
        self.__dict__["places"] = table.places

    def obstacle(self, swept: Settings) -> str | None:
        """Why the settings cannot run, or None."""
        missing = None if self.candidate(swept) in self.__dict__["places"] else "it is not in the table"
        return super().obstacle(swept) or missing


def _refine(table: ScoreTable, seed: int) -> Strategy:  # it draws nothing
    study = table.study
    trials = Trials(_TableJudge(table), study.objective)
    return Refine(trials, {**study.space.axes, "guidance_scale": REFINED}, INSTANCES, first=study.first)


def _wilcoxon(table: ScoreTable, seed: int) -> Strategy:
    return WilcoxonGrid(table.study.space, table.judge, INSTANCES, table.study.objective, 0.1, seed)


SEARCHES: dict[str, Search] = {
    "halving": Search(product(strategy="halving", early_look="off"), goal=0.12, times=4),
    "early_look": Search(product(strategy="halving", early_look="auto"), goal=0.07, times=4),
    "random": Search(product(strategy="random", trials=MOST_TRIALS, racing="off"), until=0.7),
    "wilcoxon_grid": Search(_wilcoxon, times=4),
    "coordinate": Search(product(strategy="coordinate", rounds=3), times=4),
    "refine": Search(_refine, times=4),
    "tpe_racing": Search(product(strategy="tpe", trials=MOST_TRIALS, racing="auto"), until=0.2, goal=0.10),
    "tpe": Search(product(strategy="tpe", trials=MOST_TRIALS, racing="off"), until=0.3),
}
"""Every strategy of the table, by the name that its figures end in. A new one is one line here."""


@dataclass(frozen=True)
class Verdict:
    """A search's figures; `cost` is NaN where it is never as good as the grid, `spent` is what the others are for."""

    cost: float
    spent: float
    difference: float
    upper: float
    within: float
    within_pool: float
    found: float
    seconds: float


_table: ScoreTable | None = None


def _begin(table: ScoreTable) -> None:
    global _table
    _table = table


def _replay_some(job: tuple[str, Sequence[int]]) -> tuple[str, Sequence[int], list[Replayed], float]:
    """Some replays of one search, and the seconds that they took."""
    name, numbers = job
    assert _table is not None
    begun, done = time.perf_counter(), []
    for number in numbers:
        seen = split(len(_table.study.seeds), number)
        search = SEARCHES[name]
        strategy = search.make(_table, number)
        done.append(replay(_table, strategy, seen, number, search.until or math.inf))
    return name, numbers, done, time.perf_counter() - begun


def replays(
    table: ScoreTable, counts: Mapping[str, int], processes: int
) -> tuple[dict[str, list[Replayed]], dict[str, float]]:
    """So many replays of every search, over all processes; and the seconds of one replay of each."""
    jobs = [
        (name, range(at, min(at + PER_JOB, count)))
        for name, count in counts.items()
        for at in range(0, count, PER_JOB)
    ]
    found: dict[str, dict[int, Replayed]] = {name: {} for name in counts}
    seconds = dict.fromkeys(counts, 0.0)
    with multiprocessing.get_context("spawn").Pool(processes, _begin, (table,)) as pool:
        for name, numbers, done, took in pool.imap_unordered(_replay_some, jobs):
            found[name].update(zip(numbers, done, strict=True))
            seconds[name] += took / counts[name]
            if len(found[name]) == counts[name]:
                print(
                    f"{name}: {counts[name]} replays, {seconds[name]:.2f} s each", file=sys.stderr, flush=True
                )
    return {name: [found[name][number] for number in range(count)] for name, count in counts.items()}, seconds


@dataclass(frozen=True)
class Truth:
    """The truth of every replay: `means` is (replay, candidate), `unseen` is (replay, seed), `grid` its winners."""

    scores: Floats
    means: Floats
    unseen: npt.NDArray[np.bool_]
    grid: Ints
    splits: Sequence[Split]

    def regret(self, winners: Ints) -> Floats:
        """How far each replay's recommendation is behind the truly best candidate."""
        best: Floats = np.nanmax(self.means, axis=1)
        return best - self.means[np.arange(len(winners)), winners]

    def pool_regret(self, winners: Ints) -> Floats:
        """The same over all seeds of the table: less noise in the best, but the search's own seeds among them."""
        pool: Floats = self.scores.mean(axis=1)
        return np.nanmax(pool) - pool[winners]


def truth(table: ScoreTable, count: int) -> Truth:
    """The truth of the first `count` replays."""
    seeds = len(table.study.seeds)
    splits = [split(seeds, number) for number in range(count)]
    unseen = np.zeros((count, seeds), bool)
    for number, seen in enumerate(splits):
        unseen[number, seen.truth] = True
    means = np.stack([table.scores[:, seen.truth].mean(axis=1) for seen in splits])
    grid = np.array([grid_winner(table, seen) for seen in splits])
    return Truth(table.scores, means, unseen, grid, splits)


def over_grid(known: Truth, winners: Ints, seed: int = 0) -> tuple[float, float]:
    """The mean of (regret − the grid's), and the upper end of its one-sided 95 % interval, in points.

    A bootstrap over replays and over seeds at once. Infinite where a replay has no recommendation.
    """
    if (winners < 0).any():
        return math.inf, math.inf
    behind = np.where(known.unseen, known.scores[known.grid] - known.scores[winners], 0.0)
    draw = np.random.default_rng(seed)
    count, seeds = behind.shape
    seed_weights = draw.multinomial(seeds, np.full(seeds, 1 / seeds), BOOTSTRAPS).T
    replay_weights = draw.multinomial(count, np.full(count, 1 / count), BOOTSTRAPS).T
    weight = known.unseen.astype(float) @ seed_weights
    means = ((behind @ seed_weights / weight) * replay_weights).sum(axis=0) / count
    mean = (behind.sum(axis=1) / known.unseen.sum(axis=1)).mean()
    return float(mean), float(np.quantile(means, 0.95))


def verdict(known: Truth, search: Search, done: Sequence[Replayed], seconds: float) -> Verdict:
    """What a search costs until it is as good as the grid, and how good it is then."""
    if search.until is None:
        spent = float(np.mean([each.cost for each in done]))
        winners = np.array([each.winner for each in done])
        mean, upper = over_grid(known, winners)
        cost = spent if upper < MARGIN else math.nan
    else:
        curve = np.stack([each.winners for each in done])
        shares = [place for place, share in enumerate(SHARES) if share <= search.until]
        found = [over_grid(known, curve[:, place]) for place in shares]
        good = [place for place in shares if all(upper < MARGIN for _, upper in found[place:])]
        place = good[0] if good else shares[-1]
        spent, winners, (mean, upper) = float(SHARES[place]), curve[:, place], found[place]
        cost = spent if good else math.nan
    return Verdict(
        cost,
        spent,
        mean,
        upper,
        within=float((known.regret(winners) <= CLOSE).mean()),
        within_pool=float((known.pool_regret(winners) <= CLOSE).mean()),
        found=float((winners == known.grid).mean()),
        seconds=seconds,
    )


def baseline_row(table: ScoreTable) -> int:
    """The row of the model's own defaults."""
    defaults = table.study.model.keywords
    return table.row({name: defaults[name] for name in table.study.space.axes})


def validation_figures(table: ScoreTable, known: Truth, winners: Sequence[Ints]) -> dict[str, float]:
    """How far the interval of (winner − the model's defaults) is to be trusted."""
    draw, baseline = np.random.default_rng(1), baseline_row(table)
    covered, unvalidated, called = list[bool](), list[bool](), list[bool]()
    undoubted = list[bool]()
    for rows in winners:
        for row, seen in zip(rows, known.splits, strict=False):
            if row < 0 or row == baseline:
                continue
            gains = (table.scores[row] - table.scores[baseline]).astype(float)
            true = gains[seen.truth].mean()
            own = paired_difference(gains[seen.search].tolist(), [0.0] * len(seen.search))
            unvalidated.append(abs(own.mean - true) <= (own.half_width or 0.0))
            for _ in range(VALIDATIONS):
                fresh = draw.choice(seen.truth, VALIDATION_SEEDS)
                interval = doubted_gain(
                    table.scores[row, fresh].tolist(), table.scores[baseline, fresh].tolist()
                )
                covered.append(abs(interval.mean - true) <= (interval.half_width or 0.0))
                plain = paired_difference(gains[fresh].tolist(), [0.0] * len(fresh))
                undoubted.append(abs(plain.mean - true) <= (plain.half_width or 0.0))
                if abs(true) > CLOSE:
                    called.append(bool(interval.includes_zero))
    return {
        "interval_coverage": _mean(covered),
        "interval_coverage_undoubted": _mean(undoubted),
        "interval_coverage_unvalidated": _mean(unvalidated),
        "false_tie_validated": _mean(called),
    }


def false_ties(table: ScoreTable, known: Truth, done: Sequence[Replayed]) -> float:
    """Of the complete trials that are called tied with the winner, the share truly more than 1 point away."""
    false = []
    for number, each in enumerate(done):
        search = known.splits[number].search
        leading = table.scores[each.winner, search].tolist()
        for row in each.complete:
            if (
                row != each.winner
                and paired_difference(leading, table.scores[row, search].tolist()).includes_zero
            ):
                apart = abs(known.means[number, each.winner] - known.means[number, row])
                false.append(bool(apart > CLOSE))
    return _mean(false)


def _mean(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else math.nan


def whole_grid(table: ScoreTable, known: Truth) -> list[Replayed]:
    """The full grid of every replay, which needs no replaying."""
    every = np.arange(len(table.scores))
    return [Replayed(np.array([]), int(winner), 1.0, every) for winner in known.grid]


def figures(table: ScoreTable, names: Sequence[str], count: int, processes: int) -> dict[str, float]:
    """Everything that the table's replays tell; prints the table on the way."""
    counts = {name: count * SEARCHES[name].times for name in names}
    done, seconds = replays(table, counts, processes)
    known = {number: truth(table, number) for number in {count, *counts.values()}}
    most = known[max(known)]
    done["grid"], counts["grid"] = whole_grid(table, most), max(known)
    ends = Search(product(strategy="grid"))
    found = {
        name: verdict(known[counts[name]], SEARCHES.get(name, ends), done[name], seconds.get(name, 0.0))
        for name in done
    }
    print(_described(table, most))
    _print_table(found, counts)
    told: dict[str, float] = {"candidates": len(table.scores)}
    told["regret_grid"] = float(most.regret(most.grid).mean())
    for name, each in found.items():
        told |= {
            f"cost_to_best_{name}": each.cost,
            f"spent_{name}": each.spent,
            f"regret_over_grid_{name}": each.difference,
            f"regret_over_grid_upper_{name}": each.upper,
            f"winner_within_1_{name}": each.within,
            f"winner_within_1_pool_{name}": each.within_pool,
            f"grid_winner_found_{name}": each.found,
            f"false_ties_{name}": false_ties(table, known[counts[name]], done[name][:count]),
            f"replays_{name}": counts[name],
        }
    winners = [np.array([each.winner for each in done[name][:count]]) for name in found]
    return told | validation_figures(table, most, winners)


def _described(table: ScoreTable, known: Truth) -> str:
    true = np.sort(np.nanmean(table.scores, axis=1))[::-1]
    near = int((true > true[0] - CLOSE).sum())
    return (
        f"{len(true)} candidates × {table.scores.shape[1]} seeds; the best {true[0]:.2f}, "
        f"{near} within {CLOSE:g} of it, the middle {true[len(true) // 2]:.2f}; the standard deviation over seeds "
        f"{np.nanstd(table.scores, axis=1).mean():.1f}\nmean regret of the full grid: "
        f"{known.regret(known.grid).mean():.2f} points\n"
    )


def _print_table(found: Mapping[str, Verdict], counts: Mapping[str, int]) -> None:
    print(
        f"{'search':<16}{'cost':>8}{'goal':>8}  {'regret − grid’s (95 % below)':<30}{'within 1':>9}{'(pool)':>8}"
        f"{'grid’s':>8}{'replays':>9}{'s each':>8}"
    )
    for name, each in found.items():
        goal = SEARCHES[name].goal if name in SEARCHES else None
        cost = f"{each.cost:.3f}" if math.isfinite(each.cost) else f"no {each.spent:.2f}"
        regret = f"{each.difference:+.3f} (< {each.upper:+.3f})"
        print(
            f"{name:<16}{cost:>8}{f'{goal:.2f}' if goal else '':>8}  {regret:<30}{each.within:>9.2f}"
            f"{each.within_pool:>8.2f}{each.found:>8.2f}{counts[name]:>9}{each.seconds:>8.2f}"
        )


def main() -> None:
    parser = command_line(__doc__, "few replays; ends within a minute")
    parser.add_argument(
        "--replays", type=int, default=500, help="of a slow search; four times as many of others"
    )
    parser.add_argument("--only", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--tune", action="store_true", help="trials a second of the loop, against Ray Tune's")
    options = parser.parse_args()
    if options.tune:
        from tests.bench.trial_rate import rate_figures

        told = rate_figures(options.quick)
    else:
        try:
            table = load(options.table, bench_study()[0])
        except StaleTableError as error:
            parser.exit(2, f"{error}\n")
        told = figures(table, options.only, 10 if options.quick else options.replays, options.processes)
    print()
    tell(told, options.json)


if __name__ == "__main__":
    main()
