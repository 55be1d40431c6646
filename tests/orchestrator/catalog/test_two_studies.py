"""Two studies at once, in two processes, into one root, while a third compacts it."""

import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from orchestrator.catalog.parquet import past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import check, compact
from search_spaces.requests import Scored
from tests.orchestrator.studies import requests_of, small_study

SEEDS = 40

STUDY = f"""
import sys
from orchestrator import sweep
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.pool import InProcessPool
from orchestrator.study_folder import StudyFolder
from orchestrator.tracking import NullTracker
from tests.orchestrator.studies import fake_worker, grid, small_study

root, name = sys.argv[1:]
sweep.FLUSH_ROWS = 4  # many writes, at one time with the other's
study = small_study(name, seeds={SEEDS})
with StudyFolder(root, name).locked():
    catalog = ParquetCatalog(Tables(root), study)
    print("ready", flush=True)
    sys.stdin.readline()
    sweep.sweep(study, grid(study), InProcessPool(fake_worker(4), 4), catalog, NullTracker())
"""


def test_two_processes_and_a_compaction_at_once(tmp_path: Path) -> None:
    names = ("first", "second")
    command = [sys.executable, "-c", STUDY, str(tmp_path)]
    runs = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    try:
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
        compactions = 0
        while any(run.poll() is None for run in runs):
            compactions += sum(entry[1] for entry in compact(Tables(tmp_path), target=200_000).values())
        assert [run.wait() for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    assert compactions
    tables = Tables(tmp_path)
    turns = [study for study, _ in groupby(tables.read("trials", ["study"])["study"].to_pylist())]
    assert len(turns) > 4, "they did write at the same time"
    requests = {request.image_id for request in requests_of(small_study(seeds=SEEDS))}
    pictures = dict(tables.pictures(requests))
    assert pictures.keys() == requests
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    for name in names:
        past = past_trials(tables, name)
        assert [trial.number for trial in past] == list(range(5))
        outcomes = [outcome for trial in past for outcome in trial.outcomes.values()]
        assert len(outcomes) == len(requests)
        assert all(isinstance(outcome, Scored) for outcome in outcomes)
    assert tables.notices == []
    compact(Tables(tmp_path))
    health = check(Tables(tmp_path))
    assert health.is_well
    assert health.twice == {"images": 0, "scores": 0, "trials": 0}
    assert health.rows == {"images": len(requests), "scores": len(requests), "trials": 2 * len(requests)}


@pytest.mark.faults
def test_two_processes_at_once_again_and_again(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        test_two_processes_and_a_compaction_at_once(tmp_path / str(number))
