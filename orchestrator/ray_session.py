"""A connection to Ray: a cluster's, or an instance of this machine's own."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from search_spaces.errors import InputError

PROBE_SECONDS = 5.0


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A Ray connection for the time of a study: the given cluster, RAY_ADDRESS, or a local instance.

    A local instance is asked for by that name, since a stale address file of a killed cluster would
    otherwise be followed. Raises InputError where an address cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():  # whoever connected disconnects
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    local = {"num_cpus": cores(), "include_dashboard": False} if target == "local" else {}
    source = "--address" if address else "RAY_ADDRESS"
    if not _listens(target):
        raise InputError(f"{source} {target}: nothing listens there; `ray start --head` prints its address")
    try:
        ray.init(address=target, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, ValueError) as error:
        if target == "local":
            raise
        first_line = str(error).strip().partition("\n")[0]
        raise InputError(f"{source} {target}: no Ray cluster answers there ({first_line})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _listens(address: str) -> bool:
    """Whether something answers at host:port, which Ray would try for minutes; True for other addresses."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_gpus() -> int:
    """GPUs of the connected cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
