"""The progress line: rates that leave the loading out, and what they mean for the rest."""

import io
import signal

import pytest
from rich.console import Console
from rich.text import Text

from orchestrator.display import Speed, best_line, progress_line, watching
from orchestrator.report.values import Wording
from orchestrator.stopping import Requests
from orchestrator.sweep import Progress


def test_the_rate_begins_with_the_first_image_and_not_with_the_loading() -> None:
    now = 0.0
    speed = Speed(lambda: now)
    assert speed.update(0) is None
    now = 60.0  # the model is loaded
    assert speed.update(8) is None
    now = 62.0
    assert speed.update(16) == 4.0
    assert speed.update(16) == 4.0
    now = 64.0
    assert speed.update(16) == 2.0


def test_the_rate_forgets_what_is_long_ago() -> None:
    now = 0.0
    speed = Speed(lambda: now)
    speed.update(1)
    for second in range(1, 200):
        now = float(second)
        rate = speed.update(1 + second * (1 if second < 100 else 3))
    assert rate is not None
    assert 2.9 < rate < 3.1


def test_a_line_says_what_is_done_and_left() -> None:
    progress = Progress(total=100, images=40, infeasible=1, lost=2)
    assert progress_line(progress, 4.0) == "40/100 images, 4.0 images/s, 15 s left, 3 failed"
    assert progress_line(Progress(images=7), None) == "7 images"
    assert best_line(Progress(), "clip_score") == "best so far: none; no setting is judged in full"
    long = {"prompt": ["a" * 80 + "x" + "a" * 80, "a" * 80 + "y" + "a" * 80]}
    lines = {
        best_line(Progress(best={"prompt": prompt}, best_score=1.0), "clip_score", Wording(long))
        for prompt in long["prompt"]
    }
    assert len(lines) == 2
    behind = Progress(no_best="nothing judged so far beats the baseline")
    assert best_line(behind, "clip_score") == "best so far: none; nothing judged so far beats the baseline"
    best = best_line(Progress(best={"guidance_scale": 5.0}, best_score=31.456), "clip_score")
    assert best == "best so far: clip_score 31.46 with guidance_scale 5"


def test_the_live_display_says_what_a_second_ctrl_c_does(capfd: pytest.CaptureFixture[str]) -> None:
    """A line beside it would be wiped away with its next picture."""
    terminal, requests = io.StringIO(), Requests()
    console = Console(file=terminal, force_terminal=True, width=100)
    with watching(console, "clip_score", quiet=False, requests=requests) as watch:
        watch(Progress(total=10, images=3))
        requests.take(signal.SIGINT)
    shown = Text.from_ansi(terminal.getvalue()).plain
    assert shown.index("3/10 images") < shown.index("Ctrl-C again stops at once")
    assert capfd.readouterr().err == ""
    assert not requests.is_told
