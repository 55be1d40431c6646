"""Part files that are missing altogether: noticed, but never where somebody has removed them."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import check, compact, free, of_study_alone, repair
from search_spaces.requests import Failed, Scored
from tests.orchestrator.catalog.test_contract import REQUESTS, STUDY, results
from tests.orchestrator.catalog.test_damage import TABLES, parts, root

__all__ = ["root"]


def entries(root: Path) -> dict[str, int]:
    tables = Tables(root)
    return {path: rows for table in TABLES for path, rows in tables.ledger.entries(table).items()}


def there(root: Path) -> set[str]:
    return {str(path) for table in TABLES for path in parts(root, table)}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_a_part_that_is_gone_is_noticed_and_what_it_held_is_made_again(
    root: Path, table: str, merged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if merged:
        compact(Tables(root))
    path = parts(root, table)[-1]
    rows = Tables(root).read_part(table, str(path), ["image_id"]).num_rows
    path.unlink()
    health = check(Tables(root))
    assert health.missing == {str(path): rows}
    assert not health.is_well
    assert [why for label, why in health.summary if label == "gone" and str(path) in why]
    assert f"{path} is gone, with {rows} rows" in caplog.text
    tables = Tables(root)
    catalog = ParquetCatalog(tables, STUDY)
    known = [catalog.find(request) for request in REQUESTS[:9]]
    past_trials(tables, STUDY.name)
    assert [notice for notice in tables.notices if notice.startswith(f"{path} is gone")]
    unknown = [found for found in known if not isinstance(found, Scored | Failed)]
    assert len(unknown) == (0 if table == "trials" else rows)
    assert any(f"{path} is gone" in said for said in repair(Tables(root)))
    assert check(Tables(root)).missing == {}


def test_every_part_has_an_entry_whatever_is_done(root: Path) -> None:
    assert entries(root).keys() == there(root)
    compact(Tables(root))
    assert entries(root).keys() == there(root)
    assert sorted(entries(root).values()) == [8, 9, 9]
    path = parts(root, "images")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    repair(Tables(root))
    assert entries(root).keys() == there(root)
    free(Tables(root), STUDY.name, of_study_alone(Tables(root), STUDY.name))
    assert entries(root).keys() == there(root) == set()
    assert check(Tables(root)).is_well


def test_a_root_of_an_earlier_version_misses_nothing_until_it_is_compacted(root: Path) -> None:
    for table in TABLES:
        for entry in (root / "catalog" / "ledger" / table).iterdir():
            entry.unlink()
    assert check(Tables(root)).is_well
    parts(root, "trials")[-1].unlink()
    health = check(Tables(root))
    assert health.missing == {}
    assert Tables(root).notices == []
    compact(Tables(root))
    assert entries(root).keys() == there(root)


def test_scores_that_an_earlier_version_lost_are_noticed_by_what_names_them(root: Path) -> None:
    path = parts(root, "scores")[0]
    for entry in (root / "catalog" / "ledger" / "scores").iterdir():
        entry.unlink()
    path.unlink()
    health = check(Tables(root))
    assert health.without_score == 3
    assert not health.is_well
    assert ("missing", "3 scored instances have no score; `latentsweep run` scores them") in health.summary


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("steps", range(12))
def test_a_kill_anywhere_leaves_nothing_that_is_missed(
    root: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a part file, its entry and their removal."""
    left = [steps]

    def dying(act: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return act(*arguments, **options)

        return step

    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("enter", "strike"):
            patch.setattr(
                f"orchestrator.catalog.ledger.Ledger.{name}",
                dying(getattr(Tables(root).ledger.__class__, name)),
            )
        ParquetCatalog(Tables(root), STUDY).write(results(12)[9:], [])
        compact(Tables(root))
    assert check(Tables(root)).missing == {}
    assert len(past_trials(Tables(root), STUDY.name)) == 3


def test_writers_and_compactions_at_once_miss_nothing(tmp_path: Path) -> None:
    row = dict.fromkeys(SCHEMAS["scores"].names)
    stop = threading.Event()

    def write(writer: int) -> None:
        tables = Tables(tmp_path)
        for number in range(40):
            told = {**row, "image_id": f"{writer:016x}{number:016x}", "scorer": "s", "text": "", "value": 1.0}
            tables.append("scores", [told])

    def merge() -> None:
        while not stop.is_set():
            compact(Tables(tmp_path))

    writers = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    merger = threading.Thread(target=merge)
    for thread in (*writers, merger):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    merger.join()
    health = check(Tables(tmp_path))
    assert health.missing == {}
    assert health.is_well
    ids = Tables(tmp_path).read("scores", ["image_id"])["image_id"]
    assert len(ids.unique()) == 80
