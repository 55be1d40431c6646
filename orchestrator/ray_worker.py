"""What runs inside Ray's processes: the worker on its device, and the writer of pictures beside the catalog."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from orchestrator.pool import Done, PictureWriter, PngPicture
from orchestrator.versions import versions
from search_spaces.requests import ImageRequest
from workers.worker import Finished, Worker

FETCH_SECONDS = 2.0
"""That the writer waits for pictures from other machines before it writes those that are there."""


@dataclass(frozen=True)
class Arrived:
    """Where a worker has found its place."""

    node: str  # Ray's id
    address: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    """A worker that is ready: how many requests it wants at a time, on what, and what the user should know."""

    batch: int
    device: str
    notes: Sequence[str]


Packed = tuple[list[tuple[Finished, int]], "np.ndarray[Any, Any]"]
"""Results without bytes, each with its PNG's length, and all PNGs in one buffer."""


class RayWorker:
    """A worker inside an actor. Pictures leave it as one packed buffer beside their metadata."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def arrive(self) -> Arrived:
        """Say where it is, before anything is loaded."""
        context = ray.get_runtime_context()
        return Arrived(context.get_node_id(), ray.util.get_node_ip_address(), versions())

    def load(self, make_worker: Callable[[], Worker]) -> Loaded:
        """Make the worker."""
        self._worker = made = make_worker()
        return Loaded(made.batch, made.device, made.notes)

    @ray.method(concurrency_group="signs")  # type: ignore[untyped-decorator]
    def steps(self) -> int:
        """How much it has done, answered while it works."""
        return -1 if self._worker is None else self._worker.steps

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str]) -> Packed:
        """Take in requests, work, give back what is finished."""
        assert self._worker is not None
        return _packed(self._worker.advance(new, cancelled))

    def score(self, stored: Sequence[tuple[ImageRequest, bytes]]) -> Packed:
        """Score pictures that exist."""
        assert self._worker is not None
        return _packed(self._worker.score(stored))


def _packed(results: Sequence[Finished]) -> Packed:
    pngs = [finished.png or b"" for finished in results]
    bare = [(replace(finished, png=None), len(png)) for finished, png in zip(results, pngs, strict=True)]
    return bare, np.frombuffer(b"".join(pngs), dtype=np.uint8)


@dataclass(frozen=True)
class Parcel:
    """The pictures of one call: finished requests, each with its place in a buffer of the object store."""

    done: Sequence[tuple[Done, int, int]]  # start and length in bytes
    buffer: Any  # a reference

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(length for _, _, length in self.done)

    def unpacked(self, timeout: float) -> list[Done]:
        """The finished requests with their pictures. Raises RayError where these are lost or too long under way."""
        buffer = ray.get(self.buffer, timeout=timeout)
        return [
            replace(done, picture=PngPicture(buffer[start : start + length].tobytes()))
            for done, start, length in self.done
        ]


class RayWriter:
    """Fetches parcels from the object store and writes them into the catalog."""

    def __init__(self, make_writer: Callable[[], PictureWriter]) -> None:
        self._writer = make_writer()

    def write(self, parcels: Sequence[Parcel]) -> list[str]:
        """For each parcel: `kept` and durable, `lost` with its machine, or `late`, to be tried again.

        Raises OSError where the storage fails.
        """
        references = [parcel.buffer for parcel in parcels]
        here, _ = ray.wait(references, num_returns=len(references), timeout=FETCH_SECONDS)
        fates, done = [], []
        for parcel in parcels:
            if parcel.buffer not in here:
                fates.append("late")
                continue
            try:
                done += parcel.unpacked(FETCH_SECONDS)
            except GetTimeoutError:
                fates.append("late")
            except RayError:
                fates.append("lost")
            else:
                fates.append("kept")
        if done:
            self._writer.write(done)
        return fates
