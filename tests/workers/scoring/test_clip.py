"""CLIP scores equal those of other computations, are unclamped, and long texts keep their end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.multimodal import clip_score

from tests.workers.helpers import a_request
from workers.scoring import clip
from workers.scoring.clip import ClipScorer

TEXTS = [
    "an orange cat",
    "a cartoon of a green dragon",
    "a blue house at night",
    "x",
    "",
    "a realistic dog, on a meadow",
]
LONG = "a realistic green dragon on a meadow beside a blue house under a night sky " * 12


@pytest.fixture(scope="module")
def images(cat: tuple[Image.Image, ...], dog: tuple[Image.Image, ...]) -> list[Image.Image]:
    """Pictures of the size that CLIP takes, larger, wide and noisy."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8")
    return [cat[0], dog[0], cat[0].resize((200, 200)), dog[0].resize((180, 90)), Image.fromarray(noise)]


@torch.inference_mode()
def direct(model: Any, processor: Any, image: Image.Image, text: str) -> float:
    """CLIPModel's own forward pass: its logits without their scale."""
    batch = processor(text=[text], images=[image], return_tensors="pt", padding=True)
    return float(100 * model(**batch).logits_per_image / model.logit_scale.exp())


class ForTorchmetrics:
    """The CLIP model as torchmetrics 1.9 takes it: transformers 5 gives features inside an output object."""

    def __init__(self, model: Any) -> None:
        self._model, self.config = model, model.config

    def to(self, _: object) -> "ForTorchmetrics":
        return self

    def get_image_features(self, *arguments: Any) -> Any:
        return self._model.get_image_features(*arguments).pooler_output

    def get_text_features(self, *arguments: Any) -> Any:
        return self._model.get_text_features(*arguments).pooler_output


@torch.inference_mode()
def by_torchmetrics(model: Any, processor: Any, image: Image.Image, text: str) -> float:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return float(clip_score(pixels, text, lambda: (ForTorchmetrics(model), processor)))


def test_equals_a_direct_computation(
    clip_scorer: ClipScorer, clip_model: Any, clip_processor: Any, images: list[Image.Image]
) -> None:
    expected = [direct(clip_model, clip_processor, image, text) for image in images for text in TEXTS]
    found = clip_scorer.against([image for image in images for _ in TEXTS], TEXTS * len(images))
    assert found == pytest.approx(expected, abs=1e-3)
    assert max(found) - min(found) > 10


def test_equals_torchmetrics_where_that_is_not_clamped(
    clip_scorer: ClipScorer, clip_model: Any, clip_processor: Any, images: list[Image.Image]
) -> None:
    clamped = 0
    for image in images:
        for text in TEXTS:
            theirs = by_torchmetrics(clip_model, clip_processor, image, text)
            (ours,) = clip_scorer.against([image], [text])
            if theirs > 0:
                assert ours == pytest.approx(theirs, abs=1e-3)
            else:
                clamped += 1
                assert ours <= 0
    assert 0 < clamped < len(images) * len(TEXTS)


def test_what_fits_badly_is_negative_and_told_apart(
    clip_scorer: ClipScorer, images: list[Image.Image]
) -> None:
    scores = clip_scorer.against([image for image in images for _ in TEXTS], TEXTS * len(images))
    negative = [score for score in scores if score < 0]
    assert len(set(negative)) == len(negative) > 1


def test_the_text_that_fits_scores_highest(clip_scorer: ClipScorer, images: list[Image.Image]) -> None:
    scores = clip_scorer.against([images[0]] * 3, ["an orange cat", "a green dragon", "a blue house"])
    assert scores[0] > max(scores[1:]) + 5


@torch.inference_mode()
def test_a_long_text_is_scored_on_what_fits_with_its_end_token_kept(
    clip_scorer: ClipScorer, clip_model: Any, clip_processor: Any, images: list[Image.Image]
) -> None:
    tokenizer, window = clip_processor.tokenizer, clip_model.config.text_config.max_position_embeddings
    whole = tokenizer(LONG)["input_ids"]
    assert len(whole) > window

    def score_of(tokens: list[int]) -> float:
        said = clip_model.get_text_features(torch.tensor([tokens])).pooler_output
        pixels = clip_processor.image_processor(images=[images[0]], return_tensors="pt")["pixel_values"]
        seen = clip_model.get_image_features(pixels).pooler_output
        return float(100 * torch.nn.functional.cosine_similarity(said, seen))

    kept = [*whole[: window - 1], tokenizer.eos_token_id]
    (found,) = clip_scorer.against([images[0]], [LONG])
    assert found == pytest.approx(score_of(kept), abs=1e-3)
    assert abs(found - score_of(whole[:window])) > 0.01  # the end token cut off
    assert clip_scorer.against([images[0]], [LONG + " and more"]) == [found]


def notes(scorer: ClipScorer, *texts: str) -> Sequence[str]:
    return scorer.notes([a_request(score_text=text) for text in texts])


def test_a_picture_is_judged_by_the_score_text_of_its_request(
    clip_scorer: ClipScorer, images: list[Image.Image]
) -> None:
    asked = [a_request(prompt="a blue house", score_text=text) for text in TEXTS[:2]]
    assert clip_scorer.score(images[:2], asked) == clip_scorer.against(images[:2], TEXTS[:2])


def test_notes_name_each_long_text_once(clip_scorer: ClipScorer) -> None:
    other = "cartoon " * 200
    found = notes(clip_scorer, LONG, "a cat", LONG, other, LONG)
    assert len(found) == 2
    assert LONG[:40] in found[0]
    assert "77" in found[0]
    assert other[:40] in found[1]
    assert not any("\n" in note for note in found)


def test_a_text_that_just_fits_needs_no_note(clip_scorer: ClipScorer, clip_processor: Any) -> None:
    words = 70
    while len(clip_processor.tokenizer(" ".join(["cat"] * (words + 1)))["input_ids"]) <= 77:
        words += 1
    assert notes(clip_scorer, " ".join(["cat"] * words)) == []
    assert len(notes(clip_scorer, " ".join(["cat"] * (words + 1)))) == 1


@contextmanager
def texts_embedded() -> Iterator[list[int]]:
    """Grows by one for each text that goes through a text tower."""
    seen: list[int] = []

    def note(module: torch.nn.Module, _: object) -> None:
        if type(module).__name__ == "CLIPTextModel":
            seen.append(1)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def test_texts_are_embedded_once_and_the_cache_is_bounded(
    clip_folder: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "CACHED_TEXTS", 3)
    scorer, image = ClipScorer(clip_folder), images[0]
    with texts_embedded() as embedded:
        first = scorer.against([image] * 6, ["a", "b", "a", "c", "b", "a"])
        assert len(embedded) == 3
        scorer.against([image], ["d"])  # pushes out the one that was used longest ago: c
        assert len(embedded) == 4
        scorer.against([image] * 3, ["a", "b", "d"])
        assert len(embedded) == 4
        scorer.against([image], ["c"])
        assert len(embedded) == 5
        many = [f"text {number}" for number in range(10)]
        assert len(scorer.against([image] * 10, many)) == 10
        assert scorer.against([image] * 6, ["a", "b", "a", "c", "b", "a"]) == first
