"""The pool of Ray actors: each holds one worker, stays warm, and has its next work waiting while it computes."""

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from orchestrator.pool import Done, Picture, PngPicture, done
from search_spaces.errors import InputError
from search_spaces.requests import Failed, ImageRequest, Looked
from workers.worker import Finished, Provenance, Worker

CALLS_AHEAD = 2  # one computing, one waiting: a third gains nothing
DEATHS_ALONE = 2
"""Deaths of actors that held a request and nothing else, after which the request counts as lost."""

DEATHS_IN_A_ROW = 10
"""Deaths of actors without one finished request in between, after which the pool gives up."""


class PoolError(Exception):
    """The pool cannot go on; one sentence says why."""


class _RayWorker:
    """A worker inside an actor. Pictures leave it as one packed buffer beside their metadata."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def load(self, make_worker: Callable[[], Worker]) -> int:
        """Make the worker; how many requests it wants at a time."""
        self._worker = make_worker()
        return self._worker.batch

    def advance(
        self, new: Sequence[ImageRequest], cancelled: Collection[str]
    ) -> tuple[list[tuple[Finished, int]], "np.ndarray[Any, Any]"]:
        assert self._worker is not None
        return _packed(self._worker.advance(new, cancelled))

    def score(
        self, stored: Sequence[tuple[ImageRequest, bytes]]
    ) -> tuple[list[tuple[Finished, int]], "np.ndarray[Any, Any]"]:
        assert self._worker is not None
        return _packed(self._worker.score(stored))


def _packed(results: Sequence[Finished]) -> tuple[list[tuple[Finished, int]], "np.ndarray[Any, Any]"]:
    """Results without bytes, each with its PNG's length, and all PNGs in one buffer."""
    pngs = [finished.png or b"" for finished in results]
    bare = [(replace(finished, png=None), len(png)) for finished, png in zip(results, pngs, strict=True)]
    return bare, np.frombuffer(b"".join(pngs), dtype=np.uint8)


@dataclass
class _Call:
    """One call under way: what it returns, and what it was given to forget."""

    buffer: Any
    cancelled: set[str]
    loading: bool = False


@dataclass
class _Actor:
    """One actor as the driver knows it."""

    handle: Any
    batch: int
    calls: dict[Any, _Call] = field(default_factory=dict)  # by the reference of the metadata
    held: dict[str, ImageRequest] = field(default_factory=dict)
    stored: dict[str, Picture] = field(default_factory=dict)
    to_forget: set[str] = field(default_factory=set)
    suspect: str | None = None  # the one request that it holds alone


class RayPool:
    """`workers` actors with `num_cpus` or `num_gpus` each. The driver owns retries: Ray is told to do none.

    Requests whose actor dies are tried again, each alone on an actor, so that one that kills its actor is
    told from its companions; after `DEATHS_ALONE` deaths it is `Failed` (lost). Ray and the actors are
    started with the first request, so that a study that lacks nothing starts nothing.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[None]],
        make_worker: Callable[[], Worker],
        workers: int,
        batch: int,
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> None:
        self._connect, self._session = connect, ExitStack()
        self._make_worker, self._batch, self._workers = make_worker, batch, workers
        self._remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, max_task_retries=0)(
            _RayWorker
        )
        self._queue: deque[ImageRequest] = deque()
        self._suspects: deque[ImageRequest] = deque()  # were held by an actor that died
        self._to_score: deque[tuple[ImageRequest, Picture]] = deque()
        self._deaths: dict[str, int] = {}
        self._deaths_in_a_row = 0
        self._lost: list[Done] = []
        self._aside: dict[str, _Actor] = {}  # who keeps a request that was looked at
        self.notices: list[str] = []
        self._actors: list[_Actor] = []

    @property
    def free(self) -> int:
        """Two batches for each actor: one computing, one waiting."""
        wanted = sum(actor.batch for actor in self._actors) or self._batch * self._workers
        return max(0, CALLS_AHEAD * wanted - self.outstanding)

    @property
    def outstanding(self) -> int:
        """Requests queued, held by actors, or lost and not yet told."""
        held = sum(len(actor.held) for actor in self._actors)
        queued = len(self._queue) + len(self._suspects) + len(self._to_score)
        return queued + held + len(self._lost)

    def submit(self, requests: Sequence[ImageRequest]) -> None:
        """Queue requests to be generated and scored."""
        self._queue.extend(requests)
        self._dispatch()

    def score(self, stored: Sequence[tuple[ImageRequest, Picture]]) -> None:
        """Queue pictures that exist already to be scored only."""
        self._to_score.extend(stored)
        self._dispatch()

    def cancel(self, image_ids: Collection[str]) -> None:
        """Forget requests, and what is set aside of them; actors hear of it with their next call."""
        unwanted = set(image_ids)
        self._queue = deque(request for request in self._queue if request.image_id not in unwanted)
        self._suspects = deque(request for request in self._suspects if request.image_id not in unwanted)
        for actor in self._actors:
            actor.to_forget |= unwanted & (actor.held.keys() - actor.stored.keys())
        for image_id in unwanted & self._aside.keys():
            self._aside.pop(image_id).to_forget.add(image_id)

    def next_done(self, timeout: float) -> Sequence[Done]:
        """Everything that has finished, waiting at most `timeout` seconds for the first of it."""
        self._dispatch()
        deadline = time.monotonic() + timeout
        while True:
            finished = self._collect(max(0.0, deadline - time.monotonic()))
            self._dispatch()
            if finished or time.monotonic() >= deadline or not self.outstanding:
                return finished

    def close(self) -> None:
        """End the actors; what is outstanding is forgotten."""
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()
        self._queue.clear()
        self._suspects.clear()
        self._to_score.clear()
        self._lost.clear()
        self._aside.clear()
        self._session.close()

    def _start(self) -> _Actor:
        actor = _Actor(self._remote.remote(), self._batch)
        actor.calls[actor.handle.load.remote(self._make_worker)] = _Call(None, set(), loading=True)
        return actor

    def _dispatch(self) -> None:
        """Give every actor with room its next batch, the emptiest first; let the others go on."""
        if not self._actors and (self._queue or self._to_score):
            self._session.enter_context(self._connect())
            self._actors = [self._start() for _ in range(self._workers)]
        for actor in sorted(self._actors, key=lambda actor: len(actor.held)):
            while self._waiting_calls(actor) < CALLS_AHEAD and self._give(actor):
                pass

    def _waiting_calls(self, actor: _Actor) -> int:
        return sum(not call.loading for call in actor.calls.values())

    def _give(self, actor: _Actor) -> bool:
        """One more call for an actor; False where it needs none."""
        if actor.suspect is not None:
            if not self._waiting_calls(actor):
                self._advance(actor, [])
            return False
        if self._suspects and not actor.held:
            suspect = self._suspects.popleft()
            actor.suspect = suspect.image_id
            self._advance(actor, [suspect])
            return True
        room = CALLS_AHEAD * actor.batch - len(actor.held)
        if self._to_score and room > 0:
            batch = [self._to_score.popleft() for _ in range(min(actor.batch, len(self._to_score)))]
            actor.held |= {request.image_id: request for request, _ in batch}
            actor.stored |= {request.image_id: picture for request, picture in batch}
            call = actor.handle.score.options(num_returns=2)
            metadata, buffer = call.remote([(request, picture.png()) for request, picture in batch])
            actor.calls[metadata] = _Call(buffer, set())
            return True
        new = self._next(actor, min(actor.batch, room))
        to_generate = actor.held.keys() - actor.stored.keys()
        if not (new or to_generate or actor.to_forget):
            return False
        self._advance(actor, new)
        return True

    def _next(self, actor: _Actor, count: int) -> list[ImageRequest]:
        """The next requests for an actor: not those that another keeps half done, unless that one is busy.

        What the actor is to forget it must have forgotten before it gets it again.
        """
        suitable = [
            request
            for request in self._queue
            if request.image_id not in actor.to_forget
            and (
                (owner := self._aside.get(request.image_id, actor)) is actor
                or (not actor.held and len(owner.held) >= CALLS_AHEAD * owner.batch)
            )
        ]
        new = suitable[: max(0, count)]
        taken = {request.image_id for request in new}
        if taken:
            self._queue = deque(request for request in self._queue if request.image_id not in taken)
        return new

    def _advance(self, actor: _Actor, new: Sequence[ImageRequest]) -> None:
        for call in actor.calls.values():  # what comes in again is held, whatever was to be forgotten before
            call.cancelled -= {request.image_id for request in new}
        actor.held |= {request.image_id: request for request in new}
        cancelled, actor.to_forget = actor.to_forget, set()
        metadata, buffer = actor.handle.advance.options(num_returns=2).remote(new, cancelled)
        actor.calls[metadata] = _Call(buffer, cancelled)

    def _collect(self, timeout: float) -> list[Done]:
        """Results of the calls that have returned; the dead are replaced and their requests queued again."""
        lost, self._lost = self._lost, []
        by_call = {call: actor for actor in self._actors for call in actor.calls}
        if not by_call:
            return lost
        ready, _ = ray.wait(list(by_call), num_returns=1, timeout=0 if lost else timeout)
        if ready:  # whatever else has returned comes along
            ready, _ = ray.wait(list(by_call), num_returns=len(by_call), timeout=0)
        finished = lost
        for metadata in ready:
            actor = by_call[metadata]
            if actor in self._actors:  # it may have been found dead by an earlier call of this round
                finished += self._take(actor, metadata)
        return finished

    def _take(self, actor: _Actor, metadata: Any) -> list[Done]:
        call = actor.calls.pop(metadata)
        try:
            if call.loading:
                actor.batch = ray.get(metadata)
                return []
            results, buffer = ray.get([metadata, call.buffer])
        except RayTaskError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if call.loading:
                if isinstance(cause, InputError):
                    raise InputError(str(cause)) from None
                raise PoolError(f"a worker cannot start: {type(cause).__name__}: {cause}") from error
            self._bury(actor, f"{type(cause).__name__} in the worker: {str(cause).partition(chr(10))[0]}")
            return []
        except RayError as error:
            self._bury(actor, _cause_of_death(error))
            return []
        for image_id in call.cancelled:
            actor.held.pop(image_id, None)
        found, start = [], 0
        for result, length in results:
            picture = PngPicture(buffer[start : start + length].tobytes()) if length else None
            start += length
            actor.held.pop(result.request.image_id, None)
            actor.stored.pop(result.request.image_id, None)
            if isinstance(result.outcome, Looked):
                self._aside[result.request.image_id] = actor
            else:
                self._aside.pop(result.request.image_id, None)
            found.append(done(result, picture))
        if actor.suspect not in actor.held:
            actor.suspect = None
        if found:
            self._deaths_in_a_row = 0
        return found

    def _bury(self, actor: _Actor, cause: str) -> None:
        """Queue a dead actor's requests again, first in line, and start another in its place."""
        self._actors.remove(actor)
        self._aside = {image_id: owner for image_id, owner in self._aside.items() if owner is not actor}
        ray.kill(actor.handle)
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            raise PoolError(f"{DEATHS_IN_A_ROW} workers died in a row without one image; the last: {cause}")
        for image_id, request in actor.held.items():
            if image_id in actor.to_forget:
                continue
            if image_id == actor.suspect:
                self._deaths[image_id] = self._deaths.get(image_id, 0) + 1
            if self._deaths.get(image_id, 0) >= DEATHS_ALONE:
                nothing = Provenance("", 0, 0, None, 0.0, 0.0)
                reason = f"its worker died {DEATHS_ALONE} times while it held nothing else: {cause}"
                self._lost.append(Done(request, Failed("lost", reason), nothing, None))
            elif image_id in actor.stored:
                self._to_score.append((request, actor.stored[image_id]))
            else:
                self._suspects.append(request)
        self.notices.append(f"a worker died ({cause}); {len(actor.held)} images are tried again")
        self._actors.append(self._start())


def _cause_of_death(error: RayError) -> str:
    if isinstance(error, RayActorError):
        return "its process or node is gone"
    return type(error).__name__
