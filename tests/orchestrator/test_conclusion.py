"""What a run says at its end is true of all that can have come to pass in it."""

import signal
from itertools import product
from pathlib import Path

import pytest

from orchestrator.api import RunResult
from orchestrator.report.results import Results
from orchestrator.session import Ended
from orchestrator.sweep import Progress

NONE = Results("s", "clip_score", 1, {}, [], lambda _: None, [], [])


def result(progress: Progress, stopped: bool = False) -> RunResult:
    return RunResult(progress, NONE, Path(), "", None, [], signal.SIGINT if stopped else None)


@pytest.mark.parametrize(
    ("progress", "stopped", "said", "code"),
    [
        (Progress(images=9, generated=9, ended="finished"), False, None, 0),
        (Progress(images=9, reused=9, ended="finished"), False, None, 0),
        (
            Progress(images=9, ended="finished"),
            False,
            ("complete", "the study was finished before; nothing was left to do"),
            0,
        ),
        (
            Progress(images=9, infeasible=2, failed_before=2, ended="finished"),
            False,
            (
                "complete",
                "the study was finished before; nothing was left to do, but 2 of 9 images failed",
            ),
            3,
        ),
        (
            Progress(images=9, lost=9, ended="finished"),
            False,
            ("not complete", "9 of 9 images failed; --retry-failed tries the 9 again that were lost"),
            3,
        ),
        (
            Progress(images=9, lost=9, failed_before=9, ended="finished"),
            False,
            ("not complete", "9 of 9 images failed; --retry-failed tries the 9 again that were lost"),
            3,
        ),
        (
            Progress(images=9, infeasible=9, ended="finished"),
            False,
            ("finished", "nothing is left to do, but 9 of 9 images failed"),
            3,
        ),
        (
            Progress(images=9, generated=4, infeasible=3, lost=2, failed_before=3, ended="finished"),
            False,
            (
                "not complete",
                "5 of 9 images failed, 3 of them in earlier runs; --retry-failed tries the 2 again that were lost",
            ),
            3,
        ),
        (
            Progress(images=4, generated=4, ended="stopped"),
            True,
            ("stopped", "the same command goes on where it was"),
            130,
        ),
        (Progress(images=9, generated=9, ended="finished"), True, ("stopped", "nothing was left to do"), 130),
        (Progress(images=4, generated=4, ended="budget", ended_by="4 images"), False, None, 3),
        (Progress(images=4, ended="budget", ended_by="4 images"), False, None, 3),
    ],
)
def test_the_sentence(progress: Progress, stopped: bool, said: tuple[str, str] | None, code: int) -> None:
    found = result(progress, stopped)
    assert found.conclusion == said
    assert found.exit_code == code


ENDS: list[Ended] = ["stopped", "budget", "finished"]


@pytest.mark.parametrize(
    ("generated", "reused", "infeasible", "lost", "before", "ended", "stopped"),
    [
        case
        for case in product((0, 3), (0, 3), (0, 2), (0, 2), (0, 1, 4), ENDS, (False, True))
        if case[4] <= case[2] + case[3] and (case[6] or case[5] != "stopped")
    ],
)
def test_no_sentence_is_false(
    generated: int, reused: int, infeasible: int, lost: int, before: int, ended: Ended, stopped: bool
) -> None:
    images = generated + reused + infeasible + lost
    progress = Progress(None, images, generated, reused, infeasible, lost, before, ended=ended)
    progress.ended_by = "10 images" if ended == "budget" else None
    found = result(progress, stopped)
    label, said = found.conclusion or ("", "")
    did = generated or reused or infeasible + lost > before
    if "finished before" in said:
        assert ended == "finished"
        assert not did
    if label in ("complete", "finished"):
        assert not lost, "what was lost may be tried again"
    if "nothing was left" in said or "nothing is left" in said:
        assert ended != "stopped"
        assert not lost or stopped
    assert ("goes on where it was" in said) == (ended == "stopped")
    if ended == "finished" and infeasible + lost:
        assert f"{infeasible + lost} of {images} images failed" in said
    assert found.exit_code == (130 if stopped else 3 if infeasible + lost or ended == "budget" else 0)
