"""Racing: which instances a trial is judged on next, and whether it has lost against the leader already."""

import math
from collections.abc import Sequence

LOST_BELOW = 0.1
"""The p-value under which a trial has lost against the leader.

A wrong drop costs one candidate and a missed one costs the rest of its images, so the test is a lax one.
"""


def smallest_significant(alpha: float = LOST_BELOW) -> int:
    """The fewest pairs with which the one-sided signed-rank test can come out below `alpha`.

    With n pairs that all point one way its p-value is 2⁻ⁿ (Wilcoxon, 1945), and it cannot be less.
    Raises ValueError unless 0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    return next(pairs for pairs in range(1, 1100) if 0.5**pairs < alpha)


def stages(instances: int) -> tuple[int, ...]:
    """How many instances a trial has been dealt after each stage: 4, 8, 16, … and at last all of them.

    Before the first stage is over no test can be significant, and each stage doubles what is known, as in
    successive halving (Jamieson and Talwalkar, arXiv 1502.07943): few tests, hence few winners dropped
    by chance.
    """
    ends = [smallest_significant()]
    while ends[-1] < instances:
        ends.append(2 * ends[-1])
    return (*ends[:-1], instances)


def has_lost(gains: Sequence[float], alpha: float = LOST_BELOW) -> bool:
    """Whether a trial is worse than the leader, by Wilcoxon's one-sided signed-rank test (scipy's).

    `gains` are the paired differences trial − leader on the instances that both have, in units of the
    score and with their sign turned where less is better. Differences of zero say nothing either way.
    """
    unequal = [gain for gain in gains if gain != 0]
    if len(unequal) < smallest_significant(alpha):
        return False
    from scipy.stats import wilcoxon  # half a second, which a study without races need not wait for

    return bool(wilcoxon(unequal, alternative="less").pvalue < alpha)


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value, without rounding on the way."""
    return math.fsum(values) / len(values)
