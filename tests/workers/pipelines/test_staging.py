"""Weights are fetched once for a machine."""

import errno
import fcntl
import multiprocessing
import time
from pathlib import Path

import pytest

from workers.pipelines.staging import once_per_machine

CONTEXT = multiprocessing.get_context("spawn")


def fetch(folder: Path) -> None:
    """A worker that loads, and says in files when it began and ended, and what it was told."""
    number = multiprocessing.current_process().pid

    def load() -> int:
        began = time.monotonic()
        time.sleep(0.2)
        (folder / f"{number}.load").write_text(f"{began} {time.monotonic()}")
        return 7

    loaded, note = once_per_machine("a model@1", load, folder / "locks")
    assert loaded == 7
    (folder / f"{number}.note").write_text(note or "")


def test_only_one_fetches_while_the_others_wait(tmp_path: Path) -> None:
    processes = [CONTEXT.Process(target=fetch, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    times = sorted(tuple(map(float, path.read_text().split())) for path in tmp_path.glob("*.load"))
    assert times[0][1] <= times[1][0], "the others begin once the first has ended"
    notes = [path.read_text() for path in tmp_path.glob("*.note")]
    assert sum("from the hub" in note for note in notes) == 1
    assert all("a model@1" in note for note in notes if note)


def test_a_fetch_that_fails_is_tried_by_the_next(tmp_path: Path) -> None:
    def fail() -> int:
        raise OSError("the hub is away")

    with pytest.raises(OSError, match="the hub is away"):
        once_per_machine("a model@1", fail, tmp_path)
    loaded, note = once_per_machine("a model@1", lambda: 3, tmp_path)
    assert loaded == 3
    assert note is not None
    assert "from the hub" in note
    assert once_per_machine("a model@1", lambda: 4, tmp_path) == (4, None), "it is there now"


def test_where_nothing_can_be_written_everybody_fetches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert once_per_machine("a model@1", lambda: 3, tmp_path / "file" / "locks") == (3, None)


def test_a_cache_that_fails_later_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, and one that what was fetched has filled."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(Path, "touch", fail)
    loaded, note = once_per_machine("a model@1", lambda: 3, tmp_path)
    assert loaded == 3
    assert note is not None
    assert "from the hub" in note
