"""What a Ray instance of our own has of this machine: a short folder and a token, neither of them for other users.

Ray alone makes ~/.ray/auth_token, which others may read, and sessions in /tmp/ray that others may write to and that
stay; both fail where home or temporary folder cannot be written, or where its name is too long for a socket.
"""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from search_spaces.errors import InputError

SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
"""The longest path of a socket: what a system's sockaddr_un holds, less its last zero."""

WITHIN = len("/sweep-abcdefgh/ray/session_2026-11-30_09-30-59_123456_4194304/sockets/plasma_store")
"""Bytes of the path of Ray's longest-named socket, from the folder for temporary files on."""

ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")
"""Tried in turn where TMPDIR is not set or of no use."""


@contextmanager
def private_folder(say: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """A folder for Ray's sockets and logs, for this user alone (0700), in RAY_TMPDIR, TMPDIR or /tmp.

    It is removed after a good end and after a signal, and kept, for its logs, after an error. `say` hears where
    TMPDIR would not do. Raises InputError where RAY_TMPDIR will not, or nothing will.
    """
    folder = _made(os.environ, say)
    opened = folder / "ray"  # Ray gives what it is given the mode 0777
    opened.mkdir()
    try:
        yield opened
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _made(environ: Mapping[str, str], say: Callable[[str], None]) -> Path:
    asked = environ.get("RAY_TMPDIR")
    if asked:
        made = _folder_in(asked)
        if isinstance(made, str):
            raise InputError(f"RAY_TMPDIR {asked}: {made}; name a short folder that can be written")
        return made
    temporary = environ.get("TMPDIR")
    problems: list[str] = []
    for base in (temporary, *ELSEWHERE):
        if not base:
            continue
        made = _folder_in(base)
        if isinstance(made, Path):
            if base != temporary and problems:
                say(f"Ray's sockets and logs are in {made}: {problems[0]}; RAY_TMPDIR names another folder")
            return made
        problems.append(f"TMPDIR {base}: {made}" if base == temporary else f"{base}: {made}")
    raise InputError(
        f"there is no folder for Ray's sockets ({'; '.join(problems)}); set RAY_TMPDIR to a short folder that can be "
        "written"
    )


def _folder_in(base: str) -> Path | str:
    """A new folder, or what is wrong with the place."""
    place = Path(base).absolute()
    length = len(os.fsencode(place)) + WITHIN
    if length > SOCKET_BYTES:
        return f"a socket's path there has {length} bytes and may have {SOCKET_BYTES}"
    try:
        return Path(tempfile.mkdtemp(prefix="sweep-", dir=place))
    except OSError as error:
        return f"it cannot be written ({error.strerror})"


@contextmanager
def fresh_token() -> Iterator[None]:
    """A token for this process and its children alone, unless the user has named one."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        os.environ.pop("RAY_AUTH_TOKEN", None)


def exposed_token() -> str | None:
    """A sentence where the file with the user's own token, which Ray makes, can be read by other users."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN") or not (named or os.environ.get("HOME")):
        return None
    path = Path(named or Path.home() / ".ray" / "auth_token").absolute()
    try:
        modes = [each.stat().st_mode for each in (path, *path.parents)]
    except OSError:
        return None
    for read, enter in ((0o040, 0o010), (0o004, 0o001)):
        if modes[0] & read and all(mode & enter for mode in modes[1:]):
            return (
                f"other users of this machine can read {path}, and with it run what they like on the cluster; "
                f"`chmod 600 {path}` keeps it yours"
            )
    return None
