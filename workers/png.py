"""Pictures as files in and out, with texts in them that say what a picture is: PNG, or WebP and JPEG on request."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from PIL import Image, PngImagePlugin

from search_spaces.requests import ImageRequest, Value
from workers.infotext import Origin, document, parameters

ImageFormat = Literal["png", "webp", "jpeg"]
"""How pictures are stored: png and webp without loss (webp is smaller and slower), jpeg with quality 95."""

_SAVED: dict[str, dict[str, object]] = {
    "webp": {"lossless": True, "exact": True},
    "jpeg": {"quality": 95, "subsampling": 0},
}
MOST_JPEG_EXIF = 65_533
"""Bytes: one segment of a JPEG file, in which all of it lies."""

_EXIF, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E


@dataclass(frozen=True)
class Encoder:
    """Makes files of a format, which say what drew their pictures."""

    form: ImageFormat = "png"
    origin: Origin = field(default_factory=Origin)

    def __call__(self, image: Image.Image, request: ImageRequest, scores: Mapping[str, float]) -> bytes:
        """The image as a file, its settings and scores inside as `encode_png` has them, or in the EXIF data.

        There `UserComment` is the web UIs' line format and `ImageDescription` the JSON, with long texts cut where
        JPEG has no room for them. Raises ValueError or OSError for what the format cannot hold.
        """
        if self.form == "png":
            return encode_png(image, request, self.origin, scores)
        most = MOST_JPEG_EXIF if self.form == "jpeg" else None
        exif = _exif(request, image.size, self.origin, scores, most)
        buffer = io.BytesIO()
        plain = image if image.mode in ("RGB", "L") or self.form == "webp" else image.convert("RGB")
        plain.save(buffer, format=self.form, exif=exif, **_SAVED[self.form])
        return buffer.getvalue()


def _exif(
    request: ImageRequest,
    size: tuple[int, int],
    origin: Origin,
    scores: Mapping[str, float],
    most: int | None,
) -> bytes:
    """What a picture says of itself as EXIF data of at most so many bytes; the catalog has whole what is cut here."""
    room = max(len(text) for text in (request.prompt, request.score_text, *_written(request)))
    while True:
        cut = _cut(request, room)
        line = parameters(cut, size, origin, scores)
        exif = Image.Exif()
        exif[_DESCRIPTION] = document(cut, origin, scores)
        exif.get_ifd(_EXIF)[_USER_COMMENT] = b"UNICODE\0" + line.encode("utf-16-be")
        content = exif.tobytes()
        if most is None or len(content) <= most or room <= 1:
            return content
        room = room * 3 // 4


def _written(request: ImageRequest) -> list[str]:
    return [value for value in request.settings.values() if isinstance(value, str)]


def _cut(request: ImageRequest, room: int) -> ImageRequest:
    """A request whose texts have at most so many characters, the last one … where more were there."""

    def shorter(value: Value) -> Value:
        return f"{value[: room - 1]}…" if isinstance(value, str) and len(value) > room else value

    return replace(
        request,
        prompt=str(shorter(request.prompt)),
        score_text=str(shorter(request.score_text)),
        settings={name: shorter(value) for name, value in request.settings.items()},
    )


def as_png(picture: bytes) -> bytes:
    """A stored picture as PNG, for those who take nothing else."""
    return picture if picture.startswith(b"\x89PNG") else encode_png(decode_png(picture))


def encode_png(
    image: Image.Image,
    request: ImageRequest | None = None,
    origin: Origin = Origin(),  # noqa: B008 -- it is frozen
    scores: Mapping[str, float] | None = None,
) -> bytes:
    """The image as PNG bytes; with `request`, its settings in two text chunks.

    `parameters` is the line format that the web UIs write and image tools read; `latentsweep` is JSON with
    the image_id.
    """
    info = PngImagePlugin.PngInfo()
    if request is not None:
        info.add_text("parameters", parameters(request, image.size, origin, scores))
        info.add_text("latentsweep", document(request, origin, scores))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def decode_png(png: bytes) -> Image.Image:
    """A stored picture, in any of the formats in which they are stored, as an image, fully read.

    Pillow refuses one of more pixels than it takes for a decompression bomb, 179 million, before it decodes it.
    """
    image = Image.open(io.BytesIO(png), formats=("PNG", "WEBP", "JPEG"))
    image.load()
    return image
