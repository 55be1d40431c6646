"""Comet's API key: whether there may be one, and what is wrong with it; never the key itself."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from search_spaces.plain_files import read_plain

KEY_VARIABLE = "COMET_API_KEY"

MOST_BYTES = 1_000_000
"""Of a file where a key may be."""


def api_key_problem(environ: Mapping[str, str]) -> str | None:
    """Say what is wrong with COMET_API_KEY in one line that does not quote it; None when unset or plausible.

    A key is 25 letters and digits, which may be followed by `*` and base64 (the address of the user's own
    server); `_SECRET_-…` names a key in a secret manager. Lengths of 20 to 64 pass.
    """
    key = environ.get(KEY_VARIABLE)
    if key is None or key.startswith("_SECRET_-"):
        return None
    if not key.strip():
        problem = "is empty"
    elif key != key.strip():
        problem = "has white space around it"
    elif not re.fullmatch(r"[A-Za-z0-9]+(\*[A-Za-z0-9+/=]*)?", key):
        problem = "has characters other than letters and digits"
    elif not 20 <= len(key.split("*")[0]) <= 64:
        problem = "is too short or too long for a key of Comet"
    else:
        return None
    return f"{KEY_VARIABLE} {problem}; the run goes on offline"


def home() -> Path:
    """The user's home folder; where nobody has one, as in a container with a user without a name, the root."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def may_have_key(environ: Mapping[str, str], folder: Path, home: Path) -> bool:
    """Whether the SDK may find a key where it looks: the environment, `.env`, and its configuration files.

    `folder` is the working directory. A broken COMET_API_KEY is none. The SDK has the last word.
    """
    if environ.get(KEY_VARIABLE) is not None:
        return api_key_problem(environ) is None
    places = [folder / ".env", folder / ".comet.config", home / ".comet.config"]
    named = environ.get("COMET_CONFIG")
    if named:
        path = Path(os.path.expanduser(named))  # noqa: PTH111  # leaves ~ as it is where nobody has a home
        places.append(path / ".comet.config" if path.is_dir() else path)
    return any("api_key" in _text(place).lower() for place in places)


def _text(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return read_plain(path, MOST_BYTES).decode()
    return ""
