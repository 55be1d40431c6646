import json
import random
import unicodedata
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import search_spaces.study
from search_spaces.errors import InputError
from search_spaces.models import ModelDescription
from search_spaces.requests import Instance, Settings
from search_spaces.space import survey
from search_spaces.study import PinnedInput, Study, difference, idle_exclusions, pin
from search_spaces.study_file import parse
from tests.search_spaces.examples import (
    CAT,
    EMBEDDED,
    INPAINTING,
    KEYWORDS,
    SCORER,
    SDXL,
    TEXT_TO_IMAGE,
    UNKNOWN,
    law,
    model,
)

SPACE = """
  num_inference_steps: [3, 30]
  guidance_scale: [1, 7.5]
  strength: [0.5, 0.51, 1.0]
  negative_prompt: ["", cartoon]
"""


def study(
    space: str = SPACE,
    settings: str = "{}",
    model: ModelDescription = INPAINTING,
    inputs: tuple[PinnedInput, ...] = (CAT,),
    seeds: str = "[7, 11]",
    rest: str = "",
    **changes: Any,
) -> Study:
    """A study pinned from a study file."""
    text = (
        f"study: cat\nmodel: toyworld\ninputs: [{{prompt: p, score_text: t}}]\nseeds: {seeds}\n"
        f"settings: {settings}\nspace: {space}\n{rest}\n"
    )
    made = pin(parse(text, "study.yaml"), model, SCORER, inputs, token="a token", source="study.yaml")
    return made.model_copy(update=changes)


def refusal(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        study(**changes)
    sentence = str(caught.value)
    assert sentence.startswith("study.yaml: ")
    assert "\n" not in sentence
    assert sentence[-1] != "."
    return sentence


# Pinning


def test_pinned_settings_are_complete() -> None:
    pinned = study(settings="{eta: 0.5, scheduler: EulerDiscreteScheduler}")
    assert pinned.settings == {
        "eta": 0.5,
        "clip_skip": None,
        "width": 64,
        "height": 64,
        "scheduler": "EulerDiscreteScheduler",
    }
    (request,) = {len(pinned.request(cell, pinned.instances[0]).settings) for cell in pinned.space.lattice()}
    assert request == len(KEYWORDS) + 1


def test_the_models_own_defaults_hold_where_the_file_says_nothing() -> None:
    pinned = study("{eta: [0]}")
    assert pinned.settings["guidance_scale"] == INPAINTING.keywords["guidance_scale"]
    assert pinned.settings["num_inference_steps"] == INPAINTING.keywords["num_inference_steps"]
    assert pinned.settings["scheduler"] == INPAINTING.scheduler


def test_instances_are_all_inputs_for_each_seed() -> None:
    dog = CAT.model_copy(update={"prompt": "a blue dragon", "image": "3" * 32})
    instances = study(inputs=(CAT, dog)).instances
    assert [(i.number, i.prompt, i.seed) for i in instances] == [
        (0, "a green dragon", 7),
        (1, "a blue dragon", 7),
        (2, "a green dragon", 11),
        (3, "a blue dragon", 11),
    ]
    assert (instances[1].image, instances[1].mask, instances[1].score_text) == (
        "3" * 32,
        CAT.mask,
        CAT.score_text,
    )


def test_more_seeds_leave_the_numbers_of_instances_alone() -> None:
    fewer, more = study().instances, study(seeds="[7, 11, 5]").instances
    assert more[: len(fewer)] == fewer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": "{guidence_scale: 3}"},
         ["settings.guidence_scale", "StableDiffusionInpaintPipeline takes no", "did you mean 'guidance_scale'?"]),
        ({"space": "{guidance_scael: [3]}"}, ["space.guidance_scael", "did you mean 'guidance_scale'?"]),
        ({"space": "{frobnication: [3]}"}, ["takes no setting 'frobnication'", "known are", "eta", "scheduler"]),
        ({"space": "{strength: [1]}", "model": TEXT_TO_IMAGE}, ["space.strength", "StableDiffusionPipeline"]),
        ({"settings": "{prompt: a}"}, ["settings.prompt", "belongs to each of 'inputs'"]),
        ({"settings": "{scheduler: DIMScheduler}"}, ["scheduler", "'DIMScheduler'", "did you mean 'DDIMScheduler'?"]),
        ({"space": "{scheduler: [DDIMScheduler, Frob]}"}, ["scheduler", "'Frob'", "known are DDIMScheduler, Euler"]),
        ({"rest": "exclude: [{eta: 1}]"}, ["exclude[0].eta", "does not sweep eta", "known are guidance_scale"]),
        ({"rest": "exclude: [{strength: {low: 0, high: 1}}]"},
         ["no cell of the space can run", "exclude[0] leaves them out"]),
        ({"space": "{strength: {values: [1], when: {scheduler: EulerDiscreteScheduler}}}"},
         ["space.strength.when.scheduler", "scheduler is never 'EulerDiscreteScheduler'"]),
        ({"space": "{strength: {values: [1], when: {schedule: DDIMScheduler}}}"},
         ["space.strength.when.schedule", "no such setting", "did you mean 'scheduler'?"]),
        ({"space": "{strength: {values: [1], when: {guidance_scale: 3}}, guidance_scale: [1, 5]}"},
         ["guidance_scale is never 3.0"]),
        ({"rest": "search: {strategy: coordinate, order: [strength, eta]}"},
         ["search.order", "does not sweep eta"]),
        ({"rest": "search: {strategy: coordinate, order: [strength, strength]}"},
         ["order: strength is listed twice"]),
        ({"rest": "search: {enqueue: [{eta: 1}]}"}, ["search.enqueue[0]", "does not sweep eta"]),
        ({"rest": "search: {enqueue: [{strength: 0}]}"}, ["enqueue[0] cannot run", "leaves no effective step"]),
        ({"rest": "search: {strategy: halving}",
          "space": "{guidance_scale: {low: 1, high: 91, step: 0.001}, num_inference_steps: {low: 1, high: 100}}"},
         ["halving cannot race all of 9,000,100 cells", "search.trials"]),
        ({"rest": "search: {strategy: refine, trials: 13}"}, ["trials: 13", "after the 13 settings"]),
        ({"space": "{negative_prompt: ['', cartoon]}", "rest": "search: {strategy: refine, trials: 8}"},
         ["refine looks closer between numbers", "use halving"]),
        ({"rest": "budget: {images: 1}"}, ["budget.images: 1", "fewer than the 2 instances"]),
        ({"settings": "{width: 63}"}, ["width: 63", "multiple of 8"]),
        ({"rest": "engine: {rows: 8}", "model": UNKNOWN}, ["engine.rows", "PipelineOfTomorrow runs in whole calls"]),
        ({"rest": "engine: {compile: true}", "model": UNKNOWN}, ["engine.compile", "in whole calls", "remove it"]),
        ({"space": "{height: [64, 100]}"}, ["height: 100", "multiple of 8"]),
        ({"space": "{width: {low: 64, high: 100, step: 6}}"}, ["width: 70", "multiple of 8"]),
        ({"space": "{num_inference_steps: [1, 2], strength: [0, 0.4]}"},
         ["no cell of the space can run", "num_inference_steps 2 × strength 0.4 leaves no effective step"]),
        ({"space": "{num_inference_steps: [1, 2]}", "settings": "{strength: 0.3}"},
         ["no cell of the space can run", "strength 0.3"]),
    ],
)  # fmt: skip
def test_what_a_model_does_not_take_is_refused(changes: Mapping[str, Any], words: list[str]) -> None:
    sentence = refusal(**changes)
    for word in words:
        assert word in sentence


def test_a_space_of_which_some_can_run_is_taken() -> None:
    study("{num_inference_steps: [1, 2], strength: [0, 0.5]}")
    study("{num_inference_steps: [1], strength: [0.1]}", model=UNKNOWN, rest="engine: {offload: model}")
    study("{width: {low: 64, high: 128, step: 16}}")
    study("{strength: {low: 0, high: 0.06}}", rest="search: {strategy: tpe, trials: 3}")


@pytest.mark.parametrize(
    ("space", "example"),
    [
        ("{guidance_scale: [1, 7.5, 3]}", {"guidance_scale": 3}),
        ("{width: [128, 64], height: {low: 64, high: 128, step: 8}}", {"width": 128, "height": 128}),
        ("{num_inference_steps: [2, 9], strength: [1.0, 0.1]}", {"num_inference_steps": 9, "strength": 1.0}),
    ],
)
def test_the_example_is_of_the_largest_size_and_can_run(space: str, example: Settings) -> None:
    made = study(space=space)
    assert made.example == example
    assert made.judge.obstacle(made.example) is None


def test_the_example_of_a_continuous_space() -> None:
    made = study(space="{guidance_scale: {low: 1, high: 9}}", rest="search: {strategy: tpe, trials: 3}")
    assert made.example == {"guidance_scale": 9.0}


NAMES = [f"axis{number}" for number in range(6)]
HUGE = "{" + ", ".join(f"{name}: {{low: 0, high: 99999}}" for name in NAMES) + ", strength: [0.01, 1.0]}"
HUGE_MODEL = model(keywords={**KEYWORDS, **dict.fromkeys(NAMES, 0)})


def test_a_huge_space_is_taken_without_a_walk() -> None:
    made = study(HUGE, model=HUGE_MODEL, rest="exclude: [{axis0: {low: 0, high: 99998}}]")
    assert made.space.size == 2 * 10**30
    assert made.judge.obstacle(made.example) is None
    assert (made.example["axis0"], made.example["strength"]) == (99999, 1.0)


@pytest.mark.parametrize(
    ("space", "rest"),
    [
        (HUGE, "exclude: [{axis0: {low: 0, high: 5000}}, {axis0: {low: 5001, high: 99999}}]"),
        (HUGE, "exclude: [{strength: 1.0}]"),  # what is left runs no step
        (
            "{guidance_scale: {low: 1, high: 9}}",
            "exclude: [{guidance_scale: {low: 0, high: 5}}, {guidance_scale: {low: 5, high: 9}}]\n"
            "search: {strategy: tpe, trials: 3}",
        ),
        ("{strength: {low: 0, high: 0.01}}", "search: {strategy: tpe, trials: 3}"),
    ],
)
def test_a_space_of_which_nothing_is_left_is_refused_however_large_it_is(space: str, rest: str) -> None:
    assert "no cell of the space can run: " in refusal(space=space, rest=rest, model=HUGE_MODEL)


# Identity


def image_id(swept: Settings | None = None, instance: Mapping[str, Any] | None = None, **changes: Any) -> str:
    """The image_id of settings on the study's first instance, with something changed."""
    pinned = study(**changes)
    first = Instance(**{**vars(pinned.instances[0]), **(instance or {})})
    settings: Settings = {
        "num_inference_steps": 30,
        "guidance_scale": 7.5,
        "strength": 1.0,
        "negative_prompt": "cartoon",
    }
    return pinned.request({**settings, **(swept or {})}, first).image_id


BASE = image_id()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": model(revision="sha256:01")},
        {"model": model(revision="abc")},  # of a hub
        {"model": model(task="image-to-image")},
        {"model": model(pipeline="StableDiffusionXLInpaintPipeline")},
        {"model": model(dtype="float16")},
        {"model": model(diffusers="0.43.0")},
        {"model": model(keywords={**KEYWORDS, "width": 128})},
        {"model": model(keywords={**KEYWORDS, "clip_skip": 1})},
        {"model": model(scheduler="HeunDiscreteScheduler")},
        {"settings": "{scheduler: EulerDiscreteScheduler}"},
        {"settings": "{eta: 0.5}"},
        {"settings": "{width: 72}"},
        {"swept": {"guidance_scale": 7}},
        {"swept": {"num_inference_steps": 29}},
        {"swept": {"strength": 0.5}},
        {"swept": {"negative_prompt": "blurry"}},
        {"swept": {"prompt": "a red dragon"}},
        {"instance": {"prompt": "a red dragon"}},
        {"instance": {"prompt": "a green dragon "}},
        {"instance": {"seed": 8}},
        {"instance": {"image": "3" * 32}},
        {"instance": {"mask": "3" * 32}},
        {"instance": {"mask": None}},
    ],
    ids=str,
)
def test_what_changes_the_pixels_changes_the_image_id(changes: Mapping[str, Any]) -> None:
    assert image_id(**changes) != BASE


def test_hub_models_of_one_revision_are_told_apart_by_their_names() -> None:
    one, other = model(location="a/b", revision="main"), model(location="a/c", revision="main")
    assert image_id(model=one) != image_id(model=other)


def test_the_engines_own_revision_is_part_of_the_image_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_spaces.study, "PIXEL_REVISION", 10**6)
    assert image_id() != BASE


@pytest.mark.parametrize(
    "changes",
    [
        {"instance": {"score_text": "another"}},
        {"instance": {"number": 5}},
        {"name": "another"},
        {"token": "another"},
        {"seeds": "[7]"},
        {"seeds": "[7, 8, 9, 11]"},
        {"inputs": (CAT, CAT.model_copy(update={"prompt": "another"}))},
        {"inputs": (CAT.model_copy(update={"image_name": "kitty.png"}),)},
        {"scorer": SCORER.model_copy(update={"revision": "other"})},
        {"objective": "beauty"},
        {"rest": "search: {strategy: tpe, trials: 9}"},
        {"rest": "comet: {project: p}"},
        {"space": "{" + ", ".join(reversed([line.strip() for line in SPACE.strip().splitlines()])) + "}"},
        {"space": SPACE.replace("[3, 30]", "[30, 3, 50]")},
        {"model": model(name="another name")},
        {"model": model(location="/elsewhere")},  # the same weights, by their hash
        {"model": model(defaults_source="hearsay")},
        {"model": model(schedulers=("DDIMScheduler",))},
        {"model": model(keywords=dict(reversed(KEYWORDS.items())))},
        {"model": model(keywords={**KEYWORDS, "guidance_scale": 3.0})},  # a default that is swept over
        {"settings": "{eta: 0.0}"},  # what it is anyway
        {"swept": {"guidance_scale": 7.50}},
        {"swept": {"strength": 1}},
        {"swept": {"prompt": "a green dragon"}},
        {"swept": {"prompt": None}},
    ],
    ids=str,
)
def test_what_leaves_the_pixels_alone_leaves_the_image_id_alone(changes: Mapping[str, Any]) -> None:
    assert image_id(**changes) == BASE


def test_a_value_is_the_same_fixed_or_swept() -> None:
    # Only then is what one study made an answer to another.
    fixed = study("{guidance_scale: [7.5]}", settings="{num_inference_steps: 30, negative_prompt: cartoon}")
    assert fixed.request({"guidance_scale": 7.5}, fixed.instances[0]).image_id == BASE


@pytest.mark.parametrize("kind", [INPAINTING, SDXL, EMBEDDED, UNKNOWN])
def test_image_ids_are_equal_exactly_for_twins(kind: ModelDescription) -> None:
    pinned = study(model=kind)
    by_image = {pinned.request(cell, pinned.instances[0]).image_id for cell in pinned.space.lattice()}
    pairs = {
        (pinned.request(cell, pinned.instances[0]).image_id, pinned.judge.candidate(cell))
        for cell in pinned.space.lattice()
    }
    assert len(pairs) == len(by_image) == len({candidate for _, candidate in pairs})


def test_a_request_carries_what_a_pipeline_needs() -> None:
    pinned = study("{prompt: [a, b], guidance_scale: [3]}")
    request = pinned.request({"prompt": "b", "guidance_scale": 3}, pinned.instances[1])
    assert (request.prompt, request.seed, request.score_text) == ("b", 11, CAT.score_text)
    assert (request.image, request.mask) == (CAT.image, CAT.mask)
    assert "prompt" not in request.settings
    assert request.settings["guidance_scale"] == 3


# The pinned study


@pytest.mark.parametrize(
    "made",
    [
        study(),
        study("{guidance_scale: {low: 1, high: 9}}", rest="search: {strategy: tpe, trials: 9, seed: 3}"),
        study(
            "{strength: {low: 0.1, high: 0.7, step: 0.1}, num_inference_steps: {low: 20, high: 60, step: 10}}"
        ),
        study("{negative_prompt: ['', null, 'é😀', 'true', '7']}", settings="{eta: 1, clip_skip: 2}"),
        study(settings="{eta: 1.0e-9}", seeds="[9223372036854775807]", inputs=(CAT, CAT)),
        study("{frob: [1, true, 1.5, x, null]}", model=model(keywords={**KEYWORDS, "frob": None})),
        study("{eta: [0]}", model=TEXT_TO_IMAGE, rest="comet: {mode: off, tags: [a]}"),
    ],
)
def test_a_study_survives_json(made: Study) -> None:
    again = Study.model_validate_json(made.model_dump_json())
    assert again == made
    assert difference(made, again) is None
    cells = list(made.space.lattice()) if made.space.size else [{"guidance_scale": 2.5}]
    for cell in cells:
        for mine, its in zip(made.instances, again.instances, strict=True):
            assert made.request(cell, mine) == again.request(cell, its)
    if made.space.size:
        typed = [[(type(value), value) for value in cell.values()] for cell in again.space.lattice()]
        assert typed == [[(type(value), value) for value in cell.values()] for cell in cells]


# What continues a study


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": "[7, 11, 13]"},
        {"space": SPACE.replace("[3, 30]", "[3, 30, 50]")},
        {"space": SPACE.replace("[1, 7.5]", "{low: 1, high: 9, step: 2}")},
        {"space": "{" + ", ".join(reversed([line.strip() for line in SPACE.strip().splitlines()])) + "}"},
        {"rest": "search: {strategy: tpe, trials: 9}"},
        {"rest": "comet: {project: elsewhere}"},
        {"rest": "engine: {rows: 16, compile: true}"},
        {"token": "another"},
        {"inputs": (CAT.model_copy(update={"image_name": "kitty.png", "mask_name": "m.png"}),)},
        {"model": model(name="toyworld, by another name")},
    ],
    ids=str,
)
def test_a_study_may_be_continued(changes: Mapping[str, Any]) -> None:
    assert difference(study(), study(**changes)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": model(revision="sha256:01")}, "model: was sha256:00, is sha256:01"),
        ({"model": model(task="image-to-image")}, "task: was inpainting, is image-to-image"),
        ({"model": model(dtype="float16")}, "dtype: was float32, is float16"),
        ({"model": model(diffusers="0.43.0")}, "diffusers' version: was 0.42.1, is 0.43.0"),
        ({"scorer": SCORER.model_copy(update={"revision": "x"})}, "objective: was clip_score by"),
        ({"objective": "beauty"}, "objective: was clip_score by clip_score/toyworld@sha256:11, is beauty by"),
        ({"inputs": (CAT.model_copy(update={"prompt": "a blue dragon"}),)}, "inputs: was"),
        ({"inputs": (CAT.model_copy(update={"score_text": "other"}),)}, "inputs: was"),
        ({"inputs": (CAT.model_copy(update={"image": "4" * 32}),)}, "inputs: was"),
        ({"inputs": (CAT, CAT)}, "inputs: was"),
        ({"settings": "{eta: 0.5}"}, "settings.eta: was 0.0, is 0.5"),
        ({"model": model(keywords={**KEYWORDS, "clip_skip": 1})}, "settings.clip_skip: was None, is 1"),
        ({"space": SPACE + "  eta: [0]\n"}, "axes of the space: was ['guidance_scale',"),
        ({"space": "{strength: [1]}"}, "axes of the space: was"),
        ({"seeds": "[7]"}, "seeds: was [7, 11], which [7] does not begin with"),
        ({"seeds": "[11, 7]"}, "seeds: was [7, 11], which [11, 7] does not begin with"),
        ({"seeds": "100000"}, "seeds: was [7, 11], which [0, 1, 2, 3, 4, 5, 6, 7, … 100000 seeds] does not begin"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)  # fmt: skip
def test_another_study_is_told_by_its_difference(changes: Mapping[str, Any], said: str) -> None:
    told = difference(study(), study(**changes))
    assert told is not None
    assert told.startswith(said)
    assert "\n" not in told


# What is tried, and on what


def test_a_setting_whose_condition_does_not_hold_is_the_models_own() -> None:
    pinned = study("{strength: {values: [0.3, 0.5], when: {guidance_scale: 9}}, guidance_scale: [5, 9]}")
    found = survey(pinned.space, pinned.judge)
    assert [cell["guidance_scale"] for cell in found.candidates] == [5, 9, 9]
    request = pinned.request({"strength": 0.3, "guidance_scale": 5.0}, pinned.instances[0])
    assert request.settings["strength"] == INPAINTING.keywords["strength"] == 1.0
    (sentence,) = found.inert
    assert sentence == "strength changes nothing where 'when' does not hold"


@pytest.mark.parametrize("order", [("strength", "guidance_scale"), ("guidance_scale", "strength")])
def test_conditions_may_depend_on_settings_that_have_conditions(order: tuple[str, str]) -> None:
    axes = {
        "strength": "strength: {values: [0.3, 0.5], when: {guidance_scale: 9}}",
        "guidance_scale": "guidance_scale: {values: [5, 9], when: {num_inference_steps: 30}}",
    }
    named = ", ".join([*(axes[name] for name in order), "num_inference_steps: [20, 30]"])
    pinned = study(f"{{{named}}}")
    found = survey(pinned.space, pinned.judge)
    # beside 20 steps guidance is the model's own, and so is strength; beside 30 and guidance 9 strength has its turn
    drawn = {tuple(pinned.judge.complete(cell)[name] for name in sorted(cell)) for cell in found.candidates}
    assert drawn == {(5.0, 20, 1.0), (5.0, 30, 1.0), (9.0, 30, 0.3), (9.0, 30, 0.5)}


@pytest.mark.parametrize(
    ("space", "rest", "said"),
    [
        (
            "{guidance_scale: {values: [1, 5], when: {strength: 0.5}}, "
            "strength: {values: [0.5, 1], when: {guidance_scale: 5}}}",
            "",
            "conditions under 'when' go in a circle: guidance_scale → strength → guidance_scale",
        ),
        (
            "{guidance_scale: [1, 5], strength: {values: [0.5, 1], when: {guidance_scale: 5}}}",
            "exclude: [{guidance_scale: 5}]",
            "space.strength.when: no cell that can run has guidance_scale 5.0, so that strength would never be",
        ),
        (  # each alone holds somewhere, both together nowhere
            "{guidance_scale: {values: [1, 5], when: {num_inference_steps: 30}}, num_inference_steps: [20, 30], "
            "strength: {values: [0.5, 1], when: {guidance_scale: 1, num_inference_steps: 20}}}",
            "",
            "space.strength.when: no cell that can run has guidance_scale 1.0 and num_inference_steps 20",
        ),
    ],
)
def test_a_conditional_branch_that_is_never_taken_is_refused(space: str, rest: str, said: str) -> None:
    assert said in refusal(space=space, rest=rest)


def test_excluded_cells_are_named_and_not_candidates() -> None:
    pinned = study(rest="exclude: [{num_inference_steps: 3, strength: [0.5, 0.51]}, {guidance_scale: 1}]")
    found = survey(pinned.space, pinned.judge)
    assert found.infeasible == {"exclude[0] leaves them out": 8, "exclude[1] leaves them out": 8}
    # 30 steps × 3 strengths (0.50 and 0.51 are one) and 3 steps × strength 1, each with two negative prompts
    assert len(found.candidates) == 2 * 2 + 2


def test_the_models_own_settings_are_the_baseline_and_tried_first() -> None:
    pinned = study(rest="search: {enqueue: [{num_inference_steps: 30, strength: 0.4}]}")
    assert pinned.baseline == {
        "num_inference_steps": 20,
        "guidance_scale": 5.0,
        "strength": 1.0,
        "negative_prompt": "",
    }
    assert pinned.first == [pinned.baseline, {**pinned.baseline, "num_inference_steps": 30, "strength": 0.4}]


AXES: dict[str, list[Any]] = {
    "num_inference_steps": [20, 30, 3],
    "guidance_scale": [1, 5, 0.5, 7.5],
    "strength": [1, 0.5, 0.51],
    "negative_prompt": ["cartoon", "", None],
    "eta": [0, 1],
}


@given(
    axes=st.fixed_dictionaries(
        {}, optional={name: st.lists(st.sampled_from(v), min_size=1, unique=True) for name, v in AXES.items()}
    ).filter(bool),
    enqueued=st.fixed_dictionaries({}, optional={name: st.sampled_from(v) for name, v in AXES.items()}),
    left_out=st.fixed_dictionaries({}, optional={name: st.sampled_from(v) for name, v in AXES.items()}),
    kind=st.sampled_from([INPAINTING, SDXL, EMBEDDED]),
)
@law
def test_a_candidate_bears_the_files_values_wherever_the_file_has_such_a_cell(
    axes: dict[str, list[Any]], enqueued: dict[str, Any], left_out: dict[str, Any], kind: ModelDescription
) -> None:
    enqueue = {name: value for name, value in enqueued.items() if name in axes}
    rules = [{name: [value] for name, value in left_out.items() if name in axes}]
    space = {name: list(values) for name, values in axes.items()}
    rest = f"search: {{enqueue: {json.dumps([enqueue] if enqueue else [])}}}\nexclude: "
    try:
        pinned = study(json.dumps(space), model=kind, rest=rest + json.dumps(rules if rules[0] else []))
    except InputError:
        assume(False)
    judge, cells = pinned.judge, list(pinned.space.lattice())
    able = [cell for cell in cells if judge.obstacle(cell) is None]
    of_the_file = {judge.candidate(cell) for cell in able}
    found = survey(pinned.space, judge, pinned.first).candidates
    for settings in [*found, *pinned.first]:
        assert settings in able or judge.candidate(settings) not in of_the_file
        assert judge.as_filed(settings) == settings
    assert {judge.candidate(settings) for settings in found} >= of_the_file
    for cell in cells:
        assert judge.as_filed(cell) == cell or judge.obstacle(cell) is not None
        assert judge.candidate(judge.as_filed(cell)) == judge.candidate(cell)


def test_the_files_own_cell_is_not_renamed_by_the_models_settings() -> None:
    axes = "{guidance_scale: [3, 5], negative_prompt: ['', cartoon]}"
    pinned = study(axes)
    assert pinned.first == [{"guidance_scale": 5.0, "negative_prompt": ""}]
    assert pinned.first[0] in survey(pinned.space, pinned.judge, pinned.first).candidates
    left_out = study(axes, rest="exclude: [{guidance_scale: 5, negative_prompt: ''}]")
    assert left_out.first == [], "the model's own settings are the cell that is left out"
    assert len(survey(left_out.space, left_out.judge, left_out.first).candidates) == 3
    enqueued = study(axes, rest="search: {enqueue: [{negative_prompt: null, guidance_scale: 3}]}")
    assert enqueued.first[1] == {"guidance_scale": 3, "negative_prompt": ""}


def test_a_value_that_is_dead_by_itself_is_the_last_to_be_a_files_twin() -> None:
    pinned = study(
        "{guidance_scale: [1, 5], negative_prompt: [cartoon, '']}",
        model=model(keywords={**KEYWORDS, "guidance_scale": 1.0}),
    )
    assert pinned.baseline == {"guidance_scale": 1.0, "negative_prompt": ""}


TEXTS = {"": "", " ": "", "cartoon": "cartoon", "Cartoon": "cartoon", "cartoon ": "cartoon"}
SPELLINGS = "{negative_prompt: ['', ' ', cartoon, Cartoon, 'cartoon ']}"


def test_texts_that_a_model_reads_as_one_are_one_candidate_and_one_picture() -> None:
    raw, read = study(SPELLINGS), study(SPELLINGS, texts=TEXTS)
    assert len(survey(raw.space, raw.judge, raw.first).candidates) == 5
    found = survey(read.space, read.judge, read.first)
    assert [cell["negative_prompt"] for cell in found.candidates] == ["", "cartoon"]
    assert found.inert == {"the model's tokenizer reads texts of negative_prompt as one": 3}
    instance = read.instances[0]
    for cell in read.space.lattice():
        spelled = {"negative_prompt": TEXTS[str(cell["negative_prompt"])]}
        request = read.request(cell, instance)
        assert request.image_id == raw.request(spelled, instance).image_id, "stored pictures keep their names"
        assert request.settings["negative_prompt"] == cell["negative_prompt"], "a text stays as it is written"


def test_prompts_of_one_spelling_draw_one_picture() -> None:
    texts = {"": "", "a green dragon": "a green dragon", "A  green Dragon": "a green dragon"}
    shouted = CAT.model_copy(update={"prompt": "A  green Dragon"})
    made = study("{eta: [0]}", inputs=(CAT, shouted), texts=texts)
    one, two = (made.request({"eta": 0}, instance) for instance in made.instances[:2])
    assert (one.image_id, one.prompt, two.prompt) == (two.image_id, "a green dragon", "A  green Dragon")


def test_a_swept_prompt_that_is_that_of_all_inputs_is_the_models_own_setting() -> None:
    made = study("{prompt: [a dog, a green dragon]}")
    assert made.baseline == {"prompt": "a green dragon"}
    assert len(survey(made.space, made.judge, made.first).candidates) == 2
    two = study("{prompt: [a dog, a green dragon]}", inputs=(CAT, CAT.model_copy(update={"prompt": "a cat"})))
    assert two.baseline == {"prompt": None}


def test_a_baseline_that_is_left_out_is_not_tried() -> None:
    assert study("{strength: [0.5, 1]}", rest="exclude: [{strength: 1}]").first == []


@pytest.mark.parametrize(
    ("strategy", "settings", "held"),
    [
        ("grid", {"guidance_scale": 5.0, "strength": 0.5}, True),
        ("grid", {"guidance_scale": 7.0, "strength": 0.5}, False),  # a value that left
        ("refine, trials: 50", {"guidance_scale": 7.0, "strength": 0.5}, True),  # or one that refining led to
        ("refine, trials: 50", {"guidance_scale": 10.0, "strength": 0.5}, False),
        ("grid", {"guidance_scale": 5.0, "strength": 0.9}, False),  # excluded since
        ("grid", {"guidance_scale": 11.0, "strength": 1.0}, True),  # enqueued
        ("grid", {"guidance_scale": 5.0}, False),
    ],
)
def test_what_a_study_still_holds_of_an_earlier_session(
    strategy: str, settings: Settings, held: bool
) -> None:
    made = study(
        "{guidance_scale: [3, 5, 9], strength: [0.5, 0.9]}",
        rest="exclude: [{strength: 0.9}]\n"
        f"search: {{strategy: {strategy}, enqueue: [{{guidance_scale: 11}}]}}",
    )
    assert made.holds(settings) is held


def test_a_value_that_nothing_depends_on_may_have_left() -> None:
    made = study("{strength: {values: [0.3, 0.5], when: {guidance_scale: 9}}, guidance_scale: [5, 9]}")
    assert made.holds({"strength": 0.4, "guidance_scale": 5})
    assert not made.holds({"strength": 0.4, "guidance_scale": 9})


def test_pixel_scorers_judge_where_their_scores_count() -> None:
    assert study().scorers == {"clip_score": SCORER}
    bounded = study(rest="constraints: [preservation_psnr >= 25, gpu_seconds <= 9]")
    assert bounded.measures == {"preservation_psnr", "gpu_seconds"}
    assert {name: each.id for name, each in bounded.scorers.items()} == {
        "clip_score": SCORER.id,
        "preservation_psnr": "preservation_psnr/pixels@1",
    }
    request = bounded.request({}, bounded.instances[0])
    assert [each.text_of(request) for each in bounded.scorers.values()] == [request.score_text, ""]


def test_validation_has_fresh_seeds_of_its_own() -> None:
    pinned = study(rest="search: {validate: 5}")
    seeds = [instance.seed for instance in pinned.validation_instances]
    assert len(set(seeds)) == 5
    more = study(rest="search: {validate: 7}", seeds=f"[7, 11, {seeds[2]}]")
    kept = [instance.seed for instance in more.validation_instances]
    assert len(set(kept)) == 7
    assert seeds[2] not in kept
    assert pinned.instance("validate", 3).seed == seeds[3]
    assert pinned.instance("search", 1).seed == 11


@pytest.mark.parametrize(
    ("rules", "search", "idle"),
    [
        ("[{guidance_scale: 7.5}]", "grid", []),
        ("[{guidance_scale: 3}, {strength: 0.5}]", "grid", [0]),
        ("[{guidance_scale: 5}]", "grid", []),  # the model's own
        ("[{guidance_scale: {low: 2, high: 4}}, {strength: {low: 0, high: 0.4}}]", "grid", [0, 1]),
        ("[{guidance_scale: [1, 99], strength: [0.51]}]", "grid", []),
        ("[{guidance_scale: 1, strength: 0.7}]", "grid", [0]),
        ("[{guidance_scale: 3}]", "refine, trials: 99", []),  # which may come to 3
    ],
)
def test_rules_that_leave_out_nothing(rules: str, search: str, idle: list[int]) -> None:
    made = study(rest=f"exclude: {rules}\nsearch: {{strategy: {search}}}")
    assert idle_exclusions(made) == idle


def test_a_rule_for_what_a_condition_never_lets_be_leaves_out_nothing() -> None:
    space = "{strength: [0.5, 1], guidance_scale: {values: [2, 3], when: {strength: 1}}}"
    rules = "[{strength: 0.5, guidance_scale: 2}, {strength: 1, guidance_scale: 2}]"
    assert idle_exclusions(study(space, rest=f"exclude: {rules}")) == [0]


ONE = Instance(0, "a picture", "a picture", 7)
FAMILIES = st.sampled_from([INPAINTING, TEXT_TO_IMAGE, SDXL, EMBEDDED, UNKNOWN])
SETTINGS = st.fixed_dictionaries(
    {
        "guidance_scale": st.sampled_from([0, 0.5, 1, 1.0, 1.5, 7, 7.0, 7.5]),
        "negative_prompt": st.sampled_from([None, "", "cartoon"]),
        "num_inference_steps": st.sampled_from([10, 30]),
    },
    optional={"strength": st.sampled_from([0.5, 0.51, 1, 1.0]), "eta": st.sampled_from([0, 0.0, 0.5])},
)


def drawn(settings: Settings, model: ModelDescription, instance: Instance = ONE) -> str:
    return study(space="{guidance_scale: [5, 6]}", model=model).request(settings, instance).image_id


@law
@given(SETTINGS, FAMILIES, st.randoms(use_true_random=False))
def test_an_image_id_knows_no_order_of_keys_and_no_form_of_a_number(
    settings: dict[str, Any], family: ModelDescription, chance: random.Random
) -> None:
    def told_otherwise(name: str) -> Any:
        value = settings[name]
        if name not in (
            "guidance_scale",
            "strength",
            "eta",
        ):  # a study file makes whole numbers of the others
            return value
        return float(value) if isinstance(value, int) else int(value) if value.is_integer() else value

    names = sorted(settings, key=lambda _: chance.random())
    assert drawn({name: told_otherwise(name) for name in names}, family) == drawn(settings, family)


@law
@given(SETTINGS, SETTINGS, FAMILIES)
def test_two_settings_share_an_image_id_exactly_where_they_are_one_candidate(
    one: dict[str, Any], other: dict[str, Any], family: ModelDescription
) -> None:
    judge = study(space="{guidance_scale: [5, 6]}", model=family).judge
    same = judge.candidate(one) == judge.candidate(other)
    assert (drawn(one, family) == drawn(other, family)) is same


@law
@given(st.text("aeéèñüÅﬁ가한①\u0301\u0308 ", min_size=1), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_normal_forms_of_a_prompt_are_kept_apart_from_the_study_file_on(text: str, form: str) -> None:
    """A tokenizer reads them as different texts, so they draw different pictures."""
    other = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    assume(text.strip() and other.strip() and other != text)
    ids = set()
    for prompt in (text, other):
        inputs = f"inputs: [{{prompt: {json.dumps(prompt)}}}]"
        read = parse(f"study: s\nmodel: toyworld\n{inputs}\nspace: {{eta: [0, 1]}}\n", "study.yaml")
        assert read.inputs[0].prompt == prompt
        ids.add(drawn({}, TEXT_TO_IMAGE, Instance(0, prompt, prompt, 7)))
        ids.add(drawn({"guidance_scale": 7.5, "negative_prompt": prompt}, TEXT_TO_IMAGE))
    assert len(ids) == 4
