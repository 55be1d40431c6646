"""Weights come over the network once for a machine: its first worker fetches them, the others wait for that."""

import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def once_per_machine(what: str, load: Callable[[], T], folder: Path | None = None) -> tuple[T, str | None]:
    """What `load` gives, and a sentence about it where this process was the one that fetched or waited.

    `what` names model and revision. Whoever finds a lock in `folder` (in $XDG_CACHE_HOME/latentsweep, by default
    ~/.cache/latentsweep) taken waits until its holder has loaded, or has died; once someone has, nobody waits again.
    """
    folder = folder or _cache_folder()
    if folder is None:
        return load(), None
    name = hashlib.sha256(what.encode()).hexdigest()[:32]
    there = folder / name
    if there.exists():
        return load(), None
    begun = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{name}.lock").open("w")
    except OSError:  # a home that cannot be written: the hub's own locks are left
        return load(), None
    with lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # which its holder's death lets go
        waited = time.monotonic() - begun
        was_there = there.exists()
        loaded = load()
        with suppress(OSError):  # a disk that has become full by what was loaded
            there.touch()
    machine, seconds = platform.node(), time.monotonic() - begun
    if was_there:
        return (
            loaded,
            f"{machine}, process {os.getpid()}: waited {waited:.0f} s for {what}, then read it here",
        )
    return loaded, f"{machine}, process {os.getpid()}: loaded {what} from the hub in {seconds:.0f} s"


def _cache_folder() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "latentsweep" / "staged"
    except RuntimeError:  # nobody's home
        return None
