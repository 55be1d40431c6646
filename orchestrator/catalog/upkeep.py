"""A catalog's upkeep: check it, merge its small part files, put damage aside, free what no study uses.

Each step first writes what is to be kept as new part files and then removes the old ones, so that whatever is
killed in between leaves rows twice, never none; who reads sees one of them.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog.ids import Index, firsts, keys
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import DamagedPartError, Tables, is_whole
from orchestrator.catalog.validity import strangers
from orchestrator.session import lost_text

TARGET_BYTES = 128 * 2**20
"""Of a merged part file: large enough for a million pictures in 2,000 files, small enough to merge in memory."""

LEFTOVER_SECONDS = 3600.0
"""After which a half-written file is of a run that was killed, not of one that is writing."""


@dataclass
class Health:
    """What a check found. `parts`, `rows` and `size` (bytes) are by table; the lists name what is wrong."""

    parts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    twice: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(
        default_factory=dict
    )  # part file → image_ids of pictures that changed
    strange: dict[str, int] = field(
        default_factory=dict
    )  # part file → rows with other settings than their study's
    missing: dict[str, int] = field(default_factory=dict)  # part file that is gone → its rows
    leftovers: list[str] = field(default_factory=list)
    without_picture: int = 0
    without_score: int = 0
    lost: dict[str, int] = field(default_factory=dict)  # study → scored instances that are gone altogether
    mergeable: int = 0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong; rows that are there twice and small part files are not."""
        damage = self.unreadable or self.wrong or self.strange or self.missing
        return not (damage or self.lost or self.without_picture or self.without_score)

    @property
    def summary(self) -> list[tuple[str, str]]:
        """The findings as labelled sentences."""
        said = []
        for table, rows in self.rows.items():
            twice = f", of which {self.twice[table]:,} twice" if self.twice[table] else ""
            size = self.size[table] / 1e6
            said.append((table, f"{rows:,} rows{twice} in {self.parts[table]:,} part files, {size:,.1f} MB"))
        said += [("unreadable", f"{path} {why}") for path, why in self.unreadable.items()]
        for path, image_ids in self.wrong.items():
            said.append(
                ("changed", f"{path}: {len(image_ids)} pictures are not what was stored, as {image_ids[0]}")
            )
        for path, count in self.strange.items():
            said.append(("foreign", f"{path}: {count} rows name other settings than their study's others"))
        said += [
            (
                "gone",
                f"{path}, with {rows:,} rows: put it back, or `latentsweep run` makes anew what is wanted of it",
            )
            for path, rows in self.missing.items()
        ]
        said += [("lost", f"{study}: {lost_text(count)}") for study, count in self.lost.items()]
        if self.without_picture:
            said.append(
                (
                    "missing",
                    f"{self.without_picture} scored instances have no picture; `latentsweep run` makes them",
                )
            )
        if self.without_score:
            told = f"{self.without_score} scored instances have no score; `latentsweep run` scores them"
            said.append(("missing", told))
        if self.leftovers:
            said.append(("leftovers", f"{len(self.leftovers)} half-written files of runs that were killed"))
        if self.mergeable:
            said.append(
                ("advice", f"`latentsweep catalog compact` would merge {self.mergeable:,} small part files")
            )
        damage = self.unreadable or self.wrong or self.strange
        verdict = "nothing is damaged"
        if self.lost or self.without_picture or self.without_score:
            verdict = "what is gone cannot be mended; `latentsweep run` makes anew what is wanted of it"
        if self.missing:
            verdict = "`latentsweep catalog repair` forgets what is gone"
        if damage:
            verdict = "`latentsweep catalog repair` puts the damage aside"
        return [*said, ("verdict", verdict)]


def check(tables: Tables) -> Health:
    """Read everything, every picture included, and say what is wrong. Changes nothing."""
    health = Health()
    for table in SCHEMAS:
        columns = None if table != "images" else [n for n in SCHEMAS[table].names if n != "image"]
        rows = tables.read(table, columns)
        parts, sizes = tables.parts(table), tables.sizes(table)
        health.parts[table], health.rows[table] = len(parts), rows.num_rows
        health.size[table] = sum(sizes.get(path, 0) for path in parts)
        health.twice[table] = rows.num_rows - len(_first_rows(table, rows))
        health.leftovers += [
            path for path in sizes if _is_leftover(path) and tables.age(path) > LEFTOVER_SECONDS
        ]
        health.missing |= tables.missing[table]
        health.mergeable += sum(len(group) for group in _groups(tables, table))
    for path in tables.parts("images"):
        try:
            wrong = [image_id for image_id, good in _pictures_of(tables, path) if not good]
        except DamagedPartError:
            continue  # which is among those skipped
        if wrong:
            health.wrong[path] = wrong
    health.strange = _strange(tables)
    changed = _changed(tables, {*health.wrong, *health.strange})
    health.unreadable = {**tables.skipped, **changed}
    health.without_picture, health.without_score = _without_picture(tables), _without_score(tables)
    return health


def _strange(tables: Tables) -> dict[str, int]:
    """How many rows of each part file of `trials` name other settings than most rows of their study do."""
    parts = {}
    for path in tables.parts("trials"):
        with suppress(FileNotFoundError, DamagedPartError):
            parts[path] = tables.read_part("trials", path, ["study", "settings"])
    if not parts:
        return {}
    strange, start, found = strangers(pa.concat_tables(parts.values())), 0, {}
    for path, rows in parts.items():
        found[path] = pc.sum(strange.slice(start, rows.num_rows)).as_py() or 0
        start += rows.num_rows
    return {path: count for path, count in found.items() if count}


def _changed(tables: Tables, but: Container[str]) -> dict[str, str]:
    """Part files, but for some, of which a byte is not as it was written, though all that is read of them is."""
    found = {}
    for table in SCHEMAS:
        for path in tables.parts(table):
            with suppress(FileNotFoundError):  # compacted meanwhile
                problem = None if path in but else tables.changed_body(table, path)
                if problem:
                    found[path] = f"is damaged ({problem})"
    return found


def _without_picture(tables: Tables) -> int:
    """How many scored instances name a picture that is not there."""
    scored = tables.read("trials", ["image_id"], pc.field("state") == "scored")["image_id"].unique()
    there = tables.read("images", ["image_id"], pc.field("status") == "ok")["image_id"].unique()
    return len(scored.filter(pc.invert(pc.is_in(scored, there))))


def _without_score(tables: Tables) -> int:
    """How many scored instances name a score that is not there."""
    scored, _ = tables.read_keys("trials", ["scorer", "text"], [], pc.field("state") == "scored")
    there, _ = tables.read_keys("scores", ["scorer", "text"], [], pc.scalar(True))
    distinct = scored[firsts(scored)]
    return int((Index(there).rows(distinct) < 0).sum())


def _pictures_of(tables: Tables, path: str) -> Iterator[tuple[str, bool]]:
    """Each picture of a part file, and whether it is what was stored."""
    for item in tables.read_part("images", path, ["image_id", "image", "sha256"]).to_pylist():
        image = item["image"] and item["image"]["bytes"]
        if image is not None:
            yield item["image_id"], _is_as_stored(image, item["sha256"])


def _is_as_stored(picture: bytes, sha256: str | None) -> bool:
    if sha256 is not None:
        return is_whole(picture, sha256)
    from workers.png import decode_png  # of schema 1, which has no digest

    try:
        decode_png(picture)
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def compact(tables: Tables, target: int = TARGET_BYTES) -> dict[str, tuple[int, int, int]]:
    """Merge runs of small part files, of rows that are there twice keeping one; table → (files, into, bytes).

    Others may write and read meanwhile, and compact too. A damaged file is named and left with its neighbours.
    """
    done: dict[str, tuple[int, int, int]] = {}
    for table in SCHEMAS:
        superseded = _superseded(tables, table)
        for path in superseded:
            tables.remove(path)
        files, into, size = len(superseded), 0, 0
        for group in _groups(tables, table, target):
            try:
                rows = pa.concat_tables([tables.read_part(table, path) for path in group])
            except (FileNotFoundError, DamagedPartError):
                continue  # somebody else has merged them
            tables.write(table, rows.take(pa.array(_first_rows(table, rows))), at=group[0])
            for path in group:
                tables.remove(path)
            files, into, size = files + len(group), into + 1, size + rows.nbytes
        done[table] = files, into, size
        _enter(tables, table)
    return done


def _enter(tables: Tables, table: str) -> None:
    """Enter what earlier versions have written into the ledger, so that it is missed when it is gone."""
    entered = tables.ledger.entries(table)
    for path, part in tables.parts(table).items():
        if path not in entered:
            tables.ledger.enter(path, part.metadata.num_rows)


def _groups(tables: Tables, table: str, target: int = TARGET_BYTES) -> list[list[str]]:
    """Runs of part files that lie beside each other and are together no larger than `target`, of two or more."""
    parts = list(tables.parts(table))
    sizes = tables.sizes(
        table
    )  # asked second: a part that was written meanwhile waits for the next compaction
    groups: list[list[str]] = []
    room = 0
    for path in parts:
        size = sizes.get(path, target + 1)  # gone meanwhile: it belongs to no group
        if size <= room:
            groups[-1].append(path)
            room -= size
        else:
            groups.append([path])
            room = target - size
    return [group for group in groups if len(group) > 1]


def _superseded(tables: Tables, table: str) -> list[str]:
    """Part files of which every row is in larger ones too: what a compaction that was killed has left.

    Who is larger, or of one size and earlier by name, is the same for whoever asks, so that no two of several
    compactions at once each remove what the other relies on.
    """
    parts = {}
    for path in tables.parts(table):
        with suppress(FileNotFoundError, DamagedPartError):
            parts[path] = tables.read_part(table, path, ["image_id", *DISTINCT[table], *STATUS[table]])
    paths = sorted(parts, key=lambda path: (-parts[path].num_rows, path))
    if not paths:
        return []
    of = np.repeat(np.arange(len(paths)), [parts[path].num_rows for path in paths])
    needed = set(of[_first_rows(table, pa.concat_tables([parts[path] for path in paths]))].tolist())
    return [path for number, path in enumerate(paths) if number not in needed]


DISTINCT: Mapping[str, Sequence[str]] = {
    "images": [],
    "scores": ["scorer", "text"],
    "trials": ["study", "trial", "instance", "role", "state", "after", "scorer", "text"],
}
"""Columns by which, with image_id, the rows of a table differ that say different things."""

STATUS: Mapping[str, Sequence[str]] = {"images": ["status"], "scores": [], "trials": []}
"""A column by which of two rows one goes before the other: a picture before a failure."""


def _first_rows(table: str, rows: pa.Table) -> npt.NDArray[np.int64]:
    """The rows of a table that say what none before them says, ascending; of an image, its first picture."""
    order = np.arange(rows.num_rows)
    for name in STATUS[table]:
        order = np.argsort(pc.not_equal(rows[name], "ok").to_numpy(), kind="stable")
    said = [pc.fill_null(rows[name].cast(pa.string()), "") for name in DISTINCT[table]]
    of = keys(rows["image_id"], *said)[order]
    chosen: npt.NDArray[np.int64] = np.sort(order[firsts(of)])
    return chosen


def repair(tables: Tables) -> list[str]:
    """Put what is damaged aside, in `damaged/`; a sentence for each thing done. Nothing is deleted but leftovers.

    What was lost that way is made again when its study is run again.
    """
    said, health = [], check(tables)
    for path, why in health.unreadable.items():
        good = tables.sound_rows(path)
        if good is not None and good.num_rows:
            tables.write(path.split("/")[-2], good, at=path)
        kept = f", but for {good.num_rows:,} good rows" if good is not None and good.num_rows else ""
        said.append(f"{path} {why}: moved to {tables.set_aside(path)}{kept}")
    if health.strange:
        said += _without_strange_rows(tables, health.strange)
    for path, image_ids in health.wrong.items():
        bad = pa.array(image_ids, pa.string())
        rows = tables.read_part("images", path)
        tables.write("images", rows.filter(pc.invert(pc.is_in(rows["image_id"], bad))), at=path)
        said.append(f"{path}: {len(bad)} pictures had changed: moved to {tables.set_aside(path)}")
    for path, rows in health.missing.items():
        tables.forget(path)
        said.append(f"{path} is gone, with {rows:,} rows: it is missed no longer")
    for path in health.leftovers:
        tables.remove(path)
        said.append(f"{path}: half-written by a run that was killed: removed")
    if health.without_picture:
        said.append(
            f"{health.without_picture} scored instances have no picture any more: `latentsweep run` makes them again"
        )
    if health.without_score:
        said.append(
            f"{health.without_score} scored instances have no score any more: `latentsweep run` scores them again"
        )
    return said


def _without_strange_rows(tables: Tables, strange: Mapping[str, int]) -> Iterator[str]:
    """Move part files aside that have rows which name other settings than their study's, and keep the others."""
    whole = tables.read("trials", ["study", "settings"])
    foreign = pc.unique(pc.binary_join_element_wise(*whole.filter(strangers(whole)).columns, "\0"))
    for path, count in strange.items():
        rows = tables.read_part("trials", path)
        told = pc.binary_join_element_wise(rows["study"], rows["settings"], "\0")
        good = rows.filter(pc.invert(pc.is_in(told, foreign)))
        if good.num_rows:
            tables.write("trials", good, at=path)
        yield f"{path}: {count} rows named other settings than their study's: moved to {tables.set_aside(path)}"


def _is_leftover(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(".part-") and name.endswith(".tmp")


@dataclass(frozen=True)
class Freed:
    """What a study alone has used: rows of its trials, its images, and their bytes where these are known."""

    trials: int
    images: Set[str]
    size: int


def of_study_alone(tables: Tables, study: str) -> Freed:
    """What would be freed with a study: images that no other study's trials name."""
    rows = tables.read("trials", ["study", "image_id"])
    mine = pc.equal(rows["study"], study)
    own, others = rows.filter(mine), rows.filter(pc.invert(mine))
    ids = own["image_id"].unique()
    alone = ids.filter(pc.invert(pc.is_in(ids, others["image_id"].unique())))
    images = tables.read("images", ["image_id", "file_bytes"], pc.field("image_id").isin(alone))
    return Freed(own.num_rows, set(alone.to_pylist()), pc.sum(images["file_bytes"]).as_py() or 0)


def free(tables: Tables, study: str, freed: Freed) -> None:
    """Remove a study's trials, and before them the images and scores that only it has used."""
    gone = pa.array(sorted(freed.images), pa.string())

    def used(rows: pa.Table) -> pa.ChunkedArray:
        return pc.invert(pc.is_in(rows["image_id"], gone))

    _keep(tables, "images", ["image_id"], used)
    _keep(tables, "scores", ["image_id"], used)
    _keep(tables, "trials", ["study"], lambda rows: pc.not_equal(rows["study"], study))


def _keep(
    tables: Tables, table: str, columns: Sequence[str], wanted: Callable[[pa.Table], pa.ChunkedArray]
) -> None:
    """Leave only the wanted rows of a table, which some columns tell; part files without others stay as they are."""
    for path in list(tables.parts(table)):
        mask = wanted(tables.read_part(table, path, columns))
        if pc.all(mask, skip_nulls=False).as_py():
            continue
        if pc.any(mask).as_py():
            tables.write(table, tables.read_part(table, path).filter(mask), at=path)
        tables.remove(path)
