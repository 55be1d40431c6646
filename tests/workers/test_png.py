"""PNG in and out: pixels as they were, and text chunks that image tools read."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from search_spaces.requests import Value
from tests.workers.helpers import a_request
from workers.infotext import parameters
from workers.png import Encoder, ImageFormat, as_png, decode_png, encode_png

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


def test_a_broken_png_is_not_taken_for_a_picture() -> None:
    png = encode_png(noise(32, 32, 3))
    with pytest.raises(OSError, match="truncated"):
        decode_png(png[: len(png) // 2])


@pytest.mark.parametrize(("form", "most"), [("png", 0), ("webp", 0), ("jpeg", 12)])
def test_formats_keep_pixels_and_say_what_the_picture_is(form: ImageFormat, most: int) -> None:
    ramp = np.stack(np.meshgrid(np.arange(64) * 2, np.arange(64) * 3, [60])[:2], -1)[:, :, 0]
    image = Image.fromarray(np.concatenate([ramp, ramp[..., :1]], -1).astype("uint8"))
    request = replace(a_request(SETTINGS), prompt="ein grüner Drache 龍")
    stored = Encoder(form)(image, request, {})
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


def told_in_exif(stored: bytes) -> tuple[str, dict[str, object]]:
    """The line and the document in a picture's EXIF data."""
    exif = decode_png(stored).getexif()
    line = exif.get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
    document: dict[str, object] = json.loads(exif[0x010E])
    return line, document


@pytest.mark.parametrize("text", ["a green dragon, " * 4200, "龍" * 30_000, "🐉" * 40_000, "\\" * 65_000])
@pytest.mark.parametrize("where", ["prompt", "negative_prompt", "score_text"])
def test_texts_that_jpeg_has_no_room_for_are_cut_in_it(text: str, where: str) -> None:
    request = a_request(SETTINGS)
    if where == "negative_prompt":
        request = replace(request, settings={**SETTINGS, where: text})
    else:
        request = replace(request, **{where: text})  # type: ignore[arg-type]
    line, document = told_in_exif(Encoder("jpeg")(noise(8, 8, 3), request, {"clip_score": 30.5}))
    drawn = document["settings"]
    assert isinstance(drawn, dict)
    kept = {**document, **drawn}[where]
    assert kept.endswith("…")
    assert text.startswith(kept[:-1])
    assert len(kept) > 3000
    assert (document["image_id"], document["scores"]) == (request.image_id, {"clip_score": 30.5})
    assert drawn["scheduler"] == SETTINGS["scheduler"]
    assert "Sampler: Euler a" in line
    whole = told_in_exif(Encoder("webp")(noise(8, 8, 3), request, {}))[1]
    assert {**whole, **whole["settings"]}.get(where, text) == text  # type: ignore[dict-item]


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=200), st.text(max_size=200), st.integers(1, 20_000))
def test_a_jpeg_is_written_whatever_the_texts_and_their_length(
    prompt: str, negative: str, times: int
) -> None:
    request = a_request({**SETTINGS, "negative_prompt": negative * times}, prompt * times)
    stored = Encoder("jpeg")(noise(8, 8, 3), request, {})
    assert told_in_exif(stored)[1]["image_id"] == request.image_id
