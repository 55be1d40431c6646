"""The seam `Pool`: where image requests are worked on; and the pool inside this process."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from search_spaces.requests import ImageRequest, Outcome
from workers.worker import Finished, Provenance, Worker


class Picture(Protocol):
    """An opaque handle of a picture; only the catalog and a pool look inside."""

    def png(self) -> bytes:
        """The picture's PNG bytes."""
        ...


@dataclass(frozen=True)
class PngPicture:
    """A picture held in this process."""

    data: bytes

    def png(self) -> bytes:
        """The picture's PNG bytes."""
        return self.data


@dataclass(frozen=True)
class Kept:
    """A picture that is durable in the catalog already, and has left the workers."""

    def png(self) -> bytes:
        """Raises LookupError: whoever wants to see it reads it from the catalog."""
        raise LookupError("the picture is in the catalog")


@dataclass(frozen=True)
class Done:
    """A finished request as the loop sees it; `picture` is None where there is none to keep."""

    request: ImageRequest
    outcome: Outcome
    provenance: Provenance
    picture: Picture | None
    notes: tuple[str, ...] = ()


class PictureWriter(Protocol):
    """Writes pictures into the catalog beside the loop."""

    def write(self, done: Sequence[Done]) -> None:
        """Keep pictures of finished requests, which are durable on return. Raises OSError where they cannot be."""
        ...


class Pool(Protocol):
    """Workers behind one queue.

    What is submitted comes back from `next_done` exactly once, in any order, whatever dies on the way;
    except that a cancelled request may never come back, unless it is submitted again.
    """

    @property
    def free(self) -> int:
        """How many more requests would keep every worker busy without a gap."""
        ...

    @property
    def outstanding(self) -> int:
        """Requests that may still come back."""
        ...

    def submit(self, requests: Sequence[ImageRequest]) -> None:
        """Queue requests to be generated and scored."""
        ...

    def score(self, stored: Sequence[tuple[ImageRequest, Picture]]) -> None:
        """Queue pictures that exist already to be scored only."""
        ...

    def cancel(self, image_ids: Collection[str]) -> None:
        """Forget requests, and what workers keep of those that were looked at."""
        ...

    def cancel_queued(self) -> None:
        """Forget what no worker has been given yet; what workers hold is finished and comes back."""
        ...

    def next_done(self, timeout: float) -> Sequence[Done]:
        """What has finished, waiting at most `timeout` seconds for something."""
        ...

    def close(self) -> None:
        """End the workers; what is outstanding is forgotten."""
        ...


def done(finished: Finished, picture: Picture | None) -> Done:
    """A worker's result with its picture behind a handle."""
    return Done(finished.request, finished.outcome, finished.provenance, picture, finished.notes)


class InProcessPool:
    """One worker in this process, called from `next_done`; at most `batch` requests at a time."""

    def __init__(self, worker: Worker, batch: int) -> None:
        self._worker, self._batch = worker, batch
        self._queue: deque[ImageRequest] = deque()
        self._stored: list[tuple[ImageRequest, Picture]] = []
        self._held: set[str] = set()
        self._to_forget: set[str] = set()

    @property
    def free(self) -> int:
        """One batch ahead of the worker."""
        return max(0, self._batch - self.outstanding)

    @property
    def outstanding(self) -> int:
        """Requests queued, held by the worker, or waiting to be scored."""
        return len(self._queue) + len(self._held) + len(self._stored)

    def submit(self, requests: Sequence[ImageRequest]) -> None:
        """Queue requests to be generated and scored."""
        self._queue.extend(requests)

    def score(self, stored: Sequence[tuple[ImageRequest, Picture]]) -> None:
        """Queue pictures that exist already to be scored only."""
        self._stored.extend(stored)

    def cancel(self, image_ids: Collection[str]) -> None:
        """Forget requests; the worker hears of it with its next call."""
        self._to_forget |= set(image_ids)
        self._held -= set(image_ids)
        self._queue = deque(request for request in self._queue if request.image_id not in image_ids)

    def cancel_queued(self) -> None:
        """Forget what the worker has not been given yet."""
        self._queue.clear()
        self._stored.clear()

    def next_done(self, timeout: float) -> Sequence[Done]:  # noqa: ARG002  # nothing here waits
        """Work on the next batch, here and now."""
        if self._stored:
            batch, self._stored = self._stored[: self._batch], self._stored[self._batch :]
            scored = self._worker.score([(request, picture.png()) for request, picture in batch])
            return [done(finished, None) for finished in scored]
        to_forget, self._to_forget = self._to_forget, set()
        ready = [request for request in self._queue if request.image_id not in to_forget]
        new = ready[: self._batch - len(self._held)]
        for request in new:
            self._queue.remove(request)
        self._held |= {request.image_id for request in new}
        if not (self._held or to_forget):
            return []
        results = self._worker.advance(new, to_forget)
        self._held -= {finished.request.image_id for finished in results}
        return [done(finished, PngPicture(finished.png) if finished.png else None) for finished in results]

    def close(self) -> None:
        """Forget what is outstanding."""
        self._queue.clear()
        self._stored.clear()
        self._held.clear()
