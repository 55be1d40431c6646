"""What is known of models as plain data: their families' rules and their own defaults, with sources."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from search_spaces.objectives import PRESERVATION
from search_spaces.requests import ImageRequest, Settings, Value

Task = Literal["text-to-image", "image-to-image", "inpainting"]
Dtype = Literal["float32", "float16", "bfloat16"]
Trust = Literal["pickles", "remote_code"]


@dataclass(frozen=True)
class RegisteredModel:
    """A model with a name of its own, or one whose defaults its pipeline's signature cannot know.

    `location` is a hub id, or `package:MODULE/FOLDER` for weights that ship with a Python package.
    `defaults` override those of the pipeline's `__call__`; `source` says where they are from.
    """

    location: str
    defaults: Settings
    source: str
    clip: str | None = None


REGISTRY: Mapping[str, RegisteredModel] = {
    "toyworld": RegisteredModel(
        location="package:workers.toyworld/model/pipeline",
        clip="package:workers.toyworld/model/clip",
        defaults={"num_inference_steps": 20, "guidance_scale": 7.5},
        source="measured: model card",
    ),
    "sd-1.5": RegisteredModel(
        location="stable-diffusion-v1-5/stable-diffusion-v1-5",
        defaults={"num_inference_steps": 50, "guidance_scale": 7.5},
        source="model card; diffusers StableDiffusionPipeline.__call__",
    ),
    "sd-1.5-inpainting": RegisteredModel(
        location="stable-diffusion-v1-5/stable-diffusion-inpainting",
        defaults={"num_inference_steps": 50, "guidance_scale": 7.5},
        source="model card; diffusers StableDiffusionInpaintPipeline.__call__",
    ),
    "sdxl": RegisteredModel(
        location="stabilityai/stable-diffusion-xl-base-1.0",
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        source="diffusers StableDiffusionXLPipeline.__call__",
    ),
    "sdxl-inpainting": RegisteredModel(
        location="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        defaults={"num_inference_steps": 20, "guidance_scale": 8.0, "strength": 0.99},
        source="model card's example",
    ),
    "sd-turbo": RegisteredModel(
        location="stabilityai/sd-turbo",
        defaults={"num_inference_steps": 1, "guidance_scale": 0.0},
        source="model card: distilled for 1 step without guidance",
    ),
    "sdxl-turbo": RegisteredModel(
        location="stabilityai/sdxl-turbo",
        defaults={"num_inference_steps": 1, "guidance_scale": 0.0},
        source="model card: distilled for 1 step without guidance",
    ),
    "lcm-dreamshaper": RegisteredModel(
        location="SimianLuo/LCM_Dreamshaper_v7",
        defaults={"num_inference_steps": 4, "guidance_scale": 8.0},
        source="model card: 4 steps; guidance is embedded in the UNet",
    ),
    "flux-schnell": RegisteredModel(
        location="black-forest-labs/FLUX.1-schnell",
        defaults={"num_inference_steps": 4, "guidance_scale": 0.0},
        source="model card: distilled for 1 to 4 steps without guidance",
    ),
    "flux-dev": RegisteredModel(
        location="black-forest-labs/FLUX.1-dev",
        defaults={"num_inference_steps": 50, "guidance_scale": 3.5},
        source="model card",
    ),
}

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
"""The CLIP that judges where a model has none of its own: torchmetrics' default for CLIPScore."""


def registered(model: str) -> RegisteredModel | None:
    """The registry's entry for a registry name or for a hub id that the registry knows."""
    by_location = {entry.location: entry for entry in REGISTRY.values()}
    return REGISTRY.get(model) or by_location.get(model)


@dataclass(frozen=True)
class Family:
    """How a family of pipelines treats its settings; what is False or None is not known to hold.

    `guidance_off_at`: guidance_scale at or below it switches classifier-free guidance off.
    `strength_cuts_steps`: image-to-image and inpainting run min(int(steps × strength), steps) steps, and
    strength has no other effect except that 1 starts inpainting from pure noise.
    `none_is_empty`: a missing negative prompt draws the same as an empty one.
    `slots`: the slot engine serves it, since its calls were compared with plain ones in mixed batches.
    `tokenizers`: the parts through which alone its texts reach the model, as they are written.
    """

    guidance_off_at: float | None = None
    strength_cuts_steps: bool = False
    none_is_empty: bool = False
    slots: bool = False
    tokenizers: tuple[str, ...] = ()


# Read in diffusers' pipeline_stable_diffusion*.py and pipeline_stable_diffusion_xl*.py.
STABLE_DIFFUSION = Family(
    guidance_off_at=1.0, strength_cuts_steps=True, none_is_empty=True, slots=True, tokenizers=("tokenizer",)
)
STABLE_DIFFUSION_XL = Family(
    guidance_off_at=1.0,
    strength_cuts_steps=True,
    none_is_empty=False,
    slots=True,
    tokenizers=("tokenizer", "tokenizer_2"),
)
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLInpaintPipeline": STABLE_DIFFUSION_XL,
}


Kind = Literal["bool", "int", "float", "str", "null"]


def is_of_kind(value: Value, kinds: Collection[Kind]) -> bool:
    """Whether a setting's value is of one of the kinds; whole numbers are numbers too, true and false are not."""
    match value:
        case None:
            return "null" in kinds
        case bool():
            return "bool" in kinds
        case str():
            return "str" in kinds
        case int():
            return "int" in kinds or "float" in kinds
    return "float" in kinds


class ModelDescription(BaseModel):
    """Everything about a model that decides pixels or the meaning of settings, pinned with the study.

    `name` is what the study file says, `location` where it loads from (as in `RegisteredModel`),
    `revision` a hub commit or `sha256:` of the folder's files. `keywords` maps every setting that the
    pipeline takes to its default, `kinds` to the types of value that it may have, where they are known.
    `scheduler_options` gives, for each scheduler, the options of its own and what this model's configuration
    sets them to; `scheduler_kinds` the types of value that options may have. `step_limits` gives the fewest
    and the most num_inference_steps of those schedulers that do not take any number; None is no limit.
    `size_multiple` is in pixels; `trust` is what the study file allows beyond safetensors.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    location: str
    revision: str
    task: Task
    pipeline: str
    dtype: Dtype
    keywords: dict[str, Value]
    kinds: dict[str, tuple[Kind, ...]] = {}
    defaults_source: str
    scheduler: str
    schedulers: tuple[str, ...]
    scheduler_options: dict[str, dict[str, Value]] = {}
    scheduler_kinds: dict[str, tuple[Kind, ...]] = {}
    step_limits: dict[str, tuple[int, int | None]] = {}
    size_multiple: int
    guidance_embedded: bool
    diffusers: str
    trust: tuple[Trust, ...] = ()

    @property
    def family(self) -> Family:
        """The rules of this pipeline's family; for a family we have not read, none are known."""
        return FAMILIES.get(self.pipeline, Family())

    @property
    def identity(self) -> str:
        """What names the weights: the content hash of a folder, or hub id and commit."""
        return self.revision if self.revision.startswith("sha256:") else f"{self.location}@{self.revision}"


class ScorerDescription(BaseModel):
    """A scorer and the exact model behind it; `id` is the key of the catalog's scores table.

    One that reads no text judges a picture by its pixels and its inputs alone. `trust` is as a model's.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    model: str
    location: str
    revision: str
    reads_text: bool = True
    trust: tuple[Trust, ...] = ()

    def text_of(self, request: ImageRequest) -> str:
        """The text that a request's picture is judged by, as the scores table has it; "" where that is none."""
        return request.score_text if self.reads_text else ""

    @property
    def id(self) -> str:
        """Name, model and revision, such as `clip_score/toyworld@sha256:…`."""
        return f"{self.name}/{self.model}@{self.revision}"


PIXEL_SCORERS: Mapping[str, ScorerDescription] = {
    PRESERVATION: ScorerDescription(
        name=PRESERVATION, model="pixels", location="", revision="1", reads_text=False
    )
}
"""Scorers that are a formula over pixels, by the score that they give; another formula is another revision."""
