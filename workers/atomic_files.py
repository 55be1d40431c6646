"""Files and folders that are there whole or not at all: written aside in the same folder, synced, and renamed.

Whoever writes holds a lock on what is aside. What a killed process left has our name and no lock, and the next
write into that folder removes it; on a file system without locks it stays.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASIDE = re.compile(r"\.latentsweep-[0-9a-f]{16}\.tmp")
"""The names of what is being written, or was when its process was killed."""

TRIES = 10
"""At a new name for what is aside: another process may take a file for a leftover before it is locked."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place to write a file at, which gets the name `path` when the block ends, and goes where that fails.

    A file that is there is replaced, where `path` is a link the one that it leads to. A pipe or a device is
    written as it is. Raises OSError.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    with _aside(path, is_folder=False) as aside:
        yield aside
        if target.exists():
            shutil.copymode(target, aside)
        _sync(aside)
        aside.replace(target)
    _sync(target.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, in place of one that is there. Raises OSError."""
    with new_file(path) as aside:
        aside.write_bytes(content)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets the name `path` when the block ends, and goes where that fails.

    What is at `path` must be nothing or an empty folder, else OSError; so is everything else that cannot be.
    """
    target = path.resolve()
    with _aside(path, is_folder=True) as aside:
        yield aside
        if target.exists():
            shutil.copymode(target, aside)
        os.sync()  # at once: one by one 4,000 small files take seconds
        _sync(aside)
        aside.rename(target)
    _sync(target.parent)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder inside another for what is in the making, gone when the block ends. Raises OSError."""
    with _held(folder, is_folder=True) as scratch:
        yield scratch


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder; never what bears another name or is being written."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if ASIDE.fullmatch(entry.name):
                _remove_unless_locked(Path(entry.path))


@contextmanager
def _aside(path: Path, is_folder: bool) -> Iterator[Path]:
    """A locked new file or folder beside what `path` leads to; what is left of it in the end is removed."""
    try:
        with _held(path.resolve().parent, is_folder) as aside:
            yield aside
    except OSError as error:  # which names what is aside, or nothing where the disk was full
        if error.errno is not None and (error.filename is None or ASIDE.search(str(error.filename))):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def _held(folder: Path, is_folder: bool) -> Iterator[Path]:
    """A locked new file or folder inside another; what is left of it in the end is removed."""
    remove_leftovers(folder)
    aside, lock = _locked(folder, is_folder)
    try:
        yield aside
    finally:
        _remove(aside)
        os.close(lock)


def _locked(folder: Path, is_folder: bool) -> tuple[Path, int]:
    for _ in range(TRIES):
        aside = folder / f".latentsweep-{secrets.token_hex(8)}.tmp"
        if is_folder:
            aside.mkdir()
        else:
            aside.touch(exist_ok=False)
        with suppress(FileNotFoundError):
            lock = os.open(aside, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if aside.exists():
                return aside, lock
            os.close(lock)
    raise FileNotFoundError(f"another process removes what is begun in {folder}")


def _remove_unless_locked(aside: Path) -> None:
    with suppress(OSError):
        lock = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(aside)
        finally:
            os.close(lock)


def _remove(aside: Path) -> None:
    with suppress(OSError):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
