"""Pictures as files in and out, with texts in them that say what a picture is: PNG, or WebP and JPEG on request."""

import io
import json
from typing import Literal

from PIL import Image, PngImagePlugin

from search_spaces.requests import ImageRequest

ImageFormat = Literal["png", "webp", "jpeg"]
"""How pictures are stored: png and webp without loss (webp is smaller and slower), jpeg with quality 95."""

_SAVED: dict[str, dict[str, object]] = {
    "webp": {"lossless": True, "exact": True},
    "jpeg": {"quality": 95, "subsampling": 0},
}
_EXIF, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E


def encode(image: Image.Image, request: ImageRequest, form: ImageFormat) -> bytes:
    """The image as a file of a format, with its settings inside as `encode_png` has them, or in the EXIF data.

    There `UserComment` is the web UIs' line format and `ImageDescription` the JSON.
    """
    if form == "png":
        return encode_png(image, request)
    exif = Image.Exif()
    exif[_DESCRIPTION] = _document(request)
    exif.get_ifd(_EXIF)[_USER_COMMENT] = b"UNICODE\0" + parameters(request, image.size).encode("utf-16-be")
    buffer = io.BytesIO()
    plain = image if image.mode in ("RGB", "L") or form == "webp" else image.convert("RGB")
    plain.save(buffer, format=form, exif=exif, **_SAVED[form])
    return buffer.getvalue()


def as_png(picture: bytes) -> bytes:
    """A stored picture as PNG, for those who take nothing else."""
    return picture if picture.startswith(b"\x89PNG") else encode_png(decode_png(picture))


def encode_png(image: Image.Image, request: ImageRequest | None = None) -> bytes:
    """The image as PNG bytes; with `request`, its settings in two text chunks.

    `parameters` is the line format that the web UIs write and image tools read; `latentsweep` is JSON with
    the image_id.
    """
    info = PngImagePlugin.PngInfo()
    if request is not None:
        info.add_text("parameters", parameters(request, image.size))
        info.add_text("latentsweep", _document(request))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _document(request: ImageRequest) -> str:
    document = {
        "image_id": request.image_id,
        "prompt": request.prompt,
        "seed": request.seed,
        "settings": dict(request.settings),
        "image": request.image,
        "mask": request.mask,
    }
    return json.dumps(document)


def decode_png(png: bytes) -> Image.Image:
    """A stored picture, in any of the formats in which they are stored, as an image, fully read.

    Pillow refuses one of more pixels than it takes for a decompression bomb, 179 million, before it decodes it.
    """
    image = Image.open(io.BytesIO(png), formats=("PNG", "WEBP", "JPEG"))
    image.load()
    return image


def parameters(request: ImageRequest, size: tuple[int, int]) -> str:
    """Prompt, negative prompt and `Name: value` pairs as the Stable Diffusion web UI writes them."""
    settings = request.settings
    named = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": str(settings.get("scheduler", "")).removesuffix("Scheduler"),
        "CFG scale": settings.get("guidance_scale"),
        "Seed": request.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Denoising strength": settings.get("strength"),
        "Clip skip": settings.get("clip_skip"),
    }
    pairs = ", ".join(f"{name}: {value}" for name, value in named.items() if value not in (None, ""))
    negative = settings.get("negative_prompt")
    lines = [request.prompt, f"Negative prompt: {negative}" if negative else "", pairs]
    return "\n".join(line for line in lines if line)
