"""The loop over fakes: nothing is reported before it is durable, nothing is made twice, nothing is lost."""

import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.budget import Spent
from orchestrator.catalog import Catalog, Judged
from orchestrator.catalog.memory import MemoryCatalog
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done, InProcessPool
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import Guarded, NullTracker, RecordingTracker, TrackedImage
from orchestrator.wiring import make_strategy, make_validation
from search_spaces.objectives import Constraint
from search_spaces.requests import Failed, ImageRequest, Looked, Scored, Settings, Trial
from search_spaces.strategies import Assignment, PastTrial, Report
from search_spaces.strategies.grid import Grid
from search_spaces.study import Study
from search_spaces.study_file import BudgetSpec, SearchSpec
from tests.orchestrator.studies import fake_worker, grid, requests_of, small_study
from workers.pipelines import Generated
from workers.pipelines.fake import FakePipeline
from workers.scoring.fake import BrightnessScorer
from workers.worker import Worker


class CrashError(Exception):
    """Stands for a kill."""


class CrashingCatalog(MemoryCatalog):
    """Dies at its n-th write, before or after it has kept what it was given."""

    def __init__(self, crash_at: int | None = None, after: bool = False) -> None:
        super().__init__()
        self.crash_at, self.after, self.writes = crash_at, after, 0

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        self.writes += 1
        if self.writes == self.crash_at and not self.after:
            raise CrashError
        super().write(done, judged)
        if self.writes == self.crash_at:
            raise CrashError


class WatchfulGrid(Grid):
    """A grid that checks that what it is told is in the catalog already."""

    catalog: MemoryCatalog

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        durable = {(j.trial.number, j.instance) for j in self.catalog.judged}
        assert {(r.trial, r.instance) for r in reports} <= durable
        return super().report(reports)


def run(
    study: Study, catalog: MemoryCatalog, pipeline: FakePipeline | None = None, **options: object
) -> Progress:
    worker = Worker(pipeline or FakePipeline(2), {"clip_score": BrightnessScorer()}, "fake")
    past = catalog.past()
    strategy = grid(study, past, WatchfulGrid)
    assert isinstance(strategy, WatchfulGrid)
    strategy.catalog = catalog
    pool = InProcessPool(worker, batch=4)
    return sweep(study, strategy, pool, catalog, NullTracker(), past, **options)  # type: ignore[arg-type]


def pairs(catalog: MemoryCatalog) -> Counter[tuple[int, int]]:
    return Counter((j.trial.number, j.instance) for j in catalog.judged)


def test_every_candidate_is_judged_on_every_instance_once() -> None:
    study, catalog, pipeline = small_study(), MemoryCatalog(), FakePipeline(2)
    progress = run(study, catalog, pipeline, total=15)
    assert pairs(catalog) == Counter({(trial, i): 1 for trial in range(5) for i in range(3)})
    assert sorted(pipeline.made) == sorted(r.image_id for r in requests_of(study))
    assert (progress.images, progress.generated, progress.reused, progress.failed) == (15, 15, 0, 0)
    assert progress.unet_calls == 15 * 4


def test_the_best_so_far_is_the_trial_with_the_highest_mean() -> None:
    study, catalog = small_study(), MemoryCatalog()
    progress = run(study, catalog)
    means: dict[int, list[float]] = {}
    for judged in catalog.judged:
        assert isinstance(judged.outcome, Scored)
        means.setdefault(judged.trial.number, []).append(judged.outcome.scores["clip_score"])
    best = max(means, key=lambda number: sum(means[number]))
    assert progress.best_score == pytest.approx(sum(means[best]) / 3)
    assert progress.best == next(j.trial.settings for j in catalog.judged if j.trial.number == best)


def test_the_best_so_far_keeps_the_constraints() -> None:
    free, catalog = run(small_study(), MemoryCatalog()), MemoryCatalog()
    assert free.best_score is not None
    bound = Constraint("clip_score", "<=", free.best_score - 1)
    bounded = run(small_study().model_copy(update={"constraints": (bound,)}), catalog)
    means: dict[int, list[float]] = {}
    for judged in catalog.judged:
        assert isinstance(judged.outcome, Scored)
        means.setdefault(judged.trial.number, []).append(judged.outcome.scores["clip_score"])
    below = [sum(each) / 3 for each in means.values() if sum(each) / 3 <= bound.bound]
    assert bounded.best_score == pytest.approx(max(below))


def test_the_same_study_again_makes_nothing() -> None:
    study, catalog = small_study(), MemoryCatalog()
    first = run(study, catalog)
    pipeline = FakePipeline()
    second = run(study, catalog, pipeline)
    assert pipeline.made == []
    assert (second.images, second.generated) == (15, 0)
    assert (second.best, second.best_score) == (first.best, first.best_score)


def test_another_study_reuses_the_pictures_of_the_first() -> None:
    catalog, pipeline = MemoryCatalog(), FakePipeline()
    run(small_study(), catalog)
    catalog.judged.clear()  # the trials are of the other study
    wider = small_study(name="other", seeds=4)
    progress = run(wider, catalog, pipeline)
    assert len(pipeline.made) == progress.generated == 5
    assert (progress.reused, progress.images) == (15, 20)


def test_another_text_is_scored_without_making_pictures() -> None:
    catalog, pipeline = MemoryCatalog(), FakePipeline()
    run(small_study(), catalog)
    catalog.judged.clear()
    progress = run(small_study(name="other", score_text="another text"), catalog, pipeline)
    assert pipeline.made == []
    assert (progress.reused, progress.generated, progress.images) == (15, 0, 15)
    assert len(catalog.scores) == 30


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=6), st.integers(1, 4))
def test_killed_at_any_write_and_run_again_every_pair_is_judged_once(
    crashes: list[tuple[int, bool]], seeds: int
) -> None:
    study, catalog = small_study(seeds=seeds), CrashingCatalog()
    numbers: dict[str, int] = {}
    for crash_at, after in crashes:
        catalog.crash_at, catalog.after, catalog.writes = crash_at, after, 0
        with contextlib.suppress(CrashError):
            run(study, catalog)
        for judged in catalog.judged:
            assert numbers.setdefault(str(judged.trial.settings), judged.trial.number) == judged.trial.number
    catalog.crash_at = None
    run(study, catalog)
    assert pairs(catalog) == Counter({(trial, i): 1 for trial in range(5) for i in range(seeds)})


def test_an_infeasible_instance_ends_its_trial_and_no_other() -> None:
    study, catalog = small_study(seeds=6), MemoryCatalog()
    first = study.instances[0]
    black = Failed("infeasible", "the picture is all black")
    bad = study.request({"guidance_scale": 3, "negative_prompt": ""}, first).image_id
    pipeline = FakePipeline(1, lambda request: black if request.image_id == bad else None)
    progress = run(study, catalog, pipeline, clock=partial(next, itertools.count()))
    assert progress.infeasible == 1
    by_trial = Counter(j.trial.number for j in catalog.judged)
    assert sum(count == 6 for count in by_trial.values()) == 4
    assert progress.images == len(catalog.judged) < 30


def test_a_lost_instance_is_kept_as_lost_and_tried_again_when_forgotten() -> None:
    study, catalog = small_study(), MemoryCatalog()
    bad = requests_of(study)[2].image_id
    gone = Failed("lost", "its worker died")
    progress = run(study, catalog, FakePipeline(2, lambda r: gone if r.image_id == bad else None))
    assert (progress.lost, progress.images) == (1, 15)
    assert run(study, catalog).generated == 0
    catalog.judged = [j for j in catalog.judged if j.outcome != gone]
    again = run(study, catalog)
    assert (again.generated, again.lost, again.images) == (1, 0, 15)


def test_stopping_begins_nothing_new_and_keeps_what_runs() -> None:
    study, catalog, pipeline = small_study(seeds=20), MemoryCatalog(), FakePipeline(2)
    progress = run(study, catalog, pipeline, stopping=lambda: len(pipeline.made) >= 4)
    assert 4 <= len(pipeline.made) <= 8
    assert progress.generated == len(pipeline.made) == len(catalog.pictures) == len(catalog.judged)
    run(study, catalog, pipeline)
    assert pairs(catalog) == Counter({(trial, i): 1 for trial in range(5) for i in range(20)})


def test_a_session_says_how_it_ended() -> None:
    study, catalog, pipeline = small_study(), MemoryCatalog(), FakePipeline(2)
    assert run(study, catalog, pipeline, stopping=lambda: len(pipeline.made) >= 4).ended == "stopped"
    progress = run(study, catalog, pipeline, stopping=lambda: len(pipeline.made) >= 15)
    assert progress.ended == "finished", "it was stopped when nothing was left to do"
    assert run(study, catalog).ended == "finished"
    short = study.model_copy(update={"budget": BudgetSpec.model_validate({"images": 6})})
    limited = run(short, MemoryCatalog())
    assert (limited.ended, bool(limited.ended_by)) == ("budget", True)


def test_a_search_that_is_stopped_before_its_validation_is_not_finished() -> None:
    search = SearchSpec.model_validate({"validate": 2})
    study, catalog, pipeline = small_study(search=search), MemoryCatalog(), FakePipeline(2)
    validation = lambda: make_validation(study, catalog.past())  # noqa: E731
    stopped = run(study, catalog, pipeline, stopping=lambda: len(pipeline.made) >= 15, validation=validation)
    assert (stopped.images, stopped.ended) == (15, "stopped")


def test_images_that_failed_in_earlier_sessions_are_told_from_those_of_this_one() -> None:
    study, catalog = small_study(), MemoryCatalog()
    black = {request.image_id for request in requests_of(study)[:2]}

    def fails(request: ImageRequest) -> Failed | None:
        return Failed("lost", "a machine died") if request.image_id in black else None

    first = run(study, catalog, FakePipeline(2, fails))
    assert (first.failed, first.failed_before) == (2, 0)
    again = run(study, catalog)
    assert (again.failed, again.failed_before, again.ended) == (2, 2, "finished")


def test_stopping_takes_what_is_queued_out_of_the_pool() -> None:
    class Deep(InProcessPool):
        @property
        def free(self) -> int:
            return 40

    study, catalog, pipeline = small_study(seeds=20), MemoryCatalog(), FakePipeline(2)
    worker = Worker(pipeline, {"clip_score": BrightnessScorer()}, "fake")
    strategy = grid(study)
    stopping = lambda: len(pipeline.made) >= 4  # noqa: E731
    sweep(study, strategy, Deep(worker, batch=4), catalog, NullTracker(), stopping=stopping)
    assert len(pipeline.made) <= 8


def test_what_a_worker_holds_when_it_is_stopped_is_finished_and_kept() -> None:
    class Slow(FakePipeline):
        """Finishes one request a call and keeps the others, as slots do."""

        def __init__(self) -> None:
            super().__init__(1)
            self.held: list[ImageRequest] = []
            self.forgotten: list[str] = []

        def advance(
            self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()
        ) -> Sequence[Generated]:
            self.forgotten += cancelled
            self.held = [r for r in [*self.held, *new] if r.image_id not in cancelled]
            first, self.held = self.held[:1], self.held[1:]
            return super().advance(first)

    study, catalog, pipeline = small_study(seeds=20), MemoryCatalog(), Slow()
    progress = run(study, catalog, pipeline, stopping=lambda: bool(pipeline.made))
    assert pipeline.forgotten == []
    assert progress.generated == len(pipeline.made) == len(catalog.judged) == 4


def test_dropped_trials_leave_the_queue() -> None:
    class Fickle(Grid):
        def report(self, reports: Sequence[Report]) -> Sequence[int]:
            super().report(reports)
            return [0, 1, 2, 3]

    class Deep(InProcessPool):
        @property
        def free(self) -> int:
            return 1000

    study, catalog, pipeline = small_study(seeds=200), MemoryCatalog(), FakePipeline(2)
    worker = Worker(pipeline, {"clip_score": BrightnessScorer()}, "fake")
    strategy = grid(study, kind=Fickle)
    sweep(study, strategy, Deep(worker, batch=4), catalog, NullTracker())
    assert len(pipeline.made) < 600
    assert Counter(j.trial.number for j in catalog.judged)[4] == 200


def test_past_instances_beyond_the_study_are_not_counted() -> None:
    study, catalog = small_study(seeds=3), MemoryCatalog()
    run(study, catalog)
    fewer = run(small_study(seeds=2), catalog)
    assert (fewer.images, fewer.generated) == (10, 0)


def test_a_pool_without_room_is_not_the_end_of_the_study() -> None:
    """Everything outstanding may come back at once, after a moment in which there was no room for more."""

    class Lagging(InProcessPool):
        asked = 0

        def next_done(self, timeout: float) -> Sequence[Done]:
            self.asked += 1
            return super().next_done(timeout) if self.asked % 2 == 0 else []

    study, catalog = small_study(), MemoryCatalog()
    strategy = grid(study)
    progress = sweep(study, strategy, Lagging(fake_worker(4), 4), catalog, NullTracker())
    assert progress.images == 15


def test_a_tracker_that_fails_stops_nothing() -> None:
    class Broken(RecordingTracker):
        def images(self, records: Sequence[TrackedImage]) -> None:
            raise OSError("the tracker is down")

    study, catalog = small_study(), MemoryCatalog()
    tracker = Guarded(Broken())
    strategy = grid(study)
    sweep(study, strategy, InProcessPool(fake_worker(), 4), catalog, tracker)
    assert len(catalog.judged) == 15
    assert tracker.failures > 0


def test_the_tracker_hears_of_every_image_and_every_complete_trial() -> None:
    study, catalog, tracker = small_study(), MemoryCatalog(), RecordingTracker()
    strategy = grid(study)
    progress = sweep(study, strategy, InProcessPool(fake_worker(), 4), catalog, tracker)
    assert Counter((i.trial, i.instance) for i in tracker.told_images) == pairs(catalog)
    assert sorted(trial.number for trial in tracker.told_trials) == list(range(5))
    assert max(trial.mean or 0 for trial in tracker.told_trials) == progress.best_score


def test_results_are_flushed_while_the_study_runs_and_not_only_at_its_end() -> None:
    study, catalog = small_study(seeds=40), CrashingCatalog()
    run(study, catalog, clock=partial(next, itertools.count()))
    assert catalog.writes > 10


def test_a_result_that_nobody_waits_for_any_more_is_kept() -> None:
    """What was cancelled too late has cost its time: its picture stays for whoever asks next."""
    study, catalog = small_study(seeds=3), MemoryCatalog()
    black = Failed("infeasible", "the picture is all black")
    first = study.request({"guidance_scale": 0.5, "negative_prompt": ""}, study.instances[0]).image_id
    pipeline = FakePipeline(4, lambda request: black if request.image_id == first else None)
    run(study, catalog, pipeline)
    made = set(pipeline.made) - {first}
    assert made == set(catalog.pictures)


def test_notes_are_told_once() -> None:
    class Noted(BrightnessScorer):
        def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:
            return ["the text is long"] * len(requests)

    study, catalog = small_study(), MemoryCatalog()
    worker = Worker(FakePipeline(), {"clip_score": Noted()}, "fake")
    strategy = grid(study)
    progress = sweep(study, strategy, InProcessPool(worker, 4), catalog, NullTracker())
    assert progress.notes == ["the text is long"]


def test_order_of_results_does_not_matter() -> None:
    class Shuffled(InProcessPool):
        def next_done(self, timeout: float) -> Sequence[Done]:
            found = list(super().next_done(timeout))
            random.Random(0).shuffle(found)
            return found

    study, catalog = small_study(seeds=5), MemoryCatalog()
    strategy = grid(study)
    sweep(study, strategy, Shuffled(fake_worker(4), 16), catalog, NullTracker())
    assert pairs(catalog) == Counter({(trial, i): 1 for trial in range(5) for i in range(5)})


# Looks, validation, budgets


def racing(study: Study, catalog: MemoryCatalog, pipeline: FakePipeline | None = None) -> Progress:
    """A session of a study by the strategy that it names."""
    worker = Worker(pipeline or FakePipeline(2), {"clip_score": BrightnessScorer()}, "fake")
    past = catalog.past()
    pool = InProcessPool(worker, batch=4)
    strategy = make_strategy(study, past)
    return sweep(
        study,
        strategy,
        pool,
        catalog,
        NullTracker(),
        past,
        validation=(lambda: make_validation(study, catalog.past())) if study.search.validation else None,
    )


def racing_study(seeds: int = 4, **search: object) -> Study:
    looks = {} if "strategy" in search else {"early_look": "auto"}
    spec = SearchSpec.model_validate({"strategy": "halving", **looks, **search})
    guidance = tuple(1 + number / 4 for number in range(1, 60))
    return small_study(seeds=seeds, guidance=guidance, search=spec)


def test_looks_are_remembered_apart_and_their_pictures_are_not_kept() -> None:
    study, catalog, pipeline = racing_study(), MemoryCatalog(), FakePipeline(2)
    progress = racing(study, catalog, pipeline)
    looked = [j for j in catalog.judged if isinstance(j.outcome, Looked)]
    assert progress.looks == len(looked) == len(pipeline.looked) > 100
    assert set(catalog.pictures) == set(pipeline.made)
    assert len(pipeline.made) == len(set(pipeline.made)) == progress.generated
    assert len(pipeline.made) < 60 * 2 * 4 / 3
    # a look at 1 and at 2 of 4 UNet calls, then the whole picture: each call counts once
    judged: dict[str, list[int]] = {}
    for j in catalog.judged:
        calls = j.outcome.after if isinstance(j.outcome, Looked) else 4
        judged.setdefault(j.request.image_id, []).append(calls)
    assert progress.unet_calls == sum(max(calls) for calls in judged.values())


class Keeping(FakePipeline):
    """Keeps what was looked at until that is drawn or cancelled, as the slot engine does."""

    def __init__(self) -> None:
        super().__init__(2)
        self.kept: set[str] = set()

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        made = super().advance(new, cancelled)
        for item in made:
            (self.kept.discard if item.after is None else self.kept.add)(item.request.image_id)
        self.kept -= set(cancelled)
        return made


def test_what_is_set_aside_of_those_that_left_a_race_is_let_go_of() -> None:
    study, catalog, pipeline = racing_study(), MemoryCatalog(), Keeping()
    racing(study, catalog, pipeline)
    assert len(pipeline.looked) > 100
    assert pipeline.kept == set()
    assert len(pipeline.made) == len(set(pipeline.made)), "what stays in the race is not let go of"


def test_what_another_trial_looked_at_too_is_kept() -> None:
    class Twins(Grid):
        """Deals two trials the same look, drops the first, then draws the second to its end."""

        dealt = 0

        def ask(self, free: int) -> Sequence[Assignment]:
            self.dealt += 1
            settings: Settings = {"guidance_scale": 3.0, "negative_prompt": ""}
            if self.dealt == 1:
                return [Assignment(Trial(number, settings), 0, 2) for number in range(2)]
            return [Assignment(Trial(1, settings), 0)] if self.dealt == 3 else []

        def report(self, reports: Sequence[Report]) -> Sequence[int]:
            return [0] if any(isinstance(report.outcome, Looked) for report in reports) else []

    study, catalog, pipeline = small_study(), MemoryCatalog(), Keeping()
    gone: list[str] = []

    class Told(InProcessPool):
        def cancel(self, image_ids: Collection[str]) -> None:
            gone.extend(image_ids)
            super().cancel(image_ids)

    worker = Worker(pipeline, {"clip_score": BrightnessScorer()}, "fake")
    sweep(study, grid(study, kind=Twins), Told(worker, 4), catalog, NullTracker())
    assert (gone, len(pipeline.looked)) == ([], 1)


def test_a_race_that_was_done_is_done() -> None:
    study, catalog, pipeline = racing_study(validate=3), MemoryCatalog(), FakePipeline(2)
    first = racing(study, catalog)
    again = racing(study, catalog, pipeline)
    assert (pipeline.made, pipeline.looked) == ([], [])
    assert (again.images, again.best, again.generated) == (first.images, first.best, 0)


def test_the_best_and_the_baseline_are_validated_on_fresh_seeds_at_the_end() -> None:
    study, catalog = racing_study(validate=5), MemoryCatalog()
    racing(study, catalog)
    fresh = [j for j in catalog.judged if j.role == "validate"]
    assert {j.request.seed for j in fresh} == {i.seed for i in study.validation_instances}
    assert not {j.request.seed for j in fresh} & set(study.seeds)
    by_trial = Counter(j.trial.number for j in fresh)
    assert set(by_trial.values()) == {5}
    assert 0 in by_trial, "the baseline"
    last_of_search = max(n for n, j in enumerate(catalog.judged) if j.role == "search")
    assert all(n > last_of_search for n, j in enumerate(catalog.judged) if j.role == "validate")
    past = {trial.number: trial for trial in catalog.past()}
    means = {
        n: sum(o.scores["clip_score"] for o in t.outcomes.values() if isinstance(o, Scored))
        for n, t in past.items()
        if len(t.outcomes) == 4
    }
    assert max(means, key=lambda n: means[n]) in by_trial


def test_a_validation_goes_on_where_it_was_cut_off() -> None:
    study, catalog = racing_study(validate=5), MemoryCatalog()
    racing(study, catalog)
    whole = pairs(catalog)
    del catalog.judged[-7:]
    pipeline = FakePipeline(2)
    racing(study, catalog, pipeline)
    assert pairs(catalog) == whole
    assert pipeline.made == [], "the pictures are in the catalog"


def spending(
    budget: dict[str, float], clock: Callable[[], float] | None = None
) -> tuple[Progress, MemoryCatalog]:
    spec = SearchSpec.model_validate({})
    study = small_study(search=spec).model_copy(update={"budget": BudgetSpec.model_validate(budget)})
    catalog, kept = MemoryCatalog(), list[Spent]()
    worker = Worker(FakePipeline(2), {"clip_score": BrightnessScorer()}, "fake")
    options = {"clock": clock} if clock else {}
    progress = sweep(
        study,
        make_strategy(study, ()),
        InProcessPool(worker, batch=4),
        catalog,
        NullTracker(),
        keep_spent=lambda spent: kept.append(replace(spent)),
        **options,  # type: ignore[arg-type]
    )
    assert kept[-1].images == progress.spent.images == progress.generated
    return progress, catalog


def test_a_budget_of_images_is_kept_to_the_image() -> None:
    progress, catalog = spending({"images": 7})
    assert progress.generated == len(catalog.pictures) == 7
    assert progress.ended_by == "the budget of 7 images is used up"


@pytest.mark.parametrize("budget", [{"unet_calls": 20}, {"seconds": 12}])
def test_other_budgets_end_a_study_when_they_are_used_up(budget: dict[str, float]) -> None:
    ticks = itertools.count()
    progress, catalog = spending(budget, lambda: float(next(ticks)))
    (name,) = budget
    assert progress.ended_by is not None
    assert progress.ended_by.startswith("the budget of ")
    assert 0 < len(catalog.judged) < 18
    assert getattr(progress.spent, name) >= budget[name]


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    progress, catalog = spending({"images": 500, "unet_calls": 10**6, "gpu_seconds": 1e6, "seconds": 1e6})
    assert progress.ended_by is None
    assert len(catalog.judged) == 18


def test_a_budget_that_just_lasts_ended_nothing() -> None:
    progress, catalog = spending({"images": 18})
    assert (progress.generated, len(catalog.judged)) == (18, 18)
    assert progress.ended_by is None


def test_what_was_spent_before_counts() -> None:
    study = small_study().model_copy(update={"budget": BudgetSpec.model_validate({"images": 10})})
    worker = Worker(FakePipeline(2), {"clip_score": BrightnessScorer()}, "fake")
    progress = sweep(
        study,
        make_strategy(study, ()),
        InProcessPool(worker, batch=4),
        MemoryCatalog(),
        NullTracker(),
        spent=Spent(images=8),
    )
    assert progress.generated == 2
    assert progress.spent.images == 10


def test_a_validation_is_outside_the_searches_budget() -> None:
    budget = BudgetSpec.model_validate({"images": 70})
    study = racing_study(strategy="grid", validate=5).model_copy(update={"budget": budget})
    catalog = MemoryCatalog()
    progress = racing(study, catalog)
    assert progress.ended_by == "the budget of 70 images is used up"
    roles = Counter(j.role for j in catalog.judged if not isinstance(j.outcome, Looked))
    assert roles["search"] == 70
    assert roles["validate"] >= 5
    assert progress.generated == 70 + roles["validate"]


# Seconds of the workers


class Timed(FakePipeline):
    """Takes a hundred seconds for every UNet call that a picture has had by then, looks included."""

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        made = super().advance(new, cancelled)
        return [replace(item, seconds=100.0 * (item.unet_calls or 0)) for item in made]


def timed(
    study: Study, catalog: Catalog, past: Sequence[PastTrial] = (), pipeline: Timed | None = None
) -> Progress:
    worker = Worker(pipeline or Timed(2), {"clip_score": BrightnessScorer()}, "fake")
    pool = InProcessPool(worker, batch=4)
    return sweep(study, make_strategy(study, past), pool, catalog, NullTracker(), past)


def measuring(study: Study) -> Study:
    """The study with a worker's seconds as its second objective."""
    return study.model_copy(update={"directions": {"clip_score": "maximize", "gpu_seconds": "minimize"}})


def seconds_of(judged: Sequence[Judged]) -> set[float]:
    outcomes = [item.outcome for item in judged]
    assert all(isinstance(outcome, Scored) for outcome in outcomes)
    return {outcome.scores["gpu_seconds"] for outcome in outcomes if isinstance(outcome, Scored)}


def test_seconds_are_measured_where_they_count_and_only_there() -> None:
    catalog = MemoryCatalog()
    timed(measuring(small_study()), catalog)
    assert seconds_of(catalog.judged) == {400.0}  # of four steps
    plain = MemoryCatalog()
    timed(small_study(), plain)
    assert all(
        j.outcome.scores.keys() == {"clip_score"} for j in plain.judged if isinstance(j.outcome, Scored)
    )


def test_a_stored_picture_has_the_seconds_that_it_once_took(tmp_path: Path) -> None:
    class Watched(ParquetCatalog):
        def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
            super().write(done, judged)
            self.told = [*getattr(self, "told", []), *judged]

    timed(small_study(), ParquetCatalog(Tables(tmp_path), small_study()))
    # of the same text its score is there already, of another it is scored without being drawn
    for name, text in (("same", "a bright picture"), ("other", "another text")):
        study = measuring(small_study(name=name, score_text=text))
        catalog = Watched(Tables(tmp_path), study)
        progress = timed(study, catalog)
        assert progress.generated == 0
        assert seconds_of(catalog.told) == {400.0}
        assert progress.spent.gpu_seconds < 100, "it was drawn before"


def test_seconds_of_looks_are_part_of_their_pictures() -> None:
    study, catalog = racing_study(), MemoryCatalog()
    progress = timed(study, catalog)
    reached: dict[str, int] = {}
    for j in catalog.judged:
        calls = j.outcome.after if isinstance(j.outcome, Looked) else 4
        reached[j.request.image_id] = max(calls, reached.get(j.request.image_id, 0))
    assert progress.looks > 0
    assert progress.spent.gpu_seconds == pytest.approx(100 * sum(reached.values()), abs=50)


def test_scoring_counts_as_seconds_too() -> None:
    class Slow(BrightnessScorer):
        def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
            time.sleep(0.002 * len(images))
            return super().score(images, requests)

    study, catalog = small_study(), MemoryCatalog()
    pool = InProcessPool(Worker(FakePipeline(2), {"clip_score": Slow()}, "fake"), batch=4)
    progress = sweep(study, make_strategy(study, ()), pool, catalog, NullTracker())
    assert progress.spent.gpu_seconds >= 0.002 * 18


def test_a_validation_spends_no_seconds_of_the_search() -> None:
    study, catalog = small_study(search=SearchSpec.model_validate({"validate": 4})), MemoryCatalog()
    worker = Worker(Timed(2), {"clip_score": BrightnessScorer()}, "fake")
    progress = sweep(
        study,
        make_strategy(study, ()),
        InProcessPool(worker, batch=4),
        catalog,
        NullTracker(),
        validation=lambda: make_validation(study, catalog.past()),
    )
    assert sum(j.role == "validate" for j in catalog.judged) == 4 * 4
    assert progress.spent.gpu_seconds == pytest.approx(18 * 400, abs=50)


def test_a_budget_of_the_workers_seconds_ends_a_study() -> None:
    study = small_study().model_copy(update={"budget": BudgetSpec.model_validate({"gpu_seconds": 1000})})
    catalog = MemoryCatalog()
    progress = timed(study, catalog)
    assert progress.ended_by == "the budget of 1,000 seconds of the workers' time is used up"
    assert 3 <= progress.generated <= 3 + 4, "and what was under way"
