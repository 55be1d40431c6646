"""The seam `Pipeline`: what turns image requests into pictures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from search_spaces.requests import Failed, ImageRequest

Inputs = Mapping[str, Image.Image]
"""Input images (RGB) and masks (L) by pixel hash."""


@dataclass(frozen=True)
class Generated:
    """A finished request: a picture, or why there is none.

    `seconds` is this request's share of the call that made it; `unet_calls` is None where the pipeline
    has no UNet to count.
    """

    request: ImageRequest
    picture: Image.Image | Failed
    seconds: float
    unet_calls: int | None


class Pipeline(Protocol):
    """Takes requests in, works until something is finished, gives back what is. No threads.

    Every request taken in comes back from this call or a later one exactly once, unless it is cancelled
    before it is begun. A call with nothing new goes on with what is held; with nothing held it returns
    at once.
    """

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        """Take in `new`, forget what `cancelled` names by image_id, and work."""
        ...
