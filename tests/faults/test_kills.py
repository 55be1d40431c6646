"""SIGKILL for the driver, which writes the catalog, for actors, and for all, at random moments of one study."""

import hashlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pytest
from PIL import Image

from orchestrator.catalog.parquet import past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import check, compact
from orchestrator.dealing import CALLS_AHEAD
from search_spaces.requests import Scored
from tests.faults.killed_run import BATCH, WORKERS, study
from tests.orchestrator.studies import requests_of

pytestmark = pytest.mark.faults

SEEDS = 600
SESSIONS = 6
ACTOR_KILLS = 4
"""In each session, before the driver itself is killed: 30 kills in all."""


def made(root: Path) -> list[tuple[int, str]]:
    """Process and image_id of everything that was drawn, in order."""
    log = root / "made.log"
    lines = log.read_text(encoding="ascii").splitlines() if log.exists() else []
    return [(int(pid), image_id) for pid, image_id in (line.split() for line in lines)]


def more_than(root: Path, count: int) -> bool:
    return len(made(root)) > count


def durable(root: Path) -> set[str]:
    return set(Tables(root).read("images", ["image_id"])["image_id"].to_pylist())


def is_an_actor(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def wait_for(
    condition: Callable[[], object], what: str, driver: "subprocess.Popen[bytes]", seconds: float = 180
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        assert driver.poll() is None, f"the driver ended by itself before {what}"
        time.sleep(0.02)


def actors(root: Path) -> list[int]:
    return [pid for pid in dict.fromkeys(pid for pid, _ in made(root)[-60:]) if is_an_actor(pid)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray head of its own, which outlives the drivers; what a driver's environment needs to find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    options = ["--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--include-dashboard=false"]
    starting = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=starting)
    try:
        while b"Ray runtime started" not in (tmp_path / "head.log").read_bytes():
            assert head.poll() is None, (tmp_path / "head.log").read_text(encoding="utf-8")
            time.sleep(0.1)
        yield environment
    finally:
        head.terminate()
        head.wait(60)


def start(root: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.faults.killed_run", str(root), str(SEEDS)]
    with (root / "driver.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def test_thirty_kills_lose_nothing_and_make_nothing_twice(tmp_path: Path, cluster: dict[str, str]) -> None:
    chance = random.Random(6)
    requests = {request.image_id: request for request in requests_of(study(SEEDS))}
    kills, in_flight = 0, 0
    numbers: dict[int, object] = {}
    was_durable: list[
        tuple[int, set[str]]
    ] = []  # how much had been drawn, and what was durable, at a driver's death
    for session in range(SESSIONS):
        before = len(made(tmp_path))
        driver = start(tmp_path, cluster)
        wait_for(partial(more_than, tmp_path, before), "its first image", driver)
        for _ in range(ACTOR_KILLS):
            time.sleep(chance.uniform(0.2, 1.5))
            wait_for(partial(actors, tmp_path), "a living actor", driver)
            os.kill(chance.choice(actors(tmp_path)), signal.SIGKILL)
            kills, in_flight = kills + 1, in_flight + CALLS_AHEAD * BATCH
            goal = len(made(tmp_path)) + 2 * BATCH
            wait_for(partial(more_than, tmp_path, goal), "work after a death", driver)
        time.sleep(chance.uniform(0.0, 1.0))
        everyone = actors(tmp_path) if session % 2 else []
        for pid in [driver.pid, *everyone]:
            os.kill(pid, signal.SIGKILL)
        driver.wait(60)
        kills += 1
        last = time.monotonic() + 60
        while any(map(is_an_actor, {pid for pid, _ in made(tmp_path)[before:]})):
            assert time.monotonic() < last, "an actor outlives its driver"
            time.sleep(0.05)
        there, drawn = durable(tmp_path), made(tmp_path)
        was_durable.append((len(drawn), there))
        in_flight += len({image_id for _, image_id in drawn} - there)
        for trial in past_trials(Tables(tmp_path), "killed"):
            assert numbers.setdefault(trial.number, trial.settings) == trial.settings
        if session == SESSIONS // 2:
            compact(Tables(tmp_path))
    assert kills >= 30
    assert 0 < len(durable(tmp_path)) < len(requests), "the kills fell into the study"

    assert start(tmp_path, cluster).wait(400) == 0

    tables = Tables(tmp_path)
    ids = tables.read("images", ["image_id"])["image_id"].to_pylist()
    assert sorted(set(ids)) == sorted(requests)
    pictures = dict(tables.pictures(set(requests)))
    hashes = {
        row["image_id"]: row["sha256"] for row in tables.read("images", ["image_id", "sha256"]).to_pylist()
    }
    for image_id, picture in pictures.items():
        assert hashlib.sha256(picture).hexdigest() == hashes[image_id]
        assert Image.open(io.BytesIO(picture)).getpixel((0, 0)) == tuple(bytes.fromhex(image_id[:6]))
    assert pictures.keys() == requests.keys()
    past = past_trials(tables, "killed")
    assert [trial.number for trial in past] == list(range(5))
    assert {trial.number: trial.settings for trial in past} == {
        **numbers,
        **{t.number: t.settings for t in past},
    }
    for trial in past:
        assert sorted(trial.outcomes) == list(range(SEEDS))
        assert all(isinstance(outcome, Scored) for outcome in trial.outcomes.values())
    order = [image_id for _, image_id in made(tmp_path)]
    assert len(order) <= len(requests) + in_flight
    for count, there in was_durable:
        assert not there & set(order[count:]), "what was durable is not drawn again"
    assert in_flight <= kills * (CALLS_AHEAD * BATCH * WORKERS + 64), "and that is not much"
    assert check(tables).is_well
    assert pc.sum(tables.read("images", ["file_bytes"])["file_bytes"]).as_py() > 0
