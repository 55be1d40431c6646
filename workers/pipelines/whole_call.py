"""The whole-call pipeline: plain diffusers calls, each serving the requests that one call can serve."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from search_spaces.models import FAMILIES, ModelDescription
from search_spaces.requests import Failed, ImageRequest, Value
from workers.pipelines import ALL_BLACK, HOLDS_NAN, OUT_OF_MEMORY, Generated, Inputs

PER_ROW = ("negative_prompt", "prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3")
"""Texts that may differ from image to image of one call; all other settings hold for the whole call."""

NOT_IN_A_BATCH = ("padding_mask_crop",)
"""Settings that diffusers takes for a single image only."""


def call_key(request: ImageRequest) -> str:
    """Equal for requests that one call can serve side by side."""
    shared = {name: value for name, value in request.settings.items() if name not in PER_ROW}
    alone = any(shared.get(name) is not None for name in NOT_IN_A_BATCH)
    given = [name for name in PER_ROW if request.settings.get(name) is not None]
    return json.dumps([request.image_id if alone else "", given, shared], sort_keys=True)


class WholeCallPipeline:
    """Calls a diffusers pipeline on up to `batch` requests that agree on everything a call takes once.

    Each image has its own CPU generator, so that a seed means the same noise in any batch and on any device.
    """

    def __init__(self, pipeline: Any, model: ModelDescription, inputs: Inputs, batch: int) -> None:
        self._pipeline, self._model, self._inputs, self._batch = pipeline, model, inputs, batch
        self._own_scheduler = pipeline.scheduler
        self._queue: list[ImageRequest] = []
        self.steps = 0

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        """One call's worth of pictures: the oldest request and those held that can share its call."""
        held = [r for r in (*self._queue, *new) if r.image_id not in cancelled]
        if not held:
            self._queue = []
            return []
        key = self._key(held[0])
        group: list[ImageRequest] = []
        self._queue = []
        for request in held:
            fits = len(group) < self._batch and self._key(request) == key
            (group if fits else self._queue).append(request)
        return self._generate(group)

    def _key(self, request: ImageRequest) -> tuple[str, tuple[int, int] | None]:
        """What a call's requests share; without a set size, a call draws all at the size of its first input."""
        sized = all(request.settings.get(side) is not None for side in ("width", "height"))
        image = None if sized or request.image is None else self._inputs.get(request.image)
        key = call_key(request)
        if request.image is not None and self._model.pipeline not in FAMILIES:
            key += request.image_id  # some pipelines take several images for references of one picture
        return key, image.size if image else None

    def _generate(self, group: Sequence[ImageRequest]) -> list[Generated]:
        """One call for the group; if it fails, each request alone, so that only the guilty one is lost."""
        begun = time.perf_counter()
        try:
            with counted_calls(getattr(self._pipeline, "unet", None)) as calls, self._counting_steps():
                pictures = self._call(group)
        except torch.OutOfMemoryError as error:
            failed, part = Failed("lost", f"{OUT_OF_MEMORY}: {first_line(error)}"), (len(group) + 1) // 2
        except Exception as error:  # noqa: BLE001  # whatever a pipeline raises is one request's failure
            failed, part = Failed("lost", f"{type(error).__name__}: {first_line(error)}"), 1
        else:
            seconds = (time.perf_counter() - begun) / len(group)
            return [
                Generated(request, picture, seconds, calls())
                for request, picture in zip(group, pictures, strict=True)
            ]
        # Not within `except`, where the exception would keep the failed call's tensors alive.
        if len(group) == 1:
            return [Generated(group[0], failed, time.perf_counter() - begun, None)]
        torch.cuda.empty_cache()
        parts = [group[first : first + part] for first in range(0, len(group), part)]
        return [made for each in parts for made in self._generate(each)]

    @contextmanager
    def _counting_steps(self) -> Iterator[None]:
        """Let `steps` grow with every call of what draws, within one call of the pipeline too."""

        def count_one(*_: object) -> None:
            self.steps += 1

        parts = [getattr(self._pipeline, name, None) for name in ("unet", "transformer")]
        hooks = [
            part.register_forward_pre_hook(count_one) for part in parts if isinstance(part, torch.nn.Module)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _call(self, group: Sequence[ImageRequest]) -> list[Image.Image | Failed]:
        arguments = call_arguments(group, self._model, self._inputs)
        key = scheduler_key(group[0], self._model)
        self._pipeline.scheduler = made_scheduler(key, self._own_scheduler.config)
        try:
            with torch.inference_mode():
                result = self._pipeline(**arguments)
        finally:  # whoever else holds the pipeline finds it as it was
            self._pipeline.scheduler = self._own_scheduler
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(group)
        return [checked(image, flag) for image, flag in zip(result.images, flagged, strict=True)]


def call_arguments(
    group: Sequence[ImageRequest], model: ModelDescription, inputs: Inputs
) -> dict[str, object]:
    """The arguments of one plain call that serves requests which share a `call_key`.

    Each image has its own CPU generator; pictures come back as floats, or as PIL where diffusers pastes them.
    """
    settings = {name: value for name, value in group[0].settings.items() if name not in model.scheduler_kinds}
    del settings["scheduler"]
    arguments: dict[str, object] = {**settings, "prompt": [request.prompt for request in group]}
    for name in PER_ROW:
        if settings.get(name) is not None:
            arguments[name] = [request.settings[name] for request in group]
    if group[0].image is not None:
        arguments["image"] = _images([request.image for request in group], inputs)
    if group[0].mask is not None:
        arguments["mask_image"] = _images([request.mask for request in group], inputs)
    arguments["generator"] = [torch.Generator().manual_seed(request.seed) for request in group]
    as_pil = any(settings.get(name) is not None for name in NOT_IN_A_BATCH)
    return {**arguments, "output_type": "pil" if as_pil else "np"}


def _images(hashes: Sequence[str | None], inputs: Inputs) -> Image.Image | list[Image.Image]:
    images = [inputs[name] for name in hashes if name is not None]
    return images[0] if len(images) == 1 else images


SchedulerKey = tuple[str, tuple[tuple[str, Value], ...]]
"""A scheduler's class and those of its options that a request sets."""


def scheduler_key(request: ImageRequest, model: ModelDescription) -> SchedulerKey:
    """The scheduler that a request asks for; options that it does not take are left out."""
    name = str(request.settings["scheduler"])
    taken = model.scheduler_options.get(name, {})
    options = [(key, value) for key, value in request.settings.items() if key in taken and value is not None]
    return name, tuple(sorted(options))


def made_scheduler(key: SchedulerKey, config: Mapping[str, Any]) -> Any:
    """A scheduler of that class with the model's own configuration, but for the options.

    For one call only: some change their own options with the number of steps, and keep them so.
    """
    import diffusers

    name, options = key
    return getattr(diffusers, name).from_config(config, **dict(options))


def checked(image: Image.Image | np.ndarray[Any, Any], flagged: bool) -> Image.Image | Failed:
    """A pipeline's output as an 8-bit picture, or why it is none: NaN, black, flagged.

    `image` is PIL, or floats of shape (height, width, 3) from 0 to 1, rounded as diffusers rounds them.
    """
    if flagged:
        return Failed("infeasible", "flagged by the model's safety checker")
    if not isinstance(image, Image.Image):
        if not np.isfinite(image).all():
            return Failed("infeasible", HOLDS_NAN)
        image = Image.fromarray((image * 255).round().astype("uint8"))
    if not any(high for _, high in _extrema(image)):
        return Failed("infeasible", ALL_BLACK)
    return image


def _extrema(image: Image.Image) -> Sequence[tuple[float, float]]:
    found: Sequence[tuple[float, float]] = image.convert("RGB").getextrema()  # type: ignore[assignment]
    return found


@contextmanager
def counted_calls(unet: torch.nn.Module | None) -> Iterator[Callable[[], int | None]]:
    """Count a UNet's forward passes; yields a function that gives the count, None without a UNet."""
    count = 0

    def count_one(*_: object) -> None:
        nonlocal count
        count += 1

    handle = unet.register_forward_pre_hook(count_one) if unet is not None else None
    counted: Callable[[], int | None] = lambda: None if unet is None else count  # noqa: E731
    try:
        yield counted
    finally:
        if handle is not None:
            handle.remove()


def first_line(error: BaseException) -> str:
    """An error's first line, for a sentence."""
    return str(error).strip().partition("\n")[0][:300]
