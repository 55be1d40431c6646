"""Streaming by the real SDK to a recorder that fails: the driver never waits, and a sync completes it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Set
from concurrent.futures import wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from orchestrator.tracking import TrackedTrial
from orchestrator.tracking.comet.archive import CometOfflineTracker
from orchestrator.tracking.comet.connection import NO_KEY, UNANSWERED
from orchestrator.tracking.comet.content import CometImage, CometMetric
from orchestrator.tracking.comet.pace import Pace
from orchestrator.tracking.comet.stream import WINDOW, CometStream, Window
from orchestrator.tracking.comet.sync import SENDERS, Status, status_in_child, sync_in_child
from tests.comet_recorder import API_KEY, CometRecorder, Fault
from tests.orchestrator.tracking.comet.contents import FILE, KEY, a_record, a_study, some_pictures

IMAGES = 40


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[CometRecorder]:
    with CometRecorder() as recorder:
        quick = dict.fromkeys(("API", "HTTP", "FILE_UPLOAD"), "1")
        variables = {
            **recorder.environment,
            **{f"COMET_TIMEOUT_{name}": value for name, value in quick.items()},
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield recorder


class Run:
    """A run of so many images as the sweep has it."""

    def __init__(self, folder: Path, fallback: bool = False, closing: float = 6.0) -> None:
        self.folder, self.lines = folder, list[str]()
        self.source = partial(a_study, IMAGES)
        self.comet, self.log = folder / "comet", folder / "comet.log"
        offline = CometOfflineTracker(self.source, self.comet, self.log) if fallback else None
        self.tracker = CometStream(
            self.source, "cats", "clip_score", self.comet, self.log, self.lines.append, offline, closing
        )

    def started(self) -> "Run":
        """Once the child has said whether it is online."""
        end = time.monotonic() + 30
        while not self.lines and time.monotonic() < end:
            self.tracker.images([])
            self.tracker.trials([])
            self.tracker._hear()
            time.sleep(0.02)
        assert self.lines
        return self

    def images(self, first: int, last: int) -> "Run":
        for number in range(first, last):
            self.tracker.images([a_record(number)])
            if number % 2:
                trial = TrackedTrial(number // 2, {}, 0.5, (0.25, 0.75))
                self.tracker.trials([trial])
            time.sleep(0.005)
        return self

    def arrived(self, recorder: CometRecorder, images: int) -> "Run":
        end = time.monotonic() + 20
        while len(recorder.images(KEY)) < images and time.monotonic() < end:
            time.sleep(0.02)
        assert len(recorder.images(KEY)) >= images
        return self

    def close(self) -> str:
        return self.tracker.close() or ""

    def sync(self) -> Status:
        return sync_in_child(self.source, self.comet, self.log)


def expect_each_once(recorder: CometRecorder) -> None:
    assert sorted(recorder.image_ids(KEY)) == sorted(f"id{n}" for n in range(IMAGES))
    assert recorder.files(KEY)["cats.yaml"] == FILE


@pytest.mark.usefixtures("recorder")
def test_while_a_run_lasts_its_child_takes_the_time_that_nobody_wants(tmp_path: Path) -> None:
    run = Run(tmp_path).started()
    assert os.getpriority(os.PRIO_PROCESS, run.tracker.pid) == 19
    if hasattr(os, "SCHED_IDLE"):
        assert os.sched_getscheduler(run.tracker.pid) == os.SCHED_IDLE
    run.tracker.abandon()


def test_a_run_arrives_while_it_runs_and_the_end_says_so(recorder: CometRecorder, tmp_path: Path) -> None:
    run = Run(tmp_path).started()
    assert run.lines == [f"Comet: streaming to http://127.0.0.1:{recorder.port}/friends/dragons/{KEY}"]
    run.images(0, 10).arrived(recorder, 10)
    points = [
        (m["metricName"], m["step"]) for m in recorder.experiments[KEY].metrics if m["step"] is not None
    ]
    assert {("clip_score", 0), ("clip_score_low", 0), ("clip_score_high", 0), ("best_clip_score", 0)} <= set(
        points
    )
    run.images(10, IMAGES)
    line = run.close()
    assert line == f"Comet: all {IMAGES} images are in http://127.0.0.1:{recorder.port}/friends/dragons/{KEY}"
    expect_each_once(recorder)
    assert not (run.comet / ".comet-streaming").exists()
    sent = len(recorder.heard("write/"))
    assert run.sync().problem is None
    assert len(recorder.heard("write/")) == sent


def test_without_a_key_an_archive_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = Run(tmp_path, fallback=True).started().images(0, IMAGES)
    assert run.lines == [f"Comet: offline, since {NO_KEY}; an archive is built at the end"]
    assert re.fullmatch(rf"Comet archive: .*{KEY}\.zip \({IMAGES} images\); upload it with .*", run.close())


def test_where_no_server_answers_auto_goes_offline_and_the_archive_has_it_all(
    recorder: CometRecorder, tmp_path: Path
) -> None:
    recorder.stop()
    run = Run(tmp_path, fallback=True).started().images(0, 5)
    assert run.lines == [f"Comet: offline, since {UNANSWERED}; an archive is built at the end"]
    assert run.close().startswith("Comet archive: ")


def test_of_a_continued_study_the_best_goes_on_from_what_was_best(tmp_path: Path) -> None:
    remote = Held()
    remote.free.set()
    best = [CometMetric("best_clip_score", value, step) for step, value in ((0, 0.5), (4, 0.9))]
    window = Window(replace(a_study(1), metrics=best), remote, "clip_score", Pace())  # type: ignore[arg-type]
    for number, score in ((5, 0.2), (3, 0.1), (6, 0.95)):
        window.take({"trial": asdict(TrackedTrial(number, {}, score, (score,)))})
    wait(set(window._under_way))  # what has not begun at its end is left to the sync
    window.close(time.monotonic() + 30)
    told = [(each.step, each.value) for each in remote.metrics if each.name == "best_clip_score"]
    assert sorted(told) == [(5, 0.9), (6, 0.95)]


class Held:
    """An experiment that answers nothing before it is `free`."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.images: list[str] = []
        self.metrics: list[CometMetric] = []

    def send_image(self, image: CometImage, png: bytes) -> None:
        self.free.wait()
        self.images.append(image.image_id)

    def send_metric(self, metric: CometMetric) -> None:
        self.free.wait()
        self.metrics.append(metric)


def test_a_server_that_hangs_holds_a_window_of_records_and_a_picture_for_each_thread(tmp_path: Path) -> None:
    remote, read = Held(), list[str]()

    def counted(ids: Set[str]) -> Iterator[tuple[str, bytes]]:
        read.extend(ids)
        yield from some_pictures(ids)

    window = Window(replace(a_study(1), pictures=counted), remote, "clip_score", Pace())  # type: ignore[arg-type]
    try:
        for number in range(3_000):
            window.take({"image": asdict(a_record(number))})
            window.take({"trial": asdict(TrackedTrial(number, {}, 0.5, (0.25, 0.75)))})
            assert len(window._under_way) <= WINDOW
            assert len(read) <= SENDERS
        assert len(window._under_way) == WINDOW
    finally:
        remote.free.set()
        window.close(time.monotonic() + 30)
    assert len(remote.images) + len(remote.metrics) <= WINDOW
    assert set(remote.images) == window.acknowledged


def test_nobody_waits_for_a_child_that_stands_still(recorder: CometRecorder, tmp_path: Path) -> None:
    run = Run(tmp_path).started()
    os.kill(run.tracker.pid, signal.SIGSTOP)
    for number in range(20_000):  # a driver that waits for it would never be through
        run.tracker.images([a_record(number % IMAGES)])
    os.kill(run.tracker.pid, signal.SIGCONT)
    run.close()
    assert run.sync().sent == IMAGES
    expect_each_once(recorder)


def test_a_child_that_hangs_takes_a_bounded_number_of_records(
    recorder: CometRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_TIMEOUT_API", "600")
    recorder.faults.append(Fault("", "hang"))
    run = Run(tmp_path)
    end = time.monotonic() + 60
    while not recorder.requests and time.monotonic() < end:
        time.sleep(0.02)
    assert recorder.requests  # it hangs there
    taken = [0]
    offer = run.tracker._child.offer

    def counting(line: bytes) -> bool:
        took = offer(line)
        taken[0] += took
        assert len(run.tracker._child._rest) <= len(line) < 1_000
        return took

    monkeypatch.setattr(run.tracker._child, "offer", counting)
    tracemalloc.start()
    for number in range(20_000):
        run.tracker.images([a_record(number)])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    run.tracker.abandon()
    assert 64 <= taken[0] < 2_000  # its queue, its buffer and the pipe
    assert held < 200_000


@pytest.mark.faults
def test_a_list_that_cannot_be_had_at_the_end_is_told(recorder: CometRecorder, tmp_path: Path) -> None:
    run = Run(tmp_path, closing=4.0).started().images(0, 10).arrived(recorder, 10)
    recorder.faults.append(Fault("asset/list", "status", 500))
    run.images(10, IMAGES)
    assert run.close() == (
        f"Comet: up to {IMAGES} of {IMAGES} images are pending (the Comet server fails (500)); "
        "`latentsweep comet sync cats` sends them"
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("before", "during"),
    [
        ([Fault("", "hang")], []),
        ([], [Fault("", "hang")]),
        ([], [Fault("upload-asset", "status", 429)]),
        ([], [Fault("upload-asset", "status", 500)]),
        ([], [Fault("upload-asset", "status", 429, times=1)]),
        ([], [Fault("upload-asset", "status", 500, times=1)]),
        ([], [Fault("upload-asset", "lose reply", times=3)]),
        ([], [Fault("", "slow", seconds=0.5)]),
        ([Fault("add/run", "status", 500)], []),
    ],
    ids=[
        "hangs from the start",
        "hangs in the middle",
        "429 for ever",
        "500 for ever",
        "429 once",
        "500 once",
        "loses replies",
        "slow",
        "cannot begin",
    ],
)
def test_whatever_the_server_does_nobody_waits_and_a_sync_completes_it(
    before: list[Fault], during: list[Fault], recorder: CometRecorder, tmp_path: Path
) -> None:
    recorder.faults += before
    run = Run(tmp_path)
    if before:
        run.images(0, IMAGES)
    else:
        run.started().images(0, 10).arrived(recorder, 10)
        recorder.faults += during
        run.images(10, IMAGES)
    line = run.close()
    for_ever = [fault for fault in before + during if fault.times is None and fault.act != "slow"]
    if for_ever:
        assert "pending" in line
        assert "`latentsweep comet sync cats`" in line
    assert "\n" not in line
    recorder.faults.clear()
    recorder.stop()
    recorder.start()  # healthy again, on the same port
    status = run.sync()
    assert (status.sent, status.pending, status.problem) == (IMAGES, 0, None)
    expect_each_once(recorder)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or API_KEY.encode() not in path.read_bytes()


@pytest.mark.faults
def test_a_server_that_dies_and_returns_has_everything_at_the_end(
    recorder: CometRecorder, tmp_path: Path
) -> None:
    run = Run(tmp_path).started().images(0, 10).arrived(recorder, 10)
    recorder.stop()
    run.images(10, 30)
    recorder.start()
    run.images(30, IMAGES)
    run.close()
    assert run.sync().sent == IMAGES
    expect_each_once(recorder)


@pytest.mark.faults
def test_a_killed_child_is_one_warning_and_a_sync_completes_it(
    recorder: CometRecorder, tmp_path: Path
) -> None:
    run = Run(tmp_path).started().images(0, 10).arrived(recorder, 10)
    os.kill(run.tracker.pid, signal.SIGKILL)
    run.images(10, IMAGES)
    line = run.close()
    assert re.search(r"died with code -9; see .*; \d+ images of this run are pending", line)
    assert run.sync().sent == IMAGES
    expect_each_once(recorder)


PARENT = """
import sys, time
from pathlib import Path
from tests.orchestrator.tracking.comet.test_stream import Run
run = Run(Path(sys.argv[1])).started().images(0, 10)
print(run.tracker.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.faults
def test_everything_killed_at_once_leaves_no_process_and_a_sync_completes_it(
    recorder: CometRecorder, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    status = sync_in_child(partial(a_study, IMAGES), tmp_path / "comet", tmp_path / "comet.log")
    assert status.sent == IMAGES
    expect_each_once(recorder)


@pytest.mark.faults
def test_an_experiment_that_is_full_is_told(recorder: CometRecorder, tmp_path: Path) -> None:
    recorder.most_images = 15
    run = Run(tmp_path).started().images(0, IMAGES)
    line = run.close()
    assert f"15 of {IMAGES} images are in http" in line
    assert "refused" in line
    assert "the limit of images is reached" in line
    status = status_in_child(run.source, run.comet, run.log)
    assert (status.sent, status.pending, len(status.rejected)) == (15, 0, IMAGES - 15)
