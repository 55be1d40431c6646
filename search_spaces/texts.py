"""Texts that a model reads alike: which spelling of them the identity of pictures is made of."""

from collections.abc import Callable, Hashable, Iterable, Mapping

from search_spaces.errors import shown
from search_spaces.requests import Value

Texts = Mapping[str, str]
"""Each text of a study and the first spelling that the model reads as it does that one."""

TEXT_SETTINGS = ("prompt", "negative_prompt")
SECOND_TEXTS = ("prompt_2", "negative_prompt_2")
"""Of these "" is none: the first text is read in its place."""

ALL_TEXTS = frozenset({*TEXT_SETTINGS, *SECOND_TEXTS})


def one_spelling(
    texts: Iterable[str], read: Callable[[str], Hashable], before: Texts | None = None
) -> dict[str, str]:
    """Each text and the first that is read alike, those of `before` coming first; an empty text is always "".

    `read` gives what is equal for texts that draw the same picture.
    """
    found = dict(before or {})
    first = {read(text): text for text in reversed(["", *found.values()])}
    for text in texts:
        if text not in found:
            found[text] = first.setdefault(read(text), text)
    return found


def as_read(name: str, value: Value, texts: Texts) -> Value:
    """A setting's value in the spelling that identity is made of; what is no text of the model's stays."""
    if not isinstance(value, str) or (name in SECOND_TEXTS and "" in (value, texts.get(value))):
        return value
    return texts.get(value, value) if name in ALL_TEXTS else value


def twins(texts: Texts, among: Iterable[str]) -> list[str]:
    """For each spelling that others of some texts are read as, a clause that names them."""
    alike: dict[str, list[str]] = {}
    for text in among:
        alike.setdefault(texts.get(text, text), []).append(text)
    return [
        f"{_listed(others)} as {shown(first)}"
        for first, found in alike.items()
        if len(found) > 1 and (others := [text for text in found if text != first])
    ]


def _listed(texts: list[str]) -> str:
    """A few texts, quoted; where there are more, how many."""
    quoted = [shown(text) for text in texts[:3]]
    if len(texts) > len(quoted):
        return f"{', '.join(quoted)} and {len(texts) - len(quoted)} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]
