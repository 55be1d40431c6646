"""Replies that never end, to the real SDK: each is given up after so many bytes or seconds, in a sentence."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.tracking.comet import replies
from orchestrator.tracking.comet.content import CometError, Content
from orchestrator.tracking.comet.inputs import Wanted, fetch
from orchestrator.tracking.comet.sync import status_in_child, sync_in_child
from search_spaces.artifacts import parse_artifact_file
from tests.comet_recorder import CometRecorder, Fault
from tests.orchestrator.tracking.comet.contents import a_study

LARGE = (
    r"^Comet's reply is larger than the 64 MB that it may have; is COMET_URL_OVERRIDE, or the server that the "
    r"API key names, a Comet server\?$"
)


def hasty() -> Content:
    """Three images, in a child whose patience ends within a test's."""
    replies.GRACE_SECONDS = 1.0
    replies.MOST_LISTING = replies.MOST_REPLY
    return a_study(3)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CometRecorder]:
    with CometRecorder() as recorder:
        recorder.put_artifact("friends", "photos", "1.0.0", {"mask.png": b"a mask"})
        for name, value in recorder.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield recorder


def sync(folder: Path) -> object:
    return sync_in_child(hasty, folder / "comet", folder / "comet.log")


def status(folder: Path) -> object:
    return status_in_child(hasty, folder / "comet", folder / "comet.log")


def download(_: Path) -> object:
    file = parse_artifact_file("comet://friends/photos:1.0.0/mask.png")
    assert file is not None
    return fetch([Wanted(file)])


ENDLESS = {
    "a list": (status, "asset/list"),
    "a list before images are sent": (sync, "asset/list"),
    "curves": (sync, "metrics"),
    "an artifact": (download, "artifacts/version"),
    "a file of an artifact": (download, "get-asset"),
}


@pytest.mark.parametrize(
    ("name", "act"),
    [*((name, "flood") for name in ENDLESS), ("a list", "bomb"), ("a file of an artifact", "bomb")],
)
def test_a_reply_has_its_most_bytes_also_unpacked(
    recorder: CometRecorder, tmp_path: Path, name: str, act: str
) -> None:
    command, path = ENDLESS[name]
    sync(tmp_path)
    fault = Fault(path, act)  # type: ignore[arg-type]
    recorder.faults.append(fault)
    with pytest.raises(CometError, match=LARGE):
        command(tmp_path)
    assert fault.met == 1  # it is not asked for again
    assert fault.sent < 1.2 * replies.MOST_REPLY
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.name != "comet.log" and path.is_file()
    ]


@pytest.mark.parametrize("act", ["drip", "drip head"])
def test_a_reply_that_drips_is_given_up(recorder: CometRecorder, tmp_path: Path, act: str) -> None:
    sync(tmp_path)
    fault = Fault("asset/list", act, seconds=0.1)  # type: ignore[arg-type]
    recorder.faults.append(fault)
    with pytest.raises(CometError, match=r"^Comet's reply comes with less than 10 kB a second$"):
        status(tmp_path)
    assert fault.sent < 100  # it would have dripped for ever, with never a second of silence
    recorder.faults.clear()
    assert status(tmp_path) == sync(tmp_path)


def test_a_sync_waits_for_a_server_that_has_dripped(recorder: CometRecorder, tmp_path: Path) -> None:
    recorder.faults.append(Fault("asset/list", "drip", seconds=0.1, times=1))
    assert "sent=3, " in str(sync(tmp_path))


COUNTED = """
import http.client, sys
from orchestrator.tracking.comet import replies
replies.bound()
import requests
with replies.at_most({most}):
    print(len(requests.get(sys.argv[1], timeout=20).content))
"""


@pytest.mark.parametrize(
    ("size", "most", "fits"),
    [(64_000_000, 0, True), (64_000_001, 0, False), (64_000_001, 64_000_001, True)],
)
def test_what_is_as_large_as_it_may_be_comes_whole(
    recorder: CometRecorder, tmp_path: Path, size: int, most: int, fits: bool
) -> None:
    url = f"{recorder.url}artifacts/large"
    recorder.answer = lambda *_: bytes(size)  # type: ignore[method-assign]
    recorder.authorise = lambda *_: None  # type: ignore[method-assign]
    asked = subprocess.run(
        [sys.executable, "-c", COUNTED.format(most=most), url], check=False, capture_output=True, text=True
    )
    if fits:
        assert (asked.stdout, asked.stderr) == (f"{size}\n", "")
    else:
        assert "LargeReplyError" in asked.stderr
