"""How a report writes a setting's value, so that different values can be told apart."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from search_spaces.requests import Settings

BEFORE, AFTER = 8, 16
"""Characters that are shown around the place where a long text differs from its like."""

_WORDS = frozenset({"none", "null", "true", "false"})
_INVISIBLE = frozenset(map(chr, (0x34F, 0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10))))
"""Printable as Python has it, and not to be seen: fillers and selectors of variants."""


def shorten(text: str, limit: int) -> str:
    """The text in at most `limit` ≥ 3 characters: … stands for the middle; prompts differ at both ends."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"


def plain_text(text: str) -> str:
    """One line that any terminal or font can take: runs of white space become a space, unprintables a ?."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def value_text(value: object, limit: int = 60) -> str:
    """A setting's value as a table shows it, in at most `limit` characters: 5, 7.38291, none, cartoon, "", " cat".

    A text stands in double quotes where it would be read as something else, begins, ends or is broken by more than
    a space, or holds what cannot be seen, which is escaped as Python does.
    """
    if isinstance(value, float):
        return _number(value)
    return shorten(_whole(value), limit)


def value_texts(values: Iterable[object], limit: int = 60) -> list[str]:
    """The values as `value_text` has them; those that differ (7 and 7.0 do not) differ in what is shown, too.

    Where they would not, as texts that differ in the middle, the place where they differ is shown, or more of them
    than `limit`.
    """
    values = list(values)
    fulls = [_whole(value) for value in values]
    shown, level = [value_text(value, limit) for value in values], 0
    while clash := _clashing(shown, fulls):
        level += 1
        places = _first_differences({fulls[row] for row in clash})
        for row in clash:
            full = fulls[row]
            shown[row] = (
                _around(full, places[full], limit) if level == 1 else shorten(full, limit << level - 1)
            )
    return shown


@dataclass(frozen=True)
class Wording:
    """How the values of some axes are written beside each other, in about `limit` characters."""

    axes: Mapping[str, Sequence[object]] = field(default_factory=dict)
    limit: int = 60
    _texts: dict[tuple[str, str], str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            for value, text in zip(values, value_texts(values, self.limit), strict=True):
                self._texts[name, _whole(value)] = text

    def value(self, name: str, value: object) -> str:
        """A value of an axis; one that the axis does not have by itself."""
        return self._texts.get((name, _whole(value))) or value_text(value, self.limit)

    def in_words(self, name: str, value: object) -> str:
        """A value of an axis among words, a text in quotes."""
        text = self.value(name, value)
        if not isinstance(value, str) or text.startswith('"'):
            return text
        return f'"{text}"' if "'" in text else f"'{text}'"

    def settings(self, settings: Settings) -> str:
        """Settings as a sentence names them: guidance_scale 5, negative_prompt 'cartoon'."""
        return ", ".join(f"{name} {self.in_words(name, value)}" for name, value in settings.items())


def settings_text(settings: Settings, limit: int = 60) -> str:
    """Settings that stand alone, as a sentence names them: guidance_scale 5, negative_prompt 'cartoon'."""
    return Wording(limit=limit).settings(settings)


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _whole(value: object) -> str:
    """All of a value: no other one is written so."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return _number(value) if value.is_integer() and abs(value) < 1e15 else repr(value)
    text = str(value)
    if not isinstance(value, str) or _is_plain(text):
        return text
    return _escaped(text)


def _is_plain(text: str) -> bool:
    """Whether a text can stand as it is: nobody takes it for something else, and all of it is to be seen."""
    if not text or text.casefold() in _WORDS or text[0] in "\"'" or text[-1] in "\"'" or _is_number(text):
        return False
    if text != text.strip() or "  " in text or not unicodedata.is_normalized("NFC", text):
        return False
    return all(_is_visible(character) for character in text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_visible(character: str) -> bool:
    return character.isprintable() and character not in _INVISIBLE


def _escaped(text: str) -> str:
    """A text in quotes: what cannot be seen in it, or can be taken for another character, as Python escapes it."""
    kept = (_is_visible(character) and character not in '"\\' for character in text)
    shown = "".join(c if keep else _escape(c) for c, keep in zip(text, kept, strict=True))
    if not unicodedata.is_normalized("NFC", shown):
        shown = "".join(character if character.isascii() else _escape(character) for character in shown)
    return f'"{shown}"'


def _escape(character: str) -> str:
    return '\\"' if character == '"' else character.encode("unicode_escape").decode("ascii")


def _clashing(shown: Sequence[str], fulls: Sequence[str]) -> list[int]:
    """The places of those that are shown alike and are not."""
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (text, full) in enumerate(zip(shown, fulls, strict=True)):
        rows[text][full].append(row)
    return [row for alike in rows.values() if len(alike) > 1 for each in alike.values() for row in each]


def _first_differences(texts: Iterable[str]) -> dict[str, int]:
    """Up to where each of some different texts may be read until it is told from all others."""
    ordered = sorted(texts)
    found = dict.fromkeys(ordered, 0)
    for one, other in pairwise(ordered):
        pairs = enumerate(zip(one, other, strict=False))
        same = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
        found[one], found[other] = max(found[one], same), max(found[other], same)
    return found


def _around(text: str, place: int, limit: int) -> str:
    """A text's beginning and what stands around a place, in about `limit` characters."""
    head, end = max(3, limit - BEFORE - AFTER - 2), place + AFTER
    if len(text) <= limit:
        return text
    after = "…" if end < len(text) else ""
    if place - BEFORE <= head:
        return f"{text[:end]}{after}"
    return f"{text[:head].rstrip()}…{text[place - BEFORE : end]}{after}"
