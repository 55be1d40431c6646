"""Files of Comet artifacts, downloaded once into the user's cache folder."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from orchestrator.tracking.comet.child import Inbox, Tell
from orchestrator.tracking.comet.connection import ask, connected, translated
from orchestrator.tracking.comet.content import CometError
from search_spaces.artifacts import ArtifactFile
from search_spaces.errors import did_you_mean

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
    found: dict[Wanted, Fetched | str] = {}
    for each in wanted:
        cached = _cached(cache, each) if each.file.is_resolved else None
        if cached is not None:
            found[each] = cached
    missing = [each for each in dict.fromkeys(wanted) if each not in found]
    if missing:
        with _scratch(cache) as scratch:
            files = [each.file for each in missing]
            log = cache / "comet.log"
            answers = ask(fetch_task, files, cache, scratch, scratch=scratch, log=log, patience=patience)
        for each, (version, problem) in zip(missing, answers, strict=True):
            found[each] = problem or _checked(cache, each, version)
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
    """Where the files of this user's Comet server are kept: under $XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    server = urlsplit(os.environ.get("COMET_URL_OVERRIDE", "")).netloc.rpartition("@")[2] or "comet"
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        raise CometError("there is no home folder to keep it in; set XDG_CACHE_HOME") from None
    return folder.absolute() / "latentsweep" / "artifacts" / quote(server, safe="")


def _place(cache: Path, file: ArtifactFile) -> Path:
    parts = (file.workspace, file.artifact, file.version, *file.path.split("/"))
    return cache.joinpath(*(quote(part, safe=" ") for part in parts))


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder for what is being downloaded, on the cache's own disk."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".downloading-", dir=cache))
    except OSError as error:
        raise CometError(f"it cannot be kept in {cache}: {error.strerror}; set XDG_CACHE_HOME") from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch_task(
    _: Tell, __: Inbox, files: Sequence[ArtifactFile], cache: Path, scratch: Path
) -> list[tuple[str, str | None]]:
    """The child's task: for each file its artifact's version, and what keeps it from the cache, or None."""
    artifacts: dict[tuple[str, str, str], Any] = {}
    answers: list[tuple[str, str | None]] = []
    with translated():
        api = connected()
        for number, file in enumerate(files):
            try:
                name = (file.workspace, file.artifact, file.version)
                if name not in artifacts:
                    artifacts[name] = _artifact(api, file)
                version = str(artifacts[name].version)
                _download(artifacts[name], _of_version(file, version), cache, scratch / f"{number}.part")
                answers.append((version, None))
            except _NotThereError as error:
                answers.append(("", str(error)))
    return answers


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
    asset.download(local_path=str(aside.parent), logical_path=aside.name, overwrite_strategy="OVERWRITE")
    size = aside.stat().st_size
    if not asset.remote and size != asset.size:
        raise CometError(f"{file}: {size:,} of {asset.size:,} bytes came; try again")
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(place)
