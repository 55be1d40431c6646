"""Who leads while a study runs is whom the report would name."""

import random

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.leading import Leading
from orchestrator.report.results import Results, TrialResult
from orchestrator.report.statistics import Nobody, Ranked, best, ranking
from search_spaces.requests import Failed, Scored, Settings, Trial
from tests.orchestrator.studies import small_study

STUDY = small_study(seeds=3)
SETTINGS: list[Settings] = [
    STUDY.baseline,
    *({"guidance_scale": g, "negative_prompt": ""} for g in (1, 3, 5)),
]


def named(found: Ranked | Nobody) -> int | str:
    return found.why if isinstance(found, Nobody) else found.trial.number


@given(
    st.lists(st.lists(st.integers(-4, 4).map(float), min_size=3, max_size=3), min_size=4, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from([None, (0, 1), (2, 0)]),
)
def test_at_any_moment_it_is_whom_the_report_names(
    table: list[list[float]], chance: random.Random, failing: tuple[int, int] | None
) -> None:
    leading = Leading(STUDY)
    pairs = [(number, instance) for number in range(4) for instance in range(3)]
    chance.shuffle(pairs)
    scores: dict[int, dict[int, float]] = {number: {} for number in range(4)}
    failures: dict[int, dict[int, str]] = {number: {} for number in range(4)}
    for number, instance in pairs:
        trial = Trial(number, SETTINGS[number])
        if (number, instance) == failing:
            failures[number][instance] = "black"
            leading.hear(trial, instance, Failed("infeasible", "black"))
        else:
            scores[number][instance] = table[number][instance]
            leading.hear(trial, instance, Scored({"clip_score": table[number][instance]}))
            if len(scores[number]) == 3:
                leading.complete(trial, {i: {"clip_score": value} for i, value in scores[number].items()})
        begun = [n for n in range(4) if scores[n] or failures[n]]
        results = Results(
            "small",
            "clip_score",
            3,
            {},
            [TrialResult(n, SETTINGS[n], dict(scores[n]), dict(failures[n]), {}) for n in begun],
            lambda _: None,
            [],
            [],
            baseline=0 if 0 in begun else None,
            ended="running",
            has_baseline=True,
        )
        assert named(leading.best()) == named(best(results, ranking(results)))
