"""What `submit` sends to a cluster: this package's own code, the study file and the files it names.

Nothing else of this machine goes along: no environment variables, no credentials, no models.
"""

import importlib.util
import json
import platform
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from search_spaces import study_file
from search_spaces.artifacts import parse_artifact_file
from search_spaces.errors import InputError
from search_spaces.plain_files import open_plain
from search_spaces.study_file import StudySpec
from workers.inputs import MOST_BYTES as MOST_INPUT_BYTES

MOST_BYTES = 100_000_000
"""Of code and input files together; the toyworld model in it takes 8 MB. Ray holds a package in the head's memory."""

PACKAGES = ("search_spaces", "workers", "orchestrator")
STUDY_FOLDER = "study"
VERSIONS_FILE = "versions.json"

MUST_AGREE = ("ray", "diffusers")
"""Packages of which the cluster has this machine's version: what speaks to Ray, and what an image_id names."""

NEEDED = ("torch", "transformers", "optuna", "pyarrow", "pydantic", "comet_ml")
"""Packages without which the shipped code does not run."""


@dataclass(frozen=True)
class Shipment:
    """A folder ready to be sent: the study's name, and its file's path within the folder."""

    study: str
    file: str
    folder: Path


def pack(path: Path, folder: Path) -> Shipment:
    """Bring everything that a study file's run needs into an empty folder.

    Raises InputError where the study file is wrong, a file cannot be sent, or all of it is more than MOST_BYTES.
    """
    spec = study_file.load(path)
    _refuse_local_models(spec, path)
    target = folder / STUDY_FOLDER
    target.mkdir(parents=True)
    name = _bring_study(spec, path, target)
    bring_code(folder)
    _check_size(path, folder)
    return Shipment(spec.study, f"{STUDY_FOLDER}/{name}", folder)


def bring_code(folder: Path) -> None:
    """Copy this package's own code into a folder, with the versions that the cluster has to agree with."""
    for package in PACKAGES:
        origin = importlib.util.find_spec(package)
        assert origin is not None
        assert origin.origin is not None
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(Path(origin.origin).parent, folder / package, ignore=ignore)
    agree = {package: metadata.version(package) for package in MUST_AGREE}
    python = ".".join(platform.python_version_tuple()[:2])
    versions = {"python": python, "packages": {**dict.fromkeys(NEEDED), **agree}}
    (folder / VERSIONS_FILE).write_text(json.dumps(versions), encoding="utf-8")


def _refuse_local_models(spec: StudySpec, path: Path) -> None:
    """Models are not sent: a name that leads to a folder beside the study file leads nowhere on the cluster."""
    for key, name in (("model", spec.model), ("clip_model", spec.clip_model)):
        if name is None or name.startswith(("/", "~")):
            continue  # a path of the cluster's own, which it checks
        folder = path.parent / name
        if name.startswith(".") or folder.is_dir():
            raise InputError(
                f"{path}: {key}: {name} is a folder of this machine, and models are not sent; put it at one path on "
                "every node of the cluster and name that absolute path, or name a hub id"
            )


def _bring_study(spec: StudySpec, path: Path, folder: Path) -> str:
    """Copy the study file with its inputs, and a strategy's module beside it; the study file's name there.

    Inputs that lie elsewhere are brought into `inputs/`, and the file then says so, at the cost of its comments.
    """
    document = study_file.document(study_file.read(path), str(path))
    moved = False
    for number, item in enumerate(spec.inputs):
        for key, name in (("image", item.image), ("mask", item.mask)):
            if name is None or parse_artifact_file(name) is not None:
                continue  # an artifact's are fetched where the study runs
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts:
                place = PurePosixPath("inputs", f"{number}-{key}{Path(name).suffix}")
                document["inputs"][number][key], moved = str(place), True
            _copy(path.parent / name, folder / place, f"{path}: inputs[{number}].{key}")
    _bring_module(spec.search.strategy, path.parent, folder)
    target = folder / "study.yaml"
    if moved:
        target.write_text(study_file.dump(document), encoding="utf-8")
        study_file.load(target)
    else:
        shutil.copyfile(path, target)
    return target.name


def _bring_module(strategy: str, beside: Path, folder: Path) -> None:
    """The module of a sampler of one's own, where it lies beside the study file."""
    name, dot, _ = strategy.partition(".")
    if dot and (beside / f"{name}.py").is_file():
        shutil.copyfile(beside / f"{name}.py", folder / f"{name}.py")
    elif dot and (beside / name).is_dir():
        shutil.copytree(beside / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _copy(source: Path, target: Path, what: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_plain(source, MOST_INPUT_BYTES) as picture, target.open("wb") as copy:
            shutil.copyfileobj(picture, copy)
    except OSError as error:
        raise InputError(f"{what}: {source} cannot be read ({error.strerror})") from None


def _check_size(path: Path, folder: Path) -> None:
    """Raise InputError, naming the largest input, where all of it is too large to be sent."""
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    total = sum(sizes.values())
    if total <= MOST_BYTES:
        return
    inputs = {file: size for file, size in sizes.items() if file.is_relative_to(folder / STUDY_FOLDER)}
    largest = max(inputs, key=lambda file: inputs[file])
    raise InputError(
        f"{path}: its files and the code are {total / 1e6:,.0f} MB, more than the {MOST_BYTES / 1e6:,.0f} MB that "
        f"are sent; the largest is {largest.relative_to(folder / STUDY_FOLDER)} with {inputs[largest] / 1e6:,.0f} MB"
    )


def entrypoint(arguments: Sequence[str]) -> str:
    """The shell command that runs a command of the shipped code, by the Python that is first on the head's PATH."""
    return f"exec python3 -m orchestrator.on_cluster {shlex.join(arguments)}"
