"""One image of the catalog: its settings, the script that draws it, and whether it can be drawn again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from orchestrator.catalog.schema import ASKED_SIZE, SCHEMAS, row_settings, suffix, version
from orchestrator.catalog.tables import Tables
from orchestrator.report.script import script
from orchestrator.study_folder import DEFAULT_ROOT, StudyFolder, is_study_name, named_folder
from search_spaces.errors import InputError, shown
from search_spaces.requests import Failed, ImageRequest, Settings, Value
from search_spaces.study import Study


@dataclass(frozen=True)
class Shown:
    """One image: its row, its complete settings, its scores, who uses it, and the script that draws it again.

    `scores` are rows of the scores table, `uses` of the trials table. `png` is as it is stored, `name` the
    file name that suits it; both are None where there is no picture, or where it is not what was stored.
    """

    row: Mapping[str, Value]
    settings: Settings
    scores: list[dict[str, Value]]
    uses: list[dict[str, Value]]
    code: str
    png: bytes | None
    name: str | None


def show(image_id: str, root: str = DEFAULT_ROOT) -> Shown:
    """An image, with the plain diffusers script that draws it again; the beginning of an image_id is enough.

    Raises InputError where the root has no such image, or more than one, or none of its studies' folders.
    """
    from workers.pipelines.loading import local_folder

    tables = Tables(root)
    row, pinned, folder = _found(tables, image_id, root)
    where = pc.field("image_id") == row["image_id"]
    model = pinned.model
    settings = _settings(row, pinned)
    source = str(local_folder(model.location) or model.location)
    code = script(row, settings, model, source, (folder.path / "inputs").absolute())
    png = _stored(tables, str(row["image_id"])) if row["status"] == "ok" else None
    uses = tables.read("trials", ["study", "trial", "instance", "role"], where)
    return Shown(
        row,
        settings,
        tables.read("scores", ["scorer", "text", "value"], where).to_pylist(),
        [dict(use) for use in dict.fromkeys(tuple(use.items()) for use in uses.to_pylist())],
        code,
        png,
        None if png is None else f"{row['image_id']}{suffix(png)}",
    )


def checked_id(image_id: str) -> str:
    """An image_id that may become a file's name. Raises InputError for one that this program never gave.

    A catalog on a shared store may have rows that others wrote.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", image_id):
        raise InputError(f"the catalog has an image_id that is none, {shown(image_id)}; who wrote it?")
    return image_id


def _found(tables: Tables, image_id: str, root: str) -> tuple[dict[str, Value], Study, StudyFolder]:
    """An image's row without its picture, and a study that uses it. Raises InputError."""
    if not re.fullmatch(r"[0-9a-f]{4,32}", image_id):
        raise InputError(f"{image_id!r} is not an image_id: 4 to 32 digits from 0 to f, as in the catalog")
    begins = pc.starts_with(pc.field("image_id"), pattern=image_id)
    names = [name for name in SCHEMAS["images"].names if name != "image"]
    rows = tables.read("images", names, begins).to_pylist()
    ids = sorted({row["image_id"] for row in rows})
    if len(ids) != 1:
        problem = f"{len(ids)} images begin with it; give more digits" if ids else f"{root} holds none"
        raise InputError(f"image {image_id}: {problem}")
    checked_id(ids[0])
    studies = sorted(tables.counts("trials", "study", pc.field("image_id") == ids[0]))
    for name in filter(is_study_name, studies):
        folder = named_folder(name, root)
        pinned = folder.pinned()
        if pinned is not None:
            return min(rows, key=lambda row: row["status"] != "ok"), pinned, folder
    raise InputError(
        f"image {ids[0]}: the folder of its study ({', '.join(studies)}) is gone from {root}/studies"
    )


def _stored(tables: Tables, image_id: str) -> bytes | None:
    """A picture as it is stored; None where it is not what was stored."""
    try:
        return tables.png(image_id)
    except KeyError:
        return None


def _settings(row: Mapping[str, Value], pinned: Study) -> dict[str, Value]:
    """The complete settings of an image, of which a study that uses it is pinned."""
    model = pinned.model
    settings = row_settings(row, [*model.keywords, *model.scheduler_kinds, "scheduler"])
    for name in ASKED_SIZE.keys() & settings.keys():
        if (
            settings[name] is None
        ):  # a row of an earlier version: where it was swept, the picture's own size tells
            settings[name] = pinned.settings.get(name, row[name])
    return settings


@dataclass(frozen=True)
class Reproduced:
    """An image drawn again: the largest difference of a channel from the stored one, 0 to 255; and where it lies.

    `differing` is the share of pixels that differ at all; `device` is this machine's, `drawn_on` the row's.
    """

    image_id: str
    largest: int
    differing: float
    device: str
    drawn_on: str
    picture: bytes


def reproduce(image_id: str, root: str = DEFAULT_ROOT) -> Reproduced:
    """Draw an image again on this machine and compare it with the stored one.

    Raises InputError where there is no such image, where it has no picture, and where it cannot be drawn.
    """
    from orchestrator import wiring
    from workers.device import device_name
    from workers.infotext import Origin
    from workers.png import decode_png, encode_png

    tables = Tables(root)
    row, pinned, folder = _found(tables, image_id, root)
    whole = str(row["image_id"])
    if row["status"] != "ok":
        raise InputError(f"image {whole} has no picture: {row['reason']}")
    png = _stored(tables, whole)
    if png is None:
        raise InputError(
            f"image {whole} has no picture to compare with: it is not what was stored; "
            "`latentsweep catalog repair` puts it aside, and `latentsweep run` makes it again"
        )
    if row["diffusers"] != version("diffusers"):
        raise InputError(
            f"image {whole} was drawn with diffusers {row['diffusers']}, and this is "
            f"{version('diffusers')}: install that version to draw it again"
        )
    request = ImageRequest(
        whole,
        _settings(row, pinned),
        str(row["prompt"]),
        int(str(row["seed"])),
        None if row["input_image"] is None else str(row["input_image"]),
        None if row["input_mask"] is None else str(row["input_mask"]),
        "",
    )
    stored_inputs = folder.inputs(filter(None, (request.image, request.mask)))
    inputs = {name: decode_png(png) for name, png in stored_inputs.items()}
    drawn = wiring.draw(pinned, inputs, request)
    if isinstance(drawn, Failed):
        raise InputError(f"image {whole} cannot be drawn again: {drawn.reason}")
    stored = np.asarray(decode_png(png).convert("RGB"), np.int16)
    again = np.asarray(drawn.convert("RGB"), np.int16)
    if stored.shape != again.shape:
        raise InputError(f"image {whole}: drawn again it has {again.shape[1]}×{again.shape[0]} pixels")
    apart = np.abs(stored - again)
    return Reproduced(
        whole,
        int(apart.max()),
        float((apart.max(axis=2) > 0).mean()),
        device_name(),
        str(row["device"]),
        encode_png(drawn, request, Origin(pinned.model)),
    )
