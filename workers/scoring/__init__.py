"""The seam `Scorer`: how good a picture is for what was asked."""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from search_spaces.requests import ImageRequest


class Scorer(Protocol):
    """Judges pictures, a whole batch at a time, by what their requests say: a text, an input image, a mask."""

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
        """One finite float per image; `images` and `requests` are of one length."""
        ...

    def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:
        """What a reader should know of how these are judged, a sentence each."""
        ...
