import time
from collections.abc import Sequence

from search_spaces.domains import IntRange
from search_spaces.requests import Failed, Scored
from search_spaces.space import Judge, Space, survey
from search_spaces.strategies import Assignment, PastTrial, Report
from search_spaces.strategies.grid import Grid
from search_spaces.strategies.trials import Trials
from tests.search_spaces.examples import INPAINTING, space

JUDGE = Judge({"negative_prompt": "", "strength": 1.0, "num_inference_steps": 10}, INPAINTING)
SPACE = space(num_inference_steps=[10, 1], strength=[1.0, 0.5], guidance_scale=[5, 0.5, 1])


def make(space: Space, instances: int, past: Sequence[PastTrial] = (), limit: int | None = None) -> Grid:
    return Grid(Trials(JUDGE, "clip_score", past), space.lattice(), instances, limit)


def deal(grid: Grid, free: int = 1000) -> list[Assignment]:
    return list(grid.ask(free))


def test_candidates_come_in_the_order_of_the_lattice_each_on_all_instances() -> None:
    dealt = deal(make(SPACE, 2))
    assert [(a.trial.number, a.instance) for a in dealt] == [(n, i) for n in range(6) for i in range(2)]
    assert [dict(a.trial.settings) for a in dealt[::2]] == survey(SPACE, JUDGE).candidates
    assert [dict(a.trial.settings) for a in dealt[::2]] == [
        {"num_inference_steps": 10, "strength": 1.0, "guidance_scale": 5},
        {"num_inference_steps": 10, "strength": 1.0, "guidance_scale": 0.5},
        {"num_inference_steps": 10, "strength": 0.5, "guidance_scale": 5},
        {"num_inference_steps": 10, "strength": 0.5, "guidance_scale": 0.5},
        {"num_inference_steps": 1, "strength": 1.0, "guidance_scale": 5},
        {"num_inference_steps": 1, "strength": 1.0, "guidance_scale": 0.5},
    ]


def test_the_order_does_not_depend_on_how_much_is_asked_for() -> None:
    grid = make(SPACE, 2)
    piecewise = [assignment for free in (1, 3, 2, 5, 100) for assignment in deal(grid, free)]
    assert piecewise == deal(make(SPACE, 2))


def test_a_huge_grid_is_dealt_lazily() -> None:
    huge = Space(axes={f"axis{number}": IntRange(low=1, high=10**4) for number in range(3)})
    begun = time.perf_counter()
    grid = make(huge, 3)
    assert [(a.trial.number, a.instance) for a in deal(grid, 4)] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert time.perf_counter() - begun < 2


def test_scores_change_nothing() -> None:
    grid, same = make(SPACE, 2), make(SPACE, 2)
    first = deal(grid, 3)
    assert grid.report([Report(a.trial.number, a.instance, Scored({"clip_score": 9.0})) for a in first]) == []
    assert grid.report([Report(0, 0, Failed("lost", "gone"))]) == []
    assert [*first, *deal(grid)] == deal(same)


def test_several_trials_are_dropped_at_once_and_in_order() -> None:
    grid = make(SPACE, 2)
    deal(grid, 7)
    failed = Failed("infeasible", "all black")
    reports = [
        Report(2, 0, failed),
        Report(0, 1, failed),
        Report(2, 1, failed),
        Report(1, 0, Failed("lost", "gone")),
    ]
    assert grid.report(reports) == [0, 2]
    assert [(a.trial.number, a.instance) for a in deal(grid)] == [(3, 1), (4, 0), (4, 1), (5, 0), (5, 1)]


def test_trials_of_an_earlier_session_are_dealt_in_the_order_of_the_lattice_too() -> None:
    past = [
        PastTrial(
            4, {"num_inference_steps": 10, "strength": 0.5, "guidance_scale": 1}, {1: Scored({"x": 1.0})}
        )
    ]
    dealt = deal(make(SPACE, 2, past))
    assert [a.trial.number for a in dealt] == [5, 5, 6, 6, 7, 7, 4, 8, 8, 9, 9]


def test_a_limit_counts_candidates_not_cells() -> None:
    twins = space(guidance_scale=[0.5, 1, 3, 5, 7])
    assert {a.trial.settings["guidance_scale"] for a in deal(make(twins, 2, limit=3))} == {0.5, 3, 5}
