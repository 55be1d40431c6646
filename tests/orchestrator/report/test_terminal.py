import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from orchestrator.report.results import Results, TrialResult
from orchestrator.report.statistics import ranking
from orchestrator.report.terminal import render_report, winner_sentence
from search_spaces.objectives import Constraint, Direction
from search_spaces.requests import Settings

STEPS = "num_inference_steps"


def study(
    rows: Sequence[tuple[Settings, Sequence[float]]], axes: Mapping[str, Sequence[object]], instances: int
) -> Results:
    trials = [TrialResult(n, one, dict(enumerate(row)), {}, {}) for n, (one, row) in enumerate(rows)]
    return Results("cat-to-dragon", "clip_score", instances, axes, trials, lambda _: None, [], [])


def printed(results: Results, top: int = 10, width: int = 80) -> str:
    """The report as a plain terminal shows it, lines stripped on the right."""
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, force_terminal=False).print(render_report(results, top))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def flowing(results: Results) -> str:
    """The report with its line breaks and columns undone."""
    return " ".join(printed(results).split())


AXES: dict[str, Sequence[object]] = {
    "guidance_scale": [1.0, 5.0, 7.5],
    "negative_prompt": ["", None, "cartoon"],
}
THREE = study(
    [
        ({"guidance_scale": 5.0, "negative_prompt": "cartoon"}, [50.0, 54.0]),
        ({"guidance_scale": 7.5, "negative_prompt": None}, [50.5, 53.0]),
        ({"guidance_scale": 1.0, "negative_prompt": ""}, [40.0, 44.0]),
    ],
    AXES,
    2,
)


class TestTable:
    def test_rows_from_best_to_worst(self) -> None:
        lines = printed(THREE).splitlines()
        assert lines[0] == "study cat-to-dragon: 3 settings tried, all judged on all 2 instances"
        table = [line.split() for line in lines[2:9]]
        assert table[:2] == [
            ["guidance_", "negative_", "clip_score"],
            ["scale", "prompt", "±", "95%,", "n", "=", "2"],
        ]
        assert table[3] == ["1", "5", "cartoon", "52", "±", "25", "best"]
        assert table[4] == ["2", "7.5", "none", "52", "±", "16", "tied"]
        assert table[5] == ["3", "1", '""', "42", "±", "25"]

    def test_top_limits_the_rows(self) -> None:
        lines = printed(THREE, top=1).splitlines()
        assert sum("±" in line and "95%" not in line and "best:" not in line for line in lines) == 1

    def test_rows_of_different_values_can_be_told_apart(self) -> None:
        prompts: list[str | None] = ["cat", "Cat", " cat", "cat ", "a cat", "a  cat", None, "none", "5", ""]
        rows: list[tuple[Settings, list[float]]] = [
            ({"negative_prompt": prompt}, [50.0 - n, 51.0 - n]) for n, prompt in enumerate(prompts)
        ]
        lines = printed(study(rows, {"negative_prompt": prompts}, 2)).splitlines()
        cells = [line.split(" ± ")[0].rsplit(maxsplit=1)[0].strip() for line in lines if " ± " in line]
        shown = [cell.split(maxsplit=1)[1] for cell in cells if cell[:1].isdigit()]
        assert shown == ["cat", "Cat", '" cat"', '"cat "', "a cat", '"a  cat"', "none", '"none"', '"5"', '""']

    def test_many_settings_share_a_column(self) -> None:
        axes = {f"a_rather_long_setting_{n}": [1, 2] for n in range(8)}
        results = study([(dict.fromkeys(axes, 1), [1.0, 2.0])], axes, 2)
        lines = printed(results).splitlines()
        assert all(len(line) <= 80 for line in lines)
        text = flowing(results)
        assert "settings" in text
        assert all(f"{name} 1" in text for name in axes)

    def test_a_long_name_of_one_word_does_not_squeeze_the_others(self) -> None:
        names = ["EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"]
        axes = {**AXES, STEPS: [3], "strength": [0.5], "scheduler": names}
        rest: Settings = {"guidance_scale": 5.0, "negative_prompt": "cartoon", STEPS: 3, "strength": 0.5}
        text = printed(study([({**rest, "scheduler": name}, [1.0, 2.0]) for name in names], axes, 2))
        assert all(name in text for name in names)

    def test_a_long_prompt_is_shortened(self) -> None:
        prompt = "ugly, " * 50 + "end"
        text = flowing(study([({"negative_prompt": prompt}, [1.0, 2.0])], {"negative_prompt": [prompt]}, 2))
        assert "…" in text
        assert "end" in text
        assert text.count("ugly") < 20

    def test_markup_and_escapes_are_text(self) -> None:
        prompt = "[bold]x[/bold] [/red] \x1b[31m :smile: 猫 \ud800"
        text = flowing(study([({"negative_prompt": prompt}, [1.0, 2.0])], {"negative_prompt": [prompt]}, 2))
        assert 'negative_prompt "[bold]x[/bold] [/red] \\x1b[31m :smile: 猫 \\ud800"' in text

    @settings(max_examples=40)
    @given(st.text(), st.integers(40, 120))
    def test_any_text_fits_any_width(self, text: str, width: int) -> None:
        results = study([({"p": text}, [1.0, 2.0])], {"p": [text]}, 2)
        results = replace(results, study=text, objective="clip_score", inert=[text], infeasible=[text])
        printed(results, width=width)
        assert all(cell_len(line) <= 80 for line in printed(results).splitlines())


class TestWinner:
    def test_with_ties(self) -> None:
        assert winner_sentence(THREE, ranking(THREE)) == (
            "best: guidance_scale 5, negative_prompt 'cartoon': clip_score 52 ± 25 over 2 instances; "
            "1 other setting cannot be told apart from it"
        )
        assert "1 other setting cannot be told apart from it" in flowing(THREE)

    def test_without_ties(self) -> None:
        results = study([({"g": 1}, [5.0, 6.0]), ({"g": 2}, [3.0, 4.0])], {"g": [1, 2]}, 2)
        assert "; no other setting ties with it" in flowing(results)

    def test_one_instance(self) -> None:
        results = study([({"g": 1}, [5.0]), ({"g": 2}, [5.0])], {"g": [1, 2]}, 1)
        text = flowing(results)
        assert "clip_score 5.000 over 1 instance; one instance gives no interval" in text
        assert "tied" not in text
        assert "±" not in text

    def test_the_only_one_that_is_complete(self) -> None:
        results = study([({"g": 1}, [5.0, 6.0]), ({"g": 2}, [3.0])], {"g": [1, 2]}, 2)
        assert "no other setting was judged on all of them" in flowing(results)

    def test_the_only_one(self) -> None:
        assert "no swept settings: clip_score 5.5 ± 6.4 over 2 instances; nothing else was tried" in flowing(
            study([({}, [5.0, 6.0])], {}, 2)
        )

    def test_no_complete_trial(self) -> None:
        results = study([({"g": 1}, [5.0]), ({"g": 2}, [9.0])], {"g": [1, 2]}, 2)
        text = flowing(results)
        assert text.startswith(
            "study cat-to-dragon: 2 settings tried, none judged on all 2 instances, so there is no best"
        )
        assert "best:" not in text
        assert "±" not in text
        assert "no mean: 2 settings on fewer than 2 instances" in text

    def test_no_trials(self) -> None:
        assert printed(study([], {"g": []}, 2)) == "study cat-to-dragon: no settings were tried yet"


class TestSteps:
    def rows(self, *scores: Sequence[float]) -> Results:
        rows = [({"g": 5, STEPS: 10 * (n + 1)}, row) for n, row in enumerate(scores)]
        return study(rows, {"g": [5], STEPS: [10 * (n + 1) for n in range(len(scores))]}, len(scores[0]))

    def test_enough(self) -> None:
        text = flowing(self.rows([1.0, 2.0], [5.0, 6.5], [5.5, 6.25]))
        assert "steps: 10 → 20 (+4.2 ± 3.2) → 30 (+0.1 ± 4.8) at g 5; no gain beyond 20 is certain" in text

    def test_still_paying(self) -> None:
        assert "at g 5; still paying at 20, the most that was tried" in flowing(
            self.rows([1.0, 2.0], [5.0, 6.0])
        )

    def test_one_instance(self) -> None:
        assert "nobody knows where they stop paying" in flowing(self.rows([1.0], [2.0]))

    def test_not_swept(self) -> None:
        assert "steps:" not in flowing(THREE)


class TestRemarks:
    def test_incomplete_trials_are_counted_with_their_reasons(self) -> None:
        trials = [
            *THREE.trials,
            TrialResult(3, {}, {0: 9.0}, {1: "black"}, {}),
            TrialResult(4, {}, {}, {0: "black", 1: "black"}, {}),
            TrialResult(5, {}, {}, {0: "black", 1: "worker\nlost"}, {}),
            TrialResult(6, {}, {0: 9.0}, {}, {}),
            TrialResult(7, {}, {}, {}, {}),
            TrialResult(8, {}, {}, {}, {}),
        ]
        text = flowing(replace(THREE, trials=trials))
        assert "9 settings tried, 3 judged on all 2 instances" in text
        assert (
            "no mean: 3 settings with failed images; 1 setting on fewer than 2 instances "
            "(dropped early, or not finished); 2 settings not judged at all "
            "failed: black (3 settings) failed: worker lost (1 setting)"
        ) in text

    def test_what_was_only_looked_at_is_said_to_be(self) -> None:
        trials = [
            *THREE.trials,
            TrialResult(3, {}, {}, {}, {}, looks=2),
            TrialResult(4, {}, {}, {}, {}, looks=1),
            TrialResult(5, {}, {0: 9.0}, {}, {}, looks=1),
            TrialResult(6, {}, {}, {}, {}),
        ]
        text = flowing(replace(THREE, trials=trials))
        assert "2 settings only looked at in mid-trajectory; 1 setting not judged at all" in text
        assert "early looks: 4 at 3 settings; none of them is a result" in text
        assert "3 for the budget's sake, 2 of them at an early look" in text
        assert "early looks" not in flowing(THREE)

    def test_what_the_study_no_longer_has_is_counted(self) -> None:
        said = "left out: 2 settings tried before, of values that the study no longer has"
        assert said in flowing(replace(THREE, gone=2))
        assert "left out" not in flowing(THREE)

    def test_inert_and_infeasible_are_quoted(self) -> None:
        text = flowing(
            replace(THREE, inert=["guidance_scale ≤ 1 is off"], infeasible=["strength 0.1 has no step"])
        )
        assert "inert: guidance_scale ≤ 1 is off cannot run: strength 0.1 has no step" in text

    def test_long_lists_are_cut_and_say_so(self) -> None:
        text = printed(replace(THREE, inert=[f"sentence {n}" for n in range(20)]))
        assert text.count("sentence") == 8
        assert "… and 12 more" in text

    def test_nothing_to_remark(self) -> None:
        text = printed(THREE)
        assert not any(label in text for label in ("no mean", "failed", "inert", "cannot run"))

    @given(st.randoms())
    def test_the_order_of_trials_does_not_matter(self, chance: random.Random) -> None:
        trials = list(THREE.trials)
        chance.shuffle(trials)
        assert printed(replace(THREE, trials=trials)) == printed(THREE)


class TestRace:
    def test_baseline_validation_and_who_left_are_said(self) -> None:
        found = study(
            [
                ({"guidance_scale": 5.0}, [50.0, 54.0, 51.0]),
                ({"guidance_scale": 7.5}, [40.0, 45.0, 42.0]),
                ({"guidance_scale": 1.0}, [10.0, 15.0]),
                ({"guidance_scale": 2.0}, [48.0]),
            ],
            {"guidance_scale": [1.0, 2.0, 5.0, 7.5]},
            3,
        )
        trials = [replace(found.trials[0], validation={0: 49.0, 1: 51.0}), *found.trials[1:]]
        trials[1] = replace(trials[1], validation={0: 44.0, 1: 45.0})
        text = flowing(replace(found, trials=trials, baseline=1, fresh=2))
        assert (
            "baseline: the model's own settings, guidance_scale 7.5; best − baseline +9.3 ± 1.4 over 3"
            in text
        )
        assert (
            "validated: best of the search: 50 ± 13, +6 ± 12 over the baseline, on 2 fresh instances" in text
        )
        assert (
            "validated: baseline: 44.5 ± 6.4, on 2 fresh instances" in text
            or "validated: baseline: 44 ±" in text
        )
        assert (
            "left early: 1 certainly worse than the best (paired interval below it), 1 for the budget's"
            in text
        )

    def test_a_baseline_that_wins_is_said_so(self) -> None:
        text = flowing(replace(THREE, baseline=0))
        assert "baseline: the model's own settings," in text
        assert "are the best" in text

    def test_several_objectives_show_a_front_and_constraints_who_is_left_out(self) -> None:
        seconds = (9.0, 3.0, 5.0)
        trials = [
            replace(trial, measured={"gpu_seconds": dict.fromkeys(range(2), second)})
            for trial, second in zip(THREE.trials, seconds, strict=True)
        ]
        objectives: dict[str, Direction] = {"clip_score": "maximize", "gpu_seconds": "minimize"}
        several = replace(THREE, trials=trials, objectives=objectives)
        text = flowing(several)
        assert text.count("front") == 3, "two rows and the sentence"
        assert (
            "front: no other setting is better in clip_score (max) and gpu_seconds (min) than 2 settings"
            in text
        )
        bounded = flowing(replace(several, constraints=[Constraint("gpu_seconds", "<=", 5.0)]))
        assert "left out: 1 setting for breaking gpu_seconds <= 5" in bounded
        assert "3 settings tried, all judged on all 2 instances" in bounded

    def test_what_is_bounded_is_shown_and_that_nothing_keeps_the_bounds(self) -> None:
        trials = [
            replace(trial, measured={"preservation_psnr": dict.fromkeys(range(2), decibels)})
            for trial, decibels in zip(THREE.trials, (20.0, 26.0, 31.5), strict=True)
        ]
        bounds = [Constraint("preservation_psnr", ">=", 25.0), Constraint("clip_score", ">=", 1.0)]
        text = flowing(replace(THREE, trials=trials, constraints=bounds))
        assert "31.5" in text
        assert "26 tied" not in text  # the best of the two that are left
        assert "left out: 1 setting for breaking preservation_psnr >= 25 or clip_score >= 1 " in f"{text} "
        nothing = flowing(replace(THREE, trials=trials, constraints=[Constraint("clip_score", ">=", 90.0)]))
        assert "3 settings tried, all judged on all 2 instances" in nothing
        assert "for breaking clip_score >= 90, so that none is left to be the best" in nothing
