import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import optuna
import pytest
import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.objectives import Constraint, Direction
from search_spaces.requests import Failed, Outcome, Scored, Settings, Value
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report
from search_spaces.strategies.optuna_sampler import (
    REPEATS_BEFORE_CHANCE,
    OptunaSampler,
)
from search_spaces.strategies.samplers import make_sampler
from tests.search_spaces.examples import INPAINTING, TEXT_TO_IMAGE, UNKNOWN, space

ANYTHING_GOES = Judge({}, UNKNOWN)


class Scripted(BaseSampler):  # type: ignore[misc]  # Optuna is untyped to mypy here
    """Suggests what it was told to, the last thing for ever; keeps what it was asked and what it heard."""

    def __init__(self, *script: Mapping[str, Any]) -> None:
        self.script, self.asked = list(script), 0
        self.heard: list[tuple[dict[str, Any], str, float | None, bool]] = []
        self.values: list[Sequence[float] | None] = []
        self.constraints: list[dict[str, float]] = []

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        self.asked += 1
        return self.script[min(trial.number, len(self.script) - 1)][name]

    def after_trial(self, study: Any, trial: Any, state: Any, values: Sequence[float] | None) -> None:
        self.values.append(values)
        self.constraints.append(dict(trial.constraints))
        infeasible = any(violation > 0 for violation in trial.constraints.values())
        self.heard.append((dict(trial.params), state.name, values[0] if values else None, infeasible))


def made(
    axes: Space,
    sampler: BaseSampler,
    judge: Judge = ANYTHING_GOES,
    instances: int = 1,
    trials: int = 100,
    past: Sequence[PastTrial] = (),
) -> OptunaSampler:
    return OptunaSampler(axes, judge, instances, {"clip_score": "maximize"}, trials, sampler, past=past)


def run(strategy: OptunaSampler, score: Callable[[Settings], float], batch: int = 4) -> list[Settings]:
    """Play a study to its end; the settings of its trials in dealt order."""
    tried: dict[int, Settings] = {}
    while dealt := strategy.ask(batch):
        tried |= {a.trial.number: a.trial.settings for a in dealt}
        strategy.report(scored(dealt, score))
    return list(tried.values())


def scored(dealt: Sequence[Assignment], score: Callable[[Settings], float]) -> list[Report]:
    return [
        Report(a.trial.number, a.instance, Scored({"clip_score": score(a.trial.settings)})) for a in dealt
    ]


# What the sampler sees


@pytest.mark.parametrize(
    ("domain", "params", "values"),
    [
        (Choices(values=(7.5, 1, 15, 3)), range(4), [1, 3, 7.5, 15]),
        (Choices(values=("b", "a", None)), range(3), ["b", "a", None]),
        (Choices(values=(1, True, "x")), range(3), [1, True, "x"]),
        (Choices(values=(4,)), range(1), [4]),
        (FloatRange(low=0.1, high=0.65, step=0.1), range(6), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        (IntRange(low=2, high=12, step=4), [2, 6, 10], [2, 6, 10]),
        (IntRange(low=1, high=64, log=True), [1, 64], [1, 64]),
        (FloatRange(low=0.5, high=9), [0.5, 1 / 3 + 1, 9.0], [0.5, 1 / 3 + 1, 9.0]),
    ],
)
def test_a_suggestion_means_a_value(domain: Domain, params: Sequence[Value], values: Sequence[Value]) -> None:
    sampler = Scripted(*[{"x": param} for param in params])
    dealt = made(space(x=domain), sampler, trials=len(params)).ask(99)
    got = [a.trial.settings["x"] for a in dealt]
    assert [(type(value), value) for value in got] == [(type(value), value) for value in values]


@pytest.mark.parametrize(
    "domain",
    [
        Choices(values=(7.5, 1, 15, 3)),
        Choices(values=(1, True, "x", None)),
        FloatRange(low=0.1, high=0.65, step=0.1),
        IntRange(low=2, high=13, step=4),
        IntRange(low=1, high=64, log=True),
        FloatRange(low=0.5, high=9, log=True),
    ],
)
def test_the_sampler_is_told_of_earlier_trials_as_if_it_had_suggested_them(domain: Domain) -> None:
    first = made(space(x=domain), RandomSampler(seed=3), trials=3)
    dealt = first.ask(99)
    past = [PastTrial(a.trial.number, a.trial.settings, {0: Scored({"clip_score": 2.5})}) for a in dealt]
    sampler = Scripted({"x": None})
    again = made(space(x=domain), sampler, trials=len(past), past=past)
    assert again.ask(99) == []
    assert [(state, value) for _, state, value, _ in sampler.heard] == [("COMPLETE", 2.5)] * len(past)
    # Read back through the axis, what it heard are the values themselves.
    replayed = made(space(x=domain), Scripted(*[params for params, *_ in sampler.heard]), trials=len(past))
    assert [a.trial.settings for a in replayed.ask(99)] == [a.trial.settings for a in dealt]


def test_a_trials_value_is_the_mean_over_its_instances() -> None:
    sampler = Scripted({"x": 0}, {"x": 1})
    strategy = made(space(x=[1, 2]), sampler, instances=3, trials=2)
    strategy.ask(6)
    for instance, value in ((2, 0.1), (0, 0.2), (1, 0.3)):
        assert not sampler.heard
        strategy.report([Report(0, instance, Scored({"clip_score": value, "other": 99.0}))])
    assert sampler.heard == [({"x": 0}, "COMPLETE", math.fsum([0.1, 0.2, 0.3]) / 3, False)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_trial_with_a_lost_instance_has_no_value(order: Sequence[int]) -> None:
    sampler = Scripted({"x": 0})
    strategy = made(space(x=[1]), sampler, instances=3)
    strategy.ask(3)
    outcomes: list[Outcome] = [
        Scored({"clip_score": 50.0}),
        Failed("lost", "gone"),
        Scored({"clip_score": 50.0}),
    ]
    for instance in order:
        assert not sampler.heard
        strategy.report([Report(0, instance, outcomes[instance])])
    assert sampler.heard == [({"x": 0}, "FAIL", None, False)]


def test_an_infeasible_trial_is_a_violated_constraint() -> None:
    sampler = Scripted({"x": 0}, {"x": 1})
    strategy = made(space(x=[1, 2]), sampler, instances=3)
    strategy.ask(1)
    assert strategy.report([Report(0, 0, Failed("infeasible", "all black"))]) == [0]
    assert sampler.heard == [({"x": 0}, "PRUNED", None, True)]


def test_a_cell_that_cannot_run_is_told_and_not_dealt() -> None:
    sampler = Scripted({"strength": 0}, {"strength": 1})
    strategy = made(space(strength=[0.1, 0.9]), sampler, Judge({"num_inference_steps": 5}, INPAINTING))
    (dealt,) = strategy.ask(9)
    assert dealt.trial.settings == {"strength": 0.9}
    assert sampler.heard[0] == ({"strength": 0}, "PRUNED", None, True)


def test_a_twin_is_answered_with_what_is_known() -> None:
    axes = space(guidance_scale=[0.5, 1, 3])
    sampler = Scripted(*[{"guidance_scale": position} for position in (0, 1, 2)])
    strategy = made(axes, sampler, Judge({}, TEXT_TO_IMAGE))
    (first,) = strategy.ask(1)
    strategy.report(scored([first], lambda _: 4.0))
    (second,) = strategy.ask(1)
    assert (first.trial.settings, second.trial.settings) == ({"guidance_scale": 0.5}, {"guidance_scale": 3})
    assert [heard[1:3] for heard in sampler.heard] == [("COMPLETE", 4.0), ("COMPLETE", 4.0)]


def test_a_twin_of_a_trial_under_way_waits_for_nothing() -> None:
    sampler = Scripted(*[{"guidance_scale": position} for position in (0, 1, 2)])
    strategy = made(space(guidance_scale=[0.5, 1, 3]), sampler, Judge({}, TEXT_TO_IMAGE))
    dealt = strategy.ask(2)
    assert [a.trial.settings["guidance_scale"] for a in dealt] == [0.5, 3]
    assert [heard[1:3] for heard in sampler.heard] == [("FAIL", None)]


def test_a_trial_begun_is_finished_before_the_next_begins() -> None:
    strategy = made(space(x=list(range(9))), RandomSampler(seed=0), instances=3, trials=2)
    numbers = [a.trial.number for free in (1, 1, 1, 1, 5) for a in strategy.ask(free)]
    assert numbers == [0, 0, 0, 1, 1, 1]


def test_values_that_have_left_the_space_teach_nothing() -> None:
    left: list[Value] = [8, 2.5, True, "2", None]
    past = [PastTrial(n, {"x": value}, {0: Scored({"clip_score": 1.0})}) for n, value in enumerate(left)]
    past.append(PastTrial(5, {"other": 1}, {0: Scored({"clip_score": 1.0})}))
    for domain, suggested in (
        (Choices(values=(1, 3)), 0),
        (IntRange(low=1, high=3, step=2), 1),
        (IntRange(low=1, high=3, log=True), 1),
    ):
        sampler = Scripted({"x": suggested})
        strategy = made(space(x=domain), sampler, trials=1, past=past)
        assert sampler.heard == []
        (dealt,) = strategy.ask(1)
        assert dealt.trial.number == 6, "their numbers are taken"


def test_outcomes_of_instances_that_are_no_more_do_not_count() -> None:
    past = [
        PastTrial(0, {"x": 1}, {i: Scored({"clip_score": value}) for i, value in enumerate([2.0, 4.0, 99.0])})
    ]
    sampler = Scripted({"x": 0})
    made(space(x=[1, 2]), sampler, instances=2, past=past)
    assert sampler.heard == [({"x": 0}, "COMPLETE", 3.0, False)]


# After another strategy


def left_behind(strategy: str, values: Iterable[int], judged: int = 1, first: int = 0) -> list[PastTrial]:
    """Trials of a strategy, by number from `first` on, judged on so many instances."""
    return [
        PastTrial(
            first + place,
            {"x": value},
            {i: Scored({"clip_score": float(value)}) for i in range(judged)},
            dealt_by=dict.fromkeys(range(judged), strategy),
        )
        for place, value in enumerate(values)
    ]


def test_what_another_strategy_left_behind_waits_until_it_is_suggested() -> None:
    past = left_behind("halving", range(10)) + left_behind("halving", [10, 11], judged=4, first=10)
    sampler = Scripted(*[{"x": 11 - value} for value in range(2)], {"x": 17}, {"x": 5}, {"x": 19})
    strategy = made(space(x=list(range(20))), sampler, instances=4, trials=5, past=past)
    # 10 and 11 are complete, count, and teach; of the others the sampler hears nothing
    assert [heard[:3] for heard in sampler.heard] == [
        ({"x": 10}, "COMPLETE", 10.0),
        ({"x": 11}, "COMPLETE", 11.0),
    ]
    dealt = strategy.ask(99)
    assert [(a.trial.settings["x"], a.trial.number, a.instance) for a in dealt] == [
        *[(17, 12, instance) for instance in range(4)],
        *[(5, 5, instance) for instance in range(1, 4)],
        *[(19, 13, instance) for instance in range(4)],
    ]


def test_what_another_strategy_left_behind_is_tried_by_chance_before_the_space_is_exhausted() -> None:
    past = left_behind("halving", range(6))
    strategy = made(space(x=list(range(6))), Scripted({"x": 2}), instances=2, past=past)
    assert sorted((a.trial.number, a.instance) for a in strategy.ask(99)) == [(n, 1) for n in range(6)]


def test_a_sampler_goes_on_with_what_a_sampler_left_unfinished_as_far_as_its_trials_reach() -> None:
    past = left_behind("tpe", range(5)) + left_behind("tpe", [5, 6], judged=4, first=5)
    for trials, expected in ((9, {0, 1, 2, 3, 4, 7, 8}), (4, {0, 1}), (2, set())):
        strategy = made(
            space(x=list(range(20))), RandomSampler(seed=1), instances=4, trials=trials, past=past
        )
        assert {a.trial.number for a in strategy.ask(99)} == expected
    unknown = [replace(trial, dealt_by={}) for trial in past]  # of a catalog that did not keep it
    strategy = made(space(x=list(range(20))), RandomSampler(seed=1), instances=4, trials=7, past=unknown)
    assert {a.trial.number for a in strategy.ask(99)} == {0, 1, 2, 3, 4}


def test_settings_to_try_first_are_finished_whoever_began_them() -> None:
    past = left_behind("halving", [3, 4])
    strategy = OptunaSampler(
        space(x=list(range(9))),
        ANYTHING_GOES,
        2,
        {"clip_score": "maximize"},
        1,
        RandomSampler(seed=0),
        past=past,
        enqueue=[{"x": 4}],
    )
    assert [(a.trial.number, a.instance) for a in strategy.ask(9)] == pairs(1, [1])


def test_what_is_excluded_by_now_is_not_finished() -> None:
    past = left_behind("tpe", [0, 1])
    judge = Judge({}, UNKNOWN, exclude=[{"x": Choices(values=(1,))}])
    strategy = made(space(x=[0, 1]), Scripted({"x": 1}), judge, instances=2, past=past)
    assert [(a.trial.number, a.instance) for a in strategy.ask(9)] == pairs(0, [1])


# Racing


class Race:
    """A raced study of `sampler`'s script over positions 0…, scored by `table[position][instance]`."""

    def __init__(
        self,
        table: Sequence[Sequence[float]],
        script: Sequence[int] = (),
        direction: Direction = "maximize",
        past: Sequence[PastTrial] = (),
        instances: int = 16,
        **options: Any,
    ) -> None:
        self.table = table
        script = script or range(len(table))
        self.sampler = Scripted(*[{"x": position} for position in script])
        self.strategy = OptunaSampler(
            space(x=list(range(len(table)))),
            ANYTHING_GOES,
            instances,
            {"clip_score": direction},
            len(table),
            self.sampler,
            past=past,
            racing=True,
            **options,
        )

    def score(self, assignment: Assignment) -> Scored:
        position = assignment.trial.settings["x"]
        assert isinstance(position, int)
        return Scored({"clip_score": self.table[position][assignment.instance]})

    def step(self, free: int) -> tuple[list[tuple[int, int]], list[int]]:
        """Ask once and report all of it: the pairs dealt, the trials dropped."""
        dealt = self.strategy.ask(free)
        reports = [Report(a.trial.number, a.instance, self.score(a)) for a in dealt]
        return [(a.trial.number, a.instance) for a in dealt], list(self.strategy.report(reports))

    def until_done(self, free: int = 4) -> dict[int, int]:
        """Play to the end; instances dealt by trial."""
        dealt: dict[int, int] = {}
        while pairs := self.step(free)[0]:
            for number, _ in pairs:
                dealt[number] = dealt.get(number, 0) + 1
        return dealt


def noisy(level: float, seed: int, instances: int = 16) -> list[float]:
    """Scores around a level, those of an instance alike in all trials, and no two differences alike."""
    chance = random.Random(seed)
    return [level + 3 * (i % 5) + chance.uniform(-0.5, 0.5) for i in range(instances)]


def pairs(number: int, instances: Iterable[int]) -> list[tuple[int, int]]:
    return [(number, instance) for instance in instances]


def test_stages_double_and_come_before_new_trials() -> None:
    race = Race([noisy(10, 0), noisy(20, 1)])
    assert race.step(4) == (pairs(0, range(4)), [])
    assert race.step(4) == (pairs(0, range(4, 8)), [])
    assert race.step(6) == (pairs(0, range(8, 14)), [])
    assert race.step(4) == (pairs(0, range(14, 16)) + pairs(1, range(2)), [])
    assert race.until_done() == {1: 14}


def test_nobody_is_idle_while_a_stage_is_under_way() -> None:
    race = Race([noisy(10, 0), noisy(20, 1), noisy(5, 2)])
    first = race.strategy.ask(9)
    assert [a.trial.number for a in first] == [0] * 4 + [1] * 4 + [2]
    # The stage is over with its last outcome, whatever their order, and the next comes before what is new.
    for assignment in (first[2], first[0], first[3]):
        race.strategy.report([Report(0, assignment.instance, race.score(assignment))])
    assert [(a.trial.number, a.instance) for a in race.strategy.ask(2)] == pairs(2, [1, 2])
    race.strategy.report([Report(0, 1, race.score(first[1]))])
    assert [(a.trial.number, a.instance) for a in race.strategy.ask(5)] == pairs(2, [3]) + pairs(
        0, range(4, 8)
    )


def test_the_furthest_trial_and_of_those_the_best_goes_on_first() -> None:
    race = Race([noisy(10, 0), noisy(30, 1), noisy(20, 2)])
    race.step(12)
    assert race.step(4)[0] == pairs(1, range(4, 8))
    assert race.step(8)[0] == pairs(1, range(8, 16))


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_loser_is_dropped_and_told_as_what_its_pairs_say(direction: Direction) -> None:
    sign = 1 if direction == "maximize" else -1
    race = Race([noisy(20 * sign, 0), noisy(15 * sign, 1), noisy(30 * sign, 2)], direction=direction)
    for free in (4, 4, 8):
        race.step(free)
    assert race.step(4) == (pairs(1, range(4)), [1])
    leader, loser = race.table[0], race.table[1]
    estimate = statistics.fmean(leader) + statistics.fmean(
        b - a for a, b in zip(leader[:4], loser[:4], strict=True)
    )
    _, state, value, violated = race.sampler.heard[1]
    assert (state, violated) == ("COMPLETE", False)
    assert value == pytest.approx(estimate)
    assert abs(estimate - statistics.fmean(loser)) < 1 < abs(estimate - loser[3])
    assert race.until_done() == {2: 16}


def test_nothing_is_dropped_before_anybody_is_complete() -> None:
    race = Race([noisy(10, 0), noisy(30, 1)])
    assert race.step(8)[1] == []
    assert race.step(4) == (pairs(1, range(4, 8)), [])
    assert race.step(8) == (pairs(1, range(8, 16)), [0])
    assert race.step(9) == ([], [])


def test_queued_work_of_a_loser_goes() -> None:
    race = Race([noisy(30, 0), noisy(10, 1), noisy(12, 2)])
    race.step(4)
    race.step(4)
    last = race.strategy.ask(8)
    race.step(4)  # trial 1, with nobody to lose against yet
    begun = race.strategy.ask(2)
    assert [(a.trial.number, a.instance) for a in begun] == pairs(1, [4, 5])
    dropped = race.strategy.report([Report(0, a.instance, race.score(a)) for a in last])
    assert dropped == [1]
    assert race.strategy.report([Report(1, a.instance, race.score(a)) for a in begun]) == []
    assert [a.trial.number for a in race.strategy.ask(4)] == [2] * 4


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_values_told_later_are_by_the_new_leader_and_earlier_drops_stay(direction: Direction) -> None:
    sign = 1 if direction == "maximize" else -1
    levels = enumerate((20, 10, 30, 12))
    race = Race([noisy(level * sign, seed) for seed, level in levels], direction=direction)
    assert race.until_done() == {0: 16, 1: 4, 2: 16, 3: 4}
    told = [value for _, _, value, _ in race.sampler.heard]
    expected = [statistics.fmean(race.table[0]), None, statistics.fmean(race.table[2]), None]
    for loser, leader in ((1, 0), (3, 2)):
        gain = statistics.fmean(race.table[loser][:4]) - statistics.fmean(race.table[leader][:4])
        expected[loser] = statistics.fmean(race.table[leader]) + gain
    assert told == pytest.approx(expected)


def test_trials_that_are_equal_both_reach_the_end() -> None:
    table = [noisy(20, 0)] * 3
    assert Race(table).until_done() == {0: 16, 1: 16, 2: 16}


@pytest.mark.parametrize("level", [10.0, 20.0])
def test_a_lost_instance_holds_nothing_up_and_a_mean_without_it_is_not_told(level: float) -> None:
    race = Race([noisy(20, 0), noisy(level, 1)])
    for free in (4, 4, 8):
        race.step(free)
    dropped: list[int] = []
    while dealt := race.strategy.ask(4):
        outcomes = {a.instance: race.score(a) for a in dealt}
        reports = [
            Report(1, i, Failed("lost", "gone") if i == 3 else outcome) for i, outcome in outcomes.items()
        ]
        dropped += race.strategy.report(reports)
    _, state, value, _ = race.sampler.heard[1]
    if level == 20:
        assert (state, value, dropped) == ("FAIL", None, [])
    else:  # three pairs of four are too few: it was dropped after the second stage
        assert (state, dropped) == ("COMPLETE", [1])
        shared = [0, 1, 2, 4, 5, 6, 7]
        gain = statistics.fmean(race.table[1][i] - race.table[0][i] for i in shared)
        assert value == pytest.approx(statistics.fmean(race.table[0]) + gain)


def test_a_trial_judged_to_the_end_with_a_lost_instance_is_told_what_its_pairs_say() -> None:
    whole = {i: Scored({"clip_score": value}) for i, value in enumerate(noisy(20, 0))}
    lost: dict[int, Outcome] = {i: Scored({"clip_score": value}) for i, value in enumerate(noisy(10, 1))}
    lost[7] = Failed("lost", "gone")
    race = Race([[], [], []], past=[PastTrial(0, {"x": 1}, lost), PastTrial(1, {"x": 0}, whole)])
    assert [heard[:2] for heard in race.sampler.heard] == [({"x": 0}, "COMPLETE"), ({"x": 1}, "COMPLETE")]
    assert race.sampler.heard[1][2] == pytest.approx(10, abs=8)
    assert [a.trial.number for a in race.strategy.ask(4)] == [2] * 4


def test_a_twin_of_a_dropped_trial_is_answered_with_its_estimate() -> None:
    sampler = Scripted({"guidance_scale": 2}, {"guidance_scale": 0}, {"guidance_scale": 1})
    strategy = OptunaSampler(
        space(guidance_scale=[0.5, 1, 3]),
        Judge({}, TEXT_TO_IMAGE),
        8,
        {"clip_score": "maximize"},
        3,
        sampler,
        racing=True,
    )
    while dealt := strategy.ask(4):
        strategy.report(
            scored(dealt, lambda s: 20.0 if s["guidance_scale"] == 3 else 10.0 + random.Random(0).random())
        )
    values = [value for _, _, value, _ in sampler.heard]
    assert values[1] is not None
    assert values[0] == 20.0 > values[1] == values[2]


def test_more_instances_are_raced_again_from_the_best_on() -> None:
    best = noisy(30, 2, 32)
    short = Race([noisy(20, 0, 32), noisy(10, 1, 32), best, best])
    past: dict[int, dict[int, Outcome]] = {}
    while dealt := short.strategy.ask(4):
        for a in dealt:
            past.setdefault(a.trial.number, {})[a.instance] = short.score(a)
        short.strategy.report([Report(a.trial.number, a.instance, short.score(a)) for a in dealt])
    assert {number: len(outcomes) for number, outcomes in past.items()} == {0: 16, 1: 4, 2: 16, 3: 16}
    trials = [PastTrial(number, {"x": number}, outcomes) for number, outcomes in past.items()]
    long = Race(short.table, past=trials, instances=32)
    assert long.step(16)[0] == pairs(2, range(16, 32))
    assert long.until_done() == {3: 16}, "the others lose on what they have already"


SEEDS = range(6)


def landscape(seed: int) -> dict[tuple[int, int], list[float]]:
    """64 settings × 16 seeds: effects up to 20 points on a noisy hill, 10 points of deviation over seeds.

    Half of the variance is a seed's own, in all settings alike; the other half is luck.
    """
    chance = random.Random(seed)
    top = chance.uniform(0, 7), chance.uniform(0, 7)
    cells = [(a, b) for a in range(8) for b in range(8)]
    height = {cell: -(math.dist(cell, top) ** 2) / 49 + chance.gauss(0, 0.05) for cell in cells}
    low, high = min(height.values()), max(height.values())
    half = 10 * math.sqrt(0.5)
    alike = [chance.gauss(0, half) for _ in range(16)]
    return {
        cell: [20 * (height[cell] - low) / (high - low) + each + chance.gauss(0, half) for each in alike]
        for cell in cells
    }


def searched(seed: int, trials: int, racing: bool) -> tuple[int, float]:
    """Images that a search by TPE took, and how far its best complete trial is below the best setting."""
    table = landscape(seed)
    means = {cell: statistics.fmean(values) for cell, values in table.items()}
    strategy = OptunaSampler(
        space(a=list(range(8)), b=list(range(8))),
        ANYTHING_GOES,
        16,
        {"clip_score": "maximize"},
        trials,
        TPESampler(seed=seed),
        racing=racing,
    )
    counts: dict[Any, int] = {}
    while dealt := strategy.ask(4):
        cells = [(a.trial.settings["a"], a.trial.settings["b"]) for a in dealt]
        for cell in cells:
            counts[cell] = counts.get(cell, 0) + 1
        strategy.report(
            [
                Report(a.trial.number, a.instance, Scored({"clip_score": table[cell][a.instance]}))  # type: ignore[index]
                for a, cell in zip(dealt, cells, strict=True)
            ]
        )
    found = max(means[cell] for cell, count in counts.items() if count == 16)
    return sum(counts.values()), max(means.values()) - found


def test_a_race_finds_as_good_a_setting_with_fewer_images() -> None:
    raced, whole = ([searched(seed, 40, racing) for seed in SEEDS] for racing in (True, False))
    assert [images for images, _ in whole] == [640] * len(SEEDS)
    assert statistics.fmean(images for images, _ in raced) < 0.75 * 640
    assert statistics.fmean(short for _, short in raced) < 1
    assert searched(0, 40, True) == raced[0], "the same seed, the same search"


# Objectives, constraints and settings to try first


def test_several_objectives_are_told_as_means_and_nothing_is_raced() -> None:
    sampler = Scripted({"x": 0}, {"x": 1})
    strategy = OptunaSampler(
        space(x=[1, 2]),
        ANYTHING_GOES,
        8,
        {"clip_score": "maximize", "seconds": "minimize"},
        2,
        sampler,
        racing=True,
    )
    dealt = strategy.ask(99)
    assert len(dealt) == 16
    outcomes = [
        Scored({"clip_score": 10.0 * a.trial.number + a.instance, "seconds": 2.0, "other": 9.0})
        for a in dealt
    ]
    reports = [Report(a.trial.number, a.instance, o) for a, o in zip(dealt, outcomes, strict=True)]
    reports[3] = Report(0, 3, Failed("lost", "gone"))
    assert strategy.report(reports) == []
    assert sampler.values == [None, [13.5, 2.0]]
    assert [heard[1] for heard in sampler.heard] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("sampler", [TPESampler(seed=0), NSGAIISampler(seed=0, population_size=8)])
def test_samplers_search_for_several_objectives_at_once(sampler: BaseSampler) -> None:
    objectives: Mapping[str, Direction] = {"clip_score": "maximize", "steps": "minimize"}
    constraint = Constraint("clip_score", ">=", 25)
    strategy = OptunaSampler(AXES, ANYTHING_GOES, 1, objectives, 60, sampler, constraints=[constraint])
    tried: list[Settings] = []
    while dealt := strategy.ask(2):
        tried += [a.trial.settings for a in dealt]
        strategy.report(
            [
                Report(
                    a.trial.number,
                    0,
                    Scored(
                        {
                            "clip_score": quality(a.trial.settings),
                            "steps": float(str(a.trial.settings["num_inference_steps"])),
                        }
                    ),
                )
                for a in dealt
            ]
        )
    assert len(tried) == 60
    kept = [sum(quality(s) >= 25 for s in half) for half in (tried[:30], tried[30:])]
    assert kept[1] > kept[0], "the constraint is learned"


@pytest.mark.parametrize(
    ("op", "bound", "violation"), [(">=", 3.0, 1.0), ("<=", 3.0, -1.0), (">=", 2.0, 0.0), ("<=", 2.0, 0.0)]
)
def test_a_constraint_is_told_by_how_far_a_mean_is_beyond_its_bound(
    op: Literal[">=", "<="], bound: float, violation: float
) -> None:
    sampler = Scripted({"x": 0})
    constraint = Constraint("sharp", op, bound)
    strategy = OptunaSampler(
        space(x=[1]), ANYTHING_GOES, 2, {"clip_score": "maximize"}, 1, sampler, constraints=[constraint]
    )
    strategy.ask(2)
    strategy.report([Report(0, i, Scored({"clip_score": 5.0, "sharp": 1.0 + 2 * i})) for i in range(2)])
    assert sampler.heard == [({"x": 0}, "COMPLETE", 5.0, violation > 0)]
    assert sampler.constraints == [{f"sharp {op} {bound:g}": violation}]


def test_a_trial_without_a_constraints_score_teaches_nothing() -> None:
    sampler = Scripted({"x": 0})
    constraint = Constraint("sharp", ">=", 0)
    strategy = OptunaSampler(
        space(x=[1]), ANYTHING_GOES, 1, {"clip_score": "maximize"}, 1, sampler, constraints=[constraint]
    )
    strategy.report(scored(strategy.ask(1), lambda _: 1.0))
    assert sampler.heard == [({"x": 0}, "FAIL", None, False)]


def test_a_trial_that_breaks_a_constraint_never_leads() -> None:
    # The first is the best by far and breaks the bound; the second leads.
    race = Race([noisy(50, 0), noisy(20, 1), noisy(10, 2)], constraints=[Constraint("clip_score", "<=", 40)])
    assert race.until_done() == {0: 16, 1: 16, 2: 4}
    assert [heard[3] for heard in race.sampler.heard] == [True, False, False]


def test_settings_to_try_first_are_dealt_first_and_count() -> None:
    sampler = Scripted({"x": 2})
    first: list[Settings] = [{"x": 50}, {"x": 3}]
    strategy = OptunaSampler(
        space(x=[3, 10, 30]), ANYTHING_GOES, 1, {"clip_score": "maximize"}, 3, sampler, enqueue=first
    )
    dealt = strategy.ask(9)
    assert [a.trial.settings["x"] for a in dealt] == [50, 3, 30]
    assert [a.trial.number for a in dealt] == [0, 1, 2]
    strategy.report(scored(dealt, lambda _: 1.0))
    assert [params for params, *_ in sampler.heard] == [{"x": 0}, {"x": 2}], "50 is nothing to the sampler"


def test_settings_to_try_first_that_are_twins_or_cannot_run_are_passed_over() -> None:
    first: list[Settings] = [{"strength": 0.05}, {"strength": 0.95}, {"strength": 0.92}]
    strategy = OptunaSampler(
        space(strength=[0.9, 0.5]),
        Judge({"num_inference_steps": 10}, INPAINTING),
        1,
        {"clip_score": "maximize"},
        9,
        RandomSampler(seed=0),
        enqueue=first,
    )
    assert [a.trial.settings["strength"] for a in strategy.ask(9)] == [0.95, 0.5]


def test_settings_off_the_lattice_are_gone_on_with_in_a_later_session() -> None:
    past = [PastTrial(0, {"x": 50}, {1: Scored({"clip_score": 1.0})})]
    for enqueue, expected in (([{"x": 50}], pairs(0, [0, 2])), ([], pairs(1, [0, 1, 2]))):
        strategy = OptunaSampler(
            space(x=[3, 10]),
            ANYTHING_GOES,
            3,
            {"clip_score": "maximize"},
            1,
            RandomSampler(seed=0),
            past=past,
            enqueue=enqueue,
        )
        assert [(a.trial.number, a.instance) for a in strategy.ask(9)] == expected


def test_settings_off_the_lattice_can_lead() -> None:
    enqueue: list[Settings] = [{"x": -1}]  # the table's last row, which the axis does not list
    race = Race([noisy(10, 0), noisy(30, 1)], enqueue=enqueue)
    assert race.until_done() == {0: 16, 1: 4}
    assert [params for params, *_ in race.sampler.heard] == [{"x": 0}]


class ScriptedProcess(Scripted, GPSampler):  # type: ignore[misc]
    """To the strategy a Gaussian process, which hears of complete trials only."""

    def before_trial(self, study: Any, trial: Any) -> None:
        pass


def test_a_gaussian_process_hears_of_cells_that_cannot_run() -> None:
    script = [0.1, 0.9, 0.2, 0.5]
    axis = sorted(script)
    sampler = ScriptedProcess(*[{"strength": axis.index(value)} for value in script])
    strategy = OptunaSampler(
        space(strength=axis),
        Judge({"num_inference_steps": 4}, INPAINTING),
        1,
        {"clip_score": "maximize"},
        9,
        sampler,
        constraints=[Constraint("clip_score", "<=", 5)],
    )
    strategy.report(scored(strategy.ask(1), lambda _: 8.0))
    strategy.report(scored(strategy.ask(1), lambda _: 2.0))
    # Nothing was known yet at 0.1; 0.2 has what is expected of a cell without a value.
    assert [heard[1:] for heard in sampler.heard] == [
        ("FAIL", None, False),
        ("COMPLETE", 8.0, True),
        ("COMPLETE", 8.0, True),
        ("COMPLETE", 2.0, False),
    ]
    assert sampler.constraints[1:] == [
        {"can run": 0.0, "clip_score <= 5": 3.0},
        {"can run": 1.0, "clip_score <= 5": 3.0},
        {"can run": 0.0, "clip_score <= 5": -3.0},
    ]


def test_a_gaussian_process_searches() -> None:
    axes = space(strength=[0.1, 0.2, 0.3, 0.5, 0.7, 0.9], negative_prompt=["", "cartoon"])
    judge = Judge({"num_inference_steps": 4}, INPAINTING)
    sampler = make_sampler("gp", {"n_startup_trials": 3}, 1, axes, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, matrices as small as these take longer
    tried = run(made(axes, sampler, judge, trials=6), lambda s: 10.0 * bool(s["negative_prompt"]), batch=1)
    torch.set_num_threads(threads)
    assert len(tried) == 6
    assert all(judge.obstacle(settings) is None for settings in tried)


# Ending


@pytest.mark.parametrize("sampler", [TPESampler(seed=0), RandomSampler(seed=0)], ids=["tpe", "random"])
def test_a_small_space_with_a_large_budget_is_tried_whole_and_then_ends(sampler: BaseSampler) -> None:
    axes = space(num_inference_steps=[1, 5, 9], strength=[0.1, 0.5, 1.0], guidance_scale=[1, 3])
    judge = Judge({}, INPAINTING)
    begun = time.perf_counter()
    tried = run(made(axes, sampler, judge, trials=10**9), lambda _: 1.0)
    can_run = {judge.candidate(cell) for cell in axes.lattice() if judge.obstacle(cell) is None}
    assert len(tried) == len(can_run) == 10
    assert {judge.candidate(settings) for settings in tried} == can_run
    assert time.perf_counter() - begun < 10


def test_an_exhausted_space_is_not_searched_again_and_again() -> None:
    sampler = Scripted({"x": 0})
    strategy = made(space(x=[1, 2]), sampler)
    dealt = strategy.ask(9)
    assert len(dealt) == 2
    asked = sampler.asked
    assert asked <= 2 * REPEATS_BEFORE_CHANCE + 2
    for _ in range(20):
        assert strategy.ask(9) == []
        strategy.report([])
    strategy.report(scored(dealt, lambda _: 1.0))
    assert strategy.ask(9) == []
    assert sampler.asked == asked


def test_a_continuous_space_is_searched_again_when_the_sampler_has_learned_something() -> None:
    # It repeats itself until its trial has a value, and nothing else is found by chance.
    judge = Judge(
        {}, UNKNOWN, exclude=[{"x": FloatRange(low=a, high=b)} for a, b in ((0, 0.25), (0.2501, 1))]
    )
    low, high = 0.25 + 1e-9, 0.25 + 2e-9
    repeats = [{"x": low}] * (REPEATS_BEFORE_CHANCE + 1)
    strategy = made(
        space(x=FloatRange(low=0, high=1e5)),
        Scripted(*repeats, {"x": high}),
        replace(judge, exclude=[*judge.exclude, {"x": FloatRange(low=1, high=1e5)}]),
        trials=2,
    )
    (first,) = strategy.ask(9)
    assert strategy.ask(9) == []
    strategy.report(scored([first], lambda _: 1.0))
    (second,) = strategy.ask(9)
    assert (first.trial.settings, second.trial.settings) == ({"x": low}, {"x": high})


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_a_continuous_space_that_is_mostly_excluded_is_searched_to_its_number_of_trials(
    process: bool, log: bool
) -> None:
    judge = Judge({}, UNKNOWN, exclude=[{"x": FloatRange(low=1.01, high=10)}])
    kind = ScriptedProcess if process else Scripted
    axes = space(
        x=FloatRange(low=1, high=10, log=log), word=["a", "b"], step=FloatRange(low=0, high=1, step=0.5)
    )
    sampler = kind({"x": 7.0, "word": 0, "step": 1})
    tried = run(made(axes, sampler, judge, trials=8), lambda _: 1.0)
    assert len(tried) == 8
    assert all(1 <= float(str(settings["x"])) < 1.01 for settings in tried)
    assert {settings["word"] for settings in tried} == {"a", "b"}
    assert {settings["step"] for settings in tried} <= {0.0, 0.5, 1.0}


def test_a_sampler_in_love_with_one_cell_is_helped_out_by_chance() -> None:
    strategy = made(space(x=list(range(6)), y=["a", "b"]), Scripted({"x": 3, "y": 1}), trials=12)
    tried = run(strategy, lambda _: 1.0)
    assert len({tuple(settings.items()) for settings in tried}) == 12


def test_a_huge_space_where_nothing_can_run_ends() -> None:
    axes = space(
        num_inference_steps=IntRange(low=1, high=10), strength=[0.01, 0.02], x=IntRange(low=1, high=10**9)
    )
    assert made(axes, RandomSampler(seed=0), Judge({}, INPAINTING)).ask(5) == []


# Finding


AXES = space(
    guidance_scale=[7.5, 1.0, 15.0, 2.0, 12.0, 3.0, 9.0, 4.0, 6.0, 5.0],
    strength=FloatRange(low=0.1, high=1, step=0.1),
    num_inference_steps=IntRange(low=5, high=50),
    negative_prompt=["", "cartoon", "blurry"],
)


def quality(settings: Settings) -> float:
    """A hill around guidance 7.5, strength 0.7, 30 steps, the negative prompt `cartoon`."""
    guidance, strength, steps = (
        settings[name] for name in ("guidance_scale", "strength", "num_inference_steps")
    )
    assert isinstance(guidance, float)
    assert isinstance(strength, float)
    assert isinstance(steps, int)
    off = abs(guidance - 7.5) / 3 + abs(strength - 0.7) * 6 + abs(math.log(steps / 30)) * 2
    return 30 - 2 * off + 2 * (settings["negative_prompt"] == "cartoon")


@pytest.mark.parametrize("axes", [AXES, Space(axes={**AXES.axes, "strength": FloatRange(low=0.1, high=1)})])
def test_tpe_concentrates_near_the_optimum_and_chance_does_not(axes: Space) -> None:
    def later(sampler: BaseSampler, seed: int) -> tuple[float, float]:
        chance = random.Random(seed)
        strategy = OptunaSampler(axes, ANYTHING_GOES, 1, {"clip_score": "maximize"}, 50, sampler, seed=seed)
        values = [quality(s) for s in run(strategy, lambda s: quality(s) + chance.gauss(0, 0.2))]
        assert len(values) == 50
        return statistics.mean(values[25:]), max(values)

    seeds = range(6)
    tpe = [later(TPESampler(seed=seed), seed) for seed in seeds]
    luck = [later(RandomSampler(seed=seed), seed) for seed in seeds]
    mean, best = (statistics.mean(column) for column in zip(*tpe, strict=True))
    mean_by_luck, best_by_luck = (statistics.mean(column) for column in zip(*luck, strict=True))
    assert mean > mean_by_luck + 1.5
    assert best > best_by_luck


def test_what_earlier_sessions_found_guides_the_search() -> None:
    # After 25 trials a new sampler goes on near the optimum at once, and does not start from chance.
    gains = []
    for seed in range(5):
        first = run(made(AXES, TPESampler(seed=seed), trials=40), quality)
        past = [PastTrial(n, s, {0: Scored({"clip_score": quality(s)})}) for n, s in enumerate(first)]
        rest = run(made(AXES, TPESampler(seed=seed + 100), trials=50, past=past), quality)
        gains.append(statistics.mean(map(quality, rest)) - statistics.mean(map(quality, first[:10])))
    assert statistics.mean(gains) > 2


def test_optuna_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    run(made(AXES, TPESampler(seed=0), trials=15), quality)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING
