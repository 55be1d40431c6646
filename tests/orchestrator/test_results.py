"""What the report is made of: the catalog as the study, as its file is now, sees it."""

from pathlib import Path

from orchestrator import api
from orchestrator.catalog.parquet import ParquetCatalog, Tables, past_trials
from orchestrator.pool import InProcessPool
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from orchestrator.wiring import make_strategy
from search_spaces.study import Study
from tests.orchestrator.studies import fake_worker, small_study


def run(study: Study, root: Path) -> None:
    """A session of a study over fakes, into a real catalog and folder."""
    tables = Tables(root)
    past = past_trials(tables, study.name)
    StudyFolder(str(root), study.name).pin(study, "", {})
    catalog = ParquetCatalog(tables, study)
    sweep(study, make_strategy(study, past), InProcessPool(fake_worker(), 4), catalog, NullTracker(), past)


def test_values_that_left_an_axis_leave_the_report_and_come_back_with_it(tmp_path: Path) -> None:
    run(small_study(guidance=(3, 5)), tmp_path)
    before = api.results("small", str(tmp_path))
    run(small_study(guidance=(3, 9)), tmp_path)
    now = api.results("small", str(tmp_path))
    assert {trial.settings["guidance_scale"] for trial in now.trials} == {3, 9, 7.5}
    assert now.axes["guidance_scale"] == [3, 9, 7.5]
    assert (before.gone, now.gone) == (0, 2)
    run(small_study(guidance=(3, 5)), tmp_path)
    again = api.results("small", str(tmp_path))
    assert (again.trials, again.gone) == (before.trials, 2)


def test_a_value_that_left_stays_where_a_twin_of_it_is_still_there(tmp_path: Path) -> None:
    run(small_study(guidance=(0.5, 3)), tmp_path)
    run(small_study(guidance=(1, 3)), tmp_path)
    found = api.results("small", str(tmp_path))
    assert {trial.settings["guidance_scale"] for trial in found.trials} == {0.5, 3, 7.5}
    assert found.gone == 0
