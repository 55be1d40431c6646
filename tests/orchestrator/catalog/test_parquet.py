"""What the Parquet catalog promises beyond the contract: durable, whole, readable by others."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.catalog import Judged
from orchestrator.catalog.frames import joined
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables
from search_spaces.requests import Failed, Scored, Trial
from tests.orchestrator.catalog.test_contract import REQUESTS, STUDY, results
from tests.orchestrator.studies import small_study


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with four pictures, one of them black, in two trials of two instances."""
    done = results(4, {REQUESTS[3].image_id: Failed("infeasible", "the picture is all black")})
    judged = [
        Judged(
            Trial(i // 2, {"guidance_scale": 0.5 + i // 2, "negative_prompt": ""}),
            i % 2,
            d.request,
            d.outcome,
        )
        for i, d in enumerate(done)
    ]
    catalog = ParquetCatalog(Tables(tmp_path), STUDY)
    catalog.write(done[:2], judged[:2])
    catalog.write(done[2:], judged[2:])
    return tmp_path


def parts(root: Path, table: str) -> list[Path]:
    return sorted((root / "catalog" / table).iterdir())


def test_another_process_finds_everything(root: Path) -> None:
    catalog = ParquetCatalog(Tables(root), STUDY)
    assert isinstance(catalog.find(REQUESTS[0]), Scored)
    assert catalog.find(REQUESTS[3]) == Failed("infeasible", "the picture is all black")
    assert catalog.find(REQUESTS[4]) is None


def test_a_part_is_synced_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(handle: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def record_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    ParquetCatalog(Tables(tmp_path), STUDY).write(results(1), [])
    assert steps == ["sync file", "rename", "sync folder"] * 2  # pictures, then scores


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    catalog = ParquetCatalog(Tables(tmp_path), STUDY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            catalog.write(results(1), [])
    assert parts(tmp_path, "images") == []
    assert catalog.find(REQUESTS[0]) is None
    catalog.write(results(1), [])
    assert len(parts(tmp_path, "images")) == 1


def test_half_written_files_of_a_killed_run_are_not_read(root: Path) -> None:
    whole = Tables(root).read("images").num_rows
    (root / "catalog" / "images" / ".part-1-abc.parquet.tmp").write_bytes(b"PAR1 half a file")
    assert Tables(root).read("images").num_rows == whole


def test_every_picture_is_kept_once(root: Path) -> None:
    before = Tables(root).read("images").num_rows
    ParquetCatalog(Tables(root), small_study(name="another")).write(results(2), [])
    assert Tables(root).read("images").num_rows == before


def test_two_writers_into_one_root_do_not_hurt_each_other(tmp_path: Path) -> None:
    first, second = (ParquetCatalog(Tables(tmp_path), small_study(name=n)) for n in ("a", "b"))
    done = results(4)
    first.write(done[:3], [])
    second.write(done[1:], [])
    tables = Tables(tmp_path)
    assert set(tables.read("images")["image_id"].to_pylist()) == {d.request.image_id for d in done}
    pictures = list(tables.pictures({d.request.image_id for d in done}))
    assert sorted(name for name, _ in pictures) == sorted(d.request.image_id for d in done)


def test_trials_are_read_back_with_their_numbers_and_outcomes(root: Path) -> None:
    past = past_trials(Tables(root), STUDY.name)
    assert [trial.number for trial in past] == [0, 1]
    assert past[1].settings == {"guidance_scale": 1.5, "negative_prompt": ""}
    assert isinstance(past[1].outcomes[0], Scored)
    assert past[1].outcomes[1] == Failed("infeasible", "the picture is all black")
    assert past_trials(Tables(root), "no such study") == []


def test_lost_instances_can_be_forgotten(tmp_path: Path) -> None:
    catalog = ParquetCatalog(Tables(tmp_path), STUDY)
    catalog.write([], [Judged(Trial(7, {}), 0, REQUESTS[0], Failed("lost", "its worker died"))])
    kept = past_trials(Tables(tmp_path), STUDY.name)
    assert kept[0].outcomes == {0: Failed("lost", "its worker died")}
    forgotten = past_trials(Tables(tmp_path), STUDY.name, forget_lost=True)
    assert [(trial.number, trial.outcomes) for trial in forgotten] == [(7, {})]


def test_the_joined_frame_has_settings_scores_and_pictures(root: Path) -> None:
    frame = joined(Tables(root), STUDY.name).to_pandas()
    assert len(frame) == 4
    assert list(frame["trial"]) == [0, 0, 1, 1]
    assert frame["value"].isna().tolist() == [False, False, False, True]
    assert set(frame["status"]) == {"ok", "infeasible"}
    picture = Image.open(io.BytesIO(frame["image"][0]["bytes"]))
    assert picture.size == (8, 8)
    assert frame["guidance_scale"].notna().all()


def shows_pictures_with_scores(rows: list[tuple[Any, float, str]]) -> bool:
    """Each picture is the one its id names: the fake draws the id's first three bytes as colour."""
    for image, value, image_id in rows:
        colour = Image.open(io.BytesIO(image["bytes"])).getpixel((0, 0))
        assert colour == tuple(bytes.fromhex(image_id[:6]))
        assert 0 <= value <= 255
    return len(rows) == 3


def test_pandas_opens_the_catalog(root: Path) -> None:
    images = pd.read_parquet(root / "catalog" / "images")
    scores = pd.read_parquet(root / "catalog" / "scores")
    both = images.merge(scores, on="image_id")
    assert shows_pictures_with_scores(list(zip(both["image"], both["value"], both["image_id"], strict=True)))


def test_duckdb_opens_the_catalog(root: Path) -> None:
    images, scores = (f"'{root}/catalog/{table}/*.parquet'" for table in ("images", "scores"))
    rows = duckdb.sql(
        f"select image, value, image_id from {images} join {scores} using (image_id) order by value"
    ).fetchall()
    assert shows_pictures_with_scores(rows)


def test_parts_carry_the_features_that_datasets_shows_pictures_by(root: Path) -> None:
    metadata = pq.read_schema(parts(root, "images")[0]).metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert set(features) == set(SCHEMAS["images"].names)
    assert features["seed"] == {"dtype": "int64", "_type": "Value"}


def test_a_missing_picture_is_a_key_error(root: Path) -> None:
    with pytest.raises(KeyError):
        Tables(root).png("0" * 32)


def test_an_empty_root_reads_as_empty_tables(tmp_path: Path) -> None:
    for table, schema in SCHEMAS.items():
        assert Tables(tmp_path).read(table).schema == schema
        assert Tables(tmp_path).read(table, schema.names[:2]).num_rows == 0
    assert joined(Tables(tmp_path), "nothing").num_rows == 0


def test_a_root_may_be_any_filesystem_that_pyarrow_knows(tmp_path: Path) -> None:
    tables = Tables(f"file://{tmp_path}")
    ParquetCatalog(tables, STUDY).write(results(2), [])
    assert tables.read("images").num_rows == 2
    assert Tables(tmp_path).read("images").equals(tables.read("images"))
    assert isinstance(tables.read("images"), pa.Table)
