"""Texts of others in CSV and Markdown are text: no formula, no markup, and numbers are numbers."""

import csv
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cells import code, csv_text

FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\n=1",
    '=HYPERLINK("http://x","y")',
    "-2+3|cmd",
    "＝1",
]


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_compute_has_an_apostrophe_before_it(text: str) -> None:
    assert read(csv_text([[text, "a", text]])) == [["'" + text, "a", "'" + text]]


@pytest.mark.parametrize(
    "text", ["a green dragon", "7 = 7", "a\nb", "ein 'Drache'", 'a;b,c"d', "", "-1.5", "+3", "1e-3"]
)
def test_other_texts_and_written_numbers_are_as_they_were(text: str) -> None:
    assert read(csv_text([["x", text]])) == [["x", text]]


def test_numbers_are_numbers_and_nothing_is_nothing() -> None:
    assert csv_text([[-1.5, -3, None, True, 1e-7, -math.inf]]) == "-1.5,-3,,True,1e-07,-inf\r\n"


@given(st.lists(st.lists(st.text() | st.sampled_from(FORMULAS), min_size=2, max_size=3), max_size=4))
def test_no_text_becomes_a_formula_a_control_character_or_another_cell(rows: list[list[str]]) -> None:
    found = read(csv_text(rows))
    assert [len(row) for row in found] == [len(row) for row in rows]
    for cell in (cell for row in found for cell in row):
        assert not cell.startswith(("=", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
        assert cell[:1] not in "+-" or not cell or math.isfinite(float(cell))
        assert not any((ord(letter) < 32 and letter not in "\n\t") or ord(letter) == 127 for letter in cell)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("toyworld", "`toyworld`"),
        ("<img src=x onerror=alert(1)>", "`<img src=x onerror=alert(1)>`"),
        ("a`b", "``a`b``"),
        ("`a``", "``` `a`` ```"),
        ("a|b\n\n# title", "`a¦b # title`"),
        ("\x1b[2J", "`?[2J`"),
        ("", "` `"),
    ],
)
def test_a_text_in_markdown_is_code(text: str, shown: str) -> None:
    assert code(text) == shown


@given(st.text(alphabet="`a|<\n \x00"))
def test_no_text_ends_its_code_early(text: str) -> None:
    shown = code(text)
    fence = len(shown) - len(shown.lstrip("`"))
    inside = shown[fence:-fence]
    assert shown.endswith("`" * fence)
    assert all(len(run) < fence for run in re.findall("`+", inside))
    assert "\n" not in inside
    assert "|" not in inside
