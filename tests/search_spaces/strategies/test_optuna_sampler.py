import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.requests import Failed, Outcome, Scored, Settings, Value
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report
from search_spaces.strategies.optuna_sampler import REPEATS_BEFORE_CHANCE, OptunaSampler
from tests.search_spaces.examples import INPAINTING, TEXT_TO_IMAGE, UNKNOWN, space

ANYTHING_GOES = Judge({}, UNKNOWN)


class Scripted(BaseSampler):  # type: ignore[misc]  # Optuna is untyped to mypy here
    """Suggests what it was told to, the last thing for ever; keeps what it was asked and what it heard."""

    def __init__(self, *script: Mapping[str, Any]) -> None:
        self.script, self.asked = list(script), 0
        self.heard: list[tuple[dict[str, Any], str, float | None, bool]] = []

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        self.asked += 1
        return self.script[min(trial.number, len(self.script) - 1)][name]

    def after_trial(self, study: Any, trial: Any, state: Any, values: Sequence[float] | None) -> None:
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
    for domain in (
        Choices(values=(1, 3)),
        IntRange(low=1, high=3, step=2),
        IntRange(low=1, high=3, log=True),
    ):
        sampler = Scripted({"x": 0})
        strategy = made(space(x=domain), sampler, trials=6, past=past)
        assert sampler.heard == []
        assert strategy.ask(9) == [], "they count as trials all the same"


def test_outcomes_of_instances_that_are_no_more_do_not_count() -> None:
    past = [
        PastTrial(0, {"x": 1}, {i: Scored({"clip_score": value}) for i, value in enumerate([2.0, 4.0, 99.0])})
    ]
    sampler = Scripted({"x": 0})
    made(space(x=[1, 2]), sampler, instances=2, past=past)
    assert sampler.heard == [({"x": 0}, "COMPLETE", 3.0, False)]


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
    # It repeats itself until its trial has a value.
    repeats = [{"x": 0.25}] * (REPEATS_BEFORE_CHANCE + 1)
    strategy = made(space(x=FloatRange(low=0, high=1)), Scripted(*repeats, {"x": 0.5}), trials=2)
    (first,) = strategy.ask(9)
    assert strategy.ask(9) == []
    strategy.report(scored([first], lambda _: 1.0))
    (second,) = strategy.ask(9)
    assert (first.trial.settings, second.trial.settings) == ({"x": 0.25}, {"x": 0.5})


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
