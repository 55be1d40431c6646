"""The score table: every candidate of a space on every seed, drawn once, so that searches are replayed, not drawn.

    python -m tests.bench.score_table [--file FILE] [--processes N] [--seeds N] [--every N]

The example study's input on the bundled model; 320 cells of steps × guidance × strength × negative prompt, of which
285 can run and are distinct; 80 seeds. Early looks are in it for every seed, not for a fixed few, so that a replay
may search on any of them. It takes about as long as drawing 22,800 pictures does; blocks that are done are kept
under `build/score_table` and not drawn again. `--every` and `--seeds` make a small table to try things with.
"""

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.domains import Choices, Domain
from search_spaces.requests import Failed, ImageRequest, Looked, Scored, Settings, content_hash
from search_spaces.space import Judge, Space, effective_steps, guidance_is_on, survey
from search_spaces.study import PIXEL_REVISION, Study
from workers.worker import Worker

STUDY = Path(__file__).parents[2] / "studies" / "cat-to-dragon.yaml"
TABLE = Path(__file__).parent / "score_table.npz"
PARTS = Path(__file__).parents[2] / "build" / "score_table"
RENEW = "python -m tests.bench.score_table"

AXES: Mapping[str, Domain] = {
    "num_inference_steps": Choices(values=(3, 5, 10, 20)),
    "guidance_scale": Choices(values=(1, 2, 3, 4, 5, 7.5, 10, 12.5, 15, 20)),
    "strength": Choices(values=(0.4, 0.6, 0.8, 1.0)),
    "negative_prompt": Choices(values=("", "cartoon")),
}
WHENCE = {"image_name", "mask_name", "image_artifact", "mask_artifact"}
"""What tells of an input where it came from, and not what it is."""

SEEDS = 80
LOOK_SHARES = (1 / 8, 1 / 4, 1 / 2)
BLOCKS = 57
IN_FLIGHT = 24
"""Requests a worker holds; below the number of looked-at requests that an engine keeps to go on with."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class StaleTableError(Exception):
    """A table that was made of something else than what is here now; says what, and how to renew it."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores of candidates on seeds, and what drawing them costs.

    `scores` is (candidate, seed), NaN where there is no picture. `looks` is (candidate, look, seed), the look
    being the one after `afters`[candidate, look] UNet calls; 0 there means that there is none. `calls` are a
    candidate's UNet calls, `rows` how many UNet rows each of them takes.
    """

    study: Study
    scores: Floats
    looks: Floats
    afters: Ints
    calls: Ints
    rows: Ints

    @cached_property
    def judge(self) -> "RememberingJudge":
        """The study's judge, which answers from memory what it was asked before."""
        return RememberingJudge(self.study.settings, self.study.model)

    @cached_property
    def candidates(self) -> Sequence[Settings]:
        """The settings of each row, in the lattice's order."""
        return survey(self.study.space, self.judge).candidates

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Which row answers for a candidate, by the judge's name for it."""
        return {self.judge.candidate(settings): row for row, settings in enumerate(self.candidates)}

    @property
    def costs(self) -> Ints:
        """UNet rows of one picture of each candidate."""
        return self.calls * self.rows

    def row(self, settings: Settings) -> int:
        """The row of swept settings or of their twin. Raises KeyError where they cannot run."""
        return self.places[self.judge.candidate(settings)]

    def look(self, row: int, after: int, seed: int) -> float:
        """The score of an early look. Raises KeyError where the table has none after so many calls."""
        found = np.flatnonzero(self.afters[row] == after)
        if not len(found):
            there = [int(each) for each in self.afters[row] if each]
            raise KeyError(
                f"the table has no look after {after} of {self.calls[row]} UNet calls, only {there}"
            )
        return float(self.looks[row, found[0], seed])


class RememberingJudge(Judge):
    """A judge for thousands of searches over the same few hundred cells."""

    def __init__(self, fixed: Settings, model: Any) -> None:
        super().__init__(fixed, model)
        object.__setattr__(self, "_names", {})
        object.__setattr__(self, "_obstacles", {})

    def candidate(self, swept: Settings) -> str:
        """Equal for settings that draw the same pictures."""
        names: dict[tuple[Any, ...], str] = self.__dict__["_names"]
        key = tuple(swept.items())
        if key not in names:
            names[key] = super().candidate(swept)
        return names[key]

    def obstacle(self, swept: Settings) -> str | None:
        """Why the settings cannot run, or None."""
        obstacles: dict[tuple[Any, ...], str | None] = self.__dict__["_obstacles"]
        key = tuple(swept.items())
        if key not in obstacles:
            obstacles[key] = super().obstacle(swept)
        return obstacles[key]


def looks_after(calls: int) -> list[int]:
    """UNet calls after which a request of so many is looked at.

    At each share, rounded either way, as a strategy may round as it likes.
    """
    rounded = {way(share * calls) for share in LOOK_SHARES for way in (math.floor, round)}
    return sorted({after for after in rounded | {math.ceil(calls / 4), 1} if 0 < after < calls})


def bench_study(axes: Mapping[str, Domain] = AXES, seeds: int = SEEDS) -> "tuple[Study, Mapping[str, bytes]]":
    """The study that the table is of, and its input images as PNG by pixel hash."""
    from orchestrator import resolving
    from workers.png import encode_png

    with tempfile.TemporaryDirectory() as root:
        resolved = resolving.resolve(STUDY, root, lambda: 0)
    settings = {name: value for name, value in resolved.study.settings.items() if name not in axes}
    # Its own words, whose style the settings have to find, so that the example may change without the table.
    words = {"prompt": "a green dragon", "score_text": "a realistic green dragon"}
    changes = {
        "space": Space(axes=dict(axes)),
        "seeds": tuple(range(seeds)),
        "settings": settings,
        "inputs": tuple(each.model_copy(update=words) for each in resolved.study.inputs),
    }
    inputs = {name: encode_png(image) for name, image in resolved.images.items()}
    return resolved.study.model_copy(update=changes), inputs


def facts(study: Study) -> dict[str, Any]:
    """What decides a table's numbers."""
    described: dict[str, Any] = {
        "model": study.model.identity,
        "scorer": study.scorer.id,
        "dtype": study.model.dtype,
        "pixel revision": PIXEL_REVISION,
        "inputs": [each.model_dump(exclude=WHENCE) for each in study.inputs],
        "fixed settings": dict(study.settings),
        "space": {name: list(domain.points() or ()) for name, domain in study.space.axes.items()},
        "seeds": list(study.seeds),
        "looks at": list(LOOK_SHARES),
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def save(table: ScoreTable, path: Path) -> None:
    """Write a table aside and put it in place."""
    aside = path.with_suffix(".aside")
    with aside.open("wb") as file:
        np.savez_compressed(
            file,
            facts=np.array(json.dumps(facts(table.study))),
            diffusers=np.array(table.study.model.diffusers),
            scores=table.scores,
            looks=table.looks.astype(np.float16),  # half a hundredth of a point at most
            afters=table.afters.astype(np.int16),
            calls=table.calls.astype(np.int16),
            rows=table.rows.astype(np.int16),
        )
        os.fsync(file.fileno())
    aside.replace(path)


def load(path: Path, study: Study) -> ScoreTable:
    """Read a table. Raises StaleTableError where it was made of something else than `study`."""
    if not path.exists():
        raise StaleTableError(f"there is no score table {path}; make it: {RENEW}")
    with np.load(path) as stored:
        was, now = json.loads(str(stored["facts"])), facts(study)
        for name in now:
            if was.get(name) != now[name]:
                raise StaleTableError(
                    f"{path} was made with another {name}: {_short(was.get(name))}, here it is "
                    f"{_short(now[name])}; renew it: {RENEW}"
                )
        return ScoreTable(
            study,
            stored["scores"],
            stored["looks"].astype(np.float32),
            stored["afters"].astype(np.int64),
            stored["calls"].astype(np.int64),
            stored["rows"].astype(np.int64),
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def draw(worker: Worker, study: Study, candidates: Sequence[Settings]) -> dict[str, npt.NDArray[Any]]:
    """Scores and looks of some candidates on all seeds: the arrays of a table, of these rows."""
    afters = [looks_after(_calls(study, settings)) for settings in candidates]
    most = max(1, max(len(each) for each in afters))
    scores = np.full((len(candidates), len(study.instances)), np.nan, np.float32)
    looks = np.full((len(candidates), most, len(study.instances)), np.nan, np.float32)
    calls = np.zeros(len(candidates), np.int64)
    waiting: deque[ImageRequest] = deque()
    places: dict[str, tuple[int, int]] = {}
    for row, settings in enumerate(candidates):
        for column, instance in enumerate(study.instances):
            request = study.request(settings, instance)
            places[request.image_id] = row, column
            waiting.append(replace(request, stop_after=afters[row][0] if afters[row] else None))
    held, again = 0, list[ImageRequest]()
    while waiting or held:
        new = [waiting.popleft() for _ in range(min(IN_FLIGHT - held, len(waiting)))]
        held += len(new)
        finished, again = worker.advance([*again, *new]), []
        for item in finished:
            row, column = places[item.request.image_id]
            if isinstance(item.outcome, Looked):
                look = afters[row].index(item.outcome.after)
                looks[row, look, column] = item.outcome.scores[study.objective]
                following = afters[row][look + 1 :]
                again.append(replace(item.request, stop_after=following[0] if following else None))
                continue
            held -= 1
            if isinstance(item.outcome, Failed) and item.outcome.kind == "lost":
                raise RuntimeError(f"{candidates[row]}: {item.outcome.reason}")
            if isinstance(item.outcome, Scored):
                scores[row, column] = item.outcome.scores[study.objective]
                calls[row] = item.provenance.unet_calls or 0
    padded = np.array([[*each, *[0] * (most - len(each))] for each in afters], np.int64)
    rows = [2 if guidance_is_on(study.judge.complete(each), study.model) else 1 for each in candidates]
    return {"scores": scores, "looks": looks, "afters": padded, "calls": calls, "rows": np.array(rows)}


def _calls(study: Study, settings: Settings) -> int:
    steps = effective_steps(study.judge.complete(settings), study.model)
    assert steps is not None
    return steps


_worker: Worker | None = None
_study: Study | None = None


def _begin(study: Study, inputs: Mapping[str, bytes]) -> None:
    """Make this process's worker, of one thread."""
    global _worker, _study
    from orchestrator.wiring import WorkerSetup, build_worker

    _study, _worker = study, build_worker(WorkerSetup(study, inputs, batch=8, threads=1))


def _draw_block(job: tuple[Path, Sequence[Settings]]) -> int:
    """Draw one block into its file; how many pictures that were."""
    path, candidates = job
    assert _worker is not None
    assert _study is not None
    aside = path.with_suffix(".aside")
    with aside.open("wb") as file:
        np.savez(file, **draw(_worker, _study, candidates))  # type: ignore[arg-type]
        os.fsync(file.fileno())
    aside.replace(path)
    return len(candidates) * len(_study.instances)


def make(study: Study, inputs: Mapping[str, bytes], processes: int, every: int = 1) -> ScoreTable:
    """Draw what is not drawn yet, in `processes` of one thread each, and put the blocks together."""
    candidates = survey(study.space, study.judge).candidates[::every]
    blocks = min(BLOCKS, len(candidates))
    folder = PARTS / content_hash({**facts(study), "every": every})[:16]
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"block-{block:02}.npz", candidates[block::blocks]) for block in range(blocks)]
    missing = [job for job in jobs if not job[0].exists()]
    total, done, begun = sum(len(each) for _, each in missing) * len(study.seeds), 0, time.monotonic()
    print(f"{len(candidates)} candidates × {len(study.seeds)} seeds; {total} pictures to draw", flush=True)
    if missing:
        with multiprocessing.get_context("spawn").Pool(processes, _begin, (study, inputs)) as pool:
            for pictures in pool.imap_unordered(_draw_block, missing):
                done += pictures
                rate = done / (time.monotonic() - begun)
                left = (total - done) / rate / 60
                print(f"{done}/{total} pictures, {rate:.1f} a second, {left:.0f} min left", flush=True)
    return _joined(study, [path for path, _ in jobs], len(candidates))


def _joined(study: Study, parts: Sequence[Path], candidates: int) -> ScoreTable:
    """The blocks as one table; block b of B holds every B-th candidate from b on."""
    blocks = [dict(np.load(part)) for part in parts]
    looks = max(block["afters"].shape[1] for block in blocks)
    shape = (candidates, looks, len(study.seeds))
    table = ScoreTable(
        study,
        np.zeros((candidates, len(study.seeds)), np.float32),
        np.full(shape, np.nan, np.float32),
        np.zeros(shape[:2], np.int64),
        np.zeros(candidates, np.int64),
        np.zeros(candidates, np.int64),
    )
    for number, block in enumerate(blocks):
        there, wide = slice(number, None, len(blocks)), block["afters"].shape[1]
        table.scores[there], table.calls[there], table.rows[there] = (
            block["scores"],
            block["calls"],
            block["rows"],
        )
        table.looks[there, :wide], table.afters[there, :wide] = block["looks"], block["afters"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=TABLE, help="where the table goes")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--every", type=int, default=1, help="every N-th candidate only, to try it")
    options = parser.parse_args()
    study, inputs = bench_study(seeds=options.seeds)
    table = make(study, inputs, options.processes, options.every)
    save(table, options.file)
    print(f"{options.file}: {options.file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
