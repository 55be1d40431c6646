"""What others wrote, prompts above all, in tables and pages: as text, which no spreadsheet and no browser obeys."""

import csv
import io
import re
from collections.abc import Iterable

from orchestrator.console import harmless

_FORMULA = re.compile(r"[=+\-@\t\n＝＋－＠]")
"""The first characters of cells that spreadsheets take for formulas, some of them after a tab or a new line."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def csv_text(rows: Iterable[Iterable[object]], lineterminator: str = "\r\n") -> str:
    """Rows as CSV. None is an empty cell.

    A text that a spreadsheet would take for a formula has an apostrophe before it, as people write it there, and a
    control character other than a tab or a new line is a question mark.
    """
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator=lineterminator)
    for row in rows:
        table.writerow([_cell(value) for value in row])
    return stream.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = harmless(value.replace("\r\n", "\n"))
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def code(text: str) -> str:
    """A text as code in Markdown, also in a table's cell: nothing in it is markup, a link or HTML."""
    line = re.sub(r"\s+", " ", harmless(text)).strip().replace("|", "¦") or " "
    fence = "`" * (1 + max(map(len, re.findall(r"`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"
