"""The fastest number of rows is found by doubling, within memory and time, and is measured once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workers.pipelines.capacity import MOST_ROWS, MOST_SECONDS, fastest_rows, remembered_rows


class Device:
    """A device whose calls take as long as a rule says; its clock moves with nothing else."""

    def __init__(self, seconds: Callable[[int], float], fits: int = 10**9) -> None:
        self.seconds, self.fits, self.now = seconds, fits, 0.0
        self.tried: list[int] = []

    def call(self, rows: int) -> None:
        if rows > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds(rows)
        self.tried.append(rows)

    def clock(self) -> float:
        return self.now


def found(device: Device) -> int:
    return fastest_rows(device.call, device.clock)


def test_rows_are_doubled_while_that_gains() -> None:
    assert found(Device(lambda rows: 0.01 * max(1, rows / 16))) == 16
    assert found(Device(lambda _: 0.001)) == MOST_ROWS


def test_two_rows_where_more_are_no_faster() -> None:
    device = Device(lambda rows: 0.01 * rows)
    assert found(device) == 2
    assert max(device.tried) == 8


def test_one_doubling_in_vain_does_not_end_it() -> None:
    """Something else on the machine may have hidden what it gains."""
    assert found(Device(lambda rows: {2: 0.01, 4: 0.03}.get(rows, 0.0015 * max(16, rows)))) == 16


def test_memory_ends_the_doubling() -> None:
    assert found(Device(lambda _: 0.001, fits=40)) == 32
    assert found(Device(lambda _: 0.001, fits=1)) == 1


def test_a_slow_device_is_not_measured_for_ever() -> None:
    device = Device(lambda _: 9.0)
    assert found(device) == 2
    assert device.now < 5 * MOST_SECONDS


def test_an_answer_is_remembered_for_the_same_facts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    never: Callable[[], int] = lambda: pytest.fail("measured again")  # noqa: E731
    assert remembered_rows({"device": "a"}, lambda: 16) == 16
    assert remembered_rows({"device": "a"}, never) == 16
    assert remembered_rows({"device": "b"}, lambda: 8) == 8
    assert remembered_rows({"device": "a"}, never) == 16


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 0}', '{"rows": "8"}', '{"rows": 100000}'])
def test_a_damaged_answer_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remembered_rows({"device": "a"}, lambda: 16)
    (file,) = (tmp_path / "latentsweep" / "rows").iterdir()
    file.write_text(content)
    assert remembered_rows({"device": "a"}, lambda: 4) == 4
    assert json.loads(file.read_text())["rows"] == 4


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert remembered_rows({"device": "a"}, lambda: 16) == 16
