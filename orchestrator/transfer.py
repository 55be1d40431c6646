"""A study brought from one root to another: its folder and its rows of the catalog, as a tar file in lines of text.

A job's log is the one thing that a Ray job server hands out, so the tar file is sent as base64, with its length and
SHA-256 in the last line.
"""

import base64
import hashlib
import io
import logging
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog.ids import firsts, keys
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables, is_whole
from orchestrator.catalog.validity import valid
from orchestrator.study_folder import StudyFolder
from search_spaces.errors import InputError
from search_spaces.study import difference
from workers.atomic_files import write_file

_log = logging.getLogger(__name__)

LINE_BYTES = 12_000
"""Of the tar file in one line: the log server hands out about 20,000 characters at a time."""

DATA, END = "latentsweep-data ", "latentsweep-end "

PIECE_ROWS = 128
"""Rows whose pictures are in memory at a time."""

NOT_SENT = ("lock",)


def write_parcel(study: str, root: str, out: TextIO) -> int:
    """Write a study as lines of text; the exit code, 2 where the root knows no such study."""
    tables, folder = Tables(root), StudyFolder(root, study)
    if not folder.path.is_dir() and study not in tables.read("trials", ["study"])["study"].to_pylist():
        known = sorted(set(tables.read("trials", ["study"])["study"].to_pylist()))
        hint = f"it has {', '.join(known)}" if known else "it holds no study yet"
        out.write(f"latentsweep: there is no study {study!r} under {root} on the cluster; {hint}\n")
        return 2
    lines = _Lines(out)
    with tarfile.open(fileobj=lines, mode="w|", dereference=True) as tar:
        if folder.path.is_dir():
            for path in sorted(folder.path.rglob("*")):
                if path.is_file() and path.name not in NOT_SENT and not path.name.startswith("."):
                    tar.add(path, f"studies/{study}/{path.relative_to(folder.path)}")
        if tables.is_local:  # from an object store everybody reads for himself
            for number, (table, rows) in enumerate(rows_of(tables, study)):
                buffer = io.BytesIO()
                with pa.ipc.new_stream(buffer, rows.schema) as writer:
                    writer.write_table(rows)
                entry = tarfile.TarInfo(f"rows/{number:06d}-{table}.arrow")
                entry.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(entry, buffer)
    lines.end()
    return 0


class _Lines(io.RawIOBase):
    """What is written here goes out as lines of base64."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._waiting = out, bytearray()
        self._digest, self._length = hashlib.sha256(), 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        """Take bytes; whole lines go out."""
        self._digest.update(content)
        self._length += len(content)
        self._waiting += content
        while len(self._waiting) >= LINE_BYTES:
            self._send(LINE_BYTES)
        return len(content)

    def _send(self, count: int) -> None:
        line = base64.b64encode(self._waiting[:count]).decode("ascii")
        del self._waiting[:count]
        self._out.write(f"{DATA}{line}\n")

    def end(self) -> None:
        """Send what is left, and the line that says that it was all."""
        if self._waiting:
            self._send(len(self._waiting))
        self._out.write(f"{END}{self._length} {self._digest.hexdigest()}\n")
        self._out.flush()


def rows_of(tables: Tables, study: str) -> Iterator[tuple[str, pa.Table]]:
    """A study's rows of each table, those with pictures a few at a time."""
    trials = tables.read("trials", where=pc.field("study") == study)
    ids = pc.unique(trials["image_id"])
    yield "trials", trials
    yield "scores", tables.read_ids("scores", SCHEMAS["scores"].names, ids)
    for start in range(0, len(ids), PIECE_ROWS):
        piece = ids.slice(start, PIECE_ROWS)
        yield "images", _distinct(tables.read_ids("images", SCHEMAS["images"].names, piece))


def _distinct(rows: pa.Table) -> pa.Table:
    """The rows of `images` with one for each image: the first picture, or where there is none the first failure."""
    drawn_first = np.argsort(pc.not_equal(rows["status"], "ok").to_numpy(), kind="stable")
    chosen = drawn_first[firsts(keys(rows["image_id"].take(pa.array(drawn_first))))]
    return rows.take(pa.array(np.sort(chosen)))


def read_parcel(lines: Iterable[str], to: BinaryIO) -> list[str]:
    """Write the tar file that lines of text hold; the other lines. Raises InputError where it is not whole."""
    digest, length = hashlib.sha256(), 0
    others: list[str] = []
    for line in lines:
        if line.startswith(DATA):
            content = base64.b64decode(line[len(DATA) :])
            digest.update(content)
            length += len(content)
            to.write(content)
        elif line.startswith(END):
            if line[len(END) :].strip() != f"{length} {digest.hexdigest()}":
                raise InputError("what arrived is not what was sent; fetch it again")
            return others
        else:
            others.append(line.rstrip("\n"))
    told = next((line for line in reversed(others) if line.startswith("latentsweep: ")), None)
    raise InputError(
        (told or "latentsweep: the results did not arrive in full; fetch them again")[len("latentsweep: ") :]
    )


def unpack(parcel: BinaryIO, study: str, root: str) -> tuple[Path, int]:
    """Bring a study out of a tar file into a root; its folder there, and the images that are new there.

    What the root has already stays as it is. Raises InputError where it has another study of that name, or where
    somebody runs this one there.
    """
    folder, tables = StudyFolder(root, study), Tables(root)
    if folder.is_being_run:
        raise InputError(f"{study} is being run under {root} by {folder.owner}; give another --into")
    images = 0
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=parcel) as tar:
            try:
                tar.extractall(scratch, filter="data")
            except tarfile.FilterError as error:
                raise InputError(
                    f"what arrived would leave its folder and was not unpacked: {error}"
                ) from None
        sent = StudyFolder(scratch, study)
        _check_same(sent, folder, root)
        for path in sorted((Path(scratch) / "rows").glob("*.arrow")):
            table = path.stem.partition("-")[2]
            with pa.ipc.open_stream(path.read_bytes()) as reader:
                rows = _new(tables, table, _sound(table, reader.read_all()))
            if rows.num_rows:
                tables.write(table, rows)
                images += rows.num_rows if table == "images" else 0
        if sent.path.is_dir():
            shutil.copytree(sent.path, folder.path, copy_function=_copy, dirs_exist_ok=True)
    return folder.path, images


def _copy(source: str, target: str) -> None:
    """Copy a file, whole or not at all: a study's folder is read again by the fetch that follows a killed one."""
    write_file(Path(target), Path(source).read_bytes())


def _check_same(sent: StudyFolder, folder: StudyFolder, root: str) -> None:
    """Raise InputError where the root has another study of the name."""
    theirs, ours = sent.pinned(), folder.pinned()
    if theirs is None or ours is None:
        return
    changed = difference(ours, theirs)
    if changed or theirs.token != ours.token:
        why = changed or "it was begun on its own"
        raise InputError(f"{root} has another study named {ours.name!r} ({why}); give another --into")


def _sound(table: str, rows: pa.Table) -> pa.Table:
    """The rows that arrived which are rows of the table, with the pictures that were stored; others are named."""
    good = valid(table, rows)
    if table == "images":
        told = zip(rows["image"].to_pylist(), rows["sha256"].to_pylist(), strict=True)
        whole = [image is None or is_whole(image["bytes"], sha256) for image, sha256 in told]
        good = pc.and_(good, pa.chunked_array([pa.array(whole, pa.bool_())]))
    lost = rows.num_rows - (pc.sum(good).as_py() or 0)
    if lost:
        _log.warning(
            "%s of %s rows of %s that arrived are damaged there, and were left out; `latentsweep catalog repair` "
            "on the cluster puts them aside",
            *(lost, rows.num_rows, table),
        )
    return rows.filter(good)


def _new(tables: Tables, table: str, rows: pa.Table) -> pa.Table:
    """The rows that a root has not got."""
    names = [name for name in SCHEMAS[table].names if name != "image"]
    if table == "images":
        names = ["image_id", "status"]
    there = tables.read_ids(table, names, pc.unique(rows["image_id"]))
    known = pc.is_in(_keys(rows, names), value_set=pc.unique(_keys(there, names)))
    return rows.filter(pc.invert(known))


def _keys(rows: pa.Table, names: Iterable[str]) -> pa.ChunkedArray:
    """What tells a row from others, as one text."""
    columns = [pc.fill_null(rows[name].cast(pa.string()), "\x00") for name in names]
    return pc.binary_join_element_wise(*columns, "\x1f")
