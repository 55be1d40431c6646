"""Connecting to Ray: what is wrong with an address is one sentence, found without Ray, which tries for minutes."""

import json
import os
import platform
import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
import yaml
from ray._private import services
from ray._private import utils as ray_utils
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # its stub lacks it
from ray.core.generated.gcs_service_pb2 import InternalKVGetReply, InternalKVGetRequest

from orchestrator import ray_session as ray_session_module
from orchestrator.machine import Machine
from orchestrator.ray_session import gpus_to_grow_to, machines, ray_session
from orchestrator.stopping import ENDING, requests_to_stop
from search_spaces.errors import InputError

TOKEN = "a-token-of-more-than-thirty-two-characters"
OURS = {"ray_version": ray.__version__, "python_version": platform.python_version()}


class Head(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc is untyped
    """Answers the one question that a Ray head is asked before Ray connects, as Ray 2.60's does."""

    def __init__(self) -> None:
        self.token: str | None = TOKEN
        self.versions = dict(OURS)

    def service(self, details: Any) -> Any:
        """The handler of a call."""
        if details.method != "/ray.rpc.InternalKVGcsService/InternalKVGet":
            return None
        shown = dict(details.invocation_metadata).get("authorization")

        def answer(request: InternalKVGetRequest, context: grpc.ServicerContext) -> InternalKVGetReply:
            if self.token is not None and shown != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            assert (request.namespace, request.key) == (b"cluster", b"CLUSTER_METADATA")
            return InternalKVGetReply(value=json.dumps(self.versions).encode())

        return grpc.unary_unary_rpc_method_handler(
            answer, InternalKVGetRequest.FromString, InternalKVGetReply.SerializeToString
        )


@pytest.fixture
def head() -> Iterator[Head]:
    """A head on loopback, at `address`."""
    made, server = Head(), grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((made,))
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield made
    server.stop(None).wait()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, object]]:
    """What `ray.init` was asked, and in which authentication mode; this machine has no token and no cluster."""
    found: dict[str, object] = {}

    def init(**options: object) -> None:
        found.update(
            options, mode=os.environ.get("RAY_AUTH_MODE"), token=os.environ.get("RAY_AUTH_TOKEN", "")
        )

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    yield found
    AuthenticationTokenLoader.instance().reset_cache()  # Ray keeps a token that it has once read


def refused(address: str, insecure: bool = False) -> str:
    with pytest.raises(InputError) as error, ray_session(address, insecure):
        pass
    sentence = str(error.value)
    assert sentence.startswith(f"--address {address}: ")
    assert "\n" not in sentence
    return sentence


def connect(address: str, insecure: bool = False) -> None:
    with ray_session(address, insecure):
        pass


def test_a_cluster_with_our_token_is_connected_to_with_it(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    connect(head.address)
    assert asked["address"] == head.address
    assert asked["mode"] == "token"
    assert "RAY_AUTH_MODE" not in os.environ


def test_the_token_is_found_in_its_file(head: Any, asked: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    connect(head.address)
    assert asked["mode"] == "token"


def test_a_missing_token_is_said(head: Any, asked: dict[str, object]) -> None:
    assert "asks for a token and there is none on this machine" in refused(head.address)
    assert not asked


def test_a_wrong_token_is_said_and_not_shown(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another" + TOKEN)
    sentence = refused(head.address)
    assert "does not know the token of this machine" in sentence
    assert TOKEN not in sentence
    assert not asked


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_cluster_that_asks_for_no_token_is_refused(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    head.token = None
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
    sentence = refused(head.address)
    assert "asks nobody for a token" in sentence
    assert "--insecure" in sentence
    assert ("this machine's token is not asked for" in sentence) == (token is not None)
    assert not asked
    connect(head.address, insecure=True)
    assert asked["mode"] == "disabled", "a token where none is asked for ends Ray's connection"
    assert os.environ.get("RAY_AUTH_MODE") == ("token" if token else None)


def test_who_has_turned_authentication_off_knows(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    head.token = None
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    connect(head.address)
    assert asked["address"] == head.address


@pytest.mark.parametrize(
    ("key", "name", "other"), [("ray_version", "Ray", "2.54.0"), ("python_version", "Python", "3.12.1")]
)
def test_other_versions_are_named(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch, key: str, name: str, other: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    head.versions[key] = other
    sentence = refused(head.address)
    assert f"the cluster runs {name} {other} and this process {OURS[key]}" in sentence
    assert not asked


def test_another_patch_of_python_is_ours_where_ray_says_so(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    head.versions["python_version"] = OURS["python_version"].rpartition(".")[0] + ".99"
    assert "Python" in refused(head.address)
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    connect(head.address)
    assert asked


def test_what_is_no_ray_head_is_said(asked: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session_module, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        sentence = refused(address)
    assert "it is no Ray head" in sentence
    assert "`latentsweep submit`" in sentence
    assert not asked


def test_an_address_file_of_a_dead_cluster_is_said(
    asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: "127.0.0.1:1")
    sentence = refused("auto")
    assert re.search(r"nothing listens at [0-9.]+:1, where this machine's last cluster was", sentence)
    assert not asked


def test_a_machine_without_any_cluster_is_said(
    asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    assert "no Ray cluster answers there" in refused("auto")
    assert not asked


def test_what_ray_itself_refuses_is_a_sentence(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Could not connect\nmore lines")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert refused(head.address).endswith("no Ray cluster answers there (Could not connect)")


def test_without_an_address_a_local_instance_is_asked_for_by_name(
    head: Any, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address file that a killed cluster leaves behind is followed by any other way of asking."""
    with ray_session(None):
        assert asked["address"] == "local"
        assert asked["include_dashboard"] is False
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with ray_session(None):
        assert asked["address"] == head.address


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "no-such-host.invalid:6379"]
)
def test_an_address_where_nothing_listens_is_told_without_asking_ray(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=r"^RAY_ADDRESS .*: nothing listens there"), ray_session(None):
        pass
    assert not asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "head:port", "head:70000", "http://127.0.0.1:8265", "https://head", ":6379", "head:"],
)
def test_what_is_no_heads_address_is_told_with_what_is_one(asked: dict[str, object], address: str) -> None:
    sentence = refused(address)
    assert "a Ray head's address is HOST:PORT, such as 10.0.0.1:6379, or auto" in sentence
    assert ("`latentsweep submit`" in sentence) == ("://" in address)
    assert not asked


def test_a_cluster_without_anything_to_work_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"memory": 8e9, "node:10.0.0.1": 1.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "memory": 8e9}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(InputError, match=r"^the cluster has neither GPU nor CPU for workers; add a machine"):
        machines()
    nodes.append({"Alive": True, "Resources": {"CPU": 4.0, "memory": 16e9}})
    assert machines() == [Machine(4, 16_000_000_000)]


@pytest.mark.usefixtures("local_ray")
def test_the_session_is_shared_and_left_open() -> None:
    with ray_session(None):
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_an_instance_of_our_own_has_nothing_in_the_home_or_open_to_others(
    asked: dict[str, object], tmp_path: Path
) -> None:
    with ray_session(None):
        folder = Path(str(asked["_temp_dir"])).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert asked["mode"] == "token"
        assert len(str(asked["token"])) == 64
    assert not folder.exists()
    assert not any(tmp_path.iterdir())
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize(("share", "store"), [(1.0, None), (0.25, 1_200_000_000), (0.0125, 83_886_080)])
def test_ray_hears_of_a_limit_that_it_may_not_see(
    share: float, store: int | None, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session_module, "physical_memory", lambda: 16_000_000_000)
    monkeypatch.setattr(ray_session_module, "memory", lambda: int(16_000_000_000 * share))
    with ray_session(None):
        assert asked.get("object_store_memory") == store
        assert asked.get("_memory") == (None if store is None else int(16_000_000_000 * share))


OURS_IS_HERE = str(Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("first", "sent"),
    [
        ("/venv/bin", ["/venv/bin"]),  # the program: not where it was started
        ("", ["/venv/bin", "HERE"]),  # python -m: as this process itself looks there first
        ("HERE", ["/venv/bin", "HERE"]),
        (
            OURS_IS_HERE,
            ["/venv/bin", OURS_IS_HERE],
        ),  # the program found namesakes of its packages: Ray reverses this
    ],
)
def test_workers_look_for_modules_where_the_program_does(
    first: str, sent: list[str], asked: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ray_session(None):
        config: Any = asked["job_config"]
    rays = str(Path(ray.__file__).parent / "thirdparty_files")
    config._py_driver_sys_path = ["/venv/bin", str(tmp_path)]  # as Ray fills it in
    monkeypatch.setattr(sys, "path", [rays, str(tmp_path) if first == "HERE" else first, *sys.path])
    config._serialize()
    assert config._py_driver_sys_path == [str(tmp_path) if each == "HERE" else each for each in sent]


def test_what_ray_says_of_dead_processes_goes_to_the_log(
    asked: dict[str, object], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with ray_session(None), caplog.at_level("INFO"):
        told = {"lines": ["A worker died by an unexpected system error."], "pid": "raylet", "is_err": False}
        ray._private.worker.print_to_stdstream(told, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["Ray: A worker died by an unexpected system error."]


@pytest.mark.usefixtures("local_ray")
def test_no_other_user_can_enter_where_rays_sockets_and_logs_are() -> None:
    """Ray itself opens them to all."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert any(stat.S_IMODE(above.stat().st_mode) & 0o077 == 0 for above in session.parents)


@pytest.mark.usefixtures("local_ray")
def test_signals_that_end_us_do_not_reach_rays_processes() -> None:
    """As `timeout` and a terminal that closes send it."""
    begun = ray._private.worker._global_node
    processes = [each.process.pid for kind in begun.all_processes.values() for each in kind]
    assert len(processes) > 1
    assert os.getpgrp() not in {os.getpgid(process) for process in processes}
    for process in processes:  # nor one to all processes of a job, as Slurm and systemd send it
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        blocked = int(re.findall(r"SigBlk:\s*([0-9a-f]+)", status)[0], 16)
        assert all(blocked & 1 << number - 1 for number in ENDING)


def test_handlers_of_signals_are_ours_while_and_after_ray_begins(
    asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(**_: object) -> None:
        ray_utils.set_sigterm_handler(lambda *_: sys.exit(15))  # as Ray's own does first of all
        during.append(signal.getsignal(signal.SIGTERM))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as its C++ does without Python's knowledge

    during: list[object] = []
    monkeypatch.setattr(ray, "init", begin)
    with requests_to_stop() as requests, ray_session(None):
        assert during == [requests.take]
        signal.raise_signal(signal.SIGTERM)
        assert requests()


@pytest.mark.skipif(os.environ.get("RAY_AUTH_MODE") == "disabled", reason="tokens are turned off here")
@pytest.mark.usefixtures("local_ray")
def test_an_instance_of_our_own_asks_for_a_token() -> None:
    status, _ = ray_session_module._ask(ray.get_runtime_context().gcs_address, None)
    assert status is grpc.StatusCode.UNAUTHENTICATED


def test_an_autoscaling_cluster_has_the_gpus_that_it_may_grow_to(tmp_path: Path) -> None:
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    assert gpus_to_grow_to(bootstrap) == 0
    cluster = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text(encoding="utf-8"))
    bootstrap.write_text(yaml.safe_dump(cluster))
    assert gpus_to_grow_to(bootstrap) == 8
    cluster["available_node_types"]["large"] = {"resources": {"GPU": 4}, "max_workers": 1}
    bootstrap.write_text(yaml.safe_dump(cluster))
    assert gpus_to_grow_to(bootstrap) == 4 + 7, "eight machines in all"
    bootstrap.write_text("not: [a cluster")
    assert gpus_to_grow_to(bootstrap) == 0
