"""The slot engine's bookkeeping: every request is admitted once, and no row is idle while one that fits waits."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.search_spaces.examples import law
from workers.pipelines.rows import Rows


def filled(capacity: int, *needs: tuple[str, int, int]) -> Rows[str]:
    """Rows with (key, rows, calls) waiting."""
    rows: Rows[str] = Rows(capacity)
    for key, wide, calls in needs:
        rows.add(key, wide, calls)
    return rows


@dataclass
class Engine:
    """Works as the engine does: admits, ticks, and removes whatever has had its calls. Checks every promise."""

    rows: Rows[int]
    needs: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    admitted: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    ticks: int = 0

    def add(self, rows: int, calls: int) -> int:
        key = len(self.needs)
        self.needs[key], self.left[key] = rows, calls
        self.rows.add(key, rows, calls)
        return key

    def remove(self, key: int) -> None:
        self.rows.remove(key)
        self.gone.add(key)

    def admit(self) -> None:
        before = self.rows.live
        new = self.rows.admit()
        self.admitted += new
        assert list(self.rows.live) == [*before, *new]
        assert not self.gone & set(new)
        free = self.rows.capacity - self.rows.used
        assert all(self.needs[key] > free for key in self.rows.waiting)
        if new:  # where nothing came in, the capacity may have been lowered since
            assert free >= 0 or len(self.rows.live) == 1

    def tick(self) -> None:
        self.admit()
        self.rows.tick()
        self.ticks += 1
        for key in self.rows.live:
            self.left[key] -= 1
            if not self.left[key]:
                self.remove(key)

    def drain(self) -> None:
        bound = self.ticks + sum(self.left[key] for key in (*self.rows.live, *self.rows.waiting))
        while self.rows.live or self.rows.waiting:
            assert self.ticks < bound, "a tick went by without any row used"
            self.tick()


class AnyMix(RuleBasedStateMachine):
    """Requests of one and two rows come, end, are cancelled, set aside and resumed; memory runs short."""

    @initialize(capacity=st.integers(1, 9))
    def open(self, capacity: int) -> None:
        self.engine = Engine(Rows(capacity))
        self.cancelled: set[int] = set()

    @rule(rows=st.integers(1, 2), calls=st.integers(1, 9))
    def comes(self, rows: int, calls: int) -> None:
        self.engine.add(rows, calls)

    @rule()
    def ticks(self) -> None:
        self.engine.tick()

    @rule()
    def is_admitted(self) -> None:
        self.engine.admit()

    @precondition(lambda self: self.engine.needs)
    @rule(data=st.data())
    def is_cancelled(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, len(self.engine.needs) - 1))
        if key not in self.engine.admitted and key not in self.engine.gone:
            self.cancelled.add(key)
        self.engine.remove(key)

    @precondition(lambda self: self.engine.rows.live)
    @rule(data=st.data())
    def looks_and_is_resumed(self, data: st.DataObject) -> None:
        """A request set aside leaves its rows and comes back as long as what it has left."""
        old = data.draw(st.sampled_from(self.engine.rows.live))
        self.engine.remove(old)
        self.engine.add(self.engine.needs[old], self.engine.left[old])

    @precondition(lambda self: self.engine.rows.capacity > 1)
    @rule()
    def runs_out_of_memory(self) -> None:
        self.engine.rows.capacity //= 2

    @invariant()
    def keys_are_live_or_waiting_or_gone(self) -> None:
        if not hasattr(self, "engine"):
            return
        live, waiting = self.engine.rows.live, self.engine.rows.waiting
        here = [*live, *waiting]
        assert sorted(here) == sorted(set(self.engine.needs) - self.engine.gone)
        assert list(waiting) == sorted(waiting)
        assert self.engine.rows.used == sum(self.engine.needs[key] for key in live)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.drain()
        assert sorted(self.engine.admitted) == sorted(set(self.engine.needs) - self.cancelled)


class TestAnyMix(AnyMix.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(law, stateful_step_count=40)


class TestCapacity:
    @pytest.mark.parametrize("capacity", [0, -1])
    def test_there_is_no_engine_without_rows(self, capacity: int) -> None:
        with pytest.raises(ValueError, match=f"{capacity} rows"):
            Rows[str](capacity)

    @law
    @given(capacity=st.integers(1, 9), needs=st.lists(st.integers(1, 2), max_size=20))
    def test_is_never_exceeded_but_by_one_key_that_is_too_large(
        self, capacity: int, needs: list[int]
    ) -> None:
        rows = Rows[int](capacity)
        for key, wide in enumerate(needs):
            rows.add(key, wide, calls=1)
        while rows.waiting:
            rows.admit()
            assert rows.used <= capacity or (len(rows.live) == 1 and needs[rows.live[0]] > capacity)
            for key in rows.live:
                rows.remove(key)

    def test_a_key_too_large_waits_until_it_can_be_alone(self) -> None:
        rows = filled(1, ("small", 1, 9), ("large", 2, 1), ("other", 1, 1))
        assert rows.admit() == ["small"]
        rows.remove("small")
        rows.remove("other")
        assert rows.admit() == ["large"]
        rows.add("late", 1, 50)
        assert rows.admit() == []
        rows.remove("large")
        assert rows.admit() == ["late"]

    def test_lowered_in_flight_takes_nothing_away_and_admits_nothing_until_there_is_room(self) -> None:
        rows = filled(8, *((name, 2, 5) for name in "abcd"), ("e", 2, 5), ("f", 1, 5))
        assert rows.admit() == ["a", "b", "c", "d"]
        rows.capacity = 4
        assert rows.admit() == []
        assert rows.live == ("a", "b", "c", "d")
        assert rows.used == 8
        for name in "ab":
            rows.remove(name)
            assert rows.admit() == []
        rows.remove("c")
        assert rows.admit() == ["e"]

    def test_raised_in_flight_admits_more(self) -> None:
        rows = filled(2, *((name, 1, 5) for name in "abcd"))
        assert rows.admit() == ["a", "b"]
        rows.capacity = 3
        assert rows.admit() == ["c"]


class TestKeys:
    def test_one_that_is_there_is_refused(self) -> None:
        rows = filled(1, ("live", 1, 1), ("waiting", 1, 1))
        rows.admit()
        for key in ("live", "waiting"):
            with pytest.raises(ValueError, match=f"'{key}' is here"):
                rows.add(key, 1, 1)
        assert (rows.live, rows.waiting) == (("live",), ("waiting",))

    def test_one_that_is_gone_may_come_again(self) -> None:
        rows = filled(1, ("a", 1, 1), ("b", 1, 1))
        rows.admit()
        rows.remove("a")
        rows.remove("b")
        rows.add("a", 1, 1)
        rows.add("b", 1, 1)
        assert rows.admit() == ["a"]

    def test_an_unknown_one_may_be_removed(self) -> None:
        rows = filled(1, ("a", 1, 1))
        rows.remove("nobody")
        assert rows.admit() == ["a"]

    def test_one_removed_while_it_waits_is_not_admitted(self) -> None:
        rows = filled(1, ("a", 1, 3), ("b", 1, 2), ("c", 1, 1))
        rows.admit()
        rows.remove("b")
        rows.remove("a")
        assert rows.admit() == ["c"]


class TestOrder:
    def test_the_longest_goes_first_whenever_it_came(self) -> None:
        rows = filled(1, ("short", 1, 2), ("long", 1, 9), ("middle", 1, 5))
        order = []
        while admitted := rows.admit():
            order += admitted
            rows.remove(admitted[0])
        assert order == ["long", "middle", "short"]

    def test_equals_go_in_the_order_in_which_they_came(self) -> None:
        rows = filled(3, *((name, 1, 5) for name in "abcde"))
        assert rows.admit() == ["a", "b", "c"]

    def test_what_fits_slips_past_what_does_not(self) -> None:
        rows = filled(3, ("a", 2, 9), ("b", 2, 8), ("c", 1, 1))
        assert rows.admit() == ["a", "c"]

    def test_a_tick_of_waiting_counts_as_one_call(self) -> None:
        rows = filled(1, ("first", 1, 1))
        rows.admit()
        rows.add("old", 1, 3)
        for _ in range(4):
            rows.tick()
        rows.add("six calls", 1, 6)
        rows.add("eight calls", 1, 8)
        rows.remove("first")
        assert rows.admit() == ["eight calls"]
        rows.remove("eight calls")
        assert rows.admit() == ["old"]

    @pytest.mark.parametrize("wide", [1, 2])
    @pytest.mark.parametrize("capacity", [2, 4, 8])
    def test_a_short_one_is_not_starved_by_a_stream_of_longer_ones(self, capacity: int, wide: int) -> None:
        """Where `capacity` longer ones always wait, as a sweep keeps its workers fed."""
        longest, engine = 20, Engine(Rows(capacity))
        for _ in range(3 * capacity):
            engine.add(wide, longest)
        engine.tick()
        short = engine.add(wide, 1)
        # After `longest` ticks, nobody who comes goes before it, and those who wait by then take a round each.
        bound = engine.ticks + longest + longest * (1 + 2 * wide)
        while short not in engine.admitted:
            assert engine.ticks < bound
            while len(engine.rows.waiting) < capacity:
                engine.add(wide, longest)
            engine.tick()
