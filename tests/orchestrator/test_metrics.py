"""A run's figures: what they say is what happened, and only this machine can read them."""

import http.client
import math
import socket
import urllib.request
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.catalog.memory import MemoryCatalog
from orchestrator.metrics import MeasuredCatalog, MeasuredPool, MeasuredTracker, Metrics
from orchestrator.pool import InProcessPool
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import RecordingTracker
from search_spaces.errors import InputError
from search_spaces.requests import Failed
from tests.orchestrator.studies import fake_worker, grid, requests_of, small_study


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def figures(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url) as answer:  # our own server
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.partition("{")[0].removeprefix("latentsweep_"): float(value) for name, value in pairs}


def test_a_runs_figures_are_what_it_did() -> None:
    study = small_study()
    lost = requests_of(study)[0].image_id
    pool = InProcessPool(fake_worker(fails={lost: Failed("lost", "a machine died")}), 4)
    catalog, tracker = MemoryCatalog(), RecordingTracker()
    seen: list[dict[str, float]] = []
    with Metrics(study.name, free_port()) as metrics:
        begun = figures(metrics.url)

        def watch(progress: Progress) -> None:
            metrics.progress(progress)
            seen.append(figures(metrics.url))

        progress = sweep(
            study,
            grid(study),
            MeasuredPool(pool, metrics),
            MeasuredCatalog(catalog, metrics),
            MeasuredTracker(tracker, metrics),
            total=15,
            watch=watch,
        )
        ended = figures(metrics.url)
    assert math.isnan(begun["images"]), "nothing is known yet"
    assert math.isnan(begun["best_score"])
    assert ended["images"] == progress.images == 15
    assert ended["images_planned"] == 15
    assert ended["images_generated"] == progress.generated == 14
    assert (ended["images_lost"], ended["images_infeasible"]) == (1, 0)
    assert ended["best_score"] == progress.best_score
    assert ended["tracker_images_total"] == len(tracker.told_images) == 14
    for name in ("requests_busy", "requests_queued", "catalog_lag_images", "tracker_lag_images"):
        assert ended[name] == 0, name
    assert ended["catalog_write_seconds_total"] > 0
    assert max(each["requests_busy"] for each in seen) > 0
    assert max(each["catalog_lag_images"] for each in seen) > 0


def test_the_figures_are_for_this_machine_alone() -> None:
    port = free_port()
    with Metrics("small", port) as metrics:
        assert metrics.url == f"http://127.0.0.1:{port}/metrics"
        listening = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()
        places = [line.split()[1] for line in listening if line.split()[3] == "0A"]
        assert [place for place in places if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    with pytest.raises(OSError, match="refused"):
        figures(metrics.url)


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/metrics", "127.0.0.1:{port}", 200),
        ("GET", "/metrics", "localhost", 200),
        ("GET", "/metrics", "LOCALHOST:19464", 200),  # as through a tunnel
        ("GET", "/metrics?name[]=latentsweep_images", "[::1]:{port}", 200),
        ("GET", "/metrics", "evil.example:{port}", 403),
        ("GET", "/metrics", "localhost.evil.example", 403),
        ("GET", "/metrics", "127.0.0.1.evil.example:{port}", 403),
        ("GET", "/metrics", "", 403),
        ("GET", "/", "127.0.0.1:{port}", 404),
        ("GET", "/favicon.ico", "127.0.0.1:{port}", 404),
        ("GET", "/metrics/../x", "127.0.0.1:{port}", 404),
        ("POST", "/metrics", "127.0.0.1:{port}", 405),
    ],
)
def test_only_figures_and_only_for_this_machine_by_its_name(
    method: str, path: str, host: str, status: int
) -> None:
    """A web page in a browser here may make its own name mean 127.0.0.1."""
    port = free_port()
    with Metrics("a-secret-study", port):
        asked = http.client.HTTPConnection("127.0.0.1", port)
        asked.request(method, path, headers={"Host": host.format(port=port)})
        answer = asked.getresponse()
        said = answer.read().decode()
        asked.close()
    assert answer.status == status
    assert ("a-secret-study" in said) == (status == 200)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_said(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        InputError, match=rf"^--metrics: {port} is not a port, a whole number from 1 to 65535$"
    ):
        Metrics("small", port)
    for command in ("run", "submit"):
        with pytest.raises(SystemExit, match="2"):
            cli.main([command, "study.yaml", f"--metrics={port}"])
        assert f"--metrics: '{port}' is not a port" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            pytest.raises(InputError, match=rf"--metrics: port {port} .* cannot be had"),
            Metrics("small", port),
        ):
            pass
