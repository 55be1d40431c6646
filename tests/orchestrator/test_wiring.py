"""Names become objects: the engine for a model, with rows measured once, asked for, or compiled for."""

import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from orchestrator import resolving, wiring
from orchestrator.dealing import Places
from orchestrator.machine import Machine
from search_spaces.domains import Domain, FloatRange, IntRange
from search_spaces.errors import InputError
from search_spaces.objectives import Constraint
from search_spaces.requests import ImageRequest
from search_spaces.space import Space
from search_spaces.strategies.modelled import ModelledSampler
from search_spaces.study_file import EngineSpec, SearchSpec
from tests.orchestrator.studies import small_study
from tests.orchestrator.test_api import study_file
from tests.workers.helpers import SCHEDULER_NOISE
from tests.workers.tiny_models import save_tiny_sd
from workers.pipelines.loading import load_pipeline
from workers.pipelines.slot_engine import SlotEngine

pytestmark = SCHEDULER_NOISE


@pytest.fixture
def resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> resolving.Resolved:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return resolving.resolve(study_file(tmp_path), str(tmp_path / "runs"), lambda: 0)


def engine_of(resolved: resolving.Resolved, pipeline: Any = None, **spec: Any) -> SlotEngine:
    study = resolved.study.model_copy(update={"engine": EngineSpec(**spec)})
    pipeline = pipeline or load_pipeline(study.model, "cpu")
    return wiring.make_engine(study, pipeline, dict(resolved.images), "cpu")


def test_rows_are_measured_once_and_then_remembered(
    resolved: resolving.Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine_of(resolved)
    assert first.rows in {2**power for power in range(1, 9)}
    monkeypatch.setattr(SlotEngine, "fastest_rows", lambda *_: pytest.fail("measured again"))
    assert engine_of(resolved).rows == first.rows


def test_rows_are_measured_for_each_size_that_inputs_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image-to-image draws at the size of its input: a study's largest decides."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_tiny_sd(tmp_path / "model")
    for side in (32, 64, 96):
        Image.new("RGB", (side, side), "red").save(tmp_path / f"{side}.png")
    measured: list[int] = []

    def measure(_: SlotEngine, example: ImageRequest) -> int:
        assert example.image is not None
        measured.append(study.images[example.image].width)
        return 1024 // measured[-1]

    monkeypatch.setattr(SlotEngine, "fastest_rows", measure)
    rows: list[int] = []
    for sides in ((32,), (32,), (32, 96, 64), (64,), (96,)):
        inputs = "".join(f"  - {{prompt: a cat, image: {side}.png}}\n" for side in sides)
        path = tmp_path / "study.yaml"
        path.write_text(
            f"study: s{len(rows)}\nmodel: ./model\nclip_model: toyworld\ntask: image-to-image\n"
            f"inputs:\n{inputs}space: {{strength: [0.5, 1.0]}}\n",
            encoding="utf-8",
        )
        study = resolving.resolve(path, str(tmp_path / "runs"), lambda: 0)
        rows.append(engine_of(study).rows)
    assert measured == [32, 96, 64]
    assert rows == [32, 32, 10, 16, 10]


def test_rows_that_are_asked_for_are_not_measured(
    resolved: resolving.Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotEngine, "fastest_rows", lambda *_: pytest.fail("measured"))
    assert engine_of(resolved, rows=6).rows == 6


def test_without_a_compiler_there_is_no_compiled_engine(
    resolved: resolving.Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before rows are measured."""
    monkeypatch.setattr(SlotEngine, "fastest_rows", lambda *_: pytest.fail("measured"))
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(InputError, match=r"engine\.compile: .*no-such-compiler"):
        engine_of(resolved, compile=True)


def test_a_compiled_engine_pads_its_batches(
    resolved: resolving.Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are replaced by what they would be compiled to; compiling itself takes minutes."""
    monkeypatch.setattr("workers.pipelines.loading.check_compiler", lambda _: None)
    pipeline = load_pipeline(resolved.study.model, "cpu")
    compiled: list[str] = []
    for module in pipeline.unet.modules():
        module.compile = lambda module=module, **_: compiled.append(type(module).__name__)
    engine = engine_of(resolved, pipeline, rows=6, compile=True)
    assert {"ResnetBlock2D", "BasicTransformerBlock"} == set(compiled)
    sizes: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    request = resolved.study.request(resolved.study.example, resolved.study.instances[0])
    made = list(engine.advance([request]))
    while not made:
        made += engine.advance([])
    assert set(sizes) == {6}
    assert isinstance(made[0].picture, Image.Image)


def test_a_worker_that_compiles_gives_signs_of_life(
    resolved: resolving.Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first UNet call has ended; the blocks are traced in earnest, and not compiled."""
    monkeypatch.setattr("workers.pipelines.loading.check_compiler", lambda _: None)
    pipeline = load_pipeline(resolved.study.model, "cpu")
    for module in pipeline.unet.modules():
        module.compile = partial(torch.nn.Module.compile, module, backend="eager")
    engine = engine_of(resolved, pipeline, rows=2, compile=True)
    begun, seen = engine.steps, list[int]()
    pipeline.unet.register_forward_hook(lambda *_: seen.append(engine.steps))
    engine.advance([resolved.study.request(resolved.study.example, resolved.study.instances[0])])
    assert seen[0] > begun + 1, "more than the one UNet call that is not over"


def test_a_cluster_without_gpus_has_workers_for_all_its_cores(
    resolved: resolving.Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    much, little = 64 * 2**30, 2 * 2**30  # of memory, where a worker takes a little more than 1 GiB
    two = [Machine(4, much), Machine(2, much)]
    assert wiring.crew(resolved.study, None, 0, 8, two) == wiring.Crew(6, "CPU", 1, 8)
    assert wiring.crew(resolved.study, None, 0, 8, [Machine(4, much), Machine(4, little)]).workers == 5
    assert wiring.crew(resolved.study, 12, 0, 8, two) == wiring.Crew(12, "CPU", 1, 8, share=0.5)
    assert wiring.crew(resolved.study, 1, 0, 8, two) == wiring.Crew(1, "CPU", 4, 8, share=4), "on one machine"
    monkeypatch.setattr("orchestrator.ray_session.machines", lambda: two)
    assert wiring.cpu_places(resolved.study.model) == Places(6, 6)
    two.append(Machine(2, much))
    assert wiring.cpu_places(resolved.study.model) == Places(8, 8), "one that joins later has workers too"


def test_a_worker_that_was_given_a_gpu_computes_on_no_cpu(
    resolved: resolving.Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    setup = wiring.WorkerSetup(resolved.study, {}, 8, 1, "GPU")
    for build in (wiring.build_worker, wiring.build_scoring_worker):
        with pytest.raises(InputError, match=rf"^torch {re.escape(torch.__version__)} on .* finds no GPU"):
            build(setup)
    crew = wiring.crew(resolved.study, 2, 1, 8)
    made: list[Any] = []
    monkeypatch.setattr("orchestrator.ray_pool.RayPool", lambda *given, **_: made.append(given[1].args[0]))
    wiring.make_pool(resolved.study, {}, crew, nullcontext)
    wiring.make_scoring_pool(resolved.study, crew, nullcontext, {})
    assert [each.kind for each in made] == ["GPU", "GPU"]


def test_offload_needs_a_gpu(resolved: resolving.Resolved) -> None:
    with pytest.raises(InputError, match=r"engine\.offload: model needs a GPU"):
        load_pipeline(resolved.study.model, "cpu", "model")


LATTICE: dict[str, Domain] = {
    "num_inference_steps": IntRange(low=1, high=8),
    "guidance_scale": FloatRange(low=1.5, high=8.5, step=1.0),
}
"""64 cells."""


@pytest.mark.parametrize(
    ("changes", "search", "modelled"),
    [
        ({}, {}, True),
        ({}, {"racing": "off"}, False),
        ({}, {"strategy": "random"}, False),
        ({}, {"trials": 63}, False),
        ({"seeds": (1, 2, 3)}, {}, False),
        ({"constraints": (Constraint("clip_score", ">=", 20.0),)}, {}, False),
        ({"directions": {"clip_score": "maximize", "gpu_seconds": "minimize"}}, {}, False),
        ({"space": Space(axes={**LATTICE, "guidance_scale": FloatRange(low=1, high=9)})}, {}, False),
        ({"space": Space(axes={**LATTICE, "guidance_scale": FloatRange(low=1, high=7, step=1)})}, {}, False),
    ],
)
def test_tpe_is_raced_by_a_model_where_one_helps(
    changes: dict[str, Any], search: dict[str, Any], modelled: bool
) -> None:
    spec = SearchSpec.model_validate({"strategy": "tpe", "trials": 64, **search})
    study = small_study(seeds=4).model_copy(update={"space": Space(axes=LATTICE), "search": spec, **changes})
    assert isinstance(wiring.make_strategy(study, []), ModelledSampler) == modelled
