"""The models of this room's tests, loaded once; nothing reaches a network."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import pytest
import torch
import transformers
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from search_spaces.models import ModelDescription
from tests.workers.tiny_models import TOYWORLD, save_tiny_sd, save_tiny_sdxl
from workers.inputs import pixel_hash
from workers.pipelines.loading import describe, load_pipeline
from workers.scoring.clip import ClipScorer
from workers.toyworld.scenes import Margin, Placement, Scene, box_mask, render


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub, an empty cache of it, and no progress bars."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("no-hub")))
        yield


@pytest.fixture(scope="session")
def toyworld(offline: None) -> ModelDescription:
    return describe("toyworld", None, "float32", Path.cwd())


@pytest.fixture(scope="session")
def toyworld_pipeline(toyworld: ModelDescription) -> Any:
    return load_pipeline(toyworld, "cpu")


@pytest.fixture(scope="session")
def plain_toyworld(offline: None) -> Any:
    """The bundled pipeline as anyone would load it, without our code."""
    pipeline = diffusers.AutoPipelineForInpainting.from_pretrained(TOYWORLD, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def tiny_sd(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_lcm(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-lcm", guidance_embedded=True)


@pytest.fixture(scope="session")
def tiny_sdxl(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl")


@pytest.fixture(scope="session")
def cat() -> tuple[Image.Image, Image.Image]:
    """A picture and its mask."""
    return _scene("cat", 0.36)


@pytest.fixture(scope="session")
def dog() -> tuple[Image.Image, Image.Image]:
    """Another picture and another mask."""
    return _scene("dog", 0.5)


def _scene(subject: Any, scale: float) -> tuple[Image.Image, Image.Image]:
    placement = Placement(x=0.5, y=0.5, scale=scale)
    drawn = render(Scene(subject, "orange", "realistic", "meadow", seed=7, placement=placement))
    return drawn.image, box_mask(drawn, Margin(4, 4, 4, 4))


@pytest.fixture(scope="session")
def inputs(
    cat: tuple[Image.Image, Image.Image], dog: tuple[Image.Image, Image.Image]
) -> Mapping[str, Image.Image]:
    """Both pictures and both masks by pixel hash."""
    return {pixel_hash(each): each for each in (*cat, *dog)}


@pytest.fixture(scope="session")
def clip_folder() -> Path:
    return TOYWORLD.parent / "clip"


@pytest.fixture(scope="session")
def clip_model(clip_folder: Path) -> Any:
    return CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def clip_processor(clip_folder: Path) -> Any:
    return CLIPProcessor.from_pretrained(clip_folder)


@pytest.fixture(scope="session")
def clip_scorer(clip_folder: Path) -> ClipScorer:
    return ClipScorer(clip_folder)
