"""One command of `latentsweep` that ends itself by SIGKILL once it has begun to write so often.

Run as `python -m tests.faults.killed_command PLACE STEP DELAY COMMAND…`: with STEP 0 nothing is killed, and the
number of steps is printed on the last line. A step is a file opened for writing, a rename, a removal, or a folder
made, below PLACE. What pyarrow writes in C++ is no step; DELAY, in seconds from the step to the kill, lets a kill
fall there too.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from orchestrator.cli import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def is_step(place: Path, event: str, arguments: tuple[object, ...]) -> bool:
    """Whether this event of Python's audit changes something below a folder."""
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & OPENED_TO_WRITE:
            return False
    elif event not in CHANGES:
        return False
    path = arguments[0]
    return isinstance(path, str | bytes) and Path(os.fsdecode(path)).absolute().is_relative_to(place)


class Killer:
    """Counts steps, and kills its own process at one of them."""

    def __init__(self, place: Path, step: int, delay: float) -> None:
        self.place, self.step, self.delay = place.absolute(), step, delay
        self.steps = 0

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        """What Python's audit calls, before the event happens."""
        if not is_step(self.place, event, arguments):
            return
        self.steps += 1
        if self.steps != self.step:
            return
        if self.delay:
            threading.Thread(target=self.kill_later, daemon=True).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_later(self) -> None:
        """Let the command go on for a moment first."""
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def run(place: Path, step: int, delay: float, command: list[str]) -> int:
    """The command's exit code, where it lives to have one; a delayed kill that comes late is waited for."""
    killer = Killer(place, step, delay)
    sys.addaudithook(killer.hook)
    code = main(command)
    if 0 < killer.step <= killer.steps:
        time.sleep(killer.delay + 60)
    print(killer.steps)
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
