"""What a picture says of itself: the line that web UIs write and image tools read, and a JSON document."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from search_spaces.models import ModelDescription
from search_spaces.requests import ImageRequest, Value


@dataclass(frozen=True)
class Origin:
    """What a picture was drawn by, and judged: `scorers` maps a score's name to its scorer's id."""

    model: ModelDescription | None = None
    scorers: Mapping[str, str] = field(default_factory=dict)


# As diffusers' documentation of its schedulers sets both beside each other, and Forge and SD.Next call the rest.
SAMPLERS: Mapping[str, str] = {
    "DDIMParallelScheduler": "DDIM",
    "DDIMScheduler": "DDIM",
    "DDPMParallelScheduler": "DDPM",
    "DDPMScheduler": "DDPM",
    "DEISMultistepScheduler": "DEIS",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "FlowMatchHeunDiscreteScheduler": "Heun",
    "FlowMatchLCMScheduler": "LCM",
    "HeunDiscreteScheduler": "Heun",
    "IPNDMScheduler": "IPNDM",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "SASolverScheduler": "SA Solver",
    "TCDScheduler": "TCD",
    "UniPCMultistepScheduler": "UniPC",
}
"""diffusers' schedulers under the names that web UIs know, where one option does not tell two of them apart."""

_SOLVERS: Mapping[tuple[str, object, object], str] = {
    ("DPMSolverMultistepScheduler", "dpmsolver++", 2): "DPM++ 2M",
    ("DPMSolverMultistepScheduler", "sde-dpmsolver++", 2): "DPM++ 2M SDE",
    ("DPMSolverMultistepScheduler", "sde-dpmsolver++", 3): "DPM++ 3M SDE",
    ("DPMSolverSinglestepScheduler", "dpmsolver++", 2): "DPM++ 2S",
    ("DPMSolverSinglestepScheduler", "sde-dpmsolver++", 2): "DPM++ SDE",
}
"""By scheduler, algorithm_type and solver_order."""

_SCHEDULES = {
    "use_karras_sigmas": "Karras",
    "use_exponential_sigmas": "Exponential",
    "use_beta_sigmas": "Beta",
}


def parameters(
    request: ImageRequest,
    size: tuple[int, int],
    origin: Origin = Origin(),
    scores: Mapping[str, float] | None = None,
) -> str:
    """Prompt, negative prompt and `Name: value` pairs as the Stable Diffusion web UI writes and counts them.

    There `Clip skip: 1` leaves out no layer, and diffusers' clip_skip 1 leaves out one. `size` is (width, height).
    """
    settings, model = request.settings, origin.model
    options = _options(settings, model)
    skip = settings.get("clip_skip")
    named: dict[str, object] = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": _sampler(str(settings.get("scheduler", "")), options),
        "Schedule type": _schedule(options),
        "CFG scale": settings.get("guidance_scale"),
        "Seed": request.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model and model.revision.removeprefix("sha256:")[:10],
        "Model": model and model.name,
        "Denoising strength": settings.get("strength"),
        "Clip skip": skip + 1 if isinstance(skip, int) else None,
        **{name: f"{value:.6g}" for name, value in _finite(scores).items()},
    }
    pairs = ", ".join(f"{name}: {_quoted(value)}" for name, value in named.items() if value not in (None, ""))
    negative = settings.get("negative_prompt")
    lines = [request.prompt, f"Negative prompt: {negative}" if negative else "", pairs]
    return "\n".join(line for line in lines if line)


def document(
    request: ImageRequest,
    origin: Origin = Origin(),
    scores: Mapping[str, float] | None = None,
) -> str:
    """All that decides a picture's pixels, and what it was judged to be worth, as JSON."""
    model, finite = origin.model, _finite(scores)
    told: dict[str, object] = {
        "image_id": request.image_id,
        "prompt": request.prompt,
        "seed": request.seed,
        "settings": dict(request.settings),
        "image": request.image,
        "mask": request.mask,
    }
    if model is not None:
        told |= {"model": model.name, "revision": model.revision, "dtype": model.dtype}
        told["diffusers"] = model.diffusers
    if finite:
        told |= {} if request.score_text == request.prompt else {"score_text": request.score_text}
        told["scores"] = {origin.scorers.get(name, name): value for name, value in finite.items()}
    return json.dumps(told)


def _finite(scores: Mapping[str, float] | None) -> dict[str, float]:
    return {name: value for name, value in (scores or {}).items() if math.isfinite(value)}


def _options(settings: Mapping[str, Value], model: ModelDescription | None) -> dict[str, Value]:
    """The scheduler's options as far as they are known: the model's own, and in their place what is set."""
    own = model.scheduler_options.get(str(settings.get("scheduler")), {}) if model else {}
    return {**own, **{name: value for name, value in settings.items() if value is not None}}


def _sampler(scheduler: str, options: Mapping[str, Value]) -> str:
    solver = (
        options.get("algorithm_type", "dpmsolver++"),
        options.get("solver_order", 2),
    )  # diffusers' defaults
    known = SAMPLERS.get(scheduler) or _SOLVERS.get((scheduler, *solver))
    return known or scheduler.removesuffix("Scheduler")


def _schedule(options: Mapping[str, Value]) -> str | None:
    """The spacing of the steps; None where the scheduler has no choice of it, or nothing is known of it."""
    chosen = [name for option, name in _SCHEDULES.items() if options.get(option)]
    if chosen:
        return chosen[0]
    return "Uniform" if "use_karras_sigmas" in options else None


def _quoted(value: object) -> str:
    """A value as the web UIs quote it where it would end its pair."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
