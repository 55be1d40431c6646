"""The slot engine draws what plain diffusers draws, whatever shares its batches, and loses only what fails."""

import copy
import functools
import gc
import itertools
import random
import shutil
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import greenlet
import pytest
import torch
from PIL import Image

from search_spaces.models import ModelDescription, Task
from search_spaces.requests import Failed, ImageRequest, Value
from tests.workers.helpers import SCHEDULER_NOISE, a_request, complete, farthest
from tests.workers.tiny_models import SIDE, TOYWORLD
from workers.inputs import pixel_hash
from workers.pipelines import Generated, Inputs, shared_models
from workers.pipelines.loading import AUTO_CLASSES, describe, load_pipeline
from workers.pipelines.slot_engine import SlotEngine

pytestmark = SCHEDULER_NOISE

Pair = tuple[Image.Image, Image.Image]

OPTIONS = frozenset(
    {
        "algorithm_type",
        "clip_sample",
        "final_sigmas_type",
        "lower_order_final",
        "solver_order",
        "timestep_spacing",
        "use_karras_sigmas",
    }
)
"""Settings of these tests that are a scheduler's, not a call's."""

GROUPS: list[tuple[str, Task]] = [
    ("toyworld", "inpainting"),
    ("sd", "text-to-image"),
    ("sd", "image-to-image"),
    ("sd", "inpainting"),
    ("sdxl", "text-to-image"),
    ("sdxl", "image-to-image"),
    ("sdxl", "inpainting"),
]
"""toyworld's UNet takes nine channels, the others four."""

STEPS, STRENGTHS, GUIDANCES = (4, 5, 3, 4, 8, 3, 6), (0.6, 0.35), (7.5, 1.0, 20.0, 7.5)
TEXTS = [(0, "", "a green dragon"), (1, None, "a red house"), (2**40 + 1, "cartoon", "a green dragon")]
"""Seed, negative prompt and prompt of requests that share batches."""


@dataclass
class Bench:
    """A model with its pipeline as the engine takes it, and the plain one that the engine never sees."""

    name: str
    model: ModelDescription
    pipeline: Any
    plain: Any
    inputs: Inputs
    pairs: Sequence[Pair]
    drawn: dict[str, Image.Image] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def engine(self, rows: int = 8, **options: Any) -> SlotEngine:
        """One that gives up waiting only when it has nothing to do."""
        return SlotEngine(self.pipeline, self.model, self.inputs, rows, **{"patience": 600.0, **options})

    def request(
        self,
        seed: int = 0,
        prompt: str = "a green dragon",
        changes: Mapping[str, Value] | None = None,
        **more: Value,
    ) -> ImageRequest:
        """One of four steps with guidance on, but for the changes; seeds take turns with the inputs."""
        image, mask = self.pairs[seed % len(self.pairs)]
        usual: dict[str, Value] = {
            "num_inference_steps": 4,
            "guidance_scale": 7.5,
            "scheduler": "DDIMScheduler",
        }
        settings = complete(self.model, **{**usual, **(changes or {}), **more})
        return a_request(
            settings,
            prompt,
            seed,
            None if self.model.task == "text-to-image" else pixel_hash(image),
            pixel_hash(mask) if self.model.task == "inpainting" else None,
        )

    def scheduler(self, name: str, options: Mapping[str, Value]) -> Any:
        """A fresh one as diffusers' guide changes schedulers; a copy, since some take 0.2 s to make."""
        key = repr((name, sorted(options.items())))
        if key not in self.made:
            self.made[key] = getattr(diffusers, name).from_config(self.plain.scheduler.config, **options)
        return copy.deepcopy(self.made[key])

    def expected(self, request: ImageRequest) -> Image.Image:
        """What plain diffusers makes of a request: a fresh pipeline with a fresh scheduler, one seed, one image."""
        if request.image_id not in self.drawn:
            settings: dict[str, Any] = dict(request.settings)
            options = {name: settings.pop(name) for name in OPTIONS & settings.keys()}
            fresh = type(self.plain)(**self.plain.components)
            fresh.scheduler = self.scheduler(settings.pop("scheduler"), options)
            fresh.set_progress_bar_config(disable=True)
            if request.image is not None:
                settings["image"] = self.inputs[request.image]
            if request.mask is not None:
                settings["mask_image"] = self.inputs[request.mask]
            generator = torch.Generator().manual_seed(request.seed)
            made = fresh(prompt=request.prompt, generator=generator, **settings)
            self.drawn[request.image_id] = made.images[0]
        return self.drawn[request.image_id]

    def assert_plain(self, made: Sequence[Generated], requests: Collection[ImageRequest]) -> None:
        """All requests came, once each, with the plain pictures."""
        assert sorted(item.request.image_id for item in made) == sorted(each.image_id for each in requests)
        for item in made:
            assert isinstance(item.picture, Image.Image), (item.request, item.picture)
            assert item.picture.mode == "RGB"
            assert farthest(item.picture, self.expected(item.request)) <= 1, item.request


def drained(engine: SlotEngine, requests: Sequence[ImageRequest] = ()) -> list[Generated]:
    """All that comes of the requests and of what the engine holds."""
    back = list(engine.advance(requests))
    while made := engine.advance([]):
        back += made
    return back


def pictured(made: Generated) -> Image.Image:
    assert isinstance(made.picture, Image.Image), made.picture
    return made.picture


Load = Callable[[str, Task], Bench]


def benches(tiny_sd: Path, tiny_sdxl: Path, pairs: Sequence[Pair]) -> Load:
    """Models by name and task, each loaded once."""
    folders = {"toyworld": TOYWORLD, "sd": tiny_sd, "sdxl": tiny_sdxl}

    @functools.cache
    def bench(name: str, task: Task) -> Bench:
        model = describe(str(folders[name]), task, "float32", Path.cwd())
        plain = getattr(diffusers, AUTO_CLASSES[task]).from_pretrained(folders[name], dtype=torch.float32)
        side = 64 if name == "toyworld" else SIDE
        sized = [(image.resize((side, side)), mask.resize((side, side))) for image, mask in pairs]
        inputs = {pixel_hash(each): each for pair in sized for each in pair}
        return Bench(name, model, load_pipeline(model, "cpu"), plain, inputs, sized)

    return bench


@pytest.fixture(scope="module")
def load(tiny_sd: Path, tiny_sdxl: Path, cat: Pair, dog: Pair) -> Load:
    return benches(tiny_sd, tiny_sdxl, [cat, dog])


@pytest.fixture
def text(load: Load) -> Bench:
    """The cheapest: tiny Stable Diffusion, text-to-image."""
    return load("sd", "text-to-image")


@pytest.fixture
def batches(load: Load, text: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of every UNet call of the tiny text-to-image model; the engine's clock counts these calls."""
    sizes: list[int] = []

    def note(_: Any, arguments: Any) -> None:
        sizes.append(len(arguments[0]))

    clock = SimpleNamespace(perf_counter=lambda: float(len(sizes)))
    monkeypatch.setattr("workers.pipelines.slot_engine.time", clock)
    handle = text.pipeline.unet.register_forward_pre_hook(note)
    yield sizes
    handle.remove()


def samplers(model: ModelDescription) -> list[dict[str, Value]]:
    """Every scheduler that the model offers, and those that draw more noise on the way."""
    plain: list[dict[str, Value]] = [{"scheduler": name} for name in model.schedulers]
    return [
        *plain,
        {"scheduler": "DDIMScheduler", "eta": 0.5},
        {"scheduler": "TCDScheduler", "eta": 0.3},
        {"scheduler": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
    ]


def variants(model: ModelDescription) -> list[dict[str, Value]]:
    """Every scheduler with each option that it takes."""
    found: list[dict[str, Value]] = [
        {"scheduler": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++"},
        {
            "scheduler": "DPMSolverMultistepScheduler",
            "algorithm_type": "dpmsolver",
            "final_sigmas_type": "sigma_min",
        },
    ]
    for option, value in (("use_karras_sigmas", True), ("timestep_spacing", "trailing")):
        takes = [name for name in model.schedulers if option in model.scheduler_options[name]]
        found += [{"scheduler": name, option: value} for name in takes]
    return found


def mixed(bench: Bench) -> list[ImageRequest]:
    """Each sampler with strength 1 and below, the variants with either; all else taking turns; shuffled."""
    steps, strengths = itertools.cycle(STEPS), itertools.cycle(STRENGTHS)
    guidances, texts = itertools.cycle(GUIDANCES), itertools.cycle(TEXTS)
    rescales, skips = itertools.cycle((0.0, 0.0, 0.7)), itertools.cycle((None, 1))
    number = GROUPS.index((bench.name, bench.model.task))
    cases: list[tuple[dict[str, Value], float]] = []
    for sampler in samplers(bench.model):
        cases += [(sampler, 1.0)]
        cases += [] if bench.model.task == "text-to-image" else [(sampler, next(strengths))]
    # The groups take turns with the variants, since they all differ in the scheduler only.
    cases += zip(variants(bench.model)[number % 2 :: 2], itertools.cycle((0.6, 1.0)), strict=False)
    requests = []
    for sampler, strength in cases:
        (seed, negative, prompt), count = next(texts), next(steps)
        changes: dict[str, Value] = {
            "num_inference_steps": max(4, count) if sampler["scheduler"] == "PNDMScheduler" else count,
            "guidance_scale": next(guidances),
            "negative_prompt": negative,
            "strength": strength,
            "guidance_rescale": next(rescales),
            "clip_skip": next(skips),
        }
        taken = {name: value for name, value in changes.items() if name in bench.model.keywords}
        requests.append(bench.request(seed, prompt, {**taken, **sampler}))
    random.Random(0).shuffle(requests)
    return requests


class TestEveryPictureIsThePlainOne:
    @pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver and sde-dpmsolver`:FutureWarning")
    @pytest.mark.parametrize(("name", "task"), GROUPS)
    def test_whatever_shares_the_batches(self, load: Load, name: str, task: Task) -> None:
        bench = load(name, task)
        requests = mixed(bench)
        engine = bench.engine(rows=7)
        half = len(requests) // 2
        made = [*engine.advance(requests[:half]), *drained(engine, requests[half:])]
        bench.assert_plain(made, requests)
        assert engine.usage.useful == sum(
            (2 if float(str(item.request.settings["guidance_scale"])) > 1 else 1) * (item.unet_calls or 0)
            for item in made
        )

    @pytest.mark.parametrize(("name", "task"), GROUPS)
    def test_which_is_far_from_another_seeds(self, load: Load, name: str, task: Task) -> None:
        """So that the comparison can fail."""
        bench = load(name, task)
        strength: dict[str, Value] = {} if task == "text-to-image" else {"strength": 0.7}
        requests = [bench.request(seed, changes=strength, num_inference_steps=3) for seed in (0, 2, 4)]
        made = drained(bench.engine(rows=4), requests)
        for item, request in itertools.product(made, requests):
            distance = farthest(pictured(item), bench.expected(request))
            assert distance <= 1 if item.request is request else distance > 10

    def test_which_options_of_the_scheduler_change(self, load: Load) -> None:
        bench = load("toyworld", "inpainting")
        changes: list[dict[str, Value]] = [
            {},
            {"use_karras_sigmas": True},
            {"timestep_spacing": "trailing"},
        ]
        requests = [
            bench.request(changes=options, scheduler="DPMSolverMultistepScheduler") for options in changes
        ]
        made = drained(bench.engine(), requests)
        bench.assert_plain(made, requests)
        assert all(farthest(pictured(a), pictured(b)) > 10 for a, b in itertools.combinations(made, 2))

    def test_which_an_option_of_another_scheduler_does_not_change(self, text: Bench) -> None:
        plain, odd = (
            text.request(scheduler="DDIMScheduler"),
            text.request(scheduler="DDIMScheduler", algorithm_type="x"),
        )
        (made,) = drained(text.engine(), [odd])
        assert farthest(pictured(made), text.expected(plain)) <= 1

    def test_every_scheduler_offered_can_be_made(self, load: Load) -> None:
        for group in (GROUPS[0], GROUPS[1], GROUPS[4]):
            bench = load(*group)
            assert len(bench.model.schedulers) > 10
            for scheduler in bench.model.schedulers:
                assert bench.scheduler(scheduler, {}).config


class TestHalfPrecision:
    @pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
    @pytest.mark.parametrize(("name", "decoded"), [("sd", torch.float16), ("sdxl", torch.float32)])
    def test_the_vae_is_upcast_where_the_plain_pipeline_does(
        self, load: Load, monkeypatch: pytest.MonkeyPatch, name: str, decoded: torch.dtype
    ) -> None:
        bench = load(name, "inpainting")
        model = bench.model.model_copy(update={"dtype": "float16"})
        pipeline, plain = (load_pipeline(model, "cpu") for _ in range(2))
        half = replace(bench, model=model, pipeline=pipeline, plain=plain, drawn={}, made={})
        seen, original = [], pipeline.vae.decode

        def noting(latents: torch.Tensor, **keywords: Any) -> Any:
            seen.append((latents.dtype, pipeline.vae.dtype))
            return original(latents, **keywords)

        monkeypatch.setattr(pipeline.vae, "decode", noting)
        requests = [half.request(seed, num_inference_steps=2 + seed) for seed in range(3)]
        made = drained(half.engine(), requests)
        assert set(seen) == {(decoded, decoded)}
        assert pipeline.vae.dtype == torch.float16
        for item in made:  # in half precision the batch shows; another seed's picture would be far off
            assert farthest(pictured(item), half.expected(item.request)) <= 3


class TestOffload:
    """Accelerate's hooks, here with the CPU in place of a GPU."""

    def test_of_whole_parts_draws_the_plain_pictures(self, load: Load) -> None:
        bench = load("sdxl", "inpainting")
        pipeline = load_pipeline(bench.model, "cpu")
        pipeline.enable_model_cpu_offload(device="cpu")
        requests = [bench.request(seed, num_inference_steps=2 + seed) for seed in range(3)]
        bench.assert_plain(drained(replace(bench, pipeline=pipeline).engine(), requests), requests)

    def test_a_gpu_computes_though_the_unet_waits_in_main_memory(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No layer takes rows by a CPU's numbers, and rows are timed by the clock on the wall."""
        pipeline = load_pipeline(text.model, "cpu")
        pipeline.enable_model_cpu_offload(device="cpu")
        engine = replace(text, pipeline=pipeline).engine()
        assert engine._shared_rows is not None
        for part in pipeline.components.values():
            if hasattr(part, "_hf_hook"):
                monkeypatch.setattr(part._hf_hook, "execution_device", torch.device("cuda"))
        engine = replace(text, pipeline=pipeline).engine()
        assert pipeline.unet.device.type == "cpu"
        assert engine._shared_rows is None
        assert not engine._on_cpu


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT TESTED with a real compiler: needs g++")
def test_compiled_blocks_draw_the_plain_pictures_and_are_compiled_once(load: Load) -> None:
    """For real; it takes two minutes."""
    bench = load("sd", "inpainting")
    engine = replace(bench, pipeline=load_pipeline(bench.model, "cpu")).engine(rows=3)
    torch._dynamo.utils.counters.clear()
    engine.compile()
    requests = [bench.request(seed, num_inference_steps=2, guidance_scale=1.0 + seed) for seed in range(2)]
    bench.assert_plain(drained(engine, requests), requests)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    more = [bench.request(seed, num_inference_steps=3 + seed) for seed in range(3)]
    bench.assert_plain(drained(engine, more), more)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled > 0
    assert not torch._dynamo.utils.counters["graph_break"]


class TestRows:
    def test_guidance_off_takes_one_row(self, text: Bench, batches: list[int]) -> None:
        engine = text.engine(rows=4)
        made = drained(engine, [text.request(1, guidance_scale=1.0), text.request(2, num_inference_steps=2)])
        assert [item.unet_calls for item in made] == [2, 4]
        assert batches == [3, 3, 1, 1]
        assert (engine.usage.ticks, engine.usage.useful, engine.usage.offered) == (4, 8, 16)

    @pytest.mark.parametrize(
        ("scheduler", "steps", "strength", "calls"),
        [
            ("DDIMScheduler", 4, 1.0, 4),
            ("DDIMScheduler", 4, 0.5, 2),
            ("HeunDiscreteScheduler", 4, 1.0, 7),
            ("HeunDiscreteScheduler", 4, 0.5, 3),
            ("KDPM2DiscreteScheduler", 4, 1.0, 7),
            ("PNDMScheduler", 4, 1.0, 13),
            ("PNDMScheduler", 5, 0.6, 12),
        ],
    )
    def test_unet_calls_are_counted_as_the_scheduler_makes_them(
        self, load: Load, scheduler: str, steps: int, strength: float, calls: int
    ) -> None:
        bench = load("sd", "image-to-image")
        changes: dict[str, Value] = {
            "scheduler": scheduler,
            "strength": strength,
            "num_inference_steps": steps,
        }
        companion = bench.request(1, num_inference_steps=6)
        made = drained(
            bench.engine(), [bench.request(changes=changes), bench.request(2, changes=changes), companion]
        )
        by_seed = {item.request.seed: item.unet_calls for item in made}
        assert by_seed == {0: calls, 2: calls, 1: 4}

    def test_freed_rows_are_filled_with_the_next_tick(self, text: Bench, batches: list[int]) -> None:
        requests = [text.request(seed, num_inference_steps=1 + seed % 3) for seed in range(8)]
        engine = text.engine(rows=5)  # two pairs and a row that no pair fits in
        drained(engine, requests)
        assert batches == [4] * 7 + [2]
        singles = [text.request(seed, num_inference_steps=2, guidance_scale=1.0) for seed in range(5)]
        batches.clear()
        drained(engine, [text.request(9, num_inference_steps=3), *singles])
        assert batches == [5, 5, 4, 2]

    def test_one_row_is_enough(self, text: Bench, batches: list[int]) -> None:
        """A pair that needs more rows than there are is drawn alone."""
        requests = [text.request(1), text.request(2, guidance_scale=1.0), text.request(3)]
        text.assert_plain(drained(text.engine(rows=1), requests), requests)
        assert sorted(batches) == [1] * 4 + [2] * 8

    def test_rows_may_be_changed_in_flight(self, text: Bench, batches: list[int]) -> None:
        requests = [text.request(seed) for seed in range(6)]
        engine = text.engine(rows=8, patience=2.0)
        assert engine.advance(requests) == []
        engine.rows = 4
        made = drained_ticking(engine)
        text.assert_plain(made, requests)
        assert batches[:2] == [8, 8]
        assert max(batches[4:]) == 4

    def test_without_patience_every_call_is_a_tick(self, text: Bench, batches: list[int]) -> None:
        engine, requests = text.engine(rows=4, patience=0.0), [text.request(seed) for seed in range(3)]
        assert engine.advance(requests) == []
        assert len(batches) == 1
        text.assert_plain(drained_ticking(engine), requests)

    def test_work_comes_in_between_ticks(self, text: Bench, batches: list[int]) -> None:
        engine = text.engine(rows=8, patience=1.0)
        requests = [text.request(seed) for seed in range(4)]
        for request in requests[:3]:
            assert engine.advance([request]) == []
        text.assert_plain([*engine.advance(requests[3:]), *drained_ticking(engine)], requests)
        assert batches == [2, 4, 6, 8, 6, 4, 2]

    def test_pictures_of_different_sizes_are_drawn_side_by_side(
        self, text: Bench, batches: list[int]
    ) -> None:
        sizes = [(32, 32), (48, 32), (32, 48), (48, 32), (32, 32), (40, 40)]
        requests = [
            text.request(
                seed, width=width, height=height, num_inference_steps=3, guidance_scale=1.0 + seed % 2
            )
            for seed, (width, height) in enumerate(sizes)
        ]
        made = drained(text.engine(rows=16), requests)
        text.assert_plain(made, requests)
        assert {item.request.seed: pictured(item).size for item in made} == dict(enumerate(sizes))
        assert len(batches) == 4 * 3

    def test_inputs_of_different_sizes_keep_theirs(self, load: Load) -> None:
        """Image-to-image draws at its input's size."""
        bench = load("sd", "image-to-image")
        images = [bench.pairs[0][0].resize(size) for size in ((48, 32), (32, 48), (32, 32))]
        inputs = {pixel_hash(image): image for image in images}
        wide = Bench(
            "sd", bench.model, bench.pipeline, bench.plain, inputs, [(image, image) for image in images]
        )
        requests = [wide.request(seed) for seed in range(6)]
        made = drained(wide.engine(), requests)
        wide.assert_plain(made, requests)
        assert all(pictured(item).size == images[item.request.seed % 3].size for item in made)

    def test_padding_keeps_the_shape_and_the_pictures(
        self, text: Bench, batches: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As for a compiled UNet, here without the minute that compiling takes."""
        monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
        requests = [
            text.request(seed, num_inference_steps=1 + seed, guidance_scale=1.0 + seed % 2)
            for seed in range(5)
        ]
        engine = text.engine(rows=7)
        engine.compile()
        text.assert_plain(drained(engine, requests), requests)
        assert set(batches) == {7}
        assert engine.usage.useful == sum((1 + seed) * (1 + seed % 2) for seed in range(5))

    def test_padding_holds_for_sdxl(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whose UNet takes sizes and pooled texts beside the embeddings."""
        monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
        bench = load("sdxl", "inpainting")
        requests = [bench.request(seed, num_inference_steps=2 + seed) for seed in range(2)]
        engine = bench.engine(rows=5)
        engine.compile()
        bench.assert_plain(drained(engine, requests), requests)

    def test_rows_are_measured_by_the_time_that_this_process_had(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Here calls are held up by others on the machine, the longer the more rows they have.

        Sixteen threads have sixteen seconds each second: the measurement does not end sixteen times as early.
        """
        wall, own = [0.0], [0.0]
        clock = SimpleNamespace(perf_counter=lambda: wall[0], process_time=lambda: own[0])
        monkeypatch.setattr("workers.pipelines.slot_engine.time", clock)

        def slow(_: Any, given: Any) -> None:
            own[0] += max(16, len(given[0]))
            wall[0] = own[0] + 10.0 * len(given[0]) ** 2

        handle = text.pipeline.unet.register_forward_pre_hook(slow)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
        try:
            assert text.engine().fastest_rows(text.request()) == 16
        finally:
            handle.remove()

    def test_measuring_the_rows_leaves_nothing_behind(self, text: Bench) -> None:
        engine, request = text.engine(rows=4), text.request()
        assert engine.fastest_rows(request) >= 2
        assert engine.bare_rate(request, seconds=0.0) >= 0
        assert (engine.usage.ticks, engine.usage.useful, engine.rows) == (0, 0, 4)
        text.assert_plain(drained(engine, [request]), [request])
        with pytest.raises(ValueError, match="NoSuchScheduler"):
            engine.fastest_rows(text.request(scheduler="NoSuchScheduler"))


def drained_ticking(engine: SlotEngine, calls: int = 50) -> list[Generated]:
    """All that the engine holds, though it returns empty-handed every now and then."""
    return [made for _ in range(calls) for made in engine.advance([])]


class TestCancel:
    def test_frees_the_rows_for_the_next_tick_and_leaves_companions_alone(
        self, text: Bench, batches: list[int]
    ) -> None:
        requests = [text.request(seed, num_inference_steps=5) for seed in range(4)]
        engine = text.engine(rows=6, patience=2.0)
        assert engine.advance(requests) == []
        gone = requests.pop(1)
        made = [*engine.advance([], {gone.image_id}), *drained_ticking(engine)]
        text.assert_plain(made, requests)
        assert batches == [6] * 5 + [2] * 2

    def test_of_all_leaves_the_engine_idle(self, text: Bench, batches: list[int]) -> None:
        requests = [text.request(seed) for seed in range(3)]
        engine = text.engine(rows=4, patience=2.0)
        engine.advance(requests)
        assert engine.advance([], {request.image_id for request in requests}) == []
        assert engine.advance([]) == []
        assert len(batches) == 2
        made = [*engine.advance(requests[:1]), *drained_ticking(engine)]
        text.assert_plain(made, requests[:1])
        assert made[0].unet_calls == 4  # from the start

    def test_of_what_waits_to_be_decoded(self, text: Bench, batches: list[int]) -> None:
        done, goes_on = text.request(1, num_inference_steps=1), text.request(2)
        fails = text.request(3, scheduler="NoSuchScheduler")
        engine = text.engine()
        (first,) = engine.advance([done, goes_on, fails])
        assert first.request is fails
        made = [*engine.advance([], {done.image_id}), *drained(engine)]
        text.assert_plain(made, [goes_on])

    def test_of_one_of_two_that_are_the_same_takes_both(self, text: Bench, batches: list[int]) -> None:
        request, other = text.request(1), text.request(2)
        engine = text.engine(patience=1.0)
        engine.advance([request, request, other])
        text.assert_plain([*engine.advance([], {request.image_id}), *drained_ticking(engine)], [other])

    def test_lets_go_of_the_call(self, text: Bench, batches: list[int]) -> None:
        """Its pipeline, scheduler and latents go with it."""
        before = len(suspended())
        engine = text.engine(patience=1.0)
        requests = [text.request(seed) for seed in range(3)]
        engine.advance(requests)
        assert len(suspended()) == before + 3
        engine.advance([], {request.image_id for request in requests})
        assert len(suspended()) == before


def suspended() -> list[Any]:
    """Calls that sleep within the UNet or a look."""
    gc.collect()
    found = [each for each in gc.get_objects() if issubclass(type(each), greenlet.greenlet)]
    return [each for each in found if each and each is not greenlet.getcurrent()]


class TestFailures:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"scheduler": "NoSuchScheduler"}, "NoSuchScheduler"),
            ({"scheduler": "DPMSolverMultistepScheduler", "algorithm_type": "no such"}, "no such"),
            ({"scheduler": "DPMSolverMultistepScheduler", "timestep_spacing": "no such"}, "no such"),
            ({"scheduler": "LCMScheduler", "num_inference_steps": 60}, "original_steps"),
            ({"width": 33}, "divisible by 8"),
        ],
    )
    def test_what_diffusers_refuses_is_lost_alone(
        self, text: Bench, changes: dict[str, Value], reason: str
    ) -> None:
        requests = [text.request(seed) for seed in range(3)]
        guilty = text.request(1, changes=changes)
        made = drained(text.engine(), [requests[0], guilty, *requests[1:]])
        (failed,) = (item for item in made if item.request is guilty)
        assert isinstance(failed.picture, Failed)
        assert failed.picture.kind == "lost"
        assert reason in failed.picture.reason
        assert failed.unet_calls is None
        text.assert_plain([item for item in made if item is not failed], requests)

    def test_an_input_that_is_not_there_is_lost(self, load: Load) -> None:
        bench = load("sd", "image-to-image")
        request = a_request(complete(bench.model, num_inference_steps=2), image="no such image")
        (made,) = drained(bench.engine(), [request])
        assert isinstance(made.picture, Failed)
        assert "no such image" in made.picture.reason

    @pytest.mark.parametrize(("name", "task"), [group for group in GROUPS if group[1] != "text-to-image"])
    def test_no_effective_step_is_a_failure(self, load: Load, name: str, task: Task) -> None:
        """A study does not ask for it; plain pipelines raise, or decode nothing at all."""
        bench = load(name, task)
        empty, whole = bench.request(1, strength=0.2), bench.request(2, strength=0.8)
        made = drained(bench.engine(), [empty, whole])
        (failed,) = (item for item in made if item.request is empty)
        assert isinstance(failed.picture, Failed)
        bench.assert_plain([item for item in made if item is not failed], [whole])

    def test_nan_in_one_request_is_infeasible_and_stays_its_own(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = type(text.pipeline).encode_prompt

        def broken(self: Any, prompt: list[str], *arguments: Any, **keywords: Any) -> Any:
            made = original(self, prompt, *arguments, **keywords)
            return (made[0] * torch.nan, *made[1:]) if prompt == ["broken"] else made

        requests = [text.request(seed, num_inference_steps=3 + seed) for seed in range(3)]
        pictures = [text.expected(request) for request in requests]
        assert pictures
        monkeypatch.setattr(type(text.pipeline), "encode_prompt", broken)
        guilty = text.request(1, "broken")
        made = drained(text.engine(), [guilty, *requests])
        (failed,) = (item for item in made if item.request is guilty)
        assert failed.picture == Failed("infeasible", "the picture holds NaN")
        text.assert_plain([item for item in made if item is not failed], requests)

    def test_nan_is_seen_before_it_is_pasted_over(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        """With `padding_mask_crop` diffusers pastes what it drew into the input, and NaN becomes black."""
        bench = load("sd", "inpainting")
        original = bench.pipeline.vae.decode

        def broken(latents: torch.Tensor, **keywords: Any) -> Any:
            (images,) = original(latents, **keywords)
            images[0, 0, 8, 8] = torch.nan
            return (images,)

        guilty, companion = bench.request(1, padding_mask_crop=4), bench.request(2, padding_mask_crop=4)
        expected = bench.expected(companion)
        assert expected
        monkeypatch.setattr(bench.pipeline.vae, "decode", broken)
        made = drained(bench.engine(), [guilty, companion])
        assert made[0].picture == Failed("infeasible", "the picture holds NaN")
        bench.assert_plain(made[1:], [companion])

    def test_a_black_picture_is_infeasible(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        original = text.pipeline.vae.decode

        def second_is_black(latents: torch.Tensor, **keywords: Any) -> Any:
            (images,) = original(latents, **keywords)
            images[1] = -1.0
            return (images,)

        monkeypatch.setattr(text.pipeline.vae, "decode", second_is_black)
        requests = [text.request(seed) for seed in range(3)]
        made = drained(text.engine(), requests)
        assert made[1].picture == Failed("infeasible", "the picture is all black")
        text.assert_plain([made[0], made[2]], [requests[0], requests[2]])

    def test_what_the_safety_checker_flags_is_infeasible(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []

        def second_is_flagged(images: Any, clip_input: Any) -> tuple[Any, list[bool]]:
            seen.append(images)
            return images, [len(seen) == 2]

        pixels = SimpleNamespace(pixel_values=torch.zeros(1))
        monkeypatch.setitem(vars(text.pipeline), "safety_checker", second_is_flagged)
        extract = SimpleNamespace(to=lambda _: pixels)
        monkeypatch.setitem(vars(text.pipeline), "feature_extractor", lambda *_, **__: extract)
        requests = [text.request(seed) for seed in range(3)]
        made = drained(text.engine(), requests)
        assert len(seen) == 3
        assert made[1].picture == Failed("infeasible", "flagged by the model's safety checker")
        text.assert_plain([made[0], made[2]], [requests[0], requests[2]])

    @pytest.mark.parametrize("part", ["unet", "vae"])
    def test_what_a_shared_part_raises_is_lost_and_the_engine_goes_on(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch, part: str
    ) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a kernel failed\nand more that nobody reads")

        engine, requests = text.engine(), [text.request(seed) for seed in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(getattr(text.pipeline, part), "forward" if part == "unet" else "decode", broken)
            made = drained(engine, requests)
        assert [item.picture for item in made] == [Failed("lost", "RuntimeError: a kernel failed")] * 3
        text.assert_plain(drained(engine, requests), requests)

    def test_ctrl_c_within_one_call_is_no_failure_and_no_picture(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever goes on with the engine afterwards gets pictures and failures, whatever was interrupted."""
        original, steps = diffusers.EulerDiscreteScheduler.step, itertools.count()

        def interrupted(*arguments: Any, **keywords: Any) -> Any:
            if next(steps) == 1:
                raise KeyboardInterrupt
            return original(*arguments, **keywords)

        engine, companion = text.engine(), text.request(2)
        monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.advance([text.request(1, scheduler="EulerDiscreteScheduler"), companion])
        made = drained(engine)
        assert all(isinstance(item.picture, Image.Image | Failed) for item in made)
        text.assert_plain([item for item in made if item.request is companion], [companion])

    def test_ctrl_c_in_one_beginning_leaves_the_others_theirs(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those admitted with it hold rows and have not begun."""
        original, calls = diffusers.DDIMScheduler.set_timesteps, itertools.count()

        def interrupted(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == 1:
                raise KeyboardInterrupt
            return original(*arguments, **keywords)

        engine, requests = text.engine(), [text.request(seed) for seed in range(4)]
        with monkeypatch.context() as patch:
            patch.setattr(diffusers.DDIMScheduler, "set_timesteps", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.advance(requests)
        text.assert_plain(drained(engine), [requests[0], *requests[2:]])

    def test_ctrl_c_within_the_unet_loses_nothing(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        original, calls = text.pipeline.unet.forward, itertools.count()

        def interrupted(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments, **keywords)

        engine, requests = text.engine(), [text.request(seed) for seed in range(3)]
        monkeypatch.setattr(text.pipeline.unet, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.advance(requests)
        text.assert_plain(drained(engine), requests)


class Memory:
    """Stands before a function that takes a batch first: more rows than `room` do not fit."""

    def __init__(self, function: Callable[..., Any], room: int) -> None:
        self.function, self.room = function, room
        self.asked: list[int] = []
        self.kept: list[bool] = []  # at every call, whether the tensors of a failed one are still there
        self._failed: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, batch: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        self.asked.append(len(batch))
        self.kept.append(any(reference() is not None for reference in self._failed))
        if len(batch) > self.room:
            self._failed.append(weakref.ref(batch))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand so on")
        return self.function(batch, *arguments, **keywords)


NO_ROOM = Failed("lost", "out of memory: CUDA out of memory. Tried to allocate 9 GiB")


class TestOutOfMemory:
    @pytest.fixture
    def memory(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> Memory:
        """That of the tiny text-to-image model's UNet."""
        memory = Memory(text.pipeline.unet.forward, room=64)
        monkeypatch.setattr(text.pipeline.unet, "forward", memory)
        return memory

    @pytest.mark.parametrize(
        ("room", "halvings"), [(8, [8]), (7, [8, 4]), (5, [8, 4]), (2, [8, 4, 2]), (3, [8, 4, 2])]
    )
    def test_halves_the_rows_says_so_and_loses_nothing(
        self, text: Bench, memory: Memory, room: int, halvings: list[int]
    ) -> None:
        requests = [text.request(seed, num_inference_steps=2 + seed % 3) for seed in range(9)]
        memory.room = room
        engine = text.engine(rows=16)
        made = drained(engine, requests)
        text.assert_plain(made, requests)
        assert engine.rows == halvings[-1]
        notes = [note for item in made for note in item.notes]
        assert notes == [f"out of memory: {rows} UNet rows at a time from here on" for rows in halvings]
        assert all(item.unet_calls == item.request.settings["num_inference_steps"] for item in made)

    def test_in_flight_goes_on_where_it_was(self, text: Bench, batches: list[int], memory: Memory) -> None:
        requests = [text.request(seed, num_inference_steps=6) for seed in range(4)]
        engine = text.engine(rows=8, patience=3.0)
        assert engine.advance(requests) == []
        memory.room = 4
        made = drained_ticking(engine)
        text.assert_plain(made, requests)
        assert memory.asked == [8, 8, 8, 8, *[4] * 6]
        assert not any(memory.kept)
        assert [item.unet_calls for item in made] == [6] * 4

    def test_on_a_single_request_loses_it_and_nothing_else(self, text: Bench, memory: Memory) -> None:
        requests = [text.request(seed) for seed in range(3)]
        engine = text.engine(rows=4)
        memory.room = 0
        made = drained(engine, requests)
        assert [item.picture for item in made] == [NO_ROOM] * 3
        assert engine.rows == 2
        memory.room = 64
        text.assert_plain(drained(engine, requests), requests)

    def test_on_two_requests_of_one_row_each_draws_them_one_by_one(self, text: Bench, memory: Memory) -> None:
        requests = [text.request(seed, guidance_scale=1.0) for seed in range(4)]
        memory.room = 1
        text.assert_plain(drained(text.engine(rows=4), requests), requests)

    def test_on_a_large_picture_leaves_the_others_their_rows(self, text: Bench, memory: Memory) -> None:
        """Rows are halved as far as they fill the memory, not for a picture that never fits."""
        small = [text.request(seed) for seed in range(4)]
        large = text.request(9, width=64, height=64)
        original = memory.function

        def too_large(batch: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            if batch.shape[-1] == 32:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return original(batch, *arguments, **keywords)

        memory.function = too_large
        engine = text.engine(rows=16)
        made = drained(engine, [large, *small])
        (lost,) = (item for item in made if item.request is large)
        assert lost.picture == NO_ROOM
        text.assert_plain([item for item in made if item is not lost], small)
        assert engine.rows >= 8

    def test_in_decoding_decodes_one_by_one(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = Memory(text.pipeline.vae.decode, room=1)
        monkeypatch.setattr(text.pipeline.vae, "decode", memory)
        requests = [text.request(seed) for seed in range(3)]
        text.assert_plain(drained(text.engine(), requests), requests)
        assert memory.asked == [3, 1, 1, 1]
        assert not any(memory.kept)

    def test_in_decoding_one_picture_loses_it(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = Memory(text.pipeline.vae.decode, room=0)
        engine, requests = text.engine(), [text.request(seed) for seed in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(text.pipeline.vae, "decode", memory)
            made = drained(engine, requests)
        assert [item.picture for item in made] == [NO_ROOM] * 2
        text.assert_plain(drained(engine, requests), requests)

    @pytest.mark.parametrize(("room", "rows"), [(8, 8), (7, 4), (4, 4), (2, 2)])
    def test_in_encoding_halves_the_rows_and_loses_nothing(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch, room: int, rows: int
    ) -> None:
        """Here a prompt can be encoded while so many rows are taken."""
        original = type(text.pipeline).encode_prompt
        requests = [text.request(seed, f"a dragon {seed}") for seed in range(9)]
        expected = [text.expected(request) for request in requests]
        assert expected

        def tight(*arguments: Any, **keywords: Any) -> Any:
            if engine._rows.used > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return original(*arguments, **keywords)

        monkeypatch.setattr(type(text.pipeline), "encode_prompt", tight)
        engine = text.engine(rows=16)
        made = drained(engine, requests)
        text.assert_plain(made, requests)
        assert engine.rows == rows
        notes = [note for item in made for note in item.notes]
        assert notes == [
            f"out of memory: {left} UNet rows at a time from here on" for left in (8, 4, 2) if left >= rows
        ]
        assert all(item.unet_calls == 4 for item in made)

    def test_in_encoding_an_input_that_never_fits_loses_its_requests_and_no_rows(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = load("sd", "image-to-image")
        memory = Memory(bench.pipeline.vae.encode, room=64)
        small, large = bench.pairs[0][0], bench.pairs[1][0].resize((64, 64))
        inputs = {pixel_hash(image): image for image in (small, large)}
        wide = replace(bench, inputs=inputs, pairs=[(small, small), (large, large)], drawn={})
        engine, requests = wide.engine(rows=16), [wide.request(seed) for seed in (0, 2, 1, 4, 6)]

        def too_large(batch: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            memory.room = 0 if batch.shape[-1] == 64 else 64
            return memory(batch, *arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(bench.pipeline.vae, "encode", too_large)
            made = drained(engine, requests)
        (lost,) = (item for item in made if item.request.seed == 1)
        assert (lost.picture, lost.unet_calls) == (NO_ROOM, None)
        wide.assert_plain([item for item in made if item is not lost], [r for r in requests if r.seed != 1])
        assert engine.rows == 16
        assert "16 UNet rows at a time again: fewer did not help" in [n for item in made for n in item.notes]
        assert not any(memory.kept)
        wide.assert_plain(drained(engine, requests), requests)

    def test_in_encoding_alone_loses_the_request(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = load("sd", "image-to-image")
        engine, request = bench.engine(), bench.request()
        with monkeypatch.context() as patch:
            patch.setattr(bench.pipeline.vae, "encode", Memory(bench.pipeline.vae.encode, room=0))
            (made,) = drained(engine, [request])
        assert (made.picture, made.notes, engine.rows) == (NO_ROOM, (), 8)
        bench.assert_plain(drained(engine, [request]), [request])

    @pytest.mark.parametrize(("room", "rows"), [(7, 4), (4, 4), (2, 2)])
    def test_in_a_padded_batch_the_padding_goes_first(
        self, text: Bench, memory: Memory, monkeypatch: pytest.MonkeyPatch, room: int, rows: int
    ) -> None:
        monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
        engine, request = text.engine(rows=8), text.request()
        engine.compile()
        memory.room = room
        text.assert_plain(drained(engine, [request]), [request])
        assert engine.rows == rows
        assert memory.asked[-1] == rows

    def test_in_a_padded_batch_that_never_fits_loses_the_request(
        self, text: Bench, memory: Memory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
        engine = text.engine(rows=8)
        engine.compile()
        memory.room = 1
        (made,) = drained(engine, [text.request()])
        assert made.picture == NO_ROOM
        assert memory.asked == [8, 4, 2]


class TestSeconds:
    """Each request is told its share of what was spent on it, here by a clock that work alone moves."""

    ENCODING, CALL, STEP, DECODING = 1000.0, 12.0, 1.0, 40.0

    @pytest.fixture(autouse=True)
    def clock(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [0.0]
        clock = SimpleNamespace(perf_counter=lambda: now[0])
        monkeypatch.setattr("workers.pipelines.slot_engine.time", clock)
        for owner, name, cost in (
            (type(text.pipeline), "encode_prompt", self.ENCODING),
            (text.pipeline.unet, "forward", self.CALL),
            (diffusers.DDIMScheduler, "step", self.STEP),
            (text.pipeline.vae, "decode", self.DECODING),
        ):
            monkeypatch.setattr(owner, name, self.costing(getattr(owner, name), cost, now))
        return now

    @staticmethod
    def costing(function: Callable[..., Any], cost: float, now: list[float]) -> Callable[..., Any]:
        @functools.wraps(function)  # pipelines read the signature of a step
        def timed(*arguments: Any, **keywords: Any) -> Any:
            now[0] += cost
            return function(*arguments, **keywords)

        return timed

    def told(self, made: Sequence[Generated]) -> dict[int, float]:
        return {item.request.seed: round(item.seconds, 6) for item in made}

    def test_are_shared_by_rows_and_by_pictures(self, text: Bench, clock: list[float]) -> None:
        pair = text.request(1, num_inference_steps=3)
        single = text.request(2, num_inference_steps=3, guidance_scale=1.0)
        made = drained(text.engine(rows=3, patience=1e9), [pair, single])
        own = self.ENCODING + 3 * self.STEP + self.DECODING / 2
        assert self.told(made) == {1: own + 3 * self.CALL * 2 / 3, 2: own + 3 * self.CALL / 3}
        assert sum(item.seconds for item in made) == pytest.approx(clock[0])

    def test_of_remembered_prompts_are_told_once(self, text: Bench) -> None:
        made = drained(
            text.engine(rows=2, patience=1e9), [text.request(seed, num_inference_steps=1) for seed in (1, 2)]
        )
        each = self.CALL + self.STEP + self.DECODING / 2
        assert self.told(made) == {1: self.ENCODING + each, 2: each}

    def test_of_pictures_decoded_one_by_one_are_their_own(
        self, text: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(text.pipeline.vae, "decode", Memory(text.pipeline.vae.decode, room=1))
        made = drained(
            text.engine(rows=2, patience=1e9), [text.request(seed, num_inference_steps=1) for seed in (1, 2)]
        )
        each = self.CALL + self.STEP + self.DECODING
        assert self.told(made) == {1: self.ENCODING + each, 2: each}

    def test_up_to_a_look_count_again_at_the_end(self, text: Bench) -> None:
        engine, request = text.engine(patience=1e9), text.request(1, num_inference_steps=3)
        (look,) = drained(engine, [replace(request, stop_after=2)])
        (made,) = drained(engine, [request])
        before = self.ENCODING + 2 * (self.CALL + self.STEP) + self.DECODING
        assert (look.seconds, made.seconds) == (before, before + self.CALL + self.STEP + self.DECODING)

    def test_of_what_fails_are_told_too(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text.pipeline.vae, "decode", self.failing(text.pipeline.vae.decode))
        (made,) = drained(text.engine(patience=1e9), [text.request(1, num_inference_steps=2)])
        assert isinstance(made.picture, Failed)
        assert made.seconds == self.ENCODING + 2 * (self.CALL + self.STEP) + self.DECODING

    @staticmethod
    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **keywords: Any) -> Any:
            function(*arguments, **keywords)
            raise RuntimeError("a kernel failed")

        return failing

    def test_of_other_calls_are_not_counted(self, text: Bench, clock: list[float]) -> None:
        """What passes between two calls of `advance` is nobody's."""
        engine, request = text.engine(patience=1.0), text.request(1, num_inference_steps=3)
        made: list[Generated] = []
        while not made:
            made = list(engine.advance([request] if clock[0] == 0 else []))
            clock[0] += 500.0
        assert made[0].seconds == self.ENCODING + 3 * (self.CALL + self.STEP) + self.DECODING


class TestWhatIsRemembered:
    def test_prompts_are_encoded_once(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        encoded = counted(monkeypatch, type(text.pipeline), "encode_prompt")
        engine = text.engine()
        requests = [
            text.request(seed, prompt, negative_prompt=negative, guidance_scale=guidance)
            for seed, (prompt, negative, guidance) in enumerate(
                [
                    ("a", "", 2.0),
                    ("a", "", 3.0),
                    ("b", "", 2.0),
                    ("a", "c", 2.0),
                    ("a", "", 1.0),
                    ("b", "", 9.0),
                ]
            )
        ]
        drained(engine, requests)
        drained(engine, requests)
        assert len(encoded) == 4  # two prompts, another negative one, one without guidance

    def test_prompts_kept_are_bounded(self, text: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        encoded = counted(monkeypatch, type(text.pipeline), "encode_prompt")
        monkeypatch.setattr(shared_models, "PROMPTS", 2)
        engine = text.engine()
        for prompt in "abaacab":
            drained(engine, [text.request(prompt=prompt, num_inference_steps=1)])
        assert len(encoded) == 4  # a, b, c, and b again, which c had driven out

    @pytest.mark.parametrize("task", ["image-to-image", "inpainting"])
    def test_images_are_encoded_once_and_sampled_per_seed(
        self, load: Load, monkeypatch: pytest.MonkeyPatch, task: Task
    ) -> None:
        bench = load("sd", task)
        encoded = counted(monkeypatch, bench.pipeline.vae, "encode")
        engine, requests = bench.engine(), [bench.request(seed, strength=0.6) for seed in range(5)]
        bench.assert_plain(drained(engine, requests), requests)
        assert len(encoded) == (2 if task == "image-to-image" else 4)  # each image, and each masked
        drained(engine, requests)
        assert len(encoded) == (2 if task == "image-to-image" else 4)

    def test_images_are_preprocessed_once(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = load("toyworld", "inpainting")
        prepared = counted(monkeypatch, type(bench.pipeline.image_processor), "preprocess")
        drained(bench.engine(), [bench.request(seed, num_inference_steps=1) for seed in range(4)])
        assert len(prepared) == 4  # two images, two masks

    def test_images_kept_are_bounded(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = load("sd", "image-to-image")
        encoded = counted(monkeypatch, bench.pipeline.vae, "encode")
        monkeypatch.setattr(shared_models, "IMAGES", 1)
        engine = bench.engine()
        for seed in (0, 2, 1, 3, 0):  # seeds take turns with the two images
            drained(engine, [bench.request(seed)])
        assert len(encoded) == 3

    def test_schedulers_serve_again_as_new_and_nobody_else_meanwhile(self, text: Bench) -> None:
        engine, names = text.engine(rows=64), text.model.schedulers
        drained(engine, [text.request(scheduler=name, num_inference_steps=5) for name in names])
        requests = [
            text.request(seed, scheduler=name, num_inference_steps=4 + 2 * seed)
            for seed in range(2)
            for name in names
        ]
        text.assert_plain(drained(engine, requests), requests)

    def test_a_scheduler_that_changes_its_own_options_is_as_new(self, load: Load) -> None:
        """The single-step solver sets `lower_order_final` for good where the steps leave a remainder."""
        bench = load("toyworld", "inpainting")
        five, six = (
            bench.request(
                scheduler="DPMSolverSinglestepScheduler",
                solver_order=3,
                final_sigmas_type="sigma_min",
                num_inference_steps=steps,
            )
            for steps in (5, 6)
        )
        engine = bench.engine()
        made = [*drained(engine, [five]), *drained(engine, [six])]
        bench.assert_plain(made, [five, six])


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Grows by one with every call of a method."""
    calls: list[None] = []
    original = getattr(owner, name)

    def counting(*arguments: Any, **keywords: Any) -> Any:
        calls.append(None)
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, counting)
    return calls


class TestLeavesThePipelineAsItWas:
    @pytest.mark.parametrize(("name", "task"), [GROUPS[0], GROUPS[3], GROUPS[6]])
    def test_a_plain_call_gives_the_same_bytes_before_and_after(
        self, load: Load, name: str, task: Task
    ) -> None:
        bench = load(name, task)
        own, config = dict(vars(bench.pipeline)), dict(bench.pipeline.config)
        schedule = dict(bench.pipeline.scheduler.config)

        def plain() -> bytes:
            image, mask = bench.pairs[0]
            made = bench.pipeline(
                "a cat",
                image=image,
                mask_image=mask,
                num_inference_steps=3,
                generator=torch.Generator().manual_seed(0),
            )
            picture: Image.Image = made.images[0]
            return picture.tobytes()

        before = plain()
        own = dict(vars(bench.pipeline))
        requests = [
            bench.request(1, scheduler="EulerDiscreteScheduler"),
            bench.request(2, scheduler="NoSuchScheduler"),
            bench.request(3),
        ]
        assert len(drained(bench.engine(), requests)) == 3
        after = vars(bench.pipeline)
        assert after.keys() == own.keys()
        assert all(after[key] is own[key] for key in own if not key.startswith("_"))
        assert dict(bench.pipeline.config) == config
        assert dict(bench.pipeline.scheduler.config) == schedule
        assert not bench.pipeline.unet._forward_pre_hooks
        assert plain() == before

    @pytest.mark.parametrize("enabled", [True, False])
    def test_gradients_are_on_or_off_as_they_were(
        self, text: Bench, batches: list[int], enabled: bool
    ) -> None:
        engine = text.engine(patience=1.0)
        requests = [text.request(seed, num_inference_steps=2 + seed) for seed in range(3)]
        with torch.set_grad_enabled(enabled):
            for new, cancelled in ((requests, set()), ([], {requests[1].image_id}), ([], set()), ([], set())):
                engine.advance(new, cancelled)
                assert torch.is_grad_enabled() == enabled
                assert not torch.is_inference_mode_enabled()

    def test_two_engines_over_one_pipeline_do_not_meet(self, text: Bench, batches: list[int]) -> None:
        one, other = (text.engine(patience=1.0) for _ in range(2))
        requests = [text.request(seed, scheduler="PNDMScheduler") for seed in range(2)]
        assert one.advance(requests[:1]) == []
        assert other.advance(requests[1:]) == []
        text.assert_plain([*drained_ticking(one), *drained_ticking(other)], requests)

    def test_an_engine_let_go_of_is_gone(self, text: Bench) -> None:
        """With the model that it holds."""
        engine = text.engine()
        drained(engine, [text.request(1), text.request(2, scheduler="NoSuchScheduler")])
        reference = weakref.ref(engine)
        del engine
        gc.collect()
        assert reference() is None
