"""A folder that may only be read, for root too, who runs some of these tests."""

import os
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
