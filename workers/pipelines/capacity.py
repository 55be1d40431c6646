"""How many UNet rows a device takes at a time: measured once per model, size and device, and remembered."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from workers.atomic_files import write_file

MOST_ROWS = 256
WORTH_DOUBLING = 1.05
"""Rows are doubled while that makes more of them per second than this factor."""

REPEATS = 3
MOST_SECONDS = 20.0
"""After which the best found so far is taken: on a slow device more rows gain little."""


def fastest_rows(call: Callable[[int], None], clock: Callable[[], float] = time.perf_counter) -> int:
    """The rows from which doubling twice gains less than 5 %, from 2 on; `call` makes one UNet call of so many.

    Twice, since a machine that is busy with something else may hide one gain. Where memory runs out, the rows
    before that; 1 where not even 2 fit.
    """
    begun, best, best_rate, in_vain = clock(), 0, 0.0, 0
    rows = 2
    while rows <= MOST_ROWS and clock() - begun < MOST_SECONDS and in_vain < 2:
        try:
            call(rows)  # the first call of a size allocates
            times = []
            for _ in range(REPEATS):
                start = clock()
                call(rows)
                times.append(clock() - start)
        except torch.OutOfMemoryError:
            break
        rate = rows / max(min(times), 1e-9)
        if best and rate < best_rate * WORTH_DOUBLING:
            in_vain += 1
        else:
            best, best_rate, in_vain = rows, rate, 0
        rows *= 2
    return best or 1


def remembered_rows(facts: Mapping[str, object], measure: Callable[[], int]) -> int:
    """The answer of an earlier measurement under the same facts, or a new one.

    Kept in the user's cache folder ($XDG_CACHE_HOME, by default ~/.cache); where that cannot be written,
    every worker measures for itself.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    try:
        path = _cache_folder() / f"{key}.json"
    except RuntimeError:  # nobody's home
        return measure()
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if type(rows) is int and 1 <= rows <= MOST_ROWS:
            return rows
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    rows = measure()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({**facts, "rows": rows}, indent=2).encode())
    return rows


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "latentsweep" / "rows"
