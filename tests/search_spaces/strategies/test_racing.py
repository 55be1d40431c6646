from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search_spaces.strategies.racing import LOST_BELOW, has_lost, mean, smallest_significant, stages
from tests.search_spaces.examples import law

GAINS = st.lists(st.integers(-9, 9).map(float), max_size=7)
"""Few enough for scipy to be exact in spite of ties, which is slow for more."""


@law
@given(st.floats(0.002, 0.9))
def test_fewer_pairs_than_the_smallest_are_never_significant_and_as_many_can_be(alpha: float) -> None:
    fewest = smallest_significant(alpha)
    assume(min(abs(0.5**pairs - alpha) for pairs in (fewest, fewest - 1)) > 1e-9)
    assert has_lost([-float(n) for n in range(1, fewest + 1)], alpha)
    assert not has_lost([-float(n) for n in range(1, fewest)], alpha)


@pytest.mark.parametrize(("alpha", "pairs"), [(0.6, 1), (0.5, 2), (0.1, 4), (0.05, 5), (0.01, 7)])
def test_the_smallest_number_of_pairs(alpha: float, pairs: int) -> None:
    assert smallest_significant(alpha) == pairs


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_a_level_that_is_no_probability_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        smallest_significant(alpha)


@given(st.integers(1, 3000))
def test_stages_begin_where_a_test_can_tell_double_and_end_with_all(instances: int) -> None:
    ends = stages(instances)
    assert ends[0] == min(smallest_significant(LOST_BELOW), instances)
    assert ends[-1] == instances
    assert all(a < b <= 2 * a for a, b in pairwise(ends))
    assert stages(16) == (4, 8, 16)


@law
@given(GAINS)
def test_of_two_trials_one_at_most_has_lost(gains: list[float]) -> None:
    assert not (has_lost(gains) and has_lost([-gain for gain in gains]))


@law
@given(GAINS, st.integers(0, 20), st.sampled_from([0.25, 4.0]))
def test_zeros_and_units_decide_nothing(gains: list[float], zeros: int, unit: float) -> None:
    assert has_lost([unit * gain for gain in gains] + [0.0] * zeros) == has_lost(gains)


@pytest.mark.parametrize(
    ("gains", "lost"),
    [
        ([], False),
        ([-1, -2, -3], False),
        ([-1, -2, -3, 0], False),
        ([0] * 16, False),
        ([-4, -4, -4, -4], True),  # p = 1/16
        ([1, -2, -3, -4], False),  # p = 2/16
        ([1, -2, -3, -4, -5], True),  # p = 2/32
        ([5, -1, -2, -3, -4], False),  # p = 10/32
    ],
)
def test_the_test_is_exact_where_pairs_are_few(gains: list[float], lost: bool) -> None:
    assert has_lost(gains) is lost


def test_a_mean_is_exact() -> None:
    assert mean([0.1] * 10) == 0.1
