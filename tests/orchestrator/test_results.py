"""What the report is made of: the catalog as the study, as its file is now, sees it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from orchestrator import api
from orchestrator.catalog import Unscored
from orchestrator.catalog.parquet import ParquetCatalog, past_trials, scored_count
from orchestrator.catalog.tables import Tables
from orchestrator.comet_study import comet_content
from orchestrator.dashboard import projected
from orchestrator.plan import (
    Plan,
    gone_on_with,
    image_count,
    make_plan,
    most_race_costs,
    of_this_space,
    plan_lines,
)
from orchestrator.pool import InProcessPool
from orchestrator.report.files import report_text
from orchestrator.report.results import Results
from orchestrator.report.statistics import ranking
from orchestrator.session import Extent, Session
from orchestrator.studies import diff
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import NullTracker
from orchestrator.winners import winners
from orchestrator.wiring import make_strategy, make_validation, raced
from search_spaces.objectives import parse_constraint
from search_spaces.requests import ImageRequest, Scored, content_hash
from search_spaces.space import Judge, Survey, survey
from search_spaces.strategies import PastTrial
from search_spaces.strategies.grid import Grid
from search_spaces.strategies.halving import pictures
from search_spaces.strategies.trials import Trials
from search_spaces.study import Study
from search_spaces.study_file import BudgetSpec, SearchSpec
from tests.orchestrator.studies import fake_worker, small_study
from workers.pipelines import Generated
from workers.pipelines.fake import FakePipeline
from workers.scoring import Scorer
from workers.scoring.fake import BrightnessScorer
from workers.worker import Worker


def run(study: Study, root: Path, worker: Worker | None = None) -> Progress:
    """A session of a study over fakes, into a real catalog and folder."""
    tables = Tables(root)
    past = past_trials(tables, study.name, needed=study.measures)
    StudyFolder(str(root), study.name).pin(study, "", {})
    catalog = ParquetCatalog(tables, study)
    return sweep(
        study,
        make_strategy(study, past),
        InProcessPool(worker or fake_worker(), 4),
        catalog,
        NullTracker(),
        past,
        validation=lambda: make_validation(study, past_trials(tables, study.name, needed=study.measures)),
    )


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
    assert {trial.settings["guidance_scale"] for trial in found.trials} == {1, 3, 7.5}, (
        "the file's own values"
    )
    assert found.gone == 0


def texts(results: Results) -> str:
    """The report, its lines joined."""
    return " ".join(report_text(results).split())


def test_a_grid_of_a_version_that_kept_no_session_is_not_finished_where_cells_lack(tmp_path: Path) -> None:
    study = small_study(guidance=(3, 5))
    StudyFolder(str(tmp_path), "small").pin(study, "", {})
    candidates = survey(study.space, study.judge, study.first).candidates
    ours = Grid(Trials(study.judge, study.objective), candidates[:3], 3)
    catalog = ParquetCatalog(Tables(tmp_path), study)
    sweep(study, ours, InProcessPool(fake_worker(), 4), catalog, NullTracker(), [])
    found = api.results("small", str(tmp_path))
    settings, images = len(candidates), 3 * len(candidates)
    assert (found.ended, found.extent) == ("unfinished", Extent(settings, images))
    part = f"3 of {settings} settings judged in full, 9 of {images} images; not finished"
    assert f"so far: {part}" in texts(found)
    assert api.best("small", str(tmp_path)).startswith("best so far: ")
    assert api.best("small", str(tmp_path)).endswith(part)
    run(study, tmp_path)
    assert api.results("small", str(tmp_path)).ended is None, "all of it is there"
    assert api.best("small", str(tmp_path)).startswith("best clip_score ")


def test_what_the_catalog_had_and_has_no_more_is_said_everywhere(tmp_path: Path) -> None:
    root = str(tmp_path)
    run(small_study(), tmp_path)
    run(small_study("other"), tmp_path)
    images = scored_count(Tables(root), "small")
    session = Session("finished", Extent(images // 3, images), "", images)
    for study in ("small", "other"):
        StudyFolder(root, study).keep_session(session)
    assert (api.results("small", root).lost, api.check(root).lost) == (0, {})
    (tmp_path / "catalog").rename(tmp_path / "elsewhere")
    found = api.results("small", root)
    assert found.lost == images
    assert f"lost: {images} scored images that the catalog had are gone from it" in texts(found)
    assert f"{images} scored images that the catalog had are gone" in api.best("small", root)
    health = api.check(root)
    assert (health.is_well, health.lost) == (False, {"small": images, "other": images})
    assert ("lost", f"small: {images} scored images that the catalog had are gone from it") in health.summary
    assert health.summary[-1][1] != "nothing is damaged"
    run(small_study(), tmp_path)
    assert api.check(root).lost == {"other": images}


def test_rows_of_other_roles_and_rows_twice_count_once(tmp_path: Path) -> None:
    study = small_study(search=SearchSpec.model_validate({"strategy": "grid", "validation": 2}))
    run(study, tmp_path)
    rows = Tables(tmp_path).read("trials", ["role", "state"]).to_pylist()
    assert {row["role"] for row in rows} == {"search", "validate"}
    scored = scored_count(Tables(tmp_path), "small")
    assert scored == len(rows)
    part = next((tmp_path / "catalog" / "trials").glob("*.parquet"))
    part.with_name(part.name.replace("part-", "part-1")).write_bytes(part.read_bytes())
    assert Tables(tmp_path).read("trials", ["role"]).num_rows > len(rows), "some are there twice"
    assert scored_count(Tables(tmp_path), "small") == scored


def cells_of(root: Path) -> set[tuple[object, object]]:
    """The pairs of guidance and negative prompt that a study's frame has."""
    rows = api.frame("small", str(root), pictures=False).to_pylist()
    return {(row["guidance_scale"], row["negative_prompt"]) for row in rows}


def test_every_cell_is_in_the_frame_under_the_files_own_values(tmp_path: Path) -> None:
    study = small_study(guidance=(3, 7.5))
    run(study, tmp_path)
    four = {(3, ""), (3, "cartoon"), (7.5, ""), (7.5, "cartoon")}
    assert cells_of(tmp_path) == four
    assert {tuple(trial.settings.values()) for trial in api.results("small", str(tmp_path)).trials} == four
    place = tmp_path / "rows.csv"
    api.export("small", "csv", str(place), str(tmp_path), where="negative_prompt == ''")
    assert len(place.read_text().splitlines()) == 1 + 2 * len(study.instances)


def test_what_an_earlier_version_called_by_the_models_values_has_the_files_now(tmp_path: Path) -> None:
    study = small_study(guidance=(3, 7.5))
    StudyFolder(str(tmp_path), "small").pin(study, "", {})
    unaware = Trials(Judge(study.settings, study.model), study.objective)
    old = Grid(unaware, [{"guidance_scale": 7.5, "negative_prompt": None}, *study.space.lattice()], 3)
    catalog = ParquetCatalog(Tables(tmp_path), study)
    sweep(study, old, InProcessPool(fake_worker(), 4), catalog, NullTracker(), [])
    raw = Tables(tmp_path).read("trials", ["settings"])["settings"].unique().to_pylist()
    assert any("null" in settings for settings in raw)

    assert cells_of(tmp_path) == {(3, ""), (3, "cartoon"), (7.5, ""), (7.5, "cartoon")}
    found = api.results("small", str(tmp_path))
    assert found.trials[0].settings == {"guidance_scale": 7.5, "negative_prompt": ""}
    assert found.baseline == 0
    done = run(study, tmp_path)
    assert (done.generated, done.reused) == (0, 0), "it goes on where it was"


def test_instances_of_one_picture_count_once_in_the_report_of_an_older_study(tmp_path: Path) -> None:
    once = small_study("once")
    run(once, tmp_path)
    (item,) = once.inputs
    listed = (item, item.model_copy(update={"image_name": "copy.png"}), item)
    study = small_study().model_copy(update={"inputs": listed})
    done = run(study, tmp_path)
    assert done.generated == 0
    found, other = (api.results(name, str(tmp_path)) for name in ("small", "once"))
    assert (len(study.instances), found.instances, list(found.study_numbers)) == (9, 3, [0, 3, 6])
    assert [(entry.trial.scores, entry.score, entry.behind) for entry in ranking(found)] == [
        (entry.trial.scores, entry.score, entry.behind) for entry in ranking(other)
    ]
    report = report_text(found)
    assert report.count("6 of 9 instances draw the same pictures as another") == 1
    assert "n = 3" in report
    pictures = [winner.path for winner in winners(found, study, 1)]
    assert [path.rpartition("-")[2] for path in pictures] == ["0.png", "3.png", "6.png"]
    compared = diff((study, found), (once, other))
    assert (compared.shared, compared.same and compared.same.n, compared.same and compared.same.mean) == (
        3,
        3,
        0,
    )
    in_comet = [list(comet_content(str(tmp_path), name).metrics) for name in ("small", "once")]
    assert in_comet[0] == in_comet[1]
    assert len(in_comet[0]) > len(found.trials)
    told = [projected(each, str(tmp_path), True).trials for each in (study, once)]
    assert [(trial.mean, trial.interval) for trial in told[0]] == [(t.mean, t.interval) for t in told[1]]


def test_pictures_of_equal_pixels_are_one_whatever_is_written_beside_them(tmp_path: Path) -> None:
    class Alike(FakePipeline):
        """Draws a prompt in any case alike, though the study takes each for itself."""

        def _draw(self, request: ImageRequest) -> Generated:
            drawn = replace(request, image_id=content_hash({"p": request.prompt.lower(), **request.settings}))
            return replace(super()._draw(drawn), request=request)

    (item,) = small_study().inputs
    shouted = item.model_copy(update={"prompt": "A PICTURE"})
    judged_otherwise = item.model_copy(update={"score_text": "another text"})
    study = small_study(seeds=1).model_copy(update={"inputs": (item, shouted, judged_otherwise)})

    class ByText(BrightnessScorer):
        def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
            """Brightness, more for longer texts."""
            values = super().score(images, requests)
            return [v + len(r.score_text) for v, r in zip(values, requests, strict=True)]

    run(study, tmp_path, Worker(Alike(2), {"clip_score": ByText()}, "fake device", batch=4))
    found = api.results("small", str(tmp_path))
    assert found.copies == {1: 0}
    assert found.instances == 2


@pytest.mark.parametrize("walk", [survey, lambda *_: None])
def test_values_that_left_an_axis_are_not_counted_as_done(walk: object) -> None:
    wide, narrow = small_study(guidance=(0.5, 1, 3, 5)), small_study(guidance=(3, 5))
    past = [PastTrial(n, cell) for n, cell in enumerate(survey(wide.space, wide.judge).candidates)]
    found: Survey | None = walk(narrow.space, narrow.judge)  # type: ignore[operator]
    assert [trial.settings["guidance_scale"] for trial in of_this_space(past, narrow, found)] == [3, 3, 5, 5]


# After another strategy

pytestmark = pytest.mark.usefixtures("no_model")


def searched(strategy: str, **more: object) -> Study:
    """Sixty settings on eight instances, searched by a strategy."""
    search = SearchSpec.model_validate({"strategy": strategy, **more})
    return small_study(seeds=8, guidance=tuple(1 + n / 4 for n in range(1, 31)), search=search)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans count steps as UNet calls, without asking a scheduler of the model, which is none."""
    calls = lambda _, settings: settings["num_inference_steps"]  # noqa: E731
    monkeypatch.setattr("workers.pipelines.loading.unet_calls", calls)


def planned(study: Study, root: Path) -> Plan:
    past = past_trials(Tables(root), study.name)
    known = ParquetCatalog(Tables(root), study).image_ids
    return make_plan(study, known, past, str(root), (), partial(raced, study))


def test_a_sampler_after_a_race_tries_as_many_settings_as_it_was_told_to(tmp_path: Path) -> None:
    run(searched("halving", early_look="off"), tmp_path)
    before_it = past_trials(Tables(tmp_path), "small")
    whole = [trial for trial in before_it if len(trial.outcomes) == 8]
    assert {name for trial in before_it for name in trial.dealt_by.values()} == {"halving"}
    assert 3 <= len(whole) < 8 < len(before_it)

    study = searched("random", trials=8, racing="off")
    before = planned(study, tmp_path)
    assert (before.tried, before.images, before.to_generate) == (len(whole), 64, 64 - 8 * len(whole))
    run(study, tmp_path)
    after = past_trials(Tables(tmp_path), "small")
    assert sum(len(trial.outcomes) == 8 for trial in after) == 8
    assert sum(0 < len(trial.outcomes) < 8 for trial in after) >= len(before_it) - 8, (
        "the others are left alone"
    )
    done = planned(study, tmp_path)
    assert (done.tried, done.to_generate) == (8, 0)
    notes = [sentence for label, sentence in plan_lines(done) if label == "note"]
    assert (
        "8 trials of earlier sessions count, so that nothing new is tried: let search.trials be more" in notes
    )
    assert not any("earlier sessions" in sentence for _, sentence in plan_lines(before))


def test_a_race_is_not_planned_by_what_others_judged(tmp_path: Path) -> None:
    run(searched("random", trials=20, racing="off"), tmp_path)
    race = searched("halving", early_look="off")
    assert planned(race, tmp_path).to_generate == planned(race, tmp_path).images
    run(race, tmp_path)
    assert planned(race, tmp_path).to_generate < planned(race, tmp_path).images
    whole = searched("grid")
    past = past_trials(Tables(tmp_path), "small")
    assert gone_on_with(past, whole) == past


def test_a_validation_that_is_there_is_planned_as_there(tmp_path: Path) -> None:
    study = small_study(search=SearchSpec.model_validate({"validate": 2}))
    scored = {instance: Scored({"clip_score": 1.0}) for instance in range(3)}
    past = [PastTrial(0, {"guidance_scale": 3, "negative_prompt": ""}, validation=scored)]
    nothing, some = (make_plan(study, set(), trials, str(tmp_path), ()) for trials in ([], past))
    assert nothing.to_generate - some.to_generate == 2


@pytest.mark.parametrize(
    "search",
    [
        {"strategy": "grid"},
        {"strategy": "grid", "trials": 9},
        {"strategy": "halving"},
        {"strategy": "halving", "early_look": "auto"},
        {"strategy": "halving", "trials": 20, "keep": 0.6},
        {"strategy": "coordinate", "rounds": 3},
        {"strategy": "refine", "trials": 64},
        {"strategy": "tpe", "trials": 12},
        {"strategy": "random", "trials": 12, "racing": "off"},
    ],
    ids=str,
)
def test_no_search_takes_more_than_its_plan_says(search: dict[str, object], tmp_path: Path) -> None:
    enqueue = [{"guidance_scale": 11.1}, {"guidance_scale": 3.3}]
    study = searched(**search, validate=3, enqueue=enqueue)  # type: ignore[arg-type]
    plan = planned(study, tmp_path)
    assert plan.to_generate == plan.images
    done = run(study, tmp_path)
    assert 0 < done.generated <= plan.images
    assert plan.unet_calls is not None
    assert done.unet_calls <= plan.unet_calls
    assert any(trial.validation for trial in past_trials(Tables(tmp_path), "small"))
    after = planned(study, tmp_path)
    assert after.to_generate == plan.images - done.generated, "what is there is not made again"
    assert run(study, tmp_path).generated == 0


# Budgets of a race


def budgeted(study: Study, **limits: float) -> Study:
    return study.model_copy(update={"budget": BudgetSpec.model_validate(limits)})


@pytest.mark.parametrize("limits", [{"images": 110}, {"unet_calls": 440}, {"images": 110, "unet_calls": 300}])
def test_a_race_is_of_as_many_settings_as_its_budget_lasts_for(
    limits: dict[str, float], tmp_path: Path
) -> None:
    study = budgeted(searched("halving", early_look="off"), **limits)
    plan = planned(study, tmp_path)
    images = min(limits.get("images", 10**9), limits.get("unet_calls", 10**9) / 4)  # of four steps
    assert 0.7 * images < plan.images <= images
    assert plan.unet_calls is not None
    assert 4 * plan.images <= plan.unet_calls <= 4 * images
    note = f"the budget lasts for a race of {plan.trials} of 60 settings, drawn at random"
    assert note in [sentence for label, sentence in plan_lines(plan) if label == "note"]
    progress = run(study, tmp_path)
    assert progress.ended_by is None, "it comes to its end"
    assert progress.generated <= plan.images
    whole = [trial for trial in past_trials(Tables(tmp_path), "small") if len(trial.outcomes) == 8]
    assert len(whole) >= 3


def test_a_race_for_which_a_budget_leaves_only_what_comes_first_is_told(tmp_path: Path) -> None:
    plan = planned(budgeted(searched("halving"), images=8), tmp_path)
    assert plan.trials == 1
    assert any("so that nothing is searched" in sentence for _, sentence in plan_lines(plan))
    more = planned(budgeted(searched("halving"), images=110), tmp_path)
    assert not any("so that nothing is searched" in sentence for _, sentence in plan_lines(more))


def test_a_race_of_unlike_costs_is_bounded_by_the_costliest() -> None:
    study = searched("halving")
    assert most_race_costs([1] * 30, study)[-1] == image_count(study, 30)
    # 20 cheap and 10 costly ones: all are drawn once, and then the costly ones may be those that stay
    assert most_race_costs([1] * 20 + [9] * 10, study)[-1] == 110 + 9 * (image_count(study, 30) - 30)
    assert most_race_costs([1] * 20 + [9] * 10, study)[:20] == most_race_costs([1] * 20, study)


def test_a_race_with_a_budget_of_seconds_may_end_with_nothing_and_its_plan_says_so(tmp_path: Path) -> None:
    said = "a budget of seconds may end a race before any setting is judged in full"
    instead = "by one of images or unet_calls"
    for limits, expected in (
        ({"seconds": 9}, (True, True)),
        ({"gpu_seconds": 9, "images": 150}, (True, False)),
        ({"images": 150}, (False, False)),
    ):
        plan = planned(budgeted(searched("halving"), **limits), tmp_path)
        notes = " ".join(sentence for label, sentence in plan_lines(plan) if label == "note")
        assert (said in notes, instead in notes) == expected


@pytest.mark.parametrize("strategy", ["coordinate", "refine"])
def test_a_first_race_that_its_budget_may_cut_off_is_told(strategy: str, tmp_path: Path) -> None:
    search = searched(strategy, **({"trials": 70} if strategy == "refine" else {}))
    entrants = (
        31 if strategy == "coordinate" else 61
    )  # values of the first setting, or all; and the model's own
    needed = pictures(entrants, 8)
    said = f"the budget may end the first race, of up to {entrants} settings and {needed} images"
    for limits, expected in (
        ({"images": needed - 1}, True),
        ({"images": needed}, False),
        ({"images": needed, "seconds": 9}, True),
        ({"unet_calls": 500}, True),
        ({}, False),
    ):
        plan = planned(budgeted(search, **limits), tmp_path)
        assert any(said in sentence for _, sentence in plan_lines(plan)) is expected, limits
    cut = budgeted(search, images=entrants)
    assert run(cut, tmp_path).ended_by
    assert max(len(trial.outcomes) for trial in past_trials(Tables(tmp_path), "small")) < 8


def test_a_plan_names_what_is_wanted(tmp_path: Path) -> None:
    bound = parse_constraint("gpu_seconds <= 2")
    wanted = {"clip_score": "maximize", "gpu_seconds": "minimize"}
    study = searched("random", trials=9).model_copy(update={"directions": wanted, "constraints": (bound,)})
    lines = dict(plan_lines(planned(study, tmp_path)))
    assert lines["objectives"] == f"clip_score (maximize), gpu_seconds (minimize), {study.scorer.id}"
    assert lines["constraint"] == "gpu_seconds <= 2, of a setting's mean"


def test_no_race_is_advised_that_would_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advised() -> bool:
        return any(label == "advice" for label, _ in plan_lines(planned(searched("grid"), tmp_path)))

    assert advised()
    monkeypatch.setattr("orchestrator.plan.SURVEY_LIMIT", 10)
    assert not advised()


# Scores of pixels


class Sameness:
    """Stands for a pixel scorer: what a picture's id begins with."""

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
        return [float(int(request.image_id[:2], 16)) for request in requests]

    def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:
        return []


def test_a_bound_on_a_score_that_pictures_lack_scores_them_and_draws_none_again(tmp_path: Path) -> None:
    run(small_study(), tmp_path)
    bound = parse_constraint("preservation_psnr >= 100")
    study = small_study().model_copy(update={"constraints": (bound,)})
    both: dict[str, Scorer] = {"clip_score": BrightnessScorer(), "preservation_psnr": Sameness()}
    worker = Worker(FakePipeline(2), both, "fake")
    again = run(study, tmp_path, worker)
    assert (again.generated, again.reused, again.images) == (0, 18, 18)
    rows = Tables(tmp_path).read("scores", ["image_id", "scorer", "text"]).to_pylist()
    assert len(rows) == len({tuple(row.values()) for row in rows}) == 36, "nothing is stored twice"
    assert {row["text"] for row in rows if row["scorer"].startswith("preservation")} == {""}

    found = api.results("small", str(tmp_path))
    ids = {row["image_id"]: float(int(row["image_id"][:2], 16)) for row in rows}
    for trial in found.trials:
        assert trial.measured["preservation_psnr"] == {i: ids[name] for i, name in trial.images.items()}
    kept = {t.number for t in found.trials if sum(t.measured["preservation_psnr"].values()) >= 300}
    assert {entry.trial.number for entry in ranking(found)} == kept
    assert 0 < len(kept) < len(found.trials)
    done = run(study, tmp_path, worker)
    assert (done.generated, done.reused) == (0, 0)


def test_pictures_of_another_study_are_judged_by_the_pixels_too(tmp_path: Path) -> None:
    run(small_study(), tmp_path)
    bound = parse_constraint("preservation_psnr >= 0")
    study = small_study(name="other", seeds=2).model_copy(update={"constraints": (bound,)})
    catalog = ParquetCatalog(Tables(tmp_path), study)
    request = study.request({"guidance_scale": 3, "negative_prompt": ""}, study.instances[0])
    assert isinstance(catalog.find(request), Unscored)
    both: dict[str, Scorer] = {"clip_score": BrightnessScorer(), "preservation_psnr": Sameness()}
    assert run(study, tmp_path, Worker(FakePipeline(2), both, "fake")).generated == 0
    found = ParquetCatalog(Tables(tmp_path), study).find(request)
    assert isinstance(found, Scored)
    assert found.scores.keys() == {"clip_score", "preservation_psnr"}
