"""The seam `Scorer`: what holds for every implementation."""

import math
from pathlib import Path

import pytest
from PIL import Image

from tests.workers.helpers import farthest
from workers.scoring import Scorer
from workers.scoring.clip import ClipScorer
from workers.scoring.fake import BrightnessScorer

TEXTS = ["a cat", "a green dragon", "", "a cat", "ein grüner Drache 🐉"]


class ScorerContract:
    """Three lines of test class per implementation: a fixture `scorer`."""

    @pytest.fixture
    def images(self, cat: tuple[Image.Image, ...], dog: tuple[Image.Image, ...]) -> list[Image.Image]:
        """Five pictures, of several sizes and shapes."""
        flat = Image.new("RGB", (96, 40), (200, 30, 30))
        return [cat[0], dog[0], flat, cat[0].resize((128, 128)), Image.new("RGB", (64, 64))]

    def test_gives_one_finite_float_per_image(self, scorer: Scorer, images: list[Image.Image]) -> None:
        scores = scorer.score(images, TEXTS)
        assert len(scores) == len(images)
        assert all(isinstance(score, float) and math.isfinite(score) for score in scores)

    def test_nothing_is_scored_as_nothing(self, scorer: Scorer) -> None:
        assert list(scorer.score([], [])) == []
        assert list(scorer.notes([])) == []

    def test_companions_change_no_score(self, scorer: Scorer, images: list[Image.Image]) -> None:
        together = scorer.score(images, TEXTS)
        alone = [scorer.score([image], [text])[0] for image, text in zip(images, TEXTS, strict=True)]
        backwards = scorer.score(images[::-1], TEXTS[::-1])
        assert together == pytest.approx(alone, abs=1e-3)
        assert together == pytest.approx(list(backwards)[::-1], abs=1e-3)
        assert len({round(score, 1) for score in together}) > 2  # or the order could not be told

    def test_the_same_is_scored_the_same_again(self, scorer: Scorer, images: list[Image.Image]) -> None:
        assert scorer.score(images, TEXTS) == scorer.score(images, TEXTS)

    def test_images_are_left_as_they_are(self, scorer: Scorer, images: list[Image.Image]) -> None:
        before = [image.copy() for image in images]
        scorer.score(images, TEXTS)
        assert all(farthest(one, other) == 0 for one, other in zip(before, images, strict=True))

    def test_images_and_texts_must_be_of_one_length(self, scorer: Scorer, images: list[Image.Image]) -> None:
        for count in (0, 1, 4):
            with pytest.raises(ValueError, match="one length"):
                scorer.score(images, TEXTS[:count])

    def test_short_texts_need_no_note(self, scorer: Scorer) -> None:
        assert list(scorer.notes(TEXTS)) == []


class TestBrightnessScorer(ScorerContract):
    @pytest.fixture
    def scorer(self) -> Scorer:
        return BrightnessScorer()

    def test_is_the_mean_grey(self) -> None:
        half = Image.new("RGB", (2, 1), (255, 255, 255))
        half.putpixel((0, 0), (0, 0, 0))
        images = [Image.new("RGB", (3, 3)), half, Image.new("RGB", (3, 3), (255, 255, 255))]
        assert BrightnessScorer().score(images, ["", "", ""]) == [0.0, 127.5, 255.0]


class TestClipScorer(ScorerContract):
    @pytest.fixture
    def scorer(self, clip_folder: Path) -> Scorer:
        return ClipScorer(clip_folder)
