"""The models of true size can be made and drawn with, narrowed to a laptop's patience."""

from pathlib import Path

import pytest
from PIL import Image

from orchestrator import wiring
from search_spaces.requests import Failed
from tests.bench.engine import drawn, workload
from tests.bench.true_sizes import write
from tests.workers.helpers import SCHEDULER_NOISE
from workers.pipelines.loading import load_pipeline

pytestmark = SCHEDULER_NOISE


@pytest.mark.parametrize("family", ["sd15-inpainting", "sdxl"])
def test_the_engine_draws_with_it(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write(family, tmp_path, width=0.1, dtype="float32")
    resolved = wiring.resolve(path, str(tmp_path / "runs"), lambda: 0)
    small = {**resolved.study.settings, "width": 64, "height": 64}
    engine_spec = resolved.study.engine.model_copy(update={"rows": 4})
    study = resolved.study.model_copy(update={"settings": small, "engine": engine_spec})
    engine = wiring.make_engine(study, load_pipeline(study.model, "cpu"), dict(resolved.images), "cpu")
    assert engine.rows == 4
    requests = [r for r in workload(study, 20) if int(r.settings["num_inference_steps"] or 0) <= 12][:3]
    made = drawn(engine, requests)
    assert len(made) == len(requests) > 0
    for item in made:
        assert isinstance(item.picture, Image.Image | Failed)
        assert not isinstance(item.picture, Failed) or item.picture.kind == "infeasible"
    assert engine.usage.useful > 0
