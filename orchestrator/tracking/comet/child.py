"""A process of its own for the SDK, which changes the one that imports it (exception hook, random state, torch).

What the child is asked comes pickled on its stdin, followed by lines for it; what it says goes line by line, as
JSON, over its stdout. It ends when its parent does. Keys travel by the inherited environment or Comet's own
configuration file; what anyone prints in the child goes to a log, without the key.
"""

import json
import os
import pickle
import queue
import select
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.tracking.comet.content import CometError, DiskError, disk_failure
from orchestrator.tracking.comet.replies import bound

Tell = Callable[[object], None]
"""Says something JSON-able to the parent."""

FLAGS: Mapping[str, Any] = dict.fromkeys(
    (
        "auto_log_co2",
        "auto_metric_logging",
        "auto_output_logging",
        "auto_param_logging",
        "log_code",
        "log_env_cpu",
        "log_env_details",
        "log_env_disk",
        "log_env_gpu",
        "log_env_host",
        "log_env_network",
        "log_git_metadata",
        "log_git_patch",
        "log_graph",
        "parse_args",
    ),
    False,
) | {"display_summary_level": 0}
"""Of an experiment. Each would upload facts on the machine or the script, or contact the network to find them."""

# Where the archive is to be uploaded is the user's to say; every other variable would change what is in it.
_KEPT_OFFLINE = {"COMET_WORKSPACE", "COMET_PROJECT_NAME"}

_KEPT_ONLINE = _KEPT_OFFLINE | {
    "COMET_ALLOW_HEADER_NAME",
    "COMET_ALLOW_HEADER_VALUE",
    "COMET_API_KEY",
    "COMET_CONFIG",
    "COMET_INCLUDE_CUSTOM_CA_BUNDLE",
    "COMET_INTERNAL_CHECK_TLS_CERTIFICATE",
    "COMET_TIMEOUT_API",
    "COMET_TIMEOUT_FILE_UPLOAD",
    "COMET_TIMEOUT_HTTP",
    "COMET_URL_OVERRIDE",
}

_ALWAYS = {
    "COMET_AUTO_LOG_DISABLE": "0",  # 1, in a .comet.config too, makes an experiment of nothing
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "0",
    "COMET_INTERNAL_REPORTING": "0",
    "COMET_LOGGING_CONSOLE": "WARNING",  # at INFO it advises to upload a file that is about to be moved
}

_OFFLINE = {"COMET_API_KEY": ""}  # empty, not absent: an absent one is looked for in .env and .comet.config

# Every attempt is ours to repeat: the SDK's own, unseen, would store an image twice whose reply was lost.
_ONLINE = {
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_CONNECT": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_READ": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_STATUS": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "0",
    "COMET_HTTP_SESSION_RETRY_TOTAL": "0",
    "COMET_LOGGING_CONSOLE": "CRITICAL",  # every error reaches us as an exception
    "COMET_TIMEOUT_CLEANING": "5",
    "COMET_TIMEOUT_UPLOAD": "5",
}

_PATIENCE = {"COMET_TIMEOUT_API": "10", "COMET_TIMEOUT_FILE_UPLOAD": "30", "COMET_TIMEOUT_HTTP": "5"}
"""Seconds without an answer, where the user has not set them: listing, an upload, a beginning."""

# The child finds modules where its parent does; -P keeps the working directory from shadowing pickle itself.
_LIVE = """
import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer)
from orchestrator.tracking.comet import child; child.live()
"""

# Before the imports, which take a second and more of a core. Ray's workers are at niceness 15, and 19 beside it is a
# third of it; threads inherit what is set before they are begun.
_STEP_BACK = """
import contextlib, os; os.nice(19)
with contextlib.suppress(AttributeError, OSError): os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
"""


def environment(online: bool, scratch: Path) -> dict[str, str]:
    """The variables that the child gets: offline without a key; the SDK's spool under `scratch`."""
    kept = _KEPT_ONLINE if online else _KEPT_OFFLINE
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("COMET_") or k in kept}
    ours = {**_ALWAYS, **(_ONLINE if online else _OFFLINE), "TMPDIR": str(scratch)}
    return {**(_PATIENCE if online else {}), **inherited, **ours}


class Child:
    """A child process at work on `task(tell, inbox, *arguments)`, whose result it says at its end.

    `task` and `arguments` must pickle. `log` is rewritten with all that is printed there. In the `background` it
    works in time that nobody else wants.
    """

    def __init__(
        self,
        task: Callable[..., object],
        arguments: tuple[object, ...],
        variables: Mapping[str, str],
        log: Path,
        background: bool = False,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as chatter:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", (_STEP_BACK if background else "") + _LIVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=chatter,
                env=dict(variables),
                start_new_session=True,  # a Ctrl-C that lets running work finish is not the child's
            )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        self._rest = b""
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        os.set_blocking(self._pipe, False)
        self.insist(pickle.dumps(sys.path) + pickle.dumps((task, arguments)), 10.0)

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

    def offer(self, line: bytes) -> bool:
        """Send a line where there is room for it now; False where there is none, or nobody who listens."""
        if not self._drain():
            return False
        self._rest = line
        self._drain()  # what does not fit goes before the next one
        return True

    def insist(self, line: bytes, seconds: float) -> bool:
        """Send a line, waiting for room so long at most."""
        end = time.monotonic() + seconds
        while not self.offer(line):
            left = end - time.monotonic()
            if left <= 0 or self._process.poll() is not None:
                return False
            select.select([], [self._pipe], [], min(left, 0.2))
        while not self._drain() and time.monotonic() < end and self._process.poll() is None:
            select.select([], [self._pipe], [], 0.2)
        return not self._rest

    def said(self, seconds: float = 0.0) -> Any:
        """The next thing that the child says, waiting so long at most for it.

        None where there is nothing yet. Raises CometError where the child has refused, failed or died.
        """
        try:
            kind, value = self._said.get(block=seconds > 0, timeout=seconds or None)
        except queue.Empty:
            return None
        if kind == "refused":
            raise CometError(value)
        if kind == "disk":
            raise DiskError(value)
        if kind == "failed":
            raise CometError(f"{value}; see {self._log}")
        if kind == "died":
            code = self._process.wait()
            raise CometError(f"the process that talks to Comet died with code {code}; see {self._log}")
        return kind, value

    def result(self, seconds: float | None, told: Callable[[object], None] = lambda _: None) -> Any:
        """What the task returned, at the latest after so many seconds; `told` hears what it says before.

        Raises CometError.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = 1.0 if end is None else end - time.monotonic()
            if left <= 0:
                raise CometError(f"the process that talks to Comet was not done within {seconds:g} s")
            found = self.said(min(left, 1.0))
            if found is None:
                continue
            kind, value = found
            if kind == "done":
                return value
            told(value)

    def end(self) -> None:
        """Kill it, wherever it stands."""
        self._process.kill()
        self._process.wait()
        self._listener.join(1.0)  # which nobody answers any more
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _drain(self) -> bool:
        while self._rest:
            try:
                self._rest = self._rest[os.write(self._pipe, self._rest) :]
            except BlockingIOError:
                return False
            except OSError:  # nobody listens any more
                self._rest = b""
                return False
        return True

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._said.put(tuple(json.loads(line)))
        self._said.put(("died", None))


class Inbox:
    """The lines that the parent sends; with the parent, the child ends at once."""

    def __init__(self) -> None:
        self._lines: queue.Queue[bytes] = queue.Queue(64)
        threading.Thread(target=self._listen, daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        """The lines as JSON, as they come."""
        while True:
            yield json.loads(self._lines.get())

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            self._lines.put(line)
        os._exit(3)


def live() -> None:
    """Live the child's life: read the request from stdin, work, answer on stdout."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what anyone prints goes to the log
        lock = threading.Lock()

        def say(kind: str, value: object) -> None:
            with lock:
                answers.write(json.dumps((kind, value)) + "\n")
                answers.flush()

        bound()
        task, arguments = pickle.load(sys.stdin.buffer)
        say(*_attempt(task, lambda value: say("told", value), Inbox(), arguments))
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # what the SDK still wants to do at its exit nobody waits for


def _attempt(
    task: Callable[..., object], tell: Tell, inbox: Inbox, arguments: tuple[object, ...]
) -> tuple[str, object]:
    try:
        return "done", task(tell, inbox, *arguments)
    except Exception as error:  # noqa: BLE001 -- whatever failed, the parent gets one sentence
        disk = disk_failure(error, Path(os.environ["TMPDIR"]))
        if disk is not None:
            return "disk", str(disk)
        if isinstance(error, CometError):
            return "refused", str(error)
        # The SDK's texts may quote a key, so where it happened is told, and what kind of error it was.
        with suppress(OSError):
            sys.stderr.writelines(traceback.format_tb(error.__traceback__))
            sys.stderr.write(f"{type(error).__name__}\n")
        return "failed", f"{task.__name__} failed with {type(error).__name__}"
