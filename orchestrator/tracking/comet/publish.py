"""A study's winners as a version of a Comet artifact: sent once, and believed by its listing alone."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.tracking.comet.child import Inbox, Tell
from orchestrator.tracking.comet.connection import ask, begun, connected, translated
from orchestrator.tracking.comet.content import CometError, CometStudy
from search_spaces.requests import Value
from workers.atomic_files import scratch_folder

KIND = "latentsweep-winners"
"""The artifact's type in Comet."""

PATIENCE = 120.0
"""Seconds for what is not proportional to size: beginning, listing, ending, and the SDK's own attempts."""

SLOWEST = 100_000
"""Bytes a second that a line is taken to carry at least."""

_VARIABLES = {
    # The parent keeps the time; an asset that is sent again has the same id and is there once.
    "COMET_TIMEOUT_CLEANING": "86400",
    "COMET_TIMEOUT_UPLOAD": "86400",
}

LISTINGS = 10
"""Looks for the new version, half a second apart."""


@dataclass(frozen=True)
class PublishedFile:
    """One file: its path in the artifact, its bytes, and what is told of it."""

    path: str
    data: bytes
    metadata: Mapping[str, Value]


@dataclass(frozen=True)
class Publication:
    """What is to be a version of an artifact; it is logged by the study's own experiment, of that key.

    `files` are read one by one. `metadata` is the version's.
    """

    study: CometStudy
    key: str
    artifact: str
    aliases: Sequence[str]
    metadata: Mapping[str, Value]
    files: Iterable[PublishedFile]


@dataclass(frozen=True)
class Published:
    """The version that Comet lists; `new` says whether it was made now. `size` is in bytes."""

    workspace: str
    artifact: str
    version: str
    aliases: Sequence[str]
    files: int
    size: int
    new: bool

    def __str__(self) -> str:
        return f"{self.workspace}/{self.artifact}:{self.version}"


Source = Callable[[], Publication]
"""Reads the publication; called in a child process, so it must pickle by name."""


@dataclass(frozen=True)
class _Entry:
    """A file as it lies aside to be sent, and as the listing must have it."""

    path: str
    local: Path
    size: int
    sha256: str
    metadata: Mapping[str, Value]


def publish_in_child(source: Source, folder: Path, log: Path) -> Published:
    """Make the publication a version of its artifact, unless the latest version is just that.

    `folder` belongs to the study. Raises CometError, also where Comet's listing is not what was sent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.absolute()) as scratch:
        told = ask(
            publish_task, source, scratch, scratch=scratch, log=log, patience=PATIENCE, variables=_VARIABLES
        )
        return Published(**told)


def publish_task(tell: Tell, _: Inbox, source: Source, scratch: Path) -> dict[str, Any]:
    """The child's task; the result is a Published's fields."""
    with translated():
        api = connected()
        publication = source()
        entries = [_put_aside(file, scratch / str(number)) for number, file in enumerate(publication.files)]
        digest = _digest(entries)
        workspace = _workspace(api, publication)
        there = _latest(api, workspace, publication.artifact)
        if there is not None and there.metadata.get("content") == digest and not _differences(there, entries):
            aliases = _with_aliases(there, publication.aliases)
            return _told(there, entries, aliases, new=False)
        tell(PATIENCE + sum(entry.size for entry in entries) / SLOWEST)
        logged = _send(publication, entries, digest)
        listed = _listed(api, str(logged.workspace), publication.artifact, str(logged.version))
        wrong = _differences(listed, entries)
        if wrong:
            raise CometError(
                f"Comet lists {len(wrong)} of {len(entries)} files of {publication.artifact}:{logged.version} "
                f"not as sent, {wrong[0]} first; the same command makes a version anew"
            )
        return _told(listed, entries, listed.aliases, new=True)


def _put_aside(file: PublishedFile, local: Path) -> _Entry:
    local.write_bytes(file.data)
    digest = hashlib.sha256(file.data).hexdigest()
    return _Entry(file.path, local, len(file.data), digest, {**file.metadata, "sha256": digest})


def _digest(entries: Sequence[_Entry]) -> str:
    """A name for all that is sent."""
    told = sorted((entry.path, json.dumps(entry.metadata, sort_keys=True)) for entry in entries)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _workspace(api: Any, publication: Publication) -> str:
    """Where the study's experiment is, or would be: as its file says, or the user's configuration, or Comet."""
    import comet_ml

    there = api.get_experiment_by_key(publication.key)
    if there is not None:
        return str(there.workspace)
    named = publication.study.workspace or comet_ml.get_config("comet.workspace")
    return str(named or api.get_default_workspace())


def _latest(api: Any, workspace: str, artifact: str) -> Any:
    """The artifact's latest version; None where there is none that is whole."""
    from comet_ml import exceptions

    try:
        return api.get_artifact(workspace, artifact)
    except (exceptions.ArtifactNotFound, exceptions.ArtifactNotFinalException):
        return None


def _differences(artifact: Any, entries: Sequence[_Entry]) -> list[str]:
    """The paths of what is not listed as it was sent, by size and by the SHA-256 that went along."""
    listed = {
        asset.logical_path: (int(asset.size), (asset.metadata or {}).get("sha256"))
        for asset in artifact.assets
    }
    sent = {entry.path: (entry.size, entry.sha256) for entry in entries}
    return sorted(path for path in listed.keys() | sent.keys() if listed.get(path) != sent.get(path))


def _with_aliases(artifact: Any, wanted: Sequence[str]) -> Sequence[str]:
    """Give a version the aliases that it lacks; the aliases it has then."""
    has = {str(alias).lower() for alias in artifact.aliases}
    lacking = [alias for alias in wanted if alias.lower() not in has]
    if lacking:
        artifact.update_aliases([*artifact.aliases, *lacking])
    return list(artifact.aliases)


def _send(publication: Publication, entries: Sequence[_Entry], digest: str) -> Any:
    """Log the artifact in the study's experiment and wait until the SDK is through with it."""
    import comet_ml
    from comet_ml.exceptions import ExperimentCleaningException

    artifact = comet_ml.Artifact(
        publication.artifact,
        KIND,
        aliases=list(publication.aliases),
        metadata={**publication.metadata, "content": digest},
    )
    for entry in entries:
        artifact.add(str(entry.local), logical_path=entry.path, metadata=dict(entry.metadata))
    experiment = begun(publication.study, publication.key)
    try:
        return experiment.log_artifact(artifact)
    finally:
        with suppress(ExperimentCleaningException):  # no proof either way: the listing has the word
            experiment.end()


def _listed(api: Any, workspace: str, artifact: str, version: str) -> Any:
    """The version as Comet lists it once it is whole. Raises CometError."""
    from comet_ml import exceptions

    for _ in range(LISTINGS):
        with suppress(exceptions.ArtifactNotFound, exceptions.ArtifactNotFinalException):
            return api.get_artifact(workspace, artifact, version=version)
        time.sleep(0.5)
    raise CometError(f"Comet has not got all of {artifact}:{version}; the same command makes a version anew")


def _told(artifact: Any, entries: Sequence[_Entry], aliases: Iterable[str], new: bool) -> dict[str, Any]:
    return {
        "workspace": str(artifact.workspace),
        "artifact": str(artifact.name),
        "version": str(artifact.version),
        "aliases": sorted(map(str, aliases)),
        "files": len(entries),
        "size": sum(entry.size for entry in entries),
        "new": new,
    }
