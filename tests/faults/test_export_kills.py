"""SIGKILL for `export` at random moments: nothing half-made bears the name, and the same command makes it whole.

`python -m tests.faults.test_export_kills KILLS` counts what so many kills of each format leave.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.exports import FORMATS
from tests.orchestrator.studies import small_study
from tests.orchestrator.test_tools import run

pytestmark = pytest.mark.faults

SEEDS = 100
"""500 pictures."""


def command(to: str, place: Path, root: Path) -> list[str]:
    arguments = ["export", "killed", "--to", to, str(place), "--root", str(root)]
    return [sys.executable, "-m", "orchestrator.cli", *arguments]


def content(place: Path) -> dict[str, bytes]:
    """Every file of a place, by its path there."""
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def begin(to: str, place: Path, root: Path) -> "subprocess.Popen[bytes]":
    """An export that has begun to write."""
    process = subprocess.Popen(command(to, place, root), stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(place.parent.iterdir()):
        time.sleep(0.001)
    return process


def killed(to: str, kills: int, folder: Path) -> Counter[str]:
    """What became of so many killed exports, each in an empty folder, and of the same command after each."""
    chance, root = random.Random(16), folder / "runs"
    if not root.exists():
        run(root, small_study("killed", seeds=SEEDS))
    whole = folder / f"whole-{to}" / "out"
    whole.parent.mkdir()
    process, begun = begin(to, whole, root), time.monotonic()
    process.wait()
    seconds = time.monotonic() - begun
    counted: Counter[str] = Counter()
    for _ in range(kills):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            place = Path(name) / "out"
            process = begin(to, place, root)
            time.sleep(chance.uniform(0.0, 1.0) * seconds)
            counted["killed"] += process.poll() is None
            process.kill()
            process.wait()
            counted["there"] += place.exists()
            counted["half there"] += place.exists() and content(place) != content(whole)
            counted["left aside"] += any(Path(name).glob(".*"))
            again = subprocess.run(command(to, place, root), check=False, capture_output=True)
            counted["refused"] += again.returncode != 0
            counted["not whole after"] += content(place) != content(whole)
            counted["litter after"] += len(list(Path(name).iterdir())) > 1
    return counted


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_a_killed_export_is_made_whole_by_the_same_command(to: str, tmp_path: Path) -> None:
    counted = killed(to, 12, tmp_path)
    assert counted["killed"] > 0, "the kills fell into the export"
    bad = ("half there", "refused", "not whole after", "litter after")
    assert {name: counted[name] for name in bad} == dict.fromkeys(bad, 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for each in sorted(FORMATS):
            print(each, dict(killed(each, int(sys.argv[1]), Path(scratch))), flush=True)
