"""Input images and masks: read, checked and named by their pixels."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from search_spaces.errors import InputError

MOST_PIXELS = 64_000_000
"""An input with more pixels is refused unread: no pipeline takes it, and it may be a decompression bomb."""


FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
"""What is read: pixels alone. Pillow would run Ghostscript for some of the others."""


def read_image(path: Path, what: str) -> Image.Image:
    """An image as RGB, turned as its EXIF orientation says. Raises InputError; `what` names the key."""
    return _read(path, what, "RGB")


def read_mask(path: Path, what: str, size: tuple[int, int] | None) -> Image.Image:
    """A mask as 8-bit grey of `size` (width, height), or of any with None; white is redrawn. Raises InputError."""
    mask = _read(path, what, "L")
    if size is not None and mask.size != size:
        raise InputError(
            f"{what}: the mask {path} is {mask.width}×{mask.height} pixels, its image {size[0]}×{size[1]}; "
            "they must be of one size"
        )
    if mask.getextrema()[1] < 128:  # type: ignore[operator]  # the pipelines binarise masks at one half
        raise InputError(
            f"{what}: the mask {path} is all black, so nothing would be redrawn; paint it white there"
        )
    return mask


def _read(path: Path, what: str, mode: str) -> Image.Image:
    try:
        # Pillow warns of large images, which are refused, and of lost transparency and EXIF, which is meant.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            _refuse_huge(image.size, path, what)
            image.load()
            return _converted(ImageOps.exif_transpose(image), mode)
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
        problem = getattr(error, "strerror", None) or error
        raise InputError(f"{what}: {path} cannot be read ({problem}); is it complete?") from None


def _refuse_huge(size: tuple[int, int], path: Path, what: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{what}: {path} has {width}×{height} pixels, more than the {MOST_PIXELS:,} that an input "
            "may have; shrink it first"
        )


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The image in an 8-bit mode. Raises ValueError for pixels whose white is not known."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; save it with 8 bits a channel")
    if image.mode.startswith("I;16"):  # Pillow would clip: all but the darkest 256 greys turn white
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    return image.convert(mode)


def pixel_hash(image: Image.Image) -> str:
    """Name of an image by mode, size and pixels, so that another encoding of the same picture is the same."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]
