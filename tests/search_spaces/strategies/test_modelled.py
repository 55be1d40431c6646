import math
import random
import statistics
from collections.abc import Mapping, Sequence

import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from search_spaces.objectives import Direction
from search_spaces.requests import Failed, Outcome, Scored, Settings
from search_spaces.space import Judge, Space
from search_spaces.strategies import Assignment, PastTrial, Strategy
from search_spaces.strategies.modelled import ModelledSampler
from tests.search_spaces.examples import UNKNOWN, space
from tests.search_spaces.strategies.test_contract import ALL, Played, RaceContract, play, schedules

ANYTHING_GOES = Judge({}, UNKNOWN)
INSTANCES = 16
HILL = space(a=list(range(12)), b=list(range(12)))
"""144 cells."""


class Hill:
    """A hill of 20 points over the cells, 10 points of deviation over instances, half of it an instance's own."""

    def __init__(self, seed: int, sign: int = 1) -> None:
        self._seed, self._sign, chance = seed, sign, random.Random(seed)
        self._top = chance.uniform(0, 11), chance.uniform(0, 11)
        self._levels = [chance.gauss(0, 7) for _ in range(64)]
        self.pictures = 0

    def height(self, settings: Settings) -> float:
        """What settings are truly worth."""
        a, b = float(str(settings["a"])), float(str(settings["b"]))
        return -20 * (((a - self._top[0]) / 11) ** 2 + ((b - self._top[1]) / 11) ** 2)

    def __call__(self, settings: Settings, instance: int) -> Outcome:
        self.pictures += 1
        luck = random.Random(f"{self._seed} {settings['a']} {settings['b']} {instance}").gauss(0, 7)
        return Scored({"clip_score": self._sign * (self.height(settings) + self._levels[instance] + luck)})

    @property
    def highest(self) -> float:
        """The height of the best cell."""
        return max(self.height({"a": a, "b": b}) for a in range(12) for b in range(12))


def made(
    past: Sequence[PastTrial] = (),
    trials: int = 60,
    axes: Space = HILL,
    judge: Judge = ANYTHING_GOES,
    direction: Direction = "maximize",
    sampler: BaseSampler | None = None,
    enqueue: Sequence[Settings] = (),
    baseline: Settings | None = None,
    instances: int = INSTANCES,
) -> ModelledSampler:
    return ModelledSampler(
        axes,
        judge,
        instances,
        "clip_score",
        direction,
        trials,
        sampler or TPESampler(seed=len(past)),
        past=past,
        enqueue=enqueue,
        baseline=baseline,
    )


def complete(played: Played, past: Sequence[PastTrial] = ()) -> list[PastTrial]:
    return [trial for trial in played.past(before=past) if len(trial.outcomes) == INSTANCES]


def total(trial: PastTrial) -> float:
    return math.fsum(o.scores["clip_score"] for o in trial.outcomes.values() if isinstance(o, Scored))


class TestModelledTpe(RaceContract):
    """What holds of every race; but who is not complete need not have lost, and the order of instances is its own."""

    def make(self, past: Sequence[PastTrial] = (), trials: int = ALL) -> Strategy:
        case = self.case
        return made(past, trials, case.space, case.judge, instances=case.instances)

    def assert_fair(self, together: Sequence[PastTrial], dropped: Sequence[int] = ()) -> None:
        """Somebody is complete."""
        assert any(len(trial.outcomes) == self.case.instances for trial in together)

    @schedules
    def test_every_trial_has_the_first_instances_in_order(self, seed: int) -> None:
        """Its first instance is its own, and then the first ones come in order."""
        played = play(self.make(), seed, self.judgement)
        firsts = set()
        for number in played.settings:
            own, *others = [instance for trial, instance in played.pairs if trial == number]
            firsts.add(own)
            assert others == [instance for instance in range(16) if instance != own][: len(others)]
        assert len(firsts) == self.case.instances


@schedules
@pytest.mark.parametrize("trials", [1, 5, 60])
def test_so_many_trials_are_begun(seed: int, trials: int) -> None:
    assert len(play(made(trials=trials), seed, Hill(seed)).settings) == trials


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_are_found_with_few_pictures(direction: Direction) -> None:
    behind, pictures = list[float](), list[int]()
    sign = 1 if direction == "maximize" else -1
    for seed in range(4):
        hill = Hill(seed, sign)
        played = play(made(trials=60, direction=direction, sampler=TPESampler(seed=seed)), seed, hill)
        best = max(complete(played), key=lambda trial: sign * total(trial))
        behind.append(hill.highest - hill.height(best.settings))
        pictures.append(hill.pictures)
    assert statistics.fmean(behind) < 1
    assert statistics.fmean(pictures) < 60 * INSTANCES * 0.6


def test_a_race_that_was_over_stays_over() -> None:
    played = play(made(), 3, Hill(3))
    past = played.past()
    assert any(len(trial.outcomes) < INSTANCES for trial in past)
    assert list(made(past).ask(100)) == []


def test_a_race_that_was_cut_off_ends_with_as_many_trials() -> None:
    hill = Hill(1)
    whole = play(made(), 1, hill)
    for reports in range(0, len(whole.journal), 57):
        past = whole.past(reports)
        rest = play(made(past), 2, hill, past)  # where no pair is dealt twice
        assert len(rest.past(before=past)) == max(60, len(past))
        assert complete(rest, past)


def test_what_another_strategy_found_teaches_and_is_not_begun_for_its_own_sake() -> None:
    hill = Hill(2)
    cells = [{"a": a, "b": b} for a in range(12) for b in range(0, 12, 3)]
    past = [PastTrial(n, cell, {0: hill(cell, 0)}, dealt_by={0: "halving"}) for n, cell in enumerate(cells)]
    played = play(made(past, trials=8), 0, hill, past)
    assert len(played.settings) == 8
    heights = [hill.height(settings) for settings in played.settings.values()]
    assert statistics.fmean(heights) > statistics.fmean(hill.height(cell) for cell in cells) + 5


def test_settings_to_try_first_are_and_the_baseline_is_judged_on_all_instances() -> None:
    hill = Hill(0)
    worst = min(({"a": a, "b": b} for a in (0, 11) for b in (0, 11)), key=hill.height)
    first = [{"a": 5, "b": b} for b in range(12)]
    played = play(made(enqueue=[*first, worst], baseline=worst), 0, hill)
    assert [played.settings[number] for number in range(13)] == [*first, worst]
    assert {number for number, _ in played.pairs[:13]} == set(range(13))
    assert {instance for number, instance in played.pairs if number == 12} == set(range(INSTANCES))


def test_settings_off_the_lattice_are_judged_too() -> None:
    played = play(made(trials=50, enqueue=[{"a": 2.5, "b": 3}]), 0, Hill(0))
    assert played.settings[0] == {"a": 2.5, "b": 3}
    assert len(played.settings) == 50


def test_cells_that_cannot_run_are_told_and_not_dealt() -> None:
    barred = set[tuple[int, int]]()

    class Heard(TPESampler):  # type: ignore[misc]  # Optuna is untyped to mypy here
        def sample_relative(self, study: object, trial: object, search_space: object) -> Mapping[str, object]:
            for each in study.get_trials(deepcopy=False):  # type: ignore[attr-defined]
                if any(violation > 0 for violation in each.constraints.values()):
                    barred.add((each.params["a"], each.params["b"]))
            return super().sample_relative(study, trial, search_space)  # type: ignore[no-any-return]

    class Half(Judge):
        def obstacle(self, swept: Settings) -> str | None:
            return "too far" if int(str(swept["a"])) < 6 else None

    played = play(made(trials=60, judge=Half({}, UNKNOWN), sampler=Heard(seed=0)), 0, Hill(0))
    assert all(int(str(settings["a"])) >= 6 for settings in played.settings.values())
    assert barred
    assert all(a < 6 for a, _ in barred)


@schedules
@pytest.mark.parametrize("lost", [{1, 9}, set(range(INSTANCES))])
def test_lost_instances_hold_nothing_up(seed: int, lost: set[int]) -> None:
    hill = Hill(seed)

    def judgement(settings: Settings, instance: int) -> Outcome:
        return Failed("lost", "a machine went away") if instance in lost else hill(settings, instance)

    assert len(play(made(trials=50), seed, judgement).settings) == 50


def test_a_space_is_tried_whole_where_the_budget_reaches_further() -> None:
    axes = space(a=list(range(8)), b=list(range(8)))
    played = play(made(trials=ALL, axes=axes, sampler=RandomSampler(seed=0)), 0, Hill(0))
    assert len(played.settings) == 64
    assert complete(played)


def test_many_outcomes_are_not_all_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_spaces.strategies.modelled.MOST_OUTCOMES", 100)
    hill = Hill(0)
    played = play(made(trials=80), 0, hill)
    assert len(played.settings) == 80
    best = max(complete(played), key=total)
    assert hill.highest - hill.height(best.settings) < 5


def test_nothing_is_dealt_to_nobody() -> None:
    strategy = made()
    nothing: list[Assignment] = []
    assert list(strategy.ask(0)) == nothing
    assert len(strategy.ask(3)) == 3


def test_trials_whose_pictures_were_all_lost_are_judged_after_all() -> None:
    past = [PastTrial(n, {"a": n % 12, "b": n // 12}) for n in range(64)]
    played = play(made(past, trials=64), 0, Hill(0), past)
    assert set(played.settings) == set(range(64))
    assert {instance for _, instance in played.pairs[:64]} == set(range(INSTANCES))
    assert complete(played, past)


def test_what_another_strategy_left_does_not_silence_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_spaces.strategies.modelled.MOST_WAITING", 32)
    hill = Hill(2)
    cells = [{"a": a, "b": b} for a in range(12) for b in range(0, 12, 3)]
    past = [PastTrial(n, cell, {0: hill(cell, 0)}, dealt_by={0: "halving"}) for n, cell in enumerate(cells)]
    played = play(made(past, trials=12), 0, hill, past)
    assert any(settings not in cells for settings in played.settings.values())


@schedules
def test_who_lost_a_picture_is_not_held_to_be_the_best(seed: int) -> None:
    hill, star = Hill(seed), {"a": 5, "b": 5}

    def judgement(settings: Settings, instance: int) -> Outcome:
        if settings == star and instance == 3:
            return Failed("lost", "a machine went away")
        return Scored({"clip_score": 40 * (settings == star) + clip_score_of(hill(settings, instance))})

    others = [
        trial for trial in complete(play(made(enqueue=[star]), seed, judgement)) if trial.settings != star
    ]
    assert len(others) > 10, "they race on, for none but them can win"
    assert hill.highest - hill.height(max(others, key=total).settings) < 3


def clip_score_of(outcome: Outcome) -> float:
    assert isinstance(outcome, Scored)
    return outcome.scores["clip_score"]


def test_of_many_outcomes_those_of_the_best_are_learnt_from_in_any_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("search_spaces.strategies.modelled.MOST_OUTCOMES", 100)
    for seed in range(2):
        past = play(made(trials=120), seed, Hill(seed)).past()
        assert sum(len(trial.outcomes) for trial in past) > 200
        assert list(made(past, trials=120).ask(100)) == []


def test_who_is_not_learnt_from_is_begun_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_spaces.strategies.modelled.MOST_OUTCOMES", 100)
    hill, axes = Hill(0), space(a=list(range(8)), b=list(range(8)))
    past = [
        PastTrial(n, cell, {i: hill(cell, i) for i in range(8)}, dealt_by=dict.fromkeys(range(8), "halving"))
        for n, cell in enumerate(axes.cell(index) for index in range(40))
    ]
    played = play(made(past, trials=ALL, axes=axes), 0, hill, past)
    assert len(played.settings) == 64


def test_who_has_left_the_lattice_and_is_complete_counts_for_nothing() -> None:
    hill = Hill(0)

    class Rounds(Judge):
        def candidate(self, swept: Settings) -> str:
            return super().candidate({name: round(float(str(value))) for name, value in swept.items()})

    axes, judge = space(a=list(range(8)), b=list(range(8))), Rounds({}, UNKNOWN)
    past = [
        PastTrial(n, cell, {i: hill(cell, i) for i in range(INSTANCES)})
        for n, cell in enumerate({"a": a + 0.25, "b": 3} for a in range(8))
    ]
    played = play(made(past, trials=ALL, axes=axes, judge=judge), 0, hill, past)
    assert len(played.settings) == 56
    assert list(made(played.past(before=past), ALL, axes, judge).ask(100)) == []
