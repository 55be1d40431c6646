"""Input images and masks: every way to store one is read right or refused with a sentence."""

import errno
import io
import os
import random
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from search_spaces.errors import InputError
from tests.unending_files import unending
from tests.workers.helpers import farthest, refusal
from workers.inputs import MOST_PIXELS, pixel_hash, read_image, read_mask

KEY = "study.yaml: inputs[0].image"


def noise(width: int = 20, height: int = 12, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype="uint8")
    return Image.fromarray(pixels)


def greys(bits: int) -> Image.Image:
    """16 × 16 pixels from black to white, of 8 or 16 bits; the low byte says nothing of the high one."""
    greys = np.arange(256).reshape(16, 16)
    if bits == 16:
        greys = greys * 256 + greys * 7 % 256
    return Image.fromarray(greys.astype(f"uint{bits}"))


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that says how large it is, and nothing more."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + start + struct.pack(">I", 0) + b"IDAT")
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm"])
def test_an_image_is_read_pixel_by_pixel(tmp_path: Path, name: str) -> None:
    noise().save(tmp_path / name)
    read = read_image(tmp_path / name, KEY)
    assert read.mode == "RGB"
    assert read.tobytes() == noise().tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_common_mode_becomes_rgb_as_pillow_turns_it(tmp_path: Path, mode: str) -> None:
    stored = noise().convert(mode)
    stored.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", KEY)
    assert read.mode == "RGB"
    assert read.tobytes() == stored.convert("RGB").tobytes()


def test_cmyk_and_grey_jpegs_become_rgb(tmp_path: Path) -> None:
    for mode in ("CMYK", "L"):
        noise().convert(mode).save(tmp_path / f"{mode}.jpg")
        assert read_image(tmp_path / f"{mode}.jpg", KEY).mode == "RGB"


def test_a_palette_with_transparency_keeps_its_colours_and_warns_of_nothing(tmp_path: Path) -> None:
    stored = Image.new("P", (4, 4), 1)
    stored.putpalette([255, 0, 0, 0, 0, 255])
    stored.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings(record=True, action="always") as said:
        read = read_image(tmp_path / "a.png", KEY)
    assert not said
    assert read.getcolors() == [(16, (0, 0, 255))]


def test_sixteen_bits_become_eight_from_black_to_white(tmp_path: Path) -> None:
    greys(16).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", KEY)
    assert farthest(read, greys(8).convert("RGB")) <= 1
    assert read.getextrema() == ((0, 255), (0, 255), (0, 255))


def test_a_pgm_of_16_bits_is_refused_for_what_it_is(tmp_path: Path) -> None:
    greys(16).save(tmp_path / "a.pgm")
    with refusal(KEY, "more than 8 bits a pixel", "save it with 8 bits"):
        read_mask(tmp_path / "a.pgm", KEY, None)


def saved(folder: Path) -> list[Path]:
    """A bright picture in every mode that Pillow has, in every format of ours that takes it."""
    lab = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    pixels = noise().point(lambda value: 128 + value // 2)
    pictures = {"LAB": ImageCms.profileToProfile(pixels, lab[1], lab[0], outputMode="LAB"), "I;16": greys(16)}
    for mode in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "I",
        "F",
    ):
        via = (
            pixels.convert("RGBA")
            if mode in ("La", "RGBa")
            else pixels.convert("L" if mode == "PA" else "RGB")
        )
        pictures[mode] = via.convert("LA").convert(mode) if mode == "La" else via.convert(mode)
    for mode, picture in pictures.items():
        for end in ("png", "tiff", "jpg", "webp", "pgm", "bmp", "gif"):
            path = folder / f"{mode.replace(';', '')}.{end}"
            try:
                assert picture is not None
                picture.save(path)
            except (OSError, ValueError, KeyError):
                path.unlink(missing_ok=True)
    return sorted(folder.iterdir())


def test_a_picture_in_any_mode_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    paths, refused = saved(tmp_path), dict[str, str]()
    assert len(paths) > 40
    for path in paths:
        for read in (read_image, partial(read_mask, size=None)):
            try:
                assert read(path, KEY).mode in ("RGB", "L")
            except InputError as error:
                refused[path.name] = str(error)
    assert all(f"{tmp_path}/{name}" in told for name, told in refused.items())
    assert not [told for told in refused.values() if "is it complete" in told]
    assert "LAB.tiff" in refused
    assert not {"L.png", "P.png", "RGBA.png", "I16.png", "CMYK.jpg"} & refused.keys()


@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_pixels_of_32_bits_have_no_known_white_and_are_refused(tmp_path: Path, kind: str) -> None:
    Image.fromarray(np.ones((4, 4), dtype=kind)).save(tmp_path / "a.tiff")
    with refusal(KEY, str(tmp_path / "a.tiff"), "save it with 8 bits"):
        read_image(tmp_path / "a.tiff", KEY)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_270),
        (8, Image.Transpose.ROTATE_90),
    ],
)
def test_exif_orientation_turns_image_and_mask(
    tmp_path: Path, orientation: int, turn: Image.Transpose
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise().save(tmp_path / "a.png", exif=exif)
    upright = noise().transpose(turn)
    read = read_image(tmp_path / "a.png", KEY)
    assert read.tobytes() == upright.tobytes()
    mask = read_mask(tmp_path / "a.png", KEY, upright.size)
    assert mask.tobytes() == upright.convert("L").tobytes()


def test_what_was_read_is_turned_once_only(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "a.png", exif=exif)
    read_image(tmp_path / "a.png", KEY).save(tmp_path / "b.png")
    assert pixel_hash(read_image(tmp_path / "b.png", KEY)) == pixel_hash(read_image(tmp_path / "a.png", KEY))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with refusal(KEY, "there is no file", str(tmp_path / "cat.png")):
        read_image(tmp_path / "cat.png", KEY)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with refusal(KEY, "is a folder", str(tmp_path)):
        read_image(tmp_path, KEY)


def test_a_file_below_a_file_and_a_name_too_long_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "cat.png", tmp_path / ("a" * 5000)):
        with refusal(KEY, str(path), "cannot be read"):
            read_image(path, KEY)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:  # root may read everything, so it is played
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(os, "open", refuse)
    with refusal(f"{KEY}: {tmp_path / 'a.png'} cannot be read (Permission denied)"):
        read_image(tmp_path / "a.png", KEY)


@pytest.mark.parametrize("content", [b"", b"GIF", b"<svg></svg>", b"just text\n" * 100])
def test_what_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with refusal(KEY, str(tmp_path / "a.png"), "not an image", "PNG or JPEG"):
        read_image(tmp_path / "a.png", KEY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, kind)
    whole, path = buffer.getvalue(), tmp_path / "cut"
    for share in np.linspace(0.001, 0.98, 60):
        path.write_bytes(whole[: int(len(whole) * share)])
        with refusal(KEY, str(path)):
            read_image(path, KEY)
    path.write_bytes(whole)
    assert read_image(path, KEY).size == (64, 64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_corrupt_file_is_read_or_refused_and_nothing_else(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    noise(40, 40).save(buffer, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    whole, path, draw = buffer.getvalue(), tmp_path / "corrupt", random.Random(kind)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 5)):
            content[draw.randrange(min(300, len(content)))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read_image(path, KEY)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either end is right, so `raises` does not fit


@pytest.mark.parametrize("side", [8001, 10_000, 30_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_unread(tmp_path: Path, side: int) -> None:
    """8001² is beyond our limit, 10,000² where Pillow warns, 30,000² and more where it refuses."""
    assert side * side > MOST_PIXELS
    path = png_header(tmp_path / "bomb.png", side, side)
    with (
        warnings.catch_warnings(record=True, action="always") as said,
        refusal(KEY, str(path), "pixels", "shrink"),
    ):
        read_image(path, KEY)
    assert not said


def test_an_image_of_the_most_pixels_is_not_refused_for_its_size(tmp_path: Path) -> None:
    with refusal(KEY, "is it complete?"):
        read_image(png_header(tmp_path / "a.png", 8000, 8000), KEY)


def test_a_mask_is_eight_bit_grey(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        white = Image.new("L", (8, 8), 255)
        white.paste(0, (0, 0, 4, 8))
        white.convert(mode).save(tmp_path / "mask.png")
        mask = read_mask(tmp_path / "mask.png", KEY, (8, 8))
        assert mask.mode == "L"
        assert mask.tobytes() == white.tobytes()


def test_a_mask_of_sixteen_bits_keeps_its_greys(tmp_path: Path) -> None:
    greys(16).save(tmp_path / "mask.png")
    assert farthest(read_mask(tmp_path / "mask.png", KEY, (16, 16)), greys(8)) <= 1


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    Image.new("L", (8, 6), 255).save(tmp_path / "mask.png")
    with refusal(KEY, str(tmp_path / "mask.png"), "8×6", "16×16"):
        read_mask(tmp_path / "mask.png", KEY, (16, 16))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_mask_that_redraws_nothing_is_refused(tmp_path: Path, bits: int) -> None:
    """Pipelines binarise a mask at one half."""
    for share, refused in ((0.0, True), (0.49, True), (0.51, False), (1.0, False)):
        grey = np.full((8, 8), round(share * (2**bits - 1)), dtype=f"uint{bits}")
        Image.fromarray(grey).save(tmp_path / "mask.png")
        if refused:
            with refusal(KEY, str(tmp_path / "mask.png"), "all black"):
                read_mask(tmp_path / "mask.png", KEY, (8, 8))
        else:
            assert read_mask(tmp_path / "mask.png", KEY, (8, 8)).size == (8, 8)


def test_a_mask_that_is_missing_or_broken_is_refused(tmp_path: Path) -> None:
    with refusal(KEY, "there is no file"):
        read_mask(tmp_path / "mask.png", KEY, (8, 8))
    (tmp_path / "mask.png").write_text("no mask")
    with refusal(KEY, "not an image"):
        read_mask(tmp_path / "mask.png", KEY, (8, 8))


def test_the_same_picture_has_one_hash_in_any_encoding(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a.png", "a.bmp", "a.tiff"):
        noise().save(tmp_path / name)
        hashes.add(pixel_hash(read_image(tmp_path / name, KEY)))
    noise().save(tmp_path / "b.png", compress_level=0, dpi=(300, 300))
    hashes.add(pixel_hash(read_image(tmp_path / "b.png", KEY)))
    assert len(hashes) == 1
    assert hashes == {pixel_hash(noise())}


def test_another_mode_size_or_pixel_has_another_hash() -> None:
    changed = noise()
    changed.putpixel((3, 4), (0, 0, 0))
    flat = Image.new("L", (4, 9), 7)
    images = [
        noise(),
        changed,
        noise(seed=1),
        noise().transpose(Image.Transpose.ROTATE_90),
        noise().convert("L"),
        flat,
        flat.resize((9, 4)),  # the same bytes in another shape
        flat.resize((6, 6)),
        Image.frombytes("RGB", (4, 3), flat.tobytes()),  # the same bytes in another mode
    ]
    assert len({pixel_hash(image) for image in images}) == len(images)


def test_what_pillow_would_hand_to_another_program_is_refused(tmp_path: Path) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    (tmp_path / "a.png").write_bytes(postscript)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS", "Pillow itself would take it"
    with refusal(KEY, str(tmp_path / "a.png"), "not an image", "PNG or JPEG"):
        read_image(tmp_path / "a.png", KEY)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop", "huge"])
def test_what_could_be_waited_for_or_never_ends_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    with unending(tmp_path, kind) as (path, words):
        with refusal(KEY, str(path), words):
            read_image(path, KEY)
        with refusal(KEY, str(path), words):
            read_mask(path, KEY, (8, 8))


# What a picture holds besides its pixels


SHAPE = np.zeros((8, 8), dtype="uint8")
SHAPE[2:5, 3:7] = 255


def layers(path: Path, colour: object, alpha: object) -> Path:
    """An RGBA picture of colours (8 × 8 × 3, or one for all) and an alpha (8 × 8, or one for all)."""
    pixels = np.zeros((8, 8, 4), dtype="uint8")
    pixels[..., :3], pixels[..., 3] = colour, alpha
    Image.fromarray(pixels).save(path)
    return path


def mask_of(path: Path) -> tuple[Image.Image, list[str]]:
    told: list[str] = []
    return read_mask(path, KEY, (8, 8), told.append), told


def image_of(path: Path) -> tuple[Image.Image, list[str]]:
    told: list[str] = []
    return read_image(path, KEY, told.append), told


SOFT = SHAPE // 2 + np.roll(SHAPE, 1, axis=1) // 2
"""A shape with soft edges, as brushes paint it."""


@pytest.mark.parametrize("shape", [SHAPE, SOFT])
@pytest.mark.parametrize("colour", [255, (250, 240, 255), (0, 255, 0)])
def test_a_shape_painted_bright_on_a_transparent_layer_is_its_alpha(
    tmp_path: Path, shape: np.ndarray, colour: object
) -> None:
    mask, told = mask_of(layers(tmp_path / "mask.png", colour, shape))
    assert mask.tobytes() == shape.tobytes()
    assert ["painted on a transparent layer" in line for line in told] == [True]


def test_what_lies_beneath_a_transparent_layer_decides_nothing(tmp_path: Path) -> None:
    """Programs write black, white or what was there before."""
    hidden = np.where(SHAPE[..., None] > 0, 255, np.asarray(noise(8, 8)))
    for name, colour in (("black.png", SHAPE[..., None]), ("noise.png", hidden)):
        mask, _ = mask_of(layers(tmp_path / name, colour, SHAPE))
        assert mask.tobytes() == SHAPE.tobytes()


def test_a_grey_palette_or_one_transparent_colour_is_an_alpha_too(tmp_path: Path) -> None:
    Image.merge("LA", (Image.new("L", (8, 8), 255), Image.fromarray(SHAPE))).save(tmp_path / "la.png")
    palette = Image.fromarray(SHAPE // 255)
    palette = palette.convert("P")
    palette.putpalette([255, 255, 255] * 2)
    palette.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    deep = Image.fromarray(np.where(SHAPE, 65535, 65534).astype("uint16"))
    deep.save(tmp_path / "deep.png", transparency=65534)
    for name in ("la.png", "p.png", "deep.png"):
        mask, told = mask_of(tmp_path / name)
        assert mask.tobytes() == SHAPE.tobytes(), name
        assert len(told) == 1


def test_a_mask_whose_transparency_may_mean_two_things_is_refused(tmp_path: Path) -> None:
    halves = np.zeros((8, 8, 1), dtype="uint8")
    halves[:4] = 255
    for colour, alpha, words in (
        (halves, SHAPE, "has transparent pixels, and more than one colour; flatten it"),
        (
            np.asarray(noise(8, 8)),
            255 - SHAPE,
            "has transparent pixels, and more than one colour; flatten it",
        ),
        (0, SHAPE, "is painted dark on a transparent layer"),
        (255, 0, "is transparent everywhere"),
        (halves, 100, "flatten it"),
    ):
        layers(tmp_path / "mask.png", colour, alpha)
        with refusal(KEY, str(tmp_path / "mask.png"), words):
            mask_of(tmp_path / "mask.png")


def test_a_transparency_that_changes_nothing_leaves_a_mask_as_it_is(tmp_path: Path) -> None:
    for alpha in (255, np.where(SHAPE > 0, 255, 254), 250):
        mask, told = mask_of(layers(tmp_path / "mask.png", SHAPE[..., None], alpha))
        assert mask.tobytes() == SHAPE.tobytes()
        assert not told


def test_a_mask_that_covers_everything_or_looks_like_a_photo_is_said(tmp_path: Path) -> None:
    told = {}
    for name, pixels in (
        ("everything", np.full((8, 8), 255, dtype="uint8")),
        ("photo", np.asarray(noise(8, 8))),
        ("greys", np.asarray(noise(8, 8).convert("L"))),
        ("mask", SHAPE),
        ("soft", SOFT),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        told[name] = mask_of(tmp_path / f"{name}.png")[1]
    assert ["covers everything" in line for line in told["everything"]] == [True]
    assert ["colours" in line and "as a photo has" in line for line in told["photo"]] == [True]
    assert ["greys" in line and "as a photo has" in line for line in told["greys"]] == [True]
    assert not told["mask"]
    assert not told["soft"]


def test_the_transparent_pixels_of_an_image_keep_their_colours_and_are_said(tmp_path: Path) -> None:
    colours = np.asarray(noise(8, 8))
    for alpha, said in ((255, []), (255 - SHAPE, ["has transparent pixels (19% of it)"])):
        read, told = image_of(layers(tmp_path / "cat.png", colours, alpha))
        assert read.tobytes() == colours.tobytes()
        assert len(told) == len(said)
        assert all(words in line for words, line in zip(said, told, strict=True))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_further_frames_are_said(tmp_path: Path, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    noise().save(tmp_path / "a", kind, save_all=True, append_images=[noise(seed=1)], **options)
    read, told = image_of(tmp_path / "a")
    assert ["several frames or pages, of which the first is used" in line for line in told] == [True]
    assert kind == "GIF" or read.tobytes() == noise().tobytes()
    noise().save(tmp_path / "b", kind, **options)
    assert not image_of(tmp_path / "b")[1]


def test_the_previews_of_a_photo_are_no_frames(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise(seed=1)])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
    assert not image_of(tmp_path / "a.jpg")[1]


def profile(gamma: float) -> bytes:
    """sRGB's colour profile as littlecms makes it, but that the numbers' meaning follows `gamma`."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = [struct.unpack_from(">4sII", made, 132 + 12 * number) for number in range(made[131])]
    for tag, start, _ in places:
        if tag in (b"rTRC", b"gTRC", b"bTRC"):  # a curve of one number is a gamma, in 1/256
            struct.pack_into(">4sIIH", made, start, b"curv", 0, 1, round(gamma * 256))
    return bytes(made)


def test_a_colour_profile_is_said_where_the_colours_would_look_otherwise(tmp_path: Path) -> None:
    for embedded, words in (
        (profile(2.2), None),
        (profile(1.0), "has the colour profile 'sRGB built-in', and its numbers are taken as sRGB"),
        (b"no profile", "has the colour profile that cannot be read"),
    ):
        for mode in ("RGB", "RGBA", "P"):
            noise().convert(mode).save(tmp_path / "a.png", icc_profile=embedded)
            told = image_of(tmp_path / "a.png")[1]
            assert len(told) == (words is not None)
            assert all(words is not None and words in line for line in told)


def test_the_inks_of_a_print_and_another_gamma_are_said(tmp_path: Path) -> None:
    noise().convert("CMYK").save(tmp_path / "a.jpg")
    assert ["(CMYK)" in line for line in image_of(tmp_path / "a.jpg")[1]] == [True]
    for gamma, said in ((1.0, True), (1 / 2.2, False)):
        info = PngInfo()
        info.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
        noise().save(tmp_path / "a.png", pnginfo=info)
        assert [f"gamma {gamma:.3g}" in line for line in image_of(tmp_path / "a.png")[1]] == [True] * said


IMAGE_NAME, MASK_NAME = "aaa92cc01f2c9adf4fbaca5ae8197557", "0e318e7c0c018454ea1226cd916cfea6"


def test_what_was_read_right_keeps_its_name(tmp_path: Path) -> None:
    """The hashes under which earlier versions stored pictures of these inputs."""
    halves = Image.fromarray(SHAPE)
    halves.save(tmp_path / "mask.png")
    noise(8, 8).save(tmp_path / "image.png")
    layers(tmp_path / "opaque.png", SHAPE[..., None], 255)
    assert pixel_hash(read_image(tmp_path / "image.png", KEY)) == pixel_hash(noise(8, 8)) == IMAGE_NAME
    for name in ("mask.png", "opaque.png"):
        assert pixel_hash(read_mask(tmp_path / name, KEY, (8, 8))) == MASK_NAME
