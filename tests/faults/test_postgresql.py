"""A real PostgreSQL server, from Debian's package, as the Optuna storage: also one that dies and comes back."""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.tracking.optuna_storage import Place, Projection, parse_place
from search_spaces.errors import InputError
from tests.orchestrator.tracking.test_optuna_storage import (
    StorageContract,
    a_study,
    a_trial,
    close_all,
    pictures,
    read,
    tell,
)

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
MISSING = [
    *([] if BINARIES else ["PostgreSQL (apt-get install postgresql)"]),
    *([] if importlib.util.find_spec("psycopg") else ["psycopg (pip install 'latentsweep[postgresql]')"]),
    # The server is not root's, and some container images leave this to root alone.
    *(
        []
        if Path("/dev/null").stat().st_mode & 0o002
        else ["a /dev/null that every user may write (chmod 666)"]
    ),
]
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(bool(MISSING), reason=f"NOT TESTED with a real server: needs {' and '.join(MISSING)}"),
]

PASSWORD = "se/cret@9"
QUOTED = "se%2Fcret%409"


class Server:
    """A server of its own in a folder of its own, on this machine's loopback."""

    def __init__(self, folder: Path) -> None:
        self._data, self._process = folder / "data", None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        if os.getuid() == 0:
            for path in (folder, secret):
                shutil.chown(path, "postgres")
        options = ["-D", str(self._data), "-U", "me", "-A", "scram-sha-256", "--pwfile", str(secret)]
        subprocess.run(_command("initdb", *options), check=True, capture_output=True, cwd="/")

    _process: subprocess.Popen[bytes] | None

    def start(self) -> None:
        options = ["-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self._data)]
        self._process = subprocess.Popen(
            _command("postgres", *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        deadline = time.monotonic() + 60
        ready = _command("pg_isready", "-h", "127.0.0.1", "-p", str(self.port))
        while subprocess.run(ready, check=False, capture_output=True, cwd="/").returncode:
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.2)

    def kill(self) -> None:
        """As a machine dies: no warning, no time to finish."""
        if self._process is not None:
            stop = _command("pg_ctl", "stop", "-m", "immediate", "-D", str(self._data))
            subprocess.run(stop, check=True, capture_output=True, cwd="/")
            self._process.wait(30)
            self._process = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://me:{QUOTED}@127.0.0.1:{self.port}/{database}"


def _command(name: str, *arguments: str) -> list[str]:
    """The server refuses to be root's."""
    assert BINARIES is not None
    owner = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    return [*owner, str(BINARIES / name), *arguments]


@contextmanager
def a_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="latentsweep-postgresql-") as folder:
        server = Server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with a_server() as started:
        yield started


def a_place(server: Server) -> Place:
    """A new database of the server."""
    name = f"d{uuid4().hex}"
    engine = sqlalchemy.create_engine(server.url(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"create database {name}"))
    engine.dispose()
    return parse_place(server.url(name))


class TestPostgresql(StorageContract):
    @pytest.fixture
    def place(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
        monkeypatch.chdir(tmp_path)
        yield a_place(server)
        close_all()


def test_a_wrong_password_is_a_sentence_that_does_not_quote_it(server: Server) -> None:
    for url in (server.url().replace(QUOTED, "wr0ng"), server.url("nothing")):
        with pytest.raises(InputError, match="cannot be reached: connection failed") as raised:
            parse_place(url).check()
        assert "\n" not in str(raised.value)
        assert not {"wr0ng", PASSWORD, QUOTED} & set(str(raised.value).split())
        assert "wr0ng" not in str(raised.value)
        assert PASSWORD not in str(raised.value)


def test_a_server_that_nobody_runs_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"postgresql://127.0.0.1:1/x cannot be reached: connection failed"):
        parse_place("postgresql://127.0.0.1:1/x").check()


def test_a_server_that_dies_and_comes_back_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with a_server() as server:
        place = a_place(server)
        tell(place, a_study(a_trial(0, {0: 1.0, 1: 3.0}), a_trial(1, {0: 1.0})))
        projection = Projection(place, Path("mine"))
        server.kill()
        whole = a_study(a_trial(0, {0: 1.0, 1: 3.0}), a_trial(1, {0: 1.0, 1: 5.0}), ended=True)
        with pytest.raises((SQLAlchemyError, OptunaError)) as raised:
            projection.bring_up_to_date(whole, pictures)
        why = place.why(raised.value)
        assert why
        assert "\n" not in why
        assert PASSWORD not in why
        projection.close()
        with pytest.raises(InputError, match="cannot be reached"):
            place.open()
        server.start()
        close_all()
        assert [trial.value for trial in tell(place, whole).trials] == [2.0, 3.0]
        assert len(read(place).trials) == 2
        close_all()
