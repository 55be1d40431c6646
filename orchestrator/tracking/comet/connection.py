"""Artifacts are asked for in a child process of one question; its errors become sentences here.

The SDK's own texts may quote the key, so none of them is passed on.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.tracking.comet.child import Child, environment
from orchestrator.tracking.comet.content import CometError
from orchestrator.tracking.comet.experiment import NoKeyError, quiet

NO_KEY = "no API key of Comet was found; set COMET_API_KEY or write it into ~/.comet.config"
BAD_KEY = (
    "Comet does not let the API key that was found do this; see whether it is whole and of the right account"
)
UNANSWERED = "the Comet server cannot be reached or does not answer"


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
    quiet()
    return comet_ml.api.API(cache=False)


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the SDK as CometError, told from their kind and cause."""
    try:
        yield
    except Exception as error:
        sentence = next(filter(None, map(_sentence, _causes(error))), None)
        if isinstance(error, CometError) or sentence is None:
            raise
        raise CometError(sentence) from None


def _sentence(error: BaseException) -> str | None:
    import requests
    from comet_ml import exceptions

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, exceptions.InvalidAPIKey | exceptions.Unauthorized) or status in (401, 403):
        return BAD_KEY
    if status == 429:
        return "Comet takes no more for now (429); try again later"
    if isinstance(status, int) and status >= 500:
        return f"the Comet server fails ({status}); try again later"
    if isinstance(error, requests.RequestException):
        return UNANSWERED
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be used: {error.strerror or type(error).__name__}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
