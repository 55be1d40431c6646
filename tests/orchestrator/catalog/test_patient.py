"""A run waits for its storage, says so once, and ends with one sentence where that does not come back."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator.catalog import Catalog, Judged
from orchestrator.catalog.memory import MemoryCatalog
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.patient import BLINK, LONGEST_PAUSE, Patient, StorageError
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done
from tests.orchestrator.catalog.test_contract import STUDY, CatalogContract, results


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Failing(MemoryCatalog):
    """Fails as long as `broken` says so."""

    def __init__(self, broken: Callable[[], bool]) -> None:
        super().__init__()
        self._broken, self.tries = broken, 0

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        self.tries += 1
        if self._broken():
            raise OSError(28, "No space left on device", "/x/part")
        super().write(done, judged)


class TestPatient(CatalogContract):
    def make(self, tmp_path: Path) -> Catalog:
        return Patient(ParquetCatalog(Tables(tmp_path), STUDY))


def test_it_waits_and_goes_on() -> None:
    clock, said = Clock(), list[str]()
    catalog = Failing(lambda: clock.now < 100)
    done = results(1)
    Patient(catalog, said.append, sleep=clock.sleep, clock=clock).write(done, [])
    assert catalog.find(done[0].request) == done[0].outcome
    assert said[0] == (
        "the run waits: /x/part: No space left on device; it goes on by itself once that is mended"
    )
    assert said[1].startswith("the run goes on after 1")
    assert len(said) == 2
    assert 5 <= catalog.tries <= 9, "it does not hammer at what is broken"
    assert clock.now <= 100 + LONGEST_PAUSE + 1


def test_it_ends_with_a_sentence_where_storage_stays_away() -> None:
    clock = Clock()
    patient = Patient(Failing(lambda: True), patience=60, sleep=clock.sleep, clock=clock)
    with pytest.raises(StorageError, match=r"^/x/part: No space left on device, for 6\d s; everything ackn"):
        patient.write(results(1), [])


def test_who_wants_to_stop_need_not_wait() -> None:
    clock = Clock()
    patient = Patient(Failing(lambda: True), stopping=lambda: clock.now > 3, sleep=clock.sleep, clock=clock)
    with pytest.raises(StorageError):
        patient.write(results(1), [])
    assert clock.now < 3 + 2 * BLINK + 0.1


def test_what_was_written_before_a_failure_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are durable when the scores fail; the next try begins with the scores."""
    tables = Tables(tmp_path)
    append, failures = tables.append, [OSError(5, "Input/output error")]

    def fail_once(table: str, rows: Sequence[dict[str, object]]) -> None:
        if table == "scores" and failures:
            raise failures.pop()
        append(table, rows)

    monkeypatch.setattr(tables, "append", fail_once)
    clock = Clock()
    done = results(3)
    Patient(ParquetCatalog(tables, STUDY), sleep=clock.sleep, clock=clock).write(done, [])
    assert Tables(tmp_path).read("images").num_rows == 3
    assert Tables(tmp_path).read("scores").num_rows == 3
