"""Which instances of a study drew the same pictures, from what its catalog has; told to everybody who counts them."""

from collections.abc import Mapping, Sequence
from functools import cache, partial

import pyarrow.compute as pc

from orchestrator.catalog.parquet import trial_rows
from orchestrator.catalog.tables import Tables
from orchestrator.report.copies import Seen, copies
from search_spaces.objectives import GPU_SECONDS
from search_spaces.requests import Outcome, Role, Scored
from search_spaces.strategies import PastTrial


def copied(
    tables: Tables, study: str, past: Sequence[PastTrial], instances: int, role: Role = "search"
) -> dict[int, int]:
    """Instances, below so many, that draw what an earlier one draws, and that earlier one (`report.copies`)."""
    pixels = cache(partial(_pixels, tables))

    def same(one: str, other: str) -> bool:
        return pixels(one) is not None and pixels(one) == pixels(other)

    images = image_ids(tables, study, role)
    judged: list[Mapping[int, Seen]] = []
    for trial in past:
        outcomes = trial.validation if role == "validate" else trial.outcomes
        ids = images.get(trial.number, {})
        judged.append(
            {
                number: Seen(ids[number], _of_the_picture(outcome))
                for number, outcome in outcomes.items()
                if isinstance(outcome, Scored) and number < instances and number in ids
            }
        )
    return copies([row for row in judged if row], same)


def scored_once(
    outcomes: Mapping[int, Outcome], same: Mapping[int, int], instances: int
) -> dict[int, Scored] | None:
    """A trial's scored outcomes with copies counted once; None unless each of so many instances has a score."""
    found: dict[int, Scored] = {}
    for number in sorted(outcomes):
        outcome = outcomes[number]
        if isinstance(outcome, Scored) and number < instances:
            found.setdefault(same.get(number, number), outcome)
    return found if len(found) == instances - len(same) else None


def image_ids(tables: Tables, study: str, role: Role) -> dict[int, dict[int, str]]:
    """Trial → instance → image_id of the pictures that were scored in a role."""
    where = (pc.field("state") == "scored") & (pc.field("role") == role)
    ids: dict[int, dict[int, str]] = {}
    for row in trial_rows(tables, study, ["trial", "instance", "image_id"], where).to_pylist():
        ids.setdefault(row["trial"], {})[row["instance"]] = row["image_id"]
    return ids


def _of_the_picture(outcome: Scored) -> dict[str, float]:
    """What was judged; how long a picture took says nothing of what it shows."""
    return {name: value for name, value in outcome.scores.items() if name != GPU_SECONDS}


def _pixels(tables: Tables, image_id: str) -> str | None:
    """A hash of a stored picture's pixels, without what is written beside them; None where it cannot be read."""
    from workers.inputs import pixel_hash
    from workers.png import decode_png

    try:
        return pixel_hash(decode_png(tables.png(image_id)))
    except (KeyError, OSError, ValueError, SyntaxError):
        return None
