import copy
import json
import math
import random
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import study_file
from search_spaces.domains import Choices, Domain, FloatRange, IntRange, contains
from search_spaces.errors import InputError
from search_spaces.models import REGISTRY
from search_spaces.objectives import parse_constraint
from search_spaces.study_file import KEYWORDS, StudySpec, dump, json_schema, load, parse
from tests.search_spaces.examples import law
from tests.unending_files import unending

EXAMPLE = Path(__file__).parents[2] / "studies" / "cat-to-dragon.yaml"

TEXT = """\
# a comment, and a blank line

study: cat-to-dragon
model: toyworld   # another
task: inpainting
inputs:
  - {image: cat.png, mask: cat-mask.png, prompt: a green dragon,
     score_text: a realistic green dragon}
  - image: dog.png
    mask: dog-mask.png
    prompt: >-
      a blue
      dragon
seeds: [7, 11]
settings: {scheduler: DDIMScheduler, eta: 0, clip_skip: null}
space:
  num_inference_steps: [10, 3, 30]
  guidance_scale: {low: 1, high: 15}
  strength: {low: 0.4, high: 1, step: 0.2}
  negative_prompt: ["", cartoon, null]
search: {strategy: tpe, trials: 40, seed: 5}
objective: clip_score
clip_model: openai/clip-vit-base-patch32
comet: {project: cat, tags: [a, b], mode: off}
dtype: float16
"""


def document() -> dict[str, Any]:
    """The smallest study file with a place for everything."""
    return {
        "study": "s",
        "model": "toyworld",
        "inputs": [{"prompt": "a green dragon", "score_text": "a dragon"}],
        "settings": {},
        "space": {"guidance_scale": [1, 3]},
        "search": {},
        "comet": {},
        "engine": {},
    }


def changed(path: str, value: object) -> dict[str, Any]:
    """The document with one place, such as `inputs.0.prompt`, set to a value."""
    made: Any = document()
    *parents, last = path.split(".")
    place = made
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return dict(made)


def refusal(text: str) -> str:
    """The sentence with which a study file is refused."""
    with pytest.raises(InputError) as caught:
        parse(text, "bad.yaml")
    sentence = str(caught.value)
    assert is_one_sentence(sentence), sentence
    # no trail of the parser's own troubles
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return sentence


def is_one_sentence(message: str) -> bool:
    return (
        message.startswith("bad.yaml") and message.isprintable() and len(message) < 500 and message[-1] != "."
    )


# What a valid file says


def test_a_study_file_is_read_as_it_says() -> None:
    spec = parse(TEXT, "study.yaml")
    assert spec.study == "cat-to-dragon"
    assert (spec.model, spec.task, spec.dtype) == ("toyworld", "inpainting", "float16")
    assert [(i.image, i.mask, i.prompt, i.score_text) for i in spec.inputs] == [
        ("cat.png", "cat-mask.png", "a green dragon", "a realistic green dragon"),
        ("dog.png", "dog-mask.png", "a blue dragon", None),
    ]
    assert spec.seed_list == (7, 11)
    assert spec.settings == {"scheduler": "DDIMScheduler", "eta": 0.0, "clip_skip": None}
    assert spec.space == {
        "num_inference_steps": Choices(values=(10, 3, 30)),
        "guidance_scale": FloatRange(low=1, high=15),
        "strength": FloatRange(low=0.4, high=1, step=0.2),
        "negative_prompt": Choices(values=("", "cartoon", None)),
    }
    assert list(spec.space) == ["num_inference_steps", "guidance_scale", "strength", "negative_prompt"]
    assert (spec.search.strategy, spec.search.trials, spec.search.seed) == ("tpe", 40, 5)
    assert (spec.comet.project, spec.comet.tags, spec.comet.mode) == ("cat", ["a", "b"], "off")
    assert (spec.objective, spec.clip_model) == ("clip_score", "openai/clip-vit-base-patch32")


def test_what_is_left_out_has_a_default() -> None:
    spec = parse("study: s\nmodel: m\ninputs: [{prompt: p}]\nspace: {strength: [1]}\n", "study.yaml")
    assert spec.seed_list == (0, 1, 2, 3)
    assert (spec.search.strategy, spec.search.trials, spec.search.seed) == ("grid", None, 0)
    assert (spec.objective, spec.clip_model, spec.dtype, spec.task) == ("clip_score", None, "auto", None)
    assert (spec.comet.mode, spec.comet.project, spec.settings) == ("auto", None, {})


def test_the_bundled_example_is_a_study_file() -> None:
    spec = load(EXAMPLE)
    assert spec.study == "cat-to-dragon"
    assert {"num_inference_steps", "guidance_scale", "strength", "negative_prompt"} <= set(spec.space)


@pytest.mark.parametrize(
    ("raw", "domain"),
    [
        ("guidance_scale: [7, 7.5]", Choices(values=(7.0, 7.5))),
        ("num_inference_steps: [30.0]", Choices(values=(30,))),
        ("num_inference_steps: {low: 1, high: 50, log: true}", IntRange(low=1, high=50, log=True)),
        ("num_inference_steps: {low: 5, high: 50, step: 5}", IntRange(low=5, high=50, step=5)),
        ("guidance_scale: {low: 1, high: 20, log: true}", FloatRange(low=1, high=20, log=True)),
        ("guidance_scale: {low: 1, high: 9, step: 2}", FloatRange(low=1, high=9, step=2)),
        ("padding_mask_crop: {low: 0, high: 64, step: 32}", IntRange(low=0, high=64, step=32)),
        ("frobnication: {low: 0, high: 1.5}", FloatRange(low=0, high=1.5)),
        ("frobnication: [1, true, 1.5, a, null]", Choices(values=(1, True, 1.5, "a", None))),
        ("frobnication: [9223372036854775807]", Choices(values=(2**63 - 1,))),
        # plain scalars as YAML 1.2 and editors read them
        ("guidance_scale: [1e-3, 2E+0, .5, 5., 010]", Choices(values=(0.001, 2.0, 0.5, 5.0, 10.0))),
        ("negative_prompt: [no, yes, on, off, 2024-01-01, 1:30]",
         Choices(values=("no", "yes", "on", "off", "2024-01-01", "1:30"))),
        ("negative_prompt: ['true', \"5\", ~, !!str 7]", Choices(values=("true", "5", None, "7"))),
        ('negative_prompt: ["\\ud83d\\ude00 \\u00e9", 😀]', Choices(values=("😀 é", "😀"))),
    ],
)  # fmt: skip
def test_domains(raw: str, domain: Domain) -> None:
    head = "study: s\nmodel: m\ninputs: [{prompt: p}]\nsearch: {strategy: tpe, trials: 3}\n"
    (parsed,) = parse(f"{head}space:\n  {raw}\n", "study.yaml").space.values()
    assert parsed == domain
    assert [type(v) for v in parsed.points() or ()] == [type(v) for v in domain.points() or ()]


def test_an_alias_may_stand_for_a_value() -> None:
    text = "study: &s s\nmodel: *s\ninputs: [{prompt: &p a dragon, score_text: *p}]\nspace: {eta: [0]}\n"
    spec = parse(text, "study.yaml")
    assert (spec.model, spec.inputs[0].score_text) == ("s", "a dragon")


# Bad input


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        # unknown keys, with the nearest known one
        ("sead", 4, ["unknown key 'sead'", "did you mean 'seeds'?"]),
        ("frobnicate", 4, ["unknown key 'frobnicate'", "known are", "clip_model", "space"]),
        ("a/b", 4, ["unknown key 'a/b'; known are"]),
        ("inputs.0.imgae", "a", ["unknown key 'imgae' in inputs[0]", "did you mean 'image'?"]),
        ("search.stratgy", "tpe", ["unknown key 'stratgy' in search", "did you mean 'strategy'?"]),
        ("comet.api_key", "x", ["unknown key 'api_key' in comet", "known are", "workspace"]),
        ("space.guidance_scale", {"low": 1, "hihg": 2}, ["space.guidance_scale", "'hihg'", "did you mean 'high'?"]),
        ("space.guidance scale", [1], ["space.'guidance scale'", "did you mean 'guidance_scale'?"]),
        ("settings.a\nb", 1, ["settings.'a\\nb'"]),
        # wrong types
        ("study", 5, ["study: 5", "is not a text"]),
        ("study", None, ["study: None", "is not a text"]),
        ("model", ["a"], ["model: ['a']", "is not a text"]),
        ("model", "", ["model: ''", "is empty"]),
        ("inputs", {}, ["inputs: {}", "is not a list"]),
        ("inputs", [], ["inputs: []", "is empty; at least 1 is needed"]),
        ("inputs", ["a.png"], ["inputs[0]: 'a.png'", "is not a mapping"]),
        ("inputs", [{}], ["'inputs[0].prompt' is missing"]),
        ("inputs.0.prompt", "", ["inputs[0].prompt: ''", "is empty"]),
        ("inputs.0.prompt", False, ["inputs[0].prompt: False", "is not a text"]),
        ("inputs.0.score_text", "", ["inputs[0].score_text", "is empty"]),
        ("settings", None, ["settings: None", "is not a mapping"]),
        ("settings", [1], ["settings: [1]", "is not a mapping"]),
        ("space", [1], ["space: [1]", "is not a mapping"]),
        ("search", "grid", ["search: 'grid'", "is not a mapping"]),
        ("comet", None, ["comet: None", "is not a mapping"]),
        ("comet.tags", "a", ["comet.tags: 'a'", "is not a list"]),
        ("comet.tags", [1], ["comet.tags[0]: 1", "is not a text"]),
        ("settings.num_inference_steps", "30", ["settings.num_inference_steps: '30'", "is not a whole number"]),
        ("settings.num_inference_steps", True, ["settings.num_inference_steps: True", "is not a whole number"]),
        ("settings.num_inference_steps", 2.5, ["settings.num_inference_steps: 2.5", "is not a whole number"]),
        ("settings.num_inference_steps", None, ["settings.num_inference_steps: None", "is not a whole number"]),
        ("settings.guidance_scale", "strong", ["settings.guidance_scale: 'strong'", "is not a number"]),
        ("settings.scheduler", 3, ["settings.scheduler: 3", "is not a text"]),
        ("settings.frobnication", [1], ["settings.frobnication: [1]", "is not a text, number, true, false or null"]),
        ("space.negative_prompt", [True], ["space.negative_prompt: True", "is not a text", "in quotes"]),
        ("space.negative_prompt", [5], ["space.negative_prompt: 5", "is not a text", "in quotes"]),
        ("space.guidance_scale", 7.5, ["space.guidance_scale: 7.5", "neither a list", "belongs under 'settings'"]),
        ("space.guidance_scale", None, ["space.guidance_scale: None", "neither a list of values nor a range"]),
        ("space.guidance_scale", [[1]], ["space.guidance_scale: [1]", "is not a number"]),
        # out of range
        ("settings.strength", 1.01, ["settings.strength: 1.01", "above 1, the most"]),
        ("space.strength", [-0.1], ["space.strength: -0.1", "below 0, the least"]),
        ("space.strength", {"low": 0.5, "high": 2}, ["space.strength.high: 2", "above 1"]),
        ("space.num_inference_steps", [3, 0], ["space.num_inference_steps: 0", "below 1"]),
        ("space.num_inference_steps", [-3], ["space.num_inference_steps: -3", "below 1"]),
        ("space.num_inference_steps", [10**30], ["space.num_inference_steps: 1000", "too large"]),
        ("space.num_inference_steps", [100_000], ["space.num_inference_steps: 100000", "above 1000"]),
        ("settings.clip_skip", 99, ["settings.clip_skip: 99", "above 31"]),
        ("settings.width", 10**9, ["settings.width: 1000000000", "above 16384"]),
        ("settings.guidance_scale", 10**400, ["settings.guidance_scale: 1000", "too large", "64 bits"]),
        ("settings.guidance_scale", -1, ["settings.guidance_scale: -1", "below 0"]),
        ("settings.frobnication", 2**63, ["settings.frobnication: 9223372036854775808", "too large"]),
        ("search.seed", -1, ["search.seed: -1", "below 0"]),
        ("search.seed", 2**31, ["search.seed: 2147483648", "must be below 2147483648"]),
        ("search", {"strategy": "tpe", "trials": 0}, ["search.trials: 0", "below 1"]),
        ("search", {"strategy": "tpe", "trials": 2.5}, ["search.trials: 2.5", "is not a whole number"]),
        # not finite
        ("settings.guidance_scale", math.nan, ["settings.guidance_scale: nan", "not a finite number"]),
        ("space.guidance_scale", [math.inf], ["space.guidance_scale: inf", "not a finite number"]),
        ("space.num_inference_steps", [math.nan], ["space.num_inference_steps: nan", "not a finite number"]),
        ("space.num_inference_steps", {"low": 1, "high": math.inf}, ["num_inference_steps.high: inf", "finite"]),
        ("space.guidance_scale", {"low": math.nan, "high": 2}, ["space.guidance_scale.low: nan", "finite"]),
        ("space.frobnication", [-math.inf], ["space.frobnication: -inf", "not a finite number"]),
        # duplicates
        ("space.guidance_scale", [7, 3, 7.0], ["space.guidance_scale: 7.0", "listed twice"]),
        ("space.negative_prompt", ["", "a", ""], ["space.negative_prompt: ''", "listed twice"]),
        ("space.negative_prompt", [None, None], ["space.negative_prompt: None", "listed twice"]),
        ("space.frobnication", [7, "7", 7.0], ["space.frobnication: 7.0", "listed twice"]),
        ("seeds", [3, 1, 3], ["seeds: 3", "listed twice"]),
        # empty
        ("space", {}, ["space is empty", "at least one setting"]),
        ("space.guidance_scale", [], ["space.guidance_scale", "the list is empty"]),
        # ranges
        ("space.guidance_scale", {}, ["space.guidance_scale", "low is missing", "both low and high"]),
        ("space.guidance_scale", {"low": 1}, ["space.guidance_scale", "high is missing"]),
        ("space.guidance_scale", {"low": 3, "high": 3}, ["space.guidance_scale", "low 3 must be below high 3"]),
        ("space.guidance_scale", {"low": 1, "high": 3, "step": 0}, ["guidance_scale.step: 0", "above 0"]),
        ("space.guidance_scale", {"low": 1, "high": 3, "step": None}, ["guidance_scale.step: None", "not a number"]),
        ("space.guidance_scale", {"low": 1, "high": 3, "step": 1e-9}, ["space.guidance_scale", "100,000 points"]),
        ("space.frobnication", {"low": 0, "high": 10**9}, ["space.frobnication", "100,000 points"]),
        ("space.frobnication", {"low": -1e308, "high": 1e308, "step": 1}, ["space.frobnication", "points"]),
        ("space.num_inference_steps", {"low": 1, "high": 9, "step": 0.5}, ["steps.step: 0.5", "whole number"]),
        ("space.guidance_scale", {"low": 0, "high": 3, "log": True}, ["guidance_scale: log needs low above 0"]),
        ("space.guidance_scale", {"low": 1, "high": 3, "step": 1, "log": True}, ["log needs", "no step"]),
        ("space.guidance_scale", {"low": 1, "high": 3, "log": "yes"}, ["guidance_scale.log: 'yes'", "true or false"]),
        ("space.guidance_scale", {"low": "1", "high": 3}, ["space.guidance_scale.low: '1'", "not a number"]),
        ("space.negative_prompt", {"low": 1, "high": 3}, ["space.negative_prompt", "takes texts", "list them"]),
        # strategies and the rest of the study
        ("search.strategy", "gird", ["search.strategy: unknown strategy 'gird'", "did you mean 'grid'?"]),
        ("search.strategy", "zzz", ["unknown strategy 'zzz'", "known are cmaes, coordinate", "tpe"]),
        ("search.strategy", 3, ["search.strategy: 3", "is not a text"]),
        ("search", {"strategy": "tpe"}, ["search.trials is missing", "tpe", "such as 40"]),
        ("search", {"strategy": "refine"}, ["search.trials is missing", "refine"]),
        ("search", {"strategy": "optuna.samplers.QMCSampler"}, ["search.trials is missing"]),
        ("search", {"strategy": "coordinate", "trials": 5}, ["search.trials does not apply to coordinate", "grid"]),
        ("search", {"rounds": 2}, ["search.rounds does not apply to grid", "coordinate"]),
        ("search", {"options": {"a": 1}}, ["search.options does not apply to grid", "a sampler"]),
        ("search", {"early_look": "auto"}, ["search.early_look does not apply to grid", "halving"]),
        ("search", {"strategy": "halving", "keep": 1}, ["search.keep: 1", "must be below 1"]),
        ("search", {"strategy": "halving", "keep": 0.0}, ["search.keep: 0.0", "must be above 0"]),
        ("search", {"validate": -1}, ["search.validate: -1", "below 0"]),
        ("search", {"validat": 1}, ["unknown key 'validat' in search", "did you mean 'validate'?"]),
        ("search", {"enqueue": [{"strength": 2}]}, ["search.enqueue.strength: 2", "above 1"]),
        ("search", {"enqueue": [3]}, ["search.enqueue[0]: 3", "is not a mapping"]),
        ("engine", {"rows": "many"}, ["engine.rows: 'many' is neither auto nor a whole number from 1 to 4096"]),
        ("engine", {"rows": 0}, ["engine.rows: 0 is neither auto nor"]),
        ("budget", {"images": 0}, ["budget.images: 0", "below 1"]),
        ("budget", {"seconds": 0}, ["budget.seconds: 0", "must be above 0"]),
        ("budget", {"gpu_second": 5}, ["unknown key 'gpu_second' in budget", "did you mean 'gpu_seconds'?"]),
        ("budget", {"seconds": math.inf}, ["budget.seconds: inf", "not a finite number"]),
        ("budget", {"trials": 0}, ["budget.trials: 0", "not a whole number of 1 or more"]),
        ("budget", {"trials": True}, ["budget.trials: True", "not a whole number"]),
        ("objective", "preservation_psnr", ["objective: preservation_psnr alone", "objectives beside clip_score"]),
        (
            "constraints",
            ["preservation_psnr <= 20", "gpu_seconds <= 1", "preservation_psnr >= 25"],
            ["constraints: no mean keeps both preservation_psnr >= 25 and preservation_psnr <= 20"],
        ),
        ("objectives", [{"clip_score": "maximize"}], ["objectives: one alone", "'objective'"]),
        (
            "objectives",
            [{"clip_score": "maximize"}, {"gpu_second": "minimize"}],
            ["objectives[1]: unknown score 'gpu_second'; did you mean 'gpu_seconds'"],
        ),
        (
            "objectives",
            [{"clip_score": "maximise"}],
            ["objectives[0]: unknown direction of clip_score 'maximise'; did you mean 'maximize'"],
        ),
        ("objectives", [], ["objectives is empty", "clip_score alone"]),
        (
            "space.strength",
            {"values": [0.5], "when": {"scheduler": []}},
            ["space.strength.when.scheduler: the list is empty"],
        ),
        ("objectives", [{"clip_score": "maximize"}, {"clip_score": "maximize"}], ["listed twice"]),
        ("objectives", [{"clip_score": "minimize"}, {"gpu_seconds": "minimize"}], ["clip_score can only be max"]),
        (
            "objectives",
            [{"clip_score": "maximize"}, {"preservation_psnr": "minimize"}],
            ["preservation_psnr can only be maximized"],
        ),
        ("objectives", [{"clip_score": "maximize", "gpu_seconds": "minimize"}], ["objectives[0] names 2 scores"]),
        ("constraints", ["beauty >= 3"], ["constraints[0]", "unknown score 'beauty'", "clip_score"]),
        ("constraints", ["gpu_seconds < 3"], ["constraints[0]", "not a bound", "gpu_seconds <= 2.5"]),
        ("constraints", [3], ["constraints[0]: 3", "not a text"]),
        ("exclude", [{}], ["exclude[0] is empty"]),
        ("exclude", [{"strength": [0.5]}, {"strength": {"low": 0.2}}], ["exclude[1].strength: high is missing"]),
        ("exclude", [{"strength": 3}], ["exclude[0].strength: 3", "above 1"]),
        ("exclude", [7], ["exclude[0]: 7", "is not a mapping"]),
        ("space.strength", {"values": []}, ["space.strength", "the list is empty"]),
        ("space.strength", {"values": [0.5], "low": 0.2}, ["space.strength: unknown key 'low' beside values"]),
        ("space.strength", {"values": [0.5], "when": {}}, ["space.strength.when: {}", "not a mapping"]),
        ("space.strength", {"values": [0.5], "when": {"strength": 1}}, ["strength.when", "depend on itself"]),
        ("space.strength", {"values": [0.5], "when": {"guidance_scale": "x"}}, ["guidance_scale: 'x'", "number"]),
        ("space.guidance_scale", {"low": 1, "high": 3}, ["space.guidance_scale", "grid needs a list", "tpe"]),
        ("space.num_inference_steps", {"low": 1, "high": 3, "log": True}, ["num_inference_steps", "grid needs"]),
        ("objective", "clip_scor", ["objective: unknown objective 'clip_scor'", "did you mean 'clip_score'?"]),
        ("objective", None, ["objective: unknown objective None", "known are clip_score"]),
        ("task", "inpaint", ["task: unknown task 'inpaint'", "did you mean 'inpainting'?"]),
        ("dtype", "half", ["dtype: unknown dtype 'half'", "known are auto"]),
        ("comet.mode", "onlin", ["comet.mode: unknown mode 'onlin'", "did you mean 'online'?"]),
        ("comet.images", "best", ["comet.images: 'best' is neither all, best_per_trial nor {top_k: N}"]),
        ("comet.images", {"top_k": 0}, ["comet.images: {'top_k': 0} is neither all"]),
        ("comet.images", {"top": 3}, ["comet.images: {'top': 3} is neither all"]),
        ("comet.workspace", " ", ["comet.workspace: ' ' is empty or holds characters"]),
        ("comet.project", "", ["comet.project: '' is empty"]),
        ("comet.name", "a\nb", ["comet.name: 'a\\nb' is empty or holds characters"]),
        ("comet.tags", ["a", ""], ["comet.tags[1]: '' is empty"]),
        ("comet.api_key", "x", ["unknown key 'api_key' in comet"]),
        ("comet.log_code", "perhaps", ["comet.log_code: 'perhaps'"]),
        ("settings.guidance_scale", 3, ["guidance_scale stands under both 'settings' and 'space'"]),
        ("space.prompt", ["a", "b"], None),
        ("study", "../elsewhere", ["study: '../elsewhere'", "letters, digits"]),
        ("study", ".hidden", ["study: '.hidden'", "begins with a letter or digit"]),
        ("study", "a" * 200, ["study: 'aaaa", "letters, digits"]),
        ("study", "a\n", ["study: 'a\\n'", "letters, digits"]),
        # seeds
        ("seeds", 0, ["seeds: 0", "at least one"]),
        ("seeds", -4, ["seeds: -4", "at least one"]),
        ("seeds", [], ["seeds: []", "at least one"]),
        ("seeds", 10**12, ["seeds: 1000000000000", "more than the 100,000"]),
        ("seeds", True, ["seeds: True", "neither a count nor a list of whole numbers"]),
        ("seeds", None, ["seeds: None", "neither a count nor a list of whole numbers"]),
        ("seeds", 1.5, ["seeds: 1.5", "neither a count nor a list of whole numbers"]),
        ("seeds", [7, 7.0], ["seeds: [7, 7.0]", "neither a count nor a list of whole numbers"]),
        ("seeds", ["a"], ["seeds: ['a']", "neither a count nor a list of whole numbers"]),
        ("seeds", [0, -1], ["seeds: -1", "between 0 and 2^63 - 1"]),
        ("seeds", [2**63], ["seeds: 9223372036854775808", "between 0 and 2^63 - 1"]),
    ],
)  # fmt: skip
def test_bad_values(path: str, value: object, words: list[str] | None) -> None:
    text = yaml.safe_dump(changed(path, value), allow_unicode=True)
    if words is None:  # a good neighbour of a bad one
        parse(text, "good.yaml")
        return
    sentence = refusal(text)
    assert sentence.startswith("bad.yaml: ")
    for word in words:
        assert word in sentence


def test_prompts_may_be_swept_where_one_text_judges_them_all() -> None:
    swept = changed("space.prompt", ["a dragon", "a green dragon"])
    parse(yaml.safe_dump(swept), "good.yaml")
    del swept["inputs"][0]["score_text"]
    sentence = refusal(yaml.safe_dump(swept))
    assert "space.prompt" in sentence
    assert "score_text" in sentence


@pytest.mark.parametrize("key", ["study", "model", "inputs", "space"])
def test_missing_keys_are_named(key: str) -> None:
    lacking = document()
    del lacking[key]
    assert refusal(yaml.safe_dump(lacking)) == f"bad.yaml: the key {key!r} is missing"


def test_a_key_with_a_dot_is_named_whole() -> None:
    odd = document() | {"a.b": 1}
    assert refusal(yaml.safe_dump(odd)).startswith("bad.yaml: unknown key 'a.b'; known are")


def test_a_misspelt_key_is_named_rather_than_the_missing_one() -> None:
    misspelt = document()
    misspelt["modle"] = misspelt.pop("model")
    assert refusal(yaml.safe_dump(misspelt)) == "bad.yaml: unknown key 'modle'; did you mean 'model'?"


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def laughs(levels: int) -> str:
    """A billion laughs: each line ten aliases of the one before."""
    lines = ["l0: &l0 [lol, lol]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + f"\nspace: {{guidance_scale: *l{levels - 1}}}\n"


def merges(levels: int) -> str:
    lines = ["m0: &m0 {a: 1}"]
    lines += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["must be a mapping", "it is empty"]),
        ("# nothing but a comment\n", ["must be a mapping", "it is empty"]),
        ("- a\n- b\n", ["must be a mapping with the keys study, model, inputs, space", "it is a list"]),
        ("a text", ["must be a mapping", "it is a text"]),
        ("5", ["must be a mapping", "it is a single value"]),
        ("a: [1, 2", ["not valid YAML at line 1, column", "expected"]),
        ("a: b: c", ["not valid YAML at line 1, column 5", "mapping values are not allowed here"]),
        ("a:\n\t- b", ["not valid YAML at line 2, column 1", "'\\t'"]),
        ("a: *nothing", ["not valid YAML at line 1", "undefined alias"]),
        ("a: 1\n---\nb: 2", ["not valid YAML at line 2", "another document"]),
        ("a: |\n  \x07", ["not valid YAML", "line 2", "control character 0x7"]),
        ("a: '\ud800'", ["not valid YAML", "control character 0xd800"]),
        ("%YAML 3.0\n---\na: 1", ["not valid YAML"]),
        ("study: a\nmodel: m\nstudy: b", ["line 3: the key 'study' is given twice"]),
        ("space:\n  eta: [0]\n  eta: [1]", ["line 3: the key 'eta' is given twice"]),
        ("study: a\n'study': b", ["line 2: the key 'study' is given twice"]),
        ("study: a\n5: b", ["line 2: the key 5 is not a text"]),
        ("space: {true: [1]}", ["line 1: the key True is not a text"]),
        ("space: {1: [1], '1': [2]}", ["line 1: the key 1 is not a text"]),
        ("? [a, b]\n: 1", ["line 1: the key ['a', 'b'] is not a text"]),
        ("? \n: 1", ["line 1: the key None is not a text"]),
        ("a: !!int b", ["line 1: 'b' is not of the type int"]),
        ("a: !!bool b", ["line 1: 'b' is not of the type bool"]),
        ("a: !!timestamp b", ["line 1: 'b' is not of the type timestamp"]),
        ("a: !!binary b", ["line 1: 'b' is not of the type binary"]),
        ("a: !!python/object/apply:os.system [id]", ["line 1: the tag 'python/object/apply:os.system'"]),
        ("a: !!python/name:os.system", ["line 1: ''", "python/name:os.system"]),
        ("a: !mine {b: 1}", ["line 1: the tag '!mine' has no meaning"]),
        ("a: !!set {b}", ["line 1: the tag 'set' has no meaning"]),
        ('a: "\\ud800"', ["line 1: '\\ud800' is not of the type str"]),
        ("a: 1" + "0" * 5000, ["line 1: '1000", "is not of the type int"]),
        ("a: " + "9" * 5000 + "e" + "9" * 5000, ["unknown key 'a'"]),
        ("a: &a [*a]", ["line 1: an alias stands for this list or mapping"]),
        ("space: &a {guidance_scale: *a}", ["line 1: an alias stands for this list or mapping"]),
        ("a: &a {b: 1}\nspace:\n  <<: *a", ["line 1: an alias stands for this list or mapping"]),
        ("study: s\nmodel: m\ninputs: [{prompt: p}]\nspace:\n  <<: {eta: [0]}", ["space.'<<'"]),
        (laughs(9), ["an alias stands for this list or mapping"]),
        (merges(9), ["an alias stands for this list or mapping"]),
        ("a: " + lists(200), ["unknown key 'a'"]),
        ("a: " + lists(5000), ["nested too deeply"]),
        ("a: " + "[" * 100_000, ["nested too deeply"]),
        ("- " * 5000 + "a", ["nested too deeply"]),
        ("{a: " * 5000, ["nested too deeply"]),
    ],
)  # fmt: skip
def test_bad_yaml(text: str, words: list[str]) -> None:
    sentence = refusal(text)
    for word in words:
        assert word in sentence


def test_a_long_value_is_shown_in_part() -> None:
    sentence = refusal(yaml.safe_dump(changed("settings.guidance_scale", "x" * 5000)))
    assert "xxx…" in sentence
    assert len(sentence) < 200
    assert len(refusal(yaml.safe_dump(changed("y" * 5000, 1)))) < 300
    assert len(refusal(yaml.safe_dump(changed("seeds", ["z"] * 500)))) < 200


# Files


def test_a_file_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert load(path) == parse(TEXT, "study.yaml")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "there is no study file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes("study: é".encode("latin-1")), "is not UTF-8 text"),
        (lambda path: path.write_bytes(TEXT.encode("utf-16")), "is not UTF-8 text"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00"), "is not UTF-8 text"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_text("sead: 1"), "unknown key 'sead'"),
    ],
)
def test_bad_files(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "bad.yaml"
    make(path)
    with pytest.raises(InputError) as caught:
        load(path)
    sentence = str(caught.value)
    assert words in sentence
    assert str(path) in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop", "huge"])
def test_what_could_be_waited_for_or_never_ends_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    with unending(tmp_path, kind) as (path, words), pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} cannot be read: {words}")


# Whatever is written: a spec or a sentence

texts = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["", "tpe", "grid", "cartoon", "guidance_scale", "1e400", "off", "=", "<<", "a\nb", "!!int", "&a", "*a"]
)
numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 10**400, 1e308, 5e-324, -0.0, 0.1]),
    st.floats(),
)
leaves = st.none() | st.booleans() | numbers | texts
ranges = st.dictionaries(st.sampled_from(["low", "high", "step", "log"]), numbers | st.booleans(), max_size=4)
anything = st.recursive(
    leaves | ranges,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def outcome(text: str) -> StudySpec | None:
    """The spec, or None where the file is refused as it should be; whatever else happens is a failure."""
    try:
        return parse(text, "bad.yaml")
    except InputError as error:
        sentence = str(error)
    assert is_one_sentence(sentence), sentence
    return None


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid document with a few places replaced, removed, renamed or added to."""
    made = yaml.safe_load(TEXT.replace("mode: off", "mode: 'off'"))
    assert isinstance(made, dict)
    for _ in range(draw(st.integers(1, 3))):
        choices = [place for place in places(made) if place]
        if not choices:
            break
        *parents, last = draw(st.sampled_from(choices))
        place: Any = made
        for key in parents:
            place = place[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"])):
            case "remove":
                del place[last]
            case "rename" if isinstance(place, dict):
                place[draw(texts | st.sampled_from([*StudySpec.model_fields, *KEYWORDS]))] = place.pop(last)
            case "add" if isinstance(place, dict):
                place[draw(texts | st.sampled_from([*StudySpec.model_fields, *KEYWORDS]))] = draw(anything)
            case "add":
                place.append(draw(anything))
            case _:
                place[last] = draw(anything)
    return made


@given(mutated())
@law
def test_a_mutated_study_is_a_spec_or_a_sentence(made: dict[str, Any]) -> None:
    outcome(yaml.dump(made))


likely: Mapping[str, st.SearchStrategy[Any]] = {
    "int": st.sampled_from([8, 16, 30.0, 1000, 0]),
    "float": st.sampled_from([0, 0.5, 1.0, 7, 1e-3]),
    "str": st.sampled_from(["", "cartoon", "7", None]),
}
bounds = st.sampled_from([0, 1, 2, 0.5, 1.0, 16, 100])
likely_ranges = st.fixed_dictionaries(
    {"low": bounds, "high": bounds}, optional={"step": bounds, "log": st.booleans()}
)
likely_settings = st.fixed_dictionaries(
    {},
    optional={name: likely[KEYWORDS[name].kind] for name in ("width", "eta", "negative_prompt", "clip_skip")},
)
likely_spaces = st.fixed_dictionaries(
    {"guidance_scale": st.lists(likely["float"], min_size=1, max_size=2, unique=True) | likely_ranges},
    optional={
        name: st.lists(likely[keyword.kind], min_size=1, max_size=2, unique=True)
        for name, keyword in KEYWORDS.items()
        if name not in ("width", "eta", "negative_prompt", "clip_skip", "guidance_scale")
    }
    | {"frobnication": st.lists(leaves, max_size=2) | likely_ranges},
)
likely_studies = st.fixed_dictionaries(
    {
        "study": st.sampled_from(["s", "a.b", "1-2_3"]),
        "model": st.just("toyworld"),
        "inputs": st.just([{"prompt": "p", "score_text": "t"}]),
        "space": likely_spaces,
    },
    optional={
        "settings": likely_settings,
        "seeds": st.sampled_from([1, 5, [7], [1, 2**62]]),
        "search": st.sampled_from([{"strategy": "tpe", "trials": 3}, {"strategy": "grid", "seed": 2}]),
        "comet": st.sampled_from([{"mode": "off"}, {"tags": []}, {"images": {"top_k": 5}}]),
        "task": st.sampled_from([None, "inpainting"]),
    },
)


@given(mutated() | likely_studies)
@law
def test_what_the_parser_takes_an_editor_takes(made: dict[str, Any]) -> None:
    if outcome(json.dumps(made)) is not None:
        VALIDATOR.validate(made)


@given(anything)
@law
def test_any_document_is_a_spec_or_a_sentence(value: object) -> None:
    outcome(yaml.dump(value))
    outcome(json.dumps(value, ensure_ascii=False))


@given(
    st.text(max_size=200)
    | st.text(string.printable, max_size=200)
    | st.text("&*!{}[]:,-?|>%@'\"# \n\tab1", max_size=60)
)
@law
def test_any_text_is_a_spec_or_a_sentence(text: str) -> None:
    outcome(text)
    outcome(f"study: s\nmodel: m\ninputs: [{{prompt: p}}]\nspace: {{guidance_scale: {text}}}")


@pytest.mark.parametrize("seed", range(100))
def test_a_file_with_slips_of_the_pen_is_a_spec_or_a_sentence(seed: int) -> None:
    chance, text = random.Random(seed), TEXT
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text))
        cut = chance.choice([0, 1, 1, 5])
        text = (
            text[:at]
            + chance.choice(["", "", ":", "[", "}", '"', " ", "\n", "&a", "*a", "-", "5"])
            + text[at + cut :]
        )
    outcome(text)


@given(texts)
@law
def test_a_text_written_as_json_is_the_same_text(written: str) -> None:
    made = changed("settings.negative_prompt", written)
    if any("\ud800" <= character <= "\udfff" for character in written):
        assert "is not of the type str" in refusal(json.dumps(made))
    else:
        assert parse(json.dumps(made), "study.yaml").settings["negative_prompt"] == written


# The JSON Schema


def test_the_schema_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    json.dumps(json_schema(), allow_nan=False)


def test_the_schema_takes_the_example() -> None:
    VALIDATOR.validate(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    VALIDATOR.validate(document())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sead", 4),
        ("study", "../elsewhere"),
        ("inputs", []),
        ("inputs.0.imgae", "a"),
        ("space", {}),
        ("space.guidance_scale", []),
        ("space.guidance_scale", [3, 3]),
        ("space.guidance_scale", 3),
        ("space.guidance_scale", {"low": 1}),
        ("space.guidance_scale", {"low": 1, "high": 2, "setp": 1}),
        ("space.strength", [2]),
        ("space.num_inference_steps", [0]),
        ("space.num_inference_steps", [2.5]),
        ("settings.negative_prompt", 5),
        ("settings.frobnication", [1]),
        ("search.strategy", "gird"),
        ("objective", "beauty"),
        ("task", "inpaint"),
        ("seeds", "many"),
        ("comet.mode", "on"),
        ("comet.images", "some"),
        ("comet.images", {"top_k": 0}),
    ],
)
def test_the_schema_refuses(path: str, value: object) -> None:
    bad = changed(path, value)
    assert not VALIDATOR.is_valid(bad)
    refusal(yaml.safe_dump(bad))


def test_the_schema_offers_what_is_known() -> None:
    properties = json_schema()["properties"]
    assert set(KEYWORDS) <= set(properties["settings"]["properties"])
    assert set(KEYWORDS) <= set(properties["space"]["properties"])
    assert set(REGISTRY) <= set(properties["model"]["examples"])
    for section in ("settings", "space"):
        for name, keyword in KEYWORDS.items():
            assert properties[section]["properties"][name]["description"] == keyword.meaning


def test_the_document_of_these_tests_is_valid() -> None:
    assert outcome(yaml.safe_dump(document())) is not None
    assert copy.deepcopy(document()) == document()


def test_conditions_and_exclusions_are_read_under_their_settings_types() -> None:
    spec = parse(
        """
study: s
model: toyworld
inputs: [{prompt: a dragon}]
space:
  scheduler: [DDIMScheduler, DPMSolverMultistepScheduler]
  use_karras_sigmas: {values: [true, false], when: {scheduler: DPMSolverMultistepScheduler}}
  eta: {low: 0, high: 1, step: 0.5, when: {scheduler: [DDIMScheduler], guidance_scale: 5}}
exclude:
  - {scheduler: DDIMScheduler, eta: {low: 0.4, high: 0.6}}
  - {eta: [1]}
settings: {guidance_scale: 5}
""",
        "study.yaml",
    )
    karras, eta = spec.space["use_karras_sigmas"], spec.space["eta"]
    assert karras.when == {"scheduler": ("DPMSolverMultistepScheduler",)}
    assert list(karras.points() or ()) == [True, False]
    assert eta.when == {"scheduler": ("DDIMScheduler",), "guidance_scale": (5.0,)}
    assert list(eta.points() or ()) == [0.0, 0.5, 1.0]
    assert spec.exclude[1] == {"eta": Choices(values=(1.0,))}
    assert contains(spec.exclude[0]["eta"], 0.5)
    assert not contains(spec.exclude[0]["eta"], 0.7)


def test_several_objectives_and_constraints_are_read() -> None:
    spec = StudySpec.model_validate(
        {
            **document(),
            "objectives": [
                {"clip_score": "maximize"},
                {"gpu_seconds": "minimize"},
                {"preservation_psnr": "maximize"},
            ],
            "constraints": ["gpu_seconds<=.5", "clip_score >= -1e1", "preservation_psnr >= 25"],
        }
    )
    assert spec.objectives[1:] == [{"gpu_seconds": "minimize"}, {"preservation_psnr": "maximize"}]
    assert [str(parse_constraint(text)) for text in spec.constraints] == [
        "gpu_seconds <= 0.5",
        "clip_score >= -10",
        "preservation_psnr >= 25",
    ]


@pytest.mark.parametrize("strategy", ["halving", "coordinate", "refine"])
def test_races_have_one_objective(strategy: str) -> None:
    search = {"strategy": strategy, **({"trials": 9} if strategy == "refine" else {})}
    both = [{"clip_score": "maximize"}, {"gpu_seconds": "minimize"}]
    for changes in ({"objectives": both}, {"constraints": ["gpu_seconds <= 1"]}):
        sentence = refusal(yaml.safe_dump({**document(), "search": search, **changes}))
        assert f"{strategy} races one objective" in sentence
        assert "use tpe or grid" in sentence


@pytest.mark.parametrize(
    "search", [{"strategy": "tpe"}, {"strategy": "grid"}, {"strategy": "refine", "trials": 9}, {}], ids=str
)
def test_a_budget_of_trials_is_the_search_s(search: dict[str, object]) -> None:
    said = {**document(), "search": search, "budget": {"trials": 9, "images": 40}}
    spec = parse(yaml.safe_dump(said), "study.yaml")
    assert (spec.search.trials, spec.budget.trials, spec.budget.images) == (9, 9, 40)
    jsonschema.validate(said, json_schema())


@pytest.mark.parametrize("section", [{}, {"budget": {"images": 40}}, {"budget": {"trials": None}}], ids=str)
def test_without_a_budget_of_trials_the_search_has_its_own(section: dict[str, object]) -> None:
    spec = parse(yaml.safe_dump({**document(), **section, "search": {"trials": 3}}), "study.yaml")
    assert spec.search.trials == 3
    assert parse(yaml.safe_dump({**document(), **section}), "study.yaml").search.trials is None


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"strategy": "tpe", "trials": 8}, "budget.trials is 9 and search.trials is 8, which mean the same"),
        ({"strategy": "coordinate"}, "budget.trials does not apply to coordinate"),
    ],
)
def test_a_budget_of_trials_that_the_search_cannot_have(search: dict[str, object], words: str) -> None:
    said = {**document(), "search": search, "budget": {"trials": 9}}
    with pytest.raises(InputError, match=words):
        parse(yaml.safe_dump(said), "study.yaml")


def test_trials_are_no_budget_that_is_used_up() -> None:
    spec = parse(yaml.safe_dump({**document(), "budget": {"trials": 9}}), "study.yaml")
    assert not spec.budget.is_set


def test_nothing_is_trusted_unless_named() -> None:
    assert StudySpec.model_validate(document()).trust == []
    spec = StudySpec.model_validate({**document(), "trust": ["pickles", "remote_code"]})
    assert spec.trust == ["pickles", "remote_code"]
    sentence = refusal(yaml.safe_dump({**document(), "trust": ["pickle"]}))
    assert "trust[0]: unknown entry 'pickle'; did you mean 'pickles'" in sentence


# Writing


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.text("0123456789.+-eE_:xob ~nulNaifyrstOo\"'#&*!%@`[]{},?|>=<\n\t\\\x85\u2028", max_size=8),
    st.text(" \na0", max_size=300),
)
"""Any text, those that look like numbers and the like, and those that are folded."""

PLAIN = st.recursive(
    st.one_of(TEXTS, st.integers(), st.floats(allow_nan=False), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXTS, inner)),
    max_leaves=10,
)


def typed(value: object) -> object:
    """A value with its types, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return [(key, typed(each)) for key, each in value.items()]
    return [typed(each) for each in value] if isinstance(value, list) else (type(value), repr(value))


@law
@given(st.dictionaries(TEXTS, PLAIN))
def test_what_is_written_is_read_back_by_our_dialect_and_the_older_one(made: dict[str, object]) -> None:
    text = dump(made)
    assert typed(study_file.document(text, "made")) == typed(made)
    assert typed(yaml.safe_load(text)) == typed(made)


@pytest.mark.parametrize(
    "text", ["09", "1e-3", "+.5", "1.5e3", "08", "off", "1:30", "2024-01-01", "~", "\x85"]
)
def test_a_text_that_a_dialect_takes_for_something_else_stays_a_text(text: str) -> None:
    assert (
        study_file.document(dump({text: [text]}), "made")
        == yaml.safe_load(dump({text: [text]}))
        == {text: [text]}
    )


def test_what_comes_twice_is_written_out() -> None:
    values = [1, 2]
    assert study_file.document(dump({"a": values, "b": values}), "made") == {"a": [1, 2], "b": [1, 2]}
