"""How fast a study runs, against the plain loop that one would write by hand, side by side in one run.

    python -m tests.bench.run [--json FILE] [--quick]

Figures: `run_vs_loop`, images per second of the whole of a run in its steady state (Ray, CLIP, PNG, catalog)
over those of a plain diffusers loop over the same requests that also scores and saves, with all threads or
with one, whichever is faster; `images_from_which_it_is_faster` in wall-clock, the run's start-up included;
`import_to_first_image_s` from the command's start to the first durable picture; `peak_memory_mb` of all its
processes (proportional set size); `demo_s`, the command's whole time on the example study.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoPipelineForInpainting
from transformers import CLIPModel, CLIPProcessor

from orchestrator import resolving, wiring
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.ray_session import ray_session
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import NullTracker
from search_spaces.domains import Choices
from search_spaces.requests import ImageRequest
from search_spaces.space import Space
from tests.bench.figures import command_line, tell
from workers.pipelines.loading import local_folder

STUDY = Path(__file__).parents[2] / "studies" / "cat-to-dragon.yaml"


class PlainLoop:
    """What one writes by hand: one plain pipeline call per image, CLIP by transformers, a PNG on disk."""

    def __init__(self, resolved: resolving.Resolved, folder: Path) -> None:
        study = resolved.study
        model, clip = local_folder(study.model.location), local_folder(study.scorer.location)
        self.pipeline = AutoPipelineForInpainting.from_pretrained(str(model), dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.clip = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
        self.processor = CLIPProcessor.from_pretrained(clip)
        self.images, self.folder = resolved.images, folder

    def make(self, request: ImageRequest) -> float:
        """Generate, score, save; the score."""
        settings = {name: value for name, value in request.settings.items() if name != "scheduler"}
        picture = self.pipeline(
            prompt=request.prompt,
            image=self.images[request.image or ""],
            mask_image=self.images[request.mask or ""],
            generator=torch.Generator().manual_seed(request.seed),
            **settings,
        ).images[0]
        with torch.inference_mode():
            both = self.processor(
                text=[request.score_text], images=picture, return_tensors="pt", padding=True, truncation=True
            )
            out = self.clip(**both)
        picture.save(self.folder / f"{request.image_id}.png")
        return float(100 * torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)[0])


def loop_rate(loop: PlainLoop, requests: Sequence[ImageRequest], threads: int) -> float:
    """Images per second of the plain loop over requests."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    for request in requests:
        loop.make(request)
    return len(requests) / (time.perf_counter() - begun)


@dataclass
class Pace:
    """Images and seconds of a run from its first result on."""

    begun: float | None = None
    first: int = 0
    images: int = 0
    seconds: float = 0.0

    def watch(self, progress: Progress) -> None:
        """Take note of the progress."""
        now = time.perf_counter()
        if progress.generated and self.begun is None:
            self.begun, self.first = now, progress.generated
        if self.begun is not None and progress.generated - self.first > self.images:
            self.images, self.seconds = progress.generated - self.first, now - self.begun


def run_pace(
    resolved: resolving.Resolved, root: Path, workers: int | None, threads: int | None, batch: int
) -> Pace:
    """A run of the study into an empty root, in its steady state."""
    study = resolved.study
    crew = wiring.crew(study, workers, 0, batch)
    crew = replace(crew, threads=threads) if threads else crew
    pool = wiring.make_pool(resolved.study, resolved.images, crew, partial(ray_session, None))
    pace = Pace()
    try:
        catalog = ParquetCatalog(Tables(root), study)
        sweep(study, wiring.make_strategy(study, []), pool, catalog, NullTracker(), watch=pace.watch)
    finally:
        pool.close()
    return pace


def tree_memory(root_pid: int) -> float:
    """Megabytes (proportional set size) of a process and all that descend from it."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    family, grown = {root_pid}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    total = 0
    for pid in family:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@contextmanager
def peak_memory(pid: int) -> Iterator[list[float]]:
    """The highest memory of a process tree while the block runs, in the list's only item."""
    peak, ended = [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.25):
            peak[0] = max(peak[0], tree_memory(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def demo_figures(root: Path) -> dict[str, float]:
    """The command as a user runs it: time to the first picture, whole time, peak memory of all processes."""
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(STUDY), "--root", str(root)]
    begun, first = time.perf_counter(), None
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, peak_memory(process.pid) as peak:
        while process.poll() is None:
            if first is None and any((root / "catalog" / "images").glob("*.parquet")):
                first = time.perf_counter() - begun
            time.sleep(0.02)
    return {
        "import_to_first_image_s": first or float("nan"),
        "demo_s": time.perf_counter() - begun,
        "peak_memory_mb": peak[0],
    }


def crews(resolved: resolving.Resolved, folder: Path) -> dict[str, float]:
    """Images per second of actors × threads and of batch sizes, the rest alike."""
    cores = len(os.sched_getaffinity(0))
    shapes = [(1, cores, 8)] + [(cores, 1, batch) for batch in (8, 16, 4)]
    axes = {**resolved.study.space.axes, "num_inference_steps": Choices(values=(10,))}
    resolved = replace(resolved, study=resolved.study.model_copy(update={"space": Space(axes=axes)}))
    figures = {}
    for workers, threads, batch in shapes:
        name = f"{workers} actors × {threads} threads, batch {batch}"
        pace = run_pace(resolved, folder / name.replace(" ", ""), workers, threads, batch)
        figures[f"images_per_s, {name}"] = pace.images / pace.seconds
    return figures


def run_figures(
    resolved: resolving.Resolved, quick: bool = False, all_crews: bool = False
) -> dict[str, float]:
    """The figures of the whole command on a study."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if quick:
            resolved = replace(resolved, study=resolved.study.model_copy(update={"seeds": (0,)}))
        study = resolved.study
        requests = {
            request.image_id: request
            for settings in study.space.lattice()
            for request in (study.request(settings, instance) for instance in study.instances)
        }
        loop_share = list(requests.values())[::4]  # every kind of request in both halves
        loop = PlainLoop(resolved, folder)
        loop.make(loop_share[0])
        all_threads = loop_rate(loop, loop_share[::2], torch.get_num_threads())
        pace = run_pace(resolved, folder / "steady", None, None, wiring.DEFAULT_BATCH)
        one_thread = loop_rate(loop, loop_share[1::2], 1)
        best_loop, run_rate = max(all_threads, one_thread), pace.images / pace.seconds
        figures = {
            "loop_images_per_s, all threads": all_threads,
            "loop_images_per_s, one thread": one_thread,
            "run_images_per_s": run_rate,
            "run_vs_loop": run_rate / best_loop,
        }
        if not quick:
            figures |= demo_figures(folder / "demo")
            if (
                run_rate > best_loop
            ):  # start-up + n / run's rate = n / loop's rate, whose start-up is counted as none
                start_up = figures["import_to_first_image_s"]
                figures["images_from_which_it_is_faster"] = start_up / (1 / best_loop - 1 / run_rate)
        if all_crews:
            figures |= crews(resolved, folder)
    return figures


def main() -> None:
    parser = command_line(__doc__, "a tenth of the requests; ends within a minute")
    parser.add_argument("--crews", action="store_true", help="measure actors × threads and batch sizes too")
    options = parser.parse_args()
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with tempfile.TemporaryDirectory() as folder:
        resolved = resolving.resolve(STUDY, str(Path(folder) / "runs"), lambda: 0)
    figures = run_figures(resolved, options.quick, options.crews)
    tell(figures, options.json)


if __name__ == "__main__":
    main()
