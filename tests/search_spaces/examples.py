"""Models, studies and settings of hypothesis that the tests of this room share."""

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings

from search_spaces.domains import Choices, Domain
from search_spaces.models import Kind, ModelDescription, ScorerDescription
from search_spaces.requests import Value
from search_spaces.space import Space
from search_spaces.study import PinnedInput

law = settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
"""The same examples in every run, however slow the machine is."""

KEYWORDS: dict[str, Value] = {
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "strength": 1.0,
    "negative_prompt": None,
    "eta": 0.0,
    "clip_skip": None,
    "width": 64,
    "height": 64,
}


KINDS: dict[str, tuple[Kind, ...]] = {
    "num_inference_steps": ("int",),
    "guidance_scale": ("float",),
    "strength": ("float",),
    "negative_prompt": ("str", "null"),
    "eta": ("float",),
    "clip_skip": ("int", "null"),
    "width": ("int", "null"),
    "height": ("int", "null"),
}


def model(**changes: Any) -> ModelDescription:
    """A Stable Diffusion inpainting model, but for the changes."""
    facts: dict[str, Any] = {
        "name": "toyworld",
        "location": "package:workers.toyworld/model/pipeline",
        "revision": "sha256:00",
        "task": "inpainting",
        "pipeline": "StableDiffusionInpaintPipeline",
        "dtype": "float32",
        "keywords": KEYWORDS,
        "kinds": KINDS,
        "defaults_source": "a test",
        "scheduler": "DDIMScheduler",
        "schedulers": ("DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
        "size_multiple": 8,
        "guidance_embedded": False,
        "diffusers": "0.42.1",
    }
    return ModelDescription(**{**facts, **changes})


INPAINTING = model()
IMAGE_TO_IMAGE = model(task="image-to-image", pipeline="StableDiffusionImg2ImgPipeline")
TEXT_TO_IMAGE = model(
    task="text-to-image",
    pipeline="StableDiffusionPipeline",
    keywords={name: value for name, value in KEYWORDS.items() if name != "strength"},
)
SDXL = model(pipeline="StableDiffusionXLInpaintPipeline")
EMBEDDED = model(guidance_embedded=True)
UNKNOWN = model(pipeline="PipelineOfTomorrow")

SCORER = ScorerDescription(name="clip_score", model="toyworld", location="here", revision="sha256:11")
CAT = PinnedInput(
    prompt="a green dragon",
    score_text="a realistic green dragon",
    image="1" * 32,
    mask="2" * 32,
    image_name="cat.png",
    mask_name="cat-mask.png",
)


def space(**axes: Domain | Sequence[Value]) -> Space:
    """A space; a plain list stands for a list of values."""
    return Space(
        axes={
            name: Choices(values=tuple(domain)) if isinstance(domain, Sequence) else domain
            for name, domain in axes.items()
        }
    )
