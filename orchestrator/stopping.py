"""What ends a command from outside: Ctrl-C, SIGTERM and a terminal that closes, with their exit codes.

Python alone takes SIGTERM and SIGHUP for death on the spot, and libraries set handlers of their own. Only the
standard library is used here, since this is needed before anything else is imported.
"""

import errno
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command."""

ONE_REQUEST_SECONDS = 0.3
"""Within which signals are one request: `timeout` and service managers send theirs to a process and to its group."""

ADVICE = "what runs is finished and kept; Ctrl-C again stops at once"


class Stopped(KeyboardInterrupt):
    """A signal that ends the command; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(number: int) -> int:
    """As a shell has it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + number


def stopped_by(error: KeyboardInterrupt) -> int:
    """The signal behind an exception; Python's own says none and means Ctrl-C."""
    return error.number if isinstance(error, Stopped) else int(signal.SIGINT)


def told(error: KeyboardInterrupt) -> str:
    """What has ended the command, for a sentence."""
    return f"stopped by {named(stopped_by(error))}"


def named(number: int) -> str:
    """A signal as people know it: Ctrl-C, SIGTERM, SIGHUP."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def stoppable() -> Iterator[None]:
    """Each signal that ends a command raises Stopped meanwhile."""

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        if number == signal.SIGHUP:
            _leave_terminal()
        raise Stopped(number)

    with _handled(stop):
        yield


class Requests:
    """Whether, and by which signal, a command was asked to come to its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._asked_at = clock, 0.0
        self.number: int | None = None
        self.is_told = False
        """Whether a display tells the user, under which a line of ours would be wiped away."""

    def __call__(self) -> bool:
        """Whether it was."""
        return self.number is not None

    def take(self, number: int, frame: object = None) -> None:  # noqa: ARG002
        """Take in a signal. Raises Stopped for a second request."""
        if number == signal.SIGHUP:
            _leave_terminal()
        now = self._clock()
        if self.number is not None:
            if now - self._asked_at > ONE_REQUEST_SECONDS:
                raise Stopped(number)
            return
        self.number, self._asked_at = number, now
        if not self.is_told:
            with suppress(OSError):
                os.write(2, f"latentsweep: {ADVICE}\n".encode())


@contextmanager
def requests_to_stop() -> Iterator[Requests]:
    """The first signal that ends a command becomes the answer to a question; a second one raises Stopped."""
    requests = Requests()
    with _handled(requests.take):
        yield requests


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Handlers that a library sets meanwhile, by an import or from C, are taken back afterwards."""
    before = _handlers()
    try:
        yield
    finally:
        _set(before)


def until_the_end() -> None:
    """What comes now is the interpreter's end, which a signal may cut short without a word."""
    for number in _heard():
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    before = _handlers()
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        _set(before)


def _handlers() -> dict[signal.Signals, object]:
    return {number: signal.getsignal(number) for number in _heard()}


def _heard() -> list[signal.Signals]:
    """The signals that are ours to handle: none outside the main thread, and no hang-up under nohup."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [n for n in ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


def _set(handlers: dict[signal.Signals, object]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]


def _leave_terminal() -> None:
    """Print no more where the terminal has gone away, so that what runs can be finished all the same."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            number = stream.fileno()
            try:
                termios.tcgetattr(number)
            except termios.error as error:
                if error.args[0] == errno.EIO:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
