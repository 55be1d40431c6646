"""Files that a user names are plain files: what could be waited for, or never ends, is refused at once."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_plain(path: Path, most: int) -> BinaryIO:
    """A plain file of `most` bytes at most, open to be read; no pipe is waited for, no device touched.

    Raises FileNotFoundError, IsADirectoryError, and OSError with a few words as its `strerror` for all else.
    """
    _check(os.stat(path), path, most)  # noqa: PTH116  # before it is opened, which a device may feel
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(handle), path, most)  # it may have been exchanged meanwhile
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: Path, most: int) -> bytes:
    """The content of a plain file of `most` bytes at most. Raises OSError as `open_plain` does."""
    with open_plain(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:  # it grows
        raise _too_large(path, most)
    return content


def _check(facts: os.stat_result, path: Path, most: int) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_kind, kind in _KINDS:
        if is_kind(facts.st_mode):
            raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    if facts.st_size > most:
        raise _too_large(path, most)


def _too_large(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than the {most / 1e6:,.0f} MB that are read", str(path))
