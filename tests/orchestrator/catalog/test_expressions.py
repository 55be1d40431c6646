"""Conditions on rows mean what Python means by them, also where a row has no value."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog.expressions import filtered

Row = Mapping[str, object]
Said = tuple[str, Callable[[Row], bool]]
"""A condition's text, and what it says of a row in Python's own words."""

NUMBERS, TEXTS = (None, 1, 2, 3), (None, "", "cartoon", "naïve 'quotes'")
ROWS: list[dict[str, object]] = [{"number": n, "text": t} for n in NUMBERS for t in TEXTS]
TABLE = pa.Table.from_pylist(ROWS, pa.schema([("number", pa.int64()), ("text", pa.string())]))
OPERATORS: dict[str, Callable[[Any, Any], object]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">=": operator.ge,
}


def compared(name: str, how: str, value: object) -> Said:
    def of(row: Row) -> bool:
        found = row[name]
        if how in ("<", ">=") and (found is None or value is None):
            return False
        return bool(OPERATORS[how](found, value))

    return f"{name} {how} {value!r}", of


def contained(name: str, how: str, values: list[object]) -> Said:
    return f"{name} {how} {values!r}", lambda row: (row[name] in values) == (how == "in")


def negated(said: Said) -> Said:
    return f"not ({said[0]})", lambda row: not said[1](row)


def combined(first: Said, how: str, second: Said) -> Said:
    if how == "and":
        return f"({first[0]}) and ({second[0]})", lambda row: first[1](row) and second[1](row)
    return f"({first[0]}) or ({second[0]})", lambda row: first[1](row) or second[1](row)


def comparisons(name: str, values: tuple[object, ...]) -> st.SearchStrategy[Said]:
    one = st.sampled_from(values)
    several = st.lists(one, max_size=3)
    return st.builds(compared, st.just(name), st.sampled_from(list(OPERATORS)), one) | st.builds(
        contained, st.just(name), st.sampled_from(["in", "not in"]), several
    )


CONDITIONS = st.recursive(
    comparisons("number", NUMBERS) | comparisons("text", TEXTS),
    lambda parts: (
        st.builds(negated, parts) | st.builds(combined, parts, st.sampled_from(["and", "or"]), parts)
    ),
    max_leaves=5,
)


@given(CONDITIONS)
def test_a_condition_holds_where_it_holds_in_python(said: Said) -> None:
    text, holds = said
    assert filtered(TABLE, text).to_pylist() == [row for row in ROWS if holds(row)]


@pytest.mark.parametrize(
    "same",
    [
        ("text != 'cartoon'", "text not in ['cartoon']", "not text == 'cartoon'", "not text in ['cartoon']"),
        ("text is None", "text == None", "None == text", "text in [None]", "not text is not None"),
        ("number + 1 > 2", "not (number + 1 <= 2) and number is not None", "1 < number <= 3"),
    ],
)
def test_what_says_the_same_finds_the_same_rows(same: tuple[str, ...]) -> None:
    first, *others = [filtered(TABLE, text).to_pylist() for text in same]
    assert first
    assert others == [first] * len(others)


def test_a_column_of_truths_is_a_condition() -> None:
    table = pa.table({"karras": [True, False, None]})
    assert filtered(table, "karras")["karras"].to_pylist() == [True]
    assert filtered(table, "not karras")["karras"].to_pylist() == [False, None]
    assert filtered(table, "karras == True")["karras"].to_pylist() == [True]
