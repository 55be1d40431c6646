"""PNG in and out: pixels as they were, and text chunks that image tools read."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from search_spaces.requests import Value
from tests.workers.helpers import a_request
from workers.png import ImageFormat, as_png, decode_png, encode, encode_png, parameters

SETTINGS: dict[str, Value] = {
    "num_inference_steps": 20,
    "scheduler": "EulerAncestralDiscreteScheduler",
    "guidance_scale": 7.5,
    "strength": 0.7,
    "negative_prompt": "cartoon",
    "eta": 0.0,
    "clip_skip": None,
}


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype="uint8"))


def chunks(png: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return dict(image.text)  # type: ignore[attr-defined]  # PNG images have it


@pytest.mark.parametrize("shape", [(9, 7, 3), (9, 7)])
def test_pixels_come_back_as_they_were(shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    for request in (None, a_request(SETTINGS)):
        back = decode_png(encode_png(image, request))
        assert (back.mode, back.size) == (image.mode, image.size)
        assert back.tobytes() == image.tobytes()


def test_a_picture_without_a_request_carries_no_text() -> None:
    assert chunks(encode_png(noise(8, 8, 3))) == {}


@pytest.mark.parametrize(
    "prompt",
    [
        "a green dragon",
        "ein grüner Drache",
        "ドラゴン 🐉, naïve",
        'quotes " and \\ and\nlines: two',
        "e\u0301 is not \u00e9",
        "x" * 10_000,
    ],
)
def test_text_chunks_carry_the_request_whatever_its_letters(prompt: str) -> None:
    request = a_request(
        {**SETTINGS, "negative_prompt": prompt[::-1]}, prompt, seed=2**63 - 1, image="ab", mask="cd"
    )
    text = chunks(encode_png(noise(8, 8, 3), request))
    assert set(text) == {"parameters", "latentsweep"}
    assert text["parameters"] == parameters(request, (8, 8))
    assert json.loads(text["latentsweep"]) == {
        "image_id": request.image_id,
        "prompt": prompt,
        "seed": 2**63 - 1,
        "settings": dict(request.settings),
        "image": "ab",
        "mask": "cd",
    }


def test_parameters_are_written_as_the_web_uis_write_them() -> None:
    assert parameters(a_request(SETTINGS, seed=42), (64, 48)) == (
        "a green dragon\n"
        "Negative prompt: cartoon\n"
        "Steps: 20, Sampler: EulerAncestralDiscrete, CFG scale: 7.5, Seed: 42, Size: 64x48, "
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
        "a green dragon\nSteps: 1, CFG scale: 0.0, Seed: 0, Size: 8x8, Clip skip: 2"
    )


def test_a_broken_png_is_not_taken_for_a_picture() -> None:
    png = encode_png(noise(32, 32, 3))
    with pytest.raises(OSError, match="truncated"):
        decode_png(png[: len(png) // 2])


@pytest.mark.parametrize(("form", "most"), [("png", 0), ("webp", 0), ("jpeg", 12)])
def test_formats_keep_pixels_and_say_what_the_picture_is(form: ImageFormat, most: int) -> None:
    ramp = np.stack(np.meshgrid(np.arange(64) * 2, np.arange(64) * 3, [60])[:2], -1)[:, :, 0]
    image = Image.fromarray(np.concatenate([ramp, ramp[..., :1]], -1).astype("uint8"))
    request = replace(a_request(SETTINGS), prompt="ein grüner Drache 龍")
    stored = encode(image, request, form)
    back = decode_png(stored)
    assert back.format is None or back.format.lower() == form
    apart = np.abs(np.asarray(back, np.int16) - np.asarray(image, np.int16))
    assert apart.max() <= most
    if form != "png":
        exif = back.getexif()
        comment = exif.get_ifd(0x8769)[0x9286]
        assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == parameters(request, image.size)
        assert json.loads(exif[0x010E])["image_id"] == request.image_id
    assert decode_png(as_png(stored)).tobytes() == back.tobytes()
    assert as_png(stored).startswith(b"\x89PNG")
