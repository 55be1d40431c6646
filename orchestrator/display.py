"""How a running study looks on the terminal: a live display, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.plan import duration
from orchestrator.report.values import Wording
from orchestrator.stopping import ADVICE, Requests
from orchestrator.sweep import Progress

PLAIN_LINE_SECONDS = 5.0
RATE_WINDOW_SECONDS = 20.0
NONE = Wording()


class Speed:
    """Images per second over the last seconds, from the first image on: it took the loading along."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: list[tuple[float, int]] = []

    def update(self, images: int) -> float | None:
        """Take note of a count of images generated; images per second, None before the second that differs."""
        now = self._clock()
        if images and (not self._marks or images != self._marks[-1][1]):
            self._marks.append((now, images))
        if not self._marks:
            return None
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW_SECONDS:
            self._marks.pop(0)
        (begun, first), last = self._marks[0], images
        if last == first or now <= begun:
            return None
        return (last - first) / (now - begun)


def progress_line(progress: Progress, rate: float | None) -> str:
    """One line: done/total, images/s, time left."""
    total = "" if progress.total is None else f"/{progress.total}"
    parts = [f"{progress.images}{total} images"]
    if rate is not None:
        parts.append(f"{rate:.1f} images/s")
        if progress.total is not None and rate > 0:
            parts.append(f"{duration(max(0, progress.total - progress.images) / rate)} left")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    return ", ".join(parts)


def best_line(progress: Progress, objective: str, wording: Wording = NONE) -> str:
    """The best settings so far, as the wording of the study's values has them, or why there are none yet."""
    if progress.best is None or progress.best_score is None:
        return f"best so far: none; {progress.no_best}"
    return f"best so far: {objective} {progress.best_score:.2f} with {wording.settings(progress.best)}"


@contextmanager
def watching(
    console: Console, objective: str, quiet: bool, requests: Requests, wording: Wording = NONE
) -> Iterator[Callable[[Progress], None]]:
    """A function to be called with the progress often; it shows it as the console allows.

    A live display says by itself what it means that the user has asked to stop.
    """
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        speed, shown = Speed(), Group(Text("starting"))

        def panel() -> Group:  # drawn four times a second, also while the loop waits for Ray
            return Group(*shown.renderables, Text(ADVICE, style="bold")) if requests() else shown

        def watch(progress: Progress) -> None:
            nonlocal shown
            shown = _panel(progress, speed.update(progress.generated), objective, wording)

        with Live(console=console, refresh_per_second=4, transient=True, get_renderable=panel):
            requests.is_told = True
            try:
                yield watch
            finally:
                requests.is_told = False
    else:
        yield _plain_lines(console, objective, wording)


def _panel(progress: Progress, rate: float | None, objective: str, wording: Wording) -> Group:
    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(total=progress.total or 1, completed=progress.images, width=30),
        Text(progress_line(progress, rate)),
    )
    return Group(row, Text(best_line(progress, objective, wording)))


def _plain_lines(console: Console, objective: str, wording: Wording) -> Callable[[Progress], None]:
    speed, shown, last = Speed(), -PLAIN_LINE_SECONDS, -1

    def show(progress: Progress) -> None:
        nonlocal shown, last
        rate = speed.update(progress.generated)
        ended = progress.images == progress.total
        due = time.monotonic() - shown >= PLAIN_LINE_SECONDS or ended
        if due and progress.images != last:
            shown, last = time.monotonic(), progress.images
            line = f"{progress_line(progress, rate)}; {best_line(progress, objective, wording)}"
            console.print(Text(line), soft_wrap=True)

    return show
