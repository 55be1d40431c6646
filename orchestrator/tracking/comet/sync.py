"""Make Comet agree with the catalog: list, send exactly what is missing, list again. Only a listing is believed."""

import math
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from orchestrator.tracking.comet.child import Child, Inbox, Tell, environment
from orchestrator.tracking.comet.content import (
    CometError,
    CometImage,
    CometMetric,
    CometStudy,
    Content,
    Source,
    with_pictures,
)
from orchestrator.tracking.comet.experiment import (
    Experiment,
    ListedImage,
    MetricPoint,
    RejectedError,
    ThrottledError,
    UnansweredError,
    metric_point,
)
from orchestrator.tracking.comet.pace import Pace

SENDERS = 4
"""Threads that send: an upload waits for its answer for most of its time."""

ROUNDS = 5
"""Listings after which what is still missing is left to the next sync."""

PATIENCE = 5
"""Failures in a row after which a server counts as gone."""

LONGEST_PAUSE = 60.0
"""Seconds between attempts at a server that fails or takes no more."""


class Remote(Protocol):
    """An experiment, as `Experiment` is one."""

    url: str

    def images(self) -> list[ListedImage]: ...  # noqa: D102  # `Experiment` says it
    def send_image(self, image: CometImage, png: bytes) -> None: ...  # noqa: D102
    def remove(self, asset_id: str) -> None: ...  # noqa: D102
    def metrics(self) -> set[MetricPoint]: ...  # noqa: D102
    def send_metric(self, metric: CometMetric) -> None: ...  # noqa: D102
    def send_facts(self, study: CometStudy) -> None: ...  # noqa: D102
    def send_files(self, files: Mapping[str, bytes]) -> None: ...  # noqa: D102


@dataclass
class Status:
    """Where an experiment stands: of `total` images `sent` are listed there, `rejected` are refused for good.

    `problem` is a sentence on what kept the rest, None where nothing did.
    """

    url: str = ""
    total: int = 0
    sent: int = 0
    removed: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    @property
    def pending(self) -> int:
        """Images that are neither sent nor rejected."""
        return self.total - self.sent - len(self.rejected)


def superfluous(listed: Sequence[ListedImage], wanted: Collection[str]) -> list[str]:
    """The assets that show one of our images again, the first of each stays."""
    seen: set[str] = set()
    again = []
    for image in listed:
        if image.image_id is None or image.image_id not in wanted:
            continue
        if image.image_id in seen:
            again.append(image.asset_id)
        seen.add(image.image_id)
    return again


class Sender:
    """Sends in threads, within the quotas, and stops where the server is gone or time is up.

    After a failure that leaves it open whether an image was stored it is not sent again before a listing.
    """

    def __init__(
        self,
        remote: Remote,
        pace: Pace,
        until: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._remote, self._pace, self._until = remote, pace, until
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._resume_at = 0.0
        self.problem: str | None = None
        self.rejected: dict[str, str] = {}
        self.gone = False  # the server, or the time
        self.full = False

    def images(self, images: Iterable[tuple[CometImage, bytes]]) -> int:
        """Send images, at most twice as many in memory as there are threads; how many were acknowledged."""
        acknowledged = 0
        under_way: set[Future[bool]] = set()
        with ThreadPoolExecutor(SENDERS, "comet") as senders:
            for image, png in images:
                if self.gone or self.full or not self._wait_for_turn():
                    break
                under_way.add(senders.submit(self._image, image, png))
                if len(under_way) >= 2 * SENDERS:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    acknowledged += sum(each.result() for each in done)
        return acknowledged + sum(each.result() for each in under_way)

    def attempt(self, what: str, call: Callable[[], None]) -> bool:
        """Make one call that may be repeated, until it is answered; False where it was not."""
        while not self.gone and self._wait_for_turn():
            if self._try(what, call):
                return True
            if what in self.rejected:
                return False
        return False

    def _image(self, image: CometImage, png: bytes) -> bool:
        return not (self.gone or self.full) and self._try(
            image.image_id, lambda: self._remote.send_image(image, png)
        )

    def _try(self, what: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except RejectedError as error:
            with self._lock:
                self.problem = self.problem or str(error)
                self.rejected[what] = str(error)
                self.full = self.full or error.full
        except (ThrottledError, UnansweredError) as error:
            with self._lock:
                self._failures += 1
                self.problem = str(error)
                pause = min(2.0 ** (self._failures - 1), LONGEST_PAUSE)
                if isinstance(error, ThrottledError) and error.seconds is not None:
                    pause = max(0.0, error.seconds)
                self._resume_at = max(self._resume_at, self._clock() + pause)
                self.gone = self.gone or self._failures >= PATIENCE
        else:
            with self._lock:
                self._failures = 0
            return True
        return False

    def _wait_for_turn(self) -> bool:
        """Wait as long as quotas and failures ask for; False where that is beyond the time there is."""
        while True:
            now = self._clock()
            left = max(self._pace.wait(now), self._resume_at - now)
            if now + left >= self._until:
                self.problem = self.problem or "the time for it was over"
                self.gone = True
                return False
            if left <= 0:
                self._pace.take(now)
                return True
            self._sleep(left)


def synchronise(
    content: Content,
    remote: Remote,
    pace: Pace,
    until: float = float("inf"),
    tell: Tell = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """Send what the experiment lacks of the content until `until` on the clock; the state by the last listing.

    Images that it lists twice are removed but for the first. Where the server is gone, `problem` says so; the
    same call goes on later. Raises CometError where nothing can be listed at all.
    """
    wanted = list(dict.fromkeys(image.image_id for image in content.images()))
    status = Status(remote.url, len(wanted))
    sender = Sender(remote, pace, until, clock, sleep)
    for _ in range(ROUNDS):
        try:
            listed = remote.images()
        except CometError:
            if not sender.gone:
                raise
            return status  # of the listing before
        ours = set(wanted)
        for asset_id in superfluous(listed, ours):
            remote.remove(asset_id)
            status.removed += 1
        there = {image.image_id for image in listed}
        status.sent = len(ours & there)
        missing = ours - there - status.rejected.keys()
        tell({"sent": status.sent, "total": status.total})
        if not missing or sender.gone or sender.full:
            break
        sender.problem = None
        due = (image for image in content.images() if image.image_id in missing)
        sender.images(_told(with_pictures(content, due), status, tell))
        status.problem = sender.problem
        status.rejected |= sender.rejected
    if not status.pending:
        status.problem = next(iter(status.rejected.values()), None)
    if sender.gone:
        return status
    sender.problem, sender.rejected = None, {}
    _send_the_rest(content, remote, sender)
    status.problem = status.problem or sender.problem
    return status


def _told(
    images: Iterable[tuple[CometImage, bytes]], status: Status, tell: Tell
) -> Iterator[tuple[CometImage, bytes]]:
    for number, pair in enumerate(images):
        if number and number % 500 == 0:
            tell({"sent": status.sent + number, "total": status.total})
        yield pair


def _send_the_rest(content: Content, remote: Remote, sender: Sender) -> None:
    """Facts, curves and files, each compared with what is listed first; the sender's problem is what is left."""
    points: set[MetricPoint] = set()
    done = [sender.attempt("parameters", lambda: remote.send_facts(content.study))]
    done.append(sender.attempt("curves", lambda: points.update(remote.metrics())))
    for metric in content.metrics:
        if done[-1] and math.isfinite(metric.value) and metric_point(metric) not in points:
            done.append(sender.attempt(f"curve {metric.name}", partial(remote.send_metric, metric)))
    done.append(sender.attempt("files", lambda: remote.send_files(content.study.files)))
    if all(done):
        sender.problem = None


def sync_task(tell: Tell, _: Inbox, source: Source, scratch: Path, only_list: bool) -> dict[str, Any]:
    """The child's task: `synchronise`, or with `only_list` the state alone."""
    content = source()
    if only_list:
        return asdict(_listed_status(content, scratch))
    remote = Experiment(content.study, content.key, scratch)
    return asdict(synchronise(content, remote, Pace(), tell=tell))


def _listed_status(content: Content, scratch: Path) -> Status:
    remote = Experiment(content.study, content.key, scratch, make=False)
    wanted = {image.image_id for image in content.images()}
    there = {image.image_id for image in remote.images()} if remote.exists else set()
    return Status(remote.url, len(wanted), len(wanted & there))


def sync_in_child(
    source: Source,
    folder: Path,
    log: Path,
    only_list: bool = False,
    told: Callable[[object], None] = lambda _: None,
) -> Status:
    """Make a study's experiment agree with the catalog, or with `only_list` say where it stands.

    `folder` belongs to the study. Raises CometError.
    """
    scratch = folder.absolute() / ".comet-sending"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    child = Child(sync_task, (source, scratch, only_list), environment(online=True, scratch=scratch), log)
    try:
        return Status(**child.result(None, told))
    finally:
        child.end()
        shutil.rmtree(scratch, ignore_errors=True)
