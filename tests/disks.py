"""Disks that may only be read, for root too, who runs some of these tests, and disks that are soon full."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write away from a folder and all in it; of root by mounting it over itself."""
    folder = folder.absolute()
    if os.geteuid():
        places = [folder, *folder.rglob("*")]
        before = {place: place.stat().st_mode for place in places}
        for place, mode in before.items():
            place.chmod(mode & ~0o222)
        try:
            yield
        finally:
            for place, mode in before.items():
                place.chmod(mode)
        return
    mounted = subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("this root may not mount")
    here = Path.cwd()
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        os.chdir(here)  # who works in the folder is still in the one below
        yield
    finally:
        os.chdir("/")
        subprocess.run(["umount", folder], check=True)
        os.chdir(here)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Make a folder a disk of its own, of so many KiB."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("who runs this may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, leave: int) -> None:
    """Fill the disk that a folder lies on but for so many bytes."""
    room = shutil.disk_usage(folder).free - leave
    with (folder / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room)
