"""The model's own settings are judged first, along with everybody, and to the end, whoever searches."""

import random
from collections import Counter

import pytest

from orchestrator.wiring import make_strategy
from search_spaces.requests import Scored, Settings
from search_spaces.strategies import Assignment, Report
from search_spaces.study_file import SearchSpec
from tests.orchestrator.studies import small_study

INSTANCES = 8
SEARCHES: dict[str, dict[str, object]] = {
    "grid": {},
    "a part of the grid": {"trials": 9},
    "halving": {"strategy": "halving"},
    "coordinate": {"strategy": "coordinate", "rounds": 2},
    "refine": {"strategy": "refine", "trials": 40},
    "random": {"strategy": "random", "trials": 20, "racing": "off"},
    "raced tpe": {"strategy": "tpe", "trials": 20},
    "modelled tpe": {"strategy": "tpe", "trials": 64},
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("free", [1, 5, 40])
def test_the_worst_baseline_is_judged_first_and_to_the_end(search: dict[str, object], free: int) -> None:
    guidance = tuple(1.5 + n / 4 for n in range(40 if search.get("trials") == 64 else 10))
    spec = SearchSpec.model_validate({**search, "enqueue": [{"guidance_scale": guidance[0]}]})
    study = small_study(seeds=INSTANCES, guidance=guidance, search=spec)
    strategy, chance = make_strategy(study, []), random.Random(0)
    own = study.judge.candidate(study.baseline)

    def is_baseline(settings: Settings) -> bool:
        return study.judge.candidate(settings) == own

    first: Assignment | None = None
    judged = Counter[int]()
    baseline = None
    while asked := strategy.ask(free):
        first = first or asked[0]
        reports = []
        for assignment in asked:
            trial = assignment.trial
            if is_baseline(trial.settings):
                baseline = trial.number
            value = float(str(trial.settings["guidance_scale"])) + chance.random()
            score = -1000.0 if is_baseline(trial.settings) else value
            judged[trial.number] += 1
            reports.append(Report(trial.number, assignment.instance, Scored({"clip_score": score})))
        dropped = strategy.report(reports)
        assert baseline not in dropped
        others = max((n for number, n in judged.items() if number != baseline), default=0)
        assert baseline is not None
        assert judged[baseline] >= min(others, INSTANCES) - free, "the baseline lags behind"
    assert first is not None
    assert is_baseline(first.trial.settings)
    assert baseline is not None
    assert judged[baseline] == INSTANCES
