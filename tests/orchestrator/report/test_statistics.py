import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.report.files import report_text
from orchestrator.report.results import Results, TrialResult
from orchestrator.report.statistics import (
    STEPS,
    axes_by_effect,
    axis_effect,
    complete_scores,
    decimals,
    estimate_text,
    front,
    left_early,
    ranking,
    shared_difference,
    trial_estimate,
    validation,
    where_steps_stop_paying,
)
from search_spaces.estimates import (
    FEWEST_FOR_A_GAIN,
    Estimate,
    doubted_gain,
    estimate,
    paired_difference,
)
from search_spaces.objectives import Constraint, Direction
from search_spaces.requests import Settings, Value

# multiples of 1/8: sums, differences and shifts of them are exact, so that laws hold to the last bit
scores = st.integers(-800, 800).map(lambda n: n / 8)


@st.composite
def tables(draw: st.DrawFn, least: int = 1) -> list[list[float]]:
    """Scores of some trials over the same `least` or more instances."""
    instances = draw(st.integers(least, 6))
    row = st.lists(scores, min_size=instances, max_size=instances)
    return draw(st.lists(row, min_size=1, max_size=6))


def trial(number: int, values: Sequence[float], settings: Settings | None = None) -> TrialResult:
    return TrialResult(number, settings or {"a": number}, dict(enumerate(values)), {}, {})


def study(
    trials: Sequence[TrialResult],
    axes: Mapping[str, Sequence[object]] | None = None,
    instances: int | None = None,
    twin_of: Callable[[Settings], int | None] = lambda _: None,
) -> Results:
    known = axes if axes is not None else {"a": [t.number for t in trials]}
    count = len(trials[0].scores) if instances is None else instances
    return Results("s", "clip_score", count, known, trials, twin_of, [], [])


def table_study(table: Sequence[Sequence[float]]) -> Results:
    return study([trial(number, row) for number, row in enumerate(table)])


def grid(axes: Mapping[str, Sequence[Value]], score: Callable[..., Sequence[float]]) -> Results:
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return study([trial(n, score(**settings), settings) for n, settings in enumerate(combinations)], axes)


class TestEstimate:
    def test_hand_worked(self) -> None:
        # s = 1, t(0.975, 2) = 4.302653 from the printed table
        found = estimate([1.0, 2.0, 3.0])
        assert found.mean == 2.0
        assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
        assert found.n == 3

    @given(st.lists(scores, min_size=2, max_size=20))
    def test_is_the_t_interval_of_scipy(self, values: list[float]) -> None:
        assume(len(set(values)) > 1)
        found = estimate(values)
        low, high = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert found.half_width is not None
        assert found.mean - found.half_width == pytest.approx(low, rel=1e-9, abs=1e-9)
        assert found.mean + found.half_width == pytest.approx(high, rel=1e-9, abs=1e-9)

    def test_one_value_has_no_interval(self) -> None:
        assert estimate([7.0]) == Estimate(7.0, None, 1)
        assert estimate([7.0]).includes_zero is None
        assert estimate([7.0]).above_zero is None

    def test_equal_values_have_an_interval_of_no_width(self) -> None:
        assert estimate([0.1] * 3) == Estimate(0.1, 0.0, 3)  # the sum of three 0.1 is not 0.3

    def test_no_values_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no mean"):
            estimate([])

    @pytest.mark.parametrize(
        ("mean", "half_width", "includes", "above"),
        [
            (1.0, 0.5, False, True),
            (-1.0, 0.5, False, False),
            (0.5, 1.0, True, False),
            (0.0, 0.0, True, False),
        ],
    )
    def test_zero(self, mean: float, half_width: float, includes: bool, above: bool) -> None:
        found = Estimate(mean, half_width, 3)
        assert (found.includes_zero, found.above_zero) == (includes, above)


class TestCompleteTrials:
    def test_scores_come_in_the_order_of_the_instances(self) -> None:
        assert complete_scores(TrialResult(0, {}, {1: 5.0, 0: 4.0}, {}, {}), 2) == (4.0, 5.0)

    def test_a_missing_instance_leaves_no_mean(self) -> None:
        assert trial_estimate(TrialResult(0, {}, {0: 4.0, 2: 5.0}, {}, {}), 3) is None

    def test_a_failed_instance_leaves_no_mean(self) -> None:
        assert trial_estimate(TrialResult(0, {}, {0: 4.0, 1: 5.0}, {2: "black"}, {}), 3) is None
        assert trial_estimate(TrialResult(0, {}, {0: 4.0, 1: 5.0}, {1: "black"}, {}), 2) is None

    def test_no_instances_leave_no_mean(self) -> None:
        assert trial_estimate(TrialResult(0, {}, {}, {}, {}), 0) is None

    def test_complete(self) -> None:
        assert trial_estimate(trial(0, [4.0, 5.0]), 2) == estimate([4.0, 5.0])


class TestRanking:
    def test_by_mean_and_only_the_complete(self) -> None:
        survivor = TrialResult(9, {"a": 9}, {0: 99.0}, {1: "black"}, {})
        ranked = ranking(study([trial(0, [1.0, 3.0]), trial(1, [5.0, 7.0]), survivor], instances=2))
        assert [(entry.rank, entry.trial.number, entry.score.mean) for entry in ranked] == [
            (1, 1, 6.0),
            (2, 0, 2.0),
        ]

    def test_equal_means_go_by_number(self) -> None:
        assert [
            entry.trial.number for entry in ranking(study([trial(4, [1.0, 3.0]), trial(2, [3.0, 1.0])]))
        ] == [2, 4]

    def test_no_complete_trial(self) -> None:
        assert ranking(study([trial(0, [1.0])], instances=2)) == ()

    def test_a_common_offset_of_instances_hides_no_difference(self) -> None:
        # unpaired, the spread over instances (10, 50, 90) would drown the difference of about 1
        ranked = ranking(table_study([[11.0, 51.1, 90.9], [10.0, 50.0, 90.0]]))
        assert ranked[1].tied is False
        assert ranked[1].score.mean + (ranked[1].score.half_width or 0) > ranked[0].score.mean

    def test_equal_scores_tie(self) -> None:
        leader, other = ranking(table_study([[0.1, 0.7], [0.1, 0.7]]))
        assert other.behind == Estimate(0.0, 0.0, 2)
        assert (leader.tied, other.tied) == (True, True)

    def test_always_behind_by_the_same_is_not_tied(self) -> None:
        assert ranking(table_study([[2.0, 5.0], [1.0, 4.0]]))[1].tied is False

    def test_one_instance_tells_no_ties(self) -> None:
        leader, equal, less = ranking(table_study([[2.0], [2.0], [1.0]]))
        assert (leader.tied, equal.tied, less.tied) == (True, None, None)
        assert less.behind == Estimate(1.0, None, 1)

    @given(tables(least=2))
    def test_ties_are_those_of_the_paired_t_test(self, table: list[list[float]]) -> None:
        ranked = ranking(table_study(table))
        best = [ranked[0].trial.scores[i] for i in range(len(table[0]))]
        for entry in ranked[1:]:
            other = [entry.trial.scores[i] for i in range(len(table[0]))]
            if len({a - b for a, b in zip(best, other, strict=True)}) > 1:
                low, high = scipy.stats.ttest_rel(best, other).confidence_interval(0.95)
                assume(min(abs(low), abs(high)) > 1e-9)
                assert entry.tied is bool(low <= 0 <= high)
                assert entry.behind.half_width == pytest.approx((high - low) / 2)

    @given(tables())
    def test_the_leader_ties_with_itself(self, table: list[list[float]]) -> None:
        leader = ranking(table_study(table))[0]
        assert leader.tied is True
        assert leader.behind.mean == 0.0

    @given(tables(), scores)
    def test_a_constant_changes_nothing(self, table: list[list[float]], constant: float) -> None:
        moved = [[value + constant for value in row] for row in table]
        assert verdicts(table_study(moved)) == verdicts(table_study(table))

    @given(tables(), st.randoms())
    def test_the_order_of_trials_does_not_matter(
        self, table: list[list[float]], chance: random.Random
    ) -> None:
        results = table_study(table)
        trials = list(results.trials)
        chance.shuffle(trials)
        assert ranking(replace(results, trials=trials)) == ranking(results)

    @given(tables(least=2))
    def test_the_names_of_instances_do_not_matter(self, table: list[list[float]]) -> None:
        assert verdicts(table_study([row[::-1] for row in table])) == verdicts(table_study(table))

    @given(tables())
    def test_instances_that_are_all_better_cannot_lose(self, table: list[list[float]]) -> None:
        above = [max(column) + 1 for column in zip(*table, strict=True)]
        assert ranking(table_study([*table, above]))[0].trial.number == len(table)


def verdicts(results: Results) -> list[tuple[int, bool | None]]:
    return [(entry.trial.number, entry.tied) for entry in ranking(results)]


def test_unequal_lengths_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


def steps_study(by_steps: Mapping[int, Sequence[float]]) -> Results:
    trials = [trial(n, row, {STEPS: steps, "g": 5.0}) for n, (steps, row) in enumerate(by_steps.items())]
    return study(trials, {"g": [5.0], STEPS: list(by_steps)})


def drawn_twice(table: Sequence[Sequence[float]]) -> list[TrialResult]:
    """Trials whose second half of instances drew the pictures of the first half again."""
    return [
        TrialResult(
            number,
            {STEPS: 10 * (number + 1)},
            dict(enumerate([*row, *row])),
            {},
            {i: f"{number}/{i % len(row)}" for i in range(2 * len(row))},
        )
        for number, row in enumerate(table)
    ]


class TestOnePicture:
    """Instances for which a setting drew the same picture are one piece of evidence."""

    @given(tables(2))
    def test_pictures_drawn_twice_leave_every_number_as_it_is(self, table: list[list[float]]) -> None:
        axes = {STEPS: [10 * (n + 1) for n in range(len(table))]}
        once = study([trial(n, row, {STEPS: 10 * (n + 1)}) for n, row in enumerate(table)], axes)
        twice = study(drawn_twice(table), axes)
        assert [(e.score, e.behind, e.tied) for e in ranking(twice)] == [
            (e.score, e.behind, e.tied) for e in ranking(once)
        ]
        assert [(s.score, s.gain) for s in getattr(where_steps_stop_paying(twice), "values", ())] == [
            (s.score, s.gain) for s in getattr(where_steps_stop_paying(once), "values", ())
        ]
        first, *others = twice.trials
        for other in others:
            assert shared_difference(first, other) == shared_difference(
                once.trials[0], once.trials[other.number]
            )

    def test_a_pair_is_one_where_either_drew_one_picture(self) -> None:
        first = TrialResult(0, {"a": 0}, {0: 1.0, 1: 2.0, 2: 5.0}, {}, {0: "x", 1: "x", 2: "y"})
        second = TrialResult(1, {"a": 1}, {0: 0.0, 1: 0.0, 2: 0.0}, {}, {0: "p", 1: "q", 2: "q"})
        assert shared_difference(first, second) == Estimate(8 / 3, None, 1), "all three hang together"
        third = TrialResult(2, {"a": 2}, {0: 0.0, 1: 0.0, 2: 0.0}, {}, {0: "r", 1: "s", 2: "t"})
        found = shared_difference(first, third)
        assert found is not None
        assert (found.n, found.half_width) == (2, estimate([1.5, 5.0]).half_width)

    def test_the_report_says_how_many_pictures_there_are(self) -> None:
        text = report_text(study(drawn_twice([[3.0, 4.0, 5.0], [1.0, 1.0, 2.0]])))
        assert "over 6 instances, which drew 3 different pictures" in " ".join(text.split())
        assert "n = 3" in text


class TestSteps:
    def test_the_smallest_number_that_none_beats(self) -> None:
        found = where_steps_stop_paying(
            steps_study({30: [9.0, 11.1, 13.0], 3: [1.0, 2.0, 3.1], 10: [9.1, 10.9, 13.0]})
        )
        assert found is not None
        assert found.at == {"g": 5.0}
        assert [value.steps for value in found.values] == [3, 10, 30]
        assert found.values[0].gain is None
        assert found.values[1].gain == paired_difference([9.1, 10.9, 13.0], [1.0, 2.0, 3.1])
        assert found.enough == 10

    def test_a_slow_gain_counts_though_no_single_step_is_sure(self) -> None:
        found = where_steps_stop_paying(
            steps_study({10: [0.0, 0.0, 0.0], 20: [1.0, 0.0, 2.0], 30: [2.0, 2.1, 1.9]})
        )
        assert found is not None
        assert [value.gain.above_zero for value in found.values if value.gain] == [False, False]
        assert found.enough == 20  # 30 beats 10, and does not beat 20

    def test_steps_that_still_pay(self) -> None:
        found = where_steps_stop_paying(steps_study({10: [1.0, 2.0], 20: [2.0, 3.0]}))
        assert found is not None
        assert found.enough == 20

    def test_more_steps_that_harm_are_not_needed(self) -> None:
        found = where_steps_stop_paying(steps_study({10: [2.0, 3.0], 20: [1.0, 2.0]}))
        assert found is not None
        assert found.enough == 10

    def test_one_instance_has_gains_but_no_verdict(self) -> None:
        found = where_steps_stop_paying(steps_study({10: [1.0], 20: [2.0]}))
        assert found is not None
        assert found.values[1].gain == Estimate(1.0, None, 1)
        assert found.enough is None

    def test_only_at_the_other_settings_of_the_leader(self) -> None:
        results = grid({"g": [1, 2], STEPS: [10, 20]}, lambda **s: [s["g"] * 10.0 + s[STEPS], s[STEPS]])
        found = where_steps_stop_paying(results)
        assert found is not None
        assert found.at == {"g": 2}
        assert [value.score.mean for value in found.values] == [20.0, 30.0]

    def test_a_twin_answers(self) -> None:
        trials = [trial(0, [1.0, 2.0], {STEPS: 10, "g": 0.5}), trial(1, [5.0, 6.0], {STEPS: 20, "g": 1.0})]
        axes: dict[str, Sequence[object]] = {"g": [0.5, 1.0], STEPS: [10, 20]}

        def twin_of(settings: Settings) -> int | None:
            return 0 if settings[STEPS] == 10 else None

        found = where_steps_stop_paying(study(trials, axes, twin_of=twin_of))
        assert found is not None
        assert [value.score.mean for value in found.values] == [1.5, 5.5]

    def test_incomplete_numbers_of_steps_are_left_out(self) -> None:
        results = steps_study({10: [1.0, 2.0], 20: [3.0, 3.0], 30: [9.0]})
        found = where_steps_stop_paying(results)
        assert found is not None
        assert [value.steps for value in found.values] == [10, 20]

    def test_nothing_to_say(self) -> None:
        assert where_steps_stop_paying(steps_study({10: [1.0, 2.0]})) is None
        assert where_steps_stop_paying(table_study([[1.0, 2.0], [3.0, 4.0]])) is None
        assert where_steps_stop_paying(study([], {STEPS: [10, 20]}, instances=2)) is None


class TestAxes:
    def test_on_a_full_grid_effects_are_marginal_means_less_the_grand_mean(self) -> None:
        results = grid({"a": [1, 2], "b": [1, 2, 3]}, lambda a, b: [10.0 * a + b * b])
        effect = axis_effect(results, "b")
        # marginal means: 15 + b², grand mean 15 + 14/3
        assert effect.effects == pytest.approx({1: 1 - 14 / 3, 2: 4 - 14 / 3, 3: 9 - 14 / 3})
        assert effect.spread == pytest.approx(8)
        assert axis_effect(results, "a").spread == pytest.approx(10)
        assert axes_by_effect(results) == ("a", "b")

    def test_other_settings_do_not_pass_for_an_effect(self) -> None:
        # b does nothing; plain marginal means would say 100, as b = 2 was tried with the good a only
        trials = [
            trial(0, [0.0], {"a": 1, "b": 1}),
            trial(1, [150.0], {"a": 2, "b": 1}),
            trial(2, [150.0], {"a": 2, "b": 2}),
        ]
        results = study(trials, {"b": [1, 2], "a": [1, 2]})
        assert axis_effect(results, "b").spread == 0
        assert axes_by_effect(results) == ("a", "b")

    def test_a_trial_that_has_no_like_does_not_dilute_an_effect(self) -> None:
        trials = [
            trial(0, [0.0], {"a": 1, "b": 1}),
            trial(1, [10.0], {"a": 2, "b": 1}),
            trial(2, [7.0], {"a": 2, "b": 2}),
        ]
        assert axis_effect(study(trials, {"a": [1, 2], "b": [1, 2]}), "a").effects == {1: -5.0, 2: 5.0}

    def test_incomplete_trials_do_not_count(self) -> None:
        trials = [trial(0, [1.0, 1.0], {"a": 1}), trial(1, [90.0], {"a": 2}), trial(2, [2.0, 2.0], {"a": 3})]
        assert list(axis_effect(study(trials, {"a": [1, 2, 3]}), "a").effects) == [1, 3]

    def test_of_equal_effects_numbers_come_before_words_and_choices_before_constants(self) -> None:
        axes: dict[str, list[Value]] = {
            "one": [1],
            "word": ["x", "y"],
            "flag": [True, False],
            "p": [1, 2],
            "q": [1.0, 2.0],
        }
        results = grid(axes, lambda **_: [0.0])
        assert axes_by_effect(results) == ("p", "q", "word", "flag", "one")

    def test_words_of_larger_effect_come_first(self) -> None:
        results = grid({"n": [1, 2], "w": ["x", "y"]}, lambda n, w: [n + (5.0 if w == "y" else 0.0)])
        assert axes_by_effect(results) == ("w", "n")

    def test_an_unknown_axis(self) -> None:
        with pytest.raises(KeyError):
            axis_effect(table_study([[1.0]]), "nope")

    @given(tables(), st.randoms())
    def test_the_order_of_trials_does_not_matter(
        self, table: list[list[float]], chance: random.Random
    ) -> None:
        results = grid({"a": [1, 2], "b": [1, 2, 3]}, lambda a, b: table[(a + b) % len(table)])
        trials = list(results.trials)
        chance.shuffle(trials)
        assert axes_by_effect(replace(results, trials=trials)) == axes_by_effect(results)


class TestWriting:
    @pytest.mark.parametrize(
        ("estimates", "expected"),
        [
            ([Estimate(52.13, 3.24, 4)], 1),
            ([Estimate(0.3123, 0.0412, 4)], 3),
            ([Estimate(5213.0, 324.0, 4)], 0),
            ([Estimate(46.5555, None, 1)], 2),
            ([Estimate(46.5555, 0.0, 3)], 2),
            ([Estimate(1.0, 1e-12, 3)], 6),
            ([Estimate(0.0, None, 1)], 0),
            ([], 0),
        ],
    )
    def test_decimals(self, estimates: list[Estimate], expected: int) -> None:
        assert decimals(estimates) == expected

    def test_text(self) -> None:
        assert estimate_text(Estimate(52.13, 3.24, 4), 1) == "52.1 ± 3.2"
        assert estimate_text(Estimate(0.5, 0.25, 4), 2, signed=True) == "+0.50 ± 0.25"
        assert estimate_text(Estimate(52.13, None, 1), 1) == "52.1"


# Who left early, and the validation


def partly(number: int, scores: dict[int, float], **more: Any) -> TrialResult:
    return TrialResult(number, {"guidance_scale": number}, scores, more.pop("failures", {}), {}, **more)


LEADER = partly(0, {0: 50.0, 1: 40.0, 2: 45.0, 3: 47.0})


def raced(*trials: TrialResult, **more: Any) -> Results:
    return Results(
        "s", "clip_score", 4, {"guidance_scale": []}, [LEADER, *trials], lambda _: None, [], [], **more
    )


def test_trials_are_compared_over_the_instances_that_both_have() -> None:
    gap = shared_difference(LEADER, partly(1, {1: 39.0, 2: 43.0}))
    assert gap is not None
    assert (gap.mean, gap.n) == (1.5, 2)
    assert shared_difference(LEADER, partly(1, {})) is None


def test_who_left_for_certain_and_who_for_the_budgets_sake() -> None:
    found = left_early(
        raced(
            partly(1, {0: 20.0, 1: 11.0, 2: 14.0}),  # certainly worse
            partly(2, {0: 20.0}),  # one instance says nothing for certain
            partly(3, {0: 51.0, 1: 39.0}),  # may be as good
            partly(4, {0: 1.0, 1: 1.0}, failures={2: "all black"}),  # failed: it did not leave
            partly(5, {}),  # was never judged
            partly(6, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}),  # was judged on all
            partly(7, {}, looks=2),  # was only looked at
            partly(8, {0: 1.0, 1: 1.0}, looks=1),
            partly(9, {}, failures={0: "all black"}, looks=1),
        ),
        LEADER,
    )
    assert (found.certain, found.for_budget, found.at_looks) == (1, 4, 1)


def test_the_validation_compares_with_the_baseline_on_fresh_instances() -> None:
    best = partly(1, {}, validation={0: 10.0, 1: 12.0, 2: 14.0})
    half = partly(2, {}, validation={0: 99.0})
    baseline = partly(3, {}, validation={0: 8.0, 1: 9.0, 2: 13.0})
    found = validation(raced(best, half, baseline, baseline=3, fresh=3))
    assert [item.trial.number for item in found] == [1, 3]
    assert found[0].gain is not None
    assert (found[0].score.mean, found[0].gain.mean, found[0].gain.n) == (12.0, 2.0, 3)
    assert found[1].gain is None


def test_without_a_validation_there_is_none() -> None:
    assert validation(raced(partly(1, {}))) == ()


# Several objectives and constraints


def costly(number: int, score: float, seconds: float | None) -> TrialResult:
    measured = {} if seconds is None else {"gpu_seconds": dict.fromkeys(range(4), seconds)}
    return partly(number, dict.fromkeys(range(4), score), measured=measured)


BOTH: dict[str, Direction] = {"clip_score": "maximize", "gpu_seconds": "minimize"}


def of(trials: Sequence[TrialResult], **more: Any) -> Results:
    return Results("s", "clip_score", 4, {"guidance_scale": []}, trials, lambda _: None, [], [], **more)


def test_the_front_is_what_no_other_beats() -> None:
    trials = [
        costly(0, 50, 9.0),
        costly(1, 40, 3.0),
        costly(2, 39, 3.0),
        costly(3, 50, 10.0),
        costly(4, 9, 1.0),
    ]
    assert front(of(trials, objectives=BOTH)) == {0, 1, 4}
    assert front(of([*trials, costly(5, 99, None)], objectives=BOTH)) == {0, 1, 4}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_every_trial_off_the_front_is_beaten_by_one_on_it(points: list[tuple[int, int]]) -> None:
    trials = [costly(number, score, seconds) for number, (score, seconds) in enumerate(points)]
    on_front = front(of(trials, objectives=BOTH))
    assert on_front
    for number, (score, seconds) in enumerate(points):
        better = [
            n
            for n in on_front
            if points[n] != (score, seconds) and points[n][0] >= score and points[n][1] <= seconds
        ]
        assert bool(better) == (number not in on_front)


def test_trials_that_break_a_constraint_are_not_ranked() -> None:
    trials = [costly(0, 50, 9.0), costly(1, 40, 3.0), costly(2, 45, None)]
    found = ranking(of(trials, constraints=[Constraint("gpu_seconds", "<=", 3.0)]))
    assert [entry.trial.number for entry in found] == [1]
    assert [
        e.trial.number for e in ranking(of(trials, constraints=[Constraint("clip_score", ">=", 45)]))
    ] == [0, 2]


class TestDoubtedGain:
    @given(st.lists(st.floats(-30, 30).map(lambda x: round(x, 3)), min_size=2, max_size=24))
    def test_it_is_the_interval_of_half_an_instance_more_without_gain(self, gains: list[float]) -> None:
        found, plain = doubted_gain(gains, [0.0] * len(gains)), estimate(gains)
        total, weight = sum(gains), len(gains) + 0.5
        variance = (sum(gain * gain for gain in gains) - total**2 / weight) / (weight - 1)
        half = scipy.stats.t.ppf(0.975, weight - 1) * math.sqrt(max(0.0, variance) / weight)
        assert (found.mean, found.n) == (plain.mean, plain.n)
        assert found.half_width == pytest.approx(half + abs(plain.mean - total / weight), abs=1e-5)

    def test_a_gain_that_one_seed_in_many_loses_is_covered_whether_or_not_one_is_seen(self) -> None:
        truth = 24 * 15 / 16
        kept, lost = [24.0 + place % 3 - 1 for place in range(16)], [0.0]
        for gains in (kept, kept[:-1] + lost):
            found = doubted_gain(gains, [0.0] * 16)
            assert found.above_zero
            assert abs(found.mean - truth) <= (found.half_width or 0)
        plain = estimate(kept)
        assert abs(plain.mean - truth) > (plain.half_width or 0)

    @pytest.mark.parametrize("effect", [0.0, 0.3, 1.0, 3.0, 8.0])
    def test_of_gains_that_are_normal_it_covers_at_least_as_many_as_it_says(self, effect: float) -> None:
        draw = np.random.default_rng(0)
        found = [doubted_gain(row, [0.0] * 16) for row in draw.normal(effect, 1, (1500, 16)).tolist()]
        assert np.mean([abs(each.mean - effect) <= (each.half_width or 0) for each in found]) > 0.935
        if effect == 0:
            assert np.mean([bool(each.includes_zero) for each in found]) < 0.97, (
                "nor does it doubt everything"
            )

    @given(st.lists(st.floats(-9, 9).map(lambda x: round(x, 3)), min_size=8, max_size=24))
    def test_it_calls_hardly_more_ties_than_students_test(self, gains: list[float]) -> None:
        plain = estimate(gains)
        if doubted_gain(gains, [0.0] * len(gains)).includes_zero and plain.half_width:
            assert abs(plain.mean) <= 1.03 * plain.half_width

    def test_the_fewest_that_can_tell(self) -> None:
        assert [doubted_gain([5.0] * n, [0.0] * n).above_zero for n in (1, 2, FEWEST_FOR_A_GAIN)] == [
            None,
            False,
            True,
        ]
        assert doubted_gain([1.0, 2.0], [1.0, 2.0]).half_width == 0
        with pytest.raises(ValueError, match="no values"):
            doubted_gain([], [])
