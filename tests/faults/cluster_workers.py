"""Workers and a writer for tests of faults: quick, and broken on request by files in a folder."""

import os
import signal
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import ray

from orchestrator.catalog.pictures import CatalogWriter
from orchestrator.pool import Done
from search_spaces.requests import Failed, ImageRequest
from search_spaces.study import Study
from tests.bench.cluster import Sleeper
from workers.pipelines import ALL_BLACK
from workers.worker import Finished

SECONDS = 0.4
"""Of a batch of four."""

SIDE = 260
"""Of a picture of 200 kB, which goes through the object store."""


class Faulty(Sleeper):
    """Hangs once where there is a file `hang`, dies at the image_id in `poison`, draws black on the node in `black`.

    From the image_id in `guilty` on, its process fails at everything, as after some errors of CUDA.
    Notes in `nodes`, by process, where it is.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "made.log", SECONDS, SIDE)
        self._folder, self._node = folder, ray.get_runtime_context().get_node_id()
        self._broken = False
        (folder / "nodes").mkdir(exist_ok=True)
        (folder / "nodes" / str(os.getpid())).write_text(self._node, encoding="ascii")

    def _told(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(encoding="ascii")
        except FileNotFoundError:
            return ""

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        poison = self._told("poison")
        if any(request.image_id == poison for request in new):
            with (self._folder / "deaths").open("a", encoding="ascii") as deaths:
                deaths.write(f"{len(new)} {len(self._waiting)}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            (self._folder / "hang").rename(self._folder / "hung")
        except FileNotFoundError:
            pass
        else:
            (self._folder / "hung").write_text(str(os.getpid()), encoding="ascii")
            time.sleep(10_000)
        made = super().advance(new, cancelled)
        guilty = self._told("guilty")
        self._broken = self._broken or any(item.request.image_id == guilty for item in made)
        if self._broken:
            failed = Failed("lost", "CUDA error: an illegal memory access was encountered")
        elif self._told("black") == self._node:
            failed = Failed("infeasible", ALL_BLACK)
        else:
            return made
        return [Finished(item.request, failed, None, item.provenance) for item in made]


class HeldWriter(CatalogWriter):
    """Waits while there is a file `hold`; notes its process."""

    def __init__(self, folder: Path, root: str, study: Study) -> None:
        super().__init__(root, study)
        self._folder = folder
        with (folder / "writers").open("a", encoding="ascii") as writers:
            writers.write(f"{os.getpid()}\n")

    def write(self, done: Sequence[Done]) -> None:
        """Keep pictures, once nothing holds it up."""
        while (self._folder / "hold").exists():
            time.sleep(0.05)
        super().write(done)
