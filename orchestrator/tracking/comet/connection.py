"""How Comet is reached in a child process, and what its SDK's errors mean.

The SDK's own texts may quote the key, so none of them is passed on but what a server says of a refusal.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.tracking.comet.child import FLAGS, Child, environment
from orchestrator.tracking.comet.content import CometError, CometStudy, disk_failure
from orchestrator.tracking.comet.replies import SlowReplyError

NO_KEY = "no API key of Comet was found; set COMET_API_KEY or write it into ~/.comet.config"
BAD_KEY = (
    "Comet does not let the API key that was found do this; see whether it is whole and of the right account"
)
UNANSWERED = "the Comet server cannot be reached or does not answer"

IMAGE_LIMIT = 7_000_001
"""Comet's own code for an experiment that takes no more images."""


class NoKeyError(CometError):
    """No API key was found."""


class UnansweredError(CometError):
    """The server did not answer, or only that it failed: nobody knows whether it has stored what was sent."""


class ThrottledError(CometError):
    """The server takes no more for now; `seconds` is how long it asks to wait, None where it does not say."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


class RejectedError(CometError):
    """The server refuses one thing for good; with `full` it takes no more images at all."""

    def __init__(self, message: str, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


def ask(
    task: Callable[..., object],
    *arguments: object,
    scratch: Path,
    log: Path,
    patience: float,
    variables: dict[str, str] | None = None,
) -> Any:
    """What `task(tell, inbox, *arguments)` returns in a child process that reaches Comet.

    The child is ended once nothing has changed in the folder `scratch`, where its files lie, for `patience` seconds;
    a number that it tells is its patience from then on. `variables` are added to its environment. Raises CometError.
    """
    child = Child(task, arguments, environment(online=True, scratch=scratch) | (variables or {}), log)
    try:
        seen, since = _state(scratch), time.monotonic()
        while True:
            said = child.said(min(0.2, patience))
            if said is not None and said[0] == "done":
                return said[1]
            state, now = _state(scratch), time.monotonic()
            if said is not None:
                patience, since = float(said[1]), now
            elif state != seen:
                seen, since = state, now
            elif now - since >= patience:
                raise CometError(UNANSWERED)
    finally:
        child.end()


def _state(folder: Path) -> tuple[int, int]:
    """How many files there are, and of how many bytes."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # it has just gone
            continue
    return len(sizes), sum(sizes)


def connected() -> Any:
    """The SDK's API, for which a key was found; in a child process only. Raises NoKeyError."""
    import comet_ml
    import comet_ml.api

    if not comet_ml.get_config("comet.api_key"):
        raise NoKeyError(NO_KEY)
    _quiet()
    return comet_ml.api.API(cache=False)


def begun(study: CometStudy, key: str) -> Any:
    """The SDK's live experiment of a key, which is made where it is not there yet; whoever asks for it ends it."""
    import comet_ml

    config = comet_ml.ExperimentConfig(name=study.experiment_name, tags=list(study.tags), **FLAGS)
    experiment = comet_ml.start(
        online=True,
        mode="get_or_create",
        experiment_key=key,
        workspace=study.workspace,
        project_name=study.project,
        experiment_config=config,
    )
    # At its end it would have Comet mail a summary to the user, with the name of this machine's user in it.
    experiment.send_notification = lambda *_, **__: None
    return experiment


def _quiet() -> None:
    """The SDK prints nothing of its own: what it would say, an exception says, and its texts may quote a key."""
    logger = logging.getLogger("comet_ml")
    logger.handlers.clear()
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the SDK as CometError or one of its kinds, told from what they are and what led to them."""
    try:
        yield
    except CometError:
        raise
    except Exception as error:
        causes = list(_causes(error))
        told = (part for cause in causes for part in (cause, *cause.args))  # where urllib3 has it
        slow = next((part for part in told if isinstance(part, SlowReplyError)), None)
        found = UnansweredError(str(slow)) if slow else next(filter(None, map(_ours, causes)), None)
        if found is None:
            raise
        raise found from None


def _ours(error: BaseException) -> CometError | None:
    import requests
    from comet_ml import exceptions

    if isinstance(error, CometError):
        return error
    if isinstance(error, exceptions.InvalidAPIKey | exceptions.Unauthorized):
        return CometError(BAD_KEY)
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) is not None:
        return _of_status(response, getattr(error, "sdk_error_code", None), getattr(error, "safe_msg", None))
    if isinstance(error, requests.RequestException | ConnectionError | TimeoutError):
        return UnansweredError(UNANSWERED)
    if isinstance(error, OSError):
        disk = disk_failure(error, Path(os.environ["TMPDIR"]))  # in a child it is ours
        return disk or CometError(
            f"{error.filename or 'a file'} cannot be used: {error.strerror or type(error).__name__}"
        )
    return None


def _of_status(response: Any, code: object, message: object) -> CometError:
    status = response.status_code
    if status in (401, 403):
        return CometError(BAD_KEY)
    if status == 429:
        headers = getattr(response, "headers", {})
        asked = headers.get("Retry-After-Custom") or headers.get("Retry-After") or ""
        seconds = None
        with suppress(ValueError):
            seconds = float(asked)
        return ThrottledError("Comet takes no more for now (429)", seconds)
    if status >= 500 or status == 408:
        return UnansweredError(f"the Comet server fails ({status})")
    reason = " ".join(str(message).split())[:200] if message else f"status {status}"
    return RejectedError(f"Comet refuses it: {reason}", full=code == IMAGE_LIMIT)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
