"""Whatever others wrote is printed as text: a terminal obeys none of it."""

import io

import pytest
from rich.text import Text

from orchestrator import cli
from orchestrator.console import Console

EVIL = "a \x1b]52;c;ZXZpbA==\x1b\\ \x1b[2J [red]cat[/red] <script>"
SHOWN = "a ?]52;c;ZXZpbA==?\\ ?[2J [red]cat[/red] <script>"


@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_are_shown_and_not_obeyed(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    cli._print_rows(console, [("prompt", EVIL)])
    console.print(Text(EVIL, style="bold"))
    console.print("\x9b2J\x7f\tx", markup=False)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count(SHOWN) == 2
    assert ("\x1b[1m" in printed) == terminal, "its own style is a terminal's"
    assert "\x1b]" not in printed
    assert "?2J?" in printed
    assert "\x9b" not in printed


def test_the_name_of_a_file_may_be_any_bytes() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=200)
    cli._print_rows(console, [("written", "r\udce9.yaml")])
    console.file.seek(0)
    assert console.file.read() == "written: r\\xe9.yaml\n"
