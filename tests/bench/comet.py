"""What streaming to Comet costs a sweep, and how fast pictures get there; against a recorder on this machine.

    python -m tests.bench.comet [--json FILE] [--quick]

The recorder (tests/comet_recorder.py) is not Comet: it answers at once, and works on the same cores, though at the
lowest priority, since a real server would be on others. Figures:
`stream_vs_off`, UNet rows per second of the bundled study with every image streamed over those of the same study
with `comet: {mode: off}`, in turns, medians; `off_images_per_s`. `sink_images_per_s` and `sink_mb_per_s`, a sync of
512×512 PNGs of 630 kB, from the first upload to the last; `sync_images`, `sync_s`, `sync_images_per_s`, the same with
small pictures and everything counted, the process' start, listings and curves too; `sync_mb`, the largest memory of
the process that sends; `again_s`, a second sync, which sends nothing.
"""

import io
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator import api
from orchestrator.ray_session import ray_session
from orchestrator.tracking.comet.content import CometImage, CometStudy, Content
from orchestrator.tracking.comet.sync import sync_in_child
from search_spaces.requests import Value
from tests.bench.figures import command_line, tell
from tests.comet_recorder import CometRecorder

STUDY = """
study: bench
model: toyworld
inputs:
  - {image: cat.png, mask: cat-mask.png, prompt: a green dragon}
seeds: %d
space:
  num_inference_steps: [4, 6]
  guidance_scale: [3, 5, 7.5]
  strength: [0.7, 1.0]
comet: {mode: %s}
"""
STUDIES = Path(__file__).parents[2] / "studies"
SIDE = 512


def record(pipe: Connection) -> None:
    """Be the recorder: first its address, then for each question the uploads' times and the images it lists."""
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with CometRecorder(keep_bytes=False) as recorder:
        pipe.send(recorder.environment)
        while pipe.recv() is not None:
            times = [request.at for request in recorder.heard("upload-asset")]
            with recorder.lock:
                ids = [image_id for key in recorder.experiments for image_id in recorder.image_ids(key)]
                recorder.requests.clear()
            pipe.send((times, ids))


@contextmanager
def recording() -> Iterator[Connection]:
    """A recorder in a process of its own, with this process' variables set to it."""
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=record, args=(its,))
    process.start()
    before = {name: os.environ.get(name) for name in ("COMET_API_KEY", "COMET_URL_OVERRIDE")}
    os.environ.update(ours.recv())
    try:
        yield ours
    finally:
        ours.send(None)
        process.join()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def heard(recorder: Connection) -> tuple[list[float], list[str]]:
    """The uploads since the last question, and the images that the recorder lists."""
    recorder.send("heard")
    times, ids = recorder.recv()
    return times, ids


@cache
def some_pngs(side: int) -> list[bytes]:
    """A few pictures, of noise over a gradient: 630 kB at 512 pixels, as photographs are."""
    drawn = np.random.default_rng(0)
    slope = np.linspace(60, 190, side)[None, :, None]
    pngs = []
    for _ in range(4):
        noise = drawn.normal(0, 12, (side, side, 3))
        stream = io.BytesIO()
        Image.fromarray(np.clip(slope + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
        pngs.append(stream.getvalue())
    return pngs


def content(key: str, images: int, side: int, memory: str) -> Content:
    """A study of so many images; runs in the child, whose largest memory it notes in a file."""
    metadata: dict[str, Value] = {
        "prompt": "a realistic green dragon, photo",
        "guidance_scale": 7.5,
        "seed": 1,
        "clip_score": 25.0,
    }

    def pictures(ids: Set[str]) -> Iterator[tuple[str, bytes]]:
        pngs = some_pngs(side)
        for image_id in ids:
            yield image_id, pngs[int(image_id) % len(pngs)]
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        Path(memory).write_text(found[1])

    def facts() -> Iterator[CometImage]:
        return (CometImage(f"{number:032d}", "search", number // 8, metadata) for number in range(images))

    study = CometStudy("bench", None, "bench", "bench", (), {"model": "toyworld"})
    return Content(study, key, facts, pictures, [], lambda _: None)


def sink(recorder: Connection, folder: Path, images: int) -> dict[str, float]:
    """How fast large pictures go."""
    source = partial(content, "1" * 32, images, SIDE, str(folder / "memory"))
    assert sync_in_child(source, folder / "sink", folder / "sink.log").sent == images
    times, ids = heard(recorder)
    assert len(ids) == len(set(ids)) == images
    rate = (images - 1) / (max(times) - min(times))
    size = statistics.mean(map(len, some_pngs(SIDE)))
    return {"sink_images_per_s": rate, "sink_mb_per_s": rate * size / 1e6}


def sync(recorder: Connection, folder: Path, images: int) -> dict[str, float]:
    """How long a whole sync takes, its memory, and how long a second one."""
    source = partial(content, "2" * 32, images, 64, str(folder / "memory"))
    _, before = heard(recorder)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        assert sync_in_child(source, folder / "sync", folder / "sync.log").sent == images
        seconds.append(time.perf_counter() - begun)
    _, ids = heard(recorder)
    assert len(ids) == len(before) + images
    return {
        "sync_images": images,
        "sync_s": seconds[0],
        "sync_images_per_s": images / seconds[0],
        "sync_mb": int((folder / "memory").read_text()) / 1e3,
        "again_s": seconds[1],
    }


def stream(recorder: Connection, folder: Path, seeds: int, turns: int) -> dict[str, float]:
    """A whole study, streamed and not, in turns."""
    for name in ("cat.png", "cat-mask.png"):
        shutil.copy(STUDIES / name, folder / name)
    rates: dict[str, list[float]] = {"off": [], "online": []}
    images_per_s = []
    with ray_session(None):
        for turn in range(-1, turns):
            for mode in ("off", "online") if turn % 2 else ("online", "off"):
                file, root = folder / f"{mode}.yaml", folder / f"{mode}{turn}"
                file.write_text(STUDY % (seeds, mode), encoding="utf-8")
                result = api.run(file, str(root))
                rate = result.progress.rows_per_second
                assert rate is not None
                if mode == "online":
                    assert "Comet: all" in " ".join(result.messages), result.messages
                if turn < 0:  # the first measures how many rows are fastest, and warms the disk's cache
                    continue
                rates[mode].append(rate)
                if mode == "off":
                    calls = result.progress.unet_calls / result.progress.generated
                    images_per_s.append(rate / 2 / calls)
                shutil.rmtree(root)
    heard(recorder)
    return {
        "stream_vs_off": statistics.median(rates["online"]) / statistics.median(rates["off"]),
        "off_images_per_s": statistics.median(images_per_s),
    }


def figures(quick: bool) -> dict[str, float]:
    """All of them; `quick` has fewer images and turns."""
    with tempfile.TemporaryDirectory() as name, recording() as recorder:
        folder = Path(name)
        told = sink(recorder, folder, 200 if quick else 2_000)
        told |= sync(recorder, folder, 1_000 if quick else 10_000)
        return told | stream(recorder, folder, 4 if quick else 64, 1 if quick else 5)


def main() -> None:
    parser = command_line(__doc__, "fewer images and turns: within a minute")
    options = parser.parse_args()
    found = figures(options.quick)
    tell(found, options.json)


if __name__ == "__main__":
    from tests.bench import comet  # under its own name, by which the child finds `content`

    comet.main()
