"""A study brought into other tools' formats: a folder of pictures, CSV, Parquet, a data set, an Optuna storage."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.catalog.expressions import filtered
from orchestrator.catalog.frames import best, joined, pictures_of, score_names
from orchestrator.catalog.schema import SCHEMAS, SUFFIXES, huggingface_metadata, suffix
from orchestrator.catalog.tables import Tables, is_whole
from orchestrator.cells import code, csv_text
from orchestrator.images import checked_id
from orchestrator.study_folder import as_filed, named_folder
from search_spaces.errors import InputError, did_you_mean
from search_spaces.requests import Settings
from workers.atomic_files import new_file, new_folder

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
    tables: Tables,
    study: str,
    where: str | None = None,
    top: int | None = None,
    pictures: bool = False,
    filed: Callable[[Settings], Settings] = dict,
) -> pa.Table:
    """A study's joined rows that a condition holds for, of these the `top` with the largest score, best first.

    Swept settings are under the values that `filed` gives.
    Raises InputError for what the condition does not say.
    """
    if top and where is None:
        rows = best(tables, study, top, filed)
    else:
        rows = joined(tables, study, pictures=False, as_filed=filed)
    if where is not None:
        rows = filtered(rows, where, score_names(rows))
    if top is not None:
        rows = rows.filter(pc.is_valid(rows["value"]))
        order = pc.sort_indices(rows, sort_keys=[("value", "descending"), ("trial", "ascending")])
        rows = rows.take(order[:top])
    return with_pictures(tables, rows) if pictures else rows


def with_pictures(tables: Tables, rows: pa.Table) -> pa.Table:
    """Rows with the pictures that their image_ids name, null where there is none."""
    return rows.append_column(SCHEMAS["images"].field("image"), pictures_of(tables, rows["image_id"]))


def export(
    study: str, to: str, place: str | None, root: str, where: str | None = None, top: int | None = None
) -> str:
    """Bring a study into a format, one of FORMATS or optuna; the result is one line that says what is where.

    `place` is by default named after the study; it is there whole or not at all. What is there already is not
    overwritten, and is right where it is just this. Raises InputError.
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
    rows = rows_of(tables, study, where, top, filed=as_filed(study, root))
    if not rows.num_rows:
        raise InputError(f"no row of {study} is left to export; loosen --where")
    kind = FORMATS[to]
    if place and "://" in place:
        raise InputError(f"export writes to this machine's disk, not to {place}; name a path")
    wanted = Export(study, rows, tables, Path(place or kind.default.format(study)))
    if not _is_free(wanted, kind):
        return f"{kind.told(wanted)}, as before"
    wanted.place.parent.mkdir(parents=True, exist_ok=True)
    with (new_folder if kind.is_folder else new_file)(wanted.place) as aside:
        kind.write(wanted, aside)
        _is_free(wanted, kind)  # still, after what may have been an hour
    return kind.told(wanted)


def _is_free(wanted: Export, kind: "Format") -> bool:
    """Whether something may be put at the place; False where just this is there. Raises InputError where it is taken.

    What bears its name is whole, so that the same command, killed at whatever moment, may be given again. An empty
    folder may become one that is full.
    """
    place = wanted.place
    if not place.exists() and not place.is_symlink():
        return True
    if not (kind.is_folder and place.is_dir()) or any(place.iterdir()):
        try:
            if kind.holds(wanted):
                return False
        except (OSError, ValueError):  # what is there is of another kind
            pass
        raise InputError(f"{place} exists already, and is not this export; name another place")
    here = place.samefile(Path.cwd())
    if here or place.is_mount():
        why = "is the folder that you are in" if here else "is mounted"
        raise InputError(f"{place} {why}, and an export takes its folder's place; name one inside it")
    return True


USES = ("study", "trial", "instance", "role", "state", "scorer", "text", "value")
"""Columns of a joined row that speak of a trial, not of its picture."""


def _write_folder(wanted: Export, folder: Path) -> None:
    """Each picture as it is stored, with a JSON file of the same name: its settings, and the trials that use it."""
    rows = _rows_of_pictures(wanted)
    for image_id, picture in wanted.pictures(wanted.rows):
        (folder / f"{checked_id(image_id)}{suffix(picture)}").write_bytes(picture)
        (folder / f"{image_id}.json").write_text(_told_of_picture(rows[image_id]), encoding="utf-8")


def _folder_holds(wanted: Export) -> bool:
    rows = _rows_of_pictures(wanted)
    files = {path.name for path in wanted.place.iterdir()}
    there = {Path(name).stem for name in files if name.endswith(".json")}
    pictures = {f"{image_id}{end}" for image_id in there for end in SUFFIXES} & files
    drawn = set(wanted.rows.filter(pc.equal(wanted.rows["status"], "ok"))["image_id"].to_pylist())
    return (
        there == drawn
        and len(pictures) == len(there)
        and len(files) == 2 * len(there)
        and all(
            (wanted.place / f"{name}.json").read_text(encoding="utf-8") == _told_of_picture(rows[name])
            for name in there
        )
        and all(
            is_whole((wanted.place / name).read_bytes(), _digest(rows[Path(name).stem])) for name in pictures
        )
    )


def _digest(rows: Sequence[Mapping[str, object]]) -> str | None:
    """The SHA-256 of the picture that rows use; None where an early version kept none."""
    found = rows[0].get("sha256")
    return found if isinstance(found, str) else None


def _rows_of_pictures(wanted: Export) -> dict[str, list[dict[str, object]]]:
    """The rows that use each image_id."""
    by_image: dict[str, list[dict[str, object]]] = {}
    for row in wanted.rows.to_pylist():
        by_image.setdefault(row["image_id"], []).append(row)
    return by_image


def _told_of_picture(rows: Sequence[Mapping[str, object]]) -> str:
    """The JSON beside a picture, of the rows that use it."""
    told = {
        **{name: value for name, value in rows[0].items() if name not in USES},
        "trials": [{name: row[name] for name in USES} for row in rows],
    }
    return json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n"


def _write_csv(wanted: Export, path: Path) -> None:
    path.write_text(_csv_text(wanted), encoding="utf-8", newline="")


def _csv_holds(wanted: Export) -> bool:
    return wanted.place.read_bytes() == _csv_text(wanted).encode()


def _csv_text(wanted: Export) -> str:
    return csv_text([wanted.rows.column_names, *(row.values() for row in wanted.rows.to_pylist())])


def _write_whole_parquet(wanted: Export, path: Path) -> None:
    _write_parquet(wanted, wanted.rows, path)


def _parquet_holds(wanted: Export) -> bool:
    return _same_rows(wanted, [wanted.place])


def _same_rows(wanted: Export, files: Sequence[Path]) -> bool:
    """Whether Parquet files hold the rows, and with each the picture that was stored for it."""
    columns = [name for name in pq.read_schema(files[0]).names if name != "image"] if files else []
    if columns != wanted.rows.column_names:
        return False
    there = pa.concat_tables(pq.read_table(file, columns=columns) for file in files)
    if not there.replace_schema_metadata().equals(wanted.rows.replace_schema_metadata()):
        return False
    pieces = (piece for file in files for piece in pq.ParquetFile(file).iter_batches(PIECE_ROWS))
    return all(_has_pictures(piece) for piece in pieces)


def _has_pictures(rows: pa.RecordBatch) -> bool:
    """Whether rows that were drawn have their pictures, as they were stored."""
    told = zip(rows["image"].to_pylist(), rows["status"].to_pylist(), rows["sha256"].to_pylist(), strict=True)
    return all(
        status != "ok" or is_whole(image["bytes"] if image else None, sha256)
        for image, status, sha256 in told
    )


def _write_parquet(wanted: Export, rows: pa.Table, path: Path) -> None:
    """Rows with their pictures as one file, a row group at a time."""
    image = pa.field("image", SCHEMAS["images"].field("image").type)
    schema = rows.schema.append(image)
    schema = schema.with_metadata(huggingface_metadata(schema))
    with pq.ParquetWriter(path, schema, compression={"image.bytes": "none"}, use_dictionary=False) as writer:
        for start in range(0, rows.num_rows, PIECE_ROWS):
            piece = with_pictures(wanted.tables, rows.slice(start, PIECE_ROWS))
            writer.write_table(piece.cast(schema))


def _write_hf(wanted: Export, folder: Path) -> None:
    """A folder that `datasets.load_dataset(PLACE)` reads, with a card."""
    rows = wanted.rows
    (folder / "data").mkdir()
    for number, name in enumerate(_shards(rows)):
        _write_parquet(wanted, rows.slice(number * SHARD_ROWS, SHARD_ROWS), folder / "data" / name)
    (folder / "README.md").write_text(_card(wanted), encoding="utf-8")


def _hf_holds(wanted: Export) -> bool:
    card, data = wanted.place / "README.md", wanted.place / "data"
    names = _shards(wanted.rows)
    return (
        card.read_text(encoding="utf-8") == _card(wanted)
        and sorted(path.name for path in data.iterdir()) == names
        and _same_rows(wanted, [data / name for name in names])
    )


def _shards(rows: pa.Table) -> list[str]:
    """The names of a data set's files, in their order."""
    count = -(-rows.num_rows // SHARD_ROWS)
    return [f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def _card(wanted: Export) -> str:
    rows = wanted.rows
    models = ", ".join(map(code, sorted(filter(None, set(rows["model"].to_pylist())))))
    scorers = ", ".join(map(code, sorted(set(rows["scorer"].to_pylist()))))
    columns = "\n".join(f"| {code(field.name)} | {field.type} |" for field in rows.schema)
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


def _pictures_told(wanted: Export) -> str:
    count = sum(1 for _ in wanted.place.glob("*.json"))
    return f"{count} pictures of {wanted.study}, each with its JSON, in {wanted.place}"


def _rows_told(wanted: Export, words: str) -> str:
    return f"{wanted.rows.num_rows} rows of {wanted.study}{words.format(str(wanted.place))}"


@dataclass(frozen=True)
class Format:
    """A format: its default place, what writes it there, whether just that is there, and what is said of it."""

    default: str
    is_folder: bool
    write: Callable[[Export, Path], None]
    holds: Callable[[Export], bool]
    told: Callable[[Export], str]


FORMATS: Mapping[str, Format] = {
    "folder": Format("{}-pictures", True, _write_folder, _folder_holds, _pictures_told),
    "csv": Format(
        "{}.csv", False, _write_csv, _csv_holds, partial(_rows_told, words=", without pictures, in {}")
    ),
    "parquet": Format(
        "{}.parquet",
        False,
        _write_whole_parquet,
        _parquet_holds,
        partial(_rows_told, words=" with their pictures in {}"),
    ),
    "hf": Format(
        "{}-dataset",
        True,
        _write_hf,
        _hf_holds,
        partial(_rows_told, words=" for `datasets.load_dataset({!r})`"),
    ),
}
