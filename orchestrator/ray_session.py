"""A connection to Ray: a cluster's, which is looked at first, or an instance of this machine's own.

Ray runs what it is sent, on every machine of a cluster. So a cluster that asks nobody for a token is refused
unless that was said to be meant, and whatever is wrong with an address is found by asking its head a question
or two over plain gRPC, before Ray itself tries for minutes.
"""

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import grpc
import ray
import yaml
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import services
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._private.utils import compute_version_info
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # its stub lacks them
from ray.core.generated.gcs_service_pb2 import InternalKVGetReply, InternalKVGetRequest
from ray.job_config import JobConfig

from orchestrator import stopping
from orchestrator.dealing import Places
from orchestrator.machine import Machine, cores, memory, physical_memory
from orchestrator.ray_place import exposed_token, fresh_token, private_folder
from search_spaces.errors import InputError

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0

LEAST_STORE = 80 * 2**20
"""Bytes of an object store, of which Ray wants 75 MiB."""

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""Where `ray up` leaves the cluster's description on its head."""

AuthMode = Literal["token", "disabled"]


@contextmanager
def ray_session(
    address: str | None, insecure: bool = False, say: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """A Ray connection for the time of a study: the given cluster, RAY_ADDRESS, or a local instance.

    A local instance is asked for by that name, since a stale address file of a killed cluster would
    otherwise be followed; it has a token and a folder that are its own. `insecure`, or RAY_AUTH_MODE=disabled in
    the environment, accepts a cluster without a token. `say` hears what the user should know. Raises InputError
    where an address, or this machine's folder for Ray, cannot be used.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():  # whoever connected disconnects
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    if target == "local":
        with _instance_of_our_own(say):
            yield
        return
    source = f"{'--address' if address else 'RAY_ADDRESS'} {target}"
    head = _head(target, source)
    mode = _checked(head, source, insecure)
    exposed = exposed_token() if mode == "token" else None
    if exposed is not None:
        say(f"note: {exposed}")
    with _authenticated(mode), _told_to_the_log():
        try:
            with _begun_apart():
                options = {} if head.startswith("ray://") else {"job_config": _FoldersAsHere()}
                ray.init(address=head, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"{source}: no Ray cluster answers there ({_first_line(error)})") from None
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _instance_of_our_own(say: Callable[[str], None]) -> Iterator[None]:
    """Ray on this machine alone, with nothing of it in the user's home or open to other users."""
    mode: AuthMode | None = None if "RAY_AUTH_MODE" in os.environ else "token"
    with private_folder(say) as folder, fresh_token(), _authenticated(mode), _told_to_the_log():
        AuthenticationTokenLoader.instance().reset_cache()  # Ray keeps a token that it has once read
        try:
            with _begun_apart():
                ray.init(
                    address="local",
                    log_to_driver=False,
                    logging_level="ERROR",
                    num_cpus=cores(),
                    include_dashboard=False,
                    job_config=_FoldersAsHere(),
                    _temp_dir=str(folder),
                    **_limits(),
                )
            yield
        finally:
            ray.shutdown()
    AuthenticationTokenLoader.instance().reset_cache()


def _limits() -> dict[str, int]:
    """Memory for Ray where this process may use less than the machine has, which Ray sees in some containers only."""
    limit = memory()
    if limit >= physical_memory():
        return {}
    return {"object_store_memory": max(LEAST_STORE, int(0.3 * limit)), "_memory": limit}


@contextmanager
def _told_to_the_log() -> Iterator[None]:
    """What Ray says of dead processes, a page of prose into the display, goes to the study's log meanwhile.

    The pool says what has become of a worker in a line of its own.
    """

    def tell(data: Mapping[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001
        for line in data["lines"]:
            log.info("Ray: %s", line)

    with mock.patch.object(ray_worker, "print_to_stdstream", tell):
        yield


class _FoldersAsHere(JobConfig):  # type: ignore[misc]  # Ray is untyped
    """Workers look for modules where this process does, and in the same order.

    Ray puts the working directory before everything else, where a `random.py` of the user's would be found by every
    worker. It stays where it comes first for this process too.
    """

    _py_driver_sys_path: list[str]

    def _serialize(self) -> bytes:
        here = str(Path.cwd())
        rays = str(Path(ray.__file__).parent)  # which puts a folder of its own first when it is imported
        first = next((path for path in sys.path if not path.startswith(rays)), "")
        kept = [path for path in self._py_driver_sys_path if path != here or first in ("", here)]
        ours = [first] if first == str(Path(__file__).resolve().parents[1]) else []
        self._py_driver_sys_path = [*kept, *ours]  # of which Ray puts the last one first
        return bytes(super()._serialize())


class _Apart(services.ConsolePopen):  # type: ignore[misc]  # Ray is untyped
    """A process of Ray's, which does not hear the signals that are meant for us: we finish what it runs, and end it.

    `timeout` and a terminal that closes send theirs to a whole process group, Slurm and systemd to all processes of a
    job. Ray by itself blocks SIGINT alone, in the same way; what these processes start inherits it.
    """

    def __init__(self, *arguments: Any, preexec_fn: Callable[[], None] | None = None, **options: Any) -> None:
        def begin() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, stopping.ENDING)
            if preexec_fn is not None:
                preexec_fn()

        super().__init__(*arguments, preexec_fn=begin, start_new_session=True, **options)

    def terminate(self) -> None:
        """End it, at once: it would not hear that it is asked to end."""
        self.kill()


@contextmanager
def _begun_apart() -> Iterator[None]:
    """Signals stay ours while Ray begins, and its processes have a session of their own.

    Ray takes SIGTERM for itself, in Python before it begins and in C++ with a trace.
    """
    with (
        stopping.handlers_kept(),
        mock.patch.object(services, "ConsolePopen", _Apart),
        mock.patch.object(ray_utils, "set_sigterm_handler"),
    ):
        yield


def _head(target: str, source: str) -> str:
    """The host and port behind an address, where something listens. Raises InputError."""
    if target != "auto":
        if not target.startswith("ray://") and not _is_host_and_port(target):
            server = "; a job server's, http://…, is for `latentsweep submit`" if "://" in target else ""
            raise InputError(
                f"{source}: a Ray head's address is HOST:PORT, such as 10.0.0.1:6379, or auto{server}"
            )
        if not listens(target):
            raise InputError(f"{source}: nothing listens there; `ray start --head` prints its address")
        return target
    try:
        found: str | None = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError) as error:
        raise InputError(f"{source}: no Ray cluster answers there ({_first_line(error)})") from None
    if found is None:
        raise InputError(f"{source}: no Ray cluster runs on this machine; `ray start --head` starts one")
    if not listens(found):
        raise InputError(
            f"{source}: nothing listens at {found}, where this machine's last cluster was; "
            "`ray stop` forgets it, `ray start --head` starts another"
        )
    return found


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isascii() and port.isdecimal() and int(port) < 2**16


def listens(address: str) -> bool:
    """Whether something answers at host:port, which Ray would try for minutes; True for other addresses."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True


def _checked(head: str, source: str, insecure: bool) -> AuthMode | None:
    """How to authenticate at a head whose versions are ours; None leaves it to Ray. Raises InputError.

    Ray Client's addresses and clusters with TLS, which know their clients by certificates, are left to Ray.
    """
    if head.startswith("ray://") or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return None
    status, answer = _ask(head, None)
    mode: AuthMode = "disabled"
    if status is grpc.StatusCode.UNAUTHENTICATED:
        mode, token = "token", own_token()
        if not token:
            raise InputError(f"{source}: {TOKEN_MISSING}")
        status, answer = _ask(head, token)
        if status is grpc.StatusCode.UNAUTHENTICATED:
            raise InputError(f"{source}: {TOKEN_WRONG}")
    elif status is grpc.StatusCode.OK:
        refuse_open(source, insecure)
    if status is not grpc.StatusCode.OK:
        raise InputError(
            f"{source}: something listens there, but it is no Ray head ({status.name.lower()}); give the port that "
            "`ray start --head` prints, 6379 by default; the job server's, 8265, is for `latentsweep submit`"
        )
    _check_versions(json.loads(answer.value) if answer.value else {}, source)
    return mode


TOKEN_MISSING = (
    "this cluster asks for a token and there is none on this machine; copy the cluster's to "
    "~/.ray/auth_token, or put it in RAY_AUTH_TOKEN"
)
TOKEN_WRONG = (
    "this cluster does not know the token of this machine; copy the cluster's own to ~/.ray/auth_token, "
    "or put it in RAY_AUTH_TOKEN, which goes before the file"
)


def refuse_open(source: str, insecure: bool) -> None:
    """Raise InputError for a cluster that asked for no token, unless the user knows."""
    if insecure or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    unneeded = ", and this machine's token is not asked for" if own_token() else ""
    raise InputError(
        f"{source}: this cluster asks nobody for a token{unneeded}: whoever reaches its ports, which Ray opens on "
        "all networks, runs there what they like; start it with RAY_AUTH_MODE=token (SECURITY.md), or say --insecure"
    )


def own_token() -> str:
    """The Ray token of this machine, from where Ray looks for it; empty where there is none. Raises InputError."""
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return str(loader.get_raw_token(ignore_auth_mode=True))
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"the Ray token cannot be read: {_first_line(error)}") from None


def _ask(head: str, token: str | None) -> tuple[grpc.StatusCode, InternalKVGetReply]:
    """What a head answers to the question for its versions: the status, and the reply where that is OK."""
    request = InternalKVGetRequest(key=CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    with grpc.insecure_channel(head, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(
            "/ray.rpc.InternalKVGcsService/InternalKVGet",
            request_serializer=InternalKVGetRequest.SerializeToString,
            response_deserializer=InternalKVGetReply.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else None
        try:
            return grpc.StatusCode.OK, call(request, timeout=PROBE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), InternalKVGetReply()


def _check_versions(cluster: dict[str, str], source: str) -> None:
    """Raise InputError, naming both, where the cluster's Ray or Python is not this process's, as Ray demands."""
    ray_version, python = compute_version_info()
    parts = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    for name, ours, theirs, count in (
        ("Ray", ray_version, cluster.get("ray_version"), 9),
        ("Python", python, cluster.get("python_version"), parts),
    ):
        if theirs is not None and theirs.split(".")[:count] != ours.split(".")[:count]:
            raise InputError(
                f"{source}: the cluster runs {name} {theirs} and this process {ours}; install the same on both, "
                "or `latentsweep submit` the study, which runs on the cluster itself"
            )


@contextmanager
def _authenticated(mode: AuthMode | None) -> Iterator[None]:
    """Ray's authentication mode for the time of a connection; Ray turns it on for no explicit address."""
    before = os.environ.get("RAY_AUTH_MODE")
    if mode is None:
        yield
        return
    os.environ["RAY_AUTH_MODE"] = mode
    Config.initialize("")  # Ray reads the environment only once otherwise
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_AUTH_MODE"]
        else:
            os.environ["RAY_AUTH_MODE"] = before
        Config.initialize("")


def machines() -> list[Machine]:
    """Machines of the connected cluster on which actors that need a CPU can be. Raises InputError for none."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    able = [
        Machine(int(each["CPU"]), int(each.get("memory", 0))) for each in found if each.get("CPU", 0) >= 1
    ]
    if not able:
        raise InputError(
            "the cluster has neither GPU nor CPU for workers; add a machine, as by `ray start --address=HEAD:6379`"
        )
    return able


def cluster_gpus() -> int:
    """GPUs of the connected cluster: those it has, or as many as `ray up` lets it grow to where that is more."""
    return max(int(ray.cluster_resources().get("GPU", 0)), gpus_to_grow_to(Path(BOOTSTRAP)))


def gpu_places() -> Places:
    """GPUs of the connected cluster now, and at most, where an autoscaler may start machines."""
    return Places(int(ray.cluster_resources().get("GPU", 0)), cluster_gpus())


def limited(places: Callable[[], Places], workers: int | None) -> Places:
    """Places for no more than so many workers, for which machines may be started where there are fewer."""
    found = places()
    return found if workers is None else Places(min(found.now, workers), workers)


def gpus_to_grow_to(bootstrap: Path) -> int:
    """The most GPUs that a cluster's description allows; 0 where there is none on this machine."""
    try:
        cluster = yaml.safe_load(bootstrap.expanduser().read_text(encoding="utf-8"))
        kinds = cluster["available_node_types"].values()
        most = cluster.get("max_workers", 2**31)
        gpus = sorted(
            (
                int(kind.get("resources", {}).get("GPU", 0))
                for kind in kinds
                for _ in range(min(kind.get("max_workers", most), most))
            ),
            reverse=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, yaml.YAMLError):
        return 0  # RuntimeError: nobody's home
    return sum(gpus[:most])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
