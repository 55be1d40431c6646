"""Check, compact, repair and free: whatever is killed in between loses nothing."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog import Judged, Unscored
from orchestrator.catalog.frames import joined
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import check, compact, free, of_study_alone, repair
from search_spaces.requests import Failed, Trial
from tests.orchestrator.catalog.test_contract import REQUESTS, STUDY, results
from tests.orchestrator.studies import small_study


def fill(root: Path, study: str = "small", first: int = 0, last: int = 9) -> None:
    """A study of some requests, each written alone."""
    done = results(9, {REQUESTS[8].image_id: Failed("infeasible", "black")})[first:last]
    catalog = ParquetCatalog(Tables(root), small_study(name=study))
    for number, item in enumerate(done, first):
        catalog.write(
            [item],
            [Judged(Trial(number // 3, {"guidance_scale": 1}), number % 3, item.request, item.outcome)],
        )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


def everything(root: Path, study: str = "small") -> object:
    """What a study is to its reader."""
    tables = Tables(root)
    rows = joined(tables, study).to_pylist()
    return rows, past_trials(tables, study), dict(tables.pictures({request.image_id for request in REQUESTS}))


def counts(root: Path) -> list[int]:
    return [
        len(list((root / "catalog" / table).glob("*.parquet"))) for table in ("images", "scores", "trials")
    ]


def test_compaction_merges_and_changes_nothing(root: Path) -> None:
    before = everything(root)
    assert counts(root) == [9, 8, 9]
    assert [entry[:2] for entry in compact(Tables(root)).values()] == [(9, 1), (8, 1), (9, 1)]
    assert counts(root) == [1, 1, 1]
    assert everything(root) == before
    assert [entry[:2] for entry in compact(Tables(root)).values()] == [(0, 0)] * 3
    fill(root, "small", 0, 9)
    assert everything(root) == before, "what was compacted is known"


class Killed(BaseException):
    """As SIGKILL: nothing after it happens."""


@pytest.mark.parametrize("steps", range(0, 12, 2))
def test_a_compaction_that_is_killed_anywhere_loses_nothing(
    root: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(root)
    left = [steps]

    def dying(act: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return act(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "write", dying(Tables.write))
        patch.setattr(Tables, "remove", dying(Tables.remove))
        with pytest.raises(Killed):
            compact(Tables(root), target=60_000)
    assert everything(root) == before
    compact(Tables(root))
    assert everything(root) == before
    assert check(Tables(root)).twice == {"images": 0, "scores": 0, "trials": 0}


@settings(max_examples=15, deadline=None)
@given(target=st.integers(1, 400_000))
def test_whatever_the_target_the_rows_stay_in_order(
    tmp_path_factory: pytest.TempPathFactory, target: int
) -> None:
    root = tmp_path_factory.mktemp("c")
    fill(root, last=5)
    order = Tables(root).read("trials", ["trial", "instance"]).to_pylist()
    compact(Tables(root), target)
    assert Tables(root).read("trials", ["trial", "instance"]).to_pylist() == order


def test_two_compactions_and_a_writer_at_once(root: Path) -> None:
    """Interleaved: one lists the parts, another merges them and a run goes on before the first merges them too."""
    stale, before = Tables(root), everything(root)
    stale.parts("images")
    compact(Tables(root))
    fill(root, "other", 2, 6)
    compact(stale)
    assert everything(root) == before
    assert len(past_trials(Tables(root), "other")) == 2


def test_a_catalog_that_is_well(root: Path) -> None:
    health = check(Tables(root))
    assert health.is_well
    assert (health.rows, health.parts) == (
        {"images": 9, "scores": 8, "trials": 9},
        {"images": 9, "scores": 8, "trials": 9},
    )
    assert health.summary[-1] == ("verdict", "nothing is damaged")
    assert "would merge 26 small part files" in dict(health.summary)["advice"]


def test_damage_is_found_and_put_aside_and_the_rest_stays(root: Path) -> None:
    tables = Tables(root)
    parts = sorted((root / "catalog" / "images").glob("*.parquet"))
    changed = bytearray(parts[1].read_bytes())
    picture = tables.png(REQUESTS[1].image_id)
    place = bytes(changed).find(picture) + len(picture) // 2
    changed[place] ^= 0xFF
    parts[1].write_bytes(changed)
    parts[2].write_bytes(parts[2].read_bytes()[:100])
    leftover = parts[0].with_name(".part-1-2.parquet.tmp")
    leftover.write_bytes(b"half")
    os.utime(leftover, (time.time() - 7200, time.time() - 7200))
    fresh = parts[0].with_name(".part-1-3.parquet.tmp")
    fresh.write_bytes(b"half")
    health = check(Tables(root))
    assert list(health.unreadable) == [str(parts[2])]
    assert health.wrong == {str(parts[1]): [REQUESTS[1].image_id]}
    assert health.leftovers == [str(leftover)]
    assert not health.is_well
    said = repair(Tables(root))
    assert len(said) == 4, said
    assert fresh.exists(), "it may be of a run that is writing"
    assert not leftover.exists()
    assert len(list((root / "catalog" / "damaged").iterdir())) == 2, "nothing is thrown away"
    after = check(Tables(root))
    assert (after.unreadable, after.wrong, after.rows["images"]) == ({}, {}, 7)
    assert after.without_picture == 2
    assert after.summary[-1][1] != "nothing is damaged"
    # The same study makes them again, under their old numbers.
    past = past_trials(Tables(root), "small")
    assert sorted(past[0].outcomes) == [0]
    fill(root)
    assert check(Tables(root)).is_well
    assert [sorted(trial.outcomes) for trial in past_trials(Tables(root), "small")] == [[0, 1, 2]] * 3


def test_a_study_is_freed_and_what_others_use_stays(root: Path) -> None:
    fill(root, "other", 4, 9)
    compact(Tables(root))
    before = everything(root, "other")
    freed = of_study_alone(Tables(root), "small")
    assert freed.images == {request.image_id for request in REQUESTS[:4]}
    assert freed.trials == 9
    assert freed.size == sum(len(Tables(root).png(image_id)) for image_id in freed.images)
    free(Tables(root), "small", freed)
    assert past_trials(Tables(root), "small") == []
    assert everything(root, "other")[:2] == before[:2]  # type: ignore[index]
    assert Tables(root).read("images", ["image_id"]).num_rows == 5
    assert check(Tables(root)).is_well
    assert STUDY.name == "small"


def unreadable_pictures(path: Path) -> None:
    """Metadata is whole; the page of the pictures has no header."""
    metadata = pq.read_metadata(path)
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    start = metadata.row_group(0).column(names.index("image.bytes")).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)


def test_pictures_that_cannot_be_read_stop_no_upkeep(root: Path) -> None:
    bad = sorted((root / "catalog" / "images").glob("*.parquet"))[3]
    unreadable_pictures(bad)
    health = check(Tables(root))
    assert list(health.unreadable) == [str(bad)]
    assert "is damaged" in health.unreadable[str(bad)]
    assert compact(Tables(root))["scores"][:2] == (8, 1)
    assert bad.exists()
    assert "moved to" in repair(Tables(root))[0]
    compact(Tables(root))
    assert counts(root) == [1, 1, 1]
    assert check(Tables(root)).without_picture == 1
    fill(root)
    assert check(Tables(root)).is_well


def test_what_a_killed_compaction_left_goes_with_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the merged file and the old ones are together too large to be merged."""
    before, size = everything(root), sum(Tables(root).sizes("images").values())

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "remove", die)
        with pytest.raises(Killed):
            compact(Tables(root), target=size)
    assert counts(root) == [10, 8, 9]
    compact(Tables(root), target=size)
    assert counts(root) == [1, 1, 1]
    assert check(Tables(root)).twice == {"images": 0, "scores": 0, "trials": 0}
    assert everything(root) == before


def test_a_picture_that_a_repair_took_away_is_made_again(root: Path) -> None:
    """By a run that was under way, and scores it against another text."""
    catalog = ParquetCatalog(Tables(root), small_study(name="another"))
    asked = replace(REQUESTS[0], score_text="something else")
    assert isinstance(catalog.find(asked), Unscored)
    shutil.rmtree(root / "catalog" / "images")
    assert catalog.find(replace(REQUESTS[1], score_text="something else")) is None
    (again,) = results(2)[1:]
    catalog.write([again], [])
    assert Tables(root).read("images", ["image_id"])["image_id"].to_pylist() == [REQUESTS[1].image_id]


@pytest.mark.parametrize("steps", range(8))
def test_a_removal_that_is_killed_anywhere_hurts_no_other_study(
    root: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "other", 4, 9)
    compact(Tables(root))
    before = everything(root, "other")
    left = [steps]

    def dying(act: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return act(*arguments, **options)

        return step

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(Tables, "write", dying(Tables.write))
        patch.setattr(Tables, "remove", dying(Tables.remove))
        free(Tables(root), "small", of_study_alone(Tables(root), "small"))
    assert everything(root, "other")[:2] == before[:2]  # type: ignore[index]
    free(Tables(root), "small", of_study_alone(Tables(root), "small"))
    compact(Tables(root))
    assert past_trials(Tables(root), "small") == []
    assert everything(root, "other")[:2] == before[:2]  # type: ignore[index]
    assert Tables(root).read("images").num_rows == 5
    assert check(Tables(root)).is_well
