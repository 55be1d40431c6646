"""Preservation: PSNR over the pixels that a mask keeps, as plain diffusers sees image and mask."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from search_spaces.models import ModelDescription
from search_spaces.requests import Scored
from tests.workers.helpers import a_request, complete
from workers.inputs import pixel_hash
from workers.pipelines.whole_call import WholeCallPipeline
from workers.scoring.preservation import MOST, PreservationScorer, kept
from workers.worker import Worker


def noise(seed: int, width: int = 16, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8"))


def left_half(width: int = 16, height: int = 12) -> Image.Image:
    """A mask that asks for a new left half."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def score(drawn: Image.Image, image: Image.Image, mask: Image.Image) -> float:
    inputs = {pixel_hash(each): each for each in (image, mask)}
    asked = a_request(image=pixel_hash(image), mask=pixel_hash(mask))
    (found,) = PreservationScorer(inputs).score([drawn], [asked])
    return found


def test_what_lies_within_the_mask_does_not_count() -> None:
    image, mask = noise(0), left_half()
    drawn = image.copy()
    drawn.paste(noise(1, 8), (0, 0))
    assert score(drawn, image, mask) == MOST
    drawn.putpixel((8, 0), (0, 0, 0))
    assert score(drawn, image, mask) < MOST


@pytest.mark.parametrize(
    ("off", "decibels"),
    [(1, 48.1308), (5, 34.1514), (16, 24.0484), (255, 0.0)],  # 20 · log10(255 / off), by a calculator
)
def test_hand_worked(off: int, decibels: float) -> None:
    image = Image.new("RGB", (16, 12), (0, 0, 0))
    drawn = Image.new("RGB", (16, 12), (off, off, off))
    assert score(drawn, image, left_half()) == pytest.approx(decibels, abs=1e-4)
    half = drawn.copy()
    half.paste((0, 0, 0), (0, 0, 16, 6))  # half of the kept pixels are right: half the squared error
    assert score(half, image, left_half()) == pytest.approx(decibels + 10 * math.log10(2), abs=1e-4)


def test_equal_pictures_have_a_finite_score_and_no_difference_has_more() -> None:
    image = noise(0)
    assert score(image, image, left_half()) == MOST == pytest.approx(58.92, abs=0.01)
    barely = image.copy()
    red, green, blue = barely.getpixel((12, 3))  # type: ignore[misc]
    barely.putpixel((12, 3), (red, green ^ 1, blue))
    assert score(barely, image, left_half()) <= MOST


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.integers(1, 40))
def test_more_noise_is_less_alike(seed: int, spread: int) -> None:
    image = noise(seed)
    chance = np.random.default_rng(seed)
    off = chance.integers(0, spread + 1, (12, 16, 3))
    pixels = np.asarray(image, int)
    less, more = (Image.fromarray(np.clip(pixels + k * off, 0, 255).astype("uint8")) for k in (1, 2))
    assert score(more, image, left_half()) <= score(less, image, left_half()) <= MOST


@pytest.mark.parametrize("size", [(16, 12), (64, 48), (24, 40), (8, 8)])
def test_image_and_mask_are_resized_as_diffusers_does(size: tuple[int, int]) -> None:
    image, mask = noise(0, 40, 30), Image.fromarray(np.asarray(noise(1, 40, 30).convert("L")))
    width, height = size
    seen = VaeImageProcessor(do_normalize=False, vae_scale_factor=1).preprocess(image, height, width)[0]
    theirs = VaeImageProcessor(
        do_normalize=False, do_binarize=True, do_convert_grayscale=True, vae_scale_factor=1
    ).preprocess(mask, height, width)[0, 0]
    assert np.array_equal(kept(mask, size), theirs.numpy() == 0)
    resized = Image.fromarray((seen.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    assert resized.size == size
    assert score(resized, image, mask) == MOST
    assert score(noise(5, *size), image, mask) < 15


def test_a_mask_that_keeps_nothing_has_no_score() -> None:
    white = Image.new("L", (16, 12), 255)
    assert not kept(white, (16, 12)).any()
    assert math.isnan(score(noise(0), noise(1), white))


def test_a_request_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="without an input image or without a mask"):
        PreservationScorer({}).score([noise(0)], [a_request()])


def test_with_the_bundled_model(
    toyworld: ModelDescription,
    toyworld_pipeline: Any,
    inputs: Mapping[str, Image.Image],
    cat: tuple[Image.Image, Image.Image],
) -> None:
    """Plain inpainting changes what lies outside the mask, but not much; another picture is far from it."""
    image, mask = map(pixel_hash, cat)
    pipeline = WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=4)
    worker = Worker(pipeline, {"preservation_psnr": PreservationScorer(inputs)}, "cpu")
    asked = [
        a_request(
            complete(toyworld, num_inference_steps=6, strength=strength), seed=seed, image=image, mask=mask
        )
        for seed in range(2)
        for strength in (0.5, 1.0)
    ]
    finished = list(worker.advance(asked))
    while len(finished) < len(asked):
        finished += worker.advance([])
    for item in finished:
        assert isinstance(item.outcome, Scored)
        assert 18 < item.outcome.scores["preservation_psnr"] < 45
    scored = worker.score([(item.request, item.png or b"") for item in finished])
    assert [item.outcome for item in scored] == [item.outcome for item in finished]
    assert score(cat[0].rotate(90), *cat) < 18
