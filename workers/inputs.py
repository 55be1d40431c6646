"""Input images and masks: read, checked and named by their pixels."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from search_spaces.errors import InputError
from search_spaces.plain_files import open_plain

MOST_PIXELS = 64_000_000
"""An input with more pixels is refused unread: no pipeline takes it, and it may be a decompression bomb."""

MOST_BYTES = 600_000_000
"""Of an input's file: the most pixels with 16 bits in each of four channels, and room for what is beside them."""

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
"""What is read: pixels alone. Pillow would run Ghostscript for some of the others."""

MOST_GREY = 0.25
"""The part of a mask that soft edges may take; where more is neither black nor white, it may be a photo."""

FAR = 16
"""Levels of 255 by which colours differ to the eye: less is rounding."""

Tell = Callable[[str], None]
"""Hears a sentence about what a picture holds that is not used as it may have been meant."""


def read_image(path: Path, what: str, tell: Tell = lambda _: None) -> Image.Image:
    """An image as RGB, turned as its EXIF orientation says. Raises InputError; `what` names the key.

    Transparency, further frames and colour profiles have no place in it: `tell` hears of them.
    """
    stored = _read(path, what)
    for remark in (*_several_frames(stored), *_see_through(stored), *_other_colours(stored)):
        tell(f"{what}: {path} {remark}")
    return _as_eight_bits(stored.image, "RGB")


def read_mask(
    path: Path, what: str, size: tuple[int, int] | None, tell: Tell = lambda _: None
) -> Image.Image:
    """A mask as 8-bit grey of `size` (width, height), or of any with None; white is redrawn. Raises InputError.

    Where its shape was painted bright on a transparent layer, that layer's alpha is the mask. `tell` hears of that,
    and of what is likely not meant: a mask that covers everything, or that is a photo.
    """
    stored = _read(path, what)
    if size is not None and stored.image.size != size:
        raise InputError(
            f"{what}: the mask {path} is {stored.image.width}×{stored.image.height} pixels, its image "
            f"{size[0]}×{size[1]}; they must be of one size"
        )
    mask = _as_eight_bits(stored.image, "L")
    remarks = [*_several_frames(stored), *_like_a_photo(stored)]
    if stored.alpha is not None and _decides(stored.alpha, mask):
        problem = _not_painted_bright(stored, stored.alpha)
        if problem is not None:
            raise InputError(f"{what}: the mask {path} {problem}")
        mask = stored.alpha
        remarks = [*_several_frames(stored), "is painted on a transparent layer: what is opaque is redrawn"]
    darkest, brightest = np.asarray(mask).min(), np.asarray(mask).max()
    if brightest < 128:  # the pipelines binarise masks at one half
        raise InputError(
            f"{what}: the mask {path} is all black, so nothing would be redrawn; paint it white there"
        )
    if darkest >= 128:
        remarks.append("covers everything: all of the image is redrawn")
    for remark in remarks:
        tell(f"{what}: the mask {path} {remark}")
    return mask


@dataclass(frozen=True)
class _Stored:
    """A picture as its file holds it, upright: its alpha in 8 bits, where it has one, and whether more follow."""

    image: Image.Image
    alpha: Image.Image | None
    has_frames: bool


def _read(path: Path, what: str) -> _Stored:
    try:
        # Pillow warns of large images, which are refused, and of lost transparency and EXIF, which is meant.
        with (
            warnings.catch_warnings(action="ignore"),
            open_plain(path, MOST_BYTES) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            _refuse_huge(image.size, path, what)
            # An MPO is a JPEG with previews or a gain map behind it.
            has_frames = image.format != "MPO" and bool(getattr(image, "is_animated", False))
            image.load()
            upright = ImageOps.exif_transpose(image)
            _refuse_mode(upright, path, what)
            return _Stored(upright, _alpha(upright), has_frames)
    except FileNotFoundError:
        raise InputError(f"{what}: there is no file {path}") from None
    except IsADirectoryError:
        raise InputError(f"{what}: {path} is a folder, not an image") from None
    except UnidentifiedImageError:
        raise InputError(f"{what}: {path} is not an image that is read here; use PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise InputError(f"{what}: {path} has too many pixels for an input; shrink it first") from None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  # on a broken file, Pillow's decoders raise anything
        problem = getattr(error, "strerror", None)
        advice = f"({problem})" if problem else f"({error}); is it complete?"
        raise InputError(f"{what}: {path} cannot be read {advice}") from None


def _refuse_huge(size: tuple[int, int], path: Path, what: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{what}: {path} has {width}×{height} pixels, more than the {MOST_PIXELS:,} that an input "
            "may have; shrink it first"
        )


def _refuse_mode(image: Image.Image, path: Path, what: str) -> None:
    if image.mode in ("I", "F"):  # of a PGM too, where Pillow makes 32 bits of 16
        raise InputError(
            f"{what}: {path} has more than 8 bits a pixel, and nothing says which number is white; save it "
            "with 8 bits"
        )
    if image.mode == "LAB":
        raise InputError(f"{what}: {path} has its colours in CIELAB; save it as RGB or grey")


def _as_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip: all but the darkest 256 greys turn white
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    with warnings.catch_warnings(action="ignore"):
        return image.convert(mode)


def _alpha(image: Image.Image) -> Image.Image | None:
    """The transparency of a picture, however it is stored; None where nothing of it is transparent."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I;16"):  # one grey stands for what is transparent
        opaque = np.asarray(image) != image.info["transparency"]
        alpha = Image.fromarray(np.where(opaque, 255, 0).astype("uint8"))
    else:
        alpha = image.convert("RGBA").getchannel("A")
    return alpha if np.asarray(alpha).min() < 255 else None


def _decides(alpha: Image.Image, mask: Image.Image) -> bool:
    """Whether it matters for a mask what its transparent pixels lie on: flattened on black or white it differs."""
    grey, opacity = np.asarray(mask).astype("uint16"), np.asarray(alpha).astype("uint16")
    on_black = grey * opacity
    on_white = on_black + 255 * (255 - opacity)
    half, redrawn = np.uint16(128 * 255), grey >= 128
    return bool(((on_black >= half) != redrawn).any() or ((on_white >= half) != redrawn).any())


def _not_painted_bright(stored: _Stored, alpha: Image.Image) -> str | None:
    """Why a mask's alpha is not plainly its shape; None where one bright colour was painted on a transparent layer.

    What is nearly transparent says nothing of the colour, which is rounded there.
    """
    visible = np.asarray(stored.image.convert("RGBA"))[np.asarray(alpha) >= FAR][:, :3]
    if not len(visible):
        return "is transparent everywhere; paint white what is to be redrawn, on black"
    if (visible.max(axis=0).astype(int) - visible.min(axis=0) > FAR).any():
        return "has transparent pixels, and more than one colour; flatten it: white is redrawn, black is kept"
    if Image.new("RGB", (1, 1), tuple(map(int, visible[0]))).convert("L").getpixel((0, 0)) < 128:  # type: ignore[operator]
        return "is painted dark on a transparent layer; paint white what is to be redrawn, on black"
    return None


def _several_frames(stored: _Stored) -> Iterator[str]:
    if stored.has_frames:
        yield "has several frames or pages, of which the first is used"


def _see_through(stored: _Stored) -> Iterator[str]:
    if stored.alpha is not None:
        share = float((np.asarray(stored.alpha) < 255).mean())
        yield (
            f"has transparent pixels ({share:.0%} of it), which are taken with the colours that are stored beneath; "
            "flatten it to choose what shows there"
        )


def _other_colours(stored: _Stored) -> Iterator[str]:
    """What a picture says of its colours, where they would look otherwise if its numbers were taken as sRGB."""
    image = stored.image
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if image.mode == "CMYK":
        yield "has the inks of a print (CMYK), which are turned into RGB without their profile; save it as RGB"
    elif profile and (name := _unlike_srgb(profile, image.mode)):
        yield f"has the colour profile {name}, and its numbers are taken as sRGB; convert it to sRGB"
    elif not profile and isinstance(gamma, float) and abs(gamma - 1 / 2.2) > 0.02:
        yield f"is stored with gamma {gamma:.3g}, and its numbers are taken as sRGB; convert it to sRGB"


def _unlike_srgb(profile: bytes, mode: str) -> str | None:
    """A profile's name, where it means other colours than sRGB by the same numbers."""
    levels = np.arange(0, 256, 51, dtype="uint8")
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(6, 36, 3)
    colours = Image.fromarray(grid) if mode not in ("L", "LA", "1") else Image.fromarray(levels[None])
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        seen = ImageCms.profileToProfile(colours, opened, srgb, outputMode="RGB")
        name = repr(ImageCms.getProfileDescription(opened).strip())
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "that cannot be read"
    assert seen is not None
    far = np.abs(np.asarray(seen).astype(int) - np.asarray(colours.convert("RGB"))).max()
    return name if far > FAR else None


def _like_a_photo(stored: _Stored) -> Iterator[str]:
    """What makes a mask look like a photo; what is read is its brightness alone, and of that above or below half."""
    step = max(1, max(stored.image.size) // 512)
    small = np.asarray(_as_eight_bits(stored.image, "RGB"))[::step, ::step].astype(int)
    grey = float(((small.max(axis=-1) > 2 * FAR) & (small.min(axis=-1) < 255 - 2 * FAR)).mean())
    coloured = float((small.max(axis=-1) - small.min(axis=-1) > 2 * FAR).mean())
    if coloured > 0.01:
        yield f"has colours ({coloured:.0%} of it), as a photo has; what is brighter than half is redrawn"
    elif grey > MOST_GREY:
        yield f"has many greys ({grey:.0%} of it), as a photo has; what is brighter than half is redrawn"


def pixel_hash(image: Image.Image) -> str:
    """Name of an image by mode, size and pixels, so that another encoding of the same picture is the same."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]
