"""What a row of each table must hold to be one: for part files of which nobody knows who wrote them."""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog.schema import NEEDED
from search_spaces.study_file import NAME

IMAGE_ID = r"^[0-9a-f]{32}$"

STATES = {"images": ("ok", "infeasible", "lost"), "trials": ("scored", "looked", "infeasible", "lost")}
"""Words in `status` and `state`."""

ROLES = ("search", "look", "validate")


Rule = Callable[[pa.Table], pa.ChunkedArray]
"""A boolean for each row, never null: whether it is a row of its table."""


def problem(table: str, rows: pa.Table) -> str | None:
    """What is wrong with rows of a table, of which CHECKED are there, for a sentence; None where nothing is."""
    for words, rule in RULES[table]:
        bad = rows.num_rows - (pc.sum(rule(rows)).as_py() or 0)
        if bad:
            return f"{bad:,} of its {rows.num_rows:,} rows {words}"
    return None


def valid(table: str, rows: pa.Table) -> pa.ChunkedArray:
    """Which rows hold what a row of their table must."""
    good = pa.chunked_array([np.ones(rows.num_rows, bool)])
    for _, rule in RULES[table]:
        good = pc.and_(good, rule(rows))
    return good


def strangers(trials: pa.Table) -> pa.ChunkedArray:
    """Which rows with `study` and `settings` name other settings than most rows of their study do.

    The swept settings of a study never change, so that these are of something else under its name.
    """
    names = {text: _names(text) for text in pc.unique(trials["settings"]).to_pylist()}
    pairs = trials.group_by(["study", "settings"]).aggregate([([], "count_all")]).to_pylist()
    votes: dict[str, dict[frozenset[str], int]] = {}
    for pair in pairs:
        of_study = votes.setdefault(pair["study"], {})
        of_study[names[pair["settings"]]] = of_study.get(names[pair["settings"]], 0) + pair["count_all"]
    usual = {study: max(counts, key=lambda some: counts[some]) for study, counts in votes.items()}
    if all(len(counts) == 1 for counts in votes.values()):
        return pa.chunked_array([np.zeros(trials.num_rows, bool)])
    told = zip(trials["study"].to_pylist(), trials["settings"].to_pylist(), strict=True)
    return pa.chunked_array([np.array([names[settings] != usual[study] for study, settings in told], bool)])


def _names(settings: str) -> frozenset[str]:
    return frozenset(json.loads(settings))


def _is_there(name: str) -> Rule:
    return lambda rows: pc.is_valid(rows[name])


def _is_one_of(name: str, words: Sequence[str]) -> Rule:
    return lambda rows: pc.is_in(rows[name].cast(pa.string()), pa.array(words))


def _looks_like(name: str, pattern: str) -> Rule:
    return lambda rows: pc.fill_null(
        pc.match_substring_regex(rows[name].cast(pa.string()), pattern=pattern), False
    )


def _is_finite(rows: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.is_finite(rows["value"]), False)


def _is_finite_or_null(name: str) -> Rule:
    return lambda rows: pc.fill_null(pc.is_finite(rows[name]), True)


def _counts_from_0(name: str) -> Rule:
    return lambda rows: pc.fill_null(pc.greater_equal(rows[name], 0), False)


def _are_settings(rows: pa.Table) -> pa.ChunkedArray:
    """Whether `settings` are a JSON object of plain values."""
    texts = pc.unique(rows["settings"].cast(pa.string()))
    good = [text for text in texts.to_pylist() if _is_settings(text)]
    return pc.is_in(rows["settings"].cast(pa.string()), pa.array(good, pa.string()))


def _is_settings(text: str | None) -> bool:
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    plain = (str, int, float, bool, type(None))
    return isinstance(found, dict) and all(isinstance(value, plain) for value in found.values())


def _unless(name: str, words: Sequence[str], rule: Rule) -> Rule:
    """A rule for those rows only that have none of some words."""
    exempt = _is_one_of(name, words)
    return lambda rows: pc.or_(exempt(rows), rule(rows))


RULES: Mapping[str, Sequence[tuple[str, Rule]]] = {
    "images": (
        ("have no image_id", _looks_like("image_id", IMAGE_ID)),
        ("have no status that there is", _is_one_of("status", STATES["images"])),
        ("have seconds that are no number", _is_finite_or_null("seconds_generate")),
    ),
    "scores": (
        ("have no image_id", _looks_like("image_id", IMAGE_ID)),
        ("have no scorer", _is_there("scorer")),
        ("have no text", _is_there("text")),
        ("have no score that is a number", _is_finite),
    ),
    "trials": (
        ("have no image_id", _looks_like("image_id", IMAGE_ID)),
        ("have no name of a study", _looks_like("study", NAME)),
        ("have no number of a trial", _counts_from_0("trial")),
        ("have no number of an instance", _counts_from_0("instance")),
        ("have no role that there is", _is_one_of("role", ROLES)),
        ("have no state that there is", _is_one_of("state", STATES["trials"])),
        ("have no settings", _are_settings),
        ("have no scorer", _is_there("scorer")),
        ("have no text", _is_there("text")),
        ("have no score of an early look", _unless("state", ("scored", "infeasible", "lost"), _is_finite)),
        (
            "have no UNet calls before a look",
            _unless("state", ("scored", "infeasible", "lost"), _counts_from_0("after")),
        ),
    ),
}
"""By table what must hold for each row, with the words for one of which it does not."""

CHECKED: Mapping[str, Sequence[str]] = {
    "images": ("image_id", "status", "seconds_generate"),
    "scores": NEEDED["scores"],
    "trials": (*NEEDED["trials"], "value", "after"),
}
"""The columns that the rules read."""
