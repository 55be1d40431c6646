"""An honest fake: scores by brightness, without a model."""

from collections.abc import Sequence

from PIL import Image, ImageStat


class BrightnessScorer:
    """The mean grey of a picture, 0 to 255, whatever the text."""

    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Sequence[float]:
        """The mean grey of each image."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts must be of one length")
        return [float(ImageStat.Stat(image.convert("L")).mean[0]) for image in images]

    def notes(self, texts: Sequence[str]) -> Sequence[str]:  # noqa: ARG002  # the seam's keyword
        """Nothing to know."""
        return []
