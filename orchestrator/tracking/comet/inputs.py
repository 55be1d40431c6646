"""Files of Comet artifacts, downloaded once into the user's cache folder."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from orchestrator.tracking.comet.child import Inbox, Tell
from orchestrator.tracking.comet.connection import ask, connected, translated
from orchestrator.tracking.comet.content import CometError
from orchestrator.tracking.comet.replies import at_most
from search_spaces.artifacts import ArtifactFile
from search_spaces.errors import did_you_mean
from workers.atomic_files import scratch_folder

PATIENCE = 30.0
"""Seconds without a byte after which a download counts as dead; the SDK itself would wait for ever."""

MOST_BYTES = 256_000_000
"""Of an input: a picture of the most pixels that are taken is smaller."""

MOST_NAMES = 20
"""Of those that a message lists."""


@dataclass(frozen=True)
class Fetched:
    """A file as it lies in the cache: of which version of its artifact, and the SHA-256 of its bytes."""

    path: Path
    version: str
    sha256: str


@dataclass(frozen=True)
class Wanted:
    """A file to fetch; `sha256` is what it must be, where that is known."""

    file: ArtifactFile
    sha256: str | None = None


def fetch(wanted: Sequence[Wanted], patience: float = PATIENCE) -> list[Fetched | str]:
    """Each file, or a sentence on why there is none; asks Comet only for aliases and for what is not in the cache.

    Raises CometError where Comet cannot be asked at all.
    """
    cache = _cache_folder()
    files = list(dict.fromkeys(wanted))
    with _scratch(cache) as scratch:
        log = cache / "comet.log"
        server, answers = ask(fetch_task, files, cache, scratch, scratch=scratch, log=log, patience=patience)
    found = {
        each: problem or _checked(cache / server, each, version)
        for each, (version, problem) in zip(files, answers, strict=True)
    }
    return [found[each] for each in wanted]


def _checked(cache: Path, wanted: Wanted, version: str) -> Fetched | str:
    file = _of_version(wanted.file, version)
    fetched = _cached(cache, Wanted(file, wanted.sha256))
    return fetched or f"{file} is not what the study was made with: its bytes have changed in Comet"


def _cached(cache: Path, wanted: Wanted) -> Fetched | None:
    """A file that lies in the cache; one that is not what it must be is removed from it."""
    path = _place(cache, wanted.file)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if wanted.sha256 in (None, digest):
            return Fetched(path, wanted.file.version, digest)
        path.unlink()
    except OSError:
        return None
    return None


def _of_version(file: ArtifactFile, version: str) -> ArtifactFile:
    return ArtifactFile(file.workspace, file.artifact, version, file.path)


def _cache_folder() -> Path:
    """Where this user's files are kept, by server: under $XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        raise CometError("there is no home folder to keep it in; set XDG_CACHE_HOME") from None
    return folder.absolute() / "latentsweep" / "artifacts"


def _server() -> str:
    """The name in the cache of the server that the SDK goes to: by a variable, a configuration file or the key."""
    from comet_ml import config

    settings = config.get_config()
    config.get_api_key(None, settings)  # which may name the server
    address = urlsplit(config.get_comet_url_override(settings))
    return quote(address.netloc.rpartition("@")[2] or "comet", safe="")


def _place(cache: Path, file: ArtifactFile) -> Path:
    parts = (file.workspace, file.artifact, file.version, *file.path.split("/"))
    return cache.joinpath(*(quote(part, safe=" ") for part in parts))


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder for what is being downloaded, on the cache's own disk."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = ExitStack()
        scratch = folder.enter_context(scratch_folder(cache))
    except OSError as error:
        raise CometError(f"it cannot be kept in {cache}: {error.strerror}; set XDG_CACHE_HOME") from None
    with folder:
        yield scratch


def fetch_task(
    _: Tell, __: Inbox, wanted: Sequence[Wanted], folder: Path, scratch: Path
) -> tuple[str, list[tuple[str, str | None]]]:
    """The child's task: the server's part of the cache; for each file its version, and what keeps it from there, or
    None. Without a connection where all is there.
    """
    answers: list[tuple[str, str | None]] = []
    with translated():
        server = _server()
        source = _Source(folder / server)
        for number, each in enumerate(wanted):
            try:
                answers.append((source.fetch(each, scratch / f"{number}.part"), None))
            except _NotThereError as error:
                answers.append(("", str(error)))
    return server, answers


class _Source:
    """Comet's artifacts, asked for once each, and not at all where the cache has what is wanted."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._api: Any = None
        self._artifacts: dict[tuple[str, str, str], Any] = {}

    def fetch(self, wanted: Wanted, aside: Path) -> str:
        """Bring a file into the cache, by way of `aside`; its version. Raises _NotThereError, CometError."""
        file = wanted.file
        if file.is_resolved and _cached(self._cache, wanted) is not None:
            return file.version
        self._api = self._api or connected()
        name = (file.workspace, file.artifact, file.version)
        if name not in self._artifacts:
            self._artifacts[name] = _artifact(self._api, file)
        version = str(self._artifacts[name].version)
        _download(self._artifacts[name], _of_version(file, version), self._cache, aside)
        return version


class _NotThereError(Exception):
    """Comet answers, and does not have the file."""


def _artifact(api: Any, file: ArtifactFile) -> Any:
    """The artifact's version that a file is of; one of an alias, as Comet has it now."""
    from comet_ml import exceptions

    which = {"version" if file.is_resolved else "alias": file.version}
    try:
        return api.get_artifact(file.workspace, file.artifact, **which)
    except exceptions.ArtifactNotFound:
        raise _NotThereError(_nearest(api, file)) from None
    except exceptions.ArtifactNotFinalException:
        raise _NotThereError(f"{file}: this version of the artifact is not complete in Comet") from None


def _nearest(api: Any, file: ArtifactFile) -> str:
    """Why there is no such version: what the artifact has, where there is one."""
    from comet_ml import exceptions

    try:
        versions = api.get_artifact_details(file.workspace, file.artifact)["versions"]
    except (exceptions.CometException, KeyError, TypeError):
        return f"Comet has no artifact {file.artifact!r} in the workspace {file.workspace!r} for this API key"
    known = [name for each in versions for name in (str(each["version"]), *(each.get("alias") or ()))]
    return (
        f"the artifact {file.workspace}/{file.artifact} has no version or alias {file.version!r}"
        f"{did_you_mean(file.version, known[-MOST_NAMES:])}"
    )


def _download(artifact: Any, file: ArtifactFile, cache: Path, aside: Path) -> None:
    """Bring a file into the cache, whole or not at all, unless it is there."""
    place = _place(cache, file)
    if place.is_file():
        return
    assets = {str(asset.logical_path): asset for asset in artifact.assets}
    asset = assets.get(file.path)
    if asset is None:
        some = list(assets)[:MOST_NAMES]
        near = did_you_mean(file.path, assets if len(assets) <= MOST_NAMES else some)
        raise _NotThereError(f"{file}: the artifact has no file of this path{near}")
    if not asset.is_asset_downloadable():
        raise _NotThereError(
            f"{file} is a link to somewhere else, which Comet does not hold; download it first"
        )
    if asset.size > MOST_BYTES:
        raise _NotThereError(f"{file} has {asset.size / 1e6:,.0f} MB, more than an input image may have")
    with at_most(MOST_BYTES if asset.remote else asset.size):
        asset.download(local_path=str(aside.parent), logical_path=aside.name, overwrite_strategy="OVERWRITE")
    size = aside.stat().st_size
    if not asset.remote and size != asset.size:
        raise CometError(f"{file}: {size:,} of {asset.size:,} bytes came; try again")
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(place)
