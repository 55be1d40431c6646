"""Early looks: what they show, and that a call which was looked at goes on to the same picture."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import greenlet
import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.models import Task
from search_spaces.requests import Failed, ImageRequest, Value
from tests.workers.helpers import SCHEDULER_NOISE, farthest
from tests.workers.pipelines.test_slot_engine import OPTIONS, Bench, benches, drained, pictured, suspended
from tests.workers.tiny_models import BETAS
from workers.pipelines import Generated
from workers.pipelines.loading import load_pipeline
from workers.pipelines.looking import predicted_clean, watch
from workers.pipelines.shared_models import LookCall

pytestmark = SCHEDULER_NOISE

Pair = tuple[Image.Image, Image.Image]

SAMPLERS: list[dict[str, Value]] = [
    {"scheduler": "DDIMScheduler"},
    {"scheduler": "DDIMScheduler", "eta": 0.5},
    {"scheduler": "DDPMScheduler"},
    {"scheduler": "EulerDiscreteScheduler"},
    {"scheduler": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    {"scheduler": "EulerAncestralDiscreteScheduler"},
    {"scheduler": "HeunDiscreteScheduler"},
    {"scheduler": "KDPM2DiscreteScheduler"},
    {"scheduler": "KDPM2AncestralDiscreteScheduler", "use_karras_sigmas": True},
    {"scheduler": "LMSDiscreteScheduler"},
]
"""Schedulers whose own `step` tells what it predicts."""


def looking(request: ImageRequest, after: int | None) -> ImageRequest:
    return dataclasses.replace(request, stop_after=after)


def plain_looks(bench: Bench, request: ImageRequest) -> list[Image.Image]:
    """For every UNet call of a plain pipeline what the scheduler's own step predicts, decoded."""
    clean: list[torch.Tensor] = []
    settings: dict[str, Any] = dict(request.settings)
    options = {name: settings.pop(name) for name in OPTIONS & settings.keys()}
    made = bench.scheduler(settings.pop("scheduler"), options)
    step = made.step

    @functools.wraps(step)
    def telling(*arguments: Any, return_dict: bool, **keywords: Any) -> tuple[torch.Tensor]:
        assert not return_dict
        told = step(*arguments, **keywords, return_dict=True)
        clean.append(told.pred_original_sample)
        return (told.prev_sample,)

    made.step = telling
    plain = type(bench.plain)(**bench.plain.components)
    plain.scheduler = made
    plain.set_progress_bar_config(disable=True)
    if request.image is not None:
        settings["image"] = bench.inputs[request.image]
    if request.mask is not None:
        settings["mask_image"] = bench.inputs[request.mask]
    plain(request.prompt, generator=torch.Generator().manual_seed(request.seed), **settings)
    with torch.no_grad():
        decoded = [plain.vae.decode(each / plain.vae.config.scaling_factor).sample for each in clean]
    return [plain.image_processor.postprocess(each, "pil")[0] for each in decoded]


Load = Callable[[str, Task], Bench]


@pytest.fixture(scope="module")
def load(tiny_sd: Path, tiny_sdxl: Path, cat: Pair, dog: Pair) -> Load:
    return benches(tiny_sd, tiny_sdxl, [cat, dog])


@pytest.fixture
def text(load: Load) -> Bench:
    """The cheapest: tiny Stable Diffusion, text-to-image."""
    return load("sd", "text-to-image")


class TestALookShowsWhatTheCallPredicts:
    @pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: " ".join(map(str, sampler.values())))
    def test_as_the_scheduler_itself_does(self, load: Load, sampler: Mapping[str, Value]) -> None:
        """With the bundled model, which predicts velocities, and with a tiny one, which predicts noise."""
        cases: list[tuple[str, Task, dict[str, Value]]] = [
            ("toyworld", "inpainting", {}),
            ("sd", "inpainting", {"strength": 0.8}),
        ]
        for name, task, strength in cases:
            bench = load(name, task)
            changes: dict[str, Value] = {**sampler, **strength, "num_inference_steps": 3}
            requests = [
                bench.request(seed, changes=changes, guidance_scale=guidance)
                for seed, guidance in enumerate((7.5,) if name == "toyworld" else (7.5, 1.0))
            ]
            engine = bench.engine()
            expected = [plain_looks(bench, request) for request in requests]
            calls = len(expected[0])
            for after in range(1, calls + 1):
                looks = drained(engine, [looking(request, after) for request in requests])
                assert len(looks) == len(requests)
                for look in looks:
                    assert (look.after, look.unet_calls) == (after, after)
                    shown = expected[look.request.seed][after - 1]
                    assert farthest(pictured(look), shown) <= 1, (name, task, after)
            bench.assert_plain(drained(engine, requests), requests)

    @pytest.mark.parametrize("task", ["text-to-image", "image-to-image", "inpainting"])
    def test_of_sdxl(self, load: Load, task: Task) -> None:
        bench = load("sdxl", task)
        strength: dict[str, Value] = {} if task == "text-to-image" else {"strength": 0.8}
        request = bench.request(1, changes=strength, scheduler="EulerDiscreteScheduler")
        (look,) = drained(bench.engine(), [looking(request, 2)])
        assert farthest(pictured(look), plain_looks(bench, request)[1]) <= 1

    def test_of_a_vae_whose_latents_have_a_mean(self, load: Load) -> None:
        """As Playground's SDXL: its pipelines shift and scale latents by statistics before they decode them."""
        bench = load("sdxl", "text-to-image")
        pipeline = load_pipeline(bench.model, "cpu")
        pipeline.vae.register_to_config(latents_mean=[1.0, -1.0, 0.5, 0.0], latents_std=[2.0, 1.0, 0.5, 3.0])
        request = bench.request(1, scheduler="EulerDiscreteScheduler", num_inference_steps=3)
        engine = dataclasses.replace(bench, pipeline=pipeline).engine()
        looks = drained(engine, [looking(request, 3)])
        # The last step of Euler goes all the way to what it predicts.
        assert farthest(pictured(looks[0]), pictured(drained(engine, [request])[0])) <= 1

    @pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
    def test_of_a_vae_that_is_to_be_upcast(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        """SDXL's own VAE overflows in half precision."""
        bench = load("sdxl", "text-to-image")
        pipeline = load_pipeline(bench.model.model_copy(update={"dtype": "float16"}), "cpu")
        assert pipeline.vae.config.force_upcast
        decoded, original = [], pipeline.vae.decode

        def noting(latents: torch.Tensor, **keywords: Any) -> Any:
            decoded.append((latents.dtype, pipeline.vae.dtype))
            return original(latents, **keywords)

        monkeypatch.setattr(pipeline.vae, "decode", noting)
        engine, request = dataclasses.replace(bench, pipeline=pipeline).engine(), bench.request(1)
        assert drained(engine, [looking(request, 2)])[0].after == 2
        pictured(drained(engine, [request])[0])
        assert decoded == [(torch.float32, torch.float32)] * 2

    def test_where_the_scheduler_clips_what_it_predicts(self, text: Bench) -> None:
        request = text.request(1, scheduler="DDIMScheduler", clip_sample=True)
        (look,) = drained(text.engine(), [looking(request, 2)])
        assert farthest(pictured(look), plain_looks(text, request)[1]) <= 1

    def test_more_and_more_of_the_final_picture(self, load: Load) -> None:
        bench = load("toyworld", "inpainting")
        request, engine = bench.request(0, num_inference_steps=8), bench.engine()
        looks = [pictured(drained(engine, [looking(request, after)])[0]) for after in (1, 3, 5, 7)]
        (final,) = drained(engine, [request])
        apart = [
            np.abs(np.asarray(look, float) - np.asarray(pictured(final), float)).mean() for look in looks
        ]
        assert apart == sorted(apart, reverse=True)
        assert apart[0] > 4 * apart[-1]


class TestGoingOn:
    @pytest.fixture
    def batches(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """Rows of every UNet call of the tiny text-to-image model."""
        sizes: list[int] = []
        handle = text.pipeline.unet.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        yield sizes
        handle.remove()

    def test_leads_to_the_same_picture_without_a_call_more(self, text: Bench, batches: list[int]) -> None:
        engine, requests = text.engine(rows=6), every_scheduler(text)
        looks = drained(engine, [looking(request, 2) for request in requests])
        assert sorted(ids(looks)) == sorted(request.image_id for request in requests)
        assert {look.after for look in looks} == {2}
        made = drained(engine, requests)
        text.assert_plain(made, requests)
        assert {item.after for item in made} == {None}
        assert engine.usage.useful == sum(batches) == 2 * sum(item.unet_calls or 0 for item in made)

    def test_the_calls_are_those_of_the_whole(self, text: Bench) -> None:
        engine = text.engine()
        for scheduler, calls in (("DDIMScheduler", 4), ("HeunDiscreteScheduler", 7), ("PNDMScheduler", 13)):
            request = text.request(scheduler=scheduler)
            assert [look.unet_calls for look in drained(engine, [looking(request, 3)])] == [3]
            assert [made.unet_calls for made in drained(engine, [request])] == [calls]

    def test_may_stop_for_a_later_look(self, text: Bench, batches: list[int]) -> None:
        request, engine = text.request(num_inference_steps=6), text.engine()
        for after in (1, 2, 5, 6):
            (look,) = drained(engine, [looking(request, after)])
            assert (look.after, look.unet_calls, len(batches)) == (after, after, after)
            assert farthest(pictured(look), plain_looks(text, request)[after - 1]) <= 1
        made = drained(engine, [request])
        text.assert_plain(made, [request])
        assert len(batches) == 6

    def test_a_look_beyond_the_end_is_the_final_picture(self, text: Bench) -> None:
        request = text.request()
        (made,) = drained(text.engine(), [looking(request, 5)])
        assert (made.after, made.unet_calls) == (None, 4)
        text.assert_plain([made], [request])

    def test_each_request_looks_when_it_asked_to_and_the_others_never(self, text: Bench) -> None:
        requests = [text.request(seed, num_inference_steps=5) for seed in range(5)]
        asked = [
            looking(request, after) for request, after in zip(requests, (1, None, 3, 5, None), strict=True)
        ]
        engine = text.engine(rows=4)
        back = drained(engine, asked)
        assert {item.request.seed: item.after for item in back} == {0: 1, 1: None, 2: 3, 3: 5, 4: None}
        text.assert_plain([item for item in back if item.after is None], [requests[1], requests[4]])
        resumed = [requests[0], requests[2], requests[3]]
        text.assert_plain(drained(engine, resumed), resumed)

    def test_beside_new_requests(self, text: Bench) -> None:
        engine, old = text.engine(rows=4), [text.request(seed, num_inference_steps=6) for seed in range(3)]
        drained(engine, [looking(request, 3) for request in old])
        new = [text.request(seed, num_inference_steps=2 + seed) for seed in (3, 4)]
        text.assert_plain(drained(engine, [new[0], *old, new[1]]), [*old, *new])

    def test_in_four_channel_inpainting_and_sdxl(self, load: Load) -> None:
        for name in ("sd", "sdxl"):
            bench = load(name, "inpainting")
            requests = [
                bench.request(seed, scheduler=scheduler, strength=0.9, num_inference_steps=5)
                for seed, scheduler in enumerate(
                    ("LCMScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler")
                )
            ]
            engine = bench.engine(rows=5)
            assert len(drained(engine, [looking(request, 2) for request in requests])) == 3
            bench.assert_plain(drained(engine, requests), requests)

    def test_a_resumed_one_does_not_serve_another_with_its_scheduler(self, text: Bench) -> None:
        """A watched scheduler would stop whoever gets it next."""
        engine, first = text.engine(), text.request(1)
        drained(engine, [looking(first, 2)])
        drained(engine, [first])
        requests = [text.request(seed) for seed in (2, 3)]
        text.assert_plain(drained(engine, requests), requests)

    def test_comes_back_with_the_request_asked_last(self, text: Bench) -> None:
        engine, request = text.engine(), text.request()
        first = looking(request, 2)
        (look,) = drained(engine, [first])
        assert look.request is first
        (made,) = drained(engine, [request])
        assert made.request is request

    def test_costs_no_less_time_than_it_took(self, text: Bench) -> None:
        engine, request = text.engine(), text.request()
        (look,), (made,) = drained(engine, [looking(request, 2)]), drained(engine, [request])
        assert made.seconds > look.seconds > 0

    def test_survives_running_out_of_memory(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        engine, requests = text.engine(rows=8), [text.request(seed) for seed in range(4)]
        drained(engine, [looking(request, 2) for request in requests])
        forward = text.pipeline.unet.forward

        def small(batch: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            if len(batch) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(batch, *arguments, **keywords)

        monkeypatch.setattr(text.pipeline.unet, "forward", small)
        text.assert_plain(drained(engine, requests), requests)


class TestSetAside:
    def test_beyond_the_bound_the_oldest_starts_again(self, text: Bench) -> None:
        engine, requests = text.engine(set_aside=2), [text.request(seed) for seed in range(4)]
        before = len(suspended())
        for request in requests:
            drained(engine, [looking(request, 3)])
        assert len(suspended()) == before + 2
        useful = engine.usage.useful
        text.assert_plain(drained(engine, requests), requests)
        assert engine.usage.useful - useful == 2 * (4 + 4 + 1 + 1)
        assert len(suspended()) == before

    def test_what_starts_again_may_look_again(self, text: Bench) -> None:
        engine, requests = text.engine(set_aside=1), [text.request(seed) for seed in range(3)]
        for request in requests:
            drained(engine, [looking(request, 2)])
        (look,) = drained(engine, [looking(requests[0], 3)])
        assert (look.after, look.unet_calls) == (3, 3)
        assert farthest(pictured(look), plain_looks(text, requests[0])[2]) <= 1
        text.assert_plain(drained(engine, requests), requests)

    def test_a_cancelled_one_is_let_go_of(self, text: Bench) -> None:
        engine, request, before = text.engine(), text.request(), len(suspended())
        drained(engine, [looking(request, 3)])
        assert len(suspended()) == before + 1
        assert engine.advance([], {request.image_id}) == []
        assert len(suspended()) == before
        useful = engine.usage.useful
        made = drained(engine, [request])
        text.assert_plain(made, [request])
        assert made[0].unet_calls == 4
        assert engine.usage.useful - useful == 8

    def test_nothing_is_held_by_what_is_set_aside(self, text: Bench) -> None:
        """An engine with nothing but looks has nothing to do."""
        engine = text.engine()
        drained(engine, [looking(text.request(), 1)])
        assert engine.advance([]) == []

    def test_the_same_request_twice_is_kept_once(self, text: Bench) -> None:
        engine, request, before = text.engine(), text.request(), len(suspended())
        looks = drained(engine, [looking(request, 2)] * 2)
        assert [look.after for look in looks] == [2, 2]
        assert len(suspended()) == before + 1
        made = drained(engine, [request])
        text.assert_plain(made, [request])
        assert len(suspended()) == before

    def test_a_request_that_is_nan_throughout_is_infeasible_and_no_look(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = type(text.pipeline).encode_prompt

        def broken(*arguments: Any, **keywords: Any) -> Any:
            made = original(*arguments, **keywords)
            return (made[0] * torch.nan, *made[1:])

        monkeypatch.setattr(type(text.pipeline), "encode_prompt", broken)
        (end,) = drained(text.engine(), [looking(text.request(), 1)])
        assert end.picture == Failed("infeasible", "the picture holds NaN")
        assert end.after is None

    def test_a_look_that_is_no_picture_does_not_condemn_the_picture(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, request = text.engine(), text.request()
        decode, calls = engine._vae.decode_now, iter([torch.nan])
        monkeypatch.setattr(engine._vae, "decode_now", lambda latents: decode(latents) * next(calls, 1.0))
        (end,) = drained(engine, [looking(request, 1)])
        assert end.after is None
        assert not isinstance(end.picture, Failed)
        (plain,) = drained(text.engine(), [request])
        assert end.picture.tobytes() == plain.picture.tobytes()  # type: ignore[union-attr]


def ids(made: Sequence[Generated]) -> list[str]:
    return [item.request.image_id for item in made]


def every_scheduler(bench: Bench) -> list[ImageRequest]:
    return [
        bench.request(seed, scheduler=name, num_inference_steps=5)
        for seed, name in enumerate(bench.model.schedulers)
    ]


SHAPE = (1, 4, 8, 8)


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A clean sample and noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def answered(kind: str, clean: torch.Tensor, noise: torch.Tensor, alpha: float) -> torch.Tensor:
    """What a perfect model says of √α·clean + √(1-α)·noise."""
    velocity = math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
    return {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]


def noise_level(scheduler: Any) -> float:
    """σ of the sample that a scheduler takes now, as its own tables have it."""
    index = scheduler.step_index or 0
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        ancestral = isinstance(scheduler, diffusers.KDPM2AncestralDiscreteScheduler)
        return float(scheduler.sigmas_interpol[index - 1 if ancestral else index])
    return float(scheduler.sigmas[index])


def looks(scheduler: Any, loop: Callable[[], None]) -> list[torch.Tensor]:
    """What is handed over at each call of a scheduler's `step` in a loop."""
    seen: list[torch.Tensor] = []
    watch(scheduler, lambda: len(seen) + 1)
    thread = greenlet.greenlet(loop)
    asked = thread.switch()
    while isinstance(asked, LookCall):
        assert asked.after == len(seen) + 1
        seen.append(asked.latents)
        asked = thread.switch()
    return seen


class TestPredictedClean:
    """Of a perfect model it is the truth."""

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    @pytest.mark.parametrize(
        "scheduler", ["DDIMScheduler", "DDPMScheduler", "UniPCMultistepScheduler", "LCMScheduler"]
    )
    def test_on_timesteps(self, scheduler: str, kind: str) -> None:
        made = getattr(diffusers, scheduler)(**BETAS, prediction_type=kind)
        made.set_timesteps(7)
        clean, noise = tensors()
        clean = clean.clamp(-1, 1)  # as these schedulers clip it by default
        for time in made.timesteps:
            alpha = float(made.alphas_cumprod[int(time)])
            sample = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise
            seen = predicted_clean(made, answered(kind, clean, noise, alpha), time, sample, scale=1.0)
            torch.testing.assert_close(seen, clean, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("karras", [False, True])
    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
    @pytest.mark.parametrize(
        "scheduler",
        [
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "LMSDiscreteScheduler",
        ],
    )
    def test_at_every_stage_of_sigma_schedulers(self, scheduler: str, kind: str, karras: bool) -> None:
        options = {"use_karras_sigmas": True} if karras and "EulerAnc" not in scheduler else {}
        made = getattr(diffusers, scheduler)(**BETAS, **options, prediction_type=kind)
        made.set_timesteps(5)
        made.set_begin_index(0)
        clean, noise = tensors()
        levels = []

        def loop() -> None:
            for time in made.timesteps:
                sigma = noise_level(made)
                levels.append(sigma)
                sample = clean + sigma * noise
                made.scale_model_input(sample, time)
                made.step(answered(kind, clean, noise, 1 / (sigma**2 + 1)), time, sample)

        seen = looks(made, loop)
        assert len(seen) == len(made.timesteps)
        assert len(set(levels)) >= 5
        for look in seen:
            torch.testing.assert_close(look, clean, atol=1e-3, rtol=0)

    @pytest.mark.parametrize(
        "scheduler", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"]
    )
    def test_where_sigmas_lie_between_timesteps(self, scheduler: str) -> None:
        """Under Karras these schedulers round the timestep they tell, not the noise they count with."""
        made = getattr(diffusers, scheduler)(**BETAS, use_karras_sigmas=True)
        made.set_timesteps(6)
        made.set_begin_index(0)
        clean, noise = tensors()

        def loop() -> None:
            for time in made.timesteps:
                alpha = 1 / (noise_level(made) ** 2 + 1)
                sample = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise
                made.scale_model_input(sample, time)
                made.step(noise, time, sample)

        for look in looks(made, loop):
            torch.testing.assert_close(look, clean, atol=1e-2, rtol=0)

    @pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
    @pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "PNDMScheduler"])
    def test_is_not_clipped_where_only_the_models_own_scheduler_would_clip(
        self, scheduler: str, option: str
    ) -> None:
        """`from_config` carries options along that a class does not know."""
        made = getattr(diffusers, scheduler).from_config({**BETAS, option: True})
        made.set_timesteps(5)
        clean, noise = tensors()
        time, scale = made.timesteps[1], 1.0
        alpha = float(made.alphas_cumprod[int(time)])
        sample = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise
        if scheduler == "EulerDiscreteScheduler":
            sample, scale = sample / math.sqrt(alpha), math.sqrt(alpha)
        seen = predicted_clean(made, noise, time, sample, scale)
        torch.testing.assert_close(seen, clean, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
    def test_of_the_edm_family_is_its_own(self, kind: str) -> None:
        made = diffusers.EDMEulerScheduler(prediction_type=kind)
        made.set_timesteps(5)
        made.set_begin_index(0)
        clean, noise = tensors()
        told = []

        def loop() -> None:
            for time in made.timesteps:
                sample = clean + noise_level(made) * noise
                made.scale_model_input(sample, time)
                told.append(made.step(noise, time, sample).pred_original_sample)

        seen = looks(made, loop)
        assert len(seen) == 5
        torch.testing.assert_close(seen, told)
