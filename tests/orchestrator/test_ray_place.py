"""Where a Ray instance of our own lives: for one user alone, short enough for sockets, and not in a home."""

import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import ray_place
from orchestrator.ray_place import SOCKET_BYTES, exposed_token, fresh_token, private_folder
from orchestrator.stopping import Stopped
from search_spaces.errors import InputError

LONGEST_WITHIN = "session_2026-11-30_09-30-59_123456_4194304/sockets/plasma_store"


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_nobody_else_can_enter_it_and_it_is_gone_after_a_good_end() -> None:
    before = os.umask(0)
    try:
        with private_folder() as folder:
            folder.chmod(0o777)  # as Ray does
            assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert not folder.parent.exists()


def test_after_an_error_its_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_place, "WITHIN", 0)  # pytest's own folders are long
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(RuntimeError), private_folder() as folder:  # noqa: PT012
        assert folder.parent.parent == tmp_path
        raise RuntimeError
    assert folder.is_dir()


def test_after_a_signal_nothing_is_kept() -> None:
    with pytest.raises(Stopped), private_folder() as folder:  # noqa: PT012
        assert folder.is_dir()
        raise Stopped(signal.SIGINT)
    assert not folder.parent.exists()


def test_a_tmpdir_that_is_too_long_is_said_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Slurm's folders for a job are."""
    long = "/net/cluster/user/slurm_jobdir/1355700/tmp.node"
    monkeypatch.setenv("TMPDIR", long)
    said: list[str] = []
    with private_folder(said.append) as folder:
        assert str(folder.parent.parent) in ray_place.ELSEWHERE
        assert len(os.fsencode(folder / LONGEST_WITHIN)) <= SOCKET_BYTES
    assert said == [
        f"Ray's sockets and logs are in {folder.parent}: TMPDIR {long}: a socket's path there has "
        f"{len(long) + ray_place.WITHIN} bytes and may have {SOCKET_BYTES}; RAY_TMPDIR names another folder"
    ]


@pytest.mark.parametrize("place", ["/proc/nowhere", "file"])
def test_a_folder_that_cannot_be_written(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_place, "WITHIN", 0)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    said: list[str] = []
    monkeypatch.setenv("TMPDIR", place)
    with private_folder(said.append):
        assert "it cannot be written" in said[0]
    monkeypatch.setenv("RAY_TMPDIR", place)
    with pytest.raises(InputError, match=rf"RAY_TMPDIR {place}: it cannot be written \(N.*; name a short"):
        private_folder().__enter__()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(ray_place, "ELSEWHERE", ("/proc",))
    with pytest.raises(
        InputError, match=rf"no folder for Ray's sockets \(TMPDIR {place}: .*/proc: .*set RAY_TMPDIR"
    ):
        private_folder().__enter__()


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120))
def test_what_is_made_is_never_too_long_for_a_socket(name: str) -> None:
    made = ray_place._folder_in(f"/proc/{name}")  # where nothing can be made: only the length is judged
    assert isinstance(made, str)
    too_long = len(os.fsencode(Path(f"/proc/{name}/sweep-abcdefgh/ray/{LONGEST_WITHIN}"))) > SOCKET_BYTES
    assert ("a socket's path" in made) == too_long


def test_a_token_is_in_no_file_and_ends_with_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh_token():
        first = os.environ["RAY_AUTH_TOKEN"]
        assert len(first) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    with fresh_token():
        assert os.environ["RAY_AUTH_TOKEN"] != first
    monkeypatch.setenv("RAY_AUTH_TOKEN", "one's own")
    with fresh_token():
        assert os.environ["RAY_AUTH_TOKEN"] == "one's own"
    assert os.environ["RAY_AUTH_TOKEN"] == "one's own"


@pytest.mark.parametrize(
    ("token", "folder", "exposed"),
    [
        (0o644, 0o755, True),
        (0o644, 0o700, False),
        (0o600, 0o755, False),
        (0o640, 0o750, True),
        (0o604, 0o750, False),
    ],
)
def test_a_token_that_others_can_read_is_said(
    token: int, folder: int, exposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as home:  # pytest's own folders are closed to others
        monkeypatch.setenv("HOME", home)
        assert exposed_token() is None
        Path(home).chmod(0o755)
        path = Path(home, ".ray", "auth_token")
        path.parent.mkdir()
        path.write_text("a token")
        path.chmod(token)
        path.parent.chmod(folder)
        assert exposed_token() == (
            f"other users of this machine can read {path}, and with it run what they like on the cluster; "
            f"`chmod 600 {path}` keeps it yours"
            if exposed
            else None
        )
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
        assert exposed_token() is None
