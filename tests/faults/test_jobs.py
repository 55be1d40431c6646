"""A real Ray head with token and job server on loopback: studies are submitted, stopped, fetched, and run there.

The `laptop` has a home and a working folder of its own, and shares nothing with the head but the token.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pytest

from orchestrator.catalog.tables import Tables

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef0123456789"
SECRET = "a-comet-key-that-stays-at-home"
LONG_SEEDS = 240  # of two settings each: so many that no machine is through before it is stopped

STUDY = """\
study: NAME
model: toyworld
inputs:
  - {image: photos/cat.png, mask: photos/cat-mask.png, prompt: a realistic green dragon}
seeds: SEEDS
settings: {scheduler: DDIMScheduler, num_inference_steps: STEPS}
space: {guidance_scale: [3, 7.5]}
comet: {mode: "off"}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class Cluster:
    """A head, and a laptop from which it is used."""

    head_home: Path
    laptop: Path
    temporary: Path
    gcs: str
    jobs: str

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"HOME": str(home), "PATH": path, "RAY_TMPDIR": str(self.temporary), "NO_PROXY": "127.0.0.1"}
        return {**kept, **ours, **more}

    def start(self, *words: str, **more: str) -> "subprocess.Popen[str]":
        """A command on the laptop."""
        ours = {"PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": TOKEN, "COMET_API_KEY": SECRET}
        environment = self.environment(self.laptop, **{**ours, **more})
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *words],
            cwd=self.laptop,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **more: str) -> tuple[int, str, str]:
        """A command on the laptop, to its end: exit code, output, complaints."""
        command = self.start(*words, **more)
        out, err = command.communicate(timeout=300)
        return command.returncode, out, err

    def study(self, name: str, seeds: int, steps: int = 3) -> str:
        """A study file on the laptop."""
        text = STUDY.replace("NAME", name).replace("SEEDS", str(seeds)).replace("STEPS", str(steps))
        (self.laptop / f"{name}.yaml").write_text(text)
        return f"{name}.yaml"

    @property
    def at(self) -> tuple[str, str]:
        return ("--address", self.jobs)

    def catalog(self) -> Tables:
        """The head's."""
        return Tables(self.head_home / "runs")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head as `cluster.yaml` starts one, but for the ports, and CPUs in place of GPUs."""
    base = Path(
        tempfile.mkdtemp(prefix="ls-", dir="/tmp")
    )  # short: sockets' paths have 107 characters at most
    gcs, jobs, agent = free_ports(3)
    made = Cluster(base / "head", base / "laptop", base / "r", f"127.0.0.1:{gcs}", f"http://127.0.0.1:{jobs}")
    for folder in (made.head_home / ".ray", made.laptop / "photos", made.temporary):
        folder.mkdir(parents=True)
    (made.head_home / ".ray" / "auth_token").write_text(TOKEN)
    for name in ("cat.png", "cat-mask.png"):
        shutil.copy(ROOT / "studies" / name, made.laptop / "photos")
    options = ["--head", "--block", f"--port={gcs}", f"--dashboard-port={jobs}", "--num-cpus=2"]
    options.append(f"--dashboard-agent-listen-port={agent}")  # its default is taken where another Ray runs
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--dashboard-host=127.0.0.1"]
    environment = made.environment(made.head_home, RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0")
    log = (base / "head.log").open("w")
    head = subprocess.Popen(command, cwd=made.head_home, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while "no job server answers" in made.run("attach", "nobody", *made.at)[2]:
            assert head.poll() is None, (base / "head.log").read_text()
            assert time.monotonic() < deadline, "the job server did not come up"
        yield made
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        log.close()
        shutil.rmtree(base, ignore_errors=True)


def test_a_study_is_submitted_watched_and_fetched(cluster: Cluster) -> None:
    code, out, err = cluster.run("submit", cluster.study("small", 2), *cluster.at, "--workers", "1")
    assert (code, err) == (0, ""), out
    assert "images: 4 generated, 0 reused" in out, "two settings on two seeds"
    assert "best:" in out
    assert not (cluster.laptop / "runs").exists()
    code, out, err = cluster.run("fetch", "small", *cluster.at)
    assert (code, err) == (0, "")
    assert "4 new images" in out
    code, out, err = cluster.run("report", "small")
    assert (code, err) == (0, "")
    assert "all judged on all 2 instances" in out
    assert (cluster.laptop / "runs/studies/small/contact-sheet.png").is_file()
    assert cluster.run("catalog", "check")[0] == 0
    code, out, err = cluster.run("fetch", "small", *cluster.at)
    assert "0 new images" in out, "it was there already"


def test_nothing_of_the_laptop_goes_along(cluster: Cluster) -> None:
    code, _, _ = cluster.run("submit", cluster.study("discreet", 1), *cluster.at, "--workers", "1")
    assert code == 0
    everything = [path for path in cluster.temporary.rglob("*") if path.is_file()]
    everything += [path for path in cluster.head_home.rglob("*") if path.is_file()]
    assert len(everything) > 100
    assert not [path for path in everything if SECRET.encode() in path.read_bytes()]


def test_a_stop_is_graceful_and_the_same_submit_goes_on(cluster: Cluster) -> None:
    study = cluster.study("long", LONG_SEEDS, steps=50)
    code, out, err = cluster.run("submit", study, *cluster.at, "--workers", "1", "--detach")
    assert code == 0, err
    job = re.search(r"latentsweep-long-[0-9a-f]+", out)
    assert job is not None
    watching = cluster.start("attach", "long", *cluster.at)
    assert watching.stdout is not None
    for line in watching.stdout:
        if re.match(rf"[1-9][0-9]*/{2 * LONG_SEEDS} images", line):
            break
    code, _, err = cluster.run("submit", study, *cluster.at)
    assert code == 2
    assert f"long is being run as job {job[0]}" in err
    code, out, _ = cluster.run("stop", "long", *cluster.at)
    assert (code, "what ran was finished and kept" in out) == (0, True)
    rest, _ = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "stopped: the same command goes on where it was" in rest, "the run ended by itself, not by SIGKILL"
    made = cluster.catalog().read("images", ["image_id"])["image_id"]
    kept = re.search(r"images: (\d+) generated", rest)
    assert kept is not None
    assert 0 < int(kept[1]) < 2 * LONG_SEEDS
    cluster.study("long", LONG_SEEDS, steps=50)
    code, _, _ = cluster.run("submit", study, *cluster.at, "--workers", "1", "--detach")
    assert code == 0
    time.sleep(1)
    watching = cluster.start("attach", "long", *cluster.at)
    assert watching.stdout is not None
    for line in watching.stdout:
        found = re.match(rf"([0-9]+)/{2 * LONG_SEEDS} images", line)
        if found and int(found[1]) > int(kept[1]):
            break
    watching.send_signal(signal.SIGINT)
    rest, _ = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "goes on: as job" in rest, "Ctrl-C ends the showing alone"
    code, out, _ = cluster.run("stop", "long", "--now", *cluster.at)
    assert code == 0
    again = cluster.catalog().read("images", ["image_id"])["image_id"]
    assert len(again) > len(made)
    assert len(pc.unique(again)) == len(again), "no image was made twice"


def test_the_heads_own_complaints_arrive_as_one_sentence(cluster: Cluster) -> None:
    path = cluster.laptop / cluster.study("wrong", 1)
    path.write_text(path.read_text().replace("guidance_scale", "guidence_scale"))
    code, out, _ = cluster.run("submit", path.name, *cluster.at)
    assert code == 2
    assert "did you mean 'guidance_scale'" in out
    assert "Traceback" not in out
    code, _, err = cluster.run("fetch", "nobody", *cluster.at)
    assert code == 2
    assert err.count("\n") == 1
    assert "there is no study 'nobody' under" in err


def test_a_run_on_the_head_itself(cluster: Cluster) -> None:
    for place in (cluster.gcs, "auto"):
        code, out, err = cluster.run(
            "run",
            cluster.study("on-the-head", 1),
            "--address",
            place,
            "--workers",
            "1",
            "--root",
            "head-runs",
        )
        assert (code, err) == (0, ""), out
    assert "was finished before" in out
    words = ["score", "on-the-head", "--text", "a cat", "--root", "head-runs", "--address", cluster.gcs]
    code, out, err = cluster.run(*words)
    assert (code, err) == (0, ""), out


def test_a_root_that_the_head_cannot_read_is_said(cluster: Cluster) -> None:
    code, _, err = cluster.run("fetch", "small", *cluster.at, "--root", "s3://me:key@bucket/x")
    assert (code, err.count("\n")) == (2, 1)
    assert "a root holds no credentials" in err


@pytest.mark.parametrize("place", ["gcs", "jobs"])
def test_tokens_that_are_wrong_or_missing_are_told_at_once(cluster: Cluster, place: str) -> None:
    study = cluster.study("token", 1)
    address = cluster.gcs if place == "gcs" else cluster.jobs
    words = ["run" if place == "gcs" else "submit", study, "--address", address]
    code, _, err = cluster.run(*words, RAY_AUTH_TOKEN="f" * 40)
    assert (code, err.count("\n")) == (2, 1)
    assert "does not know the token of this machine" in err
    code, _, err = cluster.run(*words, RAY_AUTH_TOKEN="")
    assert (code, err.count("\n")) == (2, 1)
    assert "asks for a token and there is none on this machine" in err


def test_only_loopback_serves_dashboard_and_jobs(cluster: Cluster) -> None:
    port = int(cluster.jobs.rpartition(":")[2])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
    places = [line[1] for line in listening if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert places == [f"0100007F:{port:04X}"]


def test_a_float16_study_needs_a_gpu(cluster: Cluster) -> None:
    path = cluster.laptop / cluster.study("half", 1)
    path.write_text(path.read_text() + "dtype: float16\n")
    code, _, err = cluster.run("run", path.name, "--address", cluster.gcs)
    assert (code, err.count("\n")) == (2, 1)
    assert "dtype: float16" in err
    assert "needs a GPU and the cluster at" in err
