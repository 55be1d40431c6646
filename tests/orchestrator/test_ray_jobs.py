"""A job server is looked at before anything is sent to it; what is wrong with it is one sentence."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # its stub lacks it

from orchestrator import cli, ray_jobs
from orchestrator.ray_jobs import _OF_RAY, Job, JobServer, checked_root
from search_spaces.errors import InputError

TOKEN = "a-token-of-more-than-thirty-two-characters"


class Server:
    """Answers as a Ray 2.60 job server does, as far as it is asked before anything is sent."""

    def __init__(self) -> None:
        self.token: str | None = TOKEN
        self.version: object = {"version": "4", "ray_version": ray.__version__}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name is http.server's
                server.asked.append(self.path)
                shown = self.headers.get("Authorization")
                if server.token is not None and shown != f"Bearer {server.token}":
                    self.send_response(401 if shown is None else 403)
                    self.end_headers()
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps([] if "jobs" in self.path else server.version).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A job server, and a machine without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()
    AuthenticationTokenLoader.instance().reset_cache()


def refused(server: Any, insecure: bool = False) -> str:
    with pytest.raises(InputError) as error:
        JobServer(server.address, insecure)
    sentence = str(error.value)
    assert sentence.startswith(f"--address {server.address}: ")
    assert "\n" not in sentence
    return sentence


def test_our_token_is_shown_in_a_header(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # which Ray would put before what was asked for
    assert JobServer(server.address + "/").jobs("any") == []


def test_a_missing_token_is_said(server: Server) -> None:
    assert "asks for a token and there is none on this machine" in refused(server)


def test_a_wrong_token_is_said_and_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another" + TOKEN)
    sentence = refused(server)
    assert "does not know the token of this machine" in sentence
    assert TOKEN not in sentence


def test_a_server_that_asks_for_no_token_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = None
    assert "asks nobody for a token: whoever" in refused(server)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert "this machine's token is not asked for" in refused(server)
    assert JobServer(server.address, insecure=True).jobs("any") == []


def test_another_version_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    server.version = {"ray_version": "2.54.0"}
    assert f"the cluster runs Ray 2.54.0 and this machine {ray.__version__}" in refused(server)


@pytest.mark.parametrize("version", [{}, [], "hello"])
def test_what_is_no_job_server_is_said(server: Server, version: object) -> None:
    server.token, server.version = None, version
    assert "it is no Ray job server" in refused(server)


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://127.0.0.1:10001", "auto"])
def test_a_heads_address_is_not_a_job_servers(address: str) -> None:
    with pytest.raises(InputError, match=r"begins with http://"):
        JobServer(address)


@pytest.mark.parametrize(
    "command", [["submit", "study.yaml"], ["attach", "s"], ["stop", "s"], ["fetch", "s"]]
)
def test_where_nothing_listens_is_said(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--address", "http://127.0.0.1:1"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(
        "latentsweep: --address http://127.0.0.1:1: no job server answers there; `ray dashboard"
    )
    assert (err.count("\n"), out) == (1, "")


@pytest.mark.parametrize("command", [["attach", "nobody"], ["stop", "nobody"]])
def test_a_study_that_no_job_ran_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert cli.main([*command, "--address", server.address]) == 2
    assert "no job there ran a study 'nobody'" in capsys.readouterr().err


def test_a_name_that_is_none_is_refused_before_a_job_is_started(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(InputError, match="not the name of a study"):
        JobServer(server.address).fetch("../../etc", None, "runs")


@pytest.mark.parametrize(
    ("root", "into", "expected"),
    [
        ("s3://bucket/x", None, "s3://bucket/x"),
        ("s3://bucket/x", "here", "here"),
        ("~/runs", None, "runs"),
        ("file:///data", None, "runs"),
    ],
)
def test_results_of_a_store_are_fetched_to_where_that_store_is_read(
    server: Server, monkeypatch: pytest.MonkeyPatch, root: str, into: str | None, expected: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    made = JobServer(server.address)
    monkeypatch.setattr(made, "_start", lambda *_: None)
    monkeypatch.setattr(made, "_forget", lambda *_: None)
    monkeypatch.setattr(made, "_lines", lambda _: (str(line) for line in range(0)))
    monkeypatch.setattr(made, "jobs", lambda _: [])
    monkeypatch.setattr(ray_jobs, "read_parcel", lambda *_: [])
    monkeypatch.setattr(ray_jobs, "unpack", lambda _, study, where: (Path(where) / study, 3))
    assert made.fetch("small", root, into) == (Path(expected) / "small", 3, expected)


def test_a_job_whose_driver_was_killed_is_a_sentence(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    killed = Job("latentsweep-small-1", "small", "~/runs", "FAILED", -9, None, None, 0)
    monkeypatch.setattr(JobServer, "newest", lambda *_: killed)
    monkeypatch.setattr(JobServer, "follow", lambda _, job, __: job)
    assert cli.main(["attach", "small", "--address", server.address]) == 2
    assert "latentsweep-small-1 was killed by signal 9 on the cluster's head" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["runs", "./runs", "../runs", "~other/runs"])
def test_a_root_in_a_jobs_own_folder_is_refused(root: str) -> None:
    with pytest.raises(InputError, match="a job's own folder is thrown away"):
        checked_root(root)


def test_roots_that_last(capsys: pytest.CaptureFixture[str]) -> None:
    given = [None, "/data/runs/", "~/sweeps", "s3://bucket/prefix"]
    assert [checked_root(root) for root in given] == [
        "~/runs",
        "/data/runs",
        "~/sweeps",
        "s3://bucket/prefix",
    ]


def test_what_ray_says_of_a_job_is_left_out() -> None:
    log = (
        "2026-11-24 23:34:01,123\tINFO job_manager.py:568 -- Runtime env is setting up.\n"
        "Running entrypoint for job latentsweep-s-1: exec python3 -m orchestrator.on_cluster run\n"
        "4/10 images\n"
    )
    assert _OF_RAY.sub("", log) == "4/10 images\n"
