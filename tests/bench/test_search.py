"""The replay pays what a search would pay, hides the truth from it, and refuses a table of something else."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import WilcoxonPruner

from search_spaces.requests import Looked, Scored, Settings, Trial
from search_spaces.space import effective_steps, guidance_is_on, survey
from search_spaces.strategies import Assignment, Report, Strategy
from search_spaces.study import Study
from search_spaces.study_file import CometSpec, SearchSpec
from tests.bench import score_table, search
from tests.bench.replay import INSTANCES, SHARES, Replayed, grid_winner, replay, split
from tests.bench.score_table import ScoreTable, StaleTableError, facts, load, looks_after, save
from tests.bench.wilcoxon_grid import is_beaten
from tests.search_spaces.examples import CAT, INPAINTING, SCORER, space

SEEDS = 40


def a_study(**changes: Any) -> Study:
    study = Study(
        name="bench",
        token="0",
        model=INPAINTING,
        scorer=SCORER,
        inputs=(CAT,),
        seeds=tuple(range(SEEDS)),
        settings={"scheduler": "DDIMScheduler", "width": 64, "height": 64},
        space=space(
            num_inference_steps=[3, 10, 20],
            guidance_scale=[1, 5, 7.5],
            strength=[0.4, 0.6, 1.0],
            negative_prompt=["", "cartoon"],
        ),
        search=SearchSpec.model_validate({}),
        objective="clip_score",
        comet=CometSpec(workspace=None, project=None, name=None, tags=[], mode="off"),
    )
    return study.model_copy(update=changes)


def a_table(study: Study | None = None, noise: float = 3.0) -> ScoreTable:
    """Scores that rise with steps, guidance and the negative prompt, looks that are near them."""
    study = study or a_study()
    found = survey(study.space, study.judge).candidates
    settings = [study.judge.complete(each) for each in found]
    calls = np.array([effective_steps(each, study.model) or 0 for each in settings])
    quality = [
        20 + calls[row] / 2 + float(each["guidance_scale"] or 0) + 2 * (each["negative_prompt"] == "cartoon")
        for row, each in enumerate(settings)
    ]
    draw = np.random.default_rng(0)
    scores = np.array(quality)[:, None] + noise * draw.standard_normal((len(found), len(study.seeds)))
    afters = [looks_after(int(each)) for each in calls]
    most = max(len(each) for each in afters)
    padded = np.array([[*each, *[0] * (most - len(each))] for each in afters])
    looks = np.where(padded[:, :, None] > 0, scores[:, None, :] - 1, np.nan)
    rows = np.array([2 if guidance_is_on(each, study.model) else 1 for each in settings])
    return ScoreTable(study, scores.astype(np.float32), looks.astype(np.float32), padded, calls, rows)


TABLE = a_table()


def a_grid(table: ScoreTable = TABLE) -> Strategy:
    return search.product(strategy="grid")(table, 0)


class Scripted:
    """Deals what it was given, wave by wave, and keeps what it was told."""

    def __init__(self, waves: Sequence[Sequence[Assignment]], drops: Sequence[int] = ()) -> None:
        self._waves, self._drops, self._under_way = list(waves), drops, 0
        self.told: list[Report] = []

    def ask(self, free: int) -> Sequence[Assignment]:
        if self._under_way or not self._waves:
            return []
        wave = self._waves.pop(0)
        self._under_way = len(wave)
        return wave

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        self.told += reports
        self._under_way -= len(reports)
        return self._drops if self.told else []


def guided(steps: int) -> Settings:
    return {"num_inference_steps": steps, "guidance_scale": 5, "strength": 1.0, "negative_prompt": ""}


def grid_cost(table: ScoreTable = TABLE) -> float:
    return float(table.costs.sum() * INSTANCES)


class Told:
    """A strategy that keeps everything that its inner one hears and deals."""

    def __init__(self, inner: Strategy) -> None:
        self.inner, self.log = inner, list[object]()

    def ask(self, free: int) -> Sequence[Assignment]:
        dealt = self.inner.ask(free)
        self.log += dealt
        return dealt

    def report(self, reports: Sequence[Report]) -> Sequence[int]:
        self.log += reports
        return self.inner.report(reports)


class TestCosts:
    def test_the_grid_costs_the_grid_and_recommends_its_winner(self) -> None:
        seen = split(SEEDS, 0)
        done = replay(TABLE, a_grid(), seen, seed=0)
        assert done.cost == pytest.approx(1.0)
        assert done.winner == grid_winner(TABLE, seen)
        assert len(done.complete) == len(TABLE.candidates)

    def test_guidance_costs_two_rows_a_call(self) -> None:
        unguided = {**guided(10), "guidance_scale": 1}
        wave = [Assignment(Trial(0, guided(10)), 0), Assignment(Trial(1, unguided), 0)]
        done = replay(TABLE, Scripted([wave]), split(SEEDS, 0), seed=0)
        assert done.cost * grid_cost() == pytest.approx(10 * 2 + 10)

    def test_a_look_costs_its_share_and_going_on_the_rest(self) -> None:
        trial = Trial(0, guided(20))
        look = [Assignment(trial, 0, stop_after=5)]
        looked = Scripted([look])
        assert replay(TABLE, looked, split(SEEDS, 0), seed=0).cost * grid_cost() == pytest.approx(5 * 2)
        assert isinstance(looked.told[0].outcome, Looked)
        both = Scripted([look, [Assignment(trial, 0)]])
        assert replay(TABLE, both, split(SEEDS, 0), seed=0).cost * grid_cost() == pytest.approx(20 * 2)
        assert isinstance(both.told[1].outcome, Scored)

    def test_what_is_dropped_is_paid_for_as_far_as_it_was_drawn(self) -> None:
        wave = [Assignment(Trial(0, guided(20)), i) for i in range(8)]
        wave += [Assignment(Trial(1, {**guided(3), "strength": 0.4}), i) for i in range(4)]
        done = replay(TABLE, Scripted([wave], drops=[0]), split(SEEDS, 0), seed=0)
        short = 4 * 1 * 2
        assert short < done.cost * grid_cost() < short + 8 * 20 * 2 / 4

    def test_a_look_that_the_table_lacks_is_refused(self) -> None:
        wave = [Assignment(Trial(0, guided(20)), 0, stop_after=7)]
        with pytest.raises(KeyError, match="no look after 7 of 20 UNet calls"):
            replay(TABLE, Scripted([wave]), split(SEEDS, 0), seed=0)

    def test_stopped_early_it_spends_little_more_than_it_may(self) -> None:
        done = replay(TABLE, a_grid(), split(SEEDS, 0), seed=0, until=0.25)
        assert 0.25 <= done.cost < 0.35

    def test_nothing_is_recommended_before_it_is_paid_for(self) -> None:
        seen = split(SEEDS, 1)
        wave = [Assignment(Trial(0, guided(20)), i) for i in range(INSTANCES)]
        done = replay(TABLE, Scripted([wave]), seen, seed=1)
        assert [row >= 0 for row in done.winners] == [share >= done.cost for share in SHARES]
        whole = replay(TABLE, a_grid(), seen, seed=1)
        means = TABLE.scores[:, seen.search].mean(axis=1)
        values = [means[row] if row >= 0 else -math.inf for row in whole.winners]
        assert values == sorted(values)


class TestWhatASearchSees:
    @pytest.mark.parametrize("name", list(search.SEARCHES))
    def test_the_truth_changes_nothing(self, name: str) -> None:
        seen = split(SEEDS, 3)
        other = TABLE.scores.copy()
        other[:, seen.truth] = -other[:, seen.truth] * 100
        logs = []
        for table in (TABLE, replace(TABLE, scores=other)):
            strategy = Told(search.SEARCHES[name].make(table, 5))
            replay(table, strategy, seen, seed=5, until=0.2)
            logs.append(strategy.log)
        assert logs[0] == logs[1]

    @pytest.mark.parametrize("name", list(search.SEARCHES))
    def test_a_replay_is_the_same_every_time(self, name: str) -> None:
        first, second = (
            replay(TABLE, search.SEARCHES[name].make(TABLE, 7), split(SEEDS, 7), seed=7, until=0.3)
            for _ in range(2)
        )
        assert (first.winner, first.cost) == (second.winner, second.cost)
        assert first.winners.tolist() == second.winners.tolist()

    def test_results_come_back_in_another_order_than_dealt(self) -> None:
        wave = [Assignment(Trial(0, guided(20)), i) for i in range(16)]
        strategy = Scripted([wave])
        replay(TABLE, strategy, split(SEEDS, 0), seed=0)
        order = [report.instance for report in strategy.told]
        assert sorted(order) == list(range(16)) != order

    def test_splits_share_nothing_and_differ(self) -> None:
        first, second = split(SEEDS, 0), split(SEEDS, 1)
        assert sorted([*first.search, *first.truth]) == list(range(SEEDS))
        assert first.search.tolist() != second.search.tolist()


class TestTable:
    def test_it_survives_the_disk(self, tmp_path: Path) -> None:
        save(TABLE, tmp_path / "table.npz")
        back = load(tmp_path / "table.npz", TABLE.study)
        assert (back.scores == TABLE.scores).all()
        assert (back.afters == TABLE.afters).all()
        assert np.allclose(back.looks, TABLE.looks, atol=0.02, equal_nan=True)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"model": INPAINTING.model_copy(update={"revision": "sha256:99"})}, "another model: sha256:00"),
            ({"scorer": SCORER.model_copy(update={"revision": "sha256:99"})}, "another scorer"),
            ({"seeds": (1, 2)}, "another seeds"),
        ],
    )
    def test_one_of_something_else_is_refused_by_name(
        self, tmp_path: Path, change: dict[str, Any], named: str
    ) -> None:
        save(TABLE, tmp_path / "table.npz")
        with pytest.raises(StaleTableError, match=f"{named}.*renew it: {score_table.RENEW}"):
            load(tmp_path / "table.npz", a_study(**change))

    def test_a_missing_one_says_how_to_make_it(self, tmp_path: Path) -> None:
        with pytest.raises(StaleTableError, match=f"make it: {score_table.RENEW}"):
            load(tmp_path / "none.npz", TABLE.study)

    def test_names_of_inputs_do_not_matter(self) -> None:
        renamed = a_study(inputs=(CAT.model_copy(update={"image_name": "other.png"}),))
        assert facts(renamed) == facts(TABLE.study)

    def test_a_twin_is_answered_by_its_candidate(self) -> None:
        plain = {**guided(10), "guidance_scale": 1}
        assert TABLE.row({**plain, "negative_prompt": "cartoon"}) == TABLE.row(plain)

    def test_looks_come_before_the_end(self) -> None:
        assert looks_after(1) == []
        assert all(0 < after < calls for calls in range(2, 31) for after in looks_after(calls))
        assert {2, 3, 5} <= set(looks_after(20)) | {3}
        assert {2, 5, 10} <= set(looks_after(20))


class TestFigures:
    def test_the_grid_is_as_good_as_itself(self) -> None:
        known = search.truth(TABLE, 20)
        assert search.over_grid(known, known.grid) == (0.0, 0.0)

    def test_a_bad_row_is_worse_by_what_it_is_worse(self) -> None:
        known = search.truth(TABLE, 20)
        worst = np.full(20, int(TABLE.scores.mean(axis=1).argmin()))
        mean, upper = search.over_grid(known, worst)
        behind = known.means[np.arange(20), known.grid] - known.means[np.arange(20), worst]
        assert mean == pytest.approx(behind.mean(), rel=1e-4)
        assert upper > mean > 10

    def test_without_a_recommendation_nothing_is_good(self) -> None:
        known = search.truth(TABLE, 20)
        assert search.over_grid(known, np.full(20, -1)) == (math.inf, math.inf)

    def test_cost_to_best_is_the_share_from_which_on_it_is_good(self) -> None:
        known = search.truth(TABLE, 20)
        worst, place = int(TABLE.scores.mean(axis=1).argmin()), 10
        curves = [
            np.array([worst if at < place else grid for at in range(len(SHARES))]) for grid in known.grid
        ]
        done = [Replayed(curve, int(curve[-1]), 1.0, np.array([])) for curve in curves]
        anytime = search.Search(search.SEARCHES["tpe"].make, until=0.5)
        assert search.verdict(known, anytime, done, 0.0).cost == SHARES[place]
        assert math.isnan(search.verdict(known, replace(anytime, until=0.05), done, 0.0).cost)

    def test_intervals_cover_and_ties_are_counted(self) -> None:
        known = search.truth(TABLE, 100)
        told = search.validation_figures(TABLE, known, [known.grid])
        assert 0.9 < told["interval_coverage_undoubted"] < 0.98
        assert told["interval_coverage_undoubted"] <= told["interval_coverage"]
        assert told["false_tie_validated"] < 0.2
        assert 0 <= search.false_ties(TABLE, known, search.whole_grid(TABLE, known)[:100]) <= 1


def test_the_pruned_grid_prunes_as_optuna_does() -> None:
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        pruner = WilcoxonPruner(p_threshold=0.1)
    draw, verdicts = np.random.default_rng(0), list[bool]()
    for _ in range(60):
        study = optuna.create_study(direction="maximize", pruner=pruner)
        best, own = draw.standard_normal(16).tolist(), (draw.standard_normal(8) - 0.5).tolist()
        leader = study.ask()
        for step, value in enumerate(best):
            leader.report(value, step)
        study.tell(leader, sum(best) / len(best))
        trial = study.ask()
        for step, value in enumerate(own):
            trial.report(value, step)
            verdicts.append(trial.should_prune())
            assert is_beaten(own[: step + 1], best, 0.1) == verdicts[-1]
    assert 50 < sum(verdicts) < len(verdicts) - 50
