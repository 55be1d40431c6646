"""The pool of Ray actors: each holds one worker, stays warm, and has its next work waiting while it computes."""

import logging
import math
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from orchestrator.dealing import (
    WAITING_SECONDS,
    Advance,
    Dealer,
    Instruction,
    Member,
    Places,
    PoolError,
    Start,
    Stop,
)
from orchestrator.keeping import LATE_SECONDS, Keeping, lost_notice
from orchestrator.machine import memory, oom_kills
from orchestrator.pool import Done, Picture, PictureWriter, done
from orchestrator.ray_worker import Arrived, Loaded, Parcel, RayWorker
from orchestrator.versions import difference, versions
from search_spaces.errors import InputError
from search_spaces.requests import ImageRequest
from workers.worker import Finished, Worker

log = logging.getLogger(__name__)

STALL_SECONDS = 600.0
"""That an actor may work without getting anywhere, by default."""

LOAD_SECONDS = 3600.0
"""That an actor may take to load: tens of gigabytes from a hub, once for a machine."""

MOST_SIGN_SECONDS = 30.0
"""After which an actor that is silent is asked how far it is."""

PLACES_SECONDS = 2.0
"""Between two counts of the cluster's places."""

NODE_SECONDS = 2.0
"""That a machine may take to answer, when one of its processes has died."""

MOST_DEAF_SECONDS = 5.0
"""Between two looks at who is silent, beyond which nobody's silence is told from our own."""

LONGEST_WAIT = 1.0
"""Between two looks at what hangs and what has joined."""


def _node_is_alive(node: str | None) -> bool:
    """Whether a machine is there, asked of itself: Ray takes up to a minute to notice that one is gone."""
    for found in ray.nodes():
        if found["NodeID"] == node:
            return bool(found["Alive"]) and _answers(found["NodeManagerAddress"], found["NodeManagerPort"])
    return node is None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=NODE_SECONDS).close()
    except OSError:
        return False
    return True


@dataclass(eq=False)
class _Actor:
    """One actor as Ray knows it, and when it was last asked how far it is."""

    handle: Any
    node: str | None = None
    steps: int = -1
    asked: float = 0.0
    is_asked: bool = False


@dataclass(frozen=True)
class _Call:
    """One call under way; of one that works, its number and the reference of its pictures."""

    member: Member
    kind: Literal["arrive", "load", "steps", "work"]
    number: int = 0
    buffer: Any = None


@dataclass(frozen=True)
class _Slice:
    """A picture in the object store, of which this process sees no byte."""

    buffer: Any
    start: int
    length: int

    def png(self) -> bytes:
        """The picture's PNG bytes."""
        data: bytes = ray.get(self.buffer)[self.start : self.start + self.length].tobytes()
        return data


class RayPool:
    """Actors with `num_cpus` or `num_gpus` each. The driver owns retries: Ray is told to do none.

    Who does what, `Dealer` decides. Ray and the actors are started with the first request, so that a study that
    lacks nothing starts nothing.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[None]],
        make_worker: Callable[[], Worker],
        workers: int,
        batch: int,
        num_cpus: float = 1,
        num_gpus: float = 0,
        places: Callable[[], Places] | None = None,
        make_writer: Callable[[], PictureWriter] | None = None,
        stall_timeout: float = STALL_SECONDS,
        load_timeout: float = LOAD_SECONDS,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`workers` actors, or as many as there are `places` and use for; `batch` requests each until it has loaded.

        With `make_writer`, pictures are written into the catalog by a process of its own, before their results are
        told. An actor that loads for longer than `load_timeout` seconds, or works for longer than `stall_timeout`
        without getting anywhere, is replaced. `say` hears each notice at once.
        """
        self._connect, self._session = connect, ExitStack()
        self._make_worker, self._shipped = make_worker, None
        self._fixed, self._count_places = Places(workers, workers), places
        self._places, self._counted = self._fixed, -math.inf
        self._remote = ray.remote(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"signs": 1},
        )(RayWorker)
        self._dealer = Dealer(batch, stall_timeout, load_timeout)
        self._keeping = Keeping(make_writer) if make_writer else None
        self._signs_every = min(MOST_SIGN_SECONDS, stall_timeout / 4)
        self._connected = False
        self._actors: dict[Member, _Actor] = {}
        self._calls: dict[Any, _Call] = {}  # by the reference of what returns
        self._ready: list[Done] = []  # durable, or with nothing to keep
        self._accepted = False  # whether any worker has loaded
        self._told_of_waiting = False
        self._listened = math.inf  # when it was last looked who is silent
        self._kind, self._needs = ("GPU", num_gpus) if num_gpus else ("CPU", num_cpus)
        self._kept_back: list[str] = []  # who could not load; where nobody can, one sentence says so
        self._here = versions()
        self._say, self._said = say, 0
        self._oom_kills = oom_kills()

    @property
    def notices(self) -> list[str]:
        """What happened to workers, a sentence each."""
        return [*self._dealer.notices, *(self._keeping.notices if self._keeping else ())]

    @property
    def free(self) -> int:
        """Two batches for each actor: one computing, one waiting; none while pictures wait for a slow disk."""
        return self._dealer.free(self._places) if self._has_room else 0

    @property
    def outstanding(self) -> int:
        """Requests queued, held by actors, being written, or ended and not yet told."""
        unwritten = self._keeping.images if self._keeping else 0
        return self._dealer.outstanding + unwritten + len(self._ready)

    @property
    def _has_room(self) -> bool:
        return self._keeping is None or not self._keeping.is_full

    def submit(self, requests: Sequence[ImageRequest]) -> None:
        """Queue requests to be generated and scored."""
        self._dealer.submit(requests)
        self._dispatch()

    def score(self, stored: Sequence[tuple[ImageRequest, Picture]]) -> None:
        """Queue pictures that exist already to be scored only."""
        self._dealer.score(stored)
        self._dispatch()

    def cancel(self, image_ids: Collection[str]) -> None:
        """Forget requests, and what is set aside of them; actors hear of it with their next call."""
        self._dealer.cancel(image_ids)

    def cancel_queued(self) -> None:
        """Forget what no actor has been given yet."""
        self._dealer.cancel_queued()

    def next_done(self, timeout: float) -> Sequence[Done]:
        """Everything that has finished, waiting at most `timeout` seconds for the first of it."""
        deadline = time.monotonic() + timeout
        while True:
            self._dispatch()
            found, self._ready = self._ready, []
            left = deadline - time.monotonic()
            self._collect(0.0 if found else max(0.0, min(left, LONGEST_WAIT)))
            found += self._ready
            self._ready = []
            if found or left <= 0 or not self.outstanding:
                self._dispatch()
                return found

    def close(self) -> None:
        """End the actors; what is outstanding is forgotten."""
        for actor in self._actors.values():
            ray.kill(actor.handle)
        if self._keeping:
            self._keeping.close()
        notices, self._dealer = self._dealer.notices, Dealer(1, math.inf, math.inf)
        self._dealer.notices = notices
        self._actors.clear()
        self._calls.clear()
        self._ready.clear()
        self._shipped, self._connected = None, False
        self._session.close()

    # Carrying out what is decided

    def _dispatch(self) -> None:
        """Start, stop and call as the dealer says; hand finished pictures on; tell what is new."""
        if not self._connected:
            if not self._dealer.works:
                return
            self._session.enter_context(self._connect())
            self._connected = True
            self._shipped = ray.put(self._make_worker)
            if (
                ray.util.client.ray.is_connected()
            ):  # the catalog is where we are, and that is not in the cluster
                self._keeping = None
            if self._keeping:
                self._keeping.start()
        now = time.monotonic()
        if now - self._listened > MOST_DEAF_SECONDS:  # as while the loop waited for a disk
            self._dealer.deaf(now - self._listened)
        self._listened = now
        if self._count_places is not None and now - self._counted >= PLACES_SECONDS:
            self._places, self._counted = self._count_places(), now
        for member, silent in self._dealer.silent(now):
            doing = "working without getting anywhere" if member.loaded else "loading"
            self._end(member, f"it hung: {silent:.0f} s of {doing}", machine=False)
        for instruction in self._dealer.instructions(now, self._places, self._has_room):
            self._carry_out(instruction)
        self._sort(self._dealer.take_ready())
        if self._keeping:
            self._keeping.send(now, hurry=not self._dealer.works)
        self._ask_for_signs(now)
        self._tell_of_waiting(now)
        notices = self.notices
        for notice in notices[self._said :]:
            log.warning(notice)
            self._say(notice)
        self._said = len(notices)

    def _tell_of_waiting(self, now: float) -> None:
        """Say once, of workers that wait for a place, what they wait for."""
        waited = self._dealer.placeless(now)
        if waited is None or waited < WAITING_SECONDS:
            self._told_of_waiting = self._told_of_waiting and waited is not None
            return
        if not self._told_of_waiting:
            self._told_of_waiting = True
            there, free = ray.cluster_resources(), ray.available_resources()
            self._dealer.notices.append(
                f"no worker has found a place for {waited:.0f} s: each needs {self._needs:g} {self._kind}, and the "
                f"cluster has {there.get(self._kind, 0):g}, {free.get(self._kind, 0):g} of them free; they "
                "begin once that changes"
            )

    def _carry_out(self, instruction: Instruction) -> None:
        member = instruction.member
        if isinstance(instruction, Start):
            self._actors[member] = actor = _Actor(self._remote.remote())
            self._calls[actor.handle.arrive.remote()] = _Call(member, "arrive")
            return
        handle = self._actors[member].handle
        if isinstance(instruction, Stop):
            self._forget(member)
        elif isinstance(instruction, Advance):
            call = handle.advance.options(num_returns=2)
            metadata, buffer = call.remote(instruction.new, set(instruction.cancelled))
            self._calls[metadata] = _Call(member, "work", instruction.call, buffer)
        else:
            call = handle.score.options(num_returns=2)
            metadata, buffer = call.remote(
                [(request, picture.png()) for request, picture in instruction.stored]
            )
            self._calls[metadata] = _Call(member, "work", instruction.call, buffer)

    def _ask_for_signs(self, now: float) -> None:
        """Ask actors that work on one call for long how far they are."""
        for member, actor in self._actors.items():
            quiet = now - max(member.heard, actor.asked)
            if member.calls and not actor.is_asked and quiet >= self._signs_every:
                actor.is_asked, actor.asked = True, now
                self._calls[actor.handle.steps.remote()] = _Call(member, "steps")

    # Hearing what has become of it

    def _collect(self, timeout: float) -> None:
        """Take in every call that has returned, waiting at most `timeout` seconds for the first."""
        waited = [*self._calls, *(self._keeping.references if self._keeping else ())]
        if not waited:
            return
        ready, _ = ray.wait(waited, num_returns=1, timeout=timeout, fetch_local=False)
        if ready and len(waited) > 1:  # whatever else has returned comes along
            ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0, fetch_local=False)
        now = time.monotonic()
        for reference in ready:
            call = self._calls.pop(reference, None)
            if call is not None:
                self._take(call, reference, now)
            elif self._keeping and reference in self._keeping.references:
                told, lost = self._keeping.take(reference, now)
                self._ready += told
                self._dealer.again(lost)
        self._sort(self._dealer.take_ready())

    def _take(self, call: _Call, reference: Any, now: float) -> None:
        member = call.member
        if member not in self._actors:  # found dead by an earlier call
            return
        try:
            found = ray.get(reference)
        except RayTaskError as error:
            self._raised(call, error)
        except RayError as error:
            self._lost(member, error)
        else:
            self._HEAR[call.kind](self, call, found, now)

    def _hear_arrival(self, call: _Call, arrived: Arrived, now: float) -> None:
        actor = self._actors[call.member]
        actor.node = arrived.node
        self._dealer.arrived(call.member, arrived.address, now)
        differs = difference(self._here, arrived.versions)
        if differs is None:
            self._calls[actor.handle.load.remote(self._shipped)] = _Call(call.member, "load")
            return
        self._refuse(
            call.member,
            f"the machine {arrived.address} has {differs}; install the same versions there as here",
        )

    def _refuse(self, member: Member, why: str) -> None:
        """Not use a worker. Raises InputError where none has been of use: then it is the user's to mend."""
        if not self._accepted:
            raise InputError(why)
        self._dealer.refused(member, why)

    def _hear_loaded(self, call: _Call, loaded: Loaded, now: float) -> None:
        self._accepted = True
        self._dealer.notices += self._kept_back
        self._kept_back.clear()
        self._dealer.loaded(call.member, loaded.batch, loaded.device, now)
        self._dealer.notices += loaded.notes

    def _hear_steps(self, call: _Call, steps: int, now: float) -> None:
        actor = self._actors[call.member]
        if steps != actor.steps:
            self._dealer.heard(call.member, now)
        actor.steps, actor.is_asked = steps, False

    def _hear_work(self, call: _Call, found: Sequence[tuple[Finished, int]], now: float) -> None:
        results, start = [], 0
        for finished, length in found:
            picture = _Slice(call.buffer, start, length) if length else None
            results.append(done(finished, picture))
            start += length
        self._dealer.returned(call.member, call.number, results, now)

    _HEAR: ClassVar[Mapping[str, Callable[["RayPool", _Call, Any, float], None]]] = {
        "arrive": _hear_arrival,
        "load": _hear_loaded,
        "steps": _hear_steps,
        "work": _hear_work,
    }

    def _sort(self, results: Sequence[Done]) -> None:
        """Pictures of each buffer go on to the catalog, or with no writer into this process; the rest is ready."""
        parcels: dict[Any, list[tuple[Done, int, int]]] = {}
        for each in results:
            if isinstance(each.picture, _Slice):
                place = each.picture
                parcels.setdefault(place.buffer, []).append((each, place.start, place.length))
            else:
                self._ready.append(each)
        for buffer, found in parcels.items():
            parcel = Parcel([(replace(each, picture=None), start, end) for each, start, end in found], buffer)
            if self._keeping:
                self._keeping.add(parcel, time.monotonic())
                continue
            try:
                self._ready += parcel.unpacked(LATE_SECONDS)
            except RayError:
                self._dealer.notices.append(lost_notice(len(found)))
                self._dealer.again([each.request for each, _, _ in found])

    def _raised(self, call: _Call, error: RayTaskError) -> None:
        """An actor's method raised."""
        cause = error.cause if error.cause is not None else error
        first_line = str(cause).strip().partition("\n")[0]
        if call.kind != "load":
            self._end(call.member, f"{type(cause).__name__} in the worker: {first_line}", machine=False)
        elif self._accepted or self._dealer.has_others(call.member):  # whose GPUs may be larger, or whole
            kind = "" if isinstance(cause, InputError) else f"{type(cause).__name__}: "
            self._dealer.refused(call.member, f"it cannot start: {kind}{first_line}")
            if not self._accepted:
                self._kept_back.append(self._dealer.notices.pop())
        elif isinstance(cause, InputError):
            raise InputError(str(cause)) from None
        else:
            raise PoolError(f"a worker cannot start: {type(cause).__name__}: {first_line}") from error

    def _lost(self, member: Member, error: RayError) -> None:
        """An actor is gone, or cannot be reached."""
        if isinstance(error, ActorDiedError) and not member.where and error.actor_init_failed:
            what = str(error).strip().rpartition("\n")[2]
            self._refuse_start(what)
        preempted = isinstance(error, RayActorError) and error.preempted
        machine = preempted or not _node_is_alive(self._actors[member].node)
        cause = self._why_gone(member) if isinstance(error, RayActorError) else type(error).__name__
        self._end(member, cause, machine)

    def _why_gone(self, member: Member) -> str:
        """What is known of a process that is gone; of other machines that is nothing more."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        here = self._actors[member].node == ray.get_runtime_context().get_node_id()
        if not here or self._oom_kills == before:
            return "its process is gone"
        return (
            f"its process is gone: the kernel ended one here for want of memory ({memory() / 1e9:.1f} GB); "
            "fewer --workers need less"
        )

    def _refuse_start(self, what: str) -> None:
        raise PoolError(f"a worker cannot start: {what}; is latentsweep installed on every machine?")

    def _end(self, member: Member, cause: str, machine: bool) -> None:
        self._forget(member)
        self._dealer.died(member, cause, machine, time.monotonic())

    def _forget(self, member: Member) -> None:
        ray.kill(self._actors.pop(member).handle)
        self._calls = {
            reference: call for reference, call in self._calls.items() if call.member is not member
        }
