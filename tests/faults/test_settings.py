"""Runs in places that are not as a laptop is: containers, batch systems, homes that nobody may write to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestrator.test_api import STUDY, study_file

pytestmark = pytest.mark.faults

SMALL = (
    STUDY.replace("guidance_scale: [0.5, 1, 5]", "guidance_scale: [5]").replace("[2, 4]", "[2]")
    + "comet: {mode: off}\n"
)


def run(path: Path, environment: dict[str, str], *before: str) -> subprocess.CompletedProcess[str]:
    """`latentsweep run` of a study, with so much of an environment."""
    command = [*before, sys.executable, "-m", "orchestrator.start", "run", str(path), "--workers", "1"]
    return subprocess.run(
        [*command, "--root", str(path.parent / "runs")],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment},
    )


def test_a_home_that_cannot_be_written_and_a_long_tmpdir(tmp_path: Path) -> None:
    """As in a container with a random user, and in a job of Slurm's."""
    long = tmp_path / ("slurm_jobdir-" + "1" * 60)
    long.mkdir()
    ended = run(study_file(tmp_path, SMALL), {"HOME": "/proc/nowhere", "TMPDIR": str(long)})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"TMPDIR {long}: a socket's path there has" in ended.stdout
    assert "0 failed" in ended.stdout
