"""The versions that driver and workers must have in common."""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("ray", "torch", "diffusers", "transformers")


@cache
def versions() -> Mapping[str, str]:
    """Python's, the libraries' and our own, the last with a hash of its source, which says more than its number."""
    found = {"Python": platform.python_version()}
    for name in (*LIBRARIES, "latentsweep"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed" if name in LIBRARIES else "unpackaged"
    return {**found, "latentsweep": f"{found['latentsweep']} (source {_source_hash()})"}


def _source_hash() -> str:
    """Of every module of our packages that a worker may run."""
    above = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in ("orchestrator", "search_spaces", "workers"):
        for path in sorted((above / package).rglob("*.py")):
            digest.update(f"{path.relative_to(above).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """Which versions differ, for a sentence; None where all agree. Of Python the last number may differ."""
    pairs = [
        (name, here[name], there.get(name, "not installed"))
        for name in here
        if _compared(name, here[name]) != _compared(name, there.get(name, ""))
    ]
    return ", ".join(f"{name} {found} instead of {wanted}" for name, wanted, found in pairs) or None


def _compared(name: str, version: str) -> str:
    """Builds of torch for another CUDA, such as 2.9.1+cu128, are one version."""
    if name == "Python":
        return version.rpartition(".")[0]
    return version.partition("+")[0] if name == "torch" else version
