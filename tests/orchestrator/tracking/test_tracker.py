"""The seam: what holds for every tracker, and that no tracker's failure reaches the study."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from orchestrator.tracking import (
    Guarded,
    NullTracker,
    RecordingTracker,
    TrackedImage,
    TrackedTrial,
    Tracker,
)
from orchestrator.tracking.comet.archive import CometOfflineTracker
from tests.orchestrator.tracking.comet.contents import a_study

IMAGE = TrackedImage("id0", 0, 0, "search", {"guidance_scale": 7.5}, {"clip": 0.3})
TRIAL = TrackedTrial(0, {"guidance_scale": 7.5}, None)


class TrackerContract:
    """Three lines of test class per implementation: say how one is made."""

    def make(self, folder: Path) -> Tracker:
        raise NotImplementedError

    def test_takes_batches_of_any_length_and_closes_with_one_line_at_most(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        tracker.images([])
        tracker.trials([])
        tracker.images([IMAGE, IMAGE])
        tracker.trials([TRIAL])
        line = tracker.close()
        assert line is None or (line and "\n" not in line)


class TestNullTracker(TrackerContract):
    def make(self, _: Path) -> Tracker:
        return NullTracker()


class TestRecordingTracker(TrackerContract):
    def make(self, _: Path) -> Tracker:
        return RecordingTracker()

    def test_keeps_what_it_was_told(self) -> None:
        tracker = RecordingTracker()
        tracker.images([IMAGE])
        tracker.trials([TRIAL])
        assert (tracker.told_images, tracker.told_trials) == ([IMAGE], [TRIAL])
        assert tracker.close() == "recorded 1 images and 1 trials"

    @pytest.mark.parametrize("call", [lambda t: t.images([]), lambda t: t.trials([]), lambda t: t.close()])
    def test_refuses_to_be_told_more_after_close(self, call: Callable[[Tracker], object]) -> None:
        tracker = RecordingTracker()
        tracker.close()
        with pytest.raises(RuntimeError, match="closed"):
            call(tracker)


class TestCometOfflineTracker(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return CometOfflineTracker(partial(a_study, 1), folder / "comet", folder / "comet.log")


class FailingTracker:
    def images(self, records: Sequence[TrackedImage]) -> None:
        raise OSError(f"no room for\n{len(records)} images")

    def trials(self, records: Sequence[TrackedTrial]) -> None:
        raise ValueError(f"no such {len(records)} trials")

    def close(self) -> str | None:
        raise TimeoutError("too slow")

    def abandon(self) -> None:
        raise OSError("will not go")


class TestGuarded(TrackerContract):
    def make(self, _: Path) -> Tracker:
        return Guarded(FailingTracker())

    def test_passes_everything_on(self) -> None:
        inner = RecordingTracker()
        tracker = Guarded(inner)
        tracker.images([IMAGE])
        tracker.trials([TRIAL])
        assert (inner.told_images, inner.told_trials) == ([IMAGE], [TRIAL])
        assert tracker.close() == "recorded 1 images and 1 trials"
        assert tracker.failures == 0

    def test_logs_the_first_failure_counts_all_and_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        tracker = Guarded(FailingTracker())
        with caplog.at_level(logging.WARNING):
            tracker.images([IMAGE])
            tracker.trials([TRIAL])
            line = tracker.close()
        assert tracker.failures == 3
        assert line == "tracking failed 3 times, first with a disk's error: no room for 1 images"
        assert [record.getMessage() for record in caplog.records] == [
            "tracking failed with a disk's error: no room for 1 images; the study goes on"
        ]

    def test_a_disk_counts_where_the_end_fails(self) -> None:
        class Full(NullTracker):
            def images(self, records: Sequence[TrackedImage]) -> None:
                raise OSError(28, "No space left on device")

        tracker = Guarded(Full())
        tracker.images([IMAGE])
        assert (tracker.close(), tracker.failures, tracker.disk_failed) == (
            "tracking failed once with a disk's error: [Errno 28] No space left on device",
            1,
            False,
        )
        tracker = Guarded(FailingTracker())
        tracker.close()
        assert tracker.disk_failed

    def test_keeps_the_trackers_own_line_beside_a_failure(self) -> None:
        inner = RecordingTracker()
        tracker = Guarded(inner)
        inner.closed = True
        tracker.images([IMAGE])
        inner.closed = False
        line = tracker.close()
        assert line == (
            "recorded 0 images and 0 trials; tracking failed once with RuntimeError: the tracker is closed"
        )

    def test_ctrl_c_is_no_failure_of_the_tracker(self) -> None:
        class Interrupted(NullTracker):
            def close(self) -> str | None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Guarded(Interrupted()).close()
