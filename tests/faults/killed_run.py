"""One run of a study over real Ray actors whose fake pipeline says in a file what it draws: made to be killed.

Run as `python -m tests.faults.killed_run ROOT SEEDS`; the same again goes on where it was.
"""

import os
import sys
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.patient import Patient
from orchestrator.catalog.tables import Tables
from orchestrator.ray_pool import RayPool
from orchestrator.ray_session import ray_session
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from search_spaces.requests import ImageRequest
from search_spaces.study import Study
from tests.orchestrator.studies import grid, small_study
from workers.pipelines import Generated
from workers.pipelines.fake import FakePipeline
from workers.scoring.fake import BrightnessScorer
from workers.worker import Worker

WORKERS, BATCH = 2, 4
SECONDS_EACH = 0.02


def study(seeds: int) -> Study:
    """Five candidates over so many instances."""
    return small_study("killed", seeds=seeds)


class Telling(FakePipeline):
    """Takes its time, and notes process and image_id of all that it draws, before anybody else knows of it."""

    def __init__(self, log: Path) -> None:
        super().__init__(BATCH)
        self._log = log

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        """Draw up to a batch."""
        made = super().advance(new, cancelled)
        lines = "".join(f"{os.getpid()} {item.request.image_id}\n" for item in made)
        with self._log.open("a", encoding="ascii") as log:  # one short write, which no other cuts in two
            log.write(lines)
        time.sleep(SECONDS_EACH * len(made))
        return made


def make_worker(log: Path) -> Worker:
    """An actor's worker."""
    return Worker(Telling(log), {"clip_score": BrightnessScorer()}, "fake device", BATCH)


def main(root: str, seeds: int) -> None:
    """The study, from where the catalog has it to its end."""
    found, tables = study(seeds), Tables(root)
    with StudyFolder(root, found.name).locked():
        catalog = Patient(ParquetCatalog(tables, found))
        strategy = grid(found, past_trials(tables, found.name))
        pool = RayPool(
            partial(ray_session, None), partial(make_worker, Path(root) / "made.log"), WORKERS, BATCH
        )
        try:
            sweep(found, strategy, pool, catalog, NullTracker())
        finally:
            pool.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
