"""Instances that turn out to have drawn the same pictures: found by what was stored, and counted once.

What can be told from a study file is one instance before it runs (`orchestrator.twins`). This is for the rest:
studies of earlier versions, masks that differ in grey alone, pipelines whose way with texts nobody knows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from orchestrator.report.results import Results, TrialResult

T = TypeVar("T")

CLOSE = 1e-3
"""Two scores of one picture by one text differ by less: by how a judge's batches round."""

VERIFIED = 16
"""Settings whose pictures are compared; of all others the scores are."""


@dataclass(frozen=True)
class Seen:
    """A picture, and what was measured on it by name."""

    image_id: str
    scores: Mapping[str, float]


def copies(judged: Sequence[Mapping[int, Seen]], same: Callable[[str, str], bool]) -> dict[int, int]:
    """Instances that draw what an earlier one draws, and that earlier one.

    `judged` has a mapping for each setting, by instance; `same` tells whether two image_ids have equal pixels. Of two
    copies all settings that both have must have equal scores and, as far as is looked, equal pictures: the same
    pictures judged by another text are other evidence.
    """
    if not judged:
        return {}
    fullest = max(judged, key=len)
    rows = [fullest, *(row for row in judged if row is not fullest)]
    by_score = sorted(fullest, key=lambda instance: (next(iter(fullest[instance].scores.values())), instance))
    groups: list[list[int]] = []
    for instance in by_score:
        near = (group for group in reversed(groups) if _close(fullest[group[0]], fullest[instance]))
        group = next((group for group in near if _alike(rows, group[0], instance, same)), None)
        if group is None:
            groups.append([instance])
        else:
            group.append(instance)
    return {copy: min(group) for group in groups for copy in group if copy != min(group)}


def _close(one: Seen, other: Seen) -> bool:
    return one.scores.keys() == other.scores.keys() and all(
        abs(value - other.scores[name]) <= CLOSE for name, value in one.scores.items()
    )


def _alike(
    rows: Sequence[Mapping[int, Seen]], one: int, other: int, same: Callable[[str, str], bool]
) -> bool:
    """Whether two instances have the same scores and pictures in all rows that have both."""
    both = [(row[one], row[other]) for row in rows if one in row and other in row]
    return all(_close(*pair) for pair in both) and all(
        mine.image_id == theirs.image_id or same(mine.image_id, theirs.image_id)
        for mine, theirs in both[:VERIFIED]
    )


def counted_once(found: Results, same: Mapping[int, int], fresh: Mapping[int, int]) -> Results:
    """Results in which instances count once, which are numbered anew; `same` and `fresh` are `copies` of theirs.

    Of several that have a score the first one's counts; one that failed fails where none of its copies has a score.
    """
    if not same and not fresh:
        return found
    kept = [number for number in range(found.instances) if number not in same]
    place = {number: kept.index(same.get(number, number)) for number in range(found.instances)}
    drawn = [number for number in range(found.fresh) if number not in fresh]
    validated = {number: drawn.index(fresh.get(number, number)) for number in range(found.fresh)}
    return replace(
        found,
        instances=len(kept),
        numbers=tuple(kept),
        fresh=len(drawn),
        trials=[_merged(trial, place, validated) for trial in found.trials],
        copies=same,
        drawn=sum(len(trial.scores.keys() | trial.failures.keys()) for trial in found.trials),
    )


def _merged(trial: TrialResult, place: Mapping[int, int], validated: Mapping[int, int]) -> TrialResult:
    scores = _first_of(trial.scores, place)
    failures = _first_of(trial.failures, place)
    return replace(
        trial,
        scores=scores,
        failures={number: reason for number, reason in failures.items() if number not in scores},
        images=_first_of(trial.images, place),
        validation=_first_of(trial.validation, validated),
        measured={name: _first_of(values, place) for name, values in trial.measured.items()},
    )


def _first_of(values: Mapping[int, T], place: Mapping[int, int]) -> dict[int, T]:
    """Values under their instances' new numbers: of several the first."""
    found: dict[int, T] = {}
    for number in sorted(values):
        if number in place:
            found.setdefault(place[number], values[number])
    return found


def copies_text(found: Results, most: int = 3) -> Iterator[str]:
    """A sentence that says which instances count with another; nothing where none does."""
    if not found.copies:
        return
    groups: dict[int, list[int]] = {}
    for copy, first in sorted(found.copies.items()):
        groups.setdefault(first, []).append(copy)
    named = [f"{_listed(others)} as {first}" for first, others in list(groups.items())[:most]]
    more = [f"{len(groups) - most} more such groups"] if len(groups) > most else []
    total = found.instances + len(found.copies)
    draw = "draws" if len(found.copies) == 1 else "draw"
    yield (
        f"{len(found.copies):,} of {total:,} instances {draw} the same pictures as another, to the same score, and "
        f"{'counts' if len(found.copies) == 1 else 'count'} once with it: {'; '.join([*named, *more])}"
    )


def _listed(numbers: Sequence[int], most: int = 4) -> str:
    shown = [str(number) for number in numbers[:most]] + (["…"] if len(numbers) > most else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
