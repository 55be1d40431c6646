"""Runs in places that are not as a laptop is: containers, batch systems, homes that nobody may write to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestrator.test_api import STUDY, study_file
from tests.test_namesakes import HERE, PROGRAM

pytestmark = pytest.mark.faults

SMALL = (
    STUDY.replace("guidance_scale: [0.5, 1, 5]", "guidance_scale: [5]").replace("[2, 4]", "[2]")
    + "comet: {mode: offline}\n"
)


def run(path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`latentsweep run` of a study in its folder, with so much of an environment."""
    command = [sys.executable, "-P", "-c", PROGRAM, "run", path.name, "--root", "runs", *options]
    given = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), **environment}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=600, cwd=path.parent, env=given
    )


def test_a_home_that_cannot_be_written_a_long_tmpdir_and_no_utf_8(tmp_path: Path) -> None:
    """As in a container with a random user, and in a job of Slurm's."""
    long = tmp_path / ("slurm_jobdir-" + "1" * 60)
    long.mkdir()
    place = {"HOME": "/proc/nowhere", "TMPDIR": str(long), "PYTHONIOENCODING": "ascii"}
    ended = run(study_file(tmp_path, SMALL), "--workers", "1", **place)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"TMPDIR {long}: a socket's path there has" in ended.stdout
    assert "clip_score" in ended.stdout
    assert ended.stdout.isascii()
    assert "0 failed" in ended.stdout


def test_modules_that_bear_our_names_and_the_standard_librarys(tmp_path: Path) -> None:
    """Ours are found by the program, by Ray's workers and by the child with Comet's SDK."""
    for name in ("orchestrator", "workers", "search_spaces", "random", "queue"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('mine')")
    (tmp_path / "named").mkdir()
    for name in ("orchestrator", "workers", "search_spaces"):
        (tmp_path / "named" / f"{name}.py").write_text("raise RuntimeError('mine')")
    ended = run(study_file(tmp_path, SMALL), "--workers", "1", PYTHONPATH=f"{tmp_path / 'named'}:{HERE}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "0 failed" in ended.stdout
    assert "Comet archive" in ended.stdout or "comet upload" in ended.stdout
