"""Input images and masks: read, checked and named by their pixels."""

import hashlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from search_spaces.errors import InputError

MOST_PIXELS = 64_000_000
"""An input with more pixels is refused unread: no pipeline takes it, and it may be a decompression bomb."""


def read_image(path: Path, what: str) -> Image.Image:
    """An image as RGB, turned as its EXIF orientation says. Raises InputError; `what` names the key."""
    return _read(path, what).convert("RGB")


def read_mask(path: Path, what: str, size: tuple[int, int]) -> Image.Image:
    """A mask as 8-bit grey of `size` (width, height); white is redrawn. Raises InputError."""
    mask = _read(path, what).convert("L")
    if mask.size != size:
        raise InputError(
            f"{what}: the mask {path} is {mask.width}×{mask.height} pixels, its image {size[0]}×{size[1]}; "
            "they must be of one size"
        )
    if mask.getextrema()[1] < 128:  # type: ignore[operator]  # the pipelines binarise masks at one half
        raise InputError(
            f"{what}: the mask {path} is all black, so nothing would be redrawn; paint it white there"
        )
    return mask


def _read(path: Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise InputError(
                    f"{what}: {path} has {image.width}×{image.height} pixels, more than the "
                    f"{MOST_PIXELS:,} that an input may have; shrink it first"
                )
            image.load()
            turned: Image.Image = ImageOps.exif_transpose(image)
            return turned
    except FileNotFoundError:
        raise InputError(f"{what}: there is no file {path}") from None
    except IsADirectoryError:
        raise InputError(f"{what}: {path} is a folder, not an image") from None
    except UnidentifiedImageError:
        raise InputError(f"{what}: {path} is not an image that Pillow can read; use PNG or JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{what}: {path} has too many pixels for an input; shrink it first") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{what}: {path} cannot be read ({error}); is it complete?") from None


def pixel_hash(image: Image.Image) -> str:
    """Name of an image by mode, size and pixels, so that another encoding of the same picture is the same."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]
