"""The surrogate: what it makes of settings, that its gradient is right, and that it neither invents nor forgets."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad

from search_spaces.requests import Settings
from search_spaces.strategies.surrogate import (
    Outcomes,
    Surrogate,
    _Covariance,
    coordinates,
    draws,
    matern,
    worth_keeping,
)
from tests.search_spaces.examples import law

LINE: list[Settings] = [{"guidance_scale": value} for value in range(30)]


def told(settings: Any, instances: Any, scores: Any, looks: Any = None) -> Outcomes:
    count = len(scores)
    return Outcomes(
        np.array(settings),
        np.array(instances),
        np.array(scores, float),
        np.zeros(count, bool) if looks is None else np.array(looks),
    )


def test_numbers_lie_on_a_ladder_and_words_do_not() -> None:
    settings: list[Settings] = [
        {"guidance_scale": 20, "negative_prompt": "", "strength": 1.0, "eta": 0.5},
        {"guidance_scale": 1, "negative_prompt": "cartoon", "strength": 1.0, "eta": None},
        {"guidance_scale": 7.5, "negative_prompt": "", "strength": 1.0},
    ]
    points, ordered = coordinates(settings)
    assert points.tolist() == [[1.0, 0.0, 0.5], [0, 1, 0], [0, 1, 1]]
    assert ordered.tolist() == [True, False, False]
    alike, order = coordinates([{"a": 1}, {"a": 1}])
    assert alike.shape == (0, 2)
    assert order.shape == (0,)


def test_a_switch_is_no_number() -> None:
    _, ordered = coordinates([{"use_karras_sigmas": True}, {"use_karras_sigmas": False}])
    assert ordered.tolist() == [False]


def test_the_kernel_is_one_at_no_distance_and_falls_with_it() -> None:
    distances = np.array([[0.0, 0.1, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]])
    alike = matern(distances, np.array([0.5, 2.0]))
    assert alike[0] == 1
    assert all(np.diff(alike) < 0)
    ratio = math.sqrt(3) * 0.1 / 0.5
    assert alike[1] == pytest.approx((1 + ratio) * math.exp(-ratio))


def test_the_gradient_is_that_of_the_loss() -> None:
    draw = np.random.default_rng(0)
    settings: list[Settings] = [
        {"a": a, "b": b, "c": str(c)} for a in range(4) for b in (1, 9) for c in (0, 1)
    ]
    surrogate = Surrogate(settings)
    places, instances = draw.integers(0, len(settings), 40), draw.integers(0, 5, 40)
    known = told(places, instances, draw.standard_normal(40), draw.random(40) < 0.3)
    covariance = _Covariance(known, surrogate._distances(places, places))
    for _ in range(3):
        logs = surrogate._prior + 0.3 * draw.standard_normal(len(surrogate._prior))
        assert check_grad(lambda x: covariance.loss(x)[0], lambda x: covariance.loss(x)[1], logs) < 1e-3


def test_neighbours_share_what_one_of_them_was_told() -> None:
    draw = np.random.default_rng(1)
    truth = 20 * np.sin(np.arange(30) / 6)
    seen, instances = np.arange(0, 30, 3), np.arange(10) % 4
    known = told(seen, instances, truth[seen] + 5 * instances + draw.standard_normal(10))
    mean, covariance = Surrogate(LINE).values(known, np.arange(30))
    assert np.corrcoef(mean, truth)[0, 1] > 0.9
    assert np.argmax(mean) in range(7, 12)
    assert covariance[3, 3] <= covariance[4, 4] + 1e-6, "what was told is known best"


def test_where_neighbours_tell_nothing_the_order_is_that_of_the_means() -> None:
    draw = np.random.default_rng(2)
    own = 10 * draw.standard_normal(30)
    places, instances = np.repeat(np.arange(30), 4), np.tile(np.arange(4), 30)
    scores = own[places] + 8.0 * instances + draw.standard_normal(120)
    mean, _ = Surrogate(LINE).values(told(places, instances, scores), np.arange(30))
    means = scores.reshape(30, 4).mean(axis=1)
    assert np.corrcoef(mean, means)[0, 1] > 0.99
    assert mean.argmax() == means.argmax()


def test_scores_that_are_all_equal_are_a_tie() -> None:
    mean, _ = Surrogate(LINE).values(told([0, 5, 9], [0, 0, 1], [3.0, 3.0, 3.0]), np.arange(30))
    assert mean.tolist() == pytest.approx([3.0] * 30)


@pytest.mark.parametrize(("shift", "scale"), [(1000.0, 0.01), (-3.0, 100.0), (0.0, 7.0)])
def test_units_change_nothing_but_themselves(shift: float, scale: float) -> None:
    scores = np.array([1.0, 3.0, 2.0, 7.0, 5.0])
    places, instances, every = [0, 8, 15, 22, 29], [0, 1, 0, 1, 0], np.arange(30)
    mean, covariance = Surrogate(LINE).values(told(places, instances, scores), every)
    other, wide = Surrogate(LINE).values(told(places, instances, shift + scale * scores), every)
    assert other == pytest.approx(shift + scale * mean, rel=1e-2, abs=1e-2 * scale)
    assert np.diag(wide) == pytest.approx(scale**2 * np.diag(covariance), rel=0.05)


def test_the_same_outcomes_give_the_same_values() -> None:
    known = told([0, 8, 15], [0, 1, 2], [1.0, 3.0, 2.0])
    first, second = (Surrogate(LINE).values(known, np.arange(30)) for _ in range(2))
    assert (first[0] == second[0]).all()
    assert (draws(*first) == draws(*second)).all()


@law
@given(st.integers(1, 20), st.integers(0, 5), st.floats(0, 3), st.integers(0, 50))
def test_what_is_kept_is_enough_or_all_that_may_be(count: int, least: int, loss: float, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((64, count))
    most = max(least, 8)
    kept = worth_keeping(values, loss, least, most)
    assert len(set(kept)) == len(kept)
    assert min(least, count) <= len(kept) <= most
    lost = values.max(axis=1).mean() - (values[:, kept].max(axis=1).mean() if kept else -math.inf)
    assert lost <= loss + 1e-9 or len(kept) in (most, count)
    if kept:
        assert kept[0] == values.mean(axis=0).argmax()


def test_a_twin_is_not_worth_keeping() -> None:
    best = np.random.default_rng(0).standard_normal(64) + 1
    other = np.random.default_rng(1).standard_normal(64)
    assert worth_keeping(np.stack([best, best, other], axis=1), 0.01, 1, 3) == [0, 2]


def test_scores_are_foretold_where_neighbours_are_alike_and_not_elsewhere() -> None:
    draw = np.random.default_rng(3)
    line, own = Surrogate(LINE), Surrogate(LINE)
    every, instances = np.arange(30), np.arange(30) % 4
    line.values(told(every, instances, 20 * np.sin(every / 6) + draw.standard_normal(30)), every)
    own.values(told(every, instances, 20 * draw.standard_normal(30)), every)
    assert line.foretells > 0.8
    assert own.foretells < 0.5
