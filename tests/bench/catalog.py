"""What the catalog costs and how fast it answers.

    python -m tests.bench.catalog [--json FILE] [--quick]

Figures: `write_vs_bare`, rows per second of the catalog's own writing (rows made, laid out, synced, renamed, folder
synced) over those of a bare pyarrow write of the same rows with one fsync, in turns, of pictures that workers have
hashed as they do; `write_and_hash_vs_bare` were they hashed by the writer; `size_ratio`, bytes of
the part files over those of their pictures, of 200 kB each; `compaction_mb_per_s`. With a million rows of small
stand-in pictures: `lookup_1m_s` and `lookup_1m_mb`, a new process that opens the catalog and asks for what exists,
its imports not timed but their memory counted; `best20_1m_s`, the best 20 rows of a study of a million;
`image_by_id_ms`, one picture by its id, warm. `lookup_small_parts_s`: a tenth of the rows in part files of 64, as
runs write them.
"""

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.catalog.schema import SCHEMAS, image_row
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import compact
from orchestrator.exports import rows_of
from orchestrator.pool import Done, PngPicture
from search_spaces.requests import Scored
from tests.bench.figures import command_line, tell
from tests.orchestrator.studies import requests_of, small_study
from workers.worker import Provenance

PICTURE_BYTES = 200_000
FLUSH_ROWS = 64
MADE = Provenance("a device", 512, 512, 30, 1.0, 0.1)

LOOKUP = """
import re, sys, time
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from tests.orchestrator.studies import requests_of, small_study
study = small_study("bench")
begun = time.perf_counter()
catalog = ParquetCatalog(Tables(sys.argv[1]), study)
missing = [catalog.find(request) for request in requests_of(study)]
seconds = time.perf_counter() - begun
assert missing == [None] * len(missing)
assert sys.argv[2] in catalog.image_ids
# ru_maxrss would count what the parent had when it started this.
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3)
"""


def finished(count: int, start: int = 0) -> list[Done]:
    """Requests with pictures of noise, which nothing compresses, as PNG does not either; hashed by their worker."""
    request = requests_of(small_study())[0]
    found = []
    for number in range(count):
        own = type(request)(**{**request.__dict__, "image_id": f"{start:016x}{number:016x}"})
        picture = os.urandom(PICTURE_BYTES)
        made = replace(MADE, sha256=hashlib.sha256(picture).hexdigest())
        found.append(Done(own, Scored({"clip_score": 1.0}), made, PngPicture(picture)))
    return found


def write_figures(folder: Path, rounds: int) -> dict[str, float]:
    """Our writing and a bare one, in turns; and what the files take."""
    study, tables = small_study(), Tables(folder / "ours")
    every = [finished(FLUSH_ROWS, number) for number in range(rounds + 1)]
    bare = folder / "bare"
    bare.mkdir()
    ours_s, bare_s, hashing_s = [], [], []
    for number, done in enumerate(every):
        rows = [image_row(item, study) for item in done]
        begun = time.perf_counter()
        tables.append("images", [image_row(item, study) for item in done])
        ours_s.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for item in done:
            hashlib.sha256(item.picture.png() if item.picture else b"")
        hashing_s.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        with (bare / f"{number}.parquet").open("wb") as file:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMAS["images"]), file)
            file.flush()
            os.fsync(file.fileno())
        bare_s.append(time.perf_counter() - begun)
    stored = sum(tables.sizes("images").values())
    pictures = (rounds + 1) * FLUSH_ROWS * PICTURE_BYTES
    begun = time.perf_counter()
    compact(tables)
    compaction = time.perf_counter() - begun
    return {
        "write_vs_bare": statistics.median(bare_s[1:]) / statistics.median(ours_s[1:]),
        "write_and_hash_vs_bare": statistics.median(bare_s[1:])
        / (statistics.median(ours_s[1:]) + statistics.median(hashing_s[1:])),
        "write_mb_per_s": FLUSH_ROWS * PICTURE_BYTES / 1e6 / statistics.median(ours_s[1:]),
        "size_ratio": stored / pictures,
        "size_ratio_compacted": sum(tables.sizes("images").values()) / pictures,
        "compaction_mb_per_s": stored / 1e6 / compaction,
    }


def fill(tables: Tables, rows: int, part: int) -> list[str]:
    """A catalog of a study with so many rows, in part files of so many; some of the ids."""
    chance = np.random.default_rng(0)
    now = datetime.now(UTC)
    kept: list[str] = []
    for start in range(0, rows, part):
        count = min(part, rows - start)
        ids = [chance.bytes(16).hex() for _ in range(count)]
        kept += ids[:: max(1, count // 20)]
        seeds = pa.array(np.arange(start, start + count) % 16)
        texts = dict.fromkeys(SCHEMAS["images"].names)
        texts |= {
            "status": "ok",
            "model": "m",
            "revision": "r",
            "task": "text-to-image",
            "prompt": "a picture",
        }
        texts |= {
            "negative_prompt": "cartoon",
            "scheduler": "DDIMScheduler",
            "other_settings": "{}",
            "dtype": "float32",
        }
        texts |= {"diffusers": "0", "torch": "0", "latentsweep": "0", "device": "a device", "pipeline": "P"}
        columns: dict[str, object] = {
            "image_id": ids,
            "image": [{"bytes": bytes.fromhex(i) * 4, "path": f"{i}.png"} for i in ids],
            "sha256": [i * 2 for i in ids],
            "file_bytes": np.full(count, 64),
            "seed": seeds,
            "guidance_scale": chance.uniform(1, 15, count),
            "num_inference_steps": chance.integers(1, 50, count),
            "seconds_generate": chance.uniform(0, 1, count),
            "time": [now] * count,
        }
        tables.write("images", table_of("images", count, {**texts, **columns}))
        values = {
            "scorer": small_study().scorer.id,
            "text": "a bright picture",
            "value": chance.normal(size=count),
        }
        tables.write("scores", table_of("scores", count, {"image_id": ids, **values, "time": [now] * count}))
        told = {
            "study": "bench",
            "role": "search",
            "state": "scored",
            "scorer": values["scorer"],
            "text": values["text"],
        }
        numbers = np.arange(start, start + count)
        settings = [json.dumps({"guidance_scale": float(n)}) for n in numbers // 16]
        told |= {"image_id": ids, "trial": numbers // 16, "instance": numbers % 16, "settings": settings}
        tables.write("trials", table_of("trials", count, {**told, "time": [now] * count}))
    return kept


def table_of(table: str, count: int, columns: dict[str, object]) -> pa.Table:
    """Columns, of which those of one value are repeated, as rows of a table."""
    schema = SCHEMAS[table]
    arrays = []
    for field in schema:
        column = columns.get(field.name)
        single = column is None or isinstance(column, str)
        arrays.append(pa.array([column] * count if single else column, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def lookup(root: Path, known: str) -> tuple[float, float]:
    """Seconds and peak megabytes of a new process that asks what exists."""
    command = [sys.executable, "-c", LOOKUP, str(root), known]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(told[0]), float(told[1])


def read_figures(folder: Path, rows: int) -> dict[str, float]:
    """What a large catalog takes to be asked."""
    tables = Tables(folder / "large")
    known = fill(tables, rows, 50_000)
    seconds, megabytes = lookup(folder / "large", known[0])
    begun = time.perf_counter()
    best = rows_of(Tables(folder / "large"), "bench", top=20)
    best_s = time.perf_counter() - begun
    assert best.num_rows == 20
    fresh = Tables(folder / "large")
    fresh.png(known[0])
    chosen = random.Random(0).choices(known, k=100)
    begun = time.perf_counter()
    for image_id in chosen:
        assert fresh.png(image_id) == bytes.fromhex(image_id) * 4
    by_id = (time.perf_counter() - begun) / len(chosen)
    small = fill(Tables(folder / "small"), rows // 10, FLUSH_ROWS)
    return {
        "lookup_1m_s": seconds,
        "lookup_1m_mb": megabytes,
        "best20_1m_s": best_s,
        "image_by_id_ms": 1000 * by_id,
        "lookup_small_parts_s": lookup(folder / "small", small[0])[0],
    }


def figures(quick: bool) -> dict[str, float]:
    """All of them; `quick` has a tenth of the rows."""
    with tempfile.TemporaryDirectory() as folder:
        told = write_figures(Path(folder), 3 if quick else 15)
        return told | read_figures(Path(folder), 100_000 if quick else 1_000_000)


def main() -> None:
    parser = command_line(__doc__, "a tenth of the rows, which the figures' names do not say")
    options = parser.parse_args()
    found = figures(options.quick)
    if options.quick:
        print("with 100,000 rows in place of a million:")
    tell(found, options.json)


if __name__ == "__main__":
    main()
