"""The script of an image draws what the engine drew, whatever its task, scheduler and words."""

import runpy
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.report.script import script
from search_spaces.models import Task
from search_spaces.requests import Value
from tests.workers.helpers import SCHEDULER_NOISE, a_request, complete, farthest
from tests.workers.tiny_models import SIDE, save_tiny_sd
from workers.inputs import pixel_hash
from workers.pipelines.loading import describe, load_pipeline
from workers.pipelines.slot_engine import SlotEngine

pytestmark = SCHEDULER_NOISE

KARRAS: dict[str, Value] = {"scheduler": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
NOISY: dict[str, Value] = {"scheduler": "DDIMScheduler", "eta": 0.5, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(
    ("task", "changes", "plain"),
    [
        ("text-to-image", {**KARRAS, "negative_prompt": 'it\'s "red"\n'}, {"use_karras_sigmas": False}),
        ("image-to-image", {**NOISY, "strength": 0.6}, {"eta": 0.0}),
        ("inpainting", {**NOISY, "guidance_scale": 1.0}, {"timestep_spacing": "leading"}),
    ],
)
def test_it_draws_what_the_engine_drew(
    folder: Path,
    task: Task,
    changes: Mapping[str, Value],
    plain: Mapping[str, Value],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = describe(str(folder), task, "float32", tmp_path)
    image = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    mask = Image.radial_gradient("L").resize((SIDE, SIDE))
    inputs = {pixel_hash(each): each for each in (image, mask)}
    for name, each in inputs.items():
        each.save(tmp_path / f"{name}.png")
    hashes = [*inputs][: ("text-to-image", "image-to-image", "inpainting").index(task)]
    settings = complete(model, num_inference_steps=4, **changes)
    request = a_request(settings, 'a "green" dragon\\', 7, *hashes)
    (made,) = SlotEngine(load_pipeline(model, "cpu"), model, inputs, 2, patience=600.0).advance([request])
    assert isinstance(made.picture, Image.Image)
    row = {
        "image_id": request.image_id,
        "prompt": request.prompt,
        "seed": request.seed,
        "input_image": request.image,
        "input_mask": request.mask,
    }
    monkeypatch.chdir(tmp_path)

    def drawn(settings: Mapping[str, Value]) -> Image.Image:
        Path("again.py").write_text(script(row, settings, model, str(folder), tmp_path), encoding="utf-8")
        runpy.run_path("again.py")
        with Image.open(f"{request.image_id}.png") as picture:
            return picture.copy()

    assert farthest(drawn(settings), made.picture) <= 1
    assert farthest(drawn({**settings, **plain}), made.picture) > 1  # so that the comparison can fail
