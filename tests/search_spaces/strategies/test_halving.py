"""Racing: what a race deals, whom it lets go, and that it ends with the best, in any order of outcomes."""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.requests import Failed, Looked, Outcome, Scored, Settings
from search_spaces.space import Judge
from search_spaces.strategies import Assignment, PastTrial, Report, Strategy
from search_spaces.strategies.halving import (
    FINALISTS,
    LOOK_SHARES,
    PILOTS,
    SCOUTS,
    WORTH_A_PILOT,
    Halving,
    Race,
    Rung,
    line,
    look_after,
    modelled,
    pictures,
    rungs,
)
from search_spaces.strategies.trials import Trials
from tests.search_spaces.examples import UNKNOWN, law, space

ANYTHING = Judge({}, UNKNOWN)
STEPS = 20


class World:
    """Made-up settings 0 … n - 1, of which a higher number is better, on instances of unlike levels.

    A look sees the final score with an error that shrinks along the way, or nothing of it where `blind`.
    """

    def __init__(self, settings: int, seed: int = 0, noise: float = 3.0, blind: bool = False) -> None:
        self.settings, self.seed, self.noise, self.blind = settings, seed, noise, blind
        self.lost: set[tuple[int, int]] = set()
        self.infeasible: set[int] = set()
        self.infeasible_from = 1  # instance

    def score(self, value: int, instance: int) -> float:
        level = 20 * random.Random(f"{self.seed} {instance}").random()
        return level + value + random.Random(f"{self.seed} {value} {instance}").gauss(0, self.noise)

    def outcome(self, settings: Settings, instance: int, after: int | None) -> Outcome:
        value = settings["value"]
        assert isinstance(value, int)
        if (value, instance) in self.lost:
            return Failed("lost", "a machine went away")
        if value in self.infeasible and instance >= self.infeasible_from and after is None:
            return Failed("infeasible", "all black")
        if after is None:
            return Scored({"score": self.score(value, instance)})
        chance = random.Random(f"look {self.seed} {value} {instance} {after}")
        error = chance.gauss(0, 8 * (1 - after / STEPS))
        seen = 50 * chance.random() if self.blind else 10 + 0.5 * (self.score(value, instance) + error)
        return Looked({"score": seen}, after)

    def race(
        self, instances: int, past: Sequence[PastTrial] = (), looks: bool = False, keep: float = 1 / 3
    ) -> Halving:
        trials = Trials(ANYTHING, "score", past)
        entrants = list(trials.candidates(space(value=list(range(self.settings))).lattice()))
        return Halving(trials, entrants, instances, keep, lambda _: STEPS, looks, seed=self.seed)


class MemoryTrials:
    """The trials table, in memory."""

    def __init__(self, past: Sequence[PastTrial]) -> None:
        self._trials = {trial.number: trial for trial in past}

    def add(self, assignment: Assignment, outcome: Outcome) -> None:
        number, instance = assignment.trial.number, assignment.instance
        trial = self._trials.get(number, PastTrial(number, assignment.trial.settings))
        if isinstance(outcome, Looked):
            looks = {**trial.looks, instance: [*trial.looks.get(instance, ()), outcome]}
            self._trials[number] = replace(trial, looks=looks)
        elif assignment.role == "validate":
            self._trials[number] = replace(trial, validation={**trial.validation, instance: outcome})
        else:
            self._trials[number] = replace(trial, outcomes={**trial.outcomes, instance: outcome})

    @property
    def past(self) -> list[PastTrial]:
        return [self._trials[number] for number in sorted(self._trials)]


class Course:
    """One session of a race, with outcomes in a random order; past trials as the catalog keeps them."""

    def __init__(self, world: World, strategy: Strategy, seed: int = 0) -> None:
        self.world, self.strategy, self.chance = world, strategy, random.Random(seed)
        self.dealt: list[Assignment] = []
        self.journal: list[tuple[Assignment, Outcome]] = []
        self.dropped: list[int] = []

    def run(self, reports: float = math.inf) -> "Course":
        under_way: list[Assignment] = []
        for _ in range(100_000):
            free = self.chance.choice([0, 1, 5, 20])
            asked = list(self.strategy.ask(free))
            assert len(asked) <= free
            search = {a.trial.number for a in asked if a.role == "search"}
            assert not search & set(self.dropped), "who has left is not dealt"
            self.dealt += asked
            under_way += asked
            if (free and not asked and not under_way) or len(self.journal) >= reports:
                return self
            self.chance.shuffle(under_way)
            back, under_way = under_way[: len(under_way) // 2 + 1], under_way[len(under_way) // 2 + 1 :]
            outcomes = [(a, self.world.outcome(a.trial.settings, a.instance, a.stop_after)) for a in back]
            self.journal += outcomes
            told = [Report(a.trial.number, a.instance, o, a.role) for a, o in outcomes]
            gone = self.strategy.report(told)
            assert not set(gone) & set(self.dropped), "a trial leaves once"
            self.dropped += gone
            under_way = [a for a in under_way if a.trial.number not in gone or self.chance.random() < 0.3]
        raise AssertionError("the race does not end")

    def past(self, before: Sequence[PastTrial] = ()) -> list[PastTrial]:
        catalog = MemoryTrials(before)
        for assignment, outcome in self.journal:
            catalog.add(assignment, outcome)
        return catalog.past

    def complete(self, instances: int, before: Sequence[PastTrial] = ()) -> dict[int, float]:
        """value → mean of the settings that were judged on all instances."""
        means = {}
        for trial in self.past(before):
            scores = [o.scores["score"] for o in trial.outcomes.values() if isinstance(o, Scored)]
            if len(scores) == instances:
                means[int(str(trial.settings["value"]))] = math.fsum(scores) / instances
        return means


def keys(course: Course) -> list[tuple[int, int, int | None]]:
    return [(a.trial.number, a.instance, a.stop_after) for a in course.dealt]


# Rungs


@law
@given(st.integers(1, 5000), st.integers(1, 64), st.sampled_from([0.2, 1 / 3, 0.5, 0.9]))
def test_rungs_double_and_end_with_all_instances(entrants: int, instances: int, keep: float) -> None:
    sizes = [rung.instances for rung in rungs(entrants, instances, keep)]
    assert sizes[-1] == instances
    assert sizes == sorted(set(sizes))
    assert all(size & (size - 1) == 0 for size in sizes[:-1])
    assert pictures(entrants, instances, keep) <= entrants * instances


def test_the_rungs_of_the_prototypes_race() -> None:
    assert [rung.instances for rung in rungs(256, 16, 1 / 3)] == [1, 2, 4, 8, 16]
    scouts = 86  # these had their first picture of an instance of their own
    assert pictures(256, 16) == 256 + scouts + (86 + 3) + (29 + 3) * 2 + (10 + 3) * 4 + (4 + 3) * 8


def test_few_settings_are_not_thinned_out_on_one_instance() -> None:
    assert [rung.instances for rung in rungs(9, 16, 1 / 3)] == [8, 16]
    assert [rung.instances for rung in rungs(3, 16, 1 / 3)] == [16]


# The race


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_many_wins_for_a_fraction_of_the_grid(seed: int, looks: bool) -> None:
    world = World(90, seed)
    course = Course(world, world.race(16, looks=looks), seed).run()
    complete = course.complete(16)
    assert len(complete) >= FINALISTS
    assert max(complete, key=lambda value: complete[value]) >= 88
    assert len(set(keys(course))) == len(course.dealt), "no work is dealt twice"
    finals = [a for a in course.dealt if a.stop_after is None]
    assert len(finals) < 0.25 * 90 * 16


@law
@given(
    st.integers(1, 70),
    st.sampled_from([1, 2, 3, 4, 8, 11, 16]),
    st.sampled_from([0.1, 1 / 3, 0.6]),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_race_takes_no_more_pictures_than_it_says(
    settings: int, instances: int, keep: float, looks: bool, seed: int
) -> None:
    world = World(settings, seed, noise=30.0)  # so that those who are ahead early are often overtaken
    trials = Trials(ANYTHING, "score")
    entrants = list(trials.candidates(space(value=list(range(settings))).lattice()))
    race = Halving(trials, entrants, instances, keep, lambda _: STEPS, looks, seed, always={0})
    dealt = Course(world, race, seed).run().dealt
    drawn = sum(a.stop_after is None for a in dealt)
    assert drawn <= pictures(settings, instances, keep, always=1)


def test_the_order_of_outcomes_does_not_decide_who_stays() -> None:
    world = World(40, 7)
    complete = [Course(world, world.race(8), seed).run().complete(8) for seed in range(5)]
    assert all(course.items() >= complete[0].items() for course in complete) or all(
        set(course) == set(complete[0]) for course in complete
    )


def test_workers_are_not_left_without_work_at_the_end_of_a_rung() -> None:
    world = World(30)
    race = world.race(8)
    first = race.ask(1000)
    reports = [
        Report(a.trial.number, a.instance, world.outcome(a.trial.settings, a.instance, None)) for a in first
    ]
    race.report(reports[:-2])
    ahead = race.ask(1000)
    assert len(ahead) == 10 - 2, "who will be among the ten of the next rung goes on meanwhile"
    assert {a.trial.number for a in ahead} <= {r.trial for r in reports[:-2]}
    gone = race.report(reports[-2:])
    assert not {a.trial.number for a in ahead} & set(gone)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_race_goes_on_from_wherever_it_was_cut_off(seed: int, looks: bool) -> None:
    world = World(60, seed)
    whole = Course(world, world.race(8, looks=looks), seed).run()
    cut = Course(world, world.race(8, looks=looks), seed).run(reports=10 + 17 * seed)
    past = cut.past()
    rest = Course(world, world.race(8, past, looks), seed + 9).run()
    seen = {(a.trial.number, a.instance, a.stop_after) for a, _ in cut.journal}
    assert not seen & set(keys(rest)), "nothing is done twice"
    values = {t.settings["value"]: t.number for t in past}
    assert all(values.get(t.settings["value"], t.number) == t.number for t in rest.past(past))
    best = max(whole.complete(8).items(), key=lambda pair: pair[1])
    assert best in rest.complete(8, past).items()


def test_a_finished_race_asks_for_nothing_again() -> None:
    world = World(60, 1)
    past = Course(world, world.race(8, looks=True)).run().past()
    assert Course(world, world.race(8, past, looks=True)).run().dealt == []


def test_a_leader_that_turns_out_infeasible_leaves_and_another_wins() -> None:
    world = World(40, 3, noise=0.1)
    world.infeasible = {39, 38}
    course = Course(world, world.race(8)).run()
    complete = course.complete(8)
    assert max(complete, key=lambda value: complete[value]) == 37
    assert not {38, 39} & set(complete)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("since", [0, 2, 5])
@pytest.mark.parametrize("entrants", [45, 90])
def test_what_a_late_rung_finds_infeasible_does_not_change_the_cuts_before(
    entrants: int, since: int, looks: bool
) -> None:
    world = World(entrants, 3, noise=0.1)
    world.infeasible, world.infeasible_from = {entrants - 1, entrants - 2, entrants - 3, 30, 5}, since
    whole = Course(world, world.race(16, looks=looks), 1).run()
    past = whole.past()
    assert any(isinstance(outcome, Failed) for trial in past for outcome in trial.outcomes.values())
    assert Course(world, world.race(16, past, looks)).run().dealt == [], "it takes the course that it took"
    for reports in range(0, len(whole.journal), 37):
        cut = Course(world, world.race(16, looks=looks), 1)
        cut.journal = whole.journal[:reports]
        rest = Course(world, world.race(16, cut.past(), looks), reports).run()
        complete, wanted = rest.complete(16, cut.past()), whole.complete(16)
        if modelled(entrants, 16):  # which may have heard of a trial before it was found out
            assert max(complete, key=lambda v: complete[v]) == max(wanted, key=lambda v: wanted[v])
        else:
            assert set(complete) == set(wanted)


def test_a_baseline_that_turns_out_infeasible_late_does_not_change_the_cuts_before() -> None:
    world = World(40, 3, noise=0.1)
    world.infeasible, world.infeasible_from = {2}, 4

    def race(past: Sequence[PastTrial] = ()) -> Halving:
        trials = Trials(ANYTHING, "score", past)
        entrants = list(trials.candidates(space(value=list(range(40))).lattice()))
        baseline = {trial.number for trial in entrants if trial.settings["value"] == 2}
        return Halving(trials, entrants, 8, 0.5, always=baseline)

    whole = Course(world, race()).run()
    assert 2 in whole.dropped
    for reports in range(0, len(whole.journal), 7):
        cut = Course(world, race())
        cut.journal = whole.journal[:reports]
        rest = Course(world, race(cut.past()), reports).run()
        assert set(rest.complete(8, cut.past())) == set(whole.complete(8))


def test_lost_instances_cost_a_setting_nothing() -> None:
    world = World(40, 5, noise=0.1)
    world.lost = {(39, 0), (39, 1)}
    course = Course(world, world.race(8)).run()
    judged = {a.instance for a in course.dealt if a.trial.settings["value"] == 39}
    assert judged == set(range(8)), "it stays in the race"
    assert 39 not in course.complete(8), "but has no mean over what is left"


class Rugged(World):
    """Settings of which none tells of its neighbours."""

    def score(self, value: int, instance: int) -> float:
        worth = random.Random(f"worth {self.seed} {value}").gauss(0, 10)
        return worth + random.Random(f"{self.seed} {value} {instance}").gauss(0, self.noise)

    def rank(self, value: int) -> int:
        """How many settings are truly better."""
        worths = [random.Random(f"worth {self.seed} {other}").gauss(0, 10) for other in range(self.settings)]
        return sum(worth > worths[value] for worth in worths)


def test_where_neighbours_tell_nothing_every_setting_has_its_turn() -> None:
    for seed in (1, 3):  # in which a surrogate alone would leave out many
        world = Rugged(90, seed)
        course = Course(world, world.race(16), seed).run()
        assert len({a.trial.number for a in course.dealt}) == 90
        assert len(course.dealt) <= pictures(90, 16)
        complete = course.complete(16)
        assert world.rank(max(complete, key=lambda value: complete[value])) == 0


def test_where_neighbours_are_alike_scouts_tell_of_most() -> None:
    world = World(90, 2)
    course = Course(world, world.race(16), 2).run()
    assert len({a.trial.number for a in course.dealt}) < 60


class Inputs(World):
    """Three input images in turn; on the first of them a higher number is worse, over all it is better."""

    def score(self, value: int, instance: int) -> float:
        worth = value * (-0.5 if instance % 3 == 0 else 1.0)
        return super().score(value, instance) - value + worth


@pytest.mark.parametrize("settings", [45, 60, 90, 150])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_good_for_one_input_does_not_win_over_all(settings: int, seed: int) -> None:
    world = Inputs(settings, seed)
    complete = Course(world, world.race(12), seed).run().complete(12)
    assert max(complete, key=lambda value: complete[value]) >= 0.9 * settings
    assert len(complete) < settings / 3


def test_scouts_are_spread_evenly_over_instances_and_so_over_inputs() -> None:
    world = Inputs(90, 1)
    scouts = Counter(a.instance for a in world.race(12).ask(1000))
    assert scouts.total() == 90 * SCOUTS
    assert sorted(scouts) == [*range(5)], "each of the three inputs, in dealt order"
    assert max(scouts.values()) - min(scouts.values()) <= 1


def test_the_baseline_stays_where_a_surrogate_decides() -> None:
    world = World(90, 2)
    trials = Trials(ANYTHING, "score")
    entrants = list(trials.candidates(space(value=list(range(90))).lattice()))
    race = Halving(trials, entrants, 8, always={entrants[3].number})
    assert {3} < set(Course(world, race, 2).run().complete(8))


@pytest.mark.parametrize(
    ("world", "looks"), [(World(60, 0, noise=20), True), (Rugged(60, 1), False)], ids=["smooth", "rugged"]
)
def test_a_race_that_is_begun_again_takes_the_same_course(world: World, looks: bool) -> None:
    whole = world.race(8, looks=looks)
    Course(world, whole).run()
    cut = Course(world, world.race(8, looks=looks), 2).run(reports=60)
    rest = world.race(8, cut.past(), looks)
    Course(world, rest, 5).run()
    assert finalists(rest) == finalists(whole)


def finalists(race: Halving) -> list[object]:
    assert race._race is not None
    return [trial.settings["value"] for trial in race._race.entrants]


def test_a_lost_instance_counts_as_neither_easy_nor_hard() -> None:
    """Instance 1 gives 100 points more than instance 0: who lacks one is compared on the other alone."""
    trials = Trials(ANYTHING, "score")
    entrants = list(trials.candidates(space(value=list(range(6))).lattice()))
    race = Race(trials, entrants, [Rung(2), Rung(4)], keep=0.5)
    outcomes: dict[tuple[int, int], Outcome] = {
        (number, instance): Scored({"score": 100.0 * instance + number})
        for number in range(6)
        for instance in range(2)
    }
    outcomes[0, 0] = outcomes[5, 1] = Failed(
        "lost", "a machine went away"
    )  # the worst on the hard, the best on the easy
    assert {(a.trial.number, a.instance) for a in race.ask(99)} == set(outcomes)
    trials.take([Report(*pair, outcome) for pair, outcome in outcomes.items()])
    assert sorted(race.report(outcomes)) == [0, 1, 2]
    assert {a.trial.number for a in race.ask(99)} == {3, 4, 5}


@pytest.mark.parametrize("seed", range(20))
def test_who_stays_is_decided_by_the_mean_difference_from_what_instances_gave_to_all(seed: int) -> None:
    chance = random.Random(seed)
    trials = Trials(ANYTHING, "score")
    entrants = list(trials.candidates(space(value=list(range(12))).lattice()))
    race = Race(trials, entrants, [Rung(4), Rung(8)], keep=0.5)
    race.ask(99)
    table = {(n, i): chance.gauss(30 * i, 10 + 10 * i) for n in range(12) for i in range(4)}
    scored = {pair: score for pair, score in table.items() if chance.random() < 0.7}
    told = [
        Report(*p, Scored({"score": scored[p]}) if p in scored else Failed("lost", "gone")) for p in table
    ]
    levels = [
        statistics.fmean(score for (_, i), score in scored.items() if i == instance) for instance in range(4)
    ]
    gains = {n: [score - levels[i] for (m, i), score in scored.items() if m == n] for n in range(12)}
    means = {n: statistics.fmean(gain) for n, gain in gains.items() if gain}
    best = sorted(means, key=lambda n: -means[n])[: max(3, math.ceil(len(means) / 2))]
    trials.take(told)
    assert sorted(race.report(table)) == sorted(means.keys() - set(best)), (
        "whom machines lost all of stays too"
    )


def test_equal_settings_end_in_a_tie_and_not_for_ever() -> None:
    class Flat(World):
        def score(self, value: int, instance: int) -> float:
            return 1.0

    world = Flat(30)
    assert len(Course(world, world.race(8)).run().complete(8)) == pytest.approx(FINALISTS, abs=3)


def test_one_setting_is_judged_on_all_instances() -> None:
    world = World(1)
    assert len(Course(world, world.race(5)).run().dealt) == 5


# Early looks


def test_looks_are_used_where_they_tell() -> None:
    world = World(90, 2)
    course = Course(world, world.race(16, looks=True)).run()
    looked = {a.trial.number for a in course.dealt if a.stop_after is not None}
    assert 30 <= len(looked) < 90, "scouts look, and then who may be better"
    after = {a.stop_after for a in course.dealt if a.stop_after is not None}
    assert after <= {look_after(STEPS, share) for share in LOOK_SHARES}
    drawn = Counter(a.trial.number for a in course.dealt if a.stop_after is None and a.instance == 0)
    assert len(drawn) < 70, "losers stop in mid-trajectory"


@pytest.mark.parametrize("kind", [World, Rugged])
@pytest.mark.parametrize(("settings", "instances"), [(48, 1), (60, 2), (90, 8)])
@pytest.mark.parametrize(("steps", "keep"), [(2, 0.6), (3, 0.1), (20, 1 / 3)])
def test_a_race_with_looks_makes_no_more_calls_than_pictures_would(
    kind: type[World], settings: int, instances: int, steps: int, keep: float
) -> None:
    """A look costs the calls up to it, and going on from it the rest: with two steps that is half a picture."""
    world = kind(settings, 2, noise=1.0)

    def sharp(settings: Settings, instance: int, after: int | None) -> Outcome:
        score = {"score": world.score(int(str(settings["value"])), instance)}
        return Scored(score) if after is None else Looked(score, after)

    world.outcome = sharp  # type: ignore[method-assign]
    trials = Trials(ANYTHING, "score")
    entrants = list(trials.candidates(space(value=list(range(settings))).lattice()))
    race = Halving(trials, entrants, instances, keep, lambda _: steps, True, seed=2, always={0})
    dealt = Course(world, race, 2).run().dealt
    calls: dict[tuple[int, int], int] = {}
    for a in dealt:
        pair = a.trial.number, a.instance
        calls[pair] = max(calls.get(pair, 0), a.stop_after or steps)
    looked = sum(a.stop_after is not None and a.trial not in race._pilot for a in dealt)
    assert looked, "the race looks too"
    assert sum(calls.values()) <= steps * pictures(settings, instances, keep, always=1)


def test_looks_that_tell_nothing_are_given_up_after_the_pilot() -> None:
    world = World(90, 2, blind=True)
    course = Course(world, world.race(16, looks=True)).run()
    looks = Counter(a.trial.number for a in course.dealt if a.stop_after is not None)
    assert sum(count == len(LOOK_SHARES) for count in looks.values()) == PILOTS
    assert all(count in (1, len(LOOK_SHARES)) for count in looks.values())
    drawn = {a.trial.number for a in course.dealt if a.stop_after is None}
    assert len(drawn) >= 90 * SCOUTS, "scouts that looked once are drawn out"
    assert max(complete := course.complete(16), key=lambda value: complete[value]) >= 88


def test_workers_that_the_pilot_leaves_idle_look_at_the_others_first() -> None:
    world = World(90, 2)
    dealt = world.race(16, looks=True).ask(40)
    assert len({a.trial.number for a in dealt}) == len(dealt) == 90 * SCOUTS, "the other scouts"
    assert {a.stop_after for a in dealt} == {look_after(STEPS, LOOK_SHARES[0])}
    assert {a.instance for a in dealt[:PILOTS]} == {0}
    assert len({a.instance for a in dealt[PILOTS:]}) > 1


def test_few_settings_are_not_worth_a_pilot() -> None:
    world = World(WORTH_A_PILOT - 1)
    course = Course(world, world.race(4, looks=True)).run()
    assert all(a.stop_after is None for a in course.dealt)


def test_a_look_that_the_catalog_answers_with_a_score_is_that_score() -> None:
    world = World(90, 4)

    def known(settings: Settings, instance: int, after: int | None) -> Outcome:
        return Scored({"score": world.score(int(str(settings["value"])), instance)})

    world.outcome = known  # type: ignore[method-assign]
    course = Course(world, world.race(8, looks=True)).run()
    pairs = Counter((a.trial.number, a.instance) for a in course.dealt)
    assert set(pairs.values()) == {1}
    complete = course.complete(8)
    assert max(complete, key=lambda value: complete[value]) >= 88


@pytest.mark.parametrize(
    ("steps", "share", "after"),
    [(20, 1 / 8, 2), (20, 1 / 4, 5), (3, 1 / 4, 1), (2, 1 / 2, 1), (1, 1 / 2, None), (None, 1 / 4, None)],
)
def test_when_a_look_is_taken(steps: int | None, share: float, after: int | None) -> None:
    assert look_after(steps, share) == after


@law
@given(st.lists(st.floats(-50, 50), min_size=3, max_size=20, unique=True), st.floats(-3, 3), st.floats(-9, 9))
def test_the_line_through_points_on_a_line(xs: list[float], slope: float, intercept: float) -> None:
    found = line([(x, intercept + slope * x) for x in xs])
    spread = max(xs) - min(xs)
    if spread > 1 and abs(slope) > 0.01:
        assert found[0] + found[1] * xs[0] == pytest.approx(intercept + slope * xs[0], abs=1e-4)
        assert abs(found[2]) == pytest.approx(1, abs=1e-6)


def test_a_line_through_equal_points_tells_nothing() -> None:
    assert line([(1.0, 2.0), (1.0, 4.0)]) == (3.0, 0.0, 0.0)


def test_every_judgement_is_of_pictures_that_were_asked_for() -> None:
    world = World(60, 6)
    course = Course(world, world.race(8, looks=True)).run()
    asked: Callable[[Assignment], tuple[int, int]] = lambda a: (a.trial.number, a.instance)  # noqa: E731
    assert {asked(a) for a, _ in course.journal} <= {asked(a) for a in course.dealt}
