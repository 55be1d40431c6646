"""Names in a study file → objects: the only module that knows every implementation."""

import errno
import json
import os
import secrets
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pyarrow.fs import LocalFileSystem

from orchestrator.catalog.parquet import holds_another, past_trials
from orchestrator.catalog.patient import reason
from orchestrator.catalog.tables import Tables, open_root
from orchestrator.plan import admitted, calls_of, domain_text, remembered_rate, surveyed
from orchestrator.report.results import settings_text
from orchestrator.study_folder import StudyFolder, local_root
from orchestrator.tracking import NullTracker, Tracker
from orchestrator.tracking.comet import (
    CometImage,
    CometMetric,
    CometOfflineTracker,
    CometStudy,
    experiment_key,
)
from search_spaces import study_file
from search_spaces.errors import InputError
from search_spaces.models import PIXEL_SCORERS, ModelDescription, ScorerDescription
from search_spaces.objectives import PRESERVATION, keeps
from search_spaces.requests import Failed, ImageRequest, Scored, Settings, Trial, Value
from search_spaces.space import Survey, guidance_is_on
from search_spaces.strategies import PastTrial, Strategy
from search_spaces.strategies.grid import Grid
from search_spaces.strategies.halving import Halving
from search_spaces.strategies.staged import Coordinate, Refine
from search_spaces.strategies.trials import Trials
from search_spaces.strategies.validation import Validation
from search_spaces.study import PinnedInput, Study, idle_exclusions, pin
from search_spaces.study_file import InputSpec, StudySpec
from workers.inputs import pixel_hash, read_image, read_mask
from workers.pipelines import Generated, Pipeline
from workers.png import as_png, decode_png, encode_png
from workers.scoring import Scorer
from workers.scoring.preservation import PreservationScorer, kept
from workers.worker import Worker

if TYPE_CHECKING:  # these take seconds to import, which `report` and `schema` need not wait for
    from optuna.samplers import BaseSampler

    from orchestrator.dashboard import Dashboard
    from orchestrator.ray_pool import RayPool
    from workers.pipelines.slot_engine import SlotEngine
    from workers.scoring.clip import ClipScorer

GIB = 2**30

DEFAULT_BATCH = 8
"""Images per pipeline call: measured on 2 CPU cores (DECISIONS.md); a GPU out of memory halves it by itself."""


@dataclass(frozen=True)
class Resolved:
    """A study file resolved: the study, its text, and its input images by pixel hash."""

    study: Study
    text: str
    images: Mapping[str, Image.Image]
    warnings: tuple[str, ...]


def resolve(path: Path, root: str, gpus: Callable[[], int]) -> Resolved:
    """Read, check and resolve a study file: everything that can be wrong with it is found here.

    No weights are read. Where the study was pinned before, its pinned dtype holds. Raises InputError.
    """
    spec = study_file.load(path)
    if local_root(root).exists() and not local_root(root).is_dir():
        raise InputError(f"--root {root} is a file; name a folder")
    inputs, images = read_inputs(spec, path)
    folder = StudyFolder(root, spec.study)
    pinned = folder.pinned()
    if spec.dtype != "auto":
        dtype = spec.dtype
    elif pinned is not None:
        dtype = pinned.model.dtype
    else:
        dtype = "float16" if gpus() else "float32"

    from workers.pipelines.loading import (
        describe,
        describe_clip,
    )  # seconds of imports: after the cheap checks

    try:
        model = describe(spec.model, spec.task, dtype, path.parent, trust=spec.trust)
        scorer = describe_clip(spec.clip_model, spec.model, path.parent, spec.trust)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _check_inputs_suit(spec, model, path)
    token = pinned.token if pinned else secrets.token_hex(16)
    study = pin(spec, model, scorer, inputs, token, str(path))
    _check_scheduler_options(study, path)
    if study.search.samples:
        sys.path.append(str(path.parent.absolute()))  # a sampler of one's own lies beside the study file
        try:
            _optuna_sampler(study, study.search.seed)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    folder.check_continues(study, str(path))
    Tables(root).check_root()
    if holds_another(Tables(root), study):
        raise InputError(
            f"{path}: the catalog under {root} holds trials of another study named {study.name!r}; "
            "give this one another name under 'study', or another --root"
        )
    _check_preservation(study, images, path)
    _check_calls(study, path)
    _check_race(study, path)
    warnings = (*_stretched(study, images), *_idle_rules(study), *_short_of_time(study, root))
    return Resolved(study, path.read_text(encoding="utf-8"), images, warnings)


def check_writable(root: str) -> None:
    """See that a root can be written, before anything is loaded. Raises InputError, OSError where a store is down."""
    filesystem, base = open_root(root)
    place = f"{base.rstrip('/')}/.writable"
    try:
        if isinstance(filesystem, LocalFileSystem):
            Path(base).mkdir(parents=True, exist_ok=True)
        with filesystem.open_output_stream(place) as probe:
            probe.write(b"")
        with suppress(OSError):  # a store may let one write and not delete
            filesystem.delete_file(place)
    except OSError as error:
        if isinstance(filesystem, LocalFileSystem) and error.errno != errno.ENOSPC:
            raise InputError(
                f"--root {root} cannot be written: {reason(error)}; name a folder that can"
            ) from None
        if "ACCESS_DENIED" in str(error) or isinstance(error, PermissionError):
            raise InputError(f"--root {root}: these credentials may not write there") from None
        raise


def check_gpu(study: Study, path: Path, cluster: str) -> None:
    """Raise InputError where a study needs a GPU; to be asked of a cluster that has none and may start none."""
    needs = None
    if study.model.dtype == "float16":
        needs = "dtype: float16, which the study was begun with or asks for,"
    elif study.engine.offload != "none":
        needs = f"engine.offload: {study.engine.offload}"
    if needs is not None:
        raise InputError(
            f"{path}: {needs} needs a GPU and the cluster at {cluster} has none; add a machine with one, or give the "
            "study another name and dtype: float32 without offload"
        )


def _first_cost(study: Study) -> tuple[Settings, int] | None:
    """The settings that are tried first, and their UNet calls over all instances; None where nobody knows."""
    found = surveyed(study) if not study.first else None
    able = study.first[:1] or (found.candidates if found else [])
    costs = [(calls, settings) for calls, settings in zip(calls_of(study, able), able, strict=True) if calls]
    if not costs:
        return None
    calls, settings = min(costs, key=lambda cost: cost[0])
    return settings, calls * len(study.instances)


def _check_calls(study: Study, path: Path) -> None:
    """A budget of UNet calls lasts for the settings that are tried first."""
    budget = study.budget.unet_calls
    first = _first_cost(study) if budget is not None else None
    if budget is not None and first is not None and budget < first[1]:
        settings, needed = first
        raise InputError(
            f"{path}: budget.unet_calls: {budget:,} are fewer than the {needed:,} that one candidate "
            f"({settings_text(settings)}) takes on {len(study.instances)} instances"
        )


def _check_race(study: Study, path: Path) -> None:
    """A race's budget lasts for the settings that are tried first, the model's own among them."""
    if study.search.strategy != "halving" or not study.budget.is_set:
        return
    first = {study.judge.candidate(settings) for settings in study.first}
    entrants = len(raced(study, None) or ())
    if entrants < len(first):
        raise InputError(
            f"{path}: budget: it lasts for a race of {entrants} setting{'s' if entrants > 1 else ''}, and "
            f"{len(first)} are tried first, those of search.enqueue and the model's own; give more, or enqueue fewer"
        )


def _idle_rules(study: Study) -> Iterator[str]:
    """A warning for each rule of `exclude` that leaves out nothing."""
    for number in idle_exclusions(study):
        named = " and ".join(
            f"{name} {domain_text(domain)}" for name, domain in study.exclude[number].items()
        )
        yield f"exclude[{number}] leaves out nothing: no cell has {named}"


def _short_of_time(study: Study, root: str) -> Iterator[str]:
    """A warning for a budget of seconds that the settings tried first are likely to use up."""
    limits = {"seconds": study.budget.seconds, "gpu_seconds": study.budget.gpu_seconds}
    if not any(limits.values()):
        return
    rate, first = remembered_rate(study, root), _first_cost(study)
    if rate is None or first is None:
        return
    rows = 2 if guidance_is_on(study.judge.complete(first[0]), study.model) else 1
    needed = first[1] * rows / rate
    for name, limit in limits.items():
        if limit is not None and limit < needed:
            yield (
                f"budget.{name}: {limit:g} s are likely too few for one candidate, which takes about "
                f"{needed:.3g} s at the last run's speed"
            )


MOST_COMBINATIONS = 1000
"""Of schedulers and their options, that are tried before a study begins."""


def _check_scheduler_options(study: Study, path: Path) -> None:
    """Try every scheduler with every combination of the options that the study gives it."""
    from workers.pipelines.loading import check_scheduler

    given = {*study.settings, *study.space.axes} & study.model.scheduler_kinds.keys()
    if not given:
        return
    names = sorted(given & study.space.axes.keys())
    axes = [study.space.axes[name].points() or () for name in names]
    schedulers = study.space.axes["scheduler"].points() if "scheduler" in study.space.axes else None
    fixed = {**study.settings, "num_inference_steps": study.example.get("num_inference_steps", 10)}
    every = product(schedulers or (study.settings["scheduler"],), *axes)
    for scheduler, *values in islice(every, MOST_COMBINATIONS):
        try:
            check_scheduler(
                study.model, {**fixed, "scheduler": scheduler, **dict(zip(names, values, strict=True))}
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def read_inputs(spec: StudySpec, path: Path) -> tuple[list[PinnedInput], dict[str, Image.Image]]:
    """A study file's inputs, and their images and masks by pixel hash. Raises InputError."""
    inputs: list[PinnedInput] = []
    images: dict[str, Image.Image] = {}
    for number, item in enumerate(spec.inputs):
        key = f"{path}: inputs[{number}]"
        if item.mask is not None and item.image is None:
            raise InputError(f"{key}.mask: a mask needs an image beside it")
        image = read_image(path.parent / item.image, f"{key}.image") if item.image else None
        mask = read_mask(path.parent / item.mask, f"{key}.mask", image.size) if item.mask and image else None
        inputs.append(_pinned_input(item, image, mask))
        images.update({pixel_hash(each): each for each in (image, mask) if each is not None})
    if len({item.model_dump_json() for item in inputs}) < len(inputs):
        raise InputError(f"{path}: inputs: the same input is listed twice")
    return inputs, images


def _pinned_input(item: InputSpec, image: Image.Image | None, mask: Image.Image | None) -> PinnedInput:
    return PinnedInput(
        prompt=item.prompt,
        score_text=item.score_text or item.prompt,
        image=pixel_hash(image) if image else None,
        mask=pixel_hash(mask) if mask else None,
        image_name=Path(item.image).name if item.image else None,
        mask_name=Path(item.mask).name if item.mask else None,
    )


def _check_inputs_suit(spec: StudySpec, model: ModelDescription, path: Path) -> None:
    """Every input has what the task needs and nothing that it would ignore."""
    wants = {"image": model.task != "text-to-image", "mask": model.task == "inpainting"}
    for number, item in enumerate(spec.inputs):
        for key, wanted in wants.items():
            given = getattr(item, key) is not None
            if wanted and not given:
                raise InputError(
                    f"{path}: inputs[{number}].{key} is missing; the task {model.task} needs one"
                )
            if given and not wanted:
                raise InputError(f"{path}: inputs[{number}].{key}: the task {model.task} takes no {key}")


def _check_preservation(study: Study, images: Mapping[str, Image.Image], path: Path) -> None:
    """Where preservation counts, every input has a mask that keeps a part of its image, at every size."""
    if PRESERVATION not in study.measures:
        return
    if study.model.task != "inpainting":
        raise InputError(
            f"{path}: {PRESERVATION} compares a picture with its input image outside the mask, and the task "
            f"{study.model.task} has no mask; leave it out of objectives and constraints"
        )
    for number, item in enumerate(study.inputs):
        image, mask = images[str(item.image)], images[str(item.mask)]
        for width, height in product(_sizes(study, "width", image), _sizes(study, "height", image)):
            if not kept(mask, (width, height)).any():
                raise InputError(
                    f"{path}: inputs[{number}].mask: {item.mask_name} covers everything at {width}×{height} "
                    f"pixels, so that {PRESERVATION} has nothing to compare; keep a part of the image black in it, "
                    "or leave that score out"
                )


def _sizes(study: Study, name: str, image: Image.Image) -> list[int]:
    """The widths or heights that a study draws; the input image's own where the pipeline takes that."""
    domain = study.space.axes.get(name)
    values = (study.settings.get(name),) if domain is None else domain.points() or ()
    return [value if isinstance(value, int) else getattr(image, name) for value in values]


def _stretched(study: Study, images: Mapping[str, Image.Image]) -> list[str]:
    """A warning for each input image whose shape the pipeline will distort."""
    width, height = study.settings.get("width"), study.settings.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        return []
    return [
        f"{item.image_name} is {image.width}×{image.height} pixels and is stretched to {width}×{height}"
        for item in study.inputs
        if item.image
        and (image := images[item.image])
        and abs(image.width * height / (image.height * width) - 1) > 0.02
    ]


def make_strategy(study: Study, past: Sequence[PastTrial]) -> Strategy:
    """The strategy that a study names."""
    search, judge, instances = study.search, study.judge, len(study.instances)
    if search.samples:
        return _sampler(study, past)
    trials = Trials(judge, study.objective, past)
    if search.strategy == "coordinate":
        axes, first = study.space.axes, study.first
        start = study.baseline if judge.obstacle(study.baseline) is None else study.example
        return Coordinate(trials, axes, search.order, start, instances, search.rounds, search.keep, first)
    if search.strategy == "refine":
        return Refine(trials, study.space.axes, instances, search.trials, search.keep, study.first)
    if search.strategy == "grid":
        return Grid(trials, _cells(study), instances, search.trials)
    entrants = race_entrants(study, trials)
    looks = search.early_look == "auto" and study.model.family.slots
    baseline = judge.candidate(study.baseline)
    always = {trial.number for trial in entrants if judge.candidate(trial.settings) == baseline}
    return Halving(trials, entrants, instances, search.keep, judge.steps, looks, search.seed, always)


def _cells(study: Study) -> Iterable[dict[str, Value]]:
    """The cells in the order of their turns; where not all may have theirs, those that have are drawn at random."""
    partly = study.search.trials is not None or study.budget.is_set
    walk = study.space.shuffled(study.search.seed) if partly else study.space.by_cost().lattice()
    return chain(study.first, walk)


def race_entrants(study: Study, trials: Trials) -> list[Trial]:
    """The trials of a study's race: as many as it may have, and as its budget lasts for."""
    entrants = list(islice(trials.candidates(_cells(study)), study.search.trials))
    return entrants[: admitted(study, [trial.settings for trial in entrants])]


def raced(study: Study, found: Survey | None) -> Sequence[Settings] | None:
    """The settings that a study races; None where it does not race all at once. `found` is a walk over them all."""
    if study.search.strategy != "halving":
        return None
    if found and study.search.trials is None and not study.budget.is_set:
        return found.candidates
    return [trial.settings for trial in race_entrants(study, Trials(study.judge, study.objective))]


def make_validation(study: Study, past: Sequence[PastTrial]) -> Validation:
    """What follows the search of a study that came to `past`."""
    baseline = study.judge.candidate(study.baseline)
    return Validation(
        past,
        study.objective,
        len(study.instances),
        len(study.validation_instances),
        lambda settings: study.judge.candidate(settings) == baseline,
        study.constraints,
    )


def _sampler(study: Study, past: Sequence[PastTrial]) -> Strategy:
    from search_spaces.strategies.optuna_sampler import OptunaSampler

    assert study.search.trials is not None
    return OptunaSampler(
        study.space,
        study.judge,
        len(study.instances),
        study.objectives,
        study.search.trials,
        # A sampler that starts again after a stop must not draw what it drew before.
        _optuna_sampler(study, study.search.seed + len(past)),
        seed=study.search.seed,
        past=past,
        constraints=study.constraints,
        enqueue=study.first,
        racing=study.search.racing == "auto",
    )


def _optuna_sampler(study: Study, seed: int) -> "BaseSampler":
    """The sampler that a study names. Raises InputError where it cannot be had or cannot take the space."""
    from search_spaces.strategies.samplers import make_sampler

    search, constrained = study.search, bool(study.constraints)
    return make_sampler(
        search.strategy, search.options, seed, study.space, len(study.objectives), constrained
    )


@dataclass(frozen=True)
class WorkerSetup:
    """What an actor needs to build its worker; `inputs` are PNG by pixel hash."""

    study: Study
    inputs: Mapping[str, bytes]
    batch: int
    threads: int


def build_worker(setup: WorkerSetup) -> Worker:
    """Load model and scorer on this machine's device. Raises InputError where they cannot load."""
    import diffusers
    import torch
    import transformers

    from workers.pipelines.loading import load_pipeline
    from workers.pipelines.whole_call import WholeCallPipeline

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(setup.threads)
    study = setup.study
    pipeline = load_pipeline(study.model, device, study.engine.offload)
    scorer = load_scorer(study.scorer, device)
    inputs = {name: decode_png(png) for name, png in setup.inputs.items()}
    name, overlap = torch.cuda.get_device_name() if device == "cuda" else "cpu", device == "cuda"
    scorers: dict[str, Scorer] = {study.objective: scorer}
    if PRESERVATION in study.scorers:
        scorers[PRESERVATION] = PreservationScorer(inputs)
    if not study.model.family.slots:
        whole = WholeCallPipeline(pipeline, study.model, inputs, setup.batch)
        return Worker(whole, scorers, name, setup.batch, overlap, study.image_format)
    engine = make_engine(study, pipeline, inputs, name)
    return Worker(engine, scorers, name, max(1, engine.rows // 2), overlap, study.image_format)


def load_scorer(scorer: ScorerDescription, device: str) -> "ClipScorer":
    """The scorer that a description names. Raises InputError where it cannot be loaded."""
    from safetensors import SafetensorError

    from workers.pipelines.loading import local_folder, safetensors_only, trust_hint
    from workers.scoring.clip import ClipScorer

    folder, safe = local_folder(scorer.location), safetensors_only(scorer.trust)
    try:
        if folder is not None:
            return ClipScorer(folder, device, use_safetensors=safe)
        return ClipScorer(scorer.location, device, scorer.revision, safe)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise InputError(
            f"clip_model: {scorer.model} cannot be loaded: {first_line.rstrip('.')}{trust_hint(error, scorer.trust)}"
        ) from error


class _DrawsNothing:
    """The pipeline of a worker that only scores."""

    def advance(
        self,
        new: Sequence[ImageRequest],
        cancelled: Collection[str] = (),  # noqa: ARG002  # the seam's
    ) -> Sequence[Generated]:
        """Refuse whatever is to be drawn."""
        return [Generated(request, Failed("lost", "this worker only scores"), 0.0, None) for request in new]


def build_scoring_worker(setup: WorkerSetup) -> Worker:
    """A worker that has the study's scorer and no pipeline. Raises InputError where it cannot load."""
    if setup.study.scorer in PIXEL_SCORERS.values():
        inputs = {name: decode_png(png) for name, png in setup.inputs.items()}
        pixels = {setup.study.objective: PreservationScorer(inputs)}
        return Worker(_DrawsNothing(), pixels, "cpu", setup.batch)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(setup.threads)
    scorers = {setup.study.objective: load_scorer(setup.study.scorer, device)}
    return Worker(_DrawsNothing(), scorers, device, setup.batch)


def draw(study: Study, inputs: Mapping[str, Image.Image], request: ImageRequest) -> Image.Image | Failed:
    """Draw one request here and now, by the pipeline that a worker would use; `inputs` are by pixel hash."""
    import torch

    from workers.pipelines.loading import load_pipeline
    from workers.pipelines.slot_engine import SlotEngine
    from workers.pipelines.whole_call import WholeCallPipeline

    model = study.model
    loaded = load_pipeline(model, "cuda" if torch.cuda.is_available() else "cpu", study.engine.offload)
    pipeline: Pipeline
    if model.family.slots:
        pipeline = SlotEngine(loaded, model, inputs, 2)
    else:
        pipeline = WholeCallPipeline(loaded, model, inputs, 1)
    made = pipeline.advance([request])
    while not made:
        made = pipeline.advance([])
    return made[0].picture


def make_engine(study: Study, pipeline: Any, inputs: Mapping[str, Image.Image], device: str) -> "SlotEngine":
    """The slot engine for a study's model on a device, with as many rows as the study says or are fastest.

    Raises InputError where it is to be compiled and this machine has no compiler.
    """
    import torch

    from workers.pipelines.capacity import remembered_rows
    from workers.pipelines.loading import check_compiler
    from workers.pipelines.slot_engine import SlotEngine

    if study.engine.compile:
        check_compiler("cuda" if torch.cuda.is_available() else "cpu")
    asked, model = study.engine.rows, study.model
    engine = SlotEngine(pipeline, model, inputs, 2 if asked == "auto" else asked)
    if asked == "auto":
        example, size = _largest_example(study, inputs)
        facts = {
            "model": model.identity,
            "pipeline": model.pipeline,
            "dtype": model.dtype,
            "size": size,
            "device": device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "engine": study.engine.model_dump(),
        }
        try:
            engine.rows = remembered_rows(facts, lambda: engine.fastest_rows(example))
        except ValueError:  # the example cannot be drawn, of which every request will say why
            engine.rows = DEFAULT_BATCH
    if study.engine.compile:
        engine.compile()
    return engine


def _largest_example(
    study: Study, inputs: Mapping[str, Image.Image]
) -> tuple[ImageRequest, tuple[Value, Value]]:
    """A request of the study, with the width and height that it draws at: where the input says, of the largest."""

    def size(request: ImageRequest) -> tuple[Value, Value]:
        asked = request.settings.get("width"), request.settings.get("height")
        return asked if request.image is None or None not in asked else inputs[request.image].size

    def pixels(request: ImageRequest) -> int:
        width, height = size(request)
        return width * height if isinstance(width, int) and isinstance(height, int) else 0

    instances = study.instances[: len(study.inputs)]  # of one seed
    example = max((study.request(study.example, instance) for instance in instances), key=pixels)
    return example, size(example)


@dataclass(frozen=True)
class Crew:
    """How many workers of what kind, each with so many CPU threads and images per call."""

    workers: int
    kind: Literal["CPU", "GPU"]
    threads: int
    batch: int

    def __str__(self) -> str:
        plural = "s" if self.workers > 1 else ""
        threads = f" with {self.threads} thread{'s' if self.threads > 1 else ''} each"
        return f"{self.workers} {self.kind} worker{plural}{threads if self.kind == 'CPU' else ''}"


def crew(study: Study, workers: int | None, gpus: int, batch: int) -> Crew:
    """The workers for a study: one per GPU; without GPUs, as many as the cores carry; or as many as asked."""
    from orchestrator.ray_session import cores

    if gpus:
        return Crew(workers or gpus, "GPU", 1, batch)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    workers = workers or cpu_workers(study.model, cores(), memory)
    return Crew(workers, "CPU", max(1, cores() // workers), batch)


def cpu_workers(model: ModelDescription, cores: int, memory: int) -> int:
    """How many workers a machine without GPU carries.

    One per core with one thread each, which was measured to be fastest (DECISIONS.md), as far as `memory`
    bytes hold their weights in float32; a model whose size is not known yet gets one worker.
    """
    from workers.pipelines.loading import local_folder

    folder = local_folder(model.location)
    if folder is None:
        return 1
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    each = GIB + 3 * weights  # half precision on disk doubles, and activations take as much again
    return max(1, min(cores, int(0.8 * memory) // each))


def make_pool(
    resolved: Resolved, crew: Crew, connect: Callable[[], AbstractContextManager[None]]
) -> "RayPool":
    """The Ray pool of a crew; it connects and starts with the first request."""
    from orchestrator.ray_pool import RayPool
    from orchestrator.ray_session import cores

    inputs = {name: encode_png(image) for name, image in resolved.images.items()}
    setup = WorkerSetup(resolved.study, inputs, crew.batch, crew.threads)
    gpu = crew.kind == "GPU"
    share = 1.0 if gpu else min(1.0, cores() / crew.workers) * crew.threads
    return RayPool(
        connect, partial(build_worker, setup), crew.workers, crew.batch, num_cpus=share, num_gpus=int(gpu)
    )


def make_scoring_pool(
    study: Study,
    crew: Crew,
    connect: Callable[[], AbstractContextManager[None]],
    inputs: Mapping[str, bytes],
) -> "RayPool":
    """A Ray pool whose workers only score, by the study's scorer; `inputs` are PNG by pixel hash."""
    from orchestrator.ray_pool import RayPool
    from orchestrator.ray_session import cores

    setup, gpu = WorkerSetup(study, inputs, crew.batch, crew.threads), crew.kind == "GPU"
    share = 1.0 if gpu else min(1.0, cores() / crew.workers) * crew.threads
    return RayPool(
        connect,
        partial(build_scoring_worker, setup),
        crew.workers,
        crew.batch,
        num_cpus=share,
        num_gpus=int(gpu),
    )


def make_tracker(study: Study, root: str, folder: StudyFolder) -> Tracker:
    """Where a study's images are streamed."""
    if study.comet.mode == "off":
        return NullTracker()
    source = partial(comet_source, root, study.name)
    return CometOfflineTracker(source, folder.comet.absolute(), folder.path.absolute() / "comet.log")


def check_storage(storage: str) -> None:
    """See that an Optuna storage can be reached, writing nothing. Raises InputError."""
    from orchestrator.tracking.optuna_storage import parse_place

    parse_place(storage).check()


def make_dashboard(study: Study, root: str, storage: str | bool) -> "Dashboard | None":
    """What tells a study to an Optuna storage: that of a name, with True one in its folder. Raises InputError."""
    if storage is False:
        return None
    from orchestrator.dashboard import Dashboard

    return Dashboard(study, root, storage if isinstance(storage, str) else None)


def comet_key(study: Study) -> str:
    """The key of a study's experiment: the same whenever the study goes on, and nobody else's."""
    return experiment_key(f"{study.name} {study.token}")


def comet_source(root: str, name: str) -> tuple[CometStudy, str, Iterable[CometImage], Iterable[CometMetric]]:
    """A study's Comet experiment as the catalog has it; runs in the process that builds the archive."""
    folder, tables = StudyFolder(root, name), Tables(root)
    study = folder.pinned()
    assert study is not None
    past = past_trials(tables, name)
    described = CometStudy(
        study=name,
        workspace=study.comet.workspace,
        project=study.comet.project or name,
        experiment_name=study.comet.name or name,
        tags=study.comet.tags,
        parameters={
            **{key: json.dumps(value) if value is None else value for key, value in study.settings.items()},
            "model": study.model.name,
            "revision": study.model.revision,
            "task": study.model.task,
            "dtype": study.model.dtype,
            "scorer": study.scorer.id,
            "seeds": json.dumps(study.seeds),
            "space": study.space.model_dump_json(),
            "search": study.search.model_dump_json(),
        },
        assets=[folder.study_file],
    )
    return described, comet_key(study), _comet_images(tables, study, past), _comet_metrics(study, past)


def _comet_images(tables: Tables, study: Study, past: Sequence[PastTrial]) -> Iterator[CometImage]:
    """Every scored picture of the study, in one pass over the catalog."""
    instances = study.instances
    told: dict[str, tuple[int, dict[str, Value]]] = {}
    for trial in past:
        for number, outcome in trial.outcomes.items():
            if not isinstance(outcome, Scored) or number >= len(instances):
                continue
            request = study.request(trial.settings, instances[number])
            metadata = {
                "study": study.name,
                "trial": trial.number,
                "instance": number,
                "prompt": request.prompt,
                "score_text": request.score_text,
                "seed": request.seed,
                **request.settings,
                **outcome.scores,
            }
            told[request.image_id] = (trial.number, metadata)
    for image_id, png in tables.pictures(set(told)):
        step, metadata = told[image_id]
        yield CometImage(image_id, "search", step, as_png(png), metadata)


def _comet_metrics(study: Study, past: Sequence[PastTrial]) -> Iterator[CometMetric]:
    """Each complete trial's mean, and the best so far of those that keep the constraints."""
    best = None
    for trial in past:
        scores = [o.scores for o in trial.outcomes.values() if isinstance(o, Scored)]
        if len(scores) < len(study.instances):
            continue
        mean = sum(each[study.objective] for each in scores) / len(scores)
        if keeps(study.constraints, scores):
            best = mean if best is None else max(best, mean)
        yield CometMetric(study.objective, mean, trial.number)
        if best is not None:
            yield CometMetric(f"best_{study.objective}", best, trial.number)
