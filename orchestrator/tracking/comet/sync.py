"""Make Comet agree with the catalog: list, send exactly what is missing, list again. Only a listing is believed."""

import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from orchestrator.tracking.comet.child import Child, Inbox, Tell, environment
from orchestrator.tracking.comet.connection import RejectedError, ThrottledError, UnansweredError
from orchestrator.tracking.comet.content import (
    CometError,
    CometImage,
    CometMetric,
    CometStudy,
    Content,
    Source,
    with_pictures,
)
from orchestrator.tracking.comet.experiment import Experiment, ListedImage, MetricPoint, metric_point
from orchestrator.tracking.comet.pace import Pace
from workers.atomic_files import write_file

SENDERS = 4
"""Threads that send: an upload waits for its answer for most of its time."""

MOST_LISTINGS = 10
"""After which what is still missing is left to the next sync."""

LOOKS = 3
"""Listings that may lack what was acknowledged, after 1, 2 and 4 s, before it is sent anew."""

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
    """Where an experiment stands: of `total` images `sent` are listed there, `rejected` were refused, each with why.

    `problem` is a sentence on what kept the rest, None where nothing did. With `listed` False Comet's list could not
    be had, and `sent` is 0 whatever is there.
    """

    url: str = ""
    total: int = 0
    sent: int = 0
    removed: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    listed: bool = True

    @property
    def pending(self) -> int:
        """Images that are neither sent nor rejected."""
        return self.total - self.sent - len(self.rejected)

    def without(self, image_id: str) -> None:
        """Note an image whose picture the catalog does not give."""
        self.rejected[image_id] = "its picture in the catalog is gone, or is not what was stored"


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
        tell: Tell = lambda _: None,
    ) -> None:
        self._remote, self._pace, self._until = remote, pace, until
        self._clock, self._sleep, self._tell = clock, sleep, tell
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._resume_at = 0.0
        self.problem: str | None = None
        self.rejected: dict[str, str] = {}
        self.acknowledged: set[str] = set()
        self.gone = False  # the server, or the time
        self.full = False

    def images(self, images: Iterable[tuple[CometImage, bytes]]) -> None:
        """Send images, at most twice as many in memory as there are threads."""
        under_way: set[Future[None]] = set()
        with ThreadPoolExecutor(SENDERS, "comet") as senders:
            for image, png in images:
                if self.gone or self.full or not self._wait_for_turn():
                    break
                under_way.add(senders.submit(self._image, image, png))
                if len(under_way) >= 2 * SENDERS:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    for each in done:
                        each.result()
        for each in under_way:
            each.result()

    def attempt(self, what: str, call: Callable[[], None], submits: bool = True) -> bool:
        """Make one call that may be repeated, until it is answered; False where it was not."""
        while not self.gone and self._wait_for_turn(submits):
            if self._try(what, call):
                return True
            if what in self.rejected:
                return False
        return False

    def pause(self, seconds: float) -> bool:
        """Wait so long; False where that is beyond the time there is."""
        if self._clock() + seconds >= self._until:
            return False
        self._sleep(seconds)
        return True

    def _image(self, image: CometImage, png: bytes) -> None:
        if self.gone or self.full:
            return
        if self._try(image.image_id, lambda: self._remote.send_image(image, png)):
            with self._lock:
                self.acknowledged.add(image.image_id)

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

    def listed(self) -> list[ListedImage] | None:
        """The experiment's images; None where nobody answers. One last look where the server or the time is gone."""
        found: list[ListedImage] = []

        def look() -> None:
            found[:] = self._remote.images()

        if self.gone:
            return found if self._try("listing", look) else None
        return found if self.attempt("listing", look, submits=False) else None

    def _wait_for_turn(self, submits: bool = True) -> bool:
        """Wait as long as quotas and failures ask for; False where that is beyond the time there is."""
        while True:
            now = self._clock()
            left = max(self._pace.wait(now) if submits else 0.0, self._resume_at - now)
            if now + left >= self._until:
                self.problem = self.problem or "the time for it was over"
                self.gone = True
                return False
            if left <= 0:
                if submits:
                    self._pace.take(now)
                return True
            if left > LONGEST_PAUSE:  # for Comet's hourly quota, or since it asks for it
                self._tell({"waiting": left})
            self._sleep(left)


def synchronise(
    content: Content,
    remote: Remote,
    pace: Pace,
    until: float = float("inf"),
    tell: Tell = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    acknowledged: Collection[str] = (),
) -> Status:
    """Send what the experiment lacks of the content until `until` on the clock; the state by the last listing.

    Images that it lists twice are removed but for the first. Those that it has `acknowledged` a moment ago, or does
    now, may be listed a little later. Where the server is gone, `problem` says so; the same call goes on later.
    Raises CometError where nothing can be listed at all.
    """
    ours = {image.image_id for image in content.images()}
    status = Status(remote.url, len(ours), listed=False)
    sender = Sender(remote, pace, until, clock, sleep, tell)
    sender.acknowledged |= set(acknowledged)
    copies: set[str] = set()
    removed: set[str] = set()
    looks = 0
    for _ in range(MOST_LISTINGS):
        listed = sender.listed()
        if listed is None:
            if not status.listed:
                raise CometError(sender.problem or "the Comet server does not answer")
            break
        status.listed = True
        there = {image.image_id for image in listed}
        copies = set(superfluous(listed, ours))
        status.removed = len(removed - {image.asset_id for image in listed})
        status.sent = len(ours & there)
        status.rejected = {name: why for name, why in status.rejected.items() if name not in there}
        missing = ours - there - status.rejected.keys()
        tell({"sent": status.sent, "total": status.total})
        if not (missing or copies) or sender.gone:
            break
        fresh = copies - removed
        for asset_id in sorted(fresh):
            if sender.attempt(f"copy {asset_id}", partial(remote.remove, asset_id)):
                removed.add(asset_id)
        if sender.full:
            status.rejected |= dict.fromkeys(missing, next(iter(sender.rejected.values())))
            continue
        due = missing - sender.acknowledged
        if due:
            status.problem = sender.problem = None
            wanted = (image for image in content.images() if image.image_id in due)
            sender.images(_told(with_pictures(content, wanted, status.without), status, tell))
            status.problem = sender.problem
            status.rejected |= {name: why for name, why in sender.rejected.items() if name in ours}
        elif not fresh and looks < LOOKS:
            if not sender.pause(2.0**looks):
                break
            looks += 1
        elif not fresh:
            sender.acknowledged.clear()
    if not status.pending:
        status.problem = next(iter(status.rejected.values()), None)
    elif status.problem is None:
        status.problem = sender.problem or "the rest does not appear in Comet's list"
    if status.problem is None and copies:
        status.problem = f"Comet still lists {len(copies):,} copies that it was asked to remove"
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
    due = [metric for metric in content.metrics if done[-1] and math.isfinite(metric.value)]
    done += [
        sender.attempt(f"curve {metric.name} at {metric.step}", partial(remote.send_metric, metric))
        for metric in due
        if metric_point(metric) not in points
    ]
    done.append(sender.attempt("files", lambda: remote.send_files(content.study.files)))
    if all(done):
        sender.problem = None


def sync_task(tell: Tell, _: Inbox, source: Source, scratch: Path) -> dict[str, Any]:
    """The child's task: `synchronise`."""
    content = source()
    remote = Experiment(content.study, content.key, scratch)
    return asdict(synchronise(content, remote, Pace(), tell=tell))


def status_task(
    _: Tell, __: Inbox, source: Source, scratch: Path, refused: Mapping[str, str]
) -> dict[str, Any]:
    """The child's task: what is listed; of what is not, what was `refused` before."""
    content = source()
    remote = Experiment(content.study, content.key, scratch, make=False)
    wanted = {image.image_id for image in content.images()}
    there = {image.image_id for image in remote.images()} if remote.exists else set()
    rejected = {name: why for name, why in refused.items() if name in wanted - there}
    return asdict(Status(remote.url, len(wanted), len(wanted & there), rejected=rejected))


def sync_in_child(
    source: Source, folder: Path, log: Path, told: Callable[[object], None] = lambda _: None
) -> Status:
    """Make a study's experiment agree with the catalog.

    `folder` belongs to the study: one at a time. `told` hears `{"sent", "total"}` or, before a longer pause, how many
    seconds it is `{"waiting"}`. Raises CometError.
    """
    scratch = folder.absolute() / ".comet-sending"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    child = Child(sync_task, (source, scratch), environment(online=True, scratch=scratch), log)
    try:
        status = Status(**child.result(None, told))
    finally:
        child.end()
        shutil.rmtree(scratch, ignore_errors=True)
    keep_refused(folder, status)
    return status


def status_in_child(source: Source, folder: Path, log: Path) -> Status:
    """Say where a study's experiment stands, sending nothing; also while a run or a sync sends.

    A study's folder that may only be read is no hindrance. Raises CometError.
    """
    with _listing_places(folder, log) as (scratch, chatter):
        arguments = (source, scratch, _refused(folder))
        child = Child(status_task, arguments, environment(online=True, scratch=scratch), chatter)
        try:
            return Status(**child.result(None))
        finally:
            child.end()


@contextmanager
def _listing_places(folder: Path, log: Path) -> Iterator[tuple[Path, Path]]:
    """A folder for the SDK's own files, and the log; where these cannot be in `folder` and `log`, both in TMPDIR.

    There the log stays behind after an error alone, which names it.
    """
    prefix, aside = ".comet-listing-", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.absolute()))
    except OSError:
        scratch = Path(tempfile.mkdtemp(prefix=prefix))
        handle, name = tempfile.mkstemp(prefix="comet-status-", suffix=".log")
        os.close(handle)
        aside = Path(name)
    try:
        yield scratch, aside or log
        if aside is not None:
            aside.unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_REFUSED = "refused.json"


def keep_refused(folder: Path, status: Status) -> None:
    """Write down what Comet refused, with its reasons: no listing tells it. The next sync tries it again."""
    path = folder / _REFUSED
    if not status.rejected:
        path.unlink(missing_ok=True)
        return
    write_file(path, json.dumps(status.rejected, indent=1).encode())


def _refused(folder: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / _REFUSED).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
