"""How much a server may answer and how slowly, whatever the SDK asks it for; the SDK itself takes anything for ever.

It holds for every reply of the process, to its last byte, since it is counted where bytes leave the socket; and again
where they are unpacked. In a child process only: it changes Python's own HTTP client.
"""

import http.client
import io
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.tracking.comet.content import CometError

MOST_REPLY = 64_000_000
"""Bytes of a reply. Comet's largest but for lists of files are lists of curves, 200 bytes a point and 15,000 points
a curve; as JSON 64 MB become some 0.2 GB of memory."""

MOST_LISTING = 500_000_000
"""Bytes of a list of an experiment's files: of the 100,000 images that it may have, with 5,000 each, where metadata
of ours is some 1,000. As JSON 500 MB become some 1.8 GB of memory."""

MOST_HEAD = 1_000_000
"""Bytes of a reply's headers beside its body; Python's client takes at most 6.5 MB of them."""

GRACE_SECONDS = 30.0
"""That a reply may take from its first byte, however small it is; until that byte the SDK's own time-outs hold."""

SLOWEST = 10_000
"""Bytes a second that a reply must come with beyond that: an input picture of 256 MB may take seven hours."""


class LargeReplyError(CometError):
    """A reply is larger than what Comet may have to say."""


class SlowReplyError(OSError):
    """A reply drips. To Python's client it is an error of the connection, so that this is not used again."""


class _Limit:
    """Bytes that a reply may have now; one for the process, whose calls have their replies one kind at a time."""

    def __init__(self) -> None:
        self.most = MOST_REPLY


_limit = _Limit()


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let replies have so many bytes, if that is more than they may have anyway."""
    before, _limit.most = _limit.most, max(size, MOST_REPLY)
    try:
        yield
    finally:
        _limit.most = before


def check_size(size: int, most: int) -> None:
    """Raise LargeReplyError for a reply of more bytes than it may have."""
    if size > most:
        raise LargeReplyError(
            f"Comet's reply is larger than the {most / 1e6:,.0f} MB that it may have; is COMET_URL_OVERRIDE, or the "
            "server that the API key names, a Comet server?"
        )


class _Counted(io.RawIOBase):
    """A socket's bytes, of one reply."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._got, self._began = raw, 0, 0.0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def readinto(self, buffer: Any) -> int | None:
        got: int | None = self._raw.readinto(buffer)
        now = time.monotonic()
        self._began = self._began or now
        self._got += got or 0
        check_size(self._got - MOST_HEAD, _limit.most)
        if now - self._began > GRACE_SECONDS + self._got / SLOWEST:
            raise SlowReplyError(f"Comet's reply comes with less than {SLOWEST / 1000:,.0f} kB a second")
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Counted(self.fp.detach()))


def bound() -> None:
    """Bound every reply to this process from now on."""
    import urllib3

    http.client.HTTPConnection.response_class = _Response
    whole = urllib3.HTTPResponse.stream

    def stream(response: Any, *arguments: Any, **options: Any) -> Iterator[bytes]:
        size = 0
        for piece in whole(response, *arguments, **options):
            size += len(piece)
            check_size(size, _limit.most)
            yield piece

    urllib3.HTTPResponse.stream = stream  # type: ignore[assignment, method-assign]
