"""What ends a command from outside: how often it may ask, what is said, and the exit code."""

import os
import signal
import subprocess
import sys

import pytest

from orchestrator import api, cli, stopping
from orchestrator.stopping import ONE_REQUEST_SECONDS, Requests

SIGNALS = [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")]


@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
def test_a_second_request_ends_at_once_and_one_that_comes_twice_does_not(
    number: signal.Signals, code: int, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """`timeout` sends its signal to the process and then to the group that this is in."""
    now = 0.0
    requests = Requests(lambda: now)
    assert (requests(), requests.number) == (False, None)
    requests.take(number)
    now = ONE_REQUEST_SECONDS / 2
    requests.take(number)
    assert (requests(), requests.number) == (True, number)
    assert capfd.readouterr().err == (
        "latentsweep: what runs is finished and kept; Ctrl-C again stops at once\n"
    )
    now = 2 * ONE_REQUEST_SECONDS
    with pytest.raises(KeyboardInterrupt) as ended:
        requests.take(number)
    assert stopping.exit_code(stopping.stopped_by(ended.value)) == code
    assert stopping.told(ended.value) == f"stopped by {name}"


def test_under_a_display_it_is_the_display_that_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    requests = Requests()
    requests.is_told = True
    requests.take(signal.SIGINT)
    assert requests()
    assert capfd.readouterr().err == ""


def test_what_a_library_does_to_handlers_is_taken_back() -> None:
    with stopping.requests_to_stop() as requests:
        with stopping.handlers_kept():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        signal.raise_signal(signal.SIGTERM)
        assert requests.number == signal.SIGTERM


def test_handlers_are_as_before_once_a_command_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in stopping.ENDING]
    assert cli.main(["schema"]) == 0
    capsys.readouterr()
    assert [signal.getsignal(number) for number in stopping.ENDING] == before


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.requests_to_stop() as requests:
            signal.raise_signal(signal.SIGHUP)
            assert not requests()
    finally:
        signal.signal(signal.SIGHUP, before)


COMMANDS: dict[str, tuple[list[str], str, str]] = {
    "plan": (["plan", "study.yaml"], "plan", ""),
    "run": (["run", "study.yaml"], "run", "; the same command goes on where it was"),
    "report": (["report", "s"], "results", ""),
    "show": (["show", "abc"], "show", ""),
    "ls": (["ls"], "studies", ""),
    "diff": (["diff", "a", "b"], "diff", ""),
    "export": (["export", "s", "--to", "csv"], "export", ""),
    "score": (["score", "s"], "score", "; the same command goes on where it was"),
    "check": (["catalog", "check"], "check", ""),
    "compact": (["catalog", "compact"], "compact", ""),
    "sync": (["comet", "sync", "s"], "comet_sync", "; the same command goes on where it was"),
    "status": (["comet", "status", "s"], "comet_status", ""),
}


@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_ended_says_so_in_a_sentence(
    command: str,
    number: signal.Signals,
    code: int,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only one that goes on where it was claims to."""
    arguments, function, after = COMMANDS[command]
    monkeypatch.setattr(api, function, lambda *_, **__: signal.raise_signal(number))
    assert cli.main(arguments) == code
    assert capsys.readouterr() == ("", f"latentsweep: stopped by {name}{after}\n")


BEGINNING = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Signal(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "rich.table":
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Signal())
from orchestrator import start
sys.argv = ["latentsweep", "schema"]
sys.exit(start.main())
"""


@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
def test_one_that_is_ended_while_it_imports_says_so_too(number: signal.Signals, code: int, name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BEGINNING.format(name=number.name)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr == f"latentsweep: stopped by {name}\n"


def test_a_terminal_that_is_gone_is_not_written_to() -> None:
    """What was begun is finished though nobody can read of it; a terminal that is there stays."""
    for gone in (False, True):
        here, there = os.openpty()
        code = (
            "import signal, sys\nfrom orchestrator import stopping\n"
            "with stopping.requests_to_stop() as requests:\n"
            "    sys.stdin.readline()\n"
            "    signal.raise_signal(signal.SIGHUP)\n"
            "    print('more', flush=True)\n"
            "    sys.exit(0 if requests.number == signal.SIGHUP else 1)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=there, stderr=there, text=True
        )
        os.close(there)
        if gone:
            os.close(here)
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0
        if not gone:
            assert b"more" in os.read(here, 10_000)
            os.close(here)
