"""One contract that every pool keeps."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import ClassVar

import pytest

from orchestrator.pool import Done, InProcessPool, PngPicture, Pool
from orchestrator.ray_pool import RayPool
from search_spaces.requests import Failed, Scored
from tests.orchestrator.studies import fake_worker, requests_of, small_study
from workers.png import decode_png

STUDY = small_study(seeds=8)
REQUESTS = requests_of(STUDY)


def drain(pool: Pool, seconds: float = 60.0) -> list[Done]:
    """Everything that comes back until nothing is outstanding."""
    deadline = time.monotonic() + seconds
    found: list[Done] = []
    while pool.outstanding and time.monotonic() < deadline:
        found += pool.next_done(0.5)
    assert not pool.outstanding, "the pool did not finish"
    return found


class PoolContract:
    failures: ClassVar[dict[str, Failed]] = {
        REQUESTS[3].image_id: Failed("infeasible", "the picture is all black")
    }

    def make(self) -> Pool:
        raise NotImplementedError

    @pytest.fixture
    def pool(self) -> Iterator[Pool]:
        pool = self.make()
        yield pool
        pool.close()

    def test_everything_comes_back_exactly_once(self, pool: Pool) -> None:
        assert pool.free > 0
        pool.submit(REQUESTS)
        assert pool.outstanding == len(REQUESTS)
        found = drain(pool)
        assert Counter(d.request.image_id for d in found) == Counter(r.image_id for r in REQUESTS)

    def test_pictures_belong_to_their_requests_and_failures_are_values(self, pool: Pool) -> None:
        pool.submit(REQUESTS)
        for done in drain(pool):
            if done.request.image_id in self.failures:
                assert done.outcome == self.failures[done.request.image_id]
                assert done.picture is None
                continue
            assert done.picture is not None
            picture = decode_png(done.picture.png())
            assert picture.getpixel((0, 0)) == tuple(bytes.fromhex(done.request.image_id[:6]))
            assert picture.text["latentsweep"]  # type: ignore[attr-defined]
            assert isinstance(done.outcome, Scored)

    def test_work_fills_the_room_and_gives_it_back(self, pool: Pool) -> None:
        room = pool.free
        pool.submit(REQUESTS[:room])
        assert pool.free == 0
        drain(pool)
        assert pool.free == room

    def test_stored_pictures_are_scored_and_not_made_again(self, pool: Pool) -> None:
        pool.submit(REQUESTS[:3])
        made = drain(pool)
        pool.score([(d.request, PngPicture(d.picture.png())) for d in made if d.picture])
        scored = drain(pool)
        assert {d.request.image_id: d.outcome for d in scored} == {
            d.request.image_id: d.outcome for d in made
        }
        assert all(d.picture is None for d in scored)

    def test_cancelled_requests_leave_and_the_others_stay(self, pool: Pool) -> None:
        pool.submit(REQUESTS)
        cancelled = {request.image_id for request in REQUESTS[::2]}
        pool.cancel(cancelled)
        counts = Counter(done.request.image_id for done in drain(pool))
        assert set(counts) >= {request.image_id for request in REQUESTS[1::2]}
        assert max(counts.values()) == 1
        assert len(set(counts) & cancelled) < len(cancelled)

    def test_what_was_cancelled_may_be_submitted_again(self, pool: Pool) -> None:
        everything = {request.image_id for request in REQUESTS}
        pool.submit(REQUESTS)
        pool.next_done(10.0)
        for _ in range(2):
            pool.cancel(everything)
            pool.submit(REQUESTS)
        assert {done.request.image_id for done in drain(pool)} == everything

    def test_what_is_queued_leaves_and_what_is_worked_on_comes_back(self, pool: Pool) -> None:
        pool.submit(REQUESTS)
        found: list[Done] = []
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            found += pool.next_done(1.0)
        pool.cancel_queued()
        held = pool.outstanding
        assert held < len(REQUESTS) - len(found), "none of those that nobody held was forgotten"
        rest = drain(pool)
        assert len(rest) == held
        counts = Counter(done.request.image_id for done in [*found, *rest])
        assert max(counts.values()) == 1

    def test_after_what_was_queued_has_left_it_may_be_submitted_again(self, pool: Pool) -> None:
        pool.submit(REQUESTS)
        pool.cancel_queued()
        there = {done.request.image_id for done in drain(pool)}
        pool.submit([request for request in REQUESTS if request.image_id not in there])
        again = {done.request.image_id for done in drain(pool)}
        assert there | again == {request.image_id for request in REQUESTS}
        assert not there & again

    def test_nothing_to_do_returns_nothing(self, pool: Pool) -> None:
        assert pool.next_done(0.0) == []
        assert pool.outstanding == 0

    def test_close_forgets_what_is_outstanding(self, pool: Pool) -> None:
        pool.submit(REQUESTS)
        pool.close()
        assert pool.outstanding == 0


class TestInProcessPool(PoolContract):
    def make(self) -> Pool:
        return InProcessPool(fake_worker(2, self.failures), batch=4)


@pytest.mark.usefixtures("local_ray")
class TestRayPool(PoolContract):
    def make(self) -> Pool:
        make_worker = partial(fake_worker, 2, self.failures)
        return RayPool(nullcontext, make_worker, workers=2, batch=4, num_cpus=0.1)
