"""What a user may name in place of a file that could be waited for, or that never ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def unending(folder: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """A pipe, socket, device, loop of links or huge file, and words of the sentence that refuses it."""
    path = folder / kind
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            here = os.open(folder, os.O_RDONLY)  # a socket's name has 107 letters at most
            try:
                listener.bind(f"/proc/self/fd/{here}/{kind}")
            finally:
                os.close(here)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "loop":
            path.symlink_to(path)
        else:
            with path.open("wb") as file:
                file.truncate(10**13)
        words = {
            "pipe": "it is a pipe, not a file",
            "socket": "it is a socket, not a file",
            "device": "it is a device, not a file",
            "loop": "Too many levels of symbolic links",
            "huge": "it is larger than the",
        }
        yield path, words[kind]
