"""Names in a study file → objects: the only module that knows every implementation."""

import os
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from PIL import Image

from orchestrator.catalog.pictures import CatalogWriter
from orchestrator.comet_study import comet_source
from orchestrator.dealing import Places
from orchestrator.machine import Machine, this_machine
from orchestrator.plan import admitted
from orchestrator.study_folder import StudyFolder
from orchestrator.tracking import NullTracker, Tracker
from orchestrator.tracking.comet.archive import CometOfflineTracker
from orchestrator.tracking.comet.keys import api_key_problem, home, may_have_key
from search_spaces.errors import InputError
from search_spaces.models import PIXEL_SCORERS, ModelDescription, ScorerDescription
from search_spaces.objectives import PRESERVATION
from search_spaces.requests import Failed, ImageRequest, Settings, Trial, Value
from search_spaces.space import Survey
from search_spaces.strategies import PastTrial, Strategy
from search_spaces.strategies.grid import Grid
from search_spaces.strategies.halving import Halving
from search_spaces.strategies.racing import smallest_significant
from search_spaces.strategies.staged import Coordinate, Refine
from search_spaces.strategies.trials import Trials, as_filed
from search_spaces.strategies.validation import Validation
from search_spaces.study import Study
from workers.infotext import Origin
from workers.pipelines import Generated, Pipeline
from workers.pipelines.staging import once_per_machine
from workers.png import Encoder, decode_png, encode_png
from workers.scoring import Scorer
from workers.scoring.preservation import PreservationScorer
from workers.worker import Worker

if TYPE_CHECKING:  # these take seconds to import, which `report` and `schema` need not wait for
    from optuna.samplers import BaseSampler

    from orchestrator.dashboard import Dashboard
    from orchestrator.ray_pool import RayPool
    from workers.pipelines.slot_engine import SlotEngine
    from workers.scoring.clip import ClipScorer

T = TypeVar("T")

GIB = 2**30

DEFAULT_BATCH = 8
"""Images per pipeline call: measured on 2 CPU cores (DECISIONS.md); a GPU out of memory halves it by itself."""


def make_strategy(study: Study, past: Sequence[PastTrial]) -> Strategy:
    """The strategy that a study names."""
    search, judge, instances = study.search, study.judge, len(study.instances)
    past = as_filed(past, judge)
    if search.samples:
        return _sampler(study, past)
    trials = Trials(judge, study.objective, past)
    baseline = trials.trial(study.baseline)
    always = {baseline.number} if baseline else set[int]()
    if search.strategy == "coordinate":
        axes, first = study.space.axes, study.first
        start = study.baseline if judge.obstacle(study.baseline) is None else study.example
        return Coordinate(
            trials, axes, search.order, start, instances, search.rounds, search.keep, first, always
        )
    if search.strategy == "refine":
        return Refine(trials, study.space.axes, instances, search.trials, search.keep, study.first, always)
    if search.strategy == "grid":
        return Grid(trials, _cells(study), instances, search.trials)
    entrants = race_entrants(study, trials)
    looks = search.early_look == "auto" and study.model.family.slots
    return Halving(trials, entrants, instances, search.keep, judge.steps, looks, search.seed, always)


def _cells(study: Study) -> Iterable[dict[str, Value]]:
    """The cells in the order of their turns; where not all may have theirs, those that have are drawn at random.

    A race draws its scouts from their order, so there the model's own stand after those of the file, as they always
    have, and a race that is over stays over.
    """
    partly = study.search.trials is not None or study.budget.is_set
    walk = study.space.shuffled(study.search.seed) if partly else study.space.by_cost().lattice()
    first = study.first
    if study.search.strategy == "halving":
        first.sort(key=lambda settings: settings == study.baseline)
    return chain(first, walk)


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
    # A sampler that starts again after a stop must not draw what it drew before.
    sampler = make_optuna_sampler(study, study.search.seed + len(past))
    if _is_worth_a_model(study):
        from search_spaces.strategies.modelled import ModelledSampler

        ((objective, direction),) = study.objectives.items()
        return ModelledSampler(
            study.space,
            study.judge,
            len(study.instances),
            objective,
            direction,
            study.search.trials,
            sampler,
            seed=study.search.seed,
            past=past,
            enqueue=study.first,
            baseline=study.baseline,
        )
    return OptunaSampler(
        study.space,
        study.judge,
        len(study.instances),
        study.objectives,
        study.search.trials,
        sampler,
        seed=study.search.seed,
        past=past,
        constraints=study.constraints,
        enqueue=study.first,
        baseline=study.baseline,
        racing=study.search.racing == "auto",
    )


def _is_worth_a_model(study: Study) -> bool:
    """Whether TPE's race is decided by a model: one objective, a lattice, and enough trials of several instances."""
    from search_spaces.strategies.modelled import FEWEST

    search, size = study.search, study.space.size
    raced = search.strategy == "tpe" and search.racing == "auto"
    raced &= len(study.instances) >= smallest_significant()
    alone = len(study.objectives) == 1 and not study.constraints
    return raced and alone and size is not None and min(search.trials or 0, size) >= FEWEST


def make_optuna_sampler(study: Study, seed: int) -> "BaseSampler":
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
    kind: Literal["CPU", "GPU"] = "CPU"


def _device(setup: WorkerSetup) -> str:
    """Where a worker computes. Raises InputError where Ray has given it a GPU that torch cannot use."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if setup.kind == "GPU":
        raise InputError(
            f"torch {torch.__version__} on {platform.node()} finds no GPU, and Ray has given a worker there one; "
            "install the build of torch for its CUDA"
        )
    torch.set_num_threads(setup.threads)
    return "cpu"


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
    device = _device(setup)
    study = setup.study
    pipeline, fetched = _staged(study.model, lambda: load_pipeline(study.model, device, study.engine.offload))
    scorer, scorer_fetched = _staged(study.scorer, lambda: load_scorer(study.scorer, device))
    notes = [note for note in (fetched, scorer_fetched) if note]
    inputs = {name: decode_png(png) for name, png in setup.inputs.items()}
    name, overlap = torch.cuda.get_device_name() if device == "cuda" else "cpu", device == "cuda"
    scorers: dict[str, Scorer] = {study.objective: scorer}
    if PRESERVATION in study.scorers:
        scorers[PRESERVATION] = PreservationScorer(inputs)
    origin = Origin(study.model, {score: each.id for score, each in study.scorers.items()})
    encode = Encoder(study.image_format, origin)
    if not study.model.family.slots:
        whole = WholeCallPipeline(pipeline, study.model, inputs, setup.batch)
        return Worker(whole, scorers, name, setup.batch, overlap, encode, notes)
    engine = make_engine(study, pipeline, inputs, name)
    return Worker(engine, scorers, name, max(1, engine.rows // 2), overlap, encode, notes)


def _staged(model: ModelDescription | ScorerDescription, load: Callable[[], T]) -> tuple[T, str | None]:
    """A model, which only one worker of a machine fetches where it comes from a hub, and what there is to say."""
    from workers.pipelines.loading import local_folder

    if local_folder(model.location) is not None:
        return load(), None
    return once_per_machine(f"{model.location}@{model.revision[:12]}", load)


def load_scorer(scorer: ScorerDescription, device: str) -> "ClipScorer":
    """The scorer that a description names. Raises InputError where it cannot be loaded."""
    from safetensors import SafetensorError

    from workers.pipelines.loading import cache_hint, local_folder, safetensors_only, trust_hint
    from workers.scoring.clip import ClipScorer

    folder, safe = local_folder(scorer.location), safetensors_only(scorer.trust)
    try:
        if folder is not None:
            return ClipScorer(folder, device, use_safetensors=safe)
        return ClipScorer(scorer.location, device, scorer.revision, safe)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise InputError(
            f"clip_model: {scorer.model} cannot be loaded: {first_line.rstrip('.')}"
            f"{trust_hint(error, scorer.trust)}{cache_hint(error) if folder is None else ''}"
        ) from error


class _DrawsNothing:
    """The pipeline of a worker that only scores."""

    steps = 0

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
    device = _device(setup)
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
            "engine": study.engine.model_dump(exclude={"stall_timeout"}),
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
    share: float = 1.0  # of a CPU or GPU, for each

    def __str__(self) -> str:
        plural = "s" if self.workers > 1 else ""
        threads = f" with {self.threads} thread{'s' if self.threads > 1 else ''} each"
        return f"{self.workers} {self.kind} worker{plural}{threads if self.kind == 'CPU' else ''}"


@dataclass(frozen=True)
class Cluster:
    """A study on several machines: the catalog's root as seen from here, and the most workers that were asked for."""

    root: str
    workers: int | None


def crew(
    study: Study, workers: int | None, gpus: int, batch: int, machines: Sequence[Machine] | None = None
) -> Crew:
    """The workers for a study: one per GPU; without GPUs, as many as the cores carry; or as many as asked.

    The cores are this machine's, or those of a cluster's `machines`.
    """
    if gpus:
        return Crew(workers or gpus, "GPU", 1, batch)
    there = machines or [this_machine()]
    workers = workers or sum(cpu_workers(study.model, each.cores, each.memory) for each in there)
    cores = sum(each.cores for each in there)
    threads = min(max(1, cores // workers), max(each.cores for each in there))
    return Crew(workers, "CPU", threads, batch, min(1.0, cores / workers) * threads)


def cpu_places(model: ModelDescription) -> Places:
    """For workers on the CPUs of the connected cluster's machines."""
    from orchestrator.ray_session import machines

    count = sum(cpu_workers(model, each.cores, each.memory) for each in machines())
    return Places(count, count)


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
    study: Study,
    images: Mapping[str, Image.Image],
    crew: Crew,
    connect: Callable[[], AbstractContextManager[None]],
    cluster: Cluster | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> "RayPool":
    """The Ray pool of a crew for a study with `images` by pixel hash; it connects and starts with the first request.

    In a `cluster` it grows and shrinks with the GPUs that there are and the work, and a process beside the catalog
    writes the pictures. `say` hears at once what happens to workers.
    """
    from orchestrator.ray_pool import RayPool
    from orchestrator.ray_session import gpu_places, limited

    inputs = {name: encode_png(image) for name, image in images.items()}
    setup = WorkerSetup(study, inputs, crew.batch, crew.threads, crew.kind)
    gpu = crew.kind == "GPU"
    places: Callable[[], Places] | None = None
    make_writer = None
    if cluster is not None:
        root = cluster.root if "://" in cluster.root else str(Path(cluster.root).absolute())
        make_writer = partial(CatalogWriter, root, study)
        if gpu:
            places = partial(limited, gpu_places, cluster.workers)
        elif cluster.workers is None:
            places = partial(cpu_places, study.model)
    return RayPool(
        connect,
        partial(build_worker, setup),
        crew.workers,
        crew.batch,
        num_cpus=crew.share,
        num_gpus=int(gpu),
        places=places,
        make_writer=make_writer,
        stall_timeout=study.engine.stall_timeout,
        say=say,
    )


def make_scoring_pool(
    study: Study,
    crew: Crew,
    connect: Callable[[], AbstractContextManager[None]],
    inputs: Mapping[str, bytes],
) -> "RayPool":
    """A Ray pool whose workers only score, by the study's scorer; `inputs` are PNG by pixel hash."""
    from orchestrator.ray_pool import RayPool

    setup = WorkerSetup(study, inputs, crew.batch, crew.threads, crew.kind)
    return RayPool(
        connect,
        partial(build_scoring_worker, setup),
        crew.workers,
        crew.batch,
        num_cpus=crew.share,
        num_gpus=int(crew.kind == "GPU"),
    )


def check_comet(study: Study, source: Path) -> None:
    """See that what `comet:` asks for can be had. Raises InputError."""
    if study.comet.mode != "online" or may_have_key(os.environ, Path(), home()):
        return
    problem = (api_key_problem(os.environ) or "no API key was found").partition(";")[0]
    raise InputError(
        f"{source}: comet.mode: online needs an API key of Comet, and {problem}; set COMET_API_KEY or write the "
        "key to ~/.comet.config, or say auto"
    )


def make_archive(study: str, root: str, folder: StudyFolder) -> CometOfflineTracker:
    """What builds a study's archive when it is closed."""
    log = folder.path.absolute() / "comet.log"
    return CometOfflineTracker(comet_source(root, study), folder.comet.absolute(), log)


def make_tracker(
    study: Study,
    root: str,
    folder: StudyFolder,
    session: ExitStack,
    say: Callable[[str], None] = lambda _: None,
) -> Tracker:
    """Where a study's images are streamed; `say` gets the line that says whether that is so.

    Until `session` ends nobody else tells Comet of the study; where somebody does already, it is left to a sync.
    """
    if study.comet.mode == "off":
        return NullTracker()
    try:
        session.enter_context(folder.told_to_comet())
        return _comet_tracker(study, root, folder, say)
    except InputError as error:  # somebody else is at it
        reason = str(error).partition(";")[0]
    except OSError as error:  # its own files are no reason for a sweep to end
        reason = f"{error.filename or folder.comet} cannot be used: {error.strerror}"
    line = f"Comet: {reason}; `latentsweep comet sync {study.name}` sends what this run makes, after that"
    say(line)
    return NullTracker(line)


def _comet_tracker(study: Study, root: str, folder: StudyFolder, say: Callable[[str], None]) -> Tracker:
    offline = make_archive(study.name, root, folder)
    keyed = may_have_key(os.environ, Path(), home())
    if study.comet.mode == "offline" or not keyed:
        return offline
    from orchestrator.tracking.comet.stream import CometStream

    fallback = offline if study.comet.mode == "auto" else None
    source, log = comet_source(root, study.name), folder.path.absolute() / "comet.log"
    return CometStream(source, study.name, study.objective, folder.comet, log, say, fallback)


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
