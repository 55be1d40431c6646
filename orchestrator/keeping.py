"""Pictures on their way from workers into the catalog: the driver passes references on and sees no bytes."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.pool import Done, Kept, PictureWriter
from orchestrator.ray_worker import Parcel, RayWriter
from search_spaces.requests import ImageRequest

PART_IMAGES = 64
PART_BYTES = 64 * 2**20
PART_SECONDS = 0.5
"""A part file is written once there are so many pictures or bytes, or the oldest has waited for so long."""

UNWRITTEN_BYTES = 256 * 2**20
"""Pictures that may wait to be written, beyond which workers are given nothing: a slow disk slows the sweep."""

LATE_SECONDS = 60.0
"""After which a picture that does not come from its machine is made again."""

WRITES_AHEAD = 2
WRITER_DEATHS = 3
"""Deaths of writers in a row, without a picture in between, after which the driver writes by itself."""


@dataclass(frozen=True)
class _Write:
    """One write under way, and who does it."""

    writer: Any
    batch: Sequence["_Waiting"]


@dataclass(frozen=True)
class _Waiting:
    """A parcel, and since when it waits."""

    parcel: Parcel
    since: float


class Keeping:
    """A writer beside the catalog, on this machine, that acknowledges what is durable.

    Where it cannot write, the driver gets the bytes and writes by itself, which says what is wrong and waits.
    """

    def __init__(self, make_writer: Callable[[], PictureWriter]) -> None:
        self._make_writer = make_writer
        self._writer: Any = None
        self._waiting: deque[_Waiting] = deque()
        self._writing: dict[Any, _Write] = {}  # by the reference of the acknowledgement
        self._deaths = 0
        self.notices: list[str] = []

    @property
    def images(self) -> int:
        """Pictures that are not durable yet."""
        return sum(len(waiting.parcel.done) for waiting in self._all())

    @property
    def is_full(self) -> bool:
        """Whether as much waits as may."""
        return sum(waiting.parcel.size for waiting in self._all()) >= UNWRITTEN_BYTES

    @property
    def references(self) -> list[Any]:
        """What to wait for."""
        return list(self._writing)

    def _all(self) -> list[_Waiting]:
        return [*self._waiting, *(waiting for write in self._writing.values() for waiting in write.batch)]

    def start(self) -> None:
        """Start the writer, which takes a while, before it is needed."""
        if self._writer is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": here}
            self._writer = ray.remote(**options)(RayWriter).remote(self._make_writer)

    def add(self, parcel: Parcel, now: float) -> None:
        """Pictures to be kept."""
        self._waiting.append(_Waiting(parcel, now))

    def send(self, now: float, hurry: bool) -> None:
        """Hand over what is due; in a `hurry`, everything."""
        while self._waiting and len(self._writing) < WRITES_AHEAD:
            batch: list[_Waiting] = []
            images = size = 0
            for waiting in self._waiting:
                if batch and (images >= PART_IMAGES or size >= PART_BYTES):
                    break
                batch.append(waiting)
                images, size = images + len(waiting.parcel.done), size + waiting.parcel.size
            full = images >= PART_IMAGES or size >= PART_BYTES
            if not (full or hurry or now - batch[0].since >= PART_SECONDS):
                return
            for _ in batch:
                self._waiting.popleft()
            self.start()
            reference = self._writer.write.remote([waiting.parcel for waiting in batch])
            self._writing[reference] = _Write(self._writer, batch)

    def take(self, reference: Any, now: float) -> tuple[list[Done], list[ImageRequest]]:
        """What an acknowledgement comes to: results that may be told, and requests whose pictures are lost."""
        write = self._writing.pop(reference)
        batch = write.batch
        try:
            fates = ray.get(reference)
        except RayTaskError as error:
            if not isinstance(error.cause, OSError):
                raise
            return self._by_ourselves(batch)
        except RayError:
            return self._without(write)
        self._deaths = 0
        told: list[Done] = []
        lost: list[ImageRequest] = []
        for fate, waiting in zip(fates, batch, strict=True):
            if fate == "kept":
                told += [replace(done, picture=Kept()) for done, _, _ in waiting.parcel.done]
            elif fate == "lost" or now - waiting.since > LATE_SECONDS:
                lost += [done.request for done, _, _ in waiting.parcel.done]
            else:
                self._waiting.append(waiting)
        if lost:
            self.notices.append(lost_notice(len(lost)))
        return told, lost

    def _without(self, write: _Write) -> tuple[list[Done], list[ImageRequest]]:
        """The writer died: another writes what was not acknowledged; after some deaths, we do."""
        if write.writer is self._writer:
            self._deaths += 1
            ray.kill(self._writer)
            self._writer = None
            self.notices.append("the catalog's writer died; what it had not written, another writes")
        if self._deaths > WRITER_DEATHS:
            return self._by_ourselves(write.batch)
        self._waiting.extendleft(reversed(write.batch))
        return [], []

    def _by_ourselves(self, batch: Sequence[_Waiting]) -> tuple[list[Done], list[ImageRequest]]:
        told: list[Done] = []
        lost: list[ImageRequest] = []
        for waiting in batch:
            try:
                told += waiting.parcel.unpacked(LATE_SECONDS)
            except RayError:
                lost += [done.request for done, _, _ in waiting.parcel.done]
        if lost:
            self.notices.append(lost_notice(len(lost)))
        return told, lost

    def close(self) -> None:
        """End the writer; what is not durable is forgotten."""
        self._waiting.clear()
        self._writing.clear()
        if self._writer is not None:
            ray.kill(self._writer)
            self._writer = None


def lost_notice(images: int) -> str:
    """What happened to pictures whose machine went before they were written."""
    return f"{images} images were lost with their machine before they were written; they are made again"
