"""A study told to a storage while it runs: from the catalog, off the loop's path, and never in its way."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator import dashboard
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.dashboard import Dashboard, Repeating, export, projected
from orchestrator.pool import InProcessPool
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import NullTracker
from search_spaces.requests import Failed
from search_spaces.study import Study
from tests.orchestrator.studies import fake_worker, grid, requests_of, small_study


def run(
    study: Study, root: Path, fails: dict[str, Failed] | None = None, stop: Callable[[], bool] = lambda: False
) -> Progress:
    """A study run over fakes into a real catalog."""
    tables = Tables(root)
    past = past_trials(tables, study.name)
    strategy = grid(study, past)
    pool = InProcessPool(fake_worker(fails=fails), 2)
    return sweep(study, strategy, pool, ParquetCatalog(tables, study), NullTracker(), past, stopping=stop)


def journal(root: Path, study: Study) -> list[optuna.trial.FrozenTrial]:
    path = StudyFolder(str(root), study.name).optuna / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(path)))
    trials: list[optuna.trial.FrozenTrial]
    trials = storage.get_all_trials(storage.get_study_id_from_name(study.name))
    return trials


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_told_is_what_the_catalog_has(tmp_path: Path) -> None:
    study = small_study()
    run(study, tmp_path)
    told = projected(study, str(tmp_path), ended=True)
    assert [trial.number for trial in told.trials] == [0, 1, 2, 3, 4]
    for trial in told.trials:
        assert trial.mean is not None
        assert trial.mean == pytest.approx(sum(trial.scores.values()) / 3)
        assert trial.interval is not None
        low, high = trial.interval
        assert low <= trial.mean <= high
        assert sorted(trial.images) == [0, 1, 2]
        assert trial.begun <= trial.ended


def test_one_instance_has_no_interval(tmp_path: Path) -> None:
    study = small_study(seeds=1)
    run(study, tmp_path)
    assert {trial.interval for trial in projected(study, str(tmp_path), ended=True).trials} == {None}


def test_a_trial_with_an_infeasible_instance_failed(tmp_path: Path) -> None:
    study = small_study()
    black = requests_of(study)[1].image_id
    run(study, tmp_path, {black: Failed("infeasible", "a black image")})
    board = Dashboard(study, str(tmp_path), None)
    board.start()
    assert board.close() is None
    states = [trial.state for trial in journal(tmp_path, study)]
    assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 4]


def test_it_follows_a_study_that_runs_and_one_that_goes_on(tmp_path: Path) -> None:
    study = small_study()
    board = Dashboard(study, str(tmp_path), None, pause=0.01)
    assert journal(tmp_path, study) == [], "the journal is there before the first image"
    board.start()
    run(study, tmp_path)
    assert board.close() is None
    assert [trial.state for trial in journal(tmp_path, study)] == [TrialState.COMPLETE] * 5
    longer = small_study(seeds=4, guidance=(0.5, 1, 3, 5, 7))
    board = Dashboard(longer, str(tmp_path), None, pause=0.01)
    board.start()

    def told_anew() -> bool:
        with suppress(KeyError):  # deleted, and not yet there again
            return {trial.state for trial in journal(tmp_path, study)} == {TrialState.RUNNING}
        return False

    until(told_anew)
    run(longer, tmp_path)
    assert board.close() is None
    trials = journal(tmp_path, longer)
    assert [trial.user_attrs["trial"] for trial in trials] == list(range(7))
    assert {(trial.state, trial.user_attrs["instances"]) for trial in trials} == {(TrialState.COMPLETE, 4)}


def test_a_study_that_was_stopped_has_no_running_trial_left(tmp_path: Path) -> None:
    study = small_study(seeds=40)
    calls = iter(range(10**6))
    run(study, tmp_path, stop=lambda: next(calls) > 6)
    assert 0 < Tables(tmp_path).read("trials", ["trial"]).num_rows < 200
    board = Dashboard(study, str(tmp_path), None)
    board.start()
    assert board.close() is None
    trials = journal(tmp_path, study)
    assert TrialState.RUNNING not in {trial.state for trial in trials}
    assert "of 40 instances when the study ended" in trials[-1].user_attrs["reason"]


def test_an_export_of_a_study_that_is_being_run_leaves_its_trials_running(tmp_path: Path) -> None:
    study = small_study()
    run(study, tmp_path)
    folder, wider = StudyFolder(str(tmp_path), "small"), small_study(seeds=4)
    assert not folder.is_being_run
    with folder.locked():
        assert folder.is_being_run
        line = export(wider, str(tmp_path), f"journal:{tmp_path}/a.log")
    assert not folder.is_being_run
    assert line == (
        f"5 trials of small in {tmp_path}/a.log; look at it with "
        f"`optuna-dashboard {tmp_path}/a.log --artifact-dir {folder.path}/optuna/artifacts`"
    )
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "a.log")))
    assert {trial.state for trial in storage.get_all_trials(0)} == {TrialState.RUNNING}
    export(wider, str(tmp_path), f"journal:{tmp_path}/a.log")
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "a.log")))
    (told,) = storage.get_all_studies()
    assert {trial.state for trial in storage.get_all_trials(told._study_id)} == {TrialState.PRUNED}


def test_a_storage_that_broke_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study()
    run(study, tmp_path)
    board = Dashboard(study, str(tmp_path), None, pause=0.01)
    path = StudyFolder(str(tmp_path), "small").optuna / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(b"no journal\n" * 9 + whole)
    attempts = threading.Event()
    monkeypatch.setattr(dashboard._log, "warning", lambda *_: attempts.set())
    board.start()
    assert attempts.wait(30)
    path.write_bytes(whole)
    until(lambda: len(journal(tmp_path, study)) == 5)
    assert board.close() is None


def test_failures_are_logged_once_and_the_last_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[bool] = []

    def fail(ended: bool) -> None:
        calls.append(ended)
        raise ValueError(f"no {len(calls)}")

    teller = Repeating(fail, pause=0.01)
    teller.start()
    until(lambda: len(calls) > 3)
    problem = teller.close(30)
    assert problem == f"no {len(calls)}"
    assert calls == [*[False] * (len(calls) - 1), True]
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == ["the dashboard's projection failed: no 1; the study goes on"]


def test_a_last_call_that_hangs_is_not_waited_for() -> None:
    release = threading.Event()

    def hang(_: bool) -> None:
        release.wait(30)

    teller = Repeating(hang, pause=0.01)
    teller.start()
    assert teller.close(0.05) == "it takes longer than 0.05 s"
    release.set()


def test_abandoned_it_calls_no_more() -> None:
    calls: list[bool] = []
    teller = Repeating(calls.append, pause=60)
    teller.start()
    until(lambda: calls)
    teller.abandon()
    teller._thread.join(30)
    assert calls == [False]
