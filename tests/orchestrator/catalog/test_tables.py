"""Part files: damaged, foreign, older and newer ones; one picture without its neighbours."""

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog.ids import Index, firsts, key, keys
from orchestrator.catalog.layout import PLACES_KEY
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.schema import SCHEMA_VERSION, SCHEMAS
from orchestrator.catalog.tables import Tables, open_root
from search_spaces.errors import InputError
from search_spaces.requests import Scored
from tests.orchestrator.catalog.test_contract import REQUESTS, STUDY, results


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with six pictures in three part files."""
    catalog = ParquetCatalog(Tables(tmp_path), STUDY)
    done = results(6)
    for start in (0, 2, 4):
        catalog.write(done[start : start + 2], [])
    return tmp_path


def images(root: Path) -> list[Path]:
    return sorted((root / "catalog" / "images").glob("*.parquet"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(1000))


def damaged_inside(path: Path) -> None:
    """Its footer is whole; the pages of image_id are not."""
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(0)
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


def of_something_else(path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["1"], "weight": [1.0]}), path)


@pytest.mark.parametrize("harm", [truncated, empty, noise, damaged_inside, of_something_else])
def test_a_bad_file_is_named_once_and_skipped(
    root: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    bad = images(root)[1]
    harm(bad)
    for _ in range(2):
        tables = Tables(root)
        assert tables.read("images", ["image_id"]).num_rows == 4
        catalog = ParquetCatalog(tables, STUDY)
        assert isinstance(catalog.find(REQUESTS[0]), Scored)
        assert catalog.find(REQUESTS[2]) is None, "its picture is made again"
        assert [notice for notice in tables.notices if str(bad) in notice]
    assert len([warning for warning in warnings_of(caplog) if str(bad) in warning]) == 1


def test_files_of_others_are_named_and_skipped(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = root / "catalog" / "images"
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "thumbnails").mkdir()
    (folder / ".DS_Store").write_bytes(b"")
    (root / "catalog" / "notes.txt").write_text("mine", encoding="utf-8")
    tables = Tables(root)
    assert tables.read("images", ["image_id"]).num_rows == 6
    assert len(warnings_of(caplog)) == 2
    assert all("is no part file" in warning for warning in warnings_of(caplog))


def unsealed(path: Path) -> Path:
    """A part under a name as earlier versions gave it, without a seal."""
    return path.rename(path.with_name(path.name[: -len("0123456789abcdef.parquet")] + ".parquet"))


def rewritten(path: Path, version: str, drop: tuple[str, ...] = ()) -> None:
    """A part file as another version would have written it."""
    path = unsealed(path)
    table = pq.read_table(path, partitioning=None).drop_columns(list(drop))
    metadata = {**(table.schema.metadata or {}), b"latentsweep_schema": version.encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_an_older_schema_is_read(root: Path) -> None:
    before = {r.image_id: Tables(root).png(r.image_id) for r in REQUESTS[:6]}
    for path in images(root):
        rewritten(path, "1", drop=("sha256", "file_bytes"))
    tables = Tables(root)
    assert tables.read("images").schema.equals(SCHEMAS["images"])
    assert tables.read("images", ["sha256"])["sha256"].null_count == 6
    assert {image_id: tables.png(image_id) for image_id in before} == before


def test_a_newer_schema_is_refused_by_name(root: Path) -> None:
    path = images(root)[0]
    rewritten(path, str(SCHEMA_VERSION + 1))
    with pytest.raises(
        InputError,
        match=rf"{path.name[:-24]}.parquet was written by a newer version of latentsweep \(schema 3",
    ):
        ParquetCatalog(Tables(root), STUDY)


def test_tables_that_are_missing_are_empty(root: Path) -> None:
    shutil.rmtree(root / "catalog" / "images")
    tables = Tables(root)
    assert tables.read("images").num_rows == 0
    assert ParquetCatalog(tables, STUDY).find(REQUESTS[0]) is None
    with pytest.raises(KeyError):
        tables.png(REQUESTS[0].image_id)
    assert list(tables.pictures({REQUESTS[0].image_id})) == []


def test_a_catalog_that_vanishes_is_not_taken_for_an_empty_one(root: Path) -> None:
    tables = Tables(root)
    catalog = ParquetCatalog(tables, STUDY)
    (root / "catalog").rename(root / "elsewhere")
    with pytest.raises(OSError, match="the catalog's folder is gone"):
        tables.read("images")
    with pytest.raises(OSError, match="the catalog's folder is gone"):
        catalog.write(results(8), [])
    assert not (root / "catalog").exists(), "nothing is begun anew where a mount was"
    (root / "elsewhere").rename(root / "catalog")
    catalog.write(results(8), [])
    assert Tables(root).read("images", ["image_id"]).num_rows == 8


def test_one_picture_is_read_without_its_neighbours(root: Path) -> None:
    """The part says where each picture stands; exactly those bytes are there, and nothing else is decoded."""
    done = results(6)
    for number, path in enumerate(images(root)):
        places = json.loads(pq.read_metadata(path).metadata[PLACES_KEY])
        content = path.read_bytes()
        for item, (start, length) in zip(done[2 * number : 2 * number + 2], places, strict=True):
            assert item.picture is not None
            assert content[start : start + length] == item.picture.png()


def test_metadata_is_read_without_any_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes of pictures are overwritten in place: whoever reads it notices, whoever need not does not."""
    big = os.urandom(500_000)
    tables = Tables(tmp_path)
    template = dict.fromkeys(SCHEMAS["images"].names)
    tables.append(
        "images",
        [
            {**template, "image_id": f"{n:032x}", "status": "ok", "image": {"bytes": big[n:], "path": "x"}}
            for n in range(3)
        ],
    )
    path = images(tmp_path)[0]
    metadata = pq.read_metadata(path)
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    chunk = metadata.row_group(0).column(names.index("image.bytes"))
    inside = range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size)
    content = bytearray(path.read_bytes())
    content[inside.start : inside.stop] = b"\xff" * len(inside)
    path.write_bytes(content)
    fresh = Tables(tmp_path)
    every = [name for name in SCHEMAS["images"].names if name != "image"]
    assert fresh.read("images", every).num_rows == 3
    assert fresh.notices == []
    assert fresh.read("images").num_rows == 0, "who reads the pictures does notice"


def test_a_part_that_is_replaced_while_it_is_read_is_found_again(root: Path) -> None:
    """As a compaction does it: the new file first, then the old ones go."""
    tables = Tables(root)
    before = tables.read("images").sort_by("image_id")
    assert tables.png(REQUESTS[0].image_id)
    for path in images(root):
        path.rename(path.with_name(path.name.replace("part-", "part-1")))
    assert tables.png(REQUESTS[0].image_id)
    assert tables.read("images").sort_by("image_id").equals(before)


@pytest.mark.parametrize("root", ["s3://key:s3cret@bucket/x", "s3://key@bucket/x"])
def test_a_root_holds_no_credentials(root: str) -> None:
    with pytest.raises(InputError, match="a root holds no credentials") as raised:
        open_root(root)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("root", "why"),
    [
        ("", "names no folder"),
        (" ", "names no folder"),
        ("/dev/null", "/dev/null is no folder"),
        ("/dev/null/x/y", "/dev/null is no folder"),
        ("file:///dev/null/x", "/dev/null is no folder"),
        ("s3://", "names no bucket; write s3://BUCKET/PREFIX"),
        ("s3:///runs", "names no bucket"),
        ("gs://", "names no bucket; write gs://BUCKET/PREFIX"),
    ],
)
def test_a_root_that_is_no_place_is_a_sentence(root: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Tables(root)


def test_what_would_steer_a_terminal_is_escaped_in_a_files_name(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "catalog" / "images" / "part-1-\x1b[31m\n2.parquet").write_bytes(b"no part")
    tables = Tables(root)
    tables.read("images", ["image_id"])
    told = "\n".join([*caplog.messages, *tables.notices])
    assert r"\x1b[31m\n2" in told
    assert "\x1b" not in told


def test_a_root_that_nothing_opens_is_a_sentence() -> None:
    with pytest.raises(InputError, match="--root ftp://somewhere/x cannot be opened"):
        open_root("ftp://somewhere/x")


IDS = st.one_of(
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.sampled_from(["", "x", "0" * 32, "f" * 32, "0" * 31 + "1", "1" + "0" * 31]),
)


@given(st.lists(IDS, max_size=30), st.lists(IDS, max_size=5))
def test_an_index_finds_what_a_dictionary_finds(ids: list[str], others: list[str]) -> None:
    column = pa.chunked_array([ids[:3], ids[3:]], pa.string())
    index = Index(keys(column))
    expected: dict[str, int] = {}
    for row, image_id in enumerate(ids):
        expected.setdefault(image_id, row)
    for image_id in [*ids, *others]:
        assert index.row(key(image_id)) == expected.get(image_id)
    asked = pa.chunked_array([[*ids, *others]], pa.string())
    assert index.rows(keys(asked)).tolist() == [expected.get(i, -1) for i in [*ids, *others]]
    assert firsts(keys(column)).tolist() == sorted(expected.values())


@given(
    st.lists(st.tuples(IDS, st.sampled_from(["a", "b", ""]), st.sampled_from(["a", "b", ""])), max_size=20)
)
def test_texts_are_part_of_a_key(rows: list[tuple[str, str, str]]) -> None:
    columns = [pa.chunked_array([[row[n] for row in rows]], pa.string()) for n in range(3)]
    index = Index(keys(*columns))
    for image_id, first, second in rows:
        assert index.row(key(image_id, first, second)) == rows.index((image_id, first, second))


def test_columns_with_few_values_are_small(root: Path) -> None:
    """A thousand rows of one prompt take no more than a few hundred bytes for it."""
    tables = Tables(root)
    prompt = "a long prompt " * 50
    template = dict.fromkeys(SCHEMAS["images"].names)
    tables.append(
        "images",
        [{**template, "image_id": f"{n:032x}", "prompt": prompt, "status": "lost"} for n in range(1000)],
    )
    metadata = pq.read_metadata(images(root)[-1])
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert sum(group.column(names.index("prompt")).total_compressed_size for group in groups) < 4000
    assert pc.count_distinct(tables.read("images", ["prompt"])["prompt"]).as_py() == 2


def with_other_types(path: Path) -> None:
    """As somebody's tool may have written it again."""
    path = unsealed(path)
    rows = pq.read_table(path, partitioning=None)
    seeds = pa.array([str(seed) for seed in rows["seed"].to_pylist()])
    changed = rows.set_column(rows.schema.get_field_index("seed"), "seed", seeds)
    pq.write_table(changed.replace_schema_metadata(rows.schema.metadata), path)


def of_another_table(path: Path) -> None:
    shutil.copy(next((path.parents[1] / "scores").iterdir()), unsealed(path))


@pytest.mark.parametrize(
    ("harm", "why"),
    [(with_other_types, "its column seed is string, not int64"), (of_another_table, "has no column image")],
)
def test_a_file_that_only_looks_like_a_part_is_skipped(
    root: Path, harm: Callable[[Path], None], why: str
) -> None:
    harm(images(root)[0])
    tables = Tables(root)
    assert tables.read("images").num_rows == 4
    assert [notice for notice in tables.notices if why in notice]


def test_a_copy_under_a_name_of_ones_own_is_no_part(root: Path) -> None:
    shutil.copy(images(root)[0], root / "catalog" / "images" / "backup.parquet")
    tables = Tables(root)
    assert tables.read("images").num_rows == 6
    assert [notice for notice in tables.notices if "backup.parquet is no part file" in notice]


def in_groups(root: Path, sizes: list[int], group: int) -> Tables:
    """Scores in part files of so many rows, in row groups of `group`."""
    tables = Tables(root)
    for number, size in enumerate(sizes):
        rows = [
            {
                "image_id": f"{number:016x}{row:016x}",
                "scorer": "a",
                "text": f"t{row % 3}",
                "value": float(row),
            }
            for row in range(size)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("orchestrator.catalog.layout.GROUP_ROWS", group)
            tables.append("scores", rows)
    return tables


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 5), st.randoms(use_true_random=False)
)
def test_rows_by_id_are_those_that_a_filter_finds(
    sizes: list[int], group: int, chance: random.Random
) -> None:
    columns = ["text", "image_id", "value"]
    with TemporaryDirectory() as folder:
        tables = in_groups(Path(folder), sizes, group)
        every = tables.read("scores", columns)
        ids = pa.array([i for i in every["image_id"].to_pylist() if chance.random() < 0.3], pa.string())
        wanted = pc.field("image_id").isin(ids)
        assert tables.read_ids("scores", columns, ids).equals(every.filter(wanted))
        odd = pc.field("text") != "t1"
        assert tables.read_ids("scores", columns, ids, odd).equals(every.filter(wanted & odd))
        found, values = tables.read_keys("scores", ["text"], ["value"], odd)
        some = every.filter(odd)
        assert (found == keys(some["image_id"], some["text"])).all()
        assert values["value"].equals(some["value"])
        counted = every["text"].to_pylist()
        assert tables.counts("scores", "text") == {text: counted.count(text) for text in set(counted)}
