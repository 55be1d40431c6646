"""Files in Comet artifacts, as a study file names them: `comet://workspace/artifact:version-or-alias/path`."""

import re
from dataclasses import dataclass

from search_spaces.errors import InputError, shown

SCHEME = "comet://"
FORM = "comet://WORKSPACE/ARTIFACT:VERSION-OR-ALIAS/PATH"

MOST_CHARACTERS = 100
"""Of an artifact's name (comet_ml 3.58's documentation)."""

LATEST = "latest"
"""The alias that Comet gives to an artifact's newest version; meant where none is named."""

_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
"""A semantic version, as Comet's versions are; whatever else stands there is an alias."""


@dataclass(frozen=True)
class ArtifactFile:
    """One file of an artifact; `version` is a version such as 1.0.0, or an alias such as latest."""

    workspace: str
    artifact: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.workspace}/{self.artifact}:{self.version}/{self.path}"

    @property
    def is_resolved(self) -> bool:
        """Whether a version is named, and no alias, which may move."""
        return _VERSION.fullmatch(self.version) is not None


def parse_artifact_file(text: str) -> ArtifactFile | None:
    """What a study file names; None for the path of a local file. Raises ValueError with the reader's sentence."""
    if not text.lower().startswith(SCHEME):
        other = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
        if other:
            raise ValueError(
                f"{shown(text)} is neither a path nor a file of a Comet artifact ({FORM}); download it first"
            )
        return None
    if not text.isprintable() or "\\" in text:
        raise ValueError(f"{shown(text)} holds characters that no artifact's name or path should have")
    workspace, _, rest = text[len(SCHEME) :].partition("/")
    named, _, path = rest.partition("/")
    artifact, colon, version = named.partition(":")
    if not workspace or ":" in workspace or not artifact or ":" in version or (colon and not version):
        raise ValueError(f"{shown(text)} is not of the form {FORM}")
    if not path:
        raise ValueError(f"{shown(text)} names no file of the artifact; the form is {FORM}")
    if any(part in ("", ".", "..") for part in (workspace, artifact, version or LATEST, *path.split("/"))):
        raise ValueError(
            f"{shown(text)} leaves the artifact's folder or names none; write a plain path without .."
        )
    return ArtifactFile(workspace, artifact, version or LATEST, path)


def check_artifact_name(name: str) -> str:
    """A name that an artifact can be given. Raises InputError."""
    if (
        not name.strip()
        or len(name) > MOST_CHARACTERS
        or not name.isprintable()
        or re.search(r"[/:\\]", name)
    ):
        raise InputError(
            f"{shown(name)} cannot be an artifact's name: 1 to {MOST_CHARACTERS} characters without / and :"
        )
    return name


def check_alias(alias: str) -> str:
    """An alias that a version can be given. Raises InputError."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", alias) is None or _VERSION.fullmatch(alias):
        raise InputError(
            f"{shown(alias)} cannot be an alias: letters, digits, '.', '_' and '-', and no version such as 1.0.0"
        )
    return alias
