"""A node in a network namespace of its own, whose link is cut in the middle of a study and mended again."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from orchestrator.ray_session import gpu_places
from tests.faults.test_cluster import HEALTH, Trial, only, wait

pytestmark = pytest.mark.faults

HERE, THERE = "10.213.77.1", "10.213.77.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Link:
    """A network namespace that is joined to this one by one cable."""

    namespace: str
    cable: str

    def cut(self) -> None:
        ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        ip("link", "set", self.cable, "up")


@pytest.fixture
def link() -> Iterator[Link]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    found = Link(f"latentsweep{os.getpid()}", f"lsw{os.getpid() % 100_000}")
    far = f"{found.cable}f"
    try:
        try:
            ip("netns", "add", found.namespace)
            ip("link", "add", found.cable, "type", "veth", "peer", "name", far)
            ip("link", "set", far, "netns", found.namespace)
            ip("addr", "add", f"{HERE}/30", "dev", found.cable)
            ip("link", "set", found.cable, "up")
            inside: list[tuple[str, ...]] = [
                ("addr", "add", f"{THERE}/30", "dev", far),
                ("link", "set", far, "up"),
                ("link", "set", "lo", "up"),
            ]
            for words in inside:
                ip("netns", "exec", found.namespace, "ip", *words)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode().strip()}")
        yield found
    finally:
        for kind, name in (("link", found.cable), ("netns", found.namespace)):
            with suppress(subprocess.CalledProcessError):
                ip(kind, "del", name)


def start(folder: Path, name: str, *words: str, inside: str | None = None) -> "subprocess.Popen[bytes]":
    """A Ray node, in a namespace or here, with a home and a temporary folder of its own."""
    home = folder / name
    home.mkdir()
    ray_command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "HOME": str(home)}
    before = ["ip", "netns", "exec", inside] if inside else []
    with (folder / f"{name}.log").open("wb") as log:
        node = subprocess.Popen([*before, *ray_command], stdout=log, stderr=log, env=environment)
    try:
        wait(lambda: b"Ray runtime started" in (folder / f"{name}.log").read_bytes(), f"the node {name}", 60)
    except AssertionError:
        node.terminate()
        node.wait(60)
        raise
    return node


def test_a_node_is_cut_off_and_comes_back(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    nodes = []
    try:
        nodes.append(
            start(
                tmp_path,
                "head",
                "--head",
                f"--port={port}",
                f"--node-ip-address={HERE}",
                "--num-cpus=2",
                "--num-gpus=1",
                "--include-dashboard=false",
                f"--system-config={json.dumps(HEALTH)}",
            )
        )
        there = ("--num-cpus=1", "--num-gpus=1", f"--address={HERE}:{port}", f"--node-ip-address={THERE}")
        nodes.append(start(tmp_path, "far", *there, inside=link.namespace))
        ray.init(address=f"{HERE}:{port}", _node_ip_address=HERE, log_to_driver=False, logging_level="ERROR")
        wait(lambda: gpu_places().now == 2, "both nodes")
        (tmp_path / "study").mkdir()
        trial = Trial(None, tmp_path / "study", seeds=80)

        def meanwhile() -> None:
            trial.wait_for(40)
            wait(lambda: len(trial.workers()) == 2, "both workers")
            time.sleep(1)
            link.cut()
            try:
                wait(lambda: gpu_places().now == 1, "the head to notice")
            finally:
                link.mend()

        notices = trial.run(meanwhile)
        only([line for line in notices if "were lost" not in line], f"{THERE} is gone with its workers")
        trial.check()
    finally:
        ray.shutdown()
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(60)
