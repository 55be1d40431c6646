"""The laws that hold of every strategy, whatever it decides."""

from collections.abc import Callable, Sequence

import pytest
from optuna.samplers import RandomSampler, TPESampler

from search_spaces.domains import Domain, FloatRange, IntRange
from search_spaces.requests import Failed, Looked, Outcome, Scored, Settings
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Report, Strategy
from search_spaces.strategies.grid import Grid
from search_spaces.strategies.halving import Halving
from search_spaces.strategies.modelled import ModelledSampler
from search_spaces.strategies.optuna_sampler import OptunaSampler
from search_spaces.strategies.staged import Coordinate, Refine
from search_spaces.strategies.trials import Trials
from tests.search_spaces.examples import INPAINTING
from tests.search_spaces.strategies.test_halving import Course, World, keys

JUDGE = Judge({"strength": 1.0}, INPAINTING)
AXES: dict[str, Domain] = {
    "guidance_scale": FloatRange(low=0.5, high=8, step=0.5),
    "num_inference_steps": IntRange(low=4, high=20, step=4),
}
SPACE = Space(axes=AXES)
INSTANCES = 8
BASELINE: Settings = {"guidance_scale": 5.0, "num_inference_steps": 20}


def trials(past: Sequence[PastTrial]) -> Trials:
    return Trials(JUDGE, "score", past)


def halving(past: Sequence[PastTrial], looks: bool) -> Strategy:
    known = trials(past)
    entrants = list(known.candidates(SPACE.lattice()))
    return Halving(known, entrants, INSTANCES, steps=JUDGE.steps, early_look=looks)


def sampled(past: Sequence[PastTrial], racing: bool) -> Strategy:
    sampler = TPESampler(seed=len(past)) if racing else RandomSampler(seed=len(past))
    return OptunaSampler(
        SPACE, JUDGE, INSTANCES, {"score": "maximize"}, 25, sampler, past=past, racing=racing
    )


def modelled(past: Sequence[PastTrial]) -> Strategy:
    sampler = TPESampler(seed=len(past))
    return ModelledSampler(SPACE, JUDGE, INSTANCES, "score", "maximize", 40, sampler, past=past)


MAKERS: dict[str, Callable[[Sequence[PastTrial]], Strategy]] = {
    "grid": lambda past: Grid(trials(past), SPACE.lattice(), INSTANCES),
    "halving": lambda past: halving(past, looks=False),
    "early looks": lambda past: halving(past, looks=True),
    "coordinate": lambda past: Coordinate(trials(past), AXES, [], BASELINE, INSTANCES, rounds=2),
    "refine": lambda past: Refine(trials(past), AXES, INSTANCES, 40),
    "sampler": lambda past: sampled(past, racing=False),
    "raced sampler": lambda past: sampled(past, racing=True),
    "modelled sampler": modelled,
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Pictures(World):
    """Guidance 6 and many steps are best; looks see it dimly; one setting is black, and one picture lost."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(0, seed)

    def outcome(self, settings: Settings, instance: int, after: int | None) -> Outcome:
        guidance, steps = float(str(settings["guidance_scale"])), int(str(settings["num_inference_steps"]))
        if (guidance, steps) == (6.0, 12):
            return Failed("infeasible", "all black")
        if (guidance, steps, instance) == (6.0, 20, 1):
            return Failed("lost", "a machine went away")
        value = 30 - (guidance - 6) ** 2 + steps / 2
        luck = self.score(round(guidance * 100 + steps), instance) % 7
        score = value + luck
        return Scored({"score": score}) if after is None else Looked({"score": 0.5 * score}, after)


@every
@pytest.mark.parametrize("seed", range(3))
def test_no_work_is_done_twice_and_all_of_it_is_reported_or_dropped(
    make: Callable[[Sequence[PastTrial]], Strategy], seed: int
) -> None:
    course = Course(Pictures(), make([]), seed).run()
    done = [(*key, a.role) for key, a in zip(keys(course), course.dealt, strict=True)]
    assert len(set(done)) == len(done)
    heard = {(a.trial.number, a.instance, a.stop_after) for a, _ in course.journal}
    assert {number for number, *_ in set(keys(course)) - heard} <= set(course.dropped)
    numbers = {JUDGE.candidate(a.trial.settings): a.trial.number for a in course.dealt}
    assert len(set(numbers.values())) == len(numbers), (
        "a candidate has one number, and a number one candidate"
    )


@every
def test_every_prefix_gives_each_trial_its_number_back(
    make: Callable[[Sequence[PastTrial]], Strategy],
) -> None:
    whole = Course(Pictures(), make([]), 1).run()
    for reports in range(0, len(whole.journal), 29):
        cut = Course(Pictures(), make([]), 1)
        cut.journal = whole.journal[:reports]
        past = cut.past()
        known = {JUDGE.candidate(trial.settings): trial.number for trial in past}
        rest = Course(Pictures(), make(past), 2).run()
        for assignment in rest.dealt:
            number = assignment.trial.number
            assert known.get(JUDGE.candidate(assignment.trial.settings), number) == number
        judged = {(a.trial.number, a.instance, a.stop_after, a.role) for a, _ in cut.journal}
        again = {(a.trial.number, a.instance, a.stop_after, a.role) for a in rest.dealt}
        assert not judged & again


@every
def test_what_turns_out_infeasible_is_not_dealt_again_and_never_the_best(
    make: Callable[[Sequence[PastTrial]], Strategy],
) -> None:
    course = Course(Pictures(), make([]), 4).run()
    black = {
        a.trial.number
        for a, outcome in course.journal
        if isinstance(outcome, Failed) and outcome.kind == "infeasible"
    }
    assert black <= set(course.dropped)
    past = course.past()
    rest = Course(Pictures(), make(past), 4).run()
    assert not {a.trial.number for a in rest.dealt} & black


@every
def test_nothing_is_dealt_where_nothing_is_free(make: Callable[[Sequence[PastTrial]], Strategy]) -> None:
    strategy = make([])
    assert list(strategy.ask(0)) == []
    assert list(strategy.ask(-5)) == []
    dealt: list[Assignment] = list(strategy.ask(3))
    assert len(dealt) == 3


@every
def test_no_report_changes_nothing(make: Callable[[Sequence[PastTrial]], Strategy]) -> None:
    one, other = make([]), make([])
    nothing: list[Report] = []
    assert list(one.report(nothing)) == []
    assert list(one.ask(5)) == list(other.ask(5))
