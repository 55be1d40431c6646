"""Early looks: the clean picture that a running call predicts."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

from workers.pipelines.shared_models import LookCall, hand_over


def watch(
    scheduler: Any,
    stop_after: Callable[[], int | None],
    decodable: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents,
) -> None:
    """Let a scheduler's `step` hand over what it predicts, after as many UNet calls as `stop_after` says then.

    `decodable` brings latents into the form that the VAE decodes.
    """
    step, scale_model_input = scheduler.step, scheduler.scale_model_input
    scale, calls = 1.0, 0

    def watched_scale(sample: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal scale
        scaled: torch.Tensor = scale_model_input(sample, *arguments, **keywords)
        if calls + 1 == stop_after():  # a float makes a GPU wait
            scale = float(scaled.float().norm() / sample.float().norm())
        return scaled

    @functools.wraps(step)  # pipelines read its signature
    def watched_step(
        model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *arguments: Any, **keywords: Any
    ) -> Any:
        nonlocal calls
        calls += 1
        looks = calls == stop_after()
        clean = predicted_clean(scheduler, model_output, timestep, sample, scale) if looks else None
        result = step(model_output, timestep, sample, *arguments, **keywords)
        if clean is not None:
            hand_over(LookCall(decodable(clean), calls))
        return result

    scheduler.step, scheduler.scale_model_input = watched_step, watched_scale


def predicted_clean(
    scheduler: Any, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, scale: float
) -> torch.Tensor:
    """x₀ as the model predicts it from a noisy sample; all tensors (1, channels, height, width).

    `scale` is what `scale_model_input` multiplied the sample with. Where it is 1, the sample is
    √ᾱ·x₀ + √(1-ᾱ)·ε (DDPM, arXiv 2006.11239); otherwise x₀ + σ·ε with scale 1/√(σ²+1) (Karras et al.,
    arXiv 2206.00364). The v-prediction is that of arXiv 2202.00512.
    """
    kind = scheduler.config.get("prediction_type", "epsilon")
    if hasattr(scheduler, "precondition_outputs"):  # the EDM family has a rule of its own
        sigma = scheduler.sigmas[scheduler.step_index or 0]
        clean: torch.Tensor = scheduler.precondition_outputs(sample, model_output, sigma)
        return clean
    if kind == "sample":
        return model_output
    if scale < 1 - 1e-6:
        variance = 1 / scale**2 - 1
        alpha, sample = 1 / (variance + 1), sample * scale
    else:
        alpha = float(scheduler.alphas_cumprod[round(float(timestep))])
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if kind == "v_prediction":
        clean = signal * sample - noise * model_output
    else:
        clean = (sample - noise * model_output) / signal
    # A scheduler's configuration carries options along that its class does not know.
    known = inspect.signature(type(scheduler).__init__).parameters
    if "thresholding" in known and scheduler.config.thresholding:
        return scheduler._threshold_sample(clean)  # type: ignore[no-any-return]
    if "clip_sample" in known and scheduler.config.clip_sample:
        return clean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return clean
