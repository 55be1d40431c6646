"""The seam `Scorer`: how well a picture shows what a text says."""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image


class Scorer(Protocol):
    """Scores pictures against texts, a whole batch at a time."""

    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Sequence[float]:
        """One finite float per image; `images` and `texts` are of one length."""
        ...

    def notes(self, texts: Sequence[str]) -> Sequence[str]:
        """What a reader should know of how these texts are judged, a sentence each."""
        ...
