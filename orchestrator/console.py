"""A console that prints what others wrote, prompts from a shared catalog among it, as text and nothing else."""

import codecs
import io
import sys
from collections.abc import Iterable

from rich import console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from search_spaces.errors import NO_UTF8

_HARMLESS = "\n\t"
_CONTROLS = {code: "?" for code in (*range(32), *range(127, 160)) if chr(code) not in _HARMLESS} | NO_UTF8
"""Characters that a terminal obeys in place of printing them, ESC begins the worst, and what no output takes."""


def harmless(text: str) -> str:
    """A text in which nothing is obeyed by a terminal, and every character has a width."""
    return text.translate(_CONTROLS)


_SPELLED = {
    "±": "+-",
    "×": "x",
    "→": "->",
    "−": "-",
    "–": "-",
    "…": "...",
    "≤": "<=",
    "≥": ">=",
    "·": "*",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
}
"""How characters of ours are written where an output has no others than ASCII's."""


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLED.get(each, "?") for each in error.object[error.start : error.end]), error.end


def print_in_any_encoding() -> None:
    """Characters that stdout and stderr lack become others from now on, as in a locale without UTF-8."""
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_utf8(stream.encoding):
            stream.reconfigure(errors="spelled")


def as_source(code: str, encoding: str | None) -> str:
    """Python source for an output of that encoding: with escapes, which mean the same, where it is not UTF-8."""
    return code if _is_utf8(encoding) else code.encode("ascii", "backslashreplace").decode("ascii")


def _is_utf8(encoding: str | None) -> bool:
    return encoding is None or codecs.lookup(encoding).name == "utf-8"


class Console(console.Console):
    """Rich's, in which a text's own control characters are shown and not obeyed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, in pieces."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(harmless(piece.text), piece.style)
