"""A study brought into other tools' formats: a folder of pictures, CSV, Parquet, a data set, an Optuna storage."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.catalog.expressions import filtered
from orchestrator.catalog.frames import best, joined
from orchestrator.catalog.schema import SCHEMAS, huggingface_metadata, suffix
from orchestrator.catalog.tables import Tables
from orchestrator.images import checked_id
from orchestrator.study_folder import named_folder
from search_spaces.errors import InputError, did_you_mean

SHARD_ROWS = 1024
"""Rows of a data set's file: a few hundred megabytes at most."""

PIECE_ROWS = 128
"""Rows whose pictures are in memory at a time."""


@dataclass(frozen=True)
class Export:
    """Rows of a study without their pictures, and where they go."""

    study: str
    rows: pa.Table
    tables: Tables
    place: Path

    def pictures(self, rows: pa.Table) -> Iterator[tuple[str, bytes]]:
        """The pictures of some of the rows, each once."""
        return self.tables.pictures(set(rows["image_id"].to_pylist()))


def rows_of(
    tables: Tables, study: str, where: str | None = None, top: int | None = None, pictures: bool = False
) -> pa.Table:
    """A study's joined rows that a condition holds for, of these the `top` with the largest score, best first.

    Raises InputError for what the condition does not say.
    """
    rows = best(tables, study, top) if top and where is None else joined(tables, study, pictures=False)
    if where is not None:
        rows = filtered(rows, where)
    if top is not None:
        rows = rows.filter(pc.is_valid(rows["value"]))
        order = pc.sort_indices(rows, sort_keys=[("value", "descending"), ("trial", "ascending")])
        rows = rows.take(order[:top])
    return with_pictures(tables, rows) if pictures else rows


def with_pictures(tables: Tables, rows: pa.Table) -> pa.Table:
    """Rows with the pictures that their image_ids name, null where there is none."""
    found = dict(tables.pictures(set(rows["image_id"].to_pylist())))
    images = [
        {"bytes": found[image_id], "path": f"{image_id}{suffix(found[image_id])}"}
        if image_id in found
        else None
        for image_id in rows["image_id"].to_pylist()
    ]
    return rows.append_column("image", pa.array(images, SCHEMAS["images"].field("image").type))


def export(
    study: str, to: str, place: str | None, root: str, where: str | None = None, top: int | None = None
) -> str:
    """Bring a study into a format, one of FORMATS or optuna; the result is one line that says what is where.

    `place` is by default named after the study; what is there already is not overwritten. Raises InputError.
    """
    if to not in FORMATS and to != "optuna":
        raise InputError(f"unknown format {to!r}{did_you_mean(to, [*FORMATS, 'optuna'])}")
    tables = Tables(root)
    if to == "optuna":
        if where is not None or top is not None:
            raise InputError("export --to optuna brings a whole study over; it takes no --where and no --top")
        return _to_optuna(study, place, root)
    named_folder(study, root)  # says so where that is no name
    _check_known(tables, study, root)
    rows = rows_of(tables, study, where, top)
    if not rows.num_rows:
        raise InputError(f"no row of {study} is left to export; loosen --where")
    default, act = FORMATS[to]
    if place and "://" in place:
        raise InputError(f"export writes to this machine's disk, not to {place}; name a path")
    target = Path(place or default.format(study))
    is_free_folder = to in FOLDERS and target.is_dir() and not any(target.iterdir())
    if target.exists() and not is_free_folder:
        raise InputError(f"{target} exists already; name another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    return act(Export(study, rows, tables, target))


def _to_folder(wanted: Export) -> str:
    """Each picture as it is stored, with a JSON file of the same name: its settings, and the trials that use it."""
    wanted.place.mkdir(exist_ok=True)
    by_image: dict[str, list[dict[str, object]]] = {}
    for row in wanted.rows.to_pylist():
        by_image.setdefault(row["image_id"], []).append(row)
    count = 0
    for image_id, picture in wanted.pictures(wanted.rows):
        rows = by_image[checked_id(image_id)]
        told = {
            **{name: value for name, value in rows[0].items() if name not in USES},
            "trials": [{name: row[name] for name in USES} for row in rows],
        }
        (wanted.place / f"{image_id}{suffix(picture)}").write_bytes(picture)
        text = json.dumps(told, indent=2, ensure_ascii=False, default=str)
        (wanted.place / f"{image_id}.json").write_text(text + "\n", encoding="utf-8")
        count += 1
    return f"{count} pictures of {wanted.study}, each with its JSON, in {wanted.place}"


USES = ("study", "trial", "instance", "role", "state", "scorer", "text", "value")
"""Columns of a joined row that speak of a trial, not of its picture."""


def _to_csv(wanted: Export) -> str:
    rows = wanted.rows
    with _aside(wanted.place) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows.column_names)
        for row in rows.to_pylist():
            writer.writerow(["" if value is None else value for value in row.values()])
    return f"{rows.num_rows} rows of {wanted.study}, without pictures, in {wanted.place}"


def _to_parquet(wanted: Export) -> str:
    _write_parquet(wanted, wanted.rows, wanted.place)
    return f"{wanted.rows.num_rows} rows of {wanted.study} with their pictures in {wanted.place}"


def _write_parquet(wanted: Export, rows: pa.Table, path: Path) -> None:
    """Rows with their pictures as one file, a row group at a time; whole or not there at all."""
    image = pa.field("image", SCHEMAS["images"].field("image").type)
    schema = rows.schema.append(image)
    schema = schema.with_metadata(huggingface_metadata(schema))
    with (
        _aside(path) as aside,
        pq.ParquetWriter(aside, schema, compression={"image.bytes": "none"}, use_dictionary=False) as writer,
    ):
        for start in range(0, rows.num_rows, PIECE_ROWS):
            piece = with_pictures(wanted.tables, rows.slice(start, PIECE_ROWS))
            writer.write_table(piece.cast(schema))


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A place to write a file at, which gets its name once it is whole."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        yield aside
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def _to_hf(wanted: Export) -> str:
    """A folder that `datasets.load_dataset(PLACE)` reads, with a card."""
    data = wanted.place / "data"
    data.mkdir(parents=True)
    rows = wanted.rows
    shards = -(-rows.num_rows // SHARD_ROWS)
    for number in range(shards):
        piece = rows.slice(number * SHARD_ROWS, SHARD_ROWS)
        _write_parquet(wanted, piece, data / f"train-{number:05d}-of-{shards:05d}.parquet")
    (wanted.place / "README.md").write_text(_card(wanted), encoding="utf-8")
    return f"{rows.num_rows} rows of {wanted.study} for `datasets.load_dataset({str(wanted.place)!r})`"


def _card(wanted: Export) -> str:
    rows = wanted.rows
    models = ", ".join(sorted(filter(None, set(rows["model"].to_pylist()))))
    scorers = ", ".join(sorted(set(rows["scorer"].to_pylist())))
    columns = "\n".join(f"| `{field.name}` | {field.type} |" for field in rows.schema)
    return (
        "---\n"
        f"pretty_name: {json.dumps(wanted.study)}\n"
        "tags: [latentsweep, diffusion, parameter-sweep]\n"
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "---\n\n"
        f"# {wanted.study}\n\n"
        f"A sweep of {models} by Latentsweep: {rows.num_rows} rows, one per trial and instance, each with its "
        f"settings, its score (`value`, by {scorers}) and its picture (`image`). The pictures were generated; "
        "their licence is that of the model that drew them.\n\n"
        f"| column | type |\n|---|---|\n{columns}\n| `image` | picture |\n"
    )


def _to_optuna(name: str, storage: str | None, root: str) -> str:
    from orchestrator import dashboard

    if storage is None:
        raise InputError("export --to optuna needs a storage: journal:PATH or a database's URL")
    pinned = named_folder(name, root).pinned()
    if pinned is None:
        _check_known(Tables(root), name, root)
        raise InputError(
            f"the folder of the study {name!r} is gone from {root}/studies, and with it what its axes are"
        )
    return dashboard.export(pinned, root, storage)


def _check_known(tables: Tables, study: str, root: str) -> None:
    """Raise InputError where the catalog knows no such study."""
    known = sorted(tables.counts("trials", "study"))
    if study not in known:
        hint = did_you_mean(study, known) if known else "; it holds no study yet"
        raise InputError(f"there is no study {study!r} under {root}{hint}")


FORMATS: Mapping[str, tuple[str, Callable[[Export], str]]] = {
    "folder": ("{}-pictures", _to_folder),
    "csv": ("{}.csv", _to_csv),
    "parquet": ("{}.parquet", _to_parquet),
    "hf": ("{}-dataset", _to_hf),
}
"""Format → the default place, and what brings rows into it."""

FOLDERS = {"folder", "hf"}
"""Formats of many files, which an empty folder may take."""
