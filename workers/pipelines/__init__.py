"""The seam `Pipeline`: what turns image requests into pictures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from search_spaces.requests import Failed, ImageRequest

Inputs = Mapping[str, Image.Image]
"""Input images (RGB) and masks (L) by pixel hash."""


HOLDS_NAN = "the picture holds NaN"
ALL_BLACK = "the picture is all black"
NOT_FINITE = "is not a finite number"
OUT_OF_MEMORY = "out of memory"


def may_be_the_device(failed: Failed) -> bool:
    """Whether a broken device fails so too, so that another one should have its say before it counts."""
    return (
        failed.kind == "lost" or failed.reason in (HOLDS_NAN, ALL_BLACK) or failed.reason.endswith(NOT_FINITE)
    )


def may_stay_with_the_process(failed: Failed) -> bool:
    """Whether whatever comes next may fail of it too, as after some errors of CUDA, and a new process heals that."""
    return failed.kind == "lost" and not failed.reason.startswith(OUT_OF_MEMORY)


@dataclass(frozen=True)
class Generated:
    """A finished request: a picture, or why there is none.

    `seconds` is this request's share of the call that made it; `unet_calls` is None where the pipeline
    has no UNet to count. `after` is set where the picture is an early look: the one predicted after so many
    UNet calls. `notes` are sentences for the user.
    """

    request: ImageRequest
    picture: Image.Image | Failed
    seconds: float
    unet_calls: int | None
    after: int | None = None
    notes: tuple[str, ...] = ()


class Pipeline(Protocol):
    """Takes requests in, works until something is finished, gives back what is. No threads.

    Every request taken in comes back from this call or a later one exactly once, unless it is cancelled
    before it is begun. A pipeline that can, gives a request that asks for it back as an early look and keeps
    what it has, so that the same request, asked for again, goes on from there. A call with nothing new goes
    on with what is held and may return empty-handed after a while; with nothing held it returns at once.
    """

    @property
    def steps(self) -> int:
        """How much has been done, in any unit: while it grows, the pipeline is alive. Asked from another thread."""
        ...

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        """Take in `new`, forget what `cancelled` names by image_id, and work."""
        ...
