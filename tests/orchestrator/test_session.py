"""How a study's latest session ended is kept beside it, and is read whatever has become of the file."""

from pathlib import Path

import pytest

from orchestrator.session import Extent, Session
from orchestrator.study_folder import StudyFolder


def test_a_session_is_read_as_it_was_kept(tmp_path: Path) -> None:
    folder = StudyFolder(str(tmp_path), "small")
    assert folder.session() is None
    with folder.locked():
        for ended in ("running", "stopped", "budget", "finished"):
            session = Session(ended, Extent(6, 18, at_most=True), "SIGTERM" if ended == "stopped" else "", 12)
            folder.keep_session(session)
            assert folder.session() == session


def test_a_session_without_a_living_owner_was_cut_off(tmp_path: Path) -> None:
    folder = StudyFolder(str(tmp_path), "small")
    with folder.locked():
        folder.keep_session(Session("running", Extent(6, 18)))
    assert folder.session() == Session("cut off", Extent(6, 18))


def test_a_session_that_counted_no_scores_is_read(tmp_path: Path) -> None:
    folder = StudyFolder(str(tmp_path), "small")
    folder.path.mkdir(parents=True)
    kept = (
        '{"ended": "stopped", "extent": {"settings": 2, "images": 6, "at_most": false}, "signal": "Ctrl-C"}'
    )
    (folder.path / "session.json").write_text(kept, encoding="utf-8")
    assert folder.session() == Session("stopped", Extent(2, 6), "Ctrl-C", 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"ended": "running"}',
        '{"ended": "won", "extent": {"settings": 1, "images": 1}}',
        '{"ended": "stopped", "extent": {"settings": "1", "images": 1}}',
        '{"ended": "stopped", "extent": {"settings": -1, "images": 1}}',
        '{"ended": "stopped", "extent": null}',
        '{"ended": "stopped", "extent": {"settings": 1, "images": 1}, "signal": "", "scored": -1}',
        '{"ended": "stopped", "extent": {"settings": 1, "images": 1}, "signal": "", "scored": "1"}',
        '{"ended": [], "extent": {"settings": 1, "images": 1, "more": 2}}',
    ],
)
def test_what_is_no_session_tells_nothing(text: str, tmp_path: Path) -> None:
    folder = StudyFolder(str(tmp_path), "small")
    folder.path.mkdir(parents=True)
    (folder.path / "session.json").write_text(text, encoding="utf-8")
    assert folder.session() is None
