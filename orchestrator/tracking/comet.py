"""Comet through its own SDK, offline: one archive per study, built at the end from what is stored.

The SDK changes the process that imports it (exception hook, random state, torch, log handlers), looks for
API keys and reports success where there was none. So it runs in a child process without a key, and nothing
is believed but the finished archive.
"""

import hashlib
import io
import json
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.tracking import TrackedImage, TrackedTrial
from search_spaces.requests import Value


class CometError(Exception):
    """One sentence that says why there is no archive; it never quotes a key."""


@dataclass(frozen=True)
class CometImage:
    """One picture: `name` is its role, `step` its trial's number, `png` the bytes, sent as they are."""

    image_id: str
    name: str
    step: int
    png: bytes
    metadata: Mapping[str, Value]


@dataclass(frozen=True)
class CometMetric:
    """One value of a curve at a step; a value that is not finite is never sent."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class CometStudy:
    """What is said once per study; `workspace` and `project` None mean the uploader's own defaults."""

    study: str
    workspace: str | None
    project: str | None
    experiment_name: str
    tags: Sequence[str]
    parameters: Mapping[str, object]
    assets: Sequence[Path]


Source = Callable[[], tuple[CometStudy, str, Iterable[CometImage], Iterable[CometMetric]]]
"""Gives study, experiment key, images and metrics; called in the child, so it must pickle by name."""

MOST_IMAGES = 100_000
"""Images that Comet keeps per experiment."""

# Each of these uploads something about the machine or the script, or contacts the network to find it.
_QUIET: Mapping[str, Any] = dict.fromkeys(
    [
        "auto_log_co2",
        "auto_metric_logging",
        "auto_output_logging",
        "auto_param_logging",
        "log_code",
        "log_env_cpu",
        "log_env_details",
        "log_env_disk",
        "log_env_gpu",
        "log_env_host",
        "log_env_network",
        "log_git_metadata",
        "log_git_patch",
        "log_graph",
        "parse_args",
    ],
    False,
) | {"display_summary_level": 0}

# Where the archive is to be uploaded is the user's to say; every other variable would change what is in it.
_KEPT_VARIABLES = frozenset({"COMET_WORKSPACE", "COMET_PROJECT_NAME"})

_CHILD_VARIABLES = {
    "COMET_API_KEY": "",  # empty, not absent: an absent one is looked for in .env and .comet.config
    "COMET_AUTO_LOG_DISABLE": "0",  # 1, in a .comet.config too, makes an experiment of nothing
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "0",
    "COMET_INTERNAL_REPORTING": "0",
    "COMET_LOGGING_CONSOLE": "WARNING",  # at INFO it advises to upload a file that is about to be moved
}

# The child finds modules where its parent does; -P keeps the working directory from shadowing pickle itself.
_CHILD_COMMAND = [
    "-P",
    "-c",
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer)\n"
    "from orchestrator.tracking import comet; comet._answer_parent()",
]

_SCRATCH = ".comet-building"


def experiment_key(study_identity: str) -> str:
    """Name the experiment of a study: the same 32 lowercase alphanumerics for the same identity, always."""
    return hashlib.sha256(study_identity.encode()).hexdigest()[:32]


def api_key_problem(environ: Mapping[str, str]) -> str | None:
    """Say what is wrong with COMET_API_KEY in one line that does not quote it; None when unset or plausible.

    A key is 25 letters and digits, which may be followed by `*` and base64 (the address of the user's own
    server); `_SECRET_-…` names a key in a secret manager. Lengths of 20 to 64 pass.
    """
    key = environ.get("COMET_API_KEY")
    if key is None or key.startswith("_SECRET_-"):
        return None
    if not key.strip():
        problem = "is empty"
    elif key != key.strip():
        problem = "has white space around it"
    elif not re.fullmatch(r"[A-Za-z0-9]+(\*[A-Za-z0-9+/=]*)?", key):
        problem = "has characters other than letters and digits"
    elif not 20 <= len(key.split("*")[0]) <= 64:
        problem = "is too short or too long for a key of Comet"
    else:
        return None
    return f"COMET_API_KEY {problem}; the run goes on offline"


def write_archive(
    study: CometStudy,
    key: str,
    images: Iterable[CometImage],
    metrics: Iterable[CometMetric],
    folder: Path,
) -> Path:
    """Build `<key>.zip` in `folder` for `comet upload`, replacing an earlier one once the new one is whole.

    `images` is consumed one by one, so it may be longer than memory; an `image_id` that comes again is
    skipped. Imports the SDK: call it in a process that does nothing else (`archive_in_child` does).
    Raises CometError when the archive does not hold each image, asset and finite metric exactly once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / f"{key}.zip"
    with tempfile.TemporaryDirectory(prefix=".comet-", dir=folder) as scratch:
        expected = _log_everything(study, key, images, metrics, Path(scratch))
        archive = _only_archive(Path(scratch))
        _check(archive, expected)
        _publish(archive, finished)
    return finished


def archive_in_child(source: Source, folder: Path, log: Path, deadline: float = 600.0) -> Path:
    """Run `write_archive` over `source()` in a child process of its own; the result is `<key>.zip`'s path.

    `folder` belongs to one study: one build at a time. `log` is rewritten with all that the SDK prints.
    After `deadline` seconds the child is killed. Raises CometError; an earlier archive then stays as it was.
    """
    folder = folder.absolute()
    scratch = folder / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # what a build left that was killed with its parent
    scratch.mkdir(parents=True)
    try:
        built = _build_in_child(source, scratch, log, deadline)
        return built.replace(folder / built.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def count_images(archive: Path) -> int:
    """Count the images that `comet upload` would send."""
    with zipfile.ZipFile(archive) as opened:
        return sum(kind == "image" for kind, _, _ in _contents(opened))


class CometOfflineTracker:
    """Leaves a study's Comet archive behind: built at the end from what is stored, so nothing is streamed."""

    def __init__(self, source: Source, folder: Path, log: Path, deadline: float = 600.0) -> None:
        self._source = source
        self._folder = folder
        self._log = log
        self._deadline = deadline

    def images(self, records: Sequence[TrackedImage]) -> None:
        """Nothing to do: the source reads what is stored."""

    def trials(self, records: Sequence[TrackedTrial]) -> None:
        """Nothing to do: the source reads what is stored."""

    def close(self) -> str | None:
        """Build the archive (seconds to minutes) and say how to upload it; CometError when there is none."""
        archive = archive_in_child(self._source, self._folder, self._log, self._deadline)
        count = count_images(archive)
        kept = f", of which Comet keeps {MOST_IMAGES}" if count > MOST_IMAGES else ""
        upload = f"comet upload {shlex.quote(str(archive))}"
        return f"Comet archive: {archive} ({count} images{kept}); upload it with `{upload}`"


# Inside an archive a thing is (kind, name, fingerprint): an image or asset with the CRC-32 of its bytes, a
# metric with its step.
_Thing = tuple[str, str, int]


def _log_everything(
    study: CometStudy,
    key: str,
    images: Iterable[CometImage],
    metrics: Iterable[CometMetric],
    folder: Path,
) -> Counter[_Thing]:
    """Give the SDK all there is; the result is what the archive in `folder` must hold."""
    import comet_ml

    config = comet_ml.ExperimentConfig(
        offline_directory=str(folder), name=study.experiment_name, tags=list(study.tags), **_QUIET
    )
    experiment = comet_ml.start(
        online=False,
        mode="get_or_create",
        experiment_key=key,
        workspace=study.workspace,
        project_name=study.project,
        experiment_config=config,
    )
    try:
        experiment.log_parameters(dict(study.parameters))
        experiment.log_others({"study": study.study, "Created from": "latentsweep"})
        expected = Counter(_log_asset(experiment, path) for path in study.assets)
        expected.update(_log_images(experiment, images))
        expected.update(_log_metrics(experiment, metrics))
    finally:
        experiment.end()
    return expected


def _log_asset(experiment: Any, path: Path) -> _Thing:
    if not path.is_file():
        raise CometError(f"the asset {path} of the Comet archive is missing")
    experiment.log_asset(str(path), file_name=path.name)
    return "asset", path.name, zlib.crc32(path.read_bytes())


def _log_images(experiment: Any, images: Iterable[CometImage]) -> Iterator[_Thing]:
    seen: set[str] = set()
    for image in images:
        if image.image_id in seen:
            continue
        seen.add(image.image_id)
        metadata = {**image.metadata, "image_id": image.image_id}
        # A file-like object: the SDK takes bare bytes for something to print.
        experiment.log_image(io.BytesIO(image.png), name=image.name, step=image.step, metadata=metadata)
        yield "image", image.image_id, zlib.crc32(image.png)


def _log_metrics(experiment: Any, metrics: Iterable[CometMetric]) -> Iterator[_Thing]:
    for metric in metrics:
        if math.isfinite(metric.value):
            experiment.log_metric(metric.name, metric.value, step=metric.step)
            yield "metric", metric.name, metric.step


def _only_archive(folder: Path) -> Path:
    archives = list(folder.glob("*.zip"))
    if len(archives) != 1:
        raise CometError(f"the Comet SDK left {len(archives)} archives where one was due")
    return archives[0]


def _check(archive: Path, expected: Counter[_Thing]) -> None:
    """Open the archive and find everything in it, as often as it was given and byte for byte."""
    try:
        with zipfile.ZipFile(archive) as opened:
            found = Counter(_contents(opened))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise CometError("the Comet SDK left an archive that cannot be read") from None
    wrong = [thing for thing, times in expected.items() if found[thing] != times]
    if wrong:
        kind, name, _ = wrong[0]
        raise CometError(
            f"the Comet archive holds {len(wrong)} of {len(expected)} things not as given: {kind} {name}, …"
        )


def _contents(archive: zipfile.ZipFile) -> Iterator[_Thing]:
    """Everything that `comet upload` would send of the kinds that are checked; KeyError for a lost blob."""
    with archive.open("messages.json") as lines:
        for line in lines:
            message = json.loads(line)
            payload = message["payload"]
            if message["type"] == "metric_msg":
                metric = payload["metric"]
                yield "metric", metric["metricName"], metric["step"]
            elif message["type"] == "file_upload":
                crc = archive.getinfo(payload["file_path"]).CRC
                if payload["upload_type"] == "visualization":
                    yield "image", payload["metadata"]["image_id"], crc
                elif payload["upload_type"] == "asset":
                    yield "asset", payload["additional_params"]["fileName"], crc


def _publish(archive: Path, finished: Path) -> None:
    with archive.open("rb") as written:
        os.fsync(written.fileno())
    archive.replace(finished)


def _build_in_child(source: Source, scratch: Path, log: Path, deadline: float) -> Path:
    """Start the child, wait for its answer (one line of JSON), and end it in any case."""
    request = pickle.dumps(sys.path) + pickle.dumps((source, scratch, deadline))
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as chatter,
        subprocess.Popen(
            [sys.executable, *_CHILD_COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=chatter,
            env=_child_environment(scratch),
            start_new_session=True,  # a Ctrl-C that lets running work finish is not the child's
        ) as child,
    ):
        try:
            answer, _ = child.communicate(request, timeout=deadline)
        except subprocess.TimeoutExpired:
            raise CometError(f"the Comet archive was not finished within {deadline:g} s") from None
        finally:
            child.kill()
    return _built(answer, child.returncode, log)


def _child_environment(scratch: Path) -> dict[str, str]:
    """Take this process' environment, without its API key and with the SDK's spool under `scratch`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COMET_") or name in _KEPT_VARIABLES
    }
    return inherited | _CHILD_VARIABLES | {"TMPDIR": str(scratch)}


def _built(answer: bytes, code: int, log: Path) -> Path:
    if not answer:
        raise CometError(f"the process that builds the Comet archive died with code {code}; see {log}")
    kind, text = json.loads(answer)
    if kind == "archive":
        return Path(text)
    raise CometError(text if kind == "refused" else f"building the Comet archive failed: {text}; see {log}")


def _answer_parent() -> None:
    """Live the child's life: read the request from stdin, build, answer on stdout."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what anyone prints goes to the log
        source, folder, deadline = pickle.load(sys.stdin.buffer)
        signal.alarm(math.ceil(deadline) + 1)  # a parent that died cannot keep the deadline
        json.dump(_attempt(source, folder), answer)


def _attempt(source: Source, folder: Path) -> tuple[str, str]:
    try:
        study, key, images, metrics = source()
        return "archive", str(write_archive(study, key, images, metrics, folder))
    except CometError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 -- whatever failed, the parent gets one sentence
        traceback.print_exc()
        return "failed", type(error).__name__  # the SDK's texts may quote a key
