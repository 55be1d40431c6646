"""The seam `Scorer`: what holds for every implementation."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from search_spaces.requests import ImageRequest
from tests.workers.helpers import a_request, farthest
from workers.inputs import pixel_hash
from workers.scoring import Scorer
from workers.scoring.clip import ClipScorer
from workers.scoring.fake import BrightnessScorer
from workers.scoring.preservation import PreservationScorer

TEXTS = ["a cat", "a green dragon", "", "a cat", "ein grüner Drache 🐉"]


class ScorerContract:
    """Three lines of test class per implementation: a fixture `scorer`."""

    @pytest.fixture
    def asked(self, cat: tuple[Image.Image, ...], dog: tuple[Image.Image, ...]) -> list[ImageRequest]:
        """A request for each text, of two input images with one mask."""
        image, mask = [pixel_hash(each[0]) for each in (cat, dog)], pixel_hash(cat[1])
        return [a_request(score_text=text, image=image[n % 2], mask=mask) for n, text in enumerate(TEXTS)]

    @pytest.fixture
    def images(self, cat: tuple[Image.Image, ...], dog: tuple[Image.Image, ...]) -> list[Image.Image]:
        """Five pictures, of several sizes and shapes."""
        flat = Image.new("RGB", (96, 40), (200, 30, 30))
        return [cat[0], dog[0], flat, cat[0].resize((128, 128)), Image.new("RGB", (64, 64))]

    def test_gives_one_finite_float_per_image(
        self, scorer: Scorer, images: list[Image.Image], asked: list[ImageRequest]
    ) -> None:
        scores = scorer.score(images, asked)
        assert len(scores) == len(images)
        assert all(isinstance(score, float) and math.isfinite(score) for score in scores)

    def test_nothing_is_scored_as_nothing(self, scorer: Scorer) -> None:
        assert list(scorer.score([], [])) == []
        assert list(scorer.notes([])) == []

    def test_companions_change_no_score(
        self, scorer: Scorer, images: list[Image.Image], asked: list[ImageRequest]
    ) -> None:
        together = scorer.score(images, asked)
        alone = [scorer.score([image], [one])[0] for image, one in zip(images, asked, strict=True)]
        backwards = scorer.score(images[::-1], asked[::-1])
        assert together == pytest.approx(alone, abs=1e-3)
        assert together == pytest.approx(list(backwards)[::-1], abs=1e-3)
        assert len({round(score, 1) for score in together}) > 2  # or the order could not be told

    def test_the_same_is_scored_the_same_again(
        self, scorer: Scorer, images: list[Image.Image], asked: list[ImageRequest]
    ) -> None:
        assert scorer.score(images, asked) == scorer.score(images, asked)

    def test_images_are_left_as_they_are(
        self, scorer: Scorer, images: list[Image.Image], asked: list[ImageRequest]
    ) -> None:
        before = [image.copy() for image in images]
        scorer.score(images, asked)
        assert all(farthest(one, other) == 0 for one, other in zip(before, images, strict=True))

    def test_images_and_requests_must_be_of_one_length(
        self, scorer: Scorer, images: list[Image.Image], asked: list[ImageRequest]
    ) -> None:
        for count in (0, 1, 4):
            with pytest.raises(ValueError, match="one length"):
                scorer.score(images, asked[:count])

    def test_what_is_ordinary_needs_no_note(self, scorer: Scorer, asked: list[ImageRequest]) -> None:
        assert list(scorer.notes(asked)) == []


class TestBrightnessScorer(ScorerContract):
    @pytest.fixture
    def scorer(self) -> Scorer:
        return BrightnessScorer()

    def test_is_the_mean_grey(self) -> None:
        half = Image.new("RGB", (2, 1), (255, 255, 255))
        half.putpixel((0, 0), (0, 0, 0))
        images = [Image.new("RGB", (3, 3)), half, Image.new("RGB", (3, 3), (255, 255, 255))]
        assert BrightnessScorer().score(images, [a_request()] * 3) == [0.0, 127.5, 255.0]


class TestClipScorer(ScorerContract):
    @pytest.fixture
    def scorer(self, clip_folder: Path) -> Scorer:
        return ClipScorer(clip_folder)


class TestPreservationScorer(ScorerContract):
    @pytest.fixture
    def scorer(self, inputs: Mapping[str, Image.Image]) -> Scorer:
        return PreservationScorer(inputs)
