"""A study's rows of the three tables, joined: what people want of a catalog."""

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog.ids import Index, keys
from orchestrator.catalog.parquet import Scores, scorer_name, without_strangers
from orchestrator.catalog.schema import ASKED_SIZE, SCHEMAS, SETTING_COLUMNS, suffix
from orchestrator.catalog.tables import Tables
from search_spaces.models import PIXEL_SCORERS
from search_spaces.objectives import GPU_SECONDS
from search_spaces.requests import Settings, Value

STATES = ("scored", "infeasible", "lost")
"""Of an instance that has had several, the one that holds: a lost image may have been tried again."""


def joined(
    tables: Tables,
    study: str,
    pictures: bool = True,
    among: pa.Array | None = None,
    as_filed: Callable[[Settings], Settings] = dict,
) -> pa.Table:
    """A row per trial, instance and role of a study, with settings, score and picture.

    Columns: those of `trials` but for `settings`, with `value` the score, null without one, then those of
    `images`; early looks, which have no picture, are left out. Swept settings are the trial's own, where a
    twin of other settings drew the picture, under the values that `as_filed` gives. A pixel scorer has a column of
    its name where it judged any of them. A picture that is not what was stored is null and named. Without
    `pictures`, none is read and `image` is not there. `among` are the only image_ids of interest.
    """
    wanted = (pc.field("study") == study) & (pc.field("role") != "look")
    if among is None:
        trials = tables.read("trials", where=wanted)
    else:
        trials = tables.read_ids("trials", SCHEMAS["trials"].names, among, wanted)
    trials = without_strangers(trials, study)
    trials = trials.take(pa.array(_holding(trials)))
    names = [name for name in SCHEMAS["images"].names if pictures or name != "image"]
    stored = [name for name in names if name != "image"]
    images = tables.read_ids("images", stored, trials["image_id"].unique())
    drawn_first = np.argsort(pc.not_equal(images["status"], "ok").to_numpy(), kind="stable")
    found = Index(keys(images["image_id"].take(pa.array(drawn_first)))).rows(keys(trials["image_id"]))
    rows = drawn_first[found] if len(drawn_first) else np.zeros(len(found), np.int64)
    made = images.take(pa.array(rows, mask=found < 0))
    swept = _swept(trials, as_filed)
    scores = Scores(tables, set(trials["scorer"].unique().to_pylist()), among)
    value = scores.column(trials)
    table = trials.drop_columns(["settings", "after", "value"]).append_column("value", value)
    for name in names:
        if name == "image":
            table = table.append_column(
                SCHEMAS["images"].field("image"), pictures_of(tables, table["image_id"])
            )
        elif name not in table.column_names:
            table = table.append_column(images.schema.field(name), made[name])
    return _with_pixel_scores(_with_swept(table, swept), tables, among)


def _with_swept(table: pa.Table, swept: Sequence[Settings]) -> pa.Table:
    """A joined table with every swept setting as a column of the trial's own values; what it left alone, as drawn."""
    for name in dict.fromkeys(name for own in swept for name in own):
        place = table.schema.get_field_index(name)
        if place >= 0 and name not in SETTING_COLUMNS and name not in ASKED_SIZE:
            continue  # a column that is no setting's
        drawn = table[name].to_pylist() if place >= 0 else _others(table, name)
        values = [own.get(name, other) for own, other in zip(swept, drawn, strict=True)]
        if place < 0:
            table = table.append_column(name, _column(values))
        else:
            field = table.schema.field(place)
            table = table.set_column(place, field, pa.array(values, field.type))
    return table


def _others(table: pa.Table, name: str) -> list[Value]:
    """Values of a setting without a column of its own, with which the pictures were drawn."""
    texts = table["other_settings"].to_pylist()
    known = {text: json.loads(text).get(name) if text else None for text in set(texts)}
    return [known[text] for text in texts]


def _column(values: Sequence[Value]) -> pa.Array:
    """Values of a setting without a column of its own; those of several kinds as texts."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array(values, pa.float64())
    if len(kinds) == 1:
        return pa.array(values)
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def score_names(rows: pa.Table) -> dict[str, pc.Expression]:
    """What a report calls the scores of joined rows, such as clip_score: a name → where it stands in them."""
    names = {scorer_name(scorer) for scorer in rows["scorer"].unique().to_pylist()}
    nothing = pa.scalar(None, pa.float64())
    values = {
        name: pc.if_else(pc.starts_with(pc.field("scorer"), pattern=f"{name}/"), pc.field("value"), nothing)
        for name in sorted(names)
    }
    return {**values, GPU_SECONDS: pc.field("seconds_generate")}


def _swept(trials: pa.Table, as_filed: Callable[[Settings], Settings]) -> list[Settings]:
    """Each row's swept settings, which are the same for all rows of a trial."""
    found: dict[int, Settings] = {}
    for trial, settings in zip(trials["trial"].to_pylist(), trials["settings"].to_pylist(), strict=True):
        if trial not in found:
            found[trial] = as_filed(json.loads(settings))
    return [found[trial] for trial in trials["trial"].to_pylist()]


def pictures_of(tables: Tables, image_ids: pa.ChunkedArray) -> pa.Array:
    """The picture of each image_id; null where there is none, or where it is not what was stored."""
    found = dict(tables.pictures(set(image_ids.to_pylist())))
    images = [
        {"bytes": found[image_id], "path": f"{image_id}{suffix(found[image_id])}"}
        if image_id in found
        else None
        for image_id in image_ids.to_pylist()
    ]
    return pa.array(images, SCHEMAS["images"].field("image").type)


def _with_pixel_scores(table: pa.Table, tables: Tables, among: pa.Array | None) -> pa.Table:
    """A joined table with a column for each pixel scorer that judged any of its pictures, null where it did not."""
    for name, scorer in PIXEL_SCORERS.items():
        asked = {"scorer": pa.repeat(scorer.id, table.num_rows), "text": pa.repeat("", table.num_rows)}
        values = Scores(tables, {scorer.id}, among).column(pa.table({"image_id": table["image_id"], **asked}))
        if values.null_count < len(values):
            table = table.append_column(name, values)
    return table


def best(tables: Tables, study: str, count: int, as_filed: Callable[[Settings], Settings] = dict) -> pa.Table:
    """At least the `count` joined rows with the largest score of a study, without pictures, and few others.

    The scores are looked through alone; of the rest only what belongs to the best of them is read.
    """
    scorers = tables.counts("trials", "scorer", pc.field("study") == study)
    of_these = pc.field("scorer").isin(pa.array(list(scorers), pa.string()))
    values = tables.read("scores", ["value"], of_these)["value"].to_numpy()
    others = len(values) / max(1, sum(scorers.values()))  # scores for each of this study's
    reach = count if others <= 1 else math.ceil(1.5 * others * count)
    while True:
        least = float(np.partition(values, -reach)[-reach]) if reach < len(values) else -np.inf
        ids = tables.read("scores", ["image_id"], of_these & (pc.field("value") >= least))["image_id"]
        found = joined(tables, study, False, ids.unique(), as_filed)
        # A row with less may have a better one outside: its image is here for another text, or another study.
        enough = pc.sum(pc.greater_equal(found["value"], least)).as_py() or 0
        if enough >= count or reach >= len(values):
            return found
        reach *= 8


def _holding(trials: pa.Table) -> npt.NDArray[np.int64]:
    """The rows of which each trial, instance and role has one: the state that holds, as it was first told."""
    if not trials.num_rows:
        return np.array([], np.int64)
    columns = [trials[name].to_numpy() for name in ("trial", "instance")]
    role = pc.equal(trials["role"], "validate").to_numpy()
    state = pc.index_in(trials["state"], pa.array(STATES)).to_numpy()
    order = np.lexsort((np.arange(trials.num_rows), state, role, columns[1], columns[0]))
    ordered = np.stack([columns[0], columns[1], role.astype(np.int64)], 1)[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    held: npt.NDArray[np.int64] = np.sort(order[new])
    return held
