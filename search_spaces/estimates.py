"""Means over instances and how sure they are.

Every interval is a two-sided 95 % Student-t interval over instances; two trials are compared by the mean of their
differences, instance by instance (the paired t-test: Student, "The probable error of a mean", Biometrika 1908).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


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
