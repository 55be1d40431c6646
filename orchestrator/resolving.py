"""A study file → the study that it means and its pictures, and whatever is wrong with it before a model loads."""

import errno
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path

from PIL import Image
from pyarrow.fs import LocalFileSystem

from orchestrator.artifact_inputs import Located, Slot, locate
from orchestrator.catalog.parquet import holds_another
from orchestrator.catalog.patient import reason
from orchestrator.catalog.tables import Tables, open_root
from orchestrator.plan import calls_of, domain_text, remembered_rate, surveyed
from orchestrator.report.values import settings_text
from orchestrator.study_folder import StudyFolder
from orchestrator.twins import distinct_inputs, spellings, stored_texts, with_distinct_seeds
from orchestrator.wiring import make_optuna_sampler, raced
from search_spaces import study_file
from search_spaces.artifacts import parse_artifact_file
from search_spaces.errors import InputError
from search_spaces.models import ModelDescription
from search_spaces.objectives import PRESERVATION
from search_spaces.requests import Settings
from search_spaces.space import guidance_is_on
from search_spaces.study import PinnedInput, Study, idle_exclusions, pin
from search_spaces.study_file import StudySpec
from workers.inputs import pixel_hash, read_image, read_mask
from workers.scoring.preservation import kept


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
    open_root(root)  # says so where it is none
    folder = StudyFolder(root, spec.study)
    pinned = folder.pinned()
    remarks: list[str] = []
    inputs, images = _read_inputs(spec, path, locate(spec, path, folder, pinned), remarks.append)
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
    texts = spellings(spec, model, pinned, partial(stored_texts, Tables(root)), remarks.append)
    distinct = distinct_inputs(spec, inputs, texts or {}, scorer, pinned, remarks.append)
    spec = with_distinct_seeds(spec, pinned, remarks.append)
    study = pin(spec, model, scorer, distinct, token, str(path), texts)
    _check_scheduler_options(study, path)
    if study.search.samples:
        sys.path.append(str(path.parent.absolute()))  # a sampler of one's own lies beside the study file
        try:
            make_optuna_sampler(study, study.search.seed)
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
    warnings = (*remarks, *_stretched(study, images), *_idle_rules(study), *_short_of_time(study, root))
    return Resolved(study, study_file.read(path), images, warnings)


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


def check_local_inputs(spec: StudySpec, path: Path) -> None:
    """See that the pictures beside a study file can be read; those of artifacts are fetched where it runs.

    Raises InputError.
    """
    for number, item in enumerate(spec.inputs):
        key, image = f"{path}: inputs[{number}]", None
        if item.image is not None and parse_artifact_file(item.image) is None:
            image = read_image(path.parent / item.image, f"{key}.image")
        if item.mask is not None and parse_artifact_file(item.mask) is None:
            read_mask(path.parent / item.mask, f"{key}.mask", image.size if image else None)


def _read_inputs(
    spec: StudySpec, path: Path, located: Mapping[Slot, Located], tell: Callable[[str], None]
) -> tuple[list[PinnedInput], dict[str, Image.Image]]:
    """A study file's inputs, and their images and masks by pixel hash. Raises InputError."""
    inputs: list[PinnedInput] = []
    images: dict[str, Image.Image] = {}
    for number, item in enumerate(spec.inputs):
        key = f"{path}: inputs[{number}]"
        found, masked = located.get((number, "image")), located.get((number, "mask"))
        image = read_image(found.path, f"{key}.image", tell) if found else None
        mask = read_mask(masked.path, f"{key}.mask", image.size, tell) if masked and image else None
        pinned = PinnedInput(
            prompt=item.prompt,
            score_text=item.score_text or item.prompt,
            image=pixel_hash(image) if image else None,
            mask=pixel_hash(mask) if mask else None,
            image_name=Path(item.image).name if item.image else None,
            mask_name=Path(item.mask).name if item.mask else None,
            image_artifact=found.artifact if found else None,
            mask_artifact=masked.artifact if masked else None,
        )
        inputs.append(pinned)
        images.update({pixel_hash(each): each for each in (image, mask) if each is not None})
    same = {item.model_dump_json(exclude={"image_artifact", "mask_artifact"}) for item in inputs}
    if len(same) < len(inputs):
        raise InputError(f"{path}: inputs: the same input is listed twice")
    return inputs, images


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
