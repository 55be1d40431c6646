"""The three tables under a root: immutable part files, in a local folder or on any pyarrow filesystem."""

import errno
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TypeGuard, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from orchestrator.catalog import validity
from orchestrator.catalog.ids import NO_KEYS, Index, Keys, key, keys
from orchestrator.catalog.layout import SEALED, broken_seal, changed_body, encode, picture_places
from orchestrator.catalog.ledger import Ledger
from orchestrator.catalog.schema import ENCODED, SCHEMA_VERSION, SCHEMAS, VERSION_KEY, foreign, suffix
from search_spaces.errors import InputError, printable, utf8

_log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 8
"""To read a table whose part files a compaction replaces meanwhile."""

DIGESTS = 64
"""Part files whose pictures' digests are kept at a time: 8 MB for those of 2,000 pictures."""

READERS = 16
"""Threads that read the ends of new part files on a store, which answers many questions in the time of one."""

PART = re.compile(r"part-(\d+)-[0-9a-f]+\.parquet")
"""A part file's name: the nanosecond by which parts are ordered, and what keeps two of one moment apart."""

UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What reading a file's damaged bytes may raise, and what a filesystem that fails does."""

FLAT = {"s3", "gcs", "abfs"}
"""Filesystems without folders, which need not be made, and where an object is there whole or not at all."""


def open_root(root: str | Path) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a root, and the root's path on it. Raises InputError where it cannot be had.

    Credentials are the ecosystem's own business (AWS_*, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS, instance roles).
    """
    text = str(root)
    if not text.strip():
        raise InputError(f"--root {text!r} names no folder; write a path, such as runs")
    if "://" not in text:
        return pafs.LocalFileSystem(), _local(utf8(str(Path(text).absolute()), "--root"), text)
    address = urlsplit(utf8(text, "--root"))
    if address.scheme == "file":
        if address.netloc not in ("", "localhost") or not address.path:
            raise InputError(
                f"--root {root} names no folder of this machine; write file:///… or just its path"
            )
        path = utf8(unquote(address.path, errors="surrogateescape"), "--root")
        return pafs.LocalFileSystem(), _local(path, text)
    if not address.netloc:
        raise InputError(f"--root {text} names no bucket; write {address.scheme}://BUCKET/PREFIX")
    if "@" in address.netloc:
        raise InputError(
            f"--root {address.scheme}://…: a root holds no credentials; give them as the store's own tools take "
            "them, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws"
        )
    if address.scheme == "s3" and "allow_delayed_open" not in address.query:  # small objects in one request
        text += ("&" if address.query else "?") + "allow_delayed_open=true"
    try:
        filesystem, base = pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OSError) as error:
        raise InputError(f"--root {root} cannot be opened: {first_line(error)}") from None
    return filesystem, base


def _local(path: str, root: str) -> str:
    """A path of this machine that is a folder, or may become one. Raises InputError where a file is in the way."""
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"--root {root}: {place} is no folder; name one")
    return path


def first_line(error: BaseException) -> str:
    """An error's text for a sentence."""
    return str(error).strip().partition("\n")[0].rstrip(".")


class DamagedPartError(OSError):
    """A part file that cannot be read in full; the text is a whole sentence."""


class Tables:
    """The three tables under a root (`runs` or `s3://bucket/runs`), readable by anything that reads Parquet.

    A file that is no whole part file is named once and skipped; one that a newer version wrote raises
    InputError, since what it holds would be made again.
    """

    def __init__(self, root: str | Path) -> None:
        self._filesystem, base = open_root(root)
        self.base = f"{base.rstrip('/')}/catalog"
        self.ledger = Ledger(self._filesystem, self.base)
        self._parts: dict[str, ds.ParquetFileFragment] = {}
        self.skipped: dict[str, str] = {}  # path → why
        self.changed: dict[
            tuple[str, int], str
        ] = {}  # part file and row → image_id of what was not stored so
        self.missing: dict[str, dict[str, int]] = {}  # table → path → rows, of part files that are gone
        self._invalid: dict[str, ds.ParquetFileFragment] = {}  # of these, parts with rows that are none
        self._was_there = self.is_local and Path(self.base).is_dir()
        self._pictures = _Pictures()

    @property
    def is_local(self) -> bool:
        """Whether the tables lie in a folder of this machine."""
        return isinstance(self._filesystem, pafs.LocalFileSystem)

    def check_root(self) -> None:
        """See that the root's bucket is there. Raises InputError, OSError where the store cannot be asked."""
        bucket = self.base.partition("/")[0]
        if self._filesystem.type_name not in ("s3", "gcs"):
            return
        if self._filesystem.get_file_info(bucket).type == pafs.FileType.NotFound:
            raise InputError(f"--root: there is no bucket {bucket!r}, or these credentials do not see it")

    # Writing

    def append(self, table: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Write rows as one part file; on return it is durable and whole, or not there at all. Raises OSError."""
        if rows:
            self.write(table, pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[table]))

    def write(self, table: str, data: pa.Table, at: str | None = None) -> str:
        """Write a part file, which is read where part `at` is, by default last; its path. Raises OSError."""
        moment = _moment(at) if at else time.time_ns()
        content, seal = encode(table, data)
        folder, name = f"{self.base}/{table}", f"part-{moment}-{uuid.uuid4().hex[:8]}{seal}.parquet"
        if self.is_local:
            self._make_folder(Path(folder))
            _write_aside(content, Path(folder), name)
        else:
            if self._filesystem.type_name not in FLAT:
                self._filesystem.create_dir(folder, recursive=True)
            stream = self._filesystem.open_output_stream(f"{folder}/{name}")
            stream.write(
                b"".join(content)
            )  # one whole object: closed, and with that there, only after all of it was
            stream.close()
        self.ledger.enter(f"{folder}/{name}", data.num_rows)
        return f"{folder}/{name}"

    def _make_folder(self, folder: Path) -> None:
        self._check_still_there()
        folder.mkdir(parents=True, exist_ok=True)
        self._was_there = True

    def _check_still_there(self) -> None:
        """A catalog that was there and is gone (a vanished mount) is not empty, and not begun anew in its place."""
        if self._was_there and not Path(self.base).is_dir():
            raise OSError(errno.ENODEV, "the catalog's folder is gone", self.base)

    def remove(self, path: str) -> None:
        """Remove a part file; one that is gone already is fine. Raises OSError."""
        rows = self._rows_in(path)
        self.ledger.strike(path, rows)
        try:
            self._filesystem.delete_file(path)
        except (
            OSError
        ):  # also where a store refuses what pyarrow leaves in its place, an empty folder's marker
            if self._filesystem.get_file_info(path).type != pafs.FileType.NotFound:
                raise
        self.ledger.strike(path, rows)
        self._parts.pop(path, None)

    def _rows_in(self, path: str) -> int | None:
        return self._parts[path].metadata.num_rows if path in self._parts else None

    def forget(self, path: str) -> None:
        """Miss a part file that is gone no longer."""
        self.ledger.strike(path)
        for missing in self.missing.values():
            missing.pop(path, None)

    def set_aside(self, path: str) -> str:
        """Move a file out of its table, to `damaged/`; its new path. Raises OSError."""
        table, name = path.split("/")[-2:]
        folder = f"{self.base}/damaged"
        if self._filesystem.type_name not in FLAT:
            self._filesystem.create_dir(folder, recursive=True)
        target = f"{folder}/{table}-{name}"
        self.ledger.strike(path, self._rows_in(path))
        if self.is_local:
            Path(path).rename(target)
        else:
            self._filesystem.copy_file(path, target)
            self.remove(path)
        for noted in (self._parts, self.skipped, self._invalid):
            noted.pop(path, None)
        return target

    # Reading

    def read(
        self, table: str, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """Rows of a table, in the order they were written; empty where nothing was written yet."""
        names = list(columns) if columns else SCHEMAS[table].names
        if where is None:
            return self._ask(table, lambda parts: _rows(_dataset(table, parts), names))
        rows = self._ask(table, lambda parts: _rows(_dataset(table, parts, ENCODED), names, where))
        return _decoded(table, rows)

    def counts(self, table: str, column: str, where: pc.Expression | None = None) -> dict[str, int]:
        """How many rows have each text of a column."""
        rows = self._ask(table, lambda parts: _rows(_dataset(table, parts, ENCODED), [column], where))
        counted = pc.value_counts(rows.unify_dictionaries()[column])
        return {each["values"]: each["counts"] for each in counted.to_pylist()}

    def read_keys(
        self, table: str, texts: Sequence[str], columns: Sequence[str], where: pc.Expression
    ) -> tuple[Keys, pa.Table]:
        """The key of each row, of its image_id together with texts, and some other columns.

        Batch by batch, so that a million ids, which are most of what there is to read, are never all there as text.
        """
        names = ["image_id", *texts, *columns]
        rest = pa.schema([SCHEMAS[table].field(name) for name in columns])

        def collect(parts: Mapping[str, ds.ParquetFileFragment]) -> tuple[Keys, pa.Table]:
            found, others = [NO_KEYS], []
            for batch in _dataset(table, parts, ENCODED).to_batches(columns=names, filter=where):
                asked = pa.Table.from_batches([batch])
                found.append(keys(asked["image_id"], *(asked[name] for name in texts)))
                others.append(asked.select(list(columns)).cast(rest))
            return np.concatenate(found), pa.concat_tables([rest.empty_table(), *others])

        return self._ask(table, collect)

    def read_ids(
        self, table: str, columns: Sequence[str], image_ids: pa.Array, where: pc.Expression | None = None
    ) -> pa.Table:
        """Rows by image_id, which a condition on these columns holds for.

        Of the columns no more is read than the row groups that have one of the ids.
        """

        def rows(parts: Mapping[str, ds.ParquetFileFragment]) -> pa.Table:
            ids = _rows(_dataset(table, parts), ["image_id"])["image_id"]
            hits = np.flatnonzero(pc.is_in(ids, image_ids).to_numpy())
            groups = _groups(parts)
            sizes = np.array([size for _, _, size in groups], np.int64)
            ends = np.cumsum(sizes)
            of = np.searchsorted(ends, hits, "right")
            chosen, place = np.unique(of, return_inverse=True)
            some: dict[str, list[int]] = {}
            for path, group, _ in (groups[number] for number in chosen):
                some.setdefault(path, []).append(group)
            fragments = {path: parts[path].subset(row_group_ids=numbers) for path, numbers in some.items()}
            starts = (
                np.cumsum(sizes[chosen]) - sizes[chosen]
            )  # of the groups that are read, one after the other
            wanted = starts[place] + hits - (ends - sizes)[of]
            return _read(
                list(columns),
                lambda names, **options: _taken(
                    _dataset(table, fragments, ENCODED).scanner(names, **options), wanted
                ),
            )

        found = _decoded(table, self._ask(table, rows))
        return found if where is None else found.filter(where)

    def read_part(self, table: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one part file.

        Raises FileNotFoundError where it is gone, DamagedPartError where it proves to be damaged, OSError where the
        filesystem fails.
        """
        parts = (
            self._parts if path in self._parts else self.parts(table)
        )  # a listing for each of many parts is slow
        if path not in parts:
            raise FileNotFoundError(2, "the part file is gone", path)

        def rows(some: Mapping[str, ds.ParquetFileFragment]) -> pa.Table:
            return _rows(_dataset(table, some), list(columns) if columns else SCHEMAS[table].names)

        try:
            return rows({path: parts[path]})
        except FileNotFoundError:
            self._parts.pop(path, None)
            raise
        except UNREADABLE:
            self._look_for_damage(path, parts[path], rows)
            if path not in self.skipped:
                raise
            raise DamagedPartError(_sentence(path, self.skipped[path])) from None

    def png(self, image_id: str) -> bytes:
        """One picture as it is stored, without a look at its neighbours.

        Raises KeyError where the catalog has none of that id, or only one that is not what was stored.
        """
        for _ in range(TRIES):
            path, row = self._picture_index({image_id}).place(image_id)
            try:
                picture, sha256 = self._picture(path, row), self._sha256(path, row)
            except (FileNotFoundError, DamagedPartError):  # compacted meanwhile, or skipped from now on
                self._pictures = _Pictures()
                continue
            if is_whole(picture, sha256):
                return picture
            self.changed[path, row] = image_id
            _name(path, _changed(image_id))
            self._pictures = _Pictures()  # in which another copy may be found
        raise FileNotFoundError(2, "the part files change faster than they can be read", self.base)

    def pictures(self, image_ids: Set[str]) -> Iterator[tuple[str, bytes]]:
        """Those of some pictures that are there and are what was stored, each once, one in memory at a time."""
        for image_id in self._picture_index(image_ids).order(image_ids):
            with suppress(KeyError):
                yield image_id, self.png(image_id)

    def _picture_index(self, wanted: Set[str]) -> "_Pictures":
        """Where pictures lie; read again where one of those wanted is not known yet."""
        if not self._pictures.has_all(wanted):
            parts = self.parts("images")
            if parts.keys() != self._pictures.parts:
                self._pictures = _Pictures(
                    self._ask("images", partial(_each, "images", columns=("image_id", "status"))),
                    self.changed,
                )
        return self._pictures

    def _picture(self, path: str, row: int) -> bytes | None:
        place = self._place_in(path, row)
        with self._filesystem.open_input_file(path) as file:
            if place is not None:
                start, length = place
                picture: bytes = file.read_at(length, start)
                return picture
            reader = pq.ParquetFile(file)  # of a version that did not note places
            for group in range(reader.num_row_groups):
                rows = reader.metadata.row_group(group).num_rows
                if row < rows:
                    column = reader.read_row_group(group, columns=["image"])["image"]
                    found: bytes | None = (column[row].as_py() or {}).get("bytes")
                    return found
                row -= rows
        raise KeyError(path)

    def _sha256(self, path: str, row: int) -> str | None:
        """The SHA-256 that a picture was stored with; None where an earlier version noted none."""
        digests = self._pictures.digests
        if path not in digests:
            if len(digests) >= DIGESTS:
                digests.clear()
            digests[path] = self.read_part("images", path, ["sha256"])["sha256"]
        found: str | None = digests[path][row].as_py()
        return found

    def _place_in(self, path: str, row: int) -> tuple[int, int] | None:
        if path not in self._pictures.places:
            fragment = self._parts.get(path)
            self._pictures.places[path] = picture_places(fragment.metadata.metadata) if fragment else None
        places = self._pictures.places[path]
        return places[row] if places else None

    def parts(self, table: str) -> dict[str, ds.ParquetFileFragment]:
        """The part files of a table that can be read, by path, the oldest first.

        Raises InputError for one of a newer version, OSError where the filesystem fails.
        """
        self._check_still_there()
        selector = pafs.FileSelector(f"{self.base}/{table}", allow_not_found=True)
        infos = [
            info
            for info in sorted(self._filesystem.get_file_info(selector), key=lambda info: info.path)
            # half-written files of a killed run, and what tools keep for themselves, begin with a dot
            if not info.base_name.startswith((".", "_")) and info.path not in self.skipped
        ]
        self._miss(table, {info.path for info in infos})
        new = [info for info in infos if info.path not in self._parts]
        if new:
            with ThreadPoolExecutor(1 if self.is_local else min(len(new), READERS)) as readers:
                for info, fragment in zip(new, readers.map(self._checked, new), strict=True):
                    if fragment is not None:
                        self._parts[info.path] = fragment
        return {info.path: self._parts[info.path] for info in infos if info.path in self._parts}

    def _miss(self, table: str, there: Set[str]) -> None:
        """Name the part files of a table that are gone, once."""
        if table not in self.missing:
            self.missing[table] = self.ledger.missing(table, there | self.skipped.keys())
            for path, rows in self.missing[table].items():
                _name_missing(path, rows)

    def sizes(self, table: str) -> dict[str, int]:
        """Every file in a table's folder, part file or not, with its size in bytes."""
        selector = pafs.FileSelector(f"{self.base}/{table}", allow_not_found=True)
        found = sorted(self._filesystem.get_file_info(selector), key=lambda info: info.path)
        return {info.path: info.size or 0 for info in found}

    def age(self, path: str) -> float:
        """Seconds since a file was written."""
        moment = self._filesystem.get_file_info(path).mtime_ns
        return 0.0 if moment is None else time.time() - moment / 1e9

    def _checked(self, info: pafs.FileInfo) -> ds.ParquetFileFragment | None:
        """A file as a part of a table; None, with the reason noted, where it is none."""
        if info.type != pafs.FileType.File or not PART.fullmatch(info.base_name):
            self._skip(info.path, "is no part file")
            return None
        fragment = _FORMAT.make_fragment(info.path, self._filesystem)
        try:
            problem = self._problem(info, fragment)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            damage = self._damage(info.path)
            if damage is None:
                raise
            problem = f"is truncated or no Parquet file ({damage or first_line(error)})"
        if problem:
            self._skip(info.path, problem)
            return None
        return fragment

    def _problem(self, info: pafs.FileInfo, fragment: ds.ParquetFileFragment) -> str | None:
        """Why a part file cannot be taken for one of its table; None where it can.

        Whose seal is whole was written by this program, and so its rows need not be looked at. Raises what UNREADABLE
        has, and InputError for one of a newer version.
        """
        broken = self._broken_seal(info)
        if broken:
            return f"is damaged ({broken})"
        fragment.ensure_complete_metadata()
        version = (fragment.metadata.metadata or {}).get(VERSION_KEY)
        if version is None or not version.isdigit():
            return "is a Parquet file of something else"
        if int(version) > SCHEMA_VERSION:
            raise InputError(
                f"{info.path} was written by a newer version of latentsweep (schema {int(version)}, this one reads "
                f"up to {SCHEMA_VERSION}); use that version, or another --root"
            )
        table = info.path.split("/")[-2]
        strange = foreign(table, fragment.physical_schema)
        if strange:
            return f"is no part of {table} ({strange})"
        if SEALED.fullmatch(info.base_name):
            return None
        wrong = validity.problem(
            table, _rows(_dataset(table, {info.path: fragment}, ENCODED), validity.CHECKED[table])
        )
        if wrong:
            self._invalid[info.path] = fragment
            return f"is not what this program writes ({wrong})"
        return None

    def sound_rows(self, path: str) -> pa.Table | None:
        """Those rows of a skipped part file that are whole and rows of its table; None where nobody can tell.

        Of one that is damaged these are the row groups whose pages all have their checksum.
        """
        table = path.split("/")[-2]
        fragment = self._invalid.get(path) or self._sealed(path)
        if fragment is None:
            return None
        names = [name for name in SCHEMAS[table].names if name != "image"]
        sound = [SCHEMAS[table].empty_table()]
        for group in fragment.row_groups:
            part = fragment.subset(row_group_ids=[group.id])
            with suppress(*UNREADABLE):
                rows = _rows(_dataset(table, {path: part}), names)
                if table == "images":
                    rows = _with_pictures(rows, self._pictures_in(path, group.id))
                sound.append(rows.filter(validity.valid(table, rows)))
        return pa.concat_tables(sound)

    def _pictures_in(self, path: str, group: int) -> list[bytes | None]:
        """The pictures in a row group, whatever they are now."""
        with self._filesystem.open_input_file(path) as file:
            column = pq.ParquetFile(file).read_row_group(group, columns=["image.bytes"])["image"]
        return [image and image["bytes"] for image in column.to_pylist()]

    def _sealed(self, path: str) -> ds.ParquetFileFragment | None:
        """A part file whose seal is there and whole; None where it is not."""
        if SEALED.fullmatch(path.rpartition("/")[2]) is None:
            return None
        fragment = _FORMAT.make_fragment(path, self._filesystem)
        with suppress(*UNREADABLE), self._filesystem.open_input_file(path) as file:
            if broken_seal(path.rpartition("/")[2], file) is None:
                fragment.ensure_complete_metadata()
                return fragment
        return None

    def _broken_seal(self, info: pafs.FileInfo) -> str | None:
        """What is wrong with a part file's footer; None where nothing is, or it has no seal. Raises OSError."""
        if SEALED.fullmatch(info.base_name) is None:
            return None
        with self._filesystem.open_input_file(info.path) as file:
            return broken_seal(info.base_name, file)

    def _damage(self, path: str) -> str | None:
        """What is wrong with a file's content; None where it can be read. Raises OSError where it cannot be had."""
        with self._filesystem.open_input_file(path) as file:
            content = file.read_buffer()
        try:
            reader = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            reader.read([name for name in reader.schema_arrow.names if name != "image"])
            pq.ParquetFile(pa.BufferReader(content)).read()  # each picture has a digest of its own
        except UNREADABLE as error:
            return first_line(error)
        return None

    def changed_body(self, table: str, path: str) -> str | None:
        """What is wrong with the bytes of a part file, all of which are read, by their digest; None where nothing is.

        Raises FileNotFoundError where it is gone, OSError where the filesystem fails.
        """
        fragment = self.parts(table).get(path)
        if fragment is None:
            raise FileNotFoundError(2, "the part file is gone", path)
        with self._filesystem.open_input_file(path) as file:
            return changed_body(fragment.metadata, file)

    @property
    def notices(self) -> list[str]:
        """A sentence for each file, and for each picture, that was skipped, and for each file that is gone."""
        pictures = [_sentence(path, _changed(image_id)) for (path, _), image_id in self.changed.items()]
        gone = [_missing(*each) for missing in self.missing.values() for each in missing.items()]
        return [_sentence(path, why) for path, why in self.skipped.items()] + pictures + gone

    def _skip(self, path: str, why: str) -> None:
        self.skipped[path] = why
        self._parts.pop(path, None)
        _name(path, why)

    def _ask(self, table: str, question: Callable[[Mapping[str, ds.ParquetFileFragment]], T]) -> T:
        """Answer a question from all readable parts; one that proves to be damaged is named and left out."""
        for _ in range(TRIES):
            parts = self.parts(table)
            try:
                return question(parts)
            except FileNotFoundError:  # compacted meanwhile
                self._parts.clear()
            except UNREADABLE:
                for path, fragment in parts.items():
                    self._look_for_damage(path, fragment, question)
                if not self.skipped.keys() & parts.keys():
                    raise
        raise FileNotFoundError(2, "the part files change faster than they can be read", self.base)

    def _look_for_damage(
        self,
        path: str,
        fragment: ds.ParquetFileFragment,
        question: Callable[[Mapping[str, ds.ParquetFileFragment]], object],
    ) -> None:
        try:
            question({path: fragment})
        except FileNotFoundError:
            return
        except UNREADABLE:
            problem = self._damage(path)
            if problem is not None:
                self._skip(path, f"is damaged ({problem})")


class _Pictures:
    """Where pictures lie: which row of which part file."""

    def __init__(
        self, parts: Mapping[str, pa.Table] | None = None, but: Iterable[tuple[str, int]] = ()
    ) -> None:
        """Of parts with image_id and status, but for some rows of theirs."""
        self.parts = set(parts or ())
        self.digests: dict[str, pa.ChunkedArray] = {}
        self.places: dict[str, Sequence[tuple[int, int] | None] | None] = {}
        self._paths = list(parts or ())
        tables = list((parts or {}).values())
        self._starts = np.cumsum([0, *(table.num_rows for table in tables)])
        empty = SCHEMAS["images"].empty_table().select(["image_id", "status"])
        rows = pa.concat_tables([empty, *tables])
        drawn = np.flatnonzero(pc.equal(rows["status"], "ok").to_numpy())
        starts = dict(zip(self._paths, self._starts.tolist(), strict=False))
        left_out = [starts[path] + row for path, row in but if path in starts]
        self._rows = np.setdiff1d(drawn, left_out)
        self._index = Index(keys(rows["image_id"].take(pa.array(self._rows))))

    def has_all(self, image_ids: Set[str]) -> bool:
        """Whether all of some pictures are known."""
        return all(self._index.row(key(image_id)) is not None for image_id in image_ids)

    def place(self, image_id: str) -> tuple[str, int]:
        """Part file and row of a picture. Raises KeyError."""
        found = self._index.row(key(image_id))
        if found is None:
            raise KeyError(image_id)
        row = int(self._rows[found])
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._paths[part], row - int(self._starts[part])

    def order(self, image_ids: Set[str]) -> list[str]:
        """Those of some pictures that are known, as they lie."""
        rows = {image_id: self._index.row(key(image_id)) for image_id in image_ids}
        there = [image_id for image_id, row in rows.items() if row is not None]
        return sorted(there, key=lambda image_id: self.place(image_id))


_FORMAT = ds.ParquetFileFormat(
    dictionary_columns={
        field.name for schema in ENCODED.values() for field in schema if pa.types.is_dictionary(field.type)
    },
    page_checksum_verification=True,
)

_PICTURES = ds.ParquetFragmentScanOptions()
"""Of pictures, which have digests of their own: a page has thousands, and one that changed condemns no other."""


def _read(names: Sequence[str], scan: Callable[..., pa.Table]) -> pa.Table:
    """Columns as a scan of some columns, with options of pyarrow's, gives them; of pictures no page is verified.

    A column is never read alone: the checksum of a page does not cover how many rows it says that it has, and a
    page that says too few is noticed by the other columns only.
    """
    beside = [name for name in names if name != "image"]
    if len(beside) < 2:
        beside = [*beside, *(name for name in ("image_id", "time") if name not in beside)]
    rows = scan(beside)
    if "image" in names:
        pictures = scan(["image"], fragment_scan_options=_PICTURES)
        rows = rows.append_column(pictures.schema.field("image"), pictures["image"])
    return rows.select(names)


def _rows(dataset: ds.Dataset, names: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
    """Columns of those rows of a dataset that a condition holds for."""
    return _read(list(names), lambda some, **options: dataset.to_table(some, filter=where, **options))


def _dataset(
    table: str, parts: Mapping[str, ds.ParquetFileFragment], schemas: Mapping[str, pa.Schema] = SCHEMAS
) -> ds.Dataset:
    if not parts:
        return ds.dataset(schemas[table].empty_table())
    fragments = list(parts.values())
    return ds.FileSystemDataset(fragments, schemas[table], _FORMAT, fragments[0].filesystem)


def _taken(scanner: ds.Scanner, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Some rows, ascending, of what is read, and no more of it in memory than a few batches."""
    taken, at = [scanner.projected_schema.empty_table()], 0
    for batch in scanner.to_batches():
        inside = rows[np.searchsorted(rows, at) : np.searchsorted(rows, at + batch.num_rows)]
        if len(inside):
            taken.append(pa.Table.from_batches([batch.take(pa.array(inside - at))]))
        at += batch.num_rows
    return pa.concat_tables(taken)


def _decoded(table: str, rows: pa.Table) -> pa.Table:
    """Rows that were read as they lie, as what the table's schema says."""
    fields = [SCHEMAS[table].field(name) for name in rows.column_names]
    return rows.cast(pa.schema(fields, SCHEMAS[table].metadata))


def _groups(parts: Mapping[str, ds.ParquetFileFragment]) -> list[tuple[str, int, int]]:
    """Every row group as (part file, number in it, rows), in the order in which rows are read."""
    return [
        (path, number, part.metadata.row_group(number).num_rows)
        for path, part in parts.items()
        for number in range(part.metadata.num_row_groups)
    ]


def _each(
    table: str, parts: Mapping[str, ds.ParquetFileFragment], columns: Sequence[str]
) -> dict[str, pa.Table]:
    """Columns of a table, part by part."""
    return {path: _rows(_dataset(table, {path: part}), columns) for path, part in parts.items()}


def _moment(path: str) -> str:
    """The nanosecond in a part file's name."""
    named = PART.fullmatch(path.rpartition("/")[2])
    assert named is not None, path
    return named[1]


@cache  # which names a file once, however many readers meet it
def _name(path: str, why: str) -> None:
    _log.warning(_sentence(path, why))


def is_whole(picture: bytes | None, sha256: str | None) -> TypeGuard[bytes]:
    """Whether a picture is what was stored; one of schema 1, which has no digest, is taken at its word."""
    if picture is None:
        return False
    return sha256 is None or hashlib.sha256(picture).hexdigest() == sha256


def _with_pictures(rows: pa.Table, pictures: Sequence[bytes | None]) -> pa.Table:
    """Rows of `images` that lack only that column, without those whose picture is not what was stored.

    Raises pa.ArrowInvalid where there are not as many pictures as rows.
    """
    ids, digests = rows["image_id"].to_pylist(), rows["sha256"].to_pylist()
    images = [
        None if picture is None else {"bytes": picture, "path": f"{image_id}{suffix(picture)}"}
        for image_id, picture in zip(ids, pictures, strict=False)
    ]
    field = SCHEMAS["images"].field("image")
    rows = rows.append_column(field, pa.array(images, field.type))
    told = zip(pictures, digests, strict=True)
    whole = [picture is None or is_whole(picture, sha256) for picture, sha256 in told]
    return rows.select(SCHEMAS["images"].names).filter(pa.array(whole, pa.bool_()))


def _changed(image_id: str) -> str:
    return f"has another picture {image_id} than was stored there, by its SHA-256"


@cache
def _name_missing(path: str, rows: int) -> None:
    _log.warning(_missing(path, rows))


def _missing(path: str, rows: int) -> str:
    return (
        f"{printable(path)} is gone, with {rows:,} rows: put it back, or let `latentsweep run` make anew "
        "what is wanted of it and `latentsweep catalog repair` forget it"
    )


def _sentence(path: str, why: str) -> str:
    return f"{printable(path)} {why}; it is skipped, and `latentsweep catalog repair` moves it out of the way"


def _write_aside(content: Sequence[bytes], folder: Path, name: str) -> None:
    """Write under a hidden name, fsync, rename, fsync the folder: a reader never sees half a file."""
    aside = folder / f".{name}.tmp"
    try:
        with aside.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(folder / name)
    except OSError as error:  # which names a file only where it was opened or renamed
        if error.errno is not None and error.filename is None:
            error.filename = str(folder)
        raise
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
