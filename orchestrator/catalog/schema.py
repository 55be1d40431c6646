"""The catalog's three tables: columns, types and what a row is made from."""

import hashlib
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

import pyarrow as pa

from orchestrator.catalog import Judged, state
from orchestrator.pool import Done
from search_spaces.requests import Failed, Looked, Scored, Value
from search_spaces.space import effective_steps
from search_spaces.study import PIXEL_REVISION, Study

SCHEMA_VERSION = 2
"""1 had no `sha256` and no `file_bytes`, which are null when it is read."""

VERSION_KEY = b"latentsweep_schema"
"""Of a part file's metadata."""

_TIME = pa.timestamp("us", tz="UTC")

# Settings with a column of their own; all others are in `other_settings` as JSON.
SETTING_COLUMNS: Mapping[str, pa.DataType] = {
    "negative_prompt": pa.string(),
    "guidance_scale": pa.float64(),
    "strength": pa.float64(),
    "num_inference_steps": pa.int64(),
    "scheduler": pa.string(),
    "eta": pa.float64(),
    "guidance_rescale": pa.float64(),
    "clip_skip": pa.int64(),
}

ASKED_SIZE: Mapping[str, str] = {"width": "asked_width", "height": "asked_height"}
"""The size that a pipeline is asked for, and its column: a picture may come out in another."""

_IMAGE_COLUMNS: Mapping[str, pa.DataType] = {
    "image_id": pa.string(),
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "sha256": pa.string(),  # of the picture's bytes as they are stored, and how many these are
    "file_bytes": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
    "model": pa.string(),
    "revision": pa.string(),
    "task": pa.string(),
    "pipeline": pa.string(),
    "dtype": pa.string(),
    "prompt": pa.string(),
    **SETTING_COLUMNS,
    "other_settings": pa.string(),
    "seed": pa.int64(),
    "effective_steps": pa.int64(),
    "unet_calls": pa.int64(),
    "width": pa.int64(),  # of the picture as it came out
    "height": pa.int64(),
    "asked_width": pa.int64(),  # of the pipeline, null where nothing was asked for, and in rows of earlier versions
    "asked_height": pa.int64(),
    "input_image": pa.string(),
    "input_mask": pa.string(),
    "pixel_revision": pa.int64(),
    "diffusers": pa.string(),
    "torch": pa.string(),
    "latentsweep": pa.string(),
    "device": pa.string(),
    "seconds_generate": pa.float64(),
    "seconds_score": pa.float64(),
    "time": _TIME,
}

_SCORE_COLUMNS: Mapping[str, pa.DataType] = {
    "image_id": pa.string(),
    "scorer": pa.string(),
    "text": pa.string(),
    "value": pa.float64(),
    "time": _TIME,
}

_TRIAL_COLUMNS: Mapping[str, pa.DataType] = {
    "study": pa.string(),
    "trial": pa.int64(),
    "instance": pa.int64(),
    "image_id": pa.string(),
    "role": pa.string(),
    "strategy": pa.string(),
    "state": pa.string(),
    "reason": pa.string(),
    "settings": pa.string(),
    "scorer": pa.string(),
    "text": pa.string(),
    "after": pa.int64(),  # of an early look: the UNet calls before it, and the score of what it showed
    "value": pa.float64(),
    "time": _TIME,
}

NEEDED: Mapping[str, tuple[str, ...]] = {
    "images": ("image_id", "image", "status"),
    "scores": ("image_id", "scorer", "text", "value"),
    "trials": ("study", "trial", "instance", "image_id", "role", "state", "settings", "scorer", "text"),
}
"""Columns without which a file is no part of a table; the others may be of a later version, and are null then."""

REPEATED = frozenset(
    {"status", "reason", "model", "revision", "task", "pipeline", "dtype", "prompt", *SETTING_COLUMNS}
    | {"other_settings", "effective_steps", "unet_calls", "width", "height", "input_image", "input_mask"}
    | {"asked_width", "asked_height"}
    | {"pixel_revision", "diffusers", "torch", "latentsweep", "device", "scorer", "text", "study", "role"}
    | {"state", "settings", "after"}
)
"""Columns with few values among many rows, which a dictionary makes small."""


def _huggingface_features(columns: Mapping[str, pa.DataType]) -> dict[str, dict[str, str]]:
    """The columns as Hugging Face `datasets` features, so that it shows pictures as pictures."""
    return {
        name: {"_type": "Image"}
        if pa.types.is_struct(kind)
        else {"dtype": _feature_dtype(kind), "_type": "Value"}
        for name, kind in columns.items()
    }


def _feature_dtype(kind: pa.DataType) -> str:
    return {"double": "float64"}.get(str(kind), str(kind))


def huggingface_metadata(schema: pa.Schema) -> dict[str, str]:
    """What makes a schema's columns show in Hugging Face `datasets` as what they are."""
    columns = {field.name: field.type for field in schema}
    return {"huggingface": json.dumps({"info": {"features": _huggingface_features(columns)}})}


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    schema = pa.schema(list(columns.items()))
    return schema.with_metadata({**huggingface_metadata(schema), VERSION_KEY.decode(): str(SCHEMA_VERSION)})


SCHEMAS: Mapping[str, pa.Schema] = {
    "images": _schema(_IMAGE_COLUMNS),
    "scores": _schema(_SCORE_COLUMNS),
    "trials": _schema(_TRIAL_COLUMNS),
}


ENCODED: Mapping[str, pa.Schema] = {
    table: pa.schema(
        [
            field.with_type(pa.dictionary(pa.int32(), pa.string()))
            if field.name in REPEATED and pa.types.is_string(field.type)
            else field
            for field in schema
        ]
    )
    for table, schema in SCHEMAS.items()
}
"""The tables as they lie in their files: texts that repeat are numbers into a dictionary."""


def foreign(table: str, schema: pa.Schema) -> str | None:
    """Why a file of some schema is no part of a table; None where it is one."""
    missing = [name for name in NEEDED[table] if name not in schema.names]
    if missing:
        return f"it has no column {missing[0]}"
    for field, encoded in zip(SCHEMAS[table], ENCODED[table], strict=True):
        if field.name in schema.names and schema.field(field.name).type not in (field.type, encoded.type):
            return f"its column {field.name} is {schema.field(field.name).type}, not {field.type}"
    return None


@cache
def version(package: str) -> str:
    """The version of an installed package; to read it takes a millisecond, and every row names two."""
    return metadata.version(package)


def image_row(done: Done, study: Study) -> dict[str, object]:
    """A finished request as a row of `images`; its picture is hashed here where its worker has not done so."""
    png = done.picture.png() if done.picture else None
    sha256 = done.provenance.sha256
    if png is not None and sha256 is None:
        sha256 = hashlib.sha256(png).hexdigest()
    request, model = done.request, study.model
    settings = dict(request.settings)
    size = done.provenance.width, done.provenance.height
    others = {k: v for k, v in settings.items() if k not in SETTING_COLUMNS and k not in ASKED_SIZE}
    failed = done.outcome if isinstance(done.outcome, Failed) else None
    return {
        "image_id": request.image_id,
        "image": None if png is None else {"bytes": png, "path": f"{request.image_id}{suffix(png)}"},
        "sha256": sha256 if png is not None else None,
        "file_bytes": None if png is None else len(png),
        "status": failed.kind if failed else "ok",
        "reason": failed.reason if failed else None,
        "model": model.name,
        "revision": model.revision,
        "task": model.task,
        "pipeline": model.pipeline,
        "dtype": model.dtype,
        "prompt": request.prompt,
        **{name: settings.get(name) for name in SETTING_COLUMNS},
        "other_settings": json.dumps(others, sort_keys=True),
        "seed": request.seed,
        "effective_steps": effective_steps(settings, model),
        "unet_calls": done.provenance.unet_calls,
        "width": size[0] or settings.get("width"),
        "height": size[1] or settings.get("height"),
        **{column: settings.get(name) for name, column in ASKED_SIZE.items()},
        "input_image": request.image,
        "input_mask": request.mask,
        "pixel_revision": PIXEL_REVISION,
        "diffusers": model.diffusers,
        "torch": version("torch"),
        "latentsweep": version("latentsweep"),
        "device": done.provenance.device,
        "seconds_generate": done.provenance.seconds_generate,
        "seconds_score": done.provenance.seconds_score,
        "time": datetime.now(UTC),
    }


SUFFIXES = (".png", ".jpg", ".webp")
"""The ends of stored pictures' file names."""


def suffix(picture: bytes) -> str:
    """The file name's end for a stored picture."""
    if picture.startswith(b"\xff\xd8"):
        return ".jpg"
    return ".webp" if picture[8:12] == b"WEBP" else ".png"


def row_settings(row: Mapping[str, object], names: Collection[str]) -> dict[str, Value]:
    """Those of some settings that a row of `images` was drawn with; None for a size that it does not tell."""
    kept: dict[str, Any] = {**json.loads(str(row["other_settings"])), **row}
    kept |= {name: row.get(column) for name, column in ASKED_SIZE.items()}
    return {name: kept[name] for name in names if name in kept}


def score_rows(done: Done, study: Study) -> list[dict[str, object]]:
    """A finished request's scores as rows of `scores`."""
    if not isinstance(done.outcome, Scored):
        return []
    return [
        {
            "image_id": done.request.image_id,
            "scorer": scorer.id,
            "text": scorer.text_of(done.request),
            "value": done.outcome.scores[name],
            "time": datetime.now(UTC),
        }
        for name, scorer in study.scorers.items()
        if name in done.outcome.scores
    ]


def trial_row(judged: Judged, study: Study) -> dict[str, object]:
    """What became of a trial on an instance as a row of `trials`."""
    outcome = judged.outcome
    look = outcome if isinstance(outcome, Looked) else None
    return {
        "study": study.name,
        "trial": judged.trial.number,
        "instance": judged.instance,
        "image_id": judged.request.image_id,
        "role": "look" if look else judged.role,
        "strategy": study.search.strategy,
        "state": state(outcome),
        "reason": outcome.reason if isinstance(outcome, Failed) else None,
        "settings": json.dumps(dict(judged.trial.settings)),
        "scorer": study.scorer.id,
        "text": judged.request.score_text,
        "after": look.after if look else None,
        "value": look.scores[study.objective] if look else None,
        "time": datetime.now(UTC),
    }
