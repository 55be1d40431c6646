"""A console that prints what others wrote, prompts from a shared catalog among it, as text and nothing else."""

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


class Console(console.Console):
    """Rich's, in which a text's own control characters are shown and not obeyed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, in pieces."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(harmless(piece.text), piece.style)
