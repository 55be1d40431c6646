"""Whatever others wrote is printed as text: a terminal obeys none of it."""

import ast
import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from orchestrator import cli
from orchestrator.console import Console, as_source

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


SAYING = """
import sys
from orchestrator import cli
from orchestrator.console import Console, print_in_any_encoding
print_in_any_encoding()
cli._print_rows(Console(width=200), [("best", "46 ± 5.5, 2 × 3 → “a…”, λ 猫")])
"""


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b'best: 46 +- 5.5, 2 x 3 -> "a...", ? ?\n'),
        ("latin-1", b'best: 46 \xb1 5.5, 2 \xd7 3 -> "a...", ? ?\n'),
        ("utf-8", "best: 46 ± 5.5, 2 × 3 → “a…”, λ 猫\n".encode()),
        ("utf8:strict", "best: 46 ± 5.5, 2 × 3 → “a…”, λ 猫\n".encode()),
    ],
)
def test_characters_that_an_output_lacks_become_others(encoding: str, printed: bytes) -> None:
    """As in batch systems, whose jobs have no locale."""
    ended = subprocess.run(
        [sys.executable, "-c", SAYING],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, printed, b"")


@pytest.mark.parametrize("command", ["", "run", "submit", "score", "comet", "catalog"])
def test_the_help_is_printed_in_any_encoding(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *command.split(), "--help"],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


@given(st.text())
def test_a_script_means_the_same_in_an_output_without_utf_8(prompt: str) -> None:
    written = as_source(f"prompt={prompt!r}", "latin-1").encode("latin-1").decode("ascii")
    assert ast.literal_eval(written.removeprefix("prompt=")) == prompt
