"""Where the input pictures of a study file lie: beside it, or in a Comet artifact whose version is pinned."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.study_folder import StudyFolder
from orchestrator.tracking.comet.content import CometError
from orchestrator.tracking.comet.inputs import Wanted, fetch
from search_spaces.artifacts import ArtifactFile, parse_artifact_file
from search_spaces.errors import InputError
from search_spaces.study import PinnedArtifact, Study
from search_spaces.study_file import StudySpec

Slot = tuple[int, str]
"""An input's number, and image or mask."""


@dataclass(frozen=True)
class Located:
    """A picture's file on this machine, and where in Comet it is from."""

    path: Path
    artifact: PinnedArtifact | None = None


def locate(spec: StudySpec, file: Path, folder: StudyFolder, pinned: Study | None) -> Mapping[Slot, Located]:
    """Every picture that a study file names; those of artifacts are downloaded where they are not here yet.

    `folder` and `pinned` are the study's, where it goes on: an alias is then what it was, and the study's own copy
    of the picture is enough. Raises InputError.
    """
    named = {
        (number, key): text
        for number, item in enumerate(spec.inputs)
        for key, text in (("image", item.image), ("mask", item.mask))
        if text is not None
    }
    located: dict[Slot, Located] = {}
    wanted: dict[Slot, Wanted] = {}
    known = _pinned_artifacts(pinned)
    for slot, text in named.items():
        remote = parse_artifact_file(text)
        if remote is None:
            located[slot] = Located(file.parent / text)
            continue
        before = known.get((slot[1], str(remote)))
        if before is None:
            wanted[slot] = Wanted(remote)
            continue
        artifact, pixels = before
        copy = folder.path / "inputs" / f"{pixels}.png"
        if copy.is_file():
            located[slot] = Located(copy, artifact)
        else:
            version = ArtifactFile(remote.workspace, remote.artifact, artifact.version, remote.path)
            wanted[slot] = Wanted(version, artifact.sha256)
    return located | _fetched(wanted, {slot: named[slot] for slot in wanted}, file)


def _pinned_artifacts(pinned: Study | None) -> dict[tuple[str, str], tuple[PinnedArtifact, str]]:
    """What a study had of artifacts, by image or mask and the file that was asked for; with its pixels' hash."""
    found = {}
    for item in pinned.inputs if pinned else ():
        for key, artifact, pixels in (
            ("image", item.image_artifact, item.image),
            ("mask", item.mask_artifact, item.mask),
        ):
            if artifact is not None and pixels is not None:
                found[key, artifact.asked] = artifact, pixels
    return found


def _fetched(wanted: Mapping[Slot, Wanted], named: Mapping[Slot, str], file: Path) -> dict[Slot, Located]:
    located: dict[Slot, Located] = {}
    if not wanted:  # as nearly always: Comet's SDK is not even started
        return located
    try:
        answers = fetch(list(wanted.values()))
    except CometError as error:
        (number, key), text = next(iter(named.items()))
        raise InputError(f"{file}: inputs[{number}].{key}: {text} cannot be had: {error}") from None
    for (number, key), answer in zip(wanted, answers, strict=True):
        if isinstance(answer, str):
            raise InputError(f"{file}: inputs[{number}].{key}: {answer}")
        asked = str(parse_artifact_file(named[number, key]))
        located[number, key] = Located(
            answer.path, PinnedArtifact(asked=asked, version=answer.version, sha256=answer.sha256)
        )
    return located
