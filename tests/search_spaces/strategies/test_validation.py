"""Who is validated, and on what."""

from collections.abc import Mapping

from search_spaces.objectives import Constraint
from search_spaces.requests import Failed, Outcome, Scored
from search_spaces.strategies import PastTrial, Report
from search_spaces.strategies.validation import VALIDATED, Validation

BLACK = Failed("infeasible", "all black")


def trial(
    number: int,
    *scores: float,
    seconds: float = 1.0,
    black: bool = False,
    validation: Mapping[int, Outcome] | None = None,
) -> PastTrial:
    outcomes: dict[int, Outcome] = {
        instance: Scored({"clip_score": score, "gpu_seconds": seconds})
        for instance, score in enumerate(scores)
    }
    if black:
        outcomes[0] = BLACK
    return PastTrial(number, {"guidance_scale": number}, outcomes, validation=validation or {})


def validation(past: list[PastTrial], *constraints: Constraint, fresh: int = 2) -> Validation:
    return Validation(past, "clip_score", 2, fresh, lambda s: s["guidance_scale"] == 9, constraints)


def dealt(strategy: Validation) -> list[tuple[int, int]]:
    assignments = strategy.ask(100)
    assert {a.role for a in assignments} <= {"validate"}
    return [(a.trial.number, a.instance) for a in assignments]


PAST = [
    trial(0, 5, 5),
    trial(1, 9, 9),
    trial(2, 99),  # not judged on all
    trial(3, 7, 7),
    trial(4, 6, 6),
    trial(5, 8, 8, seconds=50.0),
    trial(9, 1),  # the baseline, which left early
]


def test_the_best_complete_trials_and_the_baseline_each_instance_in_turn() -> None:
    assert VALIDATED == 3
    assert dealt(validation(PAST)) == [(n, i) for i in range(2) for n in (1, 3, 5, 9)]


def test_what_breaks_a_constraint_is_not_among_the_best() -> None:
    found = dealt(validation(PAST, Constraint("gpu_seconds", "<=", 10)))
    assert {number for number, _ in found} == {1, 3, 4, 9}


def test_what_was_validated_before_is_not_dealt_again() -> None:
    done: dict[int, Outcome] = {0: Scored({"clip_score": 8.0}), 1: Failed("lost", "gone")}
    past = [trial(1, 9, 9, validation=done), trial(3, 7, 7)]
    assert dealt(validation(past)) == [(3, 0), (3, 1)]


def test_an_infeasible_trial_is_dropped_once_and_not_dealt_again() -> None:
    strategy = validation(PAST)
    first = strategy.ask(4)
    assert [a.trial.number for a in first] == [1, 3, 5, 9]
    assert list(strategy.report([Report(3, 0, BLACK, "validate")])) == [3]
    assert list(strategy.report([Report(3, 1, BLACK, "validate")])) == []
    assert [a.trial.number for a in strategy.ask(100)] == [1, 5, 9]


def test_an_infeasible_baseline_is_not_validated() -> None:
    past = [trial(1, 9, 9), trial(9, black=True)]
    assert {number for number, _ in dealt(validation(past))} == {1}


def test_a_search_without_a_complete_trial_validates_the_baseline_alone() -> None:
    assert dealt(validation([trial(2, 3), trial(9, 1)])) == [(9, 0), (9, 1)]
    assert dealt(validation([])) == []
