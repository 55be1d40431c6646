"""Coordinate and refine: each stage is a race, and the last one's outcome decides the next."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.requests import Failed, Outcome, Scored, Settings
from search_spaces.space import Judge, Space
from search_spaces.strategies import PastTrial
from search_spaces.strategies.staged import COARSE, Coordinate, Refine, between, coarse
from search_spaces.strategies.trials import Trials
from tests.search_spaces.examples import UNKNOWN, law, space
from tests.search_spaces.strategies.test_halving import Course, World

ANYTHING = Judge({}, UNKNOWN)


class Hill(World):
    """A smooth hill over two numbers with its top at (12, 0.7), the lesson's guidance and strength."""

    def __init__(self, noise: float = 1.0, seed: int = 0) -> None:
        super().__init__(0, seed, noise)

    def outcome(self, settings: Settings, instance: int, after: int | None) -> Outcome:
        guidance, strength = float(str(settings["guidance"])), float(str(settings["strength"]))
        if settings.get("style") == "broken":
            return Failed("infeasible", "all black")
        height = 50 - (guidance - 12) ** 2 / 4 - 80 * (strength - 0.7) ** 2
        return Scored({"score": height + self.score(hash((guidance, strength)) % 10**6, instance) % 1})


AXES: dict[str, Domain] = {
    "guidance": Choices(values=(1, 5, 10, 20)),
    "strength": Choices(values=(0.3, 0.6, 1.0)),
}


def trials(past: Sequence[PastTrial] = ()) -> Trials:
    return Trials(ANYTHING, "score", past)


def best(course: Course, instances: int, before: Sequence[PastTrial] = ()) -> Settings:
    complete = {
        trial.number: (math.fsum(o.scores["score"] for o in scored) / instances, trial.settings)
        for trial in course.past(before)
        if len(scored := [o for o in trial.outcomes.values() if isinstance(o, Scored)]) == instances
    }
    return max(complete.values(), key=lambda pair: pair[0])[1]


# Coordinate


def coordinate(past: Sequence[PastTrial] = (), rounds: int = 1, **changes: object) -> Coordinate:
    start: Settings = {"guidance": 1, "strength": 1.0}
    return Coordinate(trials(past), AXES, ["strength"], start, 4, rounds, **changes)  # type: ignore[arg-type]


def test_each_setting_has_its_turn_holding_the_best_of_those_before() -> None:
    course = Course(Hill(), coordinate()).run()
    order = list(
        dict.fromkeys((a.trial.settings["guidance"], a.trial.settings["strength"]) for a in course.dealt)
    )
    assert set(order[:3]) == {(1, 0.3), (1, 0.6), (1, 1.0)}
    assert set(order[3:]) == {(5, 0.6), (10, 0.6), (20, 0.6)}
    assert best(course, 4) == {"guidance": 10, "strength": 0.6}


def test_a_round_that_changed_nothing_is_the_last() -> None:
    one, many = Course(Hill(), coordinate(rounds=1)).run(), Course(Hill(), coordinate(rounds=9)).run()
    assert {a.trial.number for a in many.dealt} - {a.trial.number for a in one.dealt} == {6, 7}
    assert best(many, 4) == {"guidance": 10, "strength": 0.6}


def test_coordinate_goes_on_where_it_was_cut_off() -> None:
    cut = Course(Hill(), coordinate()).run(reports=9)
    past = cut.past()
    rest = Course(Hill(), coordinate(past)).run()
    done = {(a.trial.number, a.instance) for a, _ in cut.journal}
    assert not done & {(a.trial.number, a.instance) for a in rest.dealt}
    assert best(rest, 4, past) == {"guidance": 10, "strength": 0.6}
    assert Course(Hill(), coordinate(rest.past(past))).run().dealt == []


def test_settings_to_try_first_are_among_the_first_stage() -> None:
    first = [{"guidance": 12, "strength": 0.7}]
    course = Course(Hill(), coordinate(first=first)).run()
    assert best(course, 4) == {"guidance": 12, "strength": 0.7}


def test_values_that_fail_do_not_end_the_search() -> None:
    axes: dict[str, Domain] = {**AXES, "style": Choices(values=("broken", "sound"))}
    start: Settings = {"guidance": 10, "strength": 0.6, "style": "broken"}
    course = Course(Hill(), Coordinate(trials(), axes, ["style"], start, 4)).run()
    assert best(course, 4) == {"guidance": 10, "strength": 0.6, "style": "sound"}


# Refine


def refine(past: Sequence[PastTrial] = (), limit: int | None = 80, instances: int = 6) -> Refine:
    return Refine(trials(past), AXES, instances, limit)


def test_refine_comes_closer_to_the_top_than_the_coarse_values() -> None:
    found = best(Course(Hill(), refine()).run(), 6)
    assert abs(float(str(found["guidance"])) - 12) <= 2
    assert abs(float(str(found["strength"])) - 0.7) < 0.1


def test_refine_ends_where_neighbours_cannot_be_told_apart() -> None:
    loud = Course(World2(40.0), refine(limit=None)).run()
    quiet = Course(World2(0.5), refine(limit=None)).run()
    assert len({a.trial.number for a in loud.dealt}) < len({a.trial.number for a in quiet.dealt})


class World2(Hill):
    """The hill under noise of a given standard deviation."""

    def __init__(self, noise: float) -> None:
        super().__init__(noise)

    def outcome(self, settings: Settings, instance: int, after: int | None) -> Outcome:
        found = super().outcome(settings, instance, after)
        assert isinstance(found, Scored)
        value = hash((settings["guidance"], settings["strength"])) % 10**6
        extra = World(1, noise=self.noise).score(value, instance) - value
        return Scored({"score": found.scores["score"] + extra})


@pytest.mark.parametrize(
    ("lower", "upper", "tried"),
    [
        # behind by 2 points on every instance, whatever the instances are: halfway to it is worth a try
        ([8.0, 28.0, 48.0, 68.0], [10.0, 30.0, 50.0, 70.0], {5}),
        ([9.0, 28.0, 47.5, 68.5], [12.0, 27.0, 52.0, 66.0], {5}),  # the upper one is ahead as often as behind
        ([9.0, 28.0, 47.5, 68.5], [9.0, 28.0, 47.5, 68.5], {5, 13}),
        ([12.0, 27.0, 52.0, 66.0], [10.0, 30.0, 50.0, 70.0], set()),
        ([9.0], [9.0, 30.0], {5}),  # one shared instance tells nothing, two tell that nothing is certain
        ([], [10.0, 30.0, 50.0, 70.0], {5}),
        (
            [],
            [20.0, 41.0, 59.0],
            {5, 13},
        ),  # ahead where both were judged, and not the best only for what was lost
    ],
)
def test_refine_looks_halfway_to_the_neighbours_that_are_not_tied_with_the_best(
    lower: Sequence[float], upper: Sequence[float], tried: set[int]
) -> None:
    tables = {1: lower, 9: [10.0, 30.0, 50.0, 70.0], 17: upper}
    past = [
        PastTrial(
            number,
            {"guidance": guidance},
            {i: Scored({"score": row[i]}) if i < len(row) else Failed("lost", "gone") for i in range(4)},
        )
        for number, (guidance, row) in enumerate(tables.items())
    ]
    made = Refine(trials(past), {"guidance": Choices(values=(1, 9, 17))}, 4)
    assert {a.trial.settings["guidance"] for a in made.ask(99)} == tried


@pytest.mark.parametrize("limit", [5, 12, 15])
def test_refine_keeps_to_its_number_of_trials(limit: int) -> None:
    course = Course(Hill(), refine(limit=limit)).run()
    assert len({a.trial.number for a in course.dealt}) <= limit


def test_refine_goes_on_where_it_was_cut_off() -> None:
    whole = Course(Hill(), refine()).run()
    cut = Course(Hill(), refine()).run(reports=60)
    past = cut.past()
    rest = Course(Hill(), refine(past), seed=5).run()
    done = {(a.trial.number, a.instance) for a, _ in cut.journal}
    assert not done & {(a.trial.number, a.instance) for a in rest.dealt}
    assert best(rest, 6, past) == best(whole, 6)
    assert Course(Hill(), refine(rest.past(past))).run().dealt == []


def test_a_range_begins_with_a_few_values_from_end_to_end() -> None:
    assert coarse(FloatRange(low=1, high=21)) == [1, 6, 11, 16, 21]
    assert coarse(FloatRange(low=1.23456, high=9.87654))[:: COARSE - 1] == [1.235, 9.87654]
    assert coarse(FloatRange(low=1, high=16, log=True)) == [1, 2, 4, 8, 16]
    assert coarse(IntRange(low=1, high=3)) == [1, 2, 3]
    assert coarse(IntRange(low=2, high=50, step=4)) == [2, 14, 26, 38, 50]
    assert coarse(Choices(values=("a", None))) == ("a", None)
    assert len(coarse(FloatRange(low=0, high=1, step=0.01))) == COARSE


domains = st.one_of(
    st.builds(lambda low, span: FloatRange(low=low, high=low + span), st.floats(0.1, 50), st.floats(0.5, 50)),
    st.builds(lambda low, span: IntRange(low=low, high=low + span), st.integers(1, 50), st.integers(1, 90)),
    st.builds(
        lambda low, span: FloatRange(low=low, high=low + span, log=True), st.floats(0.1, 9), st.floats(1, 50)
    ),
    st.lists(st.integers(1, 100), min_size=2, max_size=6, unique=True).map(
        lambda v: Choices(values=tuple(v))
    ),
)


@law
@given(domains, st.randoms(use_true_random=False))
def test_halfway_lies_between_and_halving_ends(domain: Domain, chance: object) -> None:
    values = [value for value in coarse(domain) if isinstance(value, int | float)]
    here, there = values[0], values[-1]
    for _ in range(200):
        value = between(domain, here, there)
        if value is None:
            return
        assert isinstance(value, int | float)
        assert min(here, there) < value < max(here, there)
        here, there = (value, there) if chance.random() < 0.5 else (here, value)  # type: ignore[attr-defined]
    raise AssertionError("it goes on for ever")


def test_a_lattice_is_not_left() -> None:
    domain = FloatRange(low=0, high=1, step=0.25)
    assert between(domain, 0.0, 1.0) == 0.5
    assert between(domain, 0.25, 0.5) is None
    assert Space(axes={"strength": domain}).size == 5
    assert space(a=[1]).size == 1
