"""200 random bits of a root's part files are flipped, one at a time: no command says anything else in silence."""

import random
from collections import Counter
from pathlib import Path

import pytest

from orchestrator import api
from orchestrator.catalog import tables as tables_module
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables
from orchestrator.pool import InProcessPool
from orchestrator.report.files import report_text, trials_csv
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from tests.orchestrator.studies import fake_worker, grid, small_study

pytestmark = pytest.mark.faults

FLIPS = 200
STUDY = small_study()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a finished study, in many small part files."""
    StudyFolder(str(tmp_path), STUDY.name).pin(STUDY, "", {})
    sweep(
        STUDY,
        grid(STUDY, []),
        InProcessPool(fake_worker(4), 4),
        ParquetCatalog(Tables(tmp_path), STUDY),
        NullTracker(),
    )
    return tmp_path


def told(root: Path) -> dict[str, object]:
    """What commands say of the study: the report and its table, the joined rows with their pictures, the list."""
    found = api.results(STUDY.name, str(root))
    frame = {(row["trial"], row["instance"]): row for row in api.frame(STUDY.name, str(root)).to_pylist()}
    (listed,) = api.studies(str(root))
    return {
        "report": report_text(found),
        "csv": trials_csv(found),
        "frame": frame,
        "listed": (listed.trials, listed.images, listed.size),
    }


def made_up(before: dict[str, object], after: dict[str, object]) -> list[object]:
    """Rows of a frame that differ from those before, where they are not just without their score or picture."""
    truth, now = before["frame"], after["frame"]
    assert isinstance(truth, dict)
    assert isinstance(now, dict)
    return [
        key
        for key, row in now.items()
        if any(value is not None and value != truth[key][name] for name, value in row.items())
    ]


@pytest.mark.parametrize("merged", [False, True])
def test_no_flipped_bit_is_silent(root: Path, merged: bool, caplog: pytest.LogCaptureFixture) -> None:
    """In part files as runs leave them, and in compacted ones; and what is left after a repair is as it was."""
    if merged:
        api.compact(str(root))
    truth, chance, counted = told(root), random.Random(15), Counter[str]()
    for number in range(FLIPS // 2):
        table = sorted(SCHEMAS)[number % len(SCHEMAS)]
        path = chance.choice(sorted((root / "catalog" / table).glob("*.parquet")))
        whole = path.read_bytes()
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        content = bytearray(whole)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        tables_module._name.cache_clear()  # in each process it is said anew
        caplog.clear()
        now, well = told(root), api.check(str(root)).is_well
        assert not well, (path.name, place, bit)
        assert now == truth or caplog.records, (path.name, place, bit)
        assert made_up(truth, now) == [], (path.name, place, bit)
        counted["said" if now != truth else "unchanged, and named by check"] += 1
        if number % 10 == 0:
            before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
            api.repair(str(root))
            health = api.check(str(root))
            assert [health.unreadable, health.wrong, health.missing] == [{}, {}, {}]
            assert made_up(truth, told(root)) == []
            for file in root.rglob("*"):
                if file.is_file() and file not in before:
                    file.unlink()
            for file, held in before.items():
                file.write_bytes(held)
        path.write_bytes(whole)
    assert told(root) == truth
    assert sum(counted.values()) == FLIPS // 2
    print(counted)
