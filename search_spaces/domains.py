"""What one setting may be: a list of values, or a range of numbers."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from search_spaces.requests import Value


class _Domain(BaseModel):
    """What all domains share: `when` names values of other settings, without one of which this one is unused."""

    model_config = ConfigDict(frozen=True)
    when: dict[str, tuple[Value, ...]] = {}

    def applies(self, settings: Mapping[str, Value]) -> bool:
        """Whether this setting is used beside the others."""
        return all(settings.get(name) in values for name, values in self.when.items())


class Choices(_Domain):
    """A list of values. Numeric lists are ordered for samplers too: position means more or less."""

    kind: Literal["choices"] = "choices"
    values: tuple[Value, ...]

    @property
    def ordered(self) -> bool:
        """Whether every value is a number, so that neighbours in the list are neighbours in effect."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    def points(self) -> Sequence[Value]:
        """The values in the file's order."""
        return self.values


class FloatRange(_Domain):
    """Every float from `low` to `high`, both included; on a lattice with `step`, by ratio with `log`."""

    kind: Literal["float_range"] = "float_range"
    low: float
    high: float
    step: float | None = None
    log: bool = False

    def points(self) -> Sequence[Value] | None:
        """The lattice, ascending; None where the range is continuous."""
        return None if self.step is None else _lattice(self.low, self.high, self.step)


@lru_cache(maxsize=64)
def _lattice(low: float, high: float, step: float) -> tuple[float, ...]:
    """low, low + step, … as far as high, reckoned in decimals: 0.1 + 2 × 0.1 is 0.3."""
    first, last, gap = Decimal(repr(low)), Decimal(repr(high)), Decimal(repr(step))
    return tuple(float(first + i * gap) for i in range(int((last - first) / gap) + 1))


class IntRange(_Domain):
    """Every integer from `low` to `high`, both included, `step` apart; by ratio with `log`."""

    kind: Literal["int_range"] = "int_range"
    low: int
    high: int
    step: int = 1
    log: bool = False

    def points(self) -> Sequence[Value]:
        """The integers, ascending."""
        return range(self.low, self.high + 1, self.step)


Domain = Annotated[Choices | FloatRange | IntRange, Field(discriminator="kind")]


def offers(domain: Domain, value: Value) -> bool:
    """Whether a value is one of a list's, or of a range's: on its lattice, where it has one."""
    return bool(spellings(domain, value))


def spellings(domain: Domain, value: Value) -> list[Value]:
    """A value as a domain itself writes it (7.0 as 7, where its list has that); nothing where it has none such."""
    if isinstance(domain, Choices):
        same = (each for each in domain.values if isinstance(value, bool) == isinstance(each, bool))
        return [each for each in same if each == value]
    if not spans(domain, value):
        return []
    assert isinstance(value, int | float)
    if isinstance(domain, IntRange):
        return [int(value)] if value in domain.points() else []
    if domain.step is None:
        return [float(value)]
    points = _lattice(domain.low, domain.high, domain.step)
    place = bisect_left(points, value)
    return [each for each in points[place : place + 1] if each == value]


def spans(domain: Domain, value: Value) -> bool:
    """Whether a number lies between the smallest and the largest that a domain offers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not isinstance(domain, Choices):
        return domain.low <= value <= domain.high
    numbers = [each for each in domain.values if isinstance(each, int | float) and not isinstance(each, bool)]
    return bool(numbers) and min(numbers) <= value <= max(numbers)


def landmarks(domain: FloatRange, others: Iterable[Domain]) -> Sequence[float]:
    """Values of a continuous range of which each differs from its neighbours in which other domains contain it.

    Those are the ends of all, as far as they lie in the range, and the floats beside them.
    """
    ends = [domain.low, domain.high]
    for other in others:
        values = other.values if isinstance(other, Choices) else (other.low, other.high)
        ends += [value for value in values if isinstance(value, int | float)]
    near = {math.nextafter(end, to) for end in ends for to in (-math.inf, end, math.inf)}
    return sorted(value for value in near if domain.low <= value <= domain.high)


def contains(domain: Domain, value: Value) -> bool:
    """Whether a value lies in a list or between the ends of a range, both included."""
    if isinstance(domain, Choices):
        return value in domain.values
    return isinstance(value, int | float) and domain.low <= value <= domain.high
