"""Flipped bits: whatever changes is noticed by name, and what is not damaged is read on."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from orchestrator.catalog import Judged
from orchestrator.catalog.frames import joined
from orchestrator.catalog.layout import SEALED
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import check, compact, repair
from search_spaces.requests import Failed, Trial
from tests.orchestrator.catalog.test_contract import REQUESTS, STUDY, results

TABLES = tuple(SCHEMAS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with nine images, one of them infeasible, in three parts of each table."""
    catalog = ParquetCatalog(Tables(tmp_path), STUDY)
    done = results(9, {REQUESTS[8].image_id: Failed("infeasible", "black")})
    for start in range(0, 9, 3):
        some = done[start : start + 3]
        trial = Trial(start // 3, {"guidance_scale": 1})
        catalog.write(some, [Judged(trial, n, item.request, item.outcome) for n, item in enumerate(some)])
    return tmp_path


def parts(root: Path, table: str) -> list[Path]:
    return sorted((root / "catalog" / table).glob("part-*.parquet"))


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def told(root: Path) -> tuple[object, object]:
    """What commands say of the study."""
    tables = Tables(root)
    return past_trials(tables, STUDY.name), joined(tables, STUDY.name).to_pylist()


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_no_flipped_bit_is_silent(root: Path, table: str, merged: bool) -> None:
    """Whatever bit of a part it is: nothing else is said, or it is said that something is wrong, in both ways."""
    if merged:
        compact(Tables(root))
    truth, chance = told(root), random.Random(f"{table} {merged}")
    path = parts(root, table)[0]
    whole = path.read_bytes()
    for _ in range(8):
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        flip(path, place, bit)
        assert not check(Tables(root)).is_well, (place, bit)
        tables = Tables(root)
        said = past_trials(tables, STUDY.name), joined(tables, STUDY.name).to_pylist()
        assert said == truth or tables.notices, (place, bit)
        path.write_bytes(whole)
    assert check(Tables(root)).is_well


def chunk_bytes(path: Path, column: str) -> Iterator[int]:
    metadata = pq.read_metadata(path)
    group = metadata.row_group(0)
    (chunk,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    yield from range(start, start + chunk.total_compressed_size)


def test_a_page_that_hides_rows_is_noticed_where_one_column_is_read(root: Path) -> None:
    """No checksum covers the number of rows in a page's header."""
    path = parts(root, "scores")[0]
    whole = path.read_bytes()
    for place in list(chunk_bytes(path, "image_id"))[4:24]:
        for bit in range(0, 8, 3):
            flip(path, place, bit)
            tables = Tables(root)
            rows = tables.read("scores", ["image_id"]).num_rows
            assert rows == 8 or tables.notices, (place, bit)
            path.write_bytes(whole)


def test_statistics_that_lie_hide_no_rows(root: Path) -> None:
    """By them a reader skips what it takes for other studies' rows."""
    path = parts(root, "trials")[0]
    content = path.read_bytes()
    footer = len(content) - 8 - pq.read_metadata(path).serialized_size
    for place in range(footer, len(content)):
        if content[place : place + 5] == b"small":
            flip(path, place, 0)
            tables = Tables(root)
            assert len(past_trials(tables, STUDY.name)) == 2
            (notice,) = tables.notices
            assert "its footer is not what was written" in notice
            path.write_bytes(content)


def test_parts_of_earlier_versions_go_on(root: Path) -> None:
    """They have neither checksums nor a seal, and nothing is made again."""
    truth = told(root)
    for table in TABLES:
        for path in parts(root, table):
            rows = pq.read_table(path, partitioning=None)
            assert SEALED.fullmatch(path.name)
            pq.write_table(rows, path.with_name(path.name[:-24] + ".parquet"), compression="zstd")
            path.unlink()
    shutil.rmtree(root / "catalog" / "ledger")
    tables = Tables(root)
    assert told(root) == truth
    assert tables.notices == []
    assert check(tables).is_well
    compact(tables)
    assert all(SEALED.fullmatch(path.name) for table in TABLES for path in parts(root, table))
    assert told(root) == truth


def test_one_picture_that_changed_condemns_no_other(root: Path) -> None:
    compact(Tables(root))
    (path,) = parts(root, "images")
    flip(path, next(chunk_bytes(path, "image.bytes")) + 100, 3)
    health = check(Tables(root))
    assert health.unreadable == {}
    assert [len(found) for found in health.wrong.values()] == [1]
    assert "pictures had changed" in repair(Tables(root))[0]
    status = Tables(root).read("images", ["status"])["status"]
    assert pc.sum(pc.equal(status, "ok")).as_py() == 7
    assert not check(Tables(root)).unreadable


def test_a_picture_that_changed_is_named_and_skipped_and_a_copy_is_found(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = parts(root, "images")[0]
    whole = path.read_bytes()
    image_id = REQUESTS[1].image_id
    stored = Tables(root).png(image_id)
    flip(path, whole.index(stored) + len(stored) // 2, 0)
    tables = Tables(root)
    assert [found for found, _ in tables.pictures({r.image_id for r in REQUESTS[:3]})] == [
        REQUESTS[0].image_id,
        REQUESTS[2].image_id,
    ]
    (notice,) = tables.notices
    assert f"{path} has another picture {image_id} than was stored there" in notice
    frame = joined(Tables(root), STUDY.name)
    pictures = dict(zip(frame["image_id"].to_pylist(), frame["image"].to_pylist(), strict=True))
    assert pictures[image_id] is None
    assert pictures[REQUESTS[0].image_id]["bytes"] == Tables(root).png(REQUESTS[0].image_id)
    catalog = ParquetCatalog(Tables(root), STUDY)
    assert catalog.find(replace(REQUESTS[1], score_text="something else")) is None, "it is made again"
    catalog.write(results(2)[1:], [])
    assert Tables(root).png(image_id) == stored
    assert len([record for record in caplog.records if image_id in record.getMessage()]) == 1


@pytest.mark.parametrize(
    ("table", "column"),
    [("images", "device"), ("images", "image_id"), ("scores", "value"), ("trials", "settings")],
)
def test_a_repair_keeps_the_row_groups_that_are_whole(
    root: Path, table: str, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit in a compacted part of many row groups costs the rows of one."""
    monkeypatch.setattr("orchestrator.catalog.layout.group_rows", lambda _: 3)
    compact(Tables(root))
    (path,) = parts(root, table)
    before = Tables(root).read(table)
    flip(path, list(chunk_bytes(path, column))[-3], 2)
    health = check(Tables(root))
    assert list(health.unreadable) == [str(path)]
    (said,) = (line for line in repair(Tables(root)) if "moved to" in line)
    assert said.endswith(f", but for {before.num_rows - 3} good rows")
    assert Tables(root).read(table).equals(before.slice(3))
    assert not check(Tables(root)).unreadable


def test_a_repair_loses_nothing_where_a_byte_changed_that_nobody_reads(root: Path) -> None:
    """As that of a picture's file name, which follows from its image_id."""
    compact(Tables(root))
    (path,) = parts(root, "images")
    before = Tables(root).read("images")
    flip(path, list(chunk_bytes(path, "image.path"))[-3], 0)
    health = check(Tables(root))
    assert list(health.unreadable) == [str(path)]
    assert repair(Tables(root))[0].endswith(", but for 9 good rows")
    assert Tables(root).read("images").equals(before)
    assert check(Tables(root)).is_well
