"""One contract that every catalog keeps."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.catalog import Catalog, Judged, Unscored
from orchestrator.catalog.memory import MemoryCatalog
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done, InProcessPool
from search_spaces.requests import Failed, Scored, Trial
from tests.orchestrator.studies import fake_worker, requests_of, small_study
from tests.orchestrator.test_pool_contract import drain

STUDY = small_study()
REQUESTS = requests_of(STUDY)


def results(count: int = 4, fails: dict[str, Failed] | None = None) -> list[Done]:
    """The first few requests of the study, worked on by the fakes."""
    pool = InProcessPool(fake_worker(4, fails), batch=4)
    pool.submit(REQUESTS[:count])
    return drain(pool)


class CatalogContract:
    def make(self, tmp_path: Path) -> Catalog:
        raise NotImplementedError

    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Catalog:
        return self.make(tmp_path)

    def test_it_knows_what_it_was_given_and_nothing_else(self, catalog: Catalog) -> None:
        assert catalog.find(REQUESTS[0]) is None
        done = results()
        catalog.write(done, [])
        for item in done:
            assert catalog.find(item.request) == item.outcome
        assert catalog.find(REQUESTS[5]) is None

    def test_another_text_needs_another_score_of_the_same_picture(self, catalog: Catalog) -> None:
        done = results(1)
        catalog.write(done, [])
        found = catalog.find(replace(REQUESTS[0], score_text="something else"))
        assert isinstance(found, Unscored)
        assert done[0].picture is not None
        assert found.picture.png() == done[0].picture.png()

    def test_a_second_score_joins_the_first(self, catalog: Catalog) -> None:
        done = results(1)
        catalog.write(done, [])
        other = replace(REQUESTS[0], score_text="something else")
        catalog.write([Done(other, Scored({"clip_score": 1.5}), done[0].provenance, None)], [])
        assert catalog.find(other) == Scored({"clip_score": 1.5})
        assert catalog.find(REQUESTS[0]) == done[0].outcome

    def test_what_is_infeasible_is_remembered(self, catalog: Catalog) -> None:
        black = Failed("infeasible", "the picture is all black")
        catalog.write(results(2, {REQUESTS[1].image_id: black}), [])
        assert catalog.find(REQUESTS[1]) == black

    def test_what_machines_lost_is_not(self, catalog: Catalog) -> None:
        catalog.write(results(2, {REQUESTS[1].image_id: Failed("lost", "its worker died")}), [])
        assert catalog.find(REQUESTS[1]) is None
        assert catalog.find(REQUESTS[0]) is not None

    def test_writing_nothing_is_fine(self, catalog: Catalog) -> None:
        catalog.write([], [])
        catalog.write([], [Judged(Trial(0, {}), 0, REQUESTS[0], Failed("lost", "gone"))])
        assert catalog.find(REQUESTS[0]) is None


class TestMemoryCatalog(CatalogContract):
    def make(self, tmp_path: Path) -> Catalog:
        return MemoryCatalog()


class TestParquetCatalog(CatalogContract):
    def make(self, tmp_path: Path) -> Catalog:
        return ParquetCatalog(Tables(tmp_path), STUDY)
