"""Who may be called the best of a study that is not finished, and what report, sheet and list say of it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.report.closer import closer_space, closer_study
from orchestrator.report.contact_sheet import plan_sheet
from orchestrator.report.results import Results, TrialResult
from orchestrator.report.standing import best_text, part_text
from orchestrator.report.statistics import Nobody, Ranked, best, ranking
from orchestrator.report.terminal import render_report
from orchestrator.session import Ended, Extent
from search_spaces.domains import Choices
from search_spaces.errors import InputError
from search_spaces.estimates import paired_difference
from tests.orchestrator.studies import small_study

Scores = Mapping[int, float] | Sequence[float]


def study(baseline: Scores, *others: Scores, ended: Ended | None = "stopped", **more: Any) -> Results:
    """A study of three instances whose trial 0 is the baseline."""
    rows = [dict(row) if isinstance(row, Mapping) else dict(enumerate(row)) for row in (baseline, *others)]
    trials = [TrialResult(n, {"guidance_scale": n + 1.0}, row, {}, {}) for n, row in enumerate(rows)]
    axes = {"guidance_scale": [trial.settings["guidance_scale"] for trial in trials]}
    found = Results("cat", "clip_score", 3, axes, trials, lambda _: None, [], [], 0, has_baseline=True)
    return replace(found, ended=ended, extent=Extent(6, 18), **more)


def winner(results: Results) -> int | str:
    """The number of the best, or why there is none."""
    found = best(results, ranking(results))
    return found.why if isinstance(found, Nobody) else found.trial.number


def report(results: Results) -> str:
    """The whole report without its line breaks."""
    out = io.StringIO()
    Console(file=out, width=200, no_color=True).print(render_report(results))
    return " ".join(out.getvalue().split())


BEATEN = study([80.0, 82.0], [20.0, 21.0, 22.0], [10.0, 11.0, 12.0])
AHEAD = study([10.0, 11.0], [20.0, 21.5, 22.0], [5.0, 6.0, 7.0])

AHEAD_OF_TEXTS = replace(
    AHEAD,
    trials=[replace(trial, settings={**trial.settings, "negative_prompt": ""}) for trial in AHEAD.trials],
    axes={**AHEAD.axes, "negative_prompt": [""]},
)


class TestWhoMayWin:
    def test_what_is_certainly_below_the_baseline_is_never_the_best(self) -> None:
        assert winner(BEATEN) == "nothing judged so far beats the baseline"
        assert winner(replace(BEATEN, ended=None)) == "nothing judged beats the baseline"
        assert winner(replace(BEATEN, ended="finished")) == "nothing judged beats the baseline"

    def test_what_is_ahead_of_the_baseline_is_the_best_so_far(self) -> None:
        assert winner(AHEAD) == 1

    def test_one_shared_instance_is_no_certainty_but_enough_to_name_nobody(self) -> None:
        found = winner(study([80.0], [20.0, 21.0, 22.0]))
        assert found == (
            "the baseline is ahead of the settings of the largest mean on the instances that both have, "
            "and is not judged in full yet"
        )

    def test_a_baseline_without_any_image_is_awaited_where_the_study_goes_on(self) -> None:
        waits = study([], [20.0, 21.0, 22.0])
        assert winner(waits) == "the baseline is not judged yet"
        assert winner(replace(waits, baseline=None)) == "the baseline is not judged yet"
        assert winner(replace(waits, ended=None)) == 1
        assert winner(replace(waits, ended="finished")) == 1
        assert winner(replace(waits, baseline=None, has_baseline=False)) == 1

    def test_where_another_is_not_beaten_nobody_says_that_all_are(self) -> None:
        found = study({0: 80.0, 1: 82.0}, [20.0, 21.0, 300.0], [90.0, 91.0, 92.0])
        assert winner(found) == (
            "the baseline certainly beats the settings of the largest mean on the instances that both have"
        )

    def test_a_baseline_judged_in_full_is_the_best_or_is_beaten(self) -> None:
        assert winner(study([80.0, 81.0, 82.0], [20.0, 21.0, 22.0])) == 0
        assert winner(study([10.0, 11.0, 12.0], [20.0, 21.0, 22.0])) == 1

    def test_a_baseline_that_failed_once_is_not_waited_for(self) -> None:
        results = study([80.0, 10.0], [20.0, 21.0, 22.0])
        failed = replace(results.trials[0], failures={2: "black"})
        assert winner(replace(results, trials=[failed, *results.trials[1:]])) == 1

    def test_with_several_objectives_it_has_to_be_below_in_all(self) -> None:
        def measured(results: Results, seconds: Sequence[Sequence[float]]) -> Results:
            trials = [
                replace(trial, measured={"gpu_seconds": dict(enumerate(each))})
                for trial, each in zip(results.trials, seconds, strict=True)
            ]
            return replace(
                results,
                trials=trials,
                objectives={"clip_score": "maximize", "gpu_seconds": "minimize"},
            )

        one = study([80.0, 82.0], [20.0, 21.0, 22.0])
        assert (
            winner(measured(one, [[1.0, 1.1], [9.0, 9.5, 9.0]])) == "nothing judged so far beats the baseline"
        )
        assert winner(measured(one, [[9.0, 9.1], [1.0, 1.5, 1.0]])) == 1

    @given(
        st.lists(
            st.dictionaries(st.integers(0, 2), st.integers(-8, 8).map(float), max_size=3),
            min_size=1,
            max_size=5,
        ),
        st.sampled_from([None, "stopped", "running", "cut off", "budget", "finished"]),
    )
    def test_the_best_is_never_certainly_below_the_baseline(
        self, rows: list[dict[int, float]], ended: Ended | None
    ) -> None:
        results = study(*rows, ended=ended)
        found = best(results, ranking(results))
        if isinstance(found, Ranked):
            shared = sorted(found.trial.scores.keys() & rows[0].keys())
            if shared and found.trial.number != 0:
                gain = paired_difference(
                    [found.trial.scores[i] for i in shared], [rows[0][i] for i in shared]
                )
                assert not (gain.mean <= 0 and len(rows[0]) < 3)
            assert found.rank == 1

    @given(st.lists(st.lists(st.integers(-8, 8).map(float), min_size=3, max_size=3), min_size=1, max_size=5))
    def test_of_an_undamaged_study_it_is_the_leader(self, rows: list[list[float]]) -> None:
        for ended in ("finished", None):
            results = study(*rows, ended=ended)
            assert best(results, ranking(results)) == ranking(results)[0]


class TestWords:
    @pytest.mark.parametrize(
        ("ended", "end"),
        [
            ("stopped", "; stopped by Ctrl-C"),
            ("running", "; it runs now"),
            ("budget", "; ended by its budget"),
            ("cut off", "; cut off, or run elsewhere"),
            ("unfinished", "; not finished"),
        ],
    )
    def test_a_part_says_of_what(self, ended: Ended, end: str) -> None:
        assert part_text(replace(AHEAD, ended=ended)) == (
            f"2 of 6 settings judged in full, 8 of 18 images{end}"
        )
        assert "; stopped by SIGTERM" in (part_text(replace(AHEAD, signal="SIGTERM")) or "")
        race = replace(AHEAD, ended=ended, extent=Extent(60, 180, at_most=True))
        assert part_text(race) == (f"2 of at most 60 settings judged in full, 8 of at most 180 images{end}")

    def test_a_part_says_how_much_of_its_validation_there_is(self) -> None:
        trials = [replace(trial, validation={0: 1.0}) for trial in AHEAD.trials[:2]]
        part = part_text(replace(AHEAD, fresh=2, trials=[*trials, *AHEAD.trials[2:]]))
        assert part is not None
        assert part.endswith("8 of 18 images; 2 images of its validation; stopped by Ctrl-C")

    @pytest.mark.parametrize("ended", [None, "finished"])
    def test_the_whole_says_nothing_of_parts(self, ended: Ended | None) -> None:
        assert part_text(replace(AHEAD, ended=ended)) is None

    def test_a_session_that_was_cut_off_when_all_was_there_leaves_the_whole(self) -> None:
        whole = replace(study([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], ended="cut off"), extent=Extent(2, 6))
        assert part_text(whole) is None
        assert not whole.is_partial
        assert replace(whole, extent=Extent(3, 9)).is_partial
        assert replace(whole, extent=Extent(2, 6, at_most=True)).is_partial
        assert replace(whole, fresh=2).is_partial, "its validation may be missing"

    def test_everywhere_the_same_of_a_study_that_was_stopped(self) -> None:
        part = "2 of 6 settings judged in full, 8 of 18 images; stopped by Ctrl-C"
        assert best_text(AHEAD) == f"best so far: clip_score 21.17 ± 2.6: guidance_scale 2; {part}"
        said = report(AHEAD)
        assert f"so far: {part}" in said
        assert "best so far: guidance_scale 2" in said
        note = plan_sheet(AHEAD).note
        assert f"Thick frame: best so far. So far {part}" in note

    def test_everywhere_the_same_where_nothing_beats_the_baseline(self) -> None:
        why = "nothing judged so far beats the baseline"
        assert best_text(BEATEN).startswith(f"no best settings yet: {why}; 2 of 6 settings")
        said = report(BEATEN)
        assert f"best: none yet: {why}" in said
        assert "first − baseline -60.5" in said
        assert not any(word in said.split() for word in ("best", "tied"))
        sheet = plan_sheet(BEATEN)
        assert f"No best yet: {why}. So far 2 of 6" in sheet.note
        assert not any(cell.mark or cell.star for row in sheet.cells for cell in row)
        with pytest.raises(InputError, match=f"study cat has no best settings yet: {why}; let it run on"):
            closer_space(BEATEN, {"guidance_scale": Choices(values=(1.0, 2.0, 3.0))})

    def test_a_study_file_around_the_best_so_far_says_so(self, tmp_path: Path) -> None:
        text = (
            "study: small\nmodel: toyworld\ninputs: [{prompt: a cat}]\nspace: {guidance_scale: [1, 2, 3]}\n"
        )
        made = closer_study(small_study(guidance=(1.0, 2.0, 3.5)), text, AHEAD_OF_TEXTS, tmp_path, tmp_path)
        part = "2 of 6 settings judged in full, 8 of 18 images; stopped by Ctrl-C"
        assert made.startswith(f"# Closer around the best so far of small, {part}.\n")
        whole = closer_study(
            small_study(guidance=(1.0, 2.0, 3.5)),
            text,
            replace(AHEAD_OF_TEXTS, ended="finished"),
            tmp_path,
            tmp_path,
        )
        assert whole.startswith("# Closer around the best of small.\n")

    def test_a_baseline_that_is_the_best_so_far_is_named_so(self) -> None:
        said = report(study([80.0, 81.0, 82.0], [20.0, 21.0, 22.0]))
        assert "baseline: the model's own settings, guidance_scale 1, are the best so far" in said

    @pytest.mark.parametrize("ended", ["stopped", "running", "cut off", "unfinished"])
    def test_who_was_not_judged_in_full_has_not_left_for_the_budgets_sake(self, ended: Ended) -> None:
        said = report(study([1.0, 2.0, 3.0], [9.0, 9.5, 9.2], {0: 1.0, 1: 1.5}, {0: 9.0}, ended=ended))
        assert "not in full: 2 settings, of which 1 certainly worse than the best so far" in said
        assert "left early" not in said

    @pytest.mark.parametrize("ended", ["budget", "finished", None])
    def test_a_search_that_came_to_its_end_says_who_left(self, ended: Ended | None) -> None:
        said = report(study([1.0, 2.0, 3.0], [9.0, 9.5, 9.2], {0: 1.0, 1: 1.5}, {0: 9.0}, ended=ended))
        assert "left early: 1 certainly worse than the best" in said
        assert "1 for the budget's sake" in said

    def test_failed_images_are_counted_in_the_list(self) -> None:
        lost = TrialResult(0, {"guidance_scale": 1.0}, {}, {0: "black", 1: "black", 2: "black"}, {})
        results = replace(study([1.0]), trials=[lost], ended="finished")
        assert best_text(results) == "no best settings: no setting is judged in full; 3 images failed"
