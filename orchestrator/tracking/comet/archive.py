"""Comet offline: one archive per study, built by the SDK in a process without a key, and believed when opened."""

import io
import json
import logging
import math
import os
import shlex
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from orchestrator.tracking import TrackedImage, TrackedTrial
from orchestrator.tracking.comet.child import FLAGS, Child, Inbox, Tell, environment
from orchestrator.tracking.comet.content import (
    MOST_IMAGES,
    CometError,
    Content,
    DiskError,
    Source,
    disk_failure,
    with_pictures,
)
from orchestrator.tracking.comet.experiment import facts

_SCRATCH = ".comet-building"


def write_archive(content: Content, folder: Path) -> Path:
    """Build `<key>.zip` in `folder` for `comet upload`, replacing an earlier one once the new one is whole.

    The images are had one by one, so they may be more than memory holds; an `image_id` that comes again is
    skipped. Imports the SDK: call it in a process that does nothing else (`archive_in_child` does).
    Raises CometError when the archive does not hold each image, file and finite metric exactly once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / f"{content.key}.zip"
    with tempfile.TemporaryDirectory(prefix=".comet-", dir=folder) as scratch, _disk_watched(folder):
        expected = _log_everything(content, Path(scratch))
        archive = _only_archive(Path(scratch))
        _check(archive, expected)
        _publish(archive, finished)
    return finished


@contextmanager
def _disk_watched(folder: Path) -> Iterator[None]:
    """Raise DiskError where an archive is not whole and the SDK, which goes on after any error, has logged why."""
    seen: list[DiskError] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raised = record.exc_info[1] if record.exc_info else None
            told = record.args if isinstance(record.args, tuple) else ()
            seen.extend(found for each in (raised, *told) if (found := disk_failure(each, folder)))

    watch, logger = Watch(), logging.getLogger("comet_ml")
    logger.addHandler(watch)
    try:
        yield
    except CometError:
        if seen:
            raise seen[0] from None
        raise
    finally:
        logger.removeHandler(watch)


def archive_in_child(source: Source, folder: Path, log: Path, deadline: float | None = 600.0) -> Path:
    """Run `write_archive` over `source()` in a child process of its own; the result is `<key>.zip`'s path.

    `folder` belongs to one study: one build at a time. `log` is rewritten with all that the SDK prints.
    After `deadline` seconds the child is killed. Raises CometError; an earlier archive then stays as it was.
    """
    folder = folder.absolute()
    scratch = folder / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # what a build left that was killed with its parent
    scratch.mkdir(parents=True)
    child = Child(build_archive, (source, scratch), environment(online=False, scratch=scratch), log)
    try:
        built = Path(child.result(deadline))
        return built.replace(folder / built.name)
    finally:
        child.end()
        shutil.rmtree(scratch, ignore_errors=True)


def build_archive(_: Tell, __: Inbox, source: Source, folder: Path) -> str:
    """The child's task: the archive's path."""
    return str(write_archive(source(), folder))


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

    def abandon(self) -> None:
        """There is nothing to let go of."""


# Inside an archive a thing is (kind, name, fingerprint): an image or asset with the CRC-32 of its bytes, a
# metric with its step.
_Thing = tuple[str, str, int]


def _log_everything(content: Content, folder: Path) -> Counter[_Thing]:
    """Give the SDK all there is; the result is what the archive in `folder` must hold."""
    import comet_ml

    study = content.study
    config = comet_ml.ExperimentConfig(
        offline_directory=str(folder),
        name=study.experiment_name,
        tags=list(study.tags),
        **FLAGS,
    )
    experiment = comet_ml.start(
        online=False,
        mode="get_or_create",
        experiment_key=content.key,
        workspace=study.workspace,
        project_name=study.project,
        experiment_config=config,
    )
    try:
        experiment.log_parameters(dict(study.parameters))
        experiment.log_others(facts(study))
        expected = Counter(_log_files(experiment, content, folder / "files"))
        expected.update(_log_images(experiment, content))
        expected.update(_log_metrics(experiment, content))
    finally:
        experiment.end()
    return expected


def _log_files(experiment: Any, content: Content, folder: Path) -> Iterator[_Thing]:
    folder.mkdir()
    for name, data in content.study.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        digest = {"sha256": sha256(data).hexdigest()}  # by which a later sync knows it
        experiment.log_asset(str(folder / name), file_name=name, metadata=digest)
        yield "asset", name, zlib.crc32(data)


def _log_images(experiment: Any, content: Content) -> Iterator[_Thing]:
    for image, png in with_pictures(content, content.images()):
        metadata = {**image.metadata, "image_id": image.image_id}
        # A file-like object: the SDK takes bare bytes for something to print.
        experiment.log_image(io.BytesIO(png), name=image.name, step=image.step, metadata=metadata)
        yield "image", image.image_id, zlib.crc32(png)


def _log_metrics(experiment: Any, content: Content) -> Iterator[_Thing]:
    for metric in content.metrics:
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
