"""The one exception for a user's mistake."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """One sentence that names what is wrong, where (file, key, value) and what would work.

    The command line prints it and exits with code 2; it is raised before the first image is made.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'guidance_scale'?` for a near miss, otherwise the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""


def shown(value: object) -> str:
    """A value as a message shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def printable(text: str) -> str:
    """A text in a message, such as a file's name, with what would steer a terminal escaped as in Python."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


NO_UTF8 = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)}
"""For str.translate: escapes for the bytes of a file's name that are no UTF-8, which Python holds as half pairs."""


def utf8(text: str, what: str) -> str:
    """A text, which may be a file's name of any bytes, where it can be stored as text. Raises InputError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        told = text.translate(NO_UTF8).encode(errors="backslashreplace").decode()
        raise InputError(f"{what}: {told} has bytes that are no UTF-8; name another, or rename it") from None
    return text
