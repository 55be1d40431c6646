"""What a pool decides, without Ray and without a clock."""

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.dealing import (
    CALLS_AHEAD,
    DEATHS_ALONE,
    DEATHS_IN_A_ROW,
    FAILURES_IN_A_ROW,
    IDLE_SECONDS,
    Advance,
    Dealer,
    Member,
    Places,
    PoolError,
    Score,
    Start,
    Stop,
    wanted_workers,
)
from orchestrator.pool import Done, PngPicture
from search_spaces.requests import Failed, ImageRequest, Looked, Outcome, Scored
from tests.orchestrator.studies import requests_of, small_study
from workers.pipelines import ALL_BLACK, HOLDS_NAN
from workers.worker import Provenance

REQUESTS = requests_of(small_study(seeds=20))
GOOD = Scored({"clip_score": 1.0})
BLACK = Failed("infeasible", ALL_BLACK)
RAISES = Failed("lost", "CUDA error: an illegal memory access was encountered")
MADE = Provenance("a device", 8, 8, 4, 0.1, 0.1)


def good(member: Member, request: ImageRequest) -> Outcome:
    return GOOD


@dataclass
class World:
    """Carries out what a dealer says, at once and in memory; a member's calls end in their order, once they may."""

    places: Places
    batch: int = 4
    draw: Callable[[Member, ImageRequest], Outcome] = good
    now: float = 0.0
    room: bool = True
    arrives: bool = True
    calls: dict[Member, deque[tuple[int, Sequence[ImageRequest]]]] = field(default_factory=dict)
    held: dict[Member, list[ImageRequest]] = field(default_factory=dict)
    forgotten: dict[int, Collection[str]] = field(default_factory=dict)  # by call
    stopped: list[Member] = field(default_factory=list)
    told: list[Done] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dealer = Dealer(self.batch, stall_timeout=100.0, load_timeout=1000.0)

    def go(self) -> None:
        """Until nothing more is to be done before a call ends."""
        while instructions := self.dealer.instructions(self.now, self.places, self.room):
            for each in instructions:
                member = each.member
                if isinstance(each, Start):
                    self.calls[member], self.held[member] = deque(), []
                    if self.arrives:
                        self.dealer.arrived(member, f"machine {member.number % 2}", self.now)
                        self.dealer.loaded(member, self.batch, "a device", self.now)
                elif isinstance(each, Stop):
                    self.stopped.append(member)
                    del self.calls[member]
                elif isinstance(each, Advance):
                    self.forgotten[each.call] = each.cancelled
                    self.calls[member].append((each.call, each.new))
                elif isinstance(each, Score):
                    self.calls[member].append((each.call, [request for request, _ in each.stored]))
        self.told += self.dealer.take_ready()

    def end_call(self, member: Member) -> None:
        """A member's oldest call ends, with a batch of what it holds."""
        number, new = self.calls[member].popleft()
        forgotten = self.forgotten.pop(number, ())
        self.held[member] = [each for each in self.held[member] if each.image_id not in forgotten]
        self.held[member] += [each for each in new if each.image_id not in forgotten]
        batch, self.held[member] = self.held[member][: self.batch], self.held[member][self.batch :]
        made = [(request, self.draw(member, request)) for request in batch]
        results = [Done(r, o, MADE, PngPicture(b"png") if o is GOOD else None) for r, o in made]
        self.dealer.returned(member, number, results, self.now)
        self.go()

    def die(self, member: Member, machine: bool = False) -> None:
        del self.calls[member]
        self.dealer.died(member, "it was killed", machine, self.now)
        self.go()

    @property
    def busy(self) -> list[Member]:
        return [member for member in self.dealer.members if self.calls.get(member)]

    def finish(self) -> None:
        self.go()
        for _ in range(10_000):
            if not (self.dealer.outstanding or self.busy):
                return
            self.end_call(self.busy[0])
        raise AssertionError("it does not come to an end")

    def kinds(self) -> Counter[str]:
        """How many results are of each outcome's kind."""
        found = self.outcomes().values()
        return Counter(outcome.kind if isinstance(outcome, Failed) else "scored" for outcome in found)

    def outcomes(self) -> dict[str, Outcome]:
        assert max(Counter(done.request.image_id for done in self.told).values()) == 1
        return {done.request.image_id: done.outcome for done in self.told}


@pytest.mark.parametrize(
    ("requests", "places", "wanted"),
    [
        (0, Places(4, 4), 0),
        (1, Places(4, 4), 1),
        (3, Places(4, 4), 3),
        (100, Places(4, 4), 4),
        (8, Places(0, 16), 1),  # a machine is started for a batch, not for a request
        (33, Places(0, 16), 5),
        (1000, Places(2, 16), 16),
        (5, Places(0, 0), 1),  # which waits for a place
    ],
)
def test_no_more_workers_are_wanted_than_the_queue_can_use(
    requests: int, places: Places, wanted: int
) -> None:
    assert wanted_workers(requests, 8, places) == wanted


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 6), st.integers(0, 4), st.integers(0, 30))
def test_whatever_dies_and_fails_everything_is_told_once(
    seed: int, workers: int, deaths: int, black: int, raising: int
) -> None:
    chance = random.Random(seed)
    wrong = chance.sample([request.image_id for request in REQUESTS], black + raising)
    infeasible, raised = set(wrong[:black]), set(wrong[black:])

    def draw(_: Member, request: ImageRequest) -> Outcome:
        if request.image_id in raised:
            return RAISES
        return BLACK if request.image_id in infeasible else GOOD

    world = World(Places(workers, workers), draw=draw)
    waiting = deque(REQUESTS)
    while waiting or world.dealer.outstanding:
        new = [waiting.popleft() for _ in range(min(len(waiting), world.dealer.free(world.places)))]
        world.dealer.submit(new)
        world.go()
        member = chance.choice(world.busy) if world.busy else None
        if member is not None and deaths and chance.random() < 0.1:
            deaths -= 1
            world.die(member, machine=chance.random() < 0.5)
        elif member is not None:
            world.end_call(member)
        assert world.dealer.outstanding >= len(REQUESTS) - len(waiting) - len(world.told)
        for each in world.dealer.members:
            assert len(each.calls) <= CALLS_AHEAD
            assert len(each.held) <= CALLS_AHEAD * world.batch
    found = world.outcomes()
    lost = {image_id for image_id, outcome in found.items() if outcome not in (GOOD, BLACK)}
    assert found.keys() == {request.image_id for request in REQUESTS}
    assert {image_id for image_id, outcome in found.items() if outcome == RAISES} <= raised <= lost
    assert {image_id for image_id, outcome in found.items() if outcome == BLACK} <= infeasible
    assert infeasible - lost == {image_id for image_id, outcome in found.items() if outcome == BLACK}


def poisoned(world: World, poison: ImageRequest, machine: bool, deaths: int) -> None:
    """Kill whoever holds the poison, so often."""
    while deaths and world.dealer.outstanding:
        world.go()
        holders = [member for member in world.busy if poison.image_id in member.held]
        if holders:
            deaths -= 1
            world.die(holders[0], machine)
        else:
            world.end_call(world.busy[0])


def test_a_poison_is_lost_after_two_deaths_alone_and_its_companions_are_finished() -> None:
    world, poison = World(Places(2, 2)), REQUESTS[5]
    world.dealer.submit(REQUESTS[:16])
    poisoned(world, poison, machine=False, deaths=1 + DEATHS_ALONE)
    world.finish()
    found = world.outcomes()
    outcome = found.pop(poison.image_id)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "lost"
    assert all(other == GOOD for other in found.values())
    assert any(poison.image_id in notice for notice in world.dealer.notices), "by name"


def test_the_deaths_of_machines_never_count_against_a_request() -> None:
    world, unlucky = World(Places(2, 2)), REQUESTS[5]
    world.dealer.submit(REQUESTS[:16])
    poisoned(world, unlucky, machine=True, deaths=2 * DEATHS_IN_A_ROW)
    world.finish()
    assert world.kinds().keys() == {"scored"}


def test_the_deaths_of_machines_do_not_count_against_a_suspect_that_is_alone_either() -> None:
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS[:1])
    world.go()
    for _ in range(2 * DEATHS_ALONE):
        world.die(world.busy[0])
        assert world.busy[0].suspect == REQUESTS[0].image_id
        world.die(world.busy[0], machine=True)
    world.finish()
    assert world.kinds() == {"scored": 1}


def test_what_a_machine_took_along_is_first_in_line_and_nobody_is_suspected() -> None:
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS[:20])
    world.go()
    taken = [request for _, new in world.calls[world.busy[0]] for request in new]
    world.die(world.busy[0], machine=True)
    again = [request for _, new in world.calls[world.busy[0]] for request in new]
    assert {request.image_id for request in again} == {request.image_id for request in taken}
    assert len(again) == CALLS_AHEAD * world.batch, "as many at a time as ever"


def test_pictures_that_were_lost_are_first_in_line() -> None:
    world = World(Places(1, 1), batch=2)
    world.dealer.submit(REQUESTS[:10])
    world.dealer.again(REQUESTS[10:12])
    world.go()
    assert [request for _, new in world.calls[world.busy[0]] for request in new][:2] == REQUESTS[10:12]


def test_deaths_with_an_image_in_between_end_no_pool() -> None:
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS)
    world.go()
    for _ in range(3):
        for _ in range(DEATHS_IN_A_ROW - 1):
            world.die(world.busy[0])
        world.end_call(world.busy[0])


def test_workers_that_are_set_aside_may_die_and_be_silent_for_ever() -> None:
    world = World(Places(2, 2), draw=bad_device(1, BLACK))
    world.dealer.submit(REQUESTS[:40])
    world.go()
    bad = world.dealer.members[0]
    while not bad.closed:
        world.end_call(bad)
    assert bad.calls
    assert bad not in [member for member, _ in world.dealer.silent(1e6)]
    for _ in range(DEATHS_IN_A_ROW - 1):
        world.die(next(member for member in world.busy if member is not bad))
    world.die(bad)
    world.finish()
    assert world.kinds() == {"scored": 40}


def test_many_deaths_without_an_image_end_the_pool() -> None:
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS[:40])
    world.go()
    for _ in range(DEATHS_IN_A_ROW - 1):
        world.die(world.dealer.members[0])
    with pytest.raises(PoolError, match="10 workers died in a row without one image; the last: it was"):
        world.die(world.dealer.members[0])


def test_suspects_get_their_turn_though_the_queue_never_ends() -> None:
    world, places = World(Places(2, 2)), Places(1, 1)
    world.dealer.submit(REQUESTS[:16])
    world.go()
    first = world.dealer.members[0]
    suspects = set(first.held)
    world.places = places  # nobody comes in its place
    world.die(first)
    for request in REQUESTS[16:]:
        world.dealer.submit([request])
        world.end_call(world.busy[0])
    assert suspects & world.outcomes().keys(), "the one that is left runs empty for them"


def bad_device(number: int, outcome: Failed) -> Callable[[Member, ImageRequest], Outcome]:
    return lambda member, _: outcome if member.number == number else GOOD


@pytest.mark.parametrize(
    "failure", [BLACK, Failed("infeasible", HOLDS_NAN), Failed("lost", "CUDA error: uncorrectable ECC error")]
)
def test_a_device_that_fails_at_everything_is_set_aside_and_none_of_it_counts(failure: Failed) -> None:
    world = World(Places(2, 2), draw=bad_device(1, failure))
    world.dealer.submit(REQUESTS)
    world.finish()
    assert world.kinds().keys() == {"scored"}
    (notice,) = world.dealer.notices
    assert notice.startswith("worker 1 (a device, machine 1) gets no more work: 8 results in a row failed")
    assert failure.reason in notice
    assert [member.number for member in world.dealer.members if member.closed] == [1]
    assert len(world.dealer.members) == 2, "it keeps its device, so that no other starts there"


@pytest.mark.parametrize("batch", [3, 5, 7])
def test_a_device_that_is_set_aside_in_the_middle_of_a_call_has_nothing_told_twice(batch: int) -> None:
    world = World(Places(2, 2), batch, draw=bad_device(1, BLACK))
    world.dealer.submit(REQUESTS)
    world.finish()
    assert len(world.outcomes()) == len(REQUESTS), "each once"
    assert len(world.dealer.notices) == 1


def test_a_process_that_comes_to_fail_at_everything_is_replaced_and_loses_only_what_broke_it() -> None:
    """A CUDA error stays with the process that met it: here a request brings it about, alone and every time."""
    guilty, broken = REQUESTS[10], set[Member]()

    def draw(member: Member, request: ImageRequest) -> Outcome:
        if request is guilty:
            broken.add(member)
        return RAISES if member in broken else GOOD

    for workers in (1, 2):
        world = World(Places(workers, workers), draw=draw)
        world.dealer.submit(REQUESTS)
        world.finish()
        lost = {image_id for image_id, outcome in world.outcomes().items() if outcome != GOOD}
        assert lost == {guilty.image_id}
        assert len(world.outcomes()) == len(REQUESTS)
        assert "is replaced: 8 results in a row failed (CUDA error" in world.dealer.notices[0]
        assert world.stopped, "its process is ended"
        assert set(world.stopped) <= broken
        assert not any(member.closed for member in world.dealer.members)
        assert len(world.dealer.members) == workers


def test_the_only_process_that_fails_at_the_last_few_is_replaced_too() -> None:
    world = World(
        Places(1, 1),
        draw=lambda member, request: RAISES if member.number == 1 and request in REQUESTS[15:20] else GOOD,
    )
    world.dealer.submit(REQUESTS[:20])
    world.finish()
    assert world.kinds() == {"scored": 20}


def test_a_device_that_broke_for_good_is_set_aside_once_a_new_process_has_failed_too() -> None:
    drawn: Counter[int] = Counter()

    def draw(member: Member, request: ImageRequest) -> Outcome:
        drawn[member.number] += 1
        return RAISES if member.number > 2 or (member.number == 1 and drawn[1] > 6) else GOOD

    world = World(Places(2, 2), draw=draw)
    world.dealer.submit(REQUESTS)
    world.finish()
    assert world.kinds().keys() == {"scored"}
    assert [notice.partition(":")[0] for notice in world.dealer.notices] == [
        "worker 1 (a device, machine 1) is replaced",
        "worker 3 (a device, machine 1) gets no more work",
    ]


def test_a_process_that_dies_while_it_is_being_replaced_is_gone_once() -> None:
    world = World(Places(1, 1), draw=bad_device(1, RAISES))
    world.dealer.submit(REQUESTS[:20])
    world.go()
    (first,) = world.dealer.members
    for _ in range(2):
        number, new = world.calls[first].popleft()
        results = [Done(request, RAISES, MADE, None) for request in new]
        world.dealer.returned(first, number, results, 0.0)
    assert first not in world.dealer.members
    world.die(first)
    world.finish()
    assert world.kinds() == {"scored": 20}
    assert world.stopped == []


def test_a_model_that_raises_for_everything_is_loaded_twice_and_no_more() -> None:
    world = World(Places(1, 1), draw=lambda *_: RAISES)
    world.dealer.submit(REQUESTS)
    world.finish()
    assert world.kinds() == {"lost": len(REQUESTS)}
    assert [member.number for member in world.dealer.members] == [2]
    assert len(world.dealer.notices) == 1


def test_what_two_workers_raise_for_at_the_end_is_not_tried_for_ever() -> None:
    tries: Counter[str] = Counter()

    def draw(member: Member, request: ImageRequest) -> Outcome:
        tries[request.image_id] += 1
        return RAISES if request in REQUESTS[17:20] else GOOD

    world = World(Places(2, 2), draw=draw)
    world.dealer.submit(REQUESTS[:20])
    world.finish()
    assert world.kinds() == {"scored": 17, "lost": 3}
    assert max(tries.values()) <= 3


def test_a_gpu_that_runs_out_of_memory_is_not_replaced_for_it() -> None:
    world = World(Places(1, 1), draw=lambda *_: Failed("lost", "out of memory: CUDA out of memory"))
    world.dealer.submit(REQUESTS[:20])
    world.finish()
    assert world.kinds() == {"lost": 20}
    assert not world.stopped
    assert not world.dealer.notices


def test_what_is_cancelled_and_wanted_again_comes_back() -> None:
    """Before its worker has heard that it was to be forgotten."""
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS[:8])
    world.go()
    world.dealer.cancel([request.image_id for request in REQUESTS[:8]])
    world.dealer.submit(REQUESTS[:8])
    world.finish()
    assert {done.request.image_id for done in world.told} == {request.image_id for request in REQUESTS[:8]}


def test_what_nobody_holds_is_forgotten_and_what_is_held_comes_back() -> None:
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS[:40])
    world.go()
    held = {image_id for member in world.dealer.members for image_id in member.held}
    assert 0 < len(held) < 40
    world.dealer.cancel_queued()
    world.finish()
    assert {done.request.image_id for done in world.told} == held


def test_what_another_worker_was_to_try_is_forgotten_with_what_is_queued() -> None:
    """Its first failure must not count once that other one is gone."""
    world = World(Places(2, 2), draw=lambda member, _: RAISES if member.number == 1 else GOOD)
    world.dealer.submit(REQUESTS[:8])
    world.go()
    first, second = world.dealer.members
    world.room = False
    world.end_call(first)
    world.dealer.cancel_queued()
    world.die(second)
    world.places, world.room = Places(1, 1), True
    world.dealer.cancel_queued()
    world.finish()
    assert world.told == []


def test_what_a_worker_is_to_forget_it_gets_again_only_afterwards() -> None:
    """It would forget what came with the order to forget it."""
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS[:4])
    world.go()
    world.dealer.cancel([request.image_id for request in REQUESTS[:4]])
    world.dealer.submit(REQUESTS[:4])
    world.finish()
    assert {done.request.image_id for done in world.told} == {request.image_id for request in REQUESTS[:4]}


def test_what_was_looked_at_by_a_worker_that_died_goes_on_elsewhere() -> None:
    look = Looked({"clip_score": 1.0}, 2)
    world = World(Places(2, 2), draw=lambda *_: look)
    world.dealer.submit(REQUESTS[:2])
    world.finish()
    world.dealer.submit(REQUESTS[2:4])
    world.go()
    world.die(world.busy[0])
    world.draw = good
    world.dealer.submit(REQUESTS[:2])
    world.finish()
    told = {done.request.image_id for done in world.told if done.outcome == GOOD}
    assert told >= {request.image_id for request in REQUESTS[:2]}


def test_what_a_dead_worker_failed_at_waits_for_the_one_that_comes_in_its_place() -> None:
    world = World(Places(1, 1), draw=bad_device(1, RAISES))
    world.dealer.submit(REQUESTS[:12])
    world.go()
    world.end_call(world.busy[0])
    world.die(world.busy[0])
    world.finish()
    assert world.kinds() == {"scored": 12}


def test_few_failures_at_the_end_have_a_second_opinion() -> None:
    world = World(Places(2, 2), draw=bad_device(1, BLACK))
    world.dealer.submit(REQUESTS[: FAILURES_IN_A_ROW // 2])
    world.finish()
    assert world.kinds().keys() == {"scored"}


def test_settings_that_are_black_everywhere_are_infeasible_after_two_opinions() -> None:
    tries: Counter[str] = Counter()

    def black(member: Member, request: ImageRequest) -> Outcome:
        tries[request.image_id] += 1
        return BLACK

    world = World(Places(2, 2), draw=black)
    world.dealer.submit(REQUESTS[:6])
    world.finish()
    assert world.kinds().keys() == {"infeasible"}
    assert set(tries.values()) == {2}


def test_a_failure_counts_at_once_where_its_worker_drew_another_since_or_is_the_only_one() -> None:
    tries: Counter[str] = Counter()

    def some_black(member: Member, request: ImageRequest) -> Outcome:
        tries[request.image_id] += 1
        return BLACK if request in REQUESTS[:4:2] else GOOD

    for workers in (1, 2):
        tries.clear()
        world = World(Places(workers, workers), draw=some_black)
        world.dealer.submit(REQUESTS[:8])
        world.finish()
        assert world.kinds() == {"scored": 6, "infeasible": 2}
        assert set(tries.values()) == {1}
    world = World(Places(1, 1), draw=lambda *_: BLACK)
    world.dealer.submit(REQUESTS[:20])
    world.finish()
    assert world.kinds().keys() == {"infeasible"}


def test_a_stored_picture_that_cannot_be_scored_here_is_scored_elsewhere() -> None:
    world = World(Places(2, 2), draw=bad_device(1, Failed("infeasible", "clip_score is not a finite number")))
    world.dealer.score([(request, PngPicture(b"png")) for request in REQUESTS[:40]])
    world.finish()
    assert world.kinds().keys() == {"scored"}


def test_what_is_cancelled_while_it_is_doubted_is_forgotten() -> None:
    world = World(Places(2, 2), draw=lambda *_: BLACK)
    world.dealer.submit(REQUESTS[:16])
    world.go()
    world.end_call(world.busy[0])
    assert any(member.doubted for member in world.dealer.members)
    world.dealer.cancel([request.image_id for request in REQUESTS[:16]])
    assert not any(member.doubted for member in world.dealer.members)
    while world.busy:
        world.end_call(world.busy[0])
    assert world.dealer.outstanding == 0


def test_an_idle_worker_stays_between_rungs_and_is_let_go_at_the_end() -> None:
    world = World(Places(4, 4))
    world.dealer.submit(REQUESTS[:40])
    world.finish()
    world.now = IDLE_SECONDS - 1
    world.go()
    assert len(world.dealer.able) == 4
    world.dealer.submit(REQUESTS[40:50])
    world.finish()
    world.now = 2 * IDLE_SECONDS - 2
    world.go()
    assert len(world.dealer.able) == 4, "it counts from the last work on"
    world.now = 2 * IDLE_SECONDS
    world.go()
    assert len(world.dealer.able) == 1
    assert len(world.stopped) == 3


def test_a_long_load_makes_workers_worth_keeping_for_longer() -> None:
    world = World(Places(2, 2), arrives=False)
    world.dealer.submit(REQUESTS[:8])
    world.go()
    for member in world.dealer.members:
        world.dealer.arrived(member, "a machine", 0.0)
        world.dealer.loaded(member, 4, "a device", 200.0)
    world.now = 200.0
    world.finish()
    for now, left in ((250.0, 2), (599.0, 2), (601.0, 1)):
        world.now = now
        world.go()
        assert len(world.dealer.able) == left


def test_those_that_wait_for_a_place_are_withdrawn_first() -> None:
    world = World(Places(0, 4), arrives=False)
    world.dealer.submit(REQUESTS[:16])
    world.go()
    there = world.dealer.members[0]
    assert len(world.dealer.members) == 4
    world.dealer.arrived(there, "a machine", 0.0)
    world.dealer.loaded(there, 16, "a device", 1.0)
    world.finish()
    world.go()
    world.now = 10 * IDLE_SECONDS
    world.go()
    assert world.dealer.members == [there]


def test_a_place_that_comes_later_is_used_and_one_that_goes_is_not_asked_for() -> None:
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS)
    world.go()
    assert len(world.dealer.members) == 1
    world.places = Places(3, 3)
    world.go()
    assert len(world.dealer.members) == 3
    world.places = Places(2, 2)
    world.die(world.dealer.members[0], machine=True)
    assert len(world.dealer.members) == 2


def test_who_has_no_place_yet_is_given_nothing_and_is_nobodys_second_opinion() -> None:
    world = World(Places(2, 2), arrives=False, draw=lambda *_: BLACK)
    world.dealer.submit(REQUESTS[:8])
    world.go()
    there, pending = world.dealer.members
    world.dealer.arrived(there, "a machine", 0.0)
    world.dealer.loaded(there, 4, "a device", 0.0)
    world.finish()
    assert world.kinds().keys() == {"infeasible"}
    assert not pending.held


def test_a_time_in_which_nobody_listened_is_nobodys_silence() -> None:
    world = World(Places(1, 1))
    world.dealer.submit(REQUESTS[:4])
    world.go()
    assert world.dealer.silent(150.0)
    world.dealer.deaf(60.0)
    assert world.dealer.silent(150.0) == []
    assert world.dealer.silent(161.0)


def test_silence_is_noticed_at_work_and_while_loading_but_not_without_work_or_place() -> None:
    world = World(Places(3, 3), arrives=False)
    world.dealer.submit(REQUESTS[:4])
    world.go()
    working, loading, _ = world.dealer.members
    world.dealer.arrived(working, "here", 0.0)
    world.dealer.loaded(working, 4, "a device", 0.0)
    world.dealer.arrived(loading, "there", 0.0)
    world.go()
    assert world.dealer.silent(99.0) == []
    assert world.dealer.silent(101.0) == [(working, 101.0)]
    world.dealer.heard(working, 101.0)
    assert world.dealer.silent(102.0) == []
    assert [member for member, _ in world.dealer.silent(1001.0)] == [working, loading]
    while world.busy:
        world.end_call(working)
    assert working not in [member for member, _ in world.dealer.silent(1e6)], "it has nothing to do"


def test_nobody_is_given_work_while_pictures_wait_for_the_disk() -> None:
    world = World(Places(2, 2), room=False)
    world.dealer.submit(REQUESTS[:8])
    world.go()
    assert len(world.dealer.members) == 2
    assert world.busy == []
    world.room = True
    world.finish()
    assert world.kinds().keys() == {"scored"}


def test_the_last_requests_are_shared_among_the_idle() -> None:
    world = World(Places(4, 4))
    world.dealer.submit(REQUESTS[:6])
    world.go()
    assert sorted(len(member.held) for member in world.dealer.members) == [1, 1, 2, 2]


def test_one_line_for_a_machine_with_many_workers() -> None:
    world = World(Places(4, 4))
    world.dealer.submit(REQUESTS[:40])
    world.go()
    for member in world.dealer.members[:4:2]:
        world.die(member, machine=True)
    assert len(world.dealer.notices) == 1
    assert "is gone with its workers" in world.dealer.notices[0]


def test_who_dies_before_it_arrives_is_sent_again_without_a_word_but_not_for_ever() -> None:
    world = World(Places(1, 1), arrives=False)
    world.dealer.submit(REQUESTS[:4])
    world.go()
    for _ in range(DEATHS_IN_A_ROW - 1):
        world.die(world.dealer.members[0])
    assert world.dealer.notices == []
    world.dealer.arrived(world.dealer.members[0], "a machine", 0.0)
    world.die(world.dealer.members[0])
    for _ in range(DEATHS_IN_A_ROW - 1):  # counted from there on
        world.die(world.dealer.members[0])
    with pytest.raises(PoolError, match="10 workers died before they had begun; the last: it was killed"):
        world.die(world.dealer.members[0])


def test_who_is_refused_keeps_its_place_and_the_last_one_ends_the_pool() -> None:
    world = World(Places(2, 2))
    world.dealer.submit(REQUESTS[:16])
    world.go()
    first, second = world.dealer.members
    world.dealer.refused(first, "it has another torch")
    world.go()
    assert world.dealer.members == [first, second]
    assert first.held == {}
    with pytest.raises(PoolError, match="no worker is left that can be used: it has another ray"):
        world.dealer.refused(second, "it has another ray")
