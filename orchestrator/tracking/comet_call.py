"""One question to Comet, put by its SDK in a process of its own: the SDK changes the one that imports it.

Keys travel by the inherited environment or Comet's own configuration file. The SDK's texts may quote a key, so
none of them is passed on.
"""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.tracking.comet import CometError

LONGEST = 6 * 3600
"""Seconds after which a child ends that nobody waits for any more."""

NO_KEY = "no API key of Comet was found; set COMET_API_KEY or write it into ~/.comet.config"
BAD_KEY = "Comet does not take the API key that was found"
UNANSWERED = "the Comet server cannot be reached or does not answer"

_KEPT_VARIABLES = frozenset(
    {
        "COMET_ALLOW_HEADER_NAME",
        "COMET_ALLOW_HEADER_VALUE",
        "COMET_API_KEY",
        "COMET_CONFIG",
        "COMET_INCLUDE_CUSTOM_CA_BUNDLE",
        "COMET_INTERNAL_CHECK_TLS_CERTIFICATE",
        "COMET_PROJECT_NAME",
        "COMET_TIMEOUT_API",
        "COMET_TIMEOUT_FILE_UPLOAD",
        "COMET_TIMEOUT_HTTP",
        "COMET_URL_OVERRIDE",
        "COMET_WORKSPACE",
    }
)

_PATIENCE = {"COMET_TIMEOUT_API": "10", "COMET_TIMEOUT_FILE_UPLOAD": "60", "COMET_TIMEOUT_HTTP": "5"}
"""Seconds without an answer, where the user has not set them."""

_CHILD_VARIABLES = {
    "COMET_AUTO_LOG_DISABLE": "0",  # 1, in a .comet.config too, makes an experiment of nothing
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_CONNECT": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_READ": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_STATUS": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "0",
    "COMET_HTTP_SESSION_RETRY_TOTAL": "0",
    "COMET_INTERNAL_REPORTING": "0",
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_LOGGING_FILE": "",
}

# The child finds modules where its parent does; -P keeps the working directory from shadowing pickle itself.
_COMMAND = [
    "-P",
    "-c",
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer)\n"
    "from orchestrator.tracking import comet_call; comet_call.answer_parent()",
]


def call(
    task: Callable[..., object], *arguments: object, scratch: Path, patience: float, **variables: str
) -> Any:
    """What `task(*arguments)` returns in a child process, as JSON has it; both must pickle by name.

    The child is killed once nothing has changed in the folder `scratch`, where its temporary files lie, for
    `patience` seconds. `variables` are added to its environment. Raises CometError.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COMET_") or name in _KEPT_VARIABLES
    }
    environment = _PATIENCE | inherited | _CHILD_VARIABLES | variables | {"TMPDIR": str(scratch)}
    with subprocess.Popen(
        [sys.executable, *_COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the SDK's log may quote a key
        env=environment,
        start_new_session=True,  # a Ctrl-C is the parent's, which ends the child
    ) as child:
        try:
            answer = _patiently(
                child, pickle.dumps(sys.path) + pickle.dumps((task, arguments)), scratch, patience
            )
        finally:
            child.kill()
    if not answer:
        raise CometError(f"the process that talks to Comet died with code {child.returncode}")
    kind, value = json.loads(answer)
    if kind == "refused":
        raise CometError(value)
    return value


def _patiently(child: "subprocess.Popen[bytes]", request: bytes, scratch: Path, patience: float) -> bytes:
    seen, since = _state(scratch), time.monotonic()
    while True:
        try:
            return child.communicate(request, timeout=min(0.5, patience))[0]
        except subprocess.TimeoutExpired:
            state, now = _state(scratch), time.monotonic()
            if state != seen:
                seen, since = state, now
            elif now - since >= patience:
                raise CometError(UNANSWERED) from None


def _state(folder: Path) -> tuple[int, int]:
    """How many files there are, and of how many bytes."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # it has just gone
            continue
    return len(sizes), sum(sizes)


def answer_parent() -> None:
    """Live the child's life: read the task from stdin, do it, answer on stdout."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what anyone prints goes nowhere
        task, arguments = pickle.load(sys.stdin.buffer)
        signal.alarm(LONGEST)
        json.dump(_attempt(task, arguments), answer)
    os._exit(0)  # what the SDK still wants to do at its exit nobody waits for


def _attempt(task: Callable[..., object], arguments: tuple[object, ...]) -> tuple[str, object]:
    try:
        return "done", task(*arguments)
    except Exception as error:  # noqa: BLE001 -- whatever failed, the parent gets one sentence
        return "refused", str(translated(error))


def connected() -> Any:
    """The SDK's API, for which a key was found; in a child process only. Raises CometError."""
    import comet_ml
    import comet_ml.api

    if not comet_ml.get_config("comet.api_key"):
        raise CometError(NO_KEY)
    return comet_ml.api.API(cache=False)


def translated(error: BaseException) -> CometError:
    """An error of the SDK as one sentence of ours, told from its kind and cause and never from its text."""
    import requests
    from comet_ml import exceptions

    chain = list(_causes(error))
    for each in chain:
        if isinstance(each, CometError):
            return each
    for each in chain:
        if isinstance(each, exceptions.InvalidAPIKey):
            return CometError(BAD_KEY)
        status = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(each, exceptions.Unauthorized) or status in (401, 403):
            return CometError(BAD_KEY)
        if status == 429:
            return CometError("Comet takes no more for now (429); try again later")
        if isinstance(status, int) and status >= 500:
            return CometError(f"the Comet server fails ({status}); try again later")
        if isinstance(each, requests.RequestException):
            return CometError(UNANSWERED)
        if isinstance(each, OSError):
            return CometError(f"{each.filename or 'a file'} cannot be used: {each.strerror}")
    return CometError(f"the Comet SDK failed with {type(error).__name__}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def seconds_for(size: int) -> int:
    """The seconds that so many bytes may take on a slow line."""
    return math.ceil(120 + size / 100_000)
