"""How much of an input image is left where its mask asks for nothing new: PSNR over the pixels that it keeps.

Inpainting pipelines decode the whole picture from latents, so that pixels outside the mask change too: by what
the VAE loses, and by what the UNet redraws of them (diffusers issues 3880 and 4782).
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from search_spaces.requests import ImageRequest

ROUNDING = 1 / 12
"""Mean squared error that storing a number as a whole one leaves, in its own units: what less of cannot be told."""

MOST = 10 * math.log10(255**2 / ROUNDING)
"""In dB: of a picture that is the input image itself there, 58.9."""

REFERENCES = 16
"""Input images, with their masks and at the sizes asked for, that are kept ready."""


def kept(mask: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels that a mask keeps in a picture of a size (width, height): those that are black in it.

    As diffusers' VaeImageProcessor does: the mask is resized by Lanczos' filter, and black is what lies below one
    half. The array has the shape (height, width).
    """
    grey = mask.convert("L").resize(size, Image.Resampling.LANCZOS)
    below: npt.NDArray[np.bool_] = np.asarray(grey) < 128
    return below


class PreservationScorer:
    """PSNR in dB, 10 · log10(255² / MSE), over all channels of the pixels outside the mask; more is more alike.

    The input image is resized as the pipeline does it. 0 is as unlike as can be, `MOST` is the same to the
    last bit, so that no score is infinite. `inputs` are the input images and masks by pixel hash.
    """

    def __init__(self, inputs: Mapping[str, Image.Image]) -> None:
        self._inputs = inputs
        self._reference = lru_cache(maxsize=REFERENCES)(self._make_reference)

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
        """One value from 0 to `MOST` per image; NaN where a mask keeps no pixel.

        Raises ValueError for a request without image or mask.
        """
        if len(images) != len(requests):
            raise ValueError(f"{len(images)} images and {len(requests)} requests must be of one length")
        return [self._psnr(image, request) for image, request in zip(images, requests, strict=True)]

    def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:  # noqa: ARG002  # the seam's keyword
        """Nothing to know."""
        return []

    def _psnr(self, image: Image.Image, request: ImageRequest) -> float:
        if request.image is None or request.mask is None:
            raise ValueError(f"image {request.image_id} was drawn without an input image or without a mask")
        reference, where = self._reference(request.image, request.mask, image.size)
        if not len(reference):
            return math.nan
        drawn = np.asarray(image.convert("RGB"))[where]
        squares = (drawn.astype(np.float64) - reference) ** 2
        return 10 * math.log10(255**2 / max(ROUNDING, float(squares.mean())))

    def _make_reference(
        self, image: str, mask: str, size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """The kept pixels of an input image at a size, of shape (pixels, 3), and where they lie."""
        where = kept(self._inputs[mask], size)
        pixels = self._inputs[image].convert("RGB").resize(size, Image.Resampling.LANCZOS)
        return np.asarray(pixels)[where], where
