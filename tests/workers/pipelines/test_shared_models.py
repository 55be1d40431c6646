"""What running calls share: each sees it as its own, and nothing is computed twice that is still remembered."""

from collections.abc import Callable
from typing import Any

import greenlet
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.search_spaces.examples import law
from workers.pipelines import shared_models
from workers.pipelines.shared_models import (
    Call,
    DecodeCall,
    Remembered,
    SharedProcessor,
    SharedUNet,
    SharedVae,
    UNetCall,
    hand_over,
    remembered_prompts,
)


class Counted:
    """Makes what it is called with, and says how often."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls.append((arguments, keywords))
        return object()

    def of(self, key: Any) -> Callable[[], Any]:
        return lambda: self(key)


def waiting(body: Callable[[], Any]) -> tuple[Any, Call]:
    """A call that has been started, and what it waits for."""
    thread = greenlet.greenlet(body)
    return thread, thread.switch()


class TestRemembered:
    def test_makes_a_thing_once(self) -> None:
        memory, make = Remembered(2), Counted()
        assert memory.get("a", make.of("a")) is memory.get("a", make.of("a"))
        assert len(make.calls) == 1

    def test_nothing_is_a_thing_too(self) -> None:
        memory, calls = Remembered(2), []
        for _ in range(2):
            assert memory.get("a", lambda: calls.append("a")) is None
        assert calls == ["a"]

    def test_the_least_recently_used_goes_first(self) -> None:
        memory, make = Remembered(2), Counted()
        for key in "abacab":
            memory.get(key, make.of(key))
        assert [key for (key,), _ in make.calls] == ["a", "b", "c", "b"]

    def test_what_could_not_be_made_is_tried_again(self) -> None:
        memory, make = Remembered(1), Counted()

        def fail() -> None:
            raise ValueError("not now")

        kept = memory.get("a", make.of("a"))
        with pytest.raises(ValueError, match="not now"):
            memory.get("b", fail)
        assert memory.get("a", make.of("a")) is kept
        memory.get("b", make.of("b"))
        assert len(make.calls) == 2

    @law
    @given(size=st.integers(1, 4), keys=st.lists(st.integers(0, 6), max_size=40))
    def test_the_last_few_are_there_and_no_more(self, size: int, keys: list[int]) -> None:
        memory, make, recent = Remembered(size), Counted(), list[int]()
        for key in keys:
            before = len(make.calls)
            memory.get(key, make.of(key))
            assert (len(make.calls) == before) == (key in recent)
            recent = [*(each for each in recent if each != key), key][-size:]


class TestHandOver:
    def test_sleeps_until_the_answer_comes(self) -> None:
        ask, told = DecodeCall(torch.zeros(1)), []

        def body() -> str:
            told.append(hand_over(ask))
            return "end"

        thread, asked = waiting(body)
        assert asked is ask
        assert told == []
        assert thread.switch("answer") == "end"
        assert told == ["answer"]

    def test_calls_wake_in_any_order(self) -> None:
        asks = [DecodeCall(torch.full((1,), float(number))) for number in range(3)]
        threads = [waiting(lambda ask=ask: (hand_over(ask), hand_over(ask)))[0] for ask in asks]  # type: ignore[misc]
        for number in (2, 0, 1):
            assert threads[number].switch(f"first {number}") is asks[number]
        for number in (1, 2, 0):
            assert threads[number].switch(f"second {number}") == (f"first {number}", f"second {number}")

    def test_an_error_may_be_the_answer(self) -> None:
        def body() -> str:
            try:
                hand_over(DecodeCall(torch.zeros(1)))
            except torch.OutOfMemoryError as error:
                return str(error)
            return "no error"

        thread, _ = waiting(body)
        assert thread.throw(torch.OutOfMemoryError("none left")) == "none left"


class TestSharedUNet:
    def test_hands_over_what_a_pipeline_calls_it_with(self) -> None:
        unet = SharedUNet(torch.nn.Linear(1, 1))
        sample, time, texts = torch.zeros(2, 4, 8, 8), torch.tensor(7), torch.zeros(2, 77, 32)
        thread, asked = waiting(
            lambda: unet(sample, time, encoder_hidden_states=texts, timestep_cond=None, return_dict=False)
        )
        assert isinstance(asked, UNetCall)
        assert (asked.sample is sample, asked.timestep is time) == (True, True)
        assert asked.keywords == {"encoder_hidden_states": texts, "timestep_cond": None}
        assert thread.switch("noise") == ("noise",)

    def test_is_the_unet_in_all_else(self) -> None:
        unet = SharedUNet(torch.nn.Linear(3, 5))
        assert unet.in_features == 3
        with pytest.raises(AttributeError):
            unet.no_such_thing  # noqa: B018


def tiny_vae(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    return vae.eval()


def an_image(seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


class TestSharedVae:
    @pytest.fixture
    def vae(self) -> Any:
        return tiny_vae()

    @pytest.fixture
    def encoded(self, vae: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
        """The dtype of every image that is really encoded."""
        dtypes, original = [], vae.encode

        def counting(image: torch.Tensor) -> Any:
            dtypes.append(image.dtype)
            return original(image)

        monkeypatch.setattr(vae, "encode", counting)
        return dtypes

    @torch.no_grad()
    def test_encodes_an_image_once_whatever_tensor_holds_it(
        self, vae: Any, encoded: list[torch.dtype]
    ) -> None:
        shared = SharedVae(vae)
        posteriors = [
            shared.encode(image).latent_dist for image in (an_image(), an_image().clone(), an_image())
        ]
        assert len(encoded) == 1
        own = vae.encode(an_image()).latent_dist
        assert all(torch.equal(each.mean, own.mean) and torch.equal(each.std, own.std) for each in posteriors)

    @torch.no_grad()
    def test_samples_the_remembered_posterior_anew(self, vae: Any, encoded: list[torch.dtype]) -> None:
        shared = SharedVae(vae)

        def sample(seed: int) -> torch.Tensor:
            drawn: torch.Tensor = shared.encode(an_image()).latent_dist.sample(
                torch.Generator().manual_seed(seed)
            )
            return drawn

        first, other, again = sample(1), sample(2), sample(1)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert len(encoded) == 1

    @torch.no_grad()
    def test_tells_images_apart(self, vae: Any, encoded: list[torch.dtype]) -> None:
        shared, image = SharedVae(vae), an_image()
        changed = image.clone()
        changed[0, 2, 15, 15] += 1e-6
        for each in (image, changed, image.flip(-1), image[..., :8], image.repeat(2, 1, 1, 1)):
            shared.encode(each)
        assert len(encoded) == 5
        assert shared.encode(image.flip(-1).flip(-1)).latent_dist.mean.shape == (1, 4, 8, 8)
        assert len(encoded) == 5

    @torch.no_grad()
    def test_keeps_but_so_many(
        self, vae: Any, encoded: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_models, "IMAGES", 2)
        shared = SharedVae(vae)
        for seed in (0, 1, 0, 2, 0, 1):
            shared.encode(an_image(seed))
        assert len(encoded) == 4

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    @torch.no_grad()
    def test_encodes_in_the_dtype_of_the_image(
        self, vae: Any, encoded: list[torch.dtype], half: torch.dtype
    ) -> None:
        vae.to(half)
        shared = SharedVae(vae)
        for dtype in (half, torch.float32, half):
            image = an_image().to(dtype)
            assert shared.encode(image).latent_dist.mean.dtype == dtype
        assert encoded == [half, torch.float32]
        assert shared.dtype == half

    @torch.no_grad()
    def test_hands_decoding_over(self, vae: Any) -> None:
        shared, latents = SharedVae(vae), some_latents()
        thread, asked = waiting(lambda: shared.decode(latents, return_dict=False, generator=None))
        assert isinstance(asked, DecodeCall)
        assert asked.latents is latents
        assert thread.switch("image") == ("image",)
        assert torch.equal(shared.decode_now(latents), vae.decode(latents).sample)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    @torch.no_grad()
    def test_calls_that_upcast_it_and_calls_that_do_not_see_nothing_of_each_other(
        self, vae: Any, half: torch.dtype
    ) -> None:
        """As SDXL's pipelines do where the VAE's configuration says `force_upcast`."""
        plain, shared = tiny_vae().to(half), SharedVae(vae.to(half))

        def decoded(own: Any, seed: int, upcast: bool) -> torch.Tensor:
            latents = some_latents(seed).to(half)
            assert own.dtype == half
            if upcast:
                own.to(dtype=torch.float32)
                latents = latents.to(next(iter(own.post_quant_conv.parameters())).dtype)
                assert latents.dtype == torch.float32
            image: torch.Tensor = own.decode(latents, return_dict=False)[0]
            if upcast:
                own.to(dtype=half)
            return image

        cases = [(0, True), (1, False), (2, True), (3, False)]
        expected = [decoded(plain, *case) for case in cases]
        threads = [waiting(lambda case=case: decoded(shared, *case)) for case in cases]  # type: ignore[misc]
        for number in (1, 0, 3, 2):  # woken in another order than they fell asleep in
            thread, asked = threads[number]
            assert isinstance(asked, DecodeCall)
            image = thread.switch(shared.decode_now(asked.latents))
            assert image.dtype == expected[number].dtype
            assert torch.equal(image, expected[number])

    @torch.no_grad()
    def test_an_upcast_encoding_does_not_touch_a_call_that_decodes(self, vae: Any) -> None:
        half = torch.float16
        shared, image, latents = SharedVae(vae.to(half)), an_image(), some_latents().to(half)
        before = shared.decode_now(latents)
        shared.to(dtype=torch.float32)
        shared.encode(image)
        assert shared.dtype == half
        assert torch.equal(shared.decode_now(latents), before)

    def test_is_the_vae_in_all_else(self, vae: Any) -> None:
        shared = SharedVae(vae)
        assert shared.config is vae.config
        assert shared.to(dtype=torch.float32) is vae


class TestSharedProcessor:
    @pytest.fixture
    def prepared(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Every image that is really preprocessed."""
        images, original = [], VaeImageProcessor.preprocess

        def counting(self: Any, image: Any, *arguments: Any, **keywords: Any) -> Any:
            images.append(image)
            return original(self, image, *arguments, **keywords)

        monkeypatch.setattr(VaeImageProcessor, "preprocess", counting)
        return images

    def test_remembers_by_the_object_and_what_is_asked_of_it(self, prepared: list[Any]) -> None:
        shared, image = (
            SharedProcessor(VaeImageProcessor(vae_scale_factor=2)),
            Image.new("RGB", (16, 16), "red"),
        )
        first = shared.preprocess(image, height=16, width=16)
        assert shared.preprocess(image, width=16, height=16) is first
        assert len(prepared) == 1
        assert shared.preprocess(image, height=8, width=16).shape == (1, 3, 8, 16)
        assert shared.preprocess(image, 16, 16) is not first
        assert shared.preprocess(image.copy(), height=16, width=16) is not first
        assert len(prepared) == 4
        assert torch.equal(
            first, VaeImageProcessor(vae_scale_factor=2).preprocess(image, height=16, width=16)
        )

    def test_an_image_is_kept_as_long_as_its_tensor(self, prepared: list[Any]) -> None:
        """Else another image could come to lie where it lay, and be taken for it."""
        shared = SharedProcessor(VaeImageProcessor(vae_scale_factor=2))
        for shade in range(40):
            image = Image.new("RGB", (8, 8), (shade, 0, 0))
            tensor = shared.preprocess(image)
            prepared.clear()  # so that nobody else keeps it
            del image
            assert round(float((tensor[0, 0, 0, 0] + 1) / 2 * 255)) == shade

    def test_keeps_but_so_many(self, prepared: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared_models, "IMAGES", 2)
        shared = SharedProcessor(VaeImageProcessor(vae_scale_factor=2))
        images = [Image.new("RGB", (8, 8)) for _ in range(3)]
        for number in (0, 1, 0, 2, 0, 1):
            shared.preprocess(images[number])
        assert [[each is image for image in images].index(True) for each in prepared] == [0, 1, 2, 1]

    def test_is_the_processor_in_all_else(self) -> None:
        processor = VaeImageProcessor(vae_scale_factor=2)
        shared = SharedProcessor(processor)
        assert shared.config is processor.config
        assert shared.postprocess == processor.postprocess


class TestRememberedPrompts:
    def test_the_same_texts_in_the_same_way_once(self) -> None:
        encode = Counted()
        remembered = remembered_prompts(encode)
        first = remembered(["a cat"], "cpu", 1, True, ["blue"], clip_skip=None)
        assert remembered(["a cat"], "cpu", 1, True, ["blue"], clip_skip=None) is first
        for other in (
            (["a dog"], "cpu", 1, True, ["blue"]),
            (["a cat"], "cpu", 1, False, ["blue"]),
            (["a cat"], "cpu", 1, True, ["red"]),
            (["a cat"], "cpu", 1, True, None),
            (["a cat"], "cpu", 1, True, [""]),
        ):
            assert remembered(*other, clip_skip=None) is not first
        assert remembered(["a cat"], "cpu", 1, True, ["blue"], clip_skip=1) is not first
        assert len(encode.calls) == 7

    def test_keywords_in_any_order(self) -> None:
        encode = Counted()
        remembered = remembered_prompts(encode)
        assert remembered(prompt=["a"], device="cpu") is remembered(device="cpu", prompt=["a"])

    def test_keeps_but_so_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared_models, "PROMPTS", 2)
        encode = Counted()
        remembered = remembered_prompts(encode)
        for prompt in "abacab":
            remembered([prompt])
        assert [prompt for ([prompt],), _ in encode.calls] == ["a", "b", "c", "b"]
