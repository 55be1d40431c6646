"""The whole-call pipeline draws what plain diffusers draws, whatever shares the call, and loses only what fails."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.models import ModelDescription, Task
from search_spaces.requests import Failed, ImageRequest, Value
from tests.workers.helpers import SCHEDULER_NOISE, a_request, complete, farthest
from tests.workers.tiny_models import SIDE
from workers.inputs import pixel_hash
from workers.pipelines import Generated, Inputs
from workers.pipelines.loading import AUTO_CLASSES, describe, load_pipeline
from workers.pipelines.whole_call import WholeCallPipeline, call_key, checked

pytestmark = SCHEDULER_NOISE

Pair = tuple[Image.Image, Image.Image]

SAMPLERS: list[dict[str, Value]] = [
    {"scheduler": "DDIMScheduler", "eta": 0.0},
    {"scheduler": "DDIMScheduler", "eta": 0.5},
    {"scheduler": "EulerAncestralDiscreteScheduler"},
    {"scheduler": "PNDMScheduler"},
    {"scheduler": "DPMSolverMultistepScheduler"},
    {"scheduler": "HeunDiscreteScheduler"},
    {"scheduler": "LCMScheduler"},
]
COMPANIONS = [(0, "", "a green dragon"), (0, "cartoon", "a green dragon"), (2**40 + 1, "blue", "a red house")]
"""Seed, negative prompt and prompt of requests that share calls."""


def sampler_name(sampler: Mapping[str, Value]) -> str:
    return " ".join(str(value) for value in sampler.values())


def plain_call(plain: Any, request: ImageRequest, inputs: Inputs) -> Image.Image:
    """What plain diffusers makes of one request: a fresh pipeline with a fresh scheduler, one seed, one image."""
    settings = dict(request.settings)
    scheduler = getattr(diffusers, str(settings.pop("scheduler")))
    fresh = type(plain)(**plain.components)
    fresh.scheduler = scheduler.from_config(plain.scheduler.config)  # as diffusers' guide changes schedulers
    fresh.set_progress_bar_config(disable=True)
    if request.image is not None:
        settings |= {"image": inputs[request.image]}  # type: ignore[dict-item]
    if request.mask is not None:
        settings |= {"mask_image": inputs[request.mask]}  # type: ignore[dict-item]
    generator = torch.Generator().manual_seed(request.seed)
    picture = fresh(prompt=request.prompt, generator=generator, **settings).images[0]
    assert isinstance(picture, Image.Image)
    return picture


def drawn(pipeline: WholeCallPipeline, requests: Sequence[ImageRequest]) -> dict[str, Image.Image]:
    """Pictures by image_id, each from whatever call it came to share."""
    back = list(pipeline.advance(requests))
    while made := pipeline.advance([]):
        back += made
    assert len(back) == len(requests)
    pictures = {}
    for item in back:
        assert isinstance(item.picture, Image.Image), item.picture
        pictures[item.request.image_id] = item.picture
    return pictures


def assert_as_plain(
    pictures: Mapping[str, Image.Image], requests: Sequence[ImageRequest], plain: Any, inputs: Inputs
) -> None:
    """Every picture is within 1/255 of the plain call's, and far from every other request's."""
    expected = {request.image_id: plain_call(plain, request, inputs) for request in requests}
    for request in requests:
        picture = pictures[request.image_id]
        assert farthest(picture, expected[request.image_id]) <= 1, request
        for other in requests:
            if other.seed != request.seed and expected[other.image_id].size == picture.size:
                assert farthest(picture, expected[other.image_id]) > 40, (request, other)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, toyworld_pipeline: Any) -> list[int]:
    """Grows by the batch size of each call of the toyworld pipeline."""
    sizes: list[int] = []
    original = type(toyworld_pipeline).__call__

    def counting(self: Any, *positional: Any, **named: Any) -> Any:
        sizes.append(len(named["prompt"]))
        return original(self, *positional, **named)

    monkeypatch.setattr(type(toyworld_pipeline), "__call__", counting)
    return sizes


class TestInpaintingEqualsPlainCalls:
    """With the bundled model, whose UNet takes nine channels."""

    @pytest.mark.parametrize("sampler", SAMPLERS, ids=sampler_name)
    def test_whatever_shares_the_call(
        self,
        sampler: Mapping[str, Value],
        toyworld: ModelDescription,
        toyworld_pipeline: Any,
        plain_toyworld: Any,
        inputs: Inputs,
        cat: Pair,
        dog: Pair,
        calls: list[int],
    ) -> None:
        requests = []
        for strength in (1.0, 0.6):
            for guidance in (1.0, 7.5):
                settings = complete(
                    toyworld, **sampler, strength=strength, guidance_scale=guidance, num_inference_steps=4
                )
                for (seed, negative, prompt), (image, mask) in zip(COMPANIONS, (cat, cat, dog), strict=True):
                    requests.append(
                        a_request(
                            {**settings, "negative_prompt": negative},
                            prompt,
                            seed,
                            pixel_hash(image),
                            pixel_hash(mask),
                        )
                    )
        # Dealt so that no two that share a call stand side by side.
        dealt = requests[::3] + requests[1::3] + requests[2::3]
        pictures = drawn(WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=3), dealt)
        assert calls == [3, 3, 3, 3]
        assert_as_plain(pictures, requests, plain_toyworld, inputs)
        # With guidance on, the negative prompt is each one's own; with it off, it is dead.
        for number in (0, 3, 6, 9):
            one, other = (pictures[requests[number + offset].image_id] for offset in (0, 1))
            assert (farthest(one, other) > 5) == (requests[number].settings["guidance_scale"] == 7.5)

    def test_with_settings_of_every_other_kind(
        self,
        toyworld: ModelDescription,
        toyworld_pipeline: Any,
        plain_toyworld: Any,
        inputs: Inputs,
        cat: Pair,
    ) -> None:
        image, mask = map(pixel_hash, cat)
        changes: list[dict[str, Value]] = [
            {"negative_prompt": None},
            {"width": 96, "height": 64},
            {"padding_mask_crop": 4, "strength": 0.8},
            {"guidance_scale": 20.0},
            {"num_inference_steps": 1},
            {"strength": 0.9999},
        ]
        requests = [
            a_request({**complete(toyworld, num_inference_steps=4), **change}, "a dragon", seed, image, mask)
            for change in changes
            for seed in (1, 2)
        ]
        pictures = drawn(WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=8), requests)
        assert_as_plain(pictures, requests, plain_toyworld, inputs)

    def test_inputs_of_different_sizes_share_a_call_where_the_size_is_set(
        self,
        toyworld: ModelDescription,
        toyworld_pipeline: Any,
        plain_toyworld: Any,
        cat: Pair,
        dog: Pair,
        calls: list[int],
    ) -> None:
        large = (dog[0].resize((128, 96)), dog[1].resize((128, 96)))
        inputs = {pixel_hash(each): each for each in (*cat, *large)}
        settings = complete(toyworld, num_inference_steps=4, strength=0.8)
        requests = [
            a_request(settings, seed=seed, image=pixel_hash(image), mask=pixel_hash(mask))
            for seed, (image, mask) in enumerate([cat, large])
        ]
        pictures = drawn(WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=2), requests)
        assert calls == [2]
        assert_as_plain(pictures, requests, plain_toyworld, inputs)

    def test_a_change_of_scheduler_leaves_nothing_behind(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, inputs: Inputs, cat: Pair
    ) -> None:
        """PNDM and the multistep solvers keep what earlier steps gave."""
        image, mask = map(pixel_hash, cat)
        pipeline = WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=1)

        def run(scheduler: str, steps: int) -> Image.Image:
            settings = complete(toyworld, scheduler=scheduler, num_inference_steps=steps)
            (made,) = pipeline.advance([a_request(settings, image=image, mask=mask)])
            assert isinstance(made.picture, Image.Image)
            return made.picture

        names = ["DDIMScheduler", *(str(sampler["scheduler"]) for sampler in SAMPLERS[2:])]
        first = [run(name, 4) for name in names]
        for name in reversed(names):
            run(name, 5)  # PNDM takes no fewer than four steps
        again = [run(name, 4) for name in names]
        assert [one.tobytes() for one in first] == [other.tobytes() for other in again]
        assert len({one.tobytes() for one in first}) == len(names)


class TestOtherModelsEqualPlainCalls:
    """With tiny random weights: 4-channel Stable Diffusion and SDXL."""

    @pytest.mark.parametrize("task", ["text-to-image", "image-to-image", "inpainting"])
    @pytest.mark.parametrize("sampler", [*SAMPLERS[1:5], SAMPLERS[6]], ids=sampler_name)
    def test_stable_diffusion(
        self,
        task: Task,
        sampler: Mapping[str, Value],
        tiny_sd: Path,
        cat: Pair,
        dog: Pair,
    ) -> None:
        strengths: list[dict[str, Value]] = [{"strength": 1.0}, {"strength": 0.6}]
        self._check(
            tiny_sd,
            task,
            [
                {**sampler, **strength, "guidance_scale": guidance, "num_inference_steps": 4}
                for strength in ([{}] if task == "text-to-image" else strengths)
                for guidance in (1.0, 7.5)
            ],
            [cat, cat, dog],
        )

    @pytest.mark.parametrize("task", ["text-to-image", "image-to-image", "inpainting"])
    def test_sdxl(self, task: Task, tiny_sdxl: Path, cat: Pair, dog: Pair) -> None:
        changes: list[dict[str, Value]] = [
            {"scheduler": "EulerDiscreteScheduler", "guidance_scale": 5.0},
            {"scheduler": "EulerDiscreteScheduler", "guidance_scale": 1.0},
            {"scheduler": "DPMSolverMultistepScheduler", "guidance_scale": 5.0},
            {"scheduler": "EulerAncestralDiscreteScheduler", "guidance_scale": 5.0},
        ]
        self._check(
            tiny_sdxl, task, [{**each, "num_inference_steps": 4} for each in changes], [cat, cat, dog]
        )

    def test_sdxl_with_no_an_empty_and_two_negative_prompts(self, tiny_sdxl: Path) -> None:
        """For SDXL a missing negative prompt is not an empty one; texts of the second encoder may differ too."""
        model = describe(str(tiny_sdxl), "text-to-image", "float32", Path.cwd())
        texts: list[dict[str, Value]] = [
            {"negative_prompt": None},
            {"negative_prompt": ""},
            {"negative_prompt": "cartoon"},
            {"negative_prompt": "cartoon", "negative_prompt_2": "blue"},
            {"negative_prompt": "cartoon", "negative_prompt_2": "red house"},
            {"negative_prompt": "", "prompt_2": "a red house"},
            {"negative_prompt": "", "prompt_2": "a blue dog"},
        ]
        settings = complete(model, num_inference_steps=4, guidance_scale=7.5)
        requests = [a_request({**settings, **each}, seed=seed) for each in texts for seed in (0, 1)]
        pictures = drawn(WholeCallPipeline(load_pipeline(model, "cpu"), model, {}, batch=4), requests)
        assert_as_plain(pictures, requests, self._plain(tiny_sdxl, model), {})
        same_seed = [pictures[request.image_id] for request in requests[::2]]
        for number, one in enumerate(same_seed):
            assert all(farthest(one, other) > 1 for other in same_seed[:number])

    def test_sdxl_with_clip_skip(self, tiny_sdxl: Path) -> None:
        model = describe(str(tiny_sdxl), "text-to-image", "float32", Path.cwd())
        settings = complete(model, num_inference_steps=3)
        requests = [
            a_request({**settings, "clip_skip": skip}, seed=seed) for skip in (None, 1) for seed in (0, 1)
        ]
        pictures = drawn(WholeCallPipeline(load_pipeline(model, "cpu"), model, {}, batch=4), requests)
        assert_as_plain(pictures, requests, self._plain(tiny_sdxl, model), {})
        assert farthest(pictures[requests[0].image_id], pictures[requests[2].image_id]) > 1

    def test_inputs_of_different_sizes_do_not_stretch_each_other(
        self, tiny_sd: Path, cat: Pair, dog: Pair
    ) -> None:
        """Image-to-image draws at its input's size, and one call has one size."""
        images = [cat[0].resize((48, 32)), dog[0].resize((32, 48)), dog[0].resize((48, 32))]
        inputs = {pixel_hash(image): image for image in images}
        model = describe(str(tiny_sd), "image-to-image", "float32", Path.cwd())
        settings = complete(model, num_inference_steps=5)
        requests = [a_request(settings, seed=n, image=name) for n, name in enumerate(inputs)]
        pipeline = WholeCallPipeline(load_pipeline(model, "cpu"), model, inputs, batch=4)
        assert len(pipeline.advance(requests)) == 2
        assert len(pipeline.advance([])) == 1
        pictures = drawn(pipeline, requests)
        assert [pictures[request.image_id].size for request in requests] == [image.size for image in images]
        assert_as_plain(pictures, requests, self._plain(tiny_sd, model), inputs)

    def _check(
        self,
        folder: Path,
        task: Task,
        changes: Sequence[Mapping[str, Value]],
        pairs: Sequence[Pair],
    ) -> None:
        pairs = [(image.resize((SIDE, SIDE)), mask.resize((SIDE, SIDE))) for image, mask in pairs]
        inputs = {pixel_hash(each): each for pair in pairs for each in pair}
        model = describe(str(folder), task, "float32", Path.cwd())
        requests = [
            a_request(
                {**complete(model), **change, "negative_prompt": negative},
                prompt,
                seed,
                None if task == "text-to-image" else pixel_hash(image),
                pixel_hash(mask) if task == "inpainting" else None,
            )
            for change in changes
            for (seed, negative, prompt), (image, mask) in zip(COMPANIONS, pairs, strict=True)
        ]
        dealt = requests[::3] + requests[1::3] + requests[2::3]
        pipeline = WholeCallPipeline(load_pipeline(model, "cpu"), model, inputs, batch=3)
        assert_as_plain(drawn(pipeline, dealt), requests, self._plain(folder, model), inputs)

    def _plain(self, folder: Path, model: ModelDescription) -> Any:
        auto = getattr(diffusers, AUTO_CLASSES[model.task])
        return auto.from_pretrained(folder, dtype=torch.float32)


class TestGrouping:
    def settings(self, **changes: Value) -> dict[str, Value]:
        return {"scheduler": "DDIMScheduler", "num_inference_steps": 5, "guidance_scale": 7.5, **changes}

    def test_prompts_seeds_inputs_and_negative_prompts_may_share_a_call(self) -> None:
        requests = [
            a_request(self.settings(negative_prompt="")),
            a_request(self.settings(negative_prompt="cartoon")),
            a_request(self.settings(negative_prompt=""), prompt="a cat", seed=9, score_text="cat"),
            a_request(self.settings(negative_prompt=""), image="a", mask="b"),
        ]
        assert len({call_key(request) for request in requests}) == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"scheduler": "PNDMScheduler"},
            {"num_inference_steps": 6},
            {"guidance_scale": 7.0},
            {"strength": 0.5},
            {"eta": 0.5},
            {"width": 32},
            {"negative_prompt": None},
            {"negative_prompt_2": "blue"},
            {"prompt_2": "a dragon"},
        ],
    )
    def test_what_a_call_takes_once_divides(self, changes: dict[str, Value]) -> None:
        one = a_request(self.settings(negative_prompt=""))
        other = a_request({**self.settings(negative_prompt=""), **changes})
        assert call_key(one) != call_key(other)

    def test_what_diffusers_takes_for_one_image_only_is_alone(self) -> None:
        settings = self.settings(padding_mask_crop=4)
        assert call_key(a_request(settings, seed=0)) != call_key(a_request(settings, seed=1))
        settings = self.settings(padding_mask_crop=None)
        assert call_key(a_request(settings, seed=0)) == call_key(a_request(settings, seed=1))

    def test_the_order_of_settings_does_not_matter(self) -> None:
        settings = self.settings()
        assert call_key(a_request(settings)) == call_key(a_request(dict(reversed(settings.items()))))

    def test_a_known_mix_takes_a_known_number_of_calls(
        self,
        toyworld: ModelDescription,
        toyworld_pipeline: Any,
        inputs: Inputs,
        cat: Pair,
        calls: list[int],
    ) -> None:
        image, mask = map(pixel_hash, cat)
        requests = [
            a_request(
                complete(
                    toyworld, num_inference_steps=steps, guidance_scale=guidance, negative_prompt=negative
                ),
                seed=seed,
                image=image,
                mask=mask,
            )
            for seed in range(3)
            for guidance in (1.0, 7.5)
            for negative in ("", "cartoon")
            for steps in (1, 2)
        ]
        drawn(WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=4), requests)
        assert sorted(calls) == [2] * 4 + [4] * 4  # two guidances × two steps × six requests

    def test_the_oldest_request_goes_first_and_brings_its_like(self) -> None:
        stub = Stub()
        pipeline = stub.behind(batch=2)
        ones = [a_request(self.settings(), seed=seed) for seed in range(3)]
        others = [a_request(self.settings(guidance_scale=1.0), seed=seed) for seed in range(3)]
        order = [pipeline.advance([ones[0], others[0], ones[1], others[1], others[2], ones[2]])]
        while made := pipeline.advance([]):
            order.append(made)
        assert [[item.request for item in made] for made in order] == [
            [ones[0], ones[1]],
            [others[0], others[1]],
            [others[2]],
            [ones[2]],
        ]

    def test_inputs_share_calls_only_in_families_that_were_compared(self) -> None:
        """Flux2 takes the images of a call for references of all its pictures."""
        for family, together in (("StableDiffusionImg2ImgPipeline", [2]), ("Flux2Pipeline", [1, 1])):
            stub = Stub()
            pipeline = stub.behind(batch=4, pipeline=family, inputs={"one": Image.new("RGB", (8, 8))})
            drawn(pipeline, [a_request(self.settings(), seed=seed, image="one") for seed in range(2)])
            drawn(pipeline, [a_request(self.settings(), seed=seed) for seed in range(2)])
            assert [len(call) for call in stub.calls] == [*together, 2], family


class Stub:
    """A pipeline that draws grey, one shade per seed, or does what a test wants of it."""

    def __init__(self, behave: Callable[[list[str]], None] = lambda _: None) -> None:
        self.scheduler = SimpleNamespace(config={})
        self.calls: list[list[str]] = []
        self.flags: list[bool] | None = None
        self.paint: Callable[[str], float] = lambda _: 0.5
        self._behave = behave

    def __call__(self, *, prompt: list[str], **_: object) -> SimpleNamespace:
        self.calls.append(prompt)
        self._behave(prompt)
        images = np.stack([np.full((8, 8, 3), self.paint(each), dtype="float32") for each in prompt])
        return SimpleNamespace(images=images, nsfw_content_detected=self.flags)

    def behind(
        self, batch: int, pipeline: str = "StableDiffusionPipeline", inputs: Inputs | None = None
    ) -> WholeCallPipeline:
        model = SimpleNamespace(
            scheduler="DDIMScheduler", scheduler_kinds={}, scheduler_options={}, pipeline=pipeline
        )
        return WholeCallPipeline(self, model, inputs or {}, batch)  # type: ignore[arg-type]


def prompts(*texts: str) -> list[ImageRequest]:
    return [a_request({"scheduler": "DDIMScheduler"}, prompt=text) for text in texts]


def outcomes(made: Sequence[Generated]) -> dict[str, Failed | None]:
    return {item.request.prompt: item.picture if isinstance(item.picture, Failed) else None for item in made}


class TestFailures:
    def test_a_request_that_makes_the_call_raise_loses_only_itself(self) -> None:
        def refuse(texts: list[str]) -> None:
            if "bad" in texts:
                raise RuntimeError("the prompt is bad\nand more that nobody reads")

        stub = Stub(refuse)
        made = stub.behind(batch=4).advance(prompts("a", "bad", "b", "c"))
        assert outcomes(made) == {
            "a": None,
            "bad": Failed("lost", "RuntimeError: the prompt is bad"),
            "b": None,
            "c": None,
        }
        assert stub.calls == [["a", "bad", "b", "c"], ["a"], ["bad"], ["b"], ["c"]]

    def test_settings_that_diffusers_refuses_are_lost_with_its_reason(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, inputs: Inputs, cat: Pair
    ) -> None:
        image, mask = map(pixel_hash, cat)
        settings = complete(toyworld, scheduler="LCMScheduler", num_inference_steps=60)
        (made,) = WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=4).advance(
            [a_request(settings, image=image, mask=mask)]
        )
        assert isinstance(made.picture, Failed)
        assert made.picture.kind == "lost"
        assert "original_steps" in made.picture.reason

    def test_an_input_that_is_not_there_is_lost(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, inputs: Inputs
    ) -> None:
        (made,) = WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=4).advance(
            [a_request(complete(toyworld), image="no such image", mask="no such mask")]
        )
        assert isinstance(made.picture, Failed)
        assert made.picture.kind == "lost"
        assert "no such image" in made.picture.reason

    def test_out_of_memory_halves_the_batch(self) -> None:
        def too_many(texts: list[str]) -> None:
            if len(texts) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

        stub = Stub(too_many)
        made = stub.behind(batch=7).advance(prompts(*"abcdefg"))
        assert outcomes(made) == dict.fromkeys("abcdefg")
        assert [len(call) for call in stub.calls] == [7, 4, 2, 2, 3, 2, 1]

    def test_out_of_memory_on_one_image_is_lost(self) -> None:
        def too_large(texts: list[str]) -> None:
            if "huge" in texts:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand so on")

        made = Stub(too_large).behind(batch=4).advance(prompts("a", "huge", "b"))
        reason = "out of memory: CUDA out of memory. Tried to allocate 9 GiB"
        assert outcomes(made) == {"a": None, "huge": Failed("lost", reason), "b": None}

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
    def test_a_failed_call_is_let_go_of_before_the_next(self, error: type[RuntimeError]) -> None:
        """An exception held would keep every tensor of the failed call, and halving would not help."""
        held: list[weakref.ref[torch.Tensor]] = []

        def allocate(texts: list[str]) -> None:
            assert all(reference() is None for reference in held), "the failed call's tensor is still there"
            tensor = torch.zeros(3)
            held.append(weakref.ref(tensor))
            if len(texts) > 1:
                raise error("no more")

        made = Stub(allocate).behind(batch=4).advance(prompts(*"abcd"))
        assert outcomes(made) == dict.fromkeys("abcd")
        assert len(held) > 4

    def test_black_nan_and_flagged_pictures_are_infeasible(self) -> None:
        stub = Stub()
        shades = {"grey": 0.5, "black": 0.0, "nearly black": 0.001, "nan": float("nan"), "dark": 0.01}
        stub.paint = shades.__getitem__
        stub.flags = [False] * 5 + [True]
        shades["flagged"] = 0.5
        made = stub.behind(batch=8).advance(prompts(*shades))
        assert outcomes(made) == {
            "grey": None,
            "dark": None,
            "black": Failed("infeasible", "the picture is all black"),
            "nearly black": Failed("infeasible", "the picture is all black"),
            "nan": Failed("infeasible", "the picture holds NaN"),
            "flagged": Failed("infeasible", "flagged by the model's safety checker"),
        }

    def test_one_nan_pixel_is_enough_and_one_bright_pixel_too(self) -> None:
        image = np.zeros((8, 8, 3), dtype="float32")
        image[3, 4, 1] = np.nan
        assert checked(image, False) == Failed("infeasible", "the picture holds NaN")
        image[3, 4, 1] = 1.0
        assert isinstance(checked(image, False), Image.Image)
        assert checked(Image.new("RGB", (8, 8)), False) == Failed("infeasible", "the picture is all black")

    def test_a_model_that_has_lost_its_numbers_is_infeasible(
        self, toyworld: ModelDescription, inputs: Inputs, cat: Pair
    ) -> None:
        """As half precision may do: the decoder gives NaN, and no warning tells."""
        broken = load_pipeline(toyworld, "cpu")
        with torch.no_grad():
            broken.vae.decoder.conv_out.bias.fill_(float("nan"))
        image, mask = map(pixel_hash, cat)
        request = a_request(complete(toyworld, num_inference_steps=1), image=image, mask=mask)
        (made,) = WholeCallPipeline(broken, toyworld, inputs, batch=1).advance([request])
        assert made.picture == Failed("infeasible", "the picture holds NaN")

    def test_ctrl_c_is_no_failure_of_a_request(self) -> None:
        def interrupt(_: list[str]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Stub(interrupt).behind(batch=1).advance(prompts("a"))


class TestCosts:
    def test_unet_calls_are_counted_in_each_call(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, inputs: Inputs, cat: Pair
    ) -> None:
        image, mask = map(pixel_hash, cat)
        pipeline = WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=4)
        for scheduler, steps, strength, guidance, expected in (
            ("DDIMScheduler", 4, 1.0, 1.0, 4),
            ("DDIMScheduler", 4, 1.0, 7.5, 4),  # guidance doubles the rows, not the calls
            ("DDIMScheduler", 4, 0.5, 7.5, 2),
            ("HeunDiscreteScheduler", 4, 1.0, 7.5, 7),
            ("PNDMScheduler", 4, 1.0, 7.5, 13),  # its Runge-Kutta steps take four each
        ):
            settings = complete(
                toyworld,
                scheduler=scheduler,
                num_inference_steps=steps,
                strength=strength,
                guidance_scale=guidance,
            )
            requests = [a_request(settings, seed=seed, image=image, mask=mask) for seed in (0, 1)]
            made = pipeline.advance(requests)
            assert [item.unet_calls for item in made] == [expected, expected]
            assert made[0].seconds == made[1].seconds > 0

    def test_seconds_are_shared_evenly_and_told_of_failures_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        clock = SimpleNamespace(perf_counter=lambda: now[0])
        monkeypatch.setattr("workers.pipelines.whole_call.time", clock)

        def spend(texts: list[str]) -> None:
            now[0] += 12.0
            if "bad" in texts:
                raise RuntimeError("the prompt is bad")

        made = Stub(spend).behind(batch=4).advance(prompts("a", "b", "c"))
        assert [item.seconds for item in made] == [4.0] * 3
        made = Stub(spend).behind(batch=4).advance(prompts("a", "bad"))
        assert [item.seconds for item in made] == [12.0, 12.0]

    def test_a_pipeline_without_unet_counts_nothing(self) -> None:
        (made,) = Stub().behind(batch=1).advance(prompts("a"))
        assert made.unet_calls is None

    def test_the_pipeline_is_left_as_it_was(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, inputs: Inputs, cat: Pair
    ) -> None:
        own, image = toyworld_pipeline.scheduler, pixel_hash(cat[0])
        pipeline = WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=1)
        settings = complete(toyworld, scheduler="EulerDiscreteScheduler", num_inference_steps=1)
        drawn(pipeline, [a_request(settings, image=image, mask=pixel_hash(cat[1]))])
        assert isinstance(pipeline.advance([a_request(settings, image="no such image")])[0].picture, Failed)
        assert toyworld_pipeline.scheduler is own
        assert not toyworld_pipeline.unet._forward_pre_hooks
