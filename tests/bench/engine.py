"""How fast the slot engine draws what an adaptive search asks for, side by side with plain pipelines in one run.

    python -m tests.bench.engine [--json FILE] [--quick] [--rows N] [--compile] [--memory] [--run]

The workload: N random settings (steps 5 to 50, strength 0.3 to 1, guidance 1 to 20, two negative prompts, three
schedulers), 2 seeds each, on the example study's input. Drawn four times over with the same threads and dtype:
(a) by a plain call for each request; (b) by plain calls for all requests that one call can serve; (c) by the
engine; (d) the bare UNet, as diffusers has it, in a tight loop with as many rows as the engine has. (a) to (c)
encode and decode, none scores or saves. Figures: `engine_vs_loop` (images/s, c over a), `engine_vs_batched` (c over
b), `rows_vs_limit` (the engine's useful rows/s, wall-clock, over d's), `row_utilisation` (useful rows over rows ×
ticks), `peak_gpu_mb` where there is a GPU. `--quick` draws a twentieth and ends within a minute.

`--memory` draws 5,000 short requests more and gives `rss_growth_mb`; `--run` adds the figures of `tests.bench.run`,
`run_vs_loop` among them. On a GPU, with models of true size (SDXL: `sdxl`; again with `--compile`):

    python -m tests.bench.true_sizes sd15-inpainting F && python -m tests.bench.engine --study F/study.yaml
"""

import argparse
import gc
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator import resolving, wiring
from search_spaces.requests import ImageRequest, Value
from search_spaces.study import Study
from tests.bench.figures import command_line, tell
from tests.bench.run import STUDY, run_figures
from workers.device import device_name
from workers.pipelines import Generated, Pipeline
from workers.pipelines.loading import load_pipeline
from workers.pipelines.slot_engine import SlotEngine, Usage
from workers.pipelines.whole_call import WholeCallPipeline

SCHEDULERS = ("DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler")
STEPS = (5, 50)
LIMIT_SECONDS = 5.0
QUICK_SETTINGS = 5
MEMORY_REQUESTS = 5000


def workload(study: Study, settings: int, seed: int = 0) -> list[ImageRequest]:
    """Requests as an adaptive search asks them: random settings, each on two seeds."""
    draw = random.Random(seed)
    requests = []
    for _ in range(settings):
        drawn: dict[str, Value] = {
            "num_inference_steps": draw.randint(*STEPS),
            "strength": draw.uniform(0.3, 1.0),
            "guidance_scale": draw.uniform(1.0, 20.0),
            "negative_prompt": draw.choice(["", "cartoon"]),
        }
        drawn = {name: value for name, value in drawn.items() if name in study.model.keywords}
        fixed = {**study.settings, "scheduler": draw.choice(SCHEDULERS)}
        named = study.model_copy(update={"settings": fixed})
        requests += [named.request(drawn, instance) for instance in study.instances[:2]]
    return requests


def drawn(pipeline: Pipeline, requests: Sequence[ImageRequest]) -> list[Generated]:
    """All of a workload, given to a pipeline at once."""
    back = list(pipeline.advance(requests))
    while len(back) < len(requests):
        back += pipeline.advance([])
    failed = [item.picture for item in back if not hasattr(item.picture, "size")]
    assert not failed, failed[0]
    return back


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a piece of work takes, the device's queue included."""
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def one_by_one(pipeline: WholeCallPipeline, requests: Iterable[ImageRequest]) -> None:
    """A plain call for each request."""
    for request in requests:
        drawn(pipeline, [request])


def memory_growth(engine: SlotEngine, study: Study, requests: int) -> float:
    """Megabytes that this process grows by over many short requests, after a tenth of them as warm-up."""

    def short(first: int, count: int) -> list[ImageRequest]:
        swept: dict[str, Value] = {"num_inference_steps": 2, "strength": 1.0, "negative_prompt": ""}
        swept = {name: value for name, value in swept.items() if name in study.model.keywords}
        seeds = range(first, first + count)
        grown = study.model_copy(update={"seeds": tuple(seeds)})
        return [
            grown.request({**swept, "guidance_scale": 1.0 + number % 3}, instance)
            for number, instance in enumerate(grown.instances)
        ]

    drawn(engine, short(0, requests // 10))
    before = resident()
    for first in range(0, requests, 100):
        drawn(engine, short(1000 + first, 100))
    return resident() - before


def resident() -> float:
    """This process's resident memory in megabytes, when nothing is left to collect."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def engine_figures(study: Study, images: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """The figures (a) to (d) of one workload."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain, own = (load_pipeline(study.model, device) for _ in range(2))
    if options.rows:
        study = study.model_copy(update={"engine": study.engine.model_copy(update={"rows": options.rows})})
    if options.compile:
        study = study.model_copy(update={"engine": study.engine.model_copy(update={"compile": True})})
    engine = wiring.make_engine(study, own, images, device_name())
    requests = workload(study, options.settings)
    loop = WholeCallPipeline(plain, study.model, images, batch=1)
    batched = WholeCallPipeline(plain, study.model, images, batch=wiring.DEFAULT_BATCH)
    for pipeline in (loop, engine):
        drawn(pipeline, workload(study, 1 if options.quick else 3, seed=1))  # warm
    # Half of what it is compared with before the engine and half after: machines grow slower and faster.
    middle = len(requests) // 4 * 2  # the two seeds of a setting stay together
    halves = requests[:middle], requests[middle:]
    seconds_loop = timed(lambda: one_by_one(loop, halves[0]))
    seconds_batched = timed(lambda: drawn(batched, halves[0]))
    seconds_limit = LIMIT_SECONDS / 5 if options.quick else LIMIT_SECONDS
    limits = [engine.bare_rate(requests[0], seconds_limit)]
    engine.usage = Usage()
    seconds_engine = timed(lambda: drawn(engine, requests))
    useful, utilisation = engine.usage.useful, engine.usage.useful / engine.usage.offered
    limits.append(engine.bare_rate(requests[0], seconds_limit))
    seconds_batched += timed(lambda: drawn(batched, halves[1]))
    seconds_loop += timed(lambda: one_by_one(loop, halves[1]))
    limit_rate = sum(limits) / len(limits)
    figures = {
        "rows": engine.rows,
        "threads": torch.get_num_threads(),
        "images": len(requests),
        "loop_images_per_s": len(requests) / seconds_loop,
        "batched_images_per_s": len(requests) / seconds_batched,
        "engine_images_per_s": len(requests) / seconds_engine,
        "engine_rows_per_s": useful / seconds_engine,
        "limit_rows_per_s": limit_rate,
        "engine_vs_loop": seconds_loop / seconds_engine,
        "engine_vs_batched": seconds_batched / seconds_engine,
        "rows_vs_limit": useful / seconds_engine / limit_rate,
        "row_utilisation": utilisation,
    }
    if device == "cuda":
        figures["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
    if options.memory:
        asked = MEMORY_REQUESTS // 50 if options.quick else MEMORY_REQUESTS
        figures["rss_growth_mb"] = memory_growth(engine, study, asked)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__, "few requests; ends within a minute")
    parser.add_argument(
        "--study", type=Path, default=STUDY, help="whose model and input (default the example)"
    )
    parser.add_argument("--settings", type=int, help="random settings (default 100)")
    parser.add_argument("--rows", type=int, help="UNet rows (default: measured)")
    parser.add_argument("--compile", action="store_true", help="compile the UNet")
    parser.add_argument("--memory", action="store_true", help="5,000 requests more, for the growth of memory")
    parser.add_argument("--run", action="store_true", help="the figures of the whole command too")
    options = parser.parse_args(arguments)
    options.settings = options.settings or (QUICK_SETTINGS if options.quick else 100)
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with tempfile.TemporaryDirectory() as root:
        resolved = resolving.resolve(options.study, root, torch.cuda.device_count)
    figures = engine_figures(resolved.study, dict(resolved.images), options)
    if options.run:
        figures |= run_figures(resolved, options.quick)
    tell(figures, options.json)


if __name__ == "__main__":
    main()
