"""The study file that looks closer: what it sweeps, and that it can be run as it stands."""

from pathlib import Path

import pytest

from orchestrator.report.closer import closer_space, closer_study
from orchestrator.report.results import Results, TrialResult
from search_spaces.domains import Choices, Domain, FloatRange
from search_spaces.errors import InputError
from search_spaces.requests import Value
from search_spaces.space import Space
from search_spaces.study import Study
from search_spaces.study_file import parse
from tests.orchestrator.studies import small_study

AXES: dict[str, Domain] = {
    "guidance_scale": Choices(values=(1.0, 10.0, 20.0)),
    "strength": FloatRange(low=0, high=1),
    "negative_prompt": Choices(values=("", "cartoon", "blurry")),
}


def results(scores: dict[tuple[Value, ...], list[float]]) -> Results:
    trials = [
        TrialResult(number, dict(zip(AXES, settings, strict=True)), dict(enumerate(values)), {}, {})
        for number, (settings, values) in enumerate(scores.items())
    ]
    axes = {name: sorted({t.settings[name] for t in trials}, key=str) for name in AXES}
    return Results("cat", "clip_score", 3, axes, trials, lambda _: None, [], [])


def test_it_lies_halfway_to_the_neighbours_and_keeps_the_ties_of_texts() -> None:
    found = results(
        {
            (1.0, 0.5, ""): [1, 2, 3],
            (10.0, 0.5, "cartoon"): [30, 31, 29],
            (10.0, 0.5, "blurry"): [29, 31, 29.5],
            (20.0, 1.0, ""): [10, 11, 10],
        }
    )
    assert closer_space(found, AXES) == {
        "guidance_scale": [5.5, 10.0, 15.0],
        "strength": [0.5, 0.75],
        "negative_prompt": ["cartoon", "blurry"],
    }


def test_without_a_best_there_is_nothing_to_look_closer_at() -> None:
    with pytest.raises(InputError, match="has no best settings yet"):
        closer_space(results({(1.0, 0.5, ""): [1.0]}), AXES)


def closer(study: Study, text: str, found: Results, folder: Path) -> str:
    return closer_study(study, text, found, folder / "runs" / "inputs", folder)


TEXT = """
study: small
model: toyworld
inputs: [{prompt: a picture, score_text: a dragon}]
seeds: 3
space: {guidance_scale: [0.5, 1, 3, 5], negative_prompt: ["", cartoon]}
search: {strategy: grid, validate: 4}
budget: {images: 500}
"""


def small_results(best: float, negative_prompt: str = "") -> Results:
    study = small_study()
    trials = [
        TrialResult(
            n,
            {"guidance_scale": g, "negative_prompt": negative_prompt},
            {i: 9.0 - abs(g - best) for i in range(3)},
            {},
            {},
        )
        for n, g in enumerate((0.5, 1.0, 3.0, 5.0))
    ]
    axes = {name: list(domain.points() or ()) for name, domain in study.space.axes.items()}
    return Results("small", "clip_score", 3, axes, trials, lambda _: None, [], [])


def test_the_file_can_be_run_as_it_stands(tmp_path: Path) -> None:
    spec = parse(closer(small_study(), TEXT, small_results(best=3.0), tmp_path), "closer.yaml")
    assert spec.study == "small-closer"
    assert spec.space == {"guidance_scale": Choices(values=(2.0, 3.0, 4.0))}
    assert spec.settings == {"negative_prompt": ""}
    assert (spec.search.strategy, spec.search.validation) == ("halving", 4)
    assert spec.budget.images == 500
    assert spec.seeds == 3


def test_where_nothing_lies_closer_it_says_so(tmp_path: Path) -> None:
    study, found = small_study(guidance=(3.0,)), small_results(best=3.0)
    alone = Results("small", "clip_score", 3, {"guidance_scale": [3.0], "negative_prompt": [""]}, found.trials[2:3],
                    lambda _: None, [], [])  # fmt: skip
    with pytest.raises(InputError, match="nothing lies between"):
        closer(study, TEXT, alone, tmp_path)


@pytest.mark.parametrize("text", ["09", "1e-3", "+.5", "1.5e3", "off"])
def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path, text: str) -> None:
    study = small_study()
    axes = {**study.space.axes, "negative_prompt": Choices(values=(text, "cartoon"))}
    study = study.model_copy(update={"space": Space(axes=axes)})
    found = small_results(3.0, text)
    file = TEXT.replace('["", cartoon]', f'["{text}", cartoon]')
    assert parse(closer(study, file, found, tmp_path), "closer.yaml").settings == {"negative_prompt": text}


def test_pictures_are_found_through_links_on_either_side(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep" / "down")
    (tmp_path / "disk" / "runs" / "inputs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "runs")
    (tmp_path / "runs" / "inputs" / "0123.png").write_bytes(b"the picture")
    study, text = small_study(), TEXT.replace("prompt: a picture", "prompt: a picture, image: cat.png")
    study = study.model_copy(update={"inputs": (study.inputs[0].model_copy(update={"image": "0123"}),)})
    made = closer_study(study, text, small_results(best=3.0), tmp_path / "runs" / "inputs", tmp_path / "link")
    named = parse(made, "closer.yaml").inputs[0].image
    assert named is not None
    assert not Path(named).is_absolute()
    assert (tmp_path / "link" / named).read_bytes() == b"the picture"


def test_a_model_beside_the_study_file_is_found_from_elsewhere(tmp_path: Path) -> None:
    study = small_study()
    study = study.model_copy(
        update={
            "model": study.model.model_copy(update={"location": "/models/mine"}),
            "scorer": study.scorer.model_copy(update={"location": "/models/clip"}),
        }
    )
    text = TEXT.replace("model: toyworld", "model: mine\nclip_model: ./clip")
    spec = parse(closer(study, text, small_results(best=3.0), tmp_path), "closer.yaml")
    assert (spec.model, spec.clip_model) == ("/models/mine", "/models/clip")
