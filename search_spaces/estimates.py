"""Means over instances and how sure they are.

Every interval is a two-sided 95 % Student-t interval over instances; two trials are compared by the mean of their
differences, instance by instance (the paired t-test: Student, "The probable error of a mean", Biometrika 1908).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95

DOUBT = 0.5
"""Of an observation without gain, by which the claim of a gain is doubted.

As much as Jeffreys' prior adds to failures that nobody has seen (Brown, Cai and DasGupta, "Interval estimation for a
binomial proportion", Statistical Science 2001).
"""

FEWEST_FOR_A_GAIN = 3
"""Instances from which on a doubted gain can be told from none."""


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` values, one per instance, and half the width of its 95 % interval, in their unit.

    `half_width` is None for one value, whose spread nobody knows; it is 0 for equal values.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def includes_zero(self) -> bool | None:
        """Whether the interval includes 0; None where there is no interval."""
        return None if self.half_width is None else abs(self.mean) <= self.half_width

    @property
    def below_zero(self) -> bool | None:
        """Whether the whole interval lies below 0; None where there is no interval."""
        return None if self.half_width is None else self.mean < -self.half_width

    @property
    def above_zero(self) -> bool | None:
        """Whether the whole interval lies above 0; None where there is no interval."""
        return None if self.half_width is None else self.mean > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean ± t(0.975, n − 1) · s / √n, s the sample standard deviation. Raises ValueError for no values."""
    n = len(values)
    if n == 0:
        raise ValueError("no values have no mean")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    if min(values) == max(values):  # the rounding of a mean must not make a spread
        return Estimate(values[0], 0.0, n)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(mean, quantile * deviation / math.sqrt(n), n)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The estimate of first − second over the same instances. Raises ValueError for unequal lengths."""
    return estimate([a - b for a, b in zip(first, second, strict=True)])


def doubted_gain(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The paired difference as a claim about instances that nobody has seen: its interval is the wider for a doubt.

    Where one seed in many loses all of a gain, few instances hold none that does; their t-interval is narrow and lies
    beside the truth. So it reckons with `DOUBT` of an instance more, on which first and second are alike: with n the
    number, d the differences, N = n + `DOUBT` and m = Σd / N it is m ± t(0.975, N − 1) · s / √N, s² = (Σ(d − m)² +
    `DOUBT` · m²) / (N − 1), extended to be as wide on both sides of the mean of d. Whether it includes 0 is hardly
    changed by that; it is the less so the larger n. Raises ValueError as `paired_difference` does.
    """
    plain = paired_difference(first, second)
    if plain.half_width is None:
        return plain
    weight = plain.n + DOUBT
    middle = plain.mean * plain.n / weight
    squares = [(a - b - middle) ** 2 for a, b in zip(first, second, strict=True)]
    deviation = math.sqrt((math.fsum(squares) + DOUBT * middle**2) / (weight - 1))
    half = float(stdtrit(weight - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(weight)
    return Estimate(plain.mean, half + abs(plain.mean - middle), plain.n)
