"""Files and folders are there whole or not at all, and what a kill leaves is removed; nothing else is."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from workers.atomic_files import new_file, new_folder, remove_leftovers, scratch_folder, write_file

KILLED = """
import os, signal, sys
from pathlib import Path
from workers.atomic_files import new_file, new_folder, scratch_folder
with {what}(Path(sys.argv[1])) as aside:
    (aside / "half" if aside.is_dir() else aside).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(what: str, path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED.format(what=what), str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("what", ["new_file", "new_folder", "scratch_folder"])
def test_what_a_kill_leaves_is_removed_by_the_next_write(what: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    killed_while_writing(what, tmp_path if what == "scratch_folder" else path)
    assert not path.exists()
    (left,) = names(tmp_path)
    assert left.startswith(".latentsweep-")
    write_file(tmp_path / "another", b"whole")
    assert names(tmp_path) == ["another"]


def test_what_is_not_ours_or_is_being_written_stays(tmp_path: Path) -> None:
    for name in (".latentsweep", ".latentsweep-.tmp", ".latentsweep-0123456789abcdef.tmp.mine", "a.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    before = names(tmp_path)
    with new_folder(tmp_path / "out") as aside, new_file(tmp_path / "file") as beside:
        (aside / "picture").write_bytes(b"content")
        beside.write_bytes(b"content")
        elsewhere = (
            "import sys, pathlib, workers.atomic_files as a; a.remove_leftovers(pathlib.Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", elsewhere, str(tmp_path)], check=True)
        remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*before, "out", "file"])
    assert names(tmp_path / "out") == ["picture"]


def test_a_link_with_our_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").touch()
    (tmp_path / ".latentsweep-0123456789abcdef.tmp").symlink_to(tmp_path / "mine")
    remove_leftovers(tmp_path)
    assert (tmp_path / "mine" / "photo").exists()


def fail_while_writing(what: Callable[[Path], AbstractContextManager[Path]], path: Path) -> None:
    with what(path) as aside:
        (aside / "half" if aside.is_dir() else aside).write_bytes(b"half")
        raise OSError(28, "no space")


@pytest.mark.parametrize("what", [new_file, new_folder])
def test_what_fails_leaves_nothing(
    what: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="no space"):
        fail_while_writing(what, tmp_path / "out")
    assert names(tmp_path) == []


def test_a_file_is_replaced_with_its_rights_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write_file(tmp_path / "link", b"after")
    assert (tmp_path / "file").read_bytes() == b"after"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()


def test_a_file_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "file", b"before")
    with pytest.raises(OSError, match="no space") as raised:
        fail_while_writing(new_file, Path("file"))
    assert raised.value.filename == "file", "as the user named it"
    assert (tmp_path / "file").read_bytes() == b"before"


def test_an_empty_folder_is_filled_and_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as aside:
        (aside / "picture").touch()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "empty") as aside:
        (aside / "another").touch()
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == ["picture"]


def test_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"a picture")
    reader.join(10)
    assert read == [b"a picture"]
    assert pipe.is_fifo()


def test_a_scratch_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as scratch:
        (scratch / "deeper").mkdir()
        (scratch / "deeper" / "half").touch()
    assert names(tmp_path) == []
