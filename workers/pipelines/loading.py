"""Models found by name, described as plain data without their weights, and loaded."""

import errno
import hashlib
import importlib.resources
import inspect
import json
import math
import os
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from search_spaces.errors import InputError, did_you_mean, shown, utf8
from search_spaces.models import (
    DEFAULT_CLIP,
    REGISTRY,
    Dtype,
    Kind,
    ModelDescription,
    ScorerDescription,
    Task,
    Trust,
    registered,
)
from search_spaces.requests import Value
from search_spaces.space import effective_steps
from workers.pipelines.configurations import (
    check_index,
    check_judge,
    check_part,
    check_scheduler_config,
    check_tokenizer,
    is_model,
    part_class,
    read_object,
)

AUTO_CLASSES: Mapping[Task, str] = {
    "text-to-image": "AutoPipelineForText2Image",
    "image-to-image": "AutoPipelineForImage2Image",
    "inpainting": "AutoPipelineForInpainting",
}
_MAPPINGS: Mapping[Task, str] = {
    "text-to-image": "AUTO_TEXT2IMAGE_PIPELINES_MAPPING",
    "image-to-image": "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING",
    "inpainting": "AUTO_INPAINT_PIPELINES_MAPPING",
}

_NOT_SETTINGS = frozenset(
    {
        "prompt",
        "num_images_per_prompt",
        "num_videos_per_prompt",
        "output_type",
        "return_dict",
        "callback_steps",
    }
)
"""Keywords with plain values that a study cannot sweep: the instance gives them, or they shape the answer."""

_NOT_OPTIONS = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "trained_betas"}
    | {"original_inference_steps", "skip_prk_steps"}
)
"""What a scheduler must share with the training of the model, and what decides which numbers of steps it takes."""

_KINDS: Mapping[type, Kind] = {bool: "bool", int: "int", float: "float", str: "str"}

_TAKES_DISTILLED = frozenset({"DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"})
"""Where these fit, those of distilled models fit too, though diffusers does not list them as compatible."""

_OF_OTHER_MODELS = frozenset({"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"})
"""Listed as compatible, but made for models that were trained with EDM's preconditioning."""

_IGNORES_GENERATOR = frozenset({"DPMSolverSDEScheduler"})
"""Two calls with one seed give two pictures, so that no image of theirs could be reproduced."""

_NOT_IN_BATCHES = frozenset({"AsymmetricAutoencoderKL", "ConsistencyDecoderVAE"})
"""VAEs whose decoder takes more than latents: the masked image, or noise from the generator."""


def locate(name: str, near: Path, key: str) -> tuple[str, str | None]:
    """Where a model's name leads: (location, asked revision). Raises InputError naming `key`.

    A location is `package:MODULE/FOLDER`, an absolute folder (relative names are relative to `near`), or
    a hub id. `name` may be a registry name, a folder, or a hub id with an optional `@revision`.
    """
    entry = REGISTRY.get(name)
    if entry is not None:
        return entry.location, None
    folder = near / os.path.expanduser(name)  # noqa: PTH111  # leaves an unknown ~user as it is
    if os.path.isdir(folder):  # noqa: PTH112  # False for a name that no file can have
        return utf8(str(folder.resolve()), key), None
    hub_id, _, revision = name.partition("@")
    if hub_id.count("/") == 1 and not name.startswith((".", "/", "~")) and all(hub_id.split("/")):
        return hub_id, revision or None
    raise InputError(
        f"{key}: unknown model {name!r}: neither a registry name nor a folder nor a hub id (owner/name)"
        f"{did_you_mean(name, REGISTRY)}"
    )


def local_folder(location: str) -> Path | None:
    """The folder behind a location on this machine; None for a hub id."""
    if location.startswith("package:"):
        module, _, inside = location.removeprefix("package:").partition("/")
        return Path(str(importlib.resources.files(module))) / inside
    return Path(location) if Path(location).is_absolute() else None


def describe(
    name: str, task: Task | None, dtype: Dtype, near: Path, key: str = "model", trust: Sequence[Trust] = ()
) -> ModelDescription:
    """A model as plain data, from its configuration files and its pipeline's signature. No weights are loaded.

    Without a `task`, it is the one that the model was made for. Raises InputError naming `key`.
    """
    location, asked = locate(name, near, key)
    files = _Files(location, asked, key, "model_index.json")
    index = files.json("model_index.json")
    made_by = index.get("_class_name")
    task = task or _task_of(str(made_by))
    pipeline = _pipeline_class(str(made_by), task, key)
    scheduler = _scheduler_of(index)
    if scheduler is None:
        raise InputError(f"{key}: {name} has no diffusers scheduler, and a study needs one")
    if not files.json("scheduler/scheduler_config.json"):
        raise InputError(f"{key}: {name} has no scheduler/scheduler_config.json")
    unet, vae = (files.json(f"{part}/config.json") if part in index else {} for part in ("unet", "vae"))
    with _naming(key):
        check_index(index, files.path("model_index.json") or Path("model_index.json"))
        _check_parts(index, files)
    if vae.get("_class_name") in _NOT_IN_BATCHES:
        raise InputError(f"{key}: {name}'s VAE, {vae['_class_name']}, cannot decode in batches yet")
    if task != "inpainting" and _sees_a_mask(unet, vae):
        raise InputError(
            f"{key}: {name} cannot do the task {task}: its UNet needs a mask; it can do inpainting"
        )
    entry = registered(name.partition("@")[0])
    keywords, schedulers = _defaults(pipeline, vae, unet), _compatible_schedulers(scheduler)
    return ModelDescription(
        name=name,
        location=location,
        revision=files.revision,
        task=task,
        pipeline=pipeline.__name__,
        dtype=dtype,
        keywords={**keywords, **_known(entry.defaults, keywords)} if entry else keywords,
        kinds=_kinds(pipeline),
        defaults_source=entry.source if entry else f"diffusers {pipeline.__name__}.__call__",
        scheduler=scheduler,
        schedulers=schedulers,
        scheduler_options=_scheduler_options(schedulers, files.json("scheduler/scheduler_config.json")),
        scheduler_kinds=_all_option_kinds(schedulers),
        step_limits=_step_limits(schedulers, files.json("scheduler/scheduler_config.json")),
        size_multiple=8,  # what every latent diffusion pipeline of diffusers checks
        guidance_embedded=unet.get("time_cond_proj_dim") is not None,
        diffusers=_diffusers_version(),
        trust=tuple(trust),
    )


def part_folder(model: ModelDescription, part: str, files: Sequence[str]) -> tuple[str | None, Path]:
    """The class of a part, as the model's model_index.json names it, and the folder with those of its `files` that
    there are; they are fetched where the model is a hub's. None where the model leaves the part out.

    Raises InputError, and KeyError or OSError where it has no such part.
    """
    folder = local_folder(model.location)
    if folder is not None:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        return index[part][1], folder / part
    hub = _Files(model.location, model.revision, "model", "model_index.json")
    there = [path for name in files if (path := hub.path(f"{part}/{name}")) is not None]
    return hub.json("model_index.json")[part][1], there[0].parent if there else Path(part)


def clip_folder(scorer: ScorerDescription, files: Sequence[str]) -> Path:
    """The folder with a CLIP's config.json and those of some `files` that it has, fetched where it is a hub's.

    Raises InputError.
    """
    folder = local_folder(scorer.location)
    if folder is not None:
        return folder
    hub = _Files(scorer.location, scorer.revision, "clip_model", "config.json")
    there = [path for name in ("config.json", *files) if (path := hub.path(name)) is not None]
    return there[0].parent


def describe_clip(name: str | None, model: str, near: Path, trust: Sequence[Trust] = ()) -> ScorerDescription:
    """The CLIP that judges: the one asked for, else the model's own, else torchmetrics' default."""
    entry = registered(model.partition("@")[0])
    if name is None and entry is not None and entry.clip is not None:
        name, location, asked = model, entry.clip, None
    else:
        name = name or DEFAULT_CLIP
        location, asked = locate(name, near, "clip_model")
        clip_entry = REGISTRY.get(name)
        location = (clip_entry.clip or location) if clip_entry else location
    files = _Files(location, asked, "clip_model", "config.json")
    config = files.json("config.json")
    if config.get("model_type") != "clip":
        raise InputError(f"clip_model: {name} is not a CLIP model")
    with _naming("clip_model"):
        check_judge(config, files.path("config.json") or Path("config.json"))
    short = Path(name.partition("@")[0] if asked else name).name or name
    return ScorerDescription(
        name="clip_score", model=short, location=location, revision=files.revision, trust=tuple(trust)
    )


def load_pipeline(model: ModelDescription, device: str, offload: str = "none") -> Any:
    """The plain diffusers pipeline with the study's dtype, on `device`.

    `offload` (none, model, sequential) is accelerate's, for a GPU that does not hold all of it. Raises
    InputError where the model cannot load or does not fit.
    """
    import diffusers
    import torch

    if diffusers.__version__ != model.diffusers:
        raise InputError(
            f"the study was made with diffusers {model.diffusers} and this is {diffusers.__version__}; "
            "install that version or give the study another name"
        )
    folder = local_folder(model.location)
    source = {"revision": model.revision} if folder is None else {}
    loader = getattr(diffusers, AUTO_CLASSES[model.task])
    try:
        with _hushed():
            pipeline = loader.from_pretrained(
                str(folder or model.location),
                dtype=getattr(torch, model.dtype),
                use_safetensors=safetensors_only(model.trust),
                trust_remote_code="remote_code" in model.trust,
                **source,
            )
    except (
        Exception
    ) as error:  # of any kind: it is what the libraries make of files that they do not understand
        raise InputError(
            f"model: {model.name} cannot be loaded: {_first_line(error).rstrip('.')}"
            f"{trust_hint(error, model.trust)}{cache_hint(error) if folder is None else ''}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if device == "cpu":
        if offload != "none":
            raise InputError(f"engine.offload: {offload} needs a GPU to offload from; remove it on a CPU")
        if hasattr(pipeline, "vae"):  # decodes a quarter faster so; a UNet gains nothing (DECISIONS.md)
            pipeline.vae.to(memory_format=torch.channels_last)
        return pipeline
    free = torch.cuda.mem_get_info()[0] / 1e9  # now: a transfer that fails leaves what it had moved
    if offload == "model":
        part, size = max(_parts(pipeline).items(), key=lambda item: item[1])
        if size > free:
            raise InputError(
                f"model: the {part} of {model.name} alone takes {size:.1f} GB in {model.dtype} and the GPU has "
                f"{free:.1f} GB free; engine: {{offload: sequential}} may fit"
            )
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    if offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
        return pipeline
    _refuse_too_large(sum(_parts(pipeline).values()), torch.cuda.get_device_properties(device), model)
    try:
        pipeline.to(device)
    except torch.OutOfMemoryError:
        raise InputError(
            f"model: {model.name} takes {sum(_parts(pipeline).values()):.1f} GB in {model.dtype} and the GPU has "
            f"{free:.1f} GB free; engine: {{offload: model}} may fit"
        ) from None
    for part in ("unet", "vae"):
        if hasattr(pipeline, part):
            getattr(pipeline, part).to(memory_format=torch.channels_last)
    return pipeline


def _refuse_too_large(gigabytes: float, gpu: Any, model: ModelDescription) -> None:
    """Raise InputError, naming both sizes, where a GPU's whole memory does not hold the weights."""
    memory = gpu.total_memory / 1e9
    if gigabytes > memory:
        raise InputError(
            f"model: {model.name} takes {gigabytes:.1f} GB in {model.dtype} and a worker's GPU ({gpu.name}) has "
            f"{memory:.1f} GB; engine: {{offload: model}} may fit, or use larger GPUs"
        )


def safetensors_only(trust: Sequence[Trust]) -> bool | None:
    """from_pretrained's `use_safetensors`: None takes pickles where a model has nothing else."""
    return None if "pickles" in trust else True


def trust_hint(error: Exception, trust: Sequence[Trust]) -> str:
    """What a study file would have to say for a model that is not loaded for safety's sake; "" for other errors."""
    said = str(error)
    if "trust_remote_code" in said and "remote_code" not in trust:
        return "; it comes with Python code of its own: `trust: [remote_code]` in the study file runs it"
    if "safetensors" in said and "pickles" not in trust:
        return (
            "; only safetensors are loaded, since pickles can hold code: convert the model, or say "
            "`trust: [pickles]` in the study file"
        )
    return ""


def cache_hint(error: BaseException) -> str:
    """Which variable moves the hub's files, for an error that comes of where they are kept; "" for other errors."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _UNWRITABLE:
            return "; models of the hub are kept in ~/.cache/huggingface, which HF_HOME moves"
        seen = seen.__cause__ or seen.__context__
    return ""


_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}


def _parts(pipeline: Any) -> dict[str, float]:
    """The size of each part's weights in gigabytes."""
    return {
        name: sum(weight.numel() * weight.element_size() for weight in part.parameters()) / 1e9
        for name, part in pipeline.components.items()
        if hasattr(part, "parameters")
    }


def check_compiler(device: str) -> None:
    """Raise InputError where torch cannot compile for a device; seconds once, which compiling takes in any case."""
    import torch

    def trial(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sin() + 1

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own parts
            torch.compile(trial, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a compiler raises, it is none that works
        reason = _first_line(getattr(error, "inner_exception", error))
        raise InputError(
            f"engine.compile: torch cannot compile on this machine ({reason}); install what is missing, on a CPU "
            "a C++ compiler such as g++, or set compile: false"
        ) from error


@contextmanager
def _hushed() -> Iterator[None]:
    """Without the warning that huggingface_hub 2 gives of how diffusers 0.42 calls it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument", UserWarning)
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def check_scheduler(model: ModelDescription, settings: Mapping[str, Value]) -> None:
    """Raise InputError where a scheduler refuses the values of its options."""
    import diffusers

    name = str(settings["scheduler"])
    options = {
        key: settings[key] for key in model.scheduler_options.get(name, {}) if settings.get(key) is not None
    }
    steps = settings.get("num_inference_steps")
    config = _Files(model.location, model.revision, "model", "model_index.json").json(
        "scheduler/scheduler_config.json"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = getattr(diffusers, name).from_config(config, **options)
            made.set_timesteps(steps if isinstance(steps, int) else 10)
    except (ValueError, NotImplementedError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        said = ", ".join(f"{key} {value}" for key, value in options.items())
        raise InputError(f"scheduler: {name} does not take {said}: {_first_line(error)}") from None


def unet_calls(model: ModelDescription, settings: Mapping[str, Value]) -> int | None:
    """UNet calls of one request, counted on the scheduler itself.

    None where the family's rule is not known, or where the scheduler does not take so many steps. Heun, KDPM2
    and PNDM make more calls than steps.
    """
    steps, effective = settings.get("num_inference_steps"), effective_steps(settings, model)
    if not isinstance(steps, int) or effective is None:
        return None
    if any(settings.get(name) is not None for name in ("denoising_start", "denoising_end")):
        return None
    scheduler = str(settings["scheduler"])
    schedule = _timesteps(model.location, model.revision, scheduler, steps)
    if schedule is None:
        return None
    timesteps, order = schedule
    return max(0, timesteps - (steps - effective) * order)


@cache
def _timesteps(location: str, revision: str, scheduler: str, steps: int) -> tuple[int, int] | None:
    """(length of the schedule, UNet calls per step) for so many steps; None where there is no such schedule."""
    import diffusers

    folder = local_folder(location)
    source = {} if folder else {"revision": revision}
    scheduler_class = getattr(diffusers, scheduler)
    with _hushed():
        config = scheduler_class.load_config(str(folder or location), subfolder="scheduler", **source)
    made = scheduler_class.from_config(config)
    try:
        made.set_timesteps(steps)
    except ValueError:  # LCM takes no more steps than it was distilled from
        return None
    return len(made.timesteps), made.order


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Put a study file's key before what is wrong with the model that it names."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _check_parts(index: Mapping[str, Any], files: "_Files") -> None:
    """Raise InputError, naming file and key, where a part cannot be what its configuration says.

    Of a model on the hub those parts are looked at whose configuration is needed here.
    """
    for part, named in index.items():
        if (
            part.startswith("_")
            or not isinstance(named, list)
            or named[0] not in ("diffusers", "transformers")
        ):
            continue
        kind = part_class(*named)
        if kind is None or not (files.is_local or part in ("unet", "vae", "scheduler")):
            continue
        if "Tokenizer" in kind.__name__:
            check_tokenizer(kind, files.path(part) or Path(part))
            continue
        name = f"{part}/scheduler_config.json" if part == "scheduler" else f"{part}/config.json"
        path = files.path(name)
        if path is not None and path.exists():
            check = check_scheduler_config if part == "scheduler" else check_part
            check(kind, read_object(path), path)
        elif path is not None and is_model(kind):
            raise InputError(f"{path} is not there; the model's files are not complete")


class _Files:
    """A model's configuration files and its revision, from a folder or from the hub."""

    def __init__(self, location: str, asked: str | None, key: str, first: str) -> None:
        self._location, self._key = location, key
        self._folder = local_folder(location)
        self.is_local = self._folder is not None
        if self._folder is not None:
            if not (self._folder / first).is_file():
                raise InputError(f"{key}: the folder {self._folder} is not a model: it has no {first}")
            self.revision = folder_hash(self._folder)
        else:
            self.revision = asked or "main"
            path = self._hub_file(first)
            if path is None:
                raise InputError(f"{key}: {location} is not a model for this: it has no {first}")
            self.revision = path.parent.name  # …/snapshots/COMMIT/FILE is the hub cache's documented layout

    def json(self, name: str) -> dict[str, Any]:
        """A configuration file's content; empty where the model has no such file."""
        path = self.path(name)
        if path is None or not path.exists():
            return {}
        with _naming(self._key):
            return read_object(path)

    def path(self, name: str) -> Path | None:
        """Where a file lies on this machine; None where the model on the hub has no such file."""
        return self._folder / name if self._folder is not None else self._hub_file(name)

    def _hub_file(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            return Path(hf_hub_download(self._location, name, revision=self.revision))
        except RepositoryNotFoundError:
            raise InputError(
                f"{self._key}: unknown model {self._location!r}: the hub has none of that name, or it is gated"
                f"{did_you_mean(self._location, REGISTRY)}"
            ) from None
        except RevisionNotFoundError:
            raise InputError(f"{self._key}: {self._location} has no revision {self.revision!r}") from None
        except LocalEntryNotFoundError:
            raise InputError(
                f"{self._key}: unknown model {self._location!r}: it is not on this machine and the hub cannot be "
                "reached; name a registry model such as toyworld, a local folder, or go online"
            ) from None
        except EntryNotFoundError:
            return None
        except HFValidationError as error:
            raise InputError(f"{self._key}: unknown model {self._location!r}: {_first_line(error)}") from None
        except (HfHubHTTPError, OSError) as error:
            raise InputError(
                f"{self._key}: {self._location} cannot be read from the hub: {_first_line(error)}{cache_hint(error)}"
            ) from None


def folder_hash(folder: Path) -> str:
    """`sha256:` and 32 digits over every file that can decide what a model draws, by relative name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not path.is_file() or hidden or path.suffix.lower() in (".md", ".png", ".jpg", ".jpeg"):
            continue
        with path.open("rb") as file:
            digest.update(f"{inside.as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def _task_of(pipeline: str) -> Task:
    """The task that a pipeline class was made for, told by its name as diffusers names them."""
    if "Inpaint" in pipeline:
        return "inpainting"
    return "image-to-image" if "Img2Img" in pipeline else "text-to-image"


def _pipeline_class(made_by: str, task: Task, key: str) -> type:
    """The class that `AutoPipelineFor…` would choose for a model and a task."""
    from diffusers.pipelines import auto_pipeline

    mapping = getattr(auto_pipeline, _MAPPINGS[task])
    found = auto_pipeline._get_task_class(mapping, made_by, throw_error_if_not_exist=False)
    if found is None:
        able = [
            name for name, other in _MAPPINGS.items() if _has_class(getattr(auto_pipeline, other), made_by)
        ]
        can = f"; it can do {', '.join(able)}" if able else "; it is no pipeline that diffusers knows"
        named = made_by if made_by.isidentifier() else shown(made_by)
        raise InputError(f"{key}: a {named} cannot do the task {task}{can}")
    chosen: type = found
    return chosen


def _scheduler_of(index: Mapping[str, Any]) -> str | None:
    """The scheduler that a model_index.json names, if diffusers has it."""
    import diffusers

    match index.get("scheduler"):
        case ["diffusers", str(name)] if hasattr(getattr(diffusers, name, None), "_get_compatibles"):
            return name
    return None


def _sees_a_mask(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> bool:
    """Whether the UNet takes latents, masked latents and mask, as those trained for inpainting do."""
    latent, channels = vae.get("latent_channels"), unet.get("in_channels")
    return isinstance(latent, int) and channels == 2 * latent + 1


def _has_class(mapping: Mapping[str, type], made_by: str) -> bool:
    from diffusers.pipelines import auto_pipeline

    return auto_pipeline._get_task_class(mapping, made_by, throw_error_if_not_exist=False) is not None


def _kinds(pipeline: type) -> dict[str, tuple[Kind, ...]]:
    """Every setting the pipeline's call takes, with the types of plain value that its signature allows."""
    kinds = _signature_kinds(pipeline.__call__)
    if not _clip_skip_works(pipeline):
        kinds.pop("clip_skip", None)
    return {name: allowed for name, allowed in kinds.items() if name not in _NOT_SETTINGS}


def _option_kinds(scheduler: str) -> dict[str, tuple[Kind, ...]]:
    """A scheduler's options with the types of value that they may have; null leaves the model's own."""
    import diffusers

    made = getattr(diffusers, scheduler).__init__
    parameters = inspect.signature(made).parameters
    return {
        name: tuple(dict.fromkeys((*kinds, *_kind_of(parameters[name].default), "null")))
        for name, kinds in _signature_kinds(made).items()
        if name not in _NOT_OPTIONS
    }


def _all_option_kinds(schedulers: Sequence[str]) -> dict[str, tuple[Kind, ...]]:
    """The options of all schedulers, each with every type that one of them takes."""
    found: dict[str, tuple[Kind, ...]] = {}
    for scheduler in schedulers:
        for name, kinds in _option_kinds(scheduler).items():
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), *kinds)))
    return found


def _kind_of(value: object) -> tuple[Kind, ...]:
    """The type of a default, where a signature's annotation says otherwise; () for what is no plain value."""
    return (_KINDS[type(value)],) if type(value) in _KINDS else ()


def _scheduler_options(schedulers: Sequence[str], config: Mapping[str, Any]) -> dict[str, dict[str, Value]]:
    """For each scheduler its options as `from_config` sets them for this model."""
    import diffusers

    own_defaults = config.get("_use_default_values", ())
    found: dict[str, dict[str, Value]] = {}
    for name in schedulers:
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        values = {
            option: config[option]
            if option in config and option not in own_defaults
            else parameters[option].default
            for option in _option_kinds(name)
        }
        # JSON, in which a study is pinned, has no infinity.
        found[name] = {
            option: value
            for option, value in values.items()
            if not (isinstance(value, float) and not math.isfinite(value))
        }
    return found


def _signature_kinds(function: Callable[..., Any]) -> dict[str, tuple[Kind, ...]]:
    """A function's parameters that take plain values, with the types of value that they take."""
    found: dict[str, tuple[Kind, ...]] = {}
    for parameter in inspect.signature(function).parameters.values():
        annotation = parameter.annotation
        is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        union = typing.get_args(annotation) if is_union else (annotation,)
        if any(typing.get_origin(each) is typing.Literal for each in union):
            union = (*union, str)
        kinds = tuple(kind for plain, kind in _KINDS.items() if plain in union)
        if kinds:
            optional = type(None) in union or parameter.default is None
            found[parameter.name] = (*kinds, "null") if optional else kinds
    return found


def _defaults(pipeline: type, vae: Mapping[str, Any], unet: Mapping[str, Any]) -> dict[str, Value]:
    """The default of every setting; the size is resolved from the model."""
    parameters, kinds = inspect.signature(pipeline.__call__).parameters, _kinds(pipeline)
    defaults: dict[str, Value] = {
        name: None if parameters[name].default is inspect.Parameter.empty else parameters[name].default
        for name in kinds
    }
    sample_size, blocks = unet.get("sample_size"), vae.get("block_out_channels")
    if isinstance(sample_size, int) and blocks:
        pixels = sample_size * 2 ** (len(blocks) - 1)
        defaults.update(_known({"width": pixels, "height": pixels}, defaults))
    return defaults


def _clip_skip_works(pipeline: type) -> bool:
    """Whether clip_skip finds what it reads: Stable Diffusion in diffusers 0.42 fails with transformers 5.23."""
    import transformers

    reads = "text_encoder.text_model" in inspect.getsource(getattr(pipeline, "encode_prompt", pipeline))
    return not reads or "self.text_model =" in inspect.getsource(transformers.CLIPTextModel)


def _known(values: Mapping[str, Value], keywords: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if name in keywords}


@cache
def _compatible_schedulers(scheduler: str) -> tuple[str, ...]:
    """Names of the schedulers that can take the place of one, itself included."""
    import diffusers

    cls = getattr(diffusers, scheduler)
    names = {scheduler, *(other.__name__ for other in cls._get_compatibles())}
    if names & _TAKES_DISTILLED:
        names |= {"LCMScheduler", "TCDScheduler"}
    return tuple(sorted(names - _IGNORES_GENERATOR - (_OF_OTHER_MODELS - {scheduler})))


def _step_limits(schedulers: Sequence[str], config: Mapping[str, Any]) -> dict[str, tuple[int, int | None]]:
    """The fewest and the most steps of those schedulers that raise outside them.

    Distilled schedules (LCM, TCD) take no more than they were distilled from; PNDM's Runge-Kutta start is four
    steps long (set_timesteps in diffusers' scheduling_lcm.py, scheduling_tcd.py and scheduling_pndm.py).
    """
    limits: dict[str, tuple[int, int | None]] = {
        name: (1, config.get("original_inference_steps", 50)) for name in ("LCMScheduler", "TCDScheduler")
    }
    if not config.get("skip_prk_steps", False):
        limits["PNDMScheduler"] = (4, None)
    return {name: limit for name, limit in limits.items() if name in schedulers}


def _diffusers_version() -> str:
    import diffusers

    version: str = diffusers.__version__
    return version
