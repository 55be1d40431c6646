"""Images and curves sent to Comet while a sweep runs, by a child process that the sweep never waits for.

The driver offers records to a pipe; the child takes those that its window has room for, reads their pictures
from the catalog and sends them. What does not fit, fails or is lost with the child is left to the sync that ends
the stream, and what that does not manage in its time to `latentsweep comet sync`.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.tracking import TrackedImage, TrackedTrial
from orchestrator.tracking.comet.archive import CometOfflineTracker
from orchestrator.tracking.comet.child import Child, Inbox, Tell, environment
from orchestrator.tracking.comet.connection import (
    NoKeyError,
    RejectedError,
    ThrottledError,
    UnansweredError,
)
from orchestrator.tracking.comet.content import CometError, CometMetric, Content, Source, trial_metrics
from orchestrator.tracking.comet.experiment import Experiment
from orchestrator.tracking.comet.pace import Pace
from orchestrator.tracking.comet.sync import LONGEST_PAUSE, SENDERS, Status, keep_refused, synchronise

_log = logging.getLogger(__name__)

WINDOW = 64
"""Records that are under way or wait; beyond them images are left to the closing sync."""

CLOSING_SECONDS = 20.0
"""How long the end of a run may take to send the rest."""

GRACE_SECONDS = 5.0
"""Beyond that, for a call that is under way when the time is over."""

TELL_SECONDS = 1.0
"""Between the child's words on how much was stored."""


class CometStream:
    """A tracker that streams; it neither waits for Comet nor fails with it.

    `source` reads the study's content in the child. With `fallback` (mode auto) a child that finds no key, or no
    server that answers, leaves the study to that tracker's archive. `say` gets the one line that says which it is.
    """

    def __init__(
        self,
        source: Source,
        study: str,
        score: str,
        folder: Path,
        log: Path,
        say: Callable[[str], None] = lambda _: None,
        fallback: CometOfflineTracker | None = None,
        closing_seconds: float = CLOSING_SECONDS,
    ) -> None:
        self._study, self._say, self._fallback = study, say, fallback
        self._closing_seconds = closing_seconds
        self._folder = folder.absolute()
        self._scratch = self._folder / ".comet-streaming"
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        self._child = Child(
            stream_task,
            (source, score, self._scratch, fallback is not None),
            environment(online=True, scratch=self._scratch),
            log,
            background=True,  # where all cores draw, the closing sync sends what is left
        )
        self._offline: str | None = None  # why, once the child has said so
        self._told = self._stored = 0
        self._problem: str | None = None

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def images(self, records: Sequence[TrackedImage]) -> None:
        """Offer them; what the pipe has no room for is left to the closing sync."""
        self._told += len(records)
        for record in records:
            if not self._offer({"image": asdict(record)}):
                break

    def trials(self, records: Sequence[TrackedTrial]) -> None:
        """Offer them, as images are."""
        for record in records:
            if not self._offer({"trial": asdict(record)}):
                break

    def close(self) -> str | None:
        """Let the child send the rest for a while; the line says what Comet lists and what is pending."""
        try:
            line = self._closed()
        except CometError as error:
            missing = max(0, self._told - self._stored)
            line = self._warning(
                f"{error}; {missing:,} images of this run are pending, which {self._sync} sends"
            )
        finally:
            self.abandon()
        if self._offline is not None and self._fallback is not None:
            return self._fallback.close()
        return line

    def abandon(self) -> None:
        """End the child wherever it stands; a sync completes its work."""
        self._child.end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def _sync(self) -> str:
        return f"`latentsweep comet sync {self._study}`"

    def _offer(self, record: Mapping[str, object]) -> bool:
        """Whether there is more to be offered; the child's news are heard on the way."""
        self._hear()
        if self._offline is not None or self._problem is not None:
            return False
        self._child.offer(json.dumps(record).encode() + b"\n")
        return True

    def _hear(self) -> None:
        try:
            while self._offline is None and (found := self._child.said()) is not None:
                if found[0] == "told":
                    self._news(found[1])
        except CometError as error:
            if self._problem is None:
                self._problem = str(error)
                _log.warning("Comet: %s", error)

    def _news(self, news: Any) -> None:
        if "offline" in news:
            self._offline = news["offline"]
            self._say(f"Comet: offline, since {self._offline}; an archive is built at the end")
        elif "online" in news:
            self._say(f"Comet: streaming to {news['online']}")
        elif "stored" in news:
            self._stored = news["stored"]
        elif "waiting" in news:
            self._say(f"Comet: {news['waiting']}; the run goes on, and {self._sync} sends what is missing")

    def _closed(self) -> str | None:
        if self._problem is not None:
            raise CometError(self._problem)
        if self._offline is None:
            ask = json.dumps({"close": self._closing_seconds}).encode() + b"\n"
            self._child.insist(ask, self._closing_seconds)
            answer = self._child.result(self._closing_seconds + GRACE_SECONDS, self._news)
            if answer is not None:
                status = Status(**answer)
                if status.listed:
                    keep_refused(self._folder, status)
                return self._line(status)
        return None

    def _line(self, status: Status) -> str:
        if not status.pending and not status.rejected and status.problem is None:
            return f"Comet: all {status.total:,} images are in {status.url}"
        if status.rejected:
            refused = f"{len(status.rejected):,} are refused ({next(iter(status.rejected.values()))})"
            rest = f", {status.pending:,} pending" if status.pending else ""
            return self._warning(
                f"{status.sent:,} of {status.total:,} images are in {status.url}, {refused}{rest}"
            )
        at_most = "" if status.listed else "up to "
        what = (
            f"{at_most}{status.pending:,} of {status.total:,} images are pending"
            if status.total
            else "nothing was sent"
        )
        if not status.pending:
            what = f"all {status.total:,} images are there, but not all curves and files"
        return self._warning(
            f"{what} ({status.problem or 'the time for it was over'}); {self._sync} sends them"
        )

    def _warning(self, text: str) -> str:
        _log.warning("Comet: %s", text)
        return f"Comet: {text}"


def stream_task(
    tell: Tell, inbox: Inbox, source: Source, score: str, scratch: Path, may_be_offline: bool
) -> dict[str, Any] | None:
    """The child's task: send what is offered, then make the rest agree; None where it stays offline."""
    pace, content = Pace(), source()
    remote: Experiment | None = None
    try:
        remote = Experiment(content.study, content.key, scratch)
        tell({"online": remote.url})
    except NoKeyError as error:
        if not may_be_offline:
            raise
        tell({"offline": str(error)})
        return None
    except CometError as error:
        if may_be_offline:
            tell({"offline": str(error)})
            return None
        if not isinstance(error, UnansweredError | ThrottledError):
            raise
        tell({"waiting": str(error)})
    window = Window(content, remote, score, pace, tell)
    for record in inbox:
        if "close" in record:
            end = time.monotonic() + record["close"]
            _step_forward()
            window.close(end - record["close"] / 2)
            return asdict(_closing(source, content, remote, scratch, pace, end, window.acknowledged))
        window.take(record)
    return None


def _step_forward() -> None:
    """Nobody draws any more."""
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _closing(
    source: Source,
    content: Content,
    remote: Experiment | None,
    scratch: Path,
    pace: Pace,
    end: float,
    acknowledged: Set[str],
) -> Status:
    content = source()  # the catalog as it is now, and the files that the run has written
    total = len({image.image_id for image in content.images()})
    try:
        remote = remote or Experiment(content.study, content.key, scratch)
        return synchronise(content, remote, pace, end, acknowledged=acknowledged)
    except CometError as error:
        return Status(remote.url if remote else "", total, problem=str(error), listed=False)


class Window:
    """The records that the child has taken: at most so many, and none while the server is gone."""

    def __init__(
        self, content: Content, remote: Experiment | None, score: str, pace: Pace, tell: Tell = lambda _: None
    ) -> None:
        self._content, self._remote, self._score, self._pace = content, remote, score, pace
        self._tell, self._told_at = tell, 0.0
        self.acknowledged: set[str] = set()
        self._senders = ThreadPoolExecutor(SENDERS, "comet")
        self._room = threading.Semaphore(WINDOW)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0
        earlier = [metric for metric in content.metrics if metric.name == f"best_{score}"]
        self._best = max((metric.value for metric in earlier), default=None)
        self._highest = max((metric.step for metric in earlier), default=-1)
        self._sent: set[str] = set()
        self._under_way: set[Any] = set()

    def take(self, record: Mapping[str, Any]) -> None:
        """Send a record where there is room; leave it where there is none."""
        if self._remote is None:
            return
        if "image" in record:
            told = TrackedImage(**record["image"])
            if told.image_id not in self._sent:
                self._submit(self._image, told)
        elif "trial" in record:
            for metric in self._metrics(TrackedTrial(**record["trial"])):
                self._submit(self._metric, metric)

    def close(self, end: float) -> None:
        """Wait for what is under way, until `end` on the monotonic clock."""
        self._closed_until = float("inf")  # what has not begun is left
        wait(self._under_way, timeout=max(0.0, end - time.monotonic()))
        self._senders.shutdown(wait=False, cancel_futures=True)
        self._tell({"stored": len(self.acknowledged)})

    def _submit(self, send: Callable[[Any], None], what: object) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._closed_until or self._pace.wait(now) > 0:
                return
            if not self._room.acquire(blocking=False):
                return
            self._pace.take(now)
        future = self._senders.submit(self._guarded, send, what)
        self._under_way.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: Any) -> None:
        self._under_way.discard(future)
        self._room.release()

    def _guarded(self, send: Callable[[Any], None], what: object) -> None:
        if time.monotonic() < self._closed_until:
            return
        try:
            send(what)
        except RejectedError as error:
            if error.full:
                self._closed_until = float("inf")
        except CometError as error:
            with self._lock:
                self._failures += 1
                pause = min(2.0**self._failures, LONGEST_PAUSE)
                if isinstance(error, ThrottledError) and error.seconds is not None:
                    pause = error.seconds
                self._closed_until = max(self._closed_until, time.monotonic() + pause)
        else:
            self._failures = 0

    def _image(self, told: TrackedImage) -> None:
        image = self._content.described(told)
        if image is None or self._remote is None:
            return
        with self._reading:  # the catalog's reader is for one thread
            if image.image_id in self._sent:
                return
            self._sent.add(image.image_id)
            png = next((png for _, png in self._content.pictures({image.image_id})), None)
        if png is None:
            return
        self._remote.send_image(image, png)
        with self._lock:
            self.acknowledged.add(image.image_id)
            if time.monotonic() - self._told_at >= TELL_SECONDS:
                self._told_at = time.monotonic()
                self._tell({"stored": len(self.acknowledged)})

    def _metric(self, metric: CometMetric) -> None:
        if self._remote is not None:
            self._remote.send_metric(metric)

    def _metrics(self, trial: TrackedTrial) -> list[CometMetric]:
        """A trial's score with its interval, and the best of all that are through, at the highest number so far."""
        if not trial.scores:
            return []
        metrics = trial_metrics(self._score, trial.number, trial.scores)
        mean = metrics[0].value
        if trial.keeps:
            self._best = mean if self._best is None else max(self._best, mean)
        if trial.number > self._highest and self._best is not None:
            self._highest = trial.number
            metrics.append(CometMetric(f"best_{self._score}", self._best, trial.number))
        return metrics
