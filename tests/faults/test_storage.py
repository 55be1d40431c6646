"""A full disk, a read-only one, a mount that vanishes: the run pauses, and goes on when the cause is gone."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.patient import Patient, StorageError
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done, InProcessPool
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from search_spaces.requests import Scored
from tests.orchestrator.studies import fake_worker, grid, requests_of, small_study

pytestmark = pytest.mark.faults

STUDY = small_study(seeds=40)


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or not mount("-t", "tmpfs", "-o", "size=8m", "latentsweep-test", str(folder)):
        pytest.skip("NOT TESTED with a real disk: needs a root user who may mount")
    try:
        yield folder
    finally:
        while folder.is_mount():
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up what is left of a disk."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), b"x" * 4096)
        except OSError:
            return filler


def run(root: Path, mend: Callable[[], None], patience: float = 60) -> list[str]:
    """A whole study by the loop; `mend` is called once it waits. What it said."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("the run waits"):
            mend()

    tables = Tables(root)
    catalog = Patient(ParquetCatalog(tables, STUDY), say, patience=patience)
    strategy = grid(STUDY, past_trials(tables, STUDY.name))
    sweep(STUDY, strategy, InProcessPool(fake_worker(4), 4), catalog, NullTracker())
    return said


def all_is_there(root: Path) -> None:
    tables, requests = Tables(root), requests_of(STUDY)
    ids = tables.read("images", ["image_id"])["image_id"].to_pylist()
    assert sorted(ids) == sorted({request.image_id for request in requests})
    assert all(tables.png(image_id).startswith(b"\x89PNG") for image_id in ids)
    past = past_trials(tables, STUDY.name)
    assert [trial.number for trial in past] == list(range(len(past)))
    assert all(len(trial.outcomes) == 40 for trial in past)
    assert all(isinstance(outcome, Scored) for trial in past for outcome in trial.outcomes.values())
    assert tables.notices == []


def test_a_full_disk(disk: Path) -> None:
    filler = fill(disk)
    filler_gone = []

    def mend() -> None:
        assert not list(disk.rglob("*.parquet")), "nothing half is there"
        filler.unlink()
        filler_gone.append(True)

    said = run(disk, mend)
    assert filler_gone
    assert "No space left on device" in said[0]
    all_is_there(disk)


def test_a_disk_that_fills_up_in_the_middle_and_stays_full(disk: Path) -> None:
    """It ends with a sentence; what was acknowledged is whole, and the same study goes on from it."""
    small = fill(disk)
    with small.open("r+b") as file:
        file.truncate(small.stat().st_size - 160 * 1024)  # for a few part files
    with pytest.raises(
        StorageError, match=r"No space left on device, for \d+ s; everything acknowledged is kept"
    ):
        run(disk, lambda: None, patience=2)
    tables = Tables(disk)
    before = tables.read("images", ["image_id"])["image_id"].to_pylist()
    assert 0 < len(before) < 200
    assert tables.notices == []
    judged = {i for trial in past_trials(tables, STUDY.name) for i in trial.outcomes}
    assert judged
    small.unlink()
    run(disk, lambda: pytest.fail("the disk is not full any more"))
    all_is_there(disk)


def test_a_disk_that_turns_read_only(disk: Path) -> None:
    (disk / "catalog").mkdir()
    assert mount("-o", "remount,ro", str(disk))
    said = run(disk, lambda: None if mount("-o", "remount,rw", str(disk)) else pytest.fail("cannot mend it"))
    assert "Read-only file system" in said[0]
    all_is_there(disk)


def test_a_mount_that_vanishes_and_comes_back(disk: Path, tmp_path: Path) -> None:
    """Nothing is begun anew in the empty folder that is left where it was."""
    other = tmp_path / "other"
    other.mkdir()
    run_of_two = small_study(seeds=2)
    catalog = ParquetCatalog(Tables(disk), run_of_two)
    sweep(run_of_two, grid(run_of_two), InProcessPool(fake_worker(4), 4), catalog, NullTracker())
    assert mount("--bind", str(disk), str(other))

    class Vanishing(InProcessPool):
        gone = False

        def next_done(self, timeout: float) -> Sequence[Done]:
            if not self.gone:
                self.gone = True
                subprocess.run(["umount", str(disk)], check=True)
            return super().next_done(timeout)

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("the run waits"):
            assert list(disk.iterdir()) == []
            assert mount("--bind", str(other), str(disk))

    tables = Tables(disk)
    patient = Patient(ParquetCatalog(tables, STUDY), say)
    strategy = grid(STUDY, past_trials(tables, STUDY.name))
    try:
        sweep(STUDY, strategy, Vanishing(fake_worker(4), 4), patient, NullTracker())
        assert "the catalog's folder is gone" in said[0]
        all_is_there(disk)
    finally:
        subprocess.run(["umount", "-l", str(other)], check=True)
