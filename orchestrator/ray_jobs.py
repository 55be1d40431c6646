"""Studies sent to a cluster's job server: submitted, watched, stopped, their results fetched.

The job server runs whatever it is sent, so one that asks nobody for a token is refused unless that is meant. The
token goes into a header; nothing of this machine's environment goes anywhere.
"""

import asyncio
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestrator.ray_session import PROBE_SECONDS, TOKEN_MISSING, TOKEN_WRONG, own_token, refuse_open
from orchestrator.shipment import bring_code, entrypoint, pack
from orchestrator.study_folder import DEFAULT_ROOT as DEFAULT_INTO
from orchestrator.study_folder import named_folder
from orchestrator.transfer import read_parcel, unpack
from search_spaces.errors import InputError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray dashboard cluster.yaml` or an ssh tunnel brings a cluster's job server."""

DEFAULT_ROOT = "~/runs"
"""On the head: where `latentsweep run` in the home folder there keeps its results too."""

STOP_SECONDS = 600
"""What runs may take so long to be finished after a stop; then Ray kills the job. Ray's own default is 3 s."""

POLL_SECONDS = 1.0

READY_SECONDS = 60.0
"""That a head may take from listening to taking jobs."""

STUDY, ROOT = "latentsweep_study", "latentsweep_root"
"""Keys of a job's metadata."""


for _name in (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
):
    logging.getLogger(f"ray.{_name}").setLevel(logging.WARNING)  # they set their own

_OF_RAY = re.compile(
    r"^(Running entrypoint for job .*|[-0-9]+ [0-9:,]+\t?\s*[A-Z]+ job_manager\.py.*)\n", re.M
)
"""Lines of a job's output that Ray wrote, not the job."""


@dataclass(frozen=True)
class Job:
    """A job of ours on a cluster; `pid` of its driver on the head, where that has connected."""

    id: str
    study: str
    root: str
    status: str
    exit_code: int | None
    message: str | None
    pid: int | None
    started: int

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return bool(JobStatus(self.status).is_terminal())


class JobServer:
    """A cluster's job server. Raises InputError where it cannot be used."""

    def __init__(self, address: str | None = None, insecure: bool = False) -> None:
        self.address = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS).rstrip("/")
        self.insecure = insecure
        token = _checked(self.address, f"--address {self.address}", insecure)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # which would go before what was asked for
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(self, study_file: Path, root: str | None = None, arguments: Sequence[str] = ()) -> Job:
        """Send a study and start it; `root` is an absolute folder on the head, ~/… or an object store's.

        `arguments` are options of `run`. Raises InputError for what is wrong with the study file or its inputs,
        and where a job runs the study already.
        """
        root = checked_root(root)
        with tempfile.TemporaryDirectory() as folder:
            shipment = pack(study_file, Path(folder))
            for job in self.jobs(shipment.study):
                if job.root == root and not job.has_ended:
                    raise InputError(
                        f"{shipment.study} is being run as job {job.id}; "
                        f"`latentsweep attach {shipment.study}` shows it"
                    )
            given = [*arguments, *(["--insecure"] if self.insecure else [])]
            command = ["run", shipment.file, "--root", root, *given]
            metadata = {STUDY: shipment.study, ROOT: root}
            name = f"latentsweep-{shipment.study}-{secrets.token_hex(3)}"
            return self.job(self._start(name, command, folder, metadata))

    def _start(self, name: str, command: Sequence[str], folder: str, metadata: Mapping[str, str]) -> str:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                started = self._client.submit_job(
                    entrypoint=entrypoint(command),
                    submission_id=name,
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                    },
                    metadata=dict(metadata),
                )
            except (RuntimeError, ValueError, requests.RequestException) as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise InputError(
                        f"{self.address}: the job was not taken ({_first_line(error)})"
                    ) from None
                time.sleep(POLL_SECONDS)
            else:
                return str(started)

    def job(self, name: str) -> Job:
        """A job by its id. Raises InputError where there is none."""
        try:
            return _job(self._client.get_job_info(name))
        except (RuntimeError, requests.RequestException) as error:
            raise InputError(
                f"{self.address}: job {name} cannot be asked for ({_first_line(error)})"
            ) from None

    def jobs(self, study: str) -> list[Job]:
        """The jobs that ran a study, the newest first."""
        try:
            listed = self._client.list_jobs()
        except (RuntimeError, requests.RequestException) as error:
            raise InputError(f"{self.address}: jobs cannot be listed ({_first_line(error)})") from None
        ours = [_job(info) for info in listed if (info.metadata or {}).get(STUDY)]
        return sorted((j for j in ours if study in (j.study, j.id)), key=lambda j: j.started, reverse=True)

    def newest(self, study: str) -> Job:
        """The last job of a study, or the one of that id. Raises InputError."""
        found = self.jobs(study)
        if not found:
            raise InputError(
                f"{self.address}: no job there ran a study {study!r}; `latentsweep submit` starts one"
            )
        return found[0]

    def follow(self, job: Job, write: Callable[[str], None]) -> Job:
        """Pass on what a job prints, from its beginning, until it ends; the job as it ended.

        Where the connection breaks, it is made again.
        """
        seen = 0
        while True:
            try:
                seen = asyncio.run(self._tail(job.id, seen, write))
            except (RuntimeError, OSError):
                time.sleep(POLL_SECONDS)
                _checked(self.address, f"--address {self.address}", self.insecure)
                self.job(job.id)  # which says so where somebody deleted it
                continue
            ended = self.job(job.id)
            if ended.has_ended:
                return ended
            time.sleep(POLL_SECONDS)

    async def _tail(self, name: str, seen: int, write: Callable[[str], None]) -> int:
        """Pass on a job's output beyond the `seen` first characters; how many there are."""
        count = 0
        async for text in self._client.tail_job_logs(name):
            count += len(text)
            new = text[max(0, seen - (count - len(text))) :]
            if new:
                write(_OF_RAY.sub("", new))
                seen = count
        return max(seen, count)

    def stop(self, job: Job, now: bool = False, waiting: Callable[[], None] = lambda: None) -> Job:
        """Stop a job as the first Ctrl-C stops a run, or with `now` as the second; the job as it ended.

        What runs is finished and kept, for up to STOP_SECONDS; then it is killed, which loses nothing that was
        acknowledged. `waiting` is called about once a second.
        """
        if job.has_ended:
            return job
        self._client.stop_job(job.id)
        if now and job.pid is not None:
            with tempfile.TemporaryDirectory() as folder:
                self._client.submit_job(
                    entrypoint=f"sleep 1; kill -TERM {job.pid}", runtime_env={"working_dir": folder}
                )
        deadline = time.monotonic() + STOP_SECONDS + 30
        while not (job := self.job(job.id)).has_ended and time.monotonic() < deadline:
            waiting()
            time.sleep(POLL_SECONDS)
        return job

    def fetch(self, study: str, root: str | None, into: str | None = None) -> tuple[Path, int, str]:
        """Bring a study's folder and its rows of the catalog into a root of this machine.

        The folder there, how many images are new, and the root. `root` is the cluster's, by default that of the
        study's last job; `into` by default `runs`, or where the cluster's is a store, whose catalog everybody reads,
        that store. Raises InputError.
        """
        named_folder(study, into or DEFAULT_INTO)
        found = self.jobs(study)
        root = checked_root(root or (found[0].root if found else None))
        into = into or (root if is_a_store(root) else DEFAULT_INTO)
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as parcel:
            bring_code(Path(folder))
            name = f"latentsweep-fetch-{study}-{secrets.token_hex(3)}"
            self._start(name, ["parcel", study, root], folder, {})
            try:
                with closing(self._lines(name)) as lines:
                    read_parcel(lines, parcel)
            finally:
                self._forget(name)
            parcel.seek(0)
            return (*unpack(parcel, study, into), into)

    def _lines(self, name: str) -> Generator[str]:
        """A job's output in lines, to its end."""
        loop = asyncio.new_event_loop()
        texts, rest = self._client.tail_job_logs(name), ""
        try:
            while True:
                try:
                    text = loop.run_until_complete(anext(texts))
                except StopAsyncIteration:
                    break
                *lines, rest = (rest + text).split("\n")
                yield from lines
            if rest:
                yield rest
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{self.address}: the connection broke ({_first_line(error)}); fetch again"
            ) from None
        finally:
            loop.run_until_complete(texts.aclose())
            loop.close()

    def _forget(self, name: str) -> None:
        """Let the job server forget a job that has ended, or will."""
        with suppress(RuntimeError, requests.RequestException):
            for _ in range(10):
                if self.job(name).has_ended:
                    self._client.delete_job(name)
                    return
                time.sleep(POLL_SECONDS / 2)
            self._client.stop_job(name)


def is_a_store(root: str) -> bool:
    """Whether a root is the same from every machine."""
    return "://" in root and not root.startswith("file://")


def checked_root(root: str | None) -> str:
    """A root of a cluster's. Raises InputError for a relative one, which a job's throw-away folder would hold."""
    root = root or DEFAULT_ROOT
    if "://" in root or root.startswith(("/", "~/")):
        return root.rstrip("/")
    raise InputError(
        f"--root {root} is relative, and a job's own folder is thrown away; name a path on the head, such as "
        f"{DEFAULT_ROOT} or /data/runs, or an object store's, s3://bucket/prefix"
    )


def _checked(address: str, source: str, insecure: bool) -> str | None:
    """The token for a job server, None where it asks for none. Raises InputError where it cannot be used."""
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"{source}: a job server's address begins with http://, such as {DEFAULT_ADDRESS}; `latentsweep run` "
            "takes the address of a Ray head"
        )
    answer, token = _version(address, None, source), None
    if answer.status_code in (401, 403):
        token = own_token()
        if not token:
            raise InputError(f"{source}: {TOKEN_MISSING}")
        answer = _version(address, token, source)
        if answer.status_code in (401, 403):
            raise InputError(f"{source}: {TOKEN_WRONG}")
    found = _ray_version(answer)
    if found is None:
        raise InputError(
            f"{source}: something answers there ({answer.status_code}), but it is no Ray job server"
        )
    if token is None:
        refuse_open(source, insecure)
    if found != ray.__version__:
        raise InputError(
            f"{source}: the cluster runs Ray {found} and this machine {ray.__version__}; install the same on both"
        )
    return token


def _version(address: str, token: str | None, source: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return requests.get(
            f"{address}/api/version", headers=headers, timeout=PROBE_SECONDS, allow_redirects=False
        )
    except requests.RequestException:
        raise InputError(
            f"{source}: no job server answers there; `ray dashboard cluster.yaml` or "
            "`ssh -L 8265:127.0.0.1:8265 HEAD` brings a cluster's to this machine"
        ) from None


def _ray_version(answer: requests.Response) -> str | None:
    try:
        return str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        return None


def _job(info: Any) -> Job:
    metadata = info.metadata or {}
    driver = info.driver_info
    return Job(
        info.submission_id or "",
        metadata.get(STUDY, ""),
        metadata.get(ROOT, ""),
        info.status.value,
        info.driver_exit_code,
        info.message,
        int(driver.pid) if driver is not None and driver.pid else None,
        info.start_time or 0,
    )


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """An environment without some variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
