import time
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from search_spaces.domains import Choices, Domain, FloatRange, IntRange, offers, spans, spellings
from search_spaces.requests import Value
from tests.search_spaces.examples import law


@given(
    low=st.integers(-(10**6), 10**6),
    gap=st.integers(1, 10**4),
    count=st.integers(1, 200),
    digits=st.integers(0, 9),
)
@law
def test_a_float_lattice_has_the_numbers_a_person_would_write(
    low: int, gap: int, count: int, digits: int
) -> None:
    unit = Decimal(1).scaleb(-digits)
    written = [float((low + i * gap) * unit) for i in range(count)]
    domain = FloatRange(low=written[0], high=written[-1], step=float(gap * unit))
    assert list(domain.points() or ()) == written


@given(
    low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), share=st.floats(1e-3, 2), digits=st.integers(3, 12)
)
@law
def test_a_float_lattice_ascends_within_its_range(
    low: float, width: float, share: float, digits: int
) -> None:
    low, high, step = round(low, digits), round(low + width, digits), round(width * share, digits)
    if not (low < high and step > 0):
        return
    points = [float(str(point)) for point in FloatRange(low=low, high=high, step=step).points() or ()]
    assert points[0] == low
    assert all(a < b for a, b in pairwise(points))
    assert points[-1] <= high
    assert Decimal(repr(high)) < Decimal(repr(low)) + len(points) * Decimal(repr(step))


@pytest.mark.parametrize(
    ("low", "high", "step", "points"),
    [
        (0.1, 0.4, 0.1, [0.1, 0.2, 0.3, 0.4]),
        (0.0, 1.0, 0.3, [0.0, 0.3, 0.6, 0.9]),
        (0.0, 1e-11, 5e-12, [0.0, 5e-12, 1e-11]),
        (1.0, 2.0, 5.0, [1.0]),
        (0.2, 1.0, 0.2, [0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_float_lattices(low: float, high: float, step: float, points: list[float]) -> None:
    assert list(FloatRange(low=low, high=high, step=step).points() or ()) == points


def test_a_range_without_step_has_no_lattice() -> None:
    assert FloatRange(low=0, high=1).points() is None
    assert FloatRange(low=0.1, high=1, log=True).points() is None


@given(low=st.integers(-1000, 1000), width=st.integers(0, 1000), step=st.integers(1, 50))
@law
def test_an_integer_lattice(low: int, width: int, step: int) -> None:
    points = list(IntRange(low=low, high=low + width, step=step).points())
    assert points == [low + i * step for i in range(width // step + 1)]


def test_an_integer_lattice_takes_no_memory() -> None:
    begun = time.perf_counter()
    points = IntRange(low=1, high=10**12).points()
    assert len(points) == 10**12
    assert points[10**11] == 10**11 + 1
    assert time.perf_counter() - begun < 1


def test_a_list_keeps_the_order_of_the_file() -> None:
    assert list(Choices(values=(7.5, 1, 3)).points()) == [7.5, 1, 3]


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        ((3, 1.5), True),
        (("a", "b"), False),
        ((1, "a"), False),
        ((True, False), False),
        ((1, None), False),
        ((4,), True),
    ],
)
def test_only_numbers_have_an_order(values: tuple[Value, ...], ordered: bool) -> None:
    assert Choices(values=values).ordered is ordered


@pytest.mark.parametrize(
    ("domain", "offered", "spanned", "neither"),
    [
        (Choices(values=(3, 1, 7.5)), [1, 3.0, 7.5], [2, 7.25], [0.5, 8, True, "1", None]),
        (Choices(values=("", None, True)), ["", None, True], [], [1, "x", 0.5]),
        (Choices(values=(0, False, 4)), [0, False, 4], [1], [True]),
        (FloatRange(low=0.1, high=0.7, step=0.1), [0.1, 0.3, 0.7], [0.25], [0.05, 0.8, None, "0.3"]),
        (FloatRange(low=0.5, high=2), [0.5, 1.234, 2], [], [0.4, 2.1, True]),
        (IntRange(low=1, high=9, step=4), [1, 5, 9.0], [2, 8.5], [0, 13, True]),
    ],
)
def test_what_a_domain_offers_and_what_lies_between(
    domain: Domain, offered: list[Value], spanned: list[Value], neither: list[Value]
) -> None:
    assert [offers(domain, value) for value in [*offered, *spanned, *neither]] == [True] * len(offered) + [
        False
    ] * len([*spanned, *neither])
    assert all(spans(domain, value) for value in spanned)
    assert not any(spans(domain, value) for value in neither)


@pytest.mark.parametrize(
    "domain",
    [
        Choices(values=(1, 1.5, 7.0, True, None, "", "cartoon", "é", 2**53 + 1)),
        FloatRange(low=0.1, high=0.7, step=0.1),
        FloatRange(low=1e-9, high=3.5, log=True),
        IntRange(low=1, high=64, log=True),
        IntRange(low=1, high=64, step=3),
    ],
)
def test_a_domain_survives_json(domain: Domain) -> None:
    adapter: TypeAdapter[Domain] = TypeAdapter(Domain)
    again = adapter.validate_json(adapter.dump_json(domain))
    assert again == domain
    assert type(again) is type(domain)
    before, after = domain.points(), again.points()
    assert (before is None) == (after is None)
    assert [(type(v), v) for v in before or ()] == [(type(v), v) for v in after or ()]


@given(
    st.one_of(
        st.builds(
            lambda low, n: IntRange(low=low, high=low + n, step=2), st.integers(-3, 3), st.integers(1, 9)
        ),
        st.builds(
            lambda n, step: FloatRange(low=0.1, high=0.1 + n, step=step),
            st.floats(0.1, 9),
            st.floats(0.05, 2),
        ),
        st.lists(st.integers(0, 3) | st.sampled_from([True, None, "", "7", 2.0]), min_size=1, max_size=4).map(
            lambda values: Choices(values=tuple(values))
        ),
    ),
    st.integers(0, 9) | st.floats(0, 9) | st.sampled_from([True, None, "", "7"]),
)
@law
def test_a_domain_spells_what_it_offers_and_nothing_else(domain: Domain, other: Value) -> None:
    points = list(domain.points() or ())
    for value in points:
        found = spellings(domain, value)
        assert found
        assert all(each in points and each == value for each in found)
        assert {type(each) for each in found} <= {type(each) for each in points}
    if not any(other == each and isinstance(other, bool) == isinstance(each, bool) for each in points):
        assert spellings(domain, other) == []
