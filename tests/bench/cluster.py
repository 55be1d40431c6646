"""How far a study scales over actors, and what a death costs, with a fake pipeline that sleeps as a GPU would take.

    python -m tests.bench.cluster [--json FILE] [--quick]

Every actor takes 4 s for a batch of four and returns PNGs of 500 kB; the rest is real: Ray, the sweep, the catalog
on disk. Figures: `efficiency_N`, images per second of N actors over N times what one could make, from the moment
when all have brought their first batch until the last are given theirs; `driver_cpu_s_per_1000`, CPU seconds of the
driver's process per 1,000 images; `writer_cpu_s_per_1000`, those of the process that writes the pictures;
`driver_mb_begin` and `driver_mb_end`, its memory then; `unwritten_begin`, `_end` and `_peak`, images
made and not durable yet, in that time (were there more and more, the writer would be the limit); `cpu_busy_N`, the
share of the machine's CPU time that was used, by whatever. `…, driver writes`: the same without that process.
`replaced_s`: from SIGKILL of an actor to the first picture of its replacement; `made_twice`: images that were begun
again for it.
"""

import hashlib
import os
import random
import signal
import struct
import tempfile
import time
import zlib
from collections import Counter, deque
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.pictures import CatalogWriter
from orchestrator.catalog.tables import Tables
from orchestrator.dealing import CALLS_AHEAD
from orchestrator.pool import Done
from orchestrator.ray_pool import RayPool
from orchestrator.ray_session import ray_session
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import NullTracker
from search_spaces.requests import ImageRequest, Scored
from search_spaces.study import Study
from tests.bench.figures import command_line, tell
from tests.orchestrator.studies import grid, requests_of, small_study
from workers.pipelines.fake import FakePipeline
from workers.worker import Finished, Provenance, Worker

BATCH = 4
SECONDS = 4.0
SIDE = 408  # of a picture of noise, which takes 500 kB as PNG
CANDIDATES = 5  # of the small study


def score_of(image_id: str) -> float:
    """The score that an image has, which tells it from others."""
    return float(int(image_id[:6], 16))


class Sleeper(Worker):
    """Sleeps for a batch, then gives back pictures that were encoded beforehand, each with its own id in it.

    Notes in a file what it begins, and in which process.
    """

    def __init__(self, log: Path, seconds: float, side: int = SIDE) -> None:
        super().__init__(FakePipeline(BATCH), {}, str(os.getpid()), BATCH)
        buffer = BytesIO()
        noise = random.Random(0).randbytes(3 * side * side)
        Image.frombytes("RGB", (side, side), noise).save(buffer, "PNG", compress_level=0)
        self._png, self._log, self._seconds, self._side = buffer.getvalue(), log, seconds, side
        self._waiting: deque[ImageRequest] = deque()
        self._made = 0

    @property
    def steps(self) -> int:
        return self._made

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        self._waiting.extend(new)
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        if not batch:
            return []
        with self._log.open("a", encoding="ascii") as log:
            log.write("".join(f"{os.getpid()} {request.image_id}\n" for request in batch))
        time.sleep(self._seconds * len(batch) / BATCH)
        self._made += len(batch)
        return [self._finished(request) for request in batch]

    def _finished(self, request: ImageRequest) -> Finished:
        png, side = self._signed(request), self._side
        digest = hashlib.sha256(png).hexdigest()  # as a worker does
        made = Provenance(self.device, side, side, 30, self._seconds / BATCH, 0.0, digest)
        return Finished(request, Scored({"clip_score": score_of(request.image_id)}), png, made)

    def _signed(self, request: ImageRequest) -> bytes:
        """The picture with the request's id as a text chunk before its end."""
        body = b"tEXtimage_id\0" + request.image_id.encode()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return self._png[:-12] + chunk + self._png[-12:]


def made(log: Path) -> list[tuple[int, str]]:
    """Process and image_id of all that was begun."""
    if not log.exists():
        return []
    return [
        (int(pid), image_id) for pid, image_id in map(str.split, log.read_text(encoding="ascii").splitlines())
    ]


def megabytes() -> float:
    """Memory of this process that is its own: shared pages, such as the object store's, are not counted."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_busy() -> tuple[float, float]:
    """CPU seconds of the machine so far: used, and all."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    ticks = [int(field) for field in line.split()[1:9]]
    all_ticks = sum(ticks)
    return (all_ticks - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), all_ticks / os.sysconf("SC_CLK_TCK")


class NotedWriter(CatalogWriter):
    """Leaves its process id in a file."""

    def __init__(self, note: Path, root: str, study: Study) -> None:
        super().__init__(root, study)
        note.write_text(str(os.getpid()), encoding="ascii")


@dataclass(frozen=True)
class Moment:
    """Where a run is: images that are durable, those made but not durable yet, and CPU seconds so far."""

    time: float
    durable: int
    unwritten: int
    driver: float
    writer: float
    machine: tuple[float, float]  # used, and all


class Window:
    """The time from the moment when every actor has brought a batch until the last are given theirs."""

    def __init__(self, pool: RayPool, actors: int, images: int, writer: Path) -> None:
        self._pool, self._actors, self._writer = pool, actors, writer
        self._last = images - CALLS_AHEAD * BATCH * actors
        self.begun: Moment | None = None
        self.ended: Moment | None = None
        self.peak_unwritten = 0
        self._seen = 0

    def watch(self, progress: Progress) -> None:
        """Take note of a progress."""
        unwritten = self._pool._keeping.images if self._pool._keeping else 0
        self.peak_unwritten = max(self.peak_unwritten, unwritten)
        if progress.generated == self._seen:
            return
        self._seen = progress.generated
        loaded = [member for member in self._pool._dealer.members if member.loaded]
        if self.begun is None:
            if len(loaded) == self._actors and progress.generated >= BATCH * self._actors:
                self.begun = self._now(progress.generated, unwritten)
        elif progress.generated <= self._last:
            self.ended = self._now(progress.generated, unwritten)

    def _now(self, durable: int, unwritten: int) -> Moment:
        writer = cpu_seconds(int(self._writer.read_text(encoding="ascii"))) if self._writer.exists() else 0.0
        return Moment(time.monotonic(), durable, unwritten, time.process_time(), writer, machine_busy())


def scale(folder: Path, actors: int, rounds: int, seconds: float, writer: bool) -> dict[str, float]:
    """A study over so many actors; its figures."""
    seeds = max(1, actors * BATCH * rounds // CANDIDATES)
    study, root = small_study("bench", seeds=seeds), folder / f"{actors}-{writer}"
    note = folder / f"{actors}-{writer}.pid"
    pool = RayPool(
        nullcontext,
        partial(Sleeper, folder / f"{actors}-{writer}.log", seconds),
        actors,
        BATCH,
        num_cpus=0.01,
        make_writer=partial(NotedWriter, note, str(root), study) if writer else None,
    )
    window = Window(pool, actors, CANDIDATES * seeds, note)
    memory = megabytes()
    try:
        catalog = ParquetCatalog(Tables(root), study)
        sweep(study, grid(study), pool, catalog, NullTracker(), watch=window.watch)
    finally:
        pool.close()
    assert window.begun is not None
    assert window.ended is not None
    begun, ended = window.begun, window.ended
    seconds_taken, images = ended.time - begun.time, ended.durable - begun.durable
    made_meanwhile = images + ended.unwritten - begun.unwritten
    used, total = (end - begin for begin, end in zip(begun.machine, ended.machine, strict=True))
    name = f"{actors}" if writer else f"{actors}, driver writes"
    figures = {
        f"efficiency_{name}": made_meanwhile / seconds_taken / (actors * BATCH / seconds),
        f"images_per_s_{name}": made_meanwhile / seconds_taken,
        f"driver_cpu_s_per_1000_{name}": 1000 * (ended.driver - begun.driver) / images,
        f"cpu_busy_{name}": used / total,
        f"driver_mb_begin_{name}": memory,
        f"driver_mb_end_{name}": megabytes(),
    }
    if writer:
        figures[f"writer_cpu_s_per_1000_{name}"] = 1000 * (ended.writer - begun.writer) / images
        figures[f"unwritten_begin_{name}"] = float(begun.unwritten)
        figures[f"unwritten_end_{name}"] = float(ended.unwritten)
        figures[f"unwritten_peak_{name}"] = float(window.peak_unwritten)
    return figures


def death(folder: Path, seconds: float) -> dict[str, float]:
    """One of four actors is killed in mid-batch."""
    log, actors = folder / "death.log", 4
    study = small_study("bench", seeds=max(8, round(120 / seconds)))
    requests = requests_of(study)[: round(4 * BATCH * (24 / seconds))]
    pool = RayPool(nullcontext, partial(Sleeper, log, seconds), actors, BATCH, num_cpus=0.01)
    found: list[Done] = []
    killed: float | None = None
    replaced = 0.0
    before: set[str] = set()
    pool.submit(requests)
    while pool.outstanding:
        new = pool.next_done(0.05)
        found += new
        if killed is None and len({done.provenance.device for done in found}) == actors:
            before = {done.provenance.device for done in found}
            time.sleep(seconds / 2)
            os.kill(int(sorted(before)[0]), signal.SIGKILL)
            killed = time.monotonic()
        elif killed and not replaced and any(done.provenance.device not in before for done in new):
            replaced = time.monotonic() - killed
    pool.close()
    assert Counter(done.request.image_id for done in found) == Counter(r.image_id for r in requests)
    counts = Counter(image_id for _, image_id in made(log))
    return {"replaced_s": replaced, "made_twice": float(sum(count - 1 for count in counts.values()))}


def figures(quick: bool) -> dict[str, float]:
    """All of them."""
    rounds, seconds = (6, 2.0) if quick else (12, SECONDS)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, ray_session(None):
        folder = Path(name)
        for actors in (1, 4) if quick else (1, 4, 16, 64):
            found |= scale(folder, actors, rounds, seconds, writer=True)
        for actors in () if quick else (16, 64):
            found |= scale(folder, actors, rounds, seconds, writer=False)
        found |= death(folder, seconds)
    return found


def main() -> None:
    parser = command_line(__doc__, "1 and 4 actors, batches of 2 s; within a minute")
    options = parser.parse_args()
    found = figures(options.quick)
    tell(found, options.json)


if __name__ == "__main__":
    main()
