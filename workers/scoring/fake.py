"""An honest fake: scores by brightness, without a model."""

from collections.abc import Sequence

from PIL import Image, ImageStat

from search_spaces.requests import ImageRequest


class BrightnessScorer:
    """The mean grey of a picture, 0 to 255, whatever was asked."""

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
        """The mean grey of each image."""
        if len(images) != len(requests):
            raise ValueError(f"{len(images)} images and {len(requests)} requests must be of one length")
        return [float(ImageStat.Stat(image.convert("L")).mean[0]) for image in images]

    def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:  # noqa: ARG002  # the seam's keyword
        """Nothing to know."""
        return []
