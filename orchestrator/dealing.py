"""Who works on what, who is started, replaced, let go and set aside: decided here, without Ray and without a clock.

Events go in (a worker arrived, loaded, returned, died), instructions come out; `orchestrator.ray_pool` carries
them out. Times are seconds of any one clock.
"""

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from orchestrator.pool import Done, Picture
from search_spaces.requests import Failed, ImageRequest, Looked, Scored
from workers.pipelines import may_be_the_device, may_stay_with_the_process
from workers.worker import Provenance

CALLS_AHEAD = 2  # one computing, one waiting: a third gains nothing
DEATHS_ALONE = 2
"""Deaths of workers that held a request and nothing else, after which the request counts as lost."""

DEATHS_IN_A_ROW = 10
"""Deaths of workers without one finished request in between, after which the pool gives up."""

FAILURES_IN_A_ROW = 8
"""Black, NaN or broken results of one worker without a picture in between, after which it gets no more work."""

WAITING_SECONDS = 60.0
"""Without any worker that has found a place, after which it is said what they wait for."""

IDLE_SECONDS = 60.0
"""That a worker waits for work before it is let go: longer than the pause between a race's rungs."""


class PoolError(Exception):
    """The pool cannot go on; one sentence says why."""


@dataclass(frozen=True)
class Places:
    """Where workers can be: so many places there are `now`, and so many there can be at `most`."""

    now: int
    most: int


@dataclass(eq=False)
class Member:
    """One worker as the pool knows it."""

    number: int
    batch: int
    heard: float  # when it last gave a sign of life
    where: str = ""  # its machine, once it has arrived there
    device: str = ""
    loaded: bool = False
    closed: bool = False  # it lives, and keeps its device from others, but gets no work
    calls: dict[int, set[str]] = field(default_factory=dict)  # under way, with what each was given to forget
    held: dict[str, ImageRequest] = field(default_factory=dict)
    stored: dict[str, Picture] = field(default_factory=dict)  # of those held, what is to be scored only
    to_forget: set[str] = field(default_factory=set)
    suspect: str | None = None  # the one request that it holds alone
    doubted: dict[str, tuple[Done, Picture | None]] = field(default_factory=dict)  # since its last picture
    failures: int = 0  # in a row
    has_drawn: bool = False
    idle_since: float | None = None

    def __str__(self) -> str:
        what = ", ".join(part for part in (self.device, self.where) if part)
        return f"worker {self.number}" + (f" ({what})" if what else "")


@dataclass(frozen=True)
class Start:
    """A worker is to be started."""

    member: Member


@dataclass(frozen=True)
class Stop:
    """A worker is to be ended."""

    member: Member


@dataclass(frozen=True)
class Advance:
    """A call that takes in requests, forgets others, and works."""

    member: Member
    call: int
    new: Sequence[ImageRequest]
    cancelled: Collection[str]


@dataclass(frozen=True)
class Score:
    """A call that scores pictures that exist."""

    member: Member
    call: int
    stored: Sequence[tuple[ImageRequest, Picture]]


Instruction = Start | Stop | Advance | Score


def wanted_workers(requests: int, batch: int, places: Places) -> int:
    """How many workers so many requests can use.

    Where there is a place already, one for each request; where a machine would have to be started for it, one for
    each batch; and one at least where there is work, which waits for a place if need be.
    """
    if not requests:
        return 0
    return max(1, min(places.now, requests), min(places.most, math.ceil(requests / max(1, batch))))


class Dealer:
    """The state of a pool. Requests of a worker that dies are tried again, each alone on a worker, so that one that
    kills its worker is told from its companions; where a whole machine died, nobody is suspected.

    A result that may be its device's fault (black, NaN, broken) counts once the same worker has drawn a picture after
    it, or another worker agrees, or there is no other. A worker whose calls come to raise whatever they are given is
    ended and another started in its place, since a CUDA error stays with its process; one that never drew keeps its
    device from others instead, unless it is the only one.
    """

    def __init__(self, batch: int, stall_timeout: float, load_timeout: float) -> None:
        """The timeouts are the seconds that a worker may work, or load, without a sign of life."""
        self._batch, self._stall_timeout, self._load_timeout = batch, stall_timeout, load_timeout
        self._queue: deque[ImageRequest] = deque()
        self._suspects: deque[ImageRequest] = deque()  # were held by a worker that died
        self._to_score: deque[tuple[ImageRequest, Picture]] = deque()
        self._deaths: dict[str, int] = {}
        self._deaths_in_a_row = self._never_arrived = 0
        self._second: dict[str, tuple[Member, Done]] = {}  # who failed at a request that another is to try
        self._broken: list[Member] = []  # to be ended, and replaced
        self._replaced_in_vain = False  # since the last picture of any
        self._ready: list[Done] = []
        self._keepers: dict[str, Member] = {}  # who keeps a request that was looked at
        self._numbers = 0
        self._call_numbers = 0
        self._surplus_since: float | None = None
        self._longest_load = 0.0
        self.members: list[Member] = []
        self.notices: list[str] = []

    # What is known

    @property
    def able(self) -> list[Member]:
        """Members that get work now or once they have loaded."""
        return [member for member in self.members if not member.closed]

    @property
    def outstanding(self) -> int:
        """Requests that may still come back."""
        doubted = sum(len(member.doubted) for member in self.members)
        return self._waiting + self._held + doubted + len(self._ready)

    @property
    def works(self) -> bool:
        """Whether any worker has something to do or could be given something."""
        return bool(self._waiting + self._held)

    @property
    def _waiting(self) -> int:
        return len(self._queue) + len(self._suspects) + len(self._to_score)

    @property
    def _held(self) -> int:
        return sum(len(member.held) for member in self.members)

    def free(self, places: Places) -> int:
        """Two batches for each worker that there is or could be, one computing, one waiting, less what is there."""
        able = self.able
        closed = len(self.members) - len(able)
        missing = max(0, max(places.now, places.most) - closed - len(able))
        capacity = sum(member.batch for member in able) + missing * self._batch
        return max(0, CALLS_AHEAD * capacity - self._waiting - self._held)

    def placeless(self, now: float) -> float | None:
        """For how many seconds workers that could work have all been waiting for a place; None where one has it."""
        able = self.able
        if not able or any(member.where for member in able):
            return None
        return now - min(member.heard for member in able)

    def silent(self, now: float) -> list[tuple[Member, float]]:
        """Members that are to work or load and gave no sign of life, for longer than they may; with how long."""
        found = []
        for member in self.members:
            limit = self._stall_timeout if member.loaded else self._load_timeout
            busy = bool(member.calls) if member.loaded else bool(member.where)
            if busy and not member.closed and now - member.heard > limit:
                found.append((member, now - member.heard))
        return found

    # Events

    def submit(self, requests: Sequence[ImageRequest]) -> None:
        """Requests to be generated and scored."""
        self._queue.extend(requests)

    def score(self, stored: Sequence[tuple[ImageRequest, Picture]]) -> None:
        """Pictures that exist, to be scored only."""
        self._to_score.extend(stored)

    def cancel(self, image_ids: Collection[str]) -> None:
        """Forget requests, and what is set aside of them; workers hear of it with their next call."""
        unwanted = set(image_ids)
        self._queue = deque(request for request in self._queue if request.image_id not in unwanted)
        self._suspects = deque(request for request in self._suspects if request.image_id not in unwanted)
        self._second = {i: found for i, found in self._second.items() if i not in unwanted}
        for member in self.members:
            member.to_forget |= unwanted & (member.held.keys() - member.stored.keys())
            for image_id in unwanted & member.doubted.keys():
                del member.doubted[image_id]
        for image_id in unwanted & self._keepers.keys():
            self._keepers.pop(image_id).to_forget.add(image_id)

    def cancel_queued(self) -> None:
        """Forget what no member holds; what one failed at and another was to try is forgotten too."""
        waiting = [*self._queue, *self._suspects, *(request for request, _ in self._to_score)]
        self._queue.clear()
        self._suspects.clear()
        self._to_score.clear()
        for request in waiting:
            self._second.pop(request.image_id, None)

    def again(self, requests: Sequence[ImageRequest]) -> None:
        """Requests whose pictures were lost with a machine: first in line, and not counted against them."""
        self._queue.extendleft(reversed(requests))

    def heard(self, member: Member, now: float) -> None:
        """A sign of life."""
        member.heard = now

    def deaf(self, seconds: float) -> None:
        """Nobody listened for so long: it does not count as anybody's silence."""
        for member in self.members:
            member.heard += seconds

    def arrived(self, member: Member, where: str, now: float) -> None:
        """A worker has found a place on a machine and begins to load."""
        member.where, member.heard = where, now
        self._never_arrived = 0

    def loaded(self, member: Member, batch: int, device: str, now: float) -> None:
        """A worker is ready; it wants `batch` requests at a time."""
        self._longest_load = max(self._longest_load, now - member.heard)
        member.batch, member.device, member.loaded = batch, device, True
        member.heard, member.idle_since = now, now

    def refused(self, member: Member, why: str) -> None:
        """A worker that is not to be used: it keeps its device, so that no other starts there.

        Raises PoolError where no other is left.
        """
        self._close(member, f"{member} is not used: {why}")
        if not self.able:
            raise PoolError(f"no worker is left that can be used: {why}")

    def returned(self, member: Member, call: int, results: Sequence[Done], now: float) -> None:
        """A call came back with results."""
        member.heard = now
        for image_id in member.calls.pop(call):
            member.held.pop(image_id, None)
        if member.closed:
            return
        for done in results:
            if member.closed or member not in self.members:
                break  # what has not been taken is queued again
            self._take(member, done)
        if member.suspect not in member.held:
            member.suspect = None
        if results:
            self._deaths_in_a_row = 0

    def _take(self, member: Member, done: Done) -> None:
        image_id = done.request.image_id
        member.held.pop(image_id, None)
        stored = member.stored.pop(image_id, None)
        if isinstance(done.outcome, Looked):
            self._keepers[image_id] = member
        else:
            self._keepers.pop(image_id, None)
        if not (isinstance(done.outcome, Failed) and may_be_the_device(done.outcome)):
            self._second.pop(image_id, None)
            member.failures = 0
            if isinstance(done.outcome, Scored | Looked):
                member.has_drawn, self._replaced_in_vain = True, False
            self._ready += [each for each, _ in member.doubted.values()]
            member.doubted.clear()
            self._ready.append(done)
            return
        sticks = may_stay_with_the_process(done.outcome)
        replaceable = sticks and self._is_replaceable(member)
        agrees = self._failed_elsewhere(member, image_id)
        is_credible = not (sticks and member.failures)
        if (agrees and is_credible) or not (replaceable or self.has_others(member)):
            self._second.pop(image_id, None)
            self._ready.append(done)
            member.failures += agrees and sticks  # what comes next may fail of it
            return
        member.doubted[image_id] = (done, stored)
        member.failures += 1
        if member.failures < FAILURES_IN_A_ROW:
            return
        if replaceable:
            self._replace(member)
        else:
            what = self._streak(member)
            self._close(member, f"{member} gets no more work: {what}; what it failed at is tried elsewhere")

    def died(self, member: Member, cause: str, machine: bool, now: float) -> None:  # noqa: ARG002
        """A worker is gone: its requests are queued again. With its `machine` gone too, nothing counts against them.

        Raises PoolError where too many die in a row.
        """
        if member in self._broken:  # it was to be ended anyhow
            self._broken.remove(member)
            return
        self.members.remove(member)
        self._keepers = {i: owner for i, owner in self._keepers.items() if owner is not member}
        held = {i: request for i, request in member.held.items() if i not in member.to_forget}
        again = f"; {len(held)} images are tried again" if held else ""
        gone = f"{member.where} is gone with its workers" if machine else None
        if not member.where:  # it was sent to a machine that was gone already, and is sent elsewhere
            self._never_arrived += 1
            if self._never_arrived >= DEATHS_IN_A_ROW * (1 + len(self.members)):
                raise PoolError(
                    f"{self._never_arrived} workers died before they had begun; the last: {cause}"
                )
            return
        if gone is None:
            self.notices.append(f"{member} died ({cause}){again}")
        elif not any(notice.startswith(gone) for notice in self.notices[-len(self.members) - 1 :]):
            self.notices.append(f"{gone}; what they held is tried again")
        if not machine and not member.closed:
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row >= DEATHS_IN_A_ROW:
                raise PoolError(
                    f"{DEATHS_IN_A_ROW} workers died in a row without one image; the last: {cause}"
                )
        for image_id, request in held.items():
            if image_id == member.suspect and not machine:
                self._deaths[image_id] = self._deaths.get(image_id, 0) + 1
            if self._deaths.get(image_id, 0) >= DEATHS_ALONE:
                nothing = Provenance("", 0, 0, None, 0.0, 0.0)
                reason = f"its worker died {DEATHS_ALONE} times while it held nothing else: {cause}"
                self._ready.append(Done(request, Failed("lost", reason), nothing, None))
                self._second.pop(image_id, None)
                del self._deaths[image_id]
                self.notices.append(f"image {image_id} is lost: {reason}")
            elif image_id in member.stored:
                self._to_score.append((request, member.stored[image_id]))
            elif machine:
                self._queue.appendleft(request)
            else:
                self._suspects.append(request)
        self._try_elsewhere(member)

    def _close(self, member: Member, notice: str) -> None:
        """Give a member nothing more; what it holds is for others."""
        member.closed = True
        self._release(member, notice)

    def _streak(self, member: Member) -> str:
        done, _ = list(member.doubted.values())[-1]
        assert isinstance(done.outcome, Failed)
        return f"{member.failures} results in a row failed ({done.outcome.reason})"

    def _replace(self, member: Member) -> None:
        """End a member's process, and let another come in its place."""
        self._replaced_in_vain = True
        self.members.remove(member)
        self._broken.append(member)
        notice = f"{member} is replaced: {self._streak(member)}; what it failed at is tried again"
        self._release(member, notice)

    def _release(self, member: Member, notice: str) -> None:
        """Queue again what a member holds and what it failed at."""
        self.notices.append(notice)
        for image_id, request in member.held.items():
            if image_id in member.to_forget:
                continue
            if image_id in member.stored:
                self._to_score.append((request, member.stored[image_id]))
            else:
                self._queue.appendleft(request)
        member.held.clear()
        member.stored.clear()
        member.to_forget.clear()
        member.suspect = None
        self._keepers = {i: owner for i, owner in self._keepers.items() if owner is not member}
        self._try_elsewhere(member)

    def _try_elsewhere(self, member: Member) -> None:
        """Queue again what a member failed at and has not been told."""
        for image_id, (done, stored) in member.doubted.items():
            self._second[image_id] = (member, done)
            if stored is not None:
                self._to_score.append((done.request, stored))
            else:
                self._queue.append(done.request)
        member.doubted.clear()

    def _failed_elsewhere(self, member: Member, image_id: str) -> bool:
        """Whether a request waits for a second opinion, and not on a failure of this member's."""
        first = self._second.get(image_id)
        return first is not None and first[0] is not member

    def _is_replaceable(self, member: Member) -> bool:
        """Whether a new process may do better than a member that fails."""
        return member.has_drawn or not (self._replaced_in_vain or self.has_others(member))

    def has_others(self, member: Member) -> bool:
        """Whether another worker is there, on some machine; for one that is gone or set aside, one to come is."""
        able = self.able
        return any(other is not member and (other.where or member not in able) for other in able)

    # Instructions

    def take_ready(self) -> list[Done]:
        """Results that count, each once."""
        ready, self._ready = self._ready, []
        return ready

    def instructions(self, now: float, places: Places, room: bool = True) -> list[Instruction]:
        """What is to be done now. Without `room` for results nobody is given anything to do."""
        self._settle_doubts()
        found: list[Instruction] = [*self._starts(now, places), *self._stops(now, places)]
        self._settle_second_tries()
        if room:
            found += self._calls()
        for member in self.members:
            if member.held or member.calls:
                member.idle_since = None
            elif member.idle_since is None:
                member.idle_since = now
        return found

    def _wanted(self, places: Places) -> int:
        closed = len(self.members) - len(self.able)
        left = Places(max(0, places.now - closed), max(0, places.most - closed))
        loaded = [member.batch for member in self.able if member.loaded]
        batch = round(sum(loaded) / len(loaded)) if loaded else self._batch
        return wanted_workers(self._waiting + self._held, batch, left)

    def _starts(self, now: float, places: Places) -> list[Instruction]:
        started: list[Instruction] = []
        while len(self.able) < self._wanted(places):
            self._numbers += 1
            self.members.append(Member(self._numbers, self._batch, heard=now, idle_since=now))
            started.append(Start(self.members[-1]))
        return started

    def _stops(self, now: float, places: Places) -> list[Instruction]:
        """End what is broken; let go of those idle for long, while fewer are enough; one stays for what may come."""
        able, wanted = self.able, max(1, self._wanted(places))
        broken, self._broken = self._broken, []
        return [*(Stop(member) for member in broken), *self._surplus(now, able, wanted)]

    def _surplus(self, now: float, able: Sequence[Member], wanted: int) -> list[Instruction]:
        if len(able) <= wanted:
            self._surplus_since = None
            return []
        if self._surplus_since is None:
            self._surplus_since = now
        patience = max(IDLE_SECONDS, 2 * self._longest_load)
        if now - self._surplus_since < patience:
            return []
        long_idle = [m for m in able if m.idle_since is not None and now - m.idle_since >= patience]
        long_idle.sort(key=lambda member: (member.loaded, bool(member.where)))  # those that never came first
        stopped: list[Instruction] = []
        for member in long_idle[: len(able) - wanted]:
            self._try_elsewhere(member)
            self._keepers = {i: owner for i, owner in self._keepers.items() if owner is not member}
            self.members.remove(member)
            stopped.append(Stop(member))
        if stopped:
            self.notices.append(f"{len(stopped)} idle workers were let go")
        return stopped

    def _settle_doubts(self) -> None:
        """What a member failed at goes to another once it has nothing more to show; what two failed at counts."""
        for member in self.able:
            if not member.doubted or member.held or self._queue:
                continue
            failed = [done.outcome for done, _ in member.doubted.values() if isinstance(done.outcome, Failed)]
            sticks = all(map(may_stay_with_the_process, failed))
            if (
                sticks
                and member.failures > 1
                and not self.has_others(member)
                and self._is_replaceable(member)
            ):
                self._replace(member)
                continue
            for image_id in [each for each in member.doubted if self._failed_elsewhere(member, each)]:
                self._ready.append(member.doubted.pop(image_id)[0])
                del self._second[image_id]
            self._try_elsewhere(member)

    def _settle_second_tries(self) -> None:
        """What waits for another worker's opinion counts where there is no other."""
        for image_id, (member, done) in list(self._second.items()):
            if self.has_others(member) or any(image_id in each.held for each in self.members):
                continue
            del self._second[image_id]
            self._queue = deque(request for request in self._queue if request.image_id != image_id)
            self._to_score = deque(pair for pair in self._to_score if pair[0].image_id != image_id)
            self._suspects = deque(request for request in self._suspects if request.image_id != image_id)
            self._ready.append(done)

    def _calls(self) -> list[Instruction]:
        """The next call of every member with room: the emptiest first, one each before anybody has a second."""
        found: list[Instruction] = []
        reserved = self._reserved()
        for ahead in range(CALLS_AHEAD):
            ready = [m for m in self.able if m.loaded and len(m.calls) == ahead and m is not reserved]
            ready.sort(key=lambda member: len(member.held))
            idle = sum(not member.held for member in ready)
            for member in ready:
                share = math.ceil(len(self._queue) / idle) if idle else member.batch
                idle -= not member.held
                call = self._call(member, share)
                if call is not None:
                    found.append(call)
        return found

    def _reserved(self) -> Member | None:
        """The member that is left to run empty, where suspects wait and nobody is there to take one."""
        loaded = [member for member in self.able if member.loaded]
        if not self._suspects or len(loaded) < len(self.able):
            return None
        if any(member.suspect is not None or not member.held for member in loaded):
            return None
        return min(loaded, key=lambda member: len(member.held))

    def _call(self, member: Member, share: int) -> Advance | Score | None:
        """One more call for a member; None where it needs none."""
        if member.suspect is not None:
            return None if member.calls else self._advance(member, [])
        if self._suspects and not member.held:
            suspect = self._suspects.popleft()
            member.suspect = suspect.image_id
            return self._advance(member, [suspect])
        room = CALLS_AHEAD * member.batch - len(member.held)
        pairs = self._next_stored(member, min(member.batch, room))
        if pairs:
            member.held |= {request.image_id: request for request, _ in pairs}
            member.stored |= {request.image_id: picture for request, picture in pairs}
            return Score(member, self._open(member, set()), pairs)
        new = self._next(member, min(member.batch, room, share))
        to_generate = member.held.keys() - member.stored.keys()
        if not (new or to_generate or member.to_forget):
            return None
        return self._advance(member, new)

    def _next_stored(self, member: Member, count: int) -> list[tuple[ImageRequest, Picture]]:
        pairs = [pair for pair in self._to_score if self._may_try(member, pair[0])][: max(0, count)]
        if pairs:
            taken = {request.image_id for request, _ in pairs}
            self._to_score = deque(pair for pair in self._to_score if pair[0].image_id not in taken)
        return pairs

    def _may_try(self, member: Member, request: ImageRequest) -> bool:
        """Not where it failed already."""
        first = self._second.get(request.image_id)
        return first is None or first[0] is not member

    def _next(self, member: Member, count: int) -> list[ImageRequest]:
        """The next requests for a member: not those that another keeps half done, unless that one is busy.

        What the member is to forget it must have forgotten before it gets it again.
        """
        new: list[ImageRequest] = []
        passed: list[ImageRequest] = []
        while self._queue and len(new) < count:
            request = self._queue.popleft()
            owner = self._keepers.get(request.image_id, member)
            unkept = owner is member or (not member.held and len(owner.held) >= CALLS_AHEAD * owner.batch)
            fits = request.image_id not in member.to_forget and unkept and self._may_try(member, request)
            (new if fits else passed).append(request)
        self._queue.extendleft(reversed(passed))
        return new

    def _advance(self, member: Member, new: Sequence[ImageRequest]) -> Advance:
        for forgotten in member.calls.values():  # what comes in again is held, whatever was to be forgotten
            forgotten -= {request.image_id for request in new}
        member.held |= {request.image_id: request for request in new}
        cancelled, member.to_forget = member.to_forget, set()
        return Advance(member, self._open(member, cancelled), new, frozenset(cancelled))

    def _open(self, member: Member, cancelled: set[str]) -> int:
        self._call_numbers += 1
        member.calls[self._call_numbers] = cancelled
        return self._call_numbers
