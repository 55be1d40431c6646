"""The bundled model is the one that was measured, small enough, and loads as any other model does."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoPipelineForInpainting
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel

from tests.workers.tiny_models import TOYWORLD
from workers.pipelines.loading import folder_hash
from workers.toyworld.evaluate import BEGIN, END
from workers.toyworld.training.export import LIMIT, size_of

MODEL = TOYWORLD.parent
PIPELINE_HASH = "sha256:b0de064ddfd62335cf9f65065e302f4c"
CLIP_HASH = "sha256:787799eb4a6e98b9a11961a98b7526f0"


def test_the_weights_are_those_that_all_figures_were_measured_with() -> None:
    assert folder_hash(MODEL / "pipeline") == PIPELINE_HASH
    assert folder_hash(MODEL / "clip") == CLIP_HASH


def test_all_of_toyworld_is_at_most_15_megabytes() -> None:
    assert size_of(MODEL) <= LIMIT == 15_000_000


def test_weights_are_half_precision_safetensors_and_nothing_else() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert len(weights) == 4
    for path in weights:
        with safe_open(path, "pt") as stored:
            kinds = {stored.get_tensor(name).dtype for name in stored.keys()}  # noqa: SIM118 - no mapping
        assert kinds <= {torch.float16, torch.int64}


def test_the_pipeline_loads_and_draws_with_and_without_a_dtype(offline: None, tmp_path: Path) -> None:
    picture, mask = Image.new("RGB", (64, 64), "green"), Image.new("L", (64, 64), 255)
    drawn = []
    for dtype in ({}, {"dtype": torch.float32}):
        pipeline = AutoPipelineForInpainting.from_pretrained(TOYWORLD, **dtype)
        parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
        assert {part.dtype for part in parts} == {torch.float32}
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        made = pipeline(
            "a cat", picture, mask, height=64, width=64, num_inference_steps=2, generator=noise
        ).images
        drawn.append(np.asarray(made[0]))
    assert np.array_equal(drawn[0], drawn[1])
    assert CLIPModel.from_pretrained(MODEL / "clip").dtype == torch.float32


def test_the_card_has_a_place_for_the_figures() -> None:
    card = (MODEL / "README.md").read_text("utf-8")
    assert card.index(BEGIN) < card.index("Zero-shot accuracy") < card.index(END)
