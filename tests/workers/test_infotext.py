"""What a picture says of itself: as web UIs write and count it, and as JSON."""

import json
import re

import pytest

from search_spaces.models import ModelDescription
from search_spaces.requests import Value
from tests.workers.helpers import a_request
from workers.infotext import SAMPLERS, Origin, document, parameters

SETTINGS: dict[str, Value] = {
    "num_inference_steps": 20,
    "scheduler": "EulerAncestralDiscreteScheduler",
    "guidance_scale": 7.5,
    "strength": 0.7,
    "negative_prompt": "cartoon",
    "eta": 0.0,
    "clip_skip": None,
}

MODEL = ModelDescription(
    name="runwayml/sd, 1.5",
    location="package:nowhere/model",
    revision="sha256:0123456789abcdef",
    task="text-to-image",
    pipeline="StableDiffusionPipeline",
    dtype="float16",
    keywords={},
    defaults_source="a test",
    scheduler="DPMSolverMultistepScheduler",
    schedulers=("DPMSolverMultistepScheduler",),
    scheduler_options={
        "DPMSolverMultistepScheduler": {
            "algorithm_type": "sde-dpmsolver++",
            "solver_order": 2,
            "use_karras_sigmas": False,
        }
    },
    size_multiple=8,
    guidance_embedded=False,
    diffusers="0.42.1",
)
ORIGIN = Origin(MODEL, {"clip_score": "clip_score/openai@1"})

# As the web UI reads its own line (AUTOMATIC1111's infotext_utils.py).
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read(text: str) -> dict[str, str]:
    """The pairs of the last line as the web UI reads them."""
    pairs = PAIR.findall(text.split("\n")[-1])
    return {name: json.loads(value) if value[:1] == '"' else value for name, value in pairs}


def test_parameters_are_written_as_the_web_uis_write_them() -> None:
    assert parameters(a_request(SETTINGS, seed=42), (64, 48)) == (
        "a green dragon\n"
        "Negative prompt: cartoon\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 64x48, "
        "Denoising strength: 0.7"
    )


def test_what_a_request_lacks_is_left_out_of_the_parameters_and_zeros_are_not() -> None:
    settings: dict[str, Value] = {
        "num_inference_steps": 1,
        "guidance_scale": 0.0,
        "negative_prompt": "",
        "clip_skip": 2,
    }
    assert parameters(a_request(settings), (8, 8)) == (
        "a green dragon\nSteps: 1, CFG scale: 0.0, Seed: 0, Size: 8x8, Clip skip: 3"
    )


@pytest.mark.parametrize(("ours", "theirs"), [(None, None), (0, "1"), (1, "2"), (2, "3")])
def test_clip_skip_is_counted_as_web_uis_count_it(ours: int | None, theirs: str | None) -> None:
    assert read(parameters(a_request({**SETTINGS, "clip_skip": ours}), (8, 8))).get("Clip skip") == theirs


@pytest.mark.parametrize(
    ("settings", "sampler", "schedule"),
    [
        ({"scheduler": "EulerAncestralDiscreteScheduler"}, "Euler a", None),
        ({"scheduler": "DPMSolverMultistepScheduler"}, "DPM++ 2M SDE", "Uniform"),
        ({"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}, "DPM++ 2M", "Karras"),
        ({"solver_order": 3, "use_exponential_sigmas": True}, "DPM++ 3M SDE", "Exponential"),
        ({"algorithm_type": "dpmsolver"}, "DPMSolverMultistep", "Uniform"),
        ({"algorithm_type": None, "use_karras_sigmas": None}, "DPM++ 2M SDE", "Uniform"),
        ({"scheduler": "SomebodysScheduler"}, "Somebodys", None),
    ],
)
def test_samplers_have_the_names_that_web_uis_know(
    settings: dict[str, Value], sampler: str, schedule: str | None
) -> None:
    """As the settings say, and where they do not, the model's own configuration."""
    request = a_request({"scheduler": "DPMSolverMultistepScheduler", **settings})
    found = read(parameters(request, (8, 8), ORIGIN))
    assert (found["Sampler"], found.get("Schedule type")) == (sampler, schedule)


def test_every_scheduler_that_has_a_name_is_one_of_diffusers() -> None:
    import diffusers

    assert [name for name in SAMPLERS if not hasattr(diffusers, name)] == []


def test_model_hash_and_score_are_told_and_read_back() -> None:
    found = read(parameters(a_request(SETTINGS), (8, 8), ORIGIN, {"clip_score": 31.25, "odd": float("nan")}))
    assert found["Model"] == "runwayml/sd, 1.5"
    assert found["Model hash"] == "0123456789"
    assert found["clip_score"] == "31.25"
    assert "odd" not in found


def test_the_document_tells_model_revision_and_scores_by_their_scorers() -> None:
    request = a_request(SETTINGS, score_text="a dragon")
    told = json.loads(document(request, ORIGIN, {"clip_score": 31.25, "odd": float("nan")}))
    assert told["model"] == "runwayml/sd, 1.5"
    assert told["revision"] == "sha256:0123456789abcdef"
    assert (told["dtype"], told["diffusers"]) == ("float16", "0.42.1")
    assert told["scores"] == {"clip_score/openai@1": 31.25}
    assert told["score_text"] == "a dragon"
