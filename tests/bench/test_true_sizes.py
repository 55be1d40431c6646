"""The models of true size can be made, drawn with and measured, narrowed to a laptop's patience."""

import json
from pathlib import Path

import pytest
from PIL import Image

from orchestrator import resolving, wiring
from search_spaces.requests import Failed
from tests.bench.engine import drawn, main, workload
from tests.bench.true_sizes import write
from tests.workers.helpers import SCHEDULER_NOISE
from workers.pipelines.loading import load_pipeline

pytestmark = SCHEDULER_NOISE


@pytest.mark.parametrize("family", ["sd15-inpainting", "sdxl"])
def test_the_engine_draws_with_it(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write(family, tmp_path, width=0.1, dtype="float32")
    resolved = resolving.resolve(path, str(tmp_path / "runs"), lambda: 0)
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


def test_the_command_that_measures_them_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m tests.bench.engine --study F/study.yaml`, here with a tiny picture and few steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tests.bench.engine.STEPS", (2, 3))
    monkeypatch.setattr("tests.bench.engine.MEMORY_REQUESTS", 100)
    study = write("sd15-inpainting", tmp_path, width=0.1, dtype="float32")
    with study.open("a", encoding="utf-8") as file:
        file.write("settings: {width: 64, height: 64}\nengine: {rows: 4}\n")
    figures = tmp_path / "figures.json"
    main(["--study", str(study), "--quick", "--settings", "2", "--memory", "--json", str(figures)])
    written = json.loads(figures.read_text(encoding="utf-8"))
    names = {"engine_vs_loop", "engine_vs_batched", "rows_vs_limit", "row_utilisation", "rss_growth_mb"}
    assert names < written.keys()
    assert written["images"] == 4
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert 0 < written["row_utilisation"] <= 1
