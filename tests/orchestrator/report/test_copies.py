import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.copies import Seen, copies, copies_text, counted_once
from orchestrator.report.results import Results, TrialResult
from orchestrator.report.statistics import ranking, validation
from tests.search_spaces.examples import law


def results(scores: list[dict[int, float]], instances: int, fresh: int = 0) -> Results:
    """A study of as many trials, whose pictures are named after trial and instance; the scores are its validation."""
    return Results(
        study="copied",
        objective="clip_score",
        instances=instances,
        axes={"guidance_scale": range(len(scores))},
        trials=[
            TrialResult(
                number,
                {"guidance_scale": number},
                row,
                {},
                {i: f"{number} {i}" for i in row},
                {i: value for i, value in row.items() if i < fresh},
                {"preservation_psnr": {i: -value for i, value in row.items()}},
            )
            for number, row in enumerate(scores)
        ],
        twin_of=lambda _: None,
        inert=[],
        infeasible=[],
        baseline=0,
        fresh=fresh,
    )


def seen(found: Results) -> list[dict[int, Seen]]:
    return [
        {i: Seen(trial.images[i], {"clip_score": value}) for i, value in trial.scores.items()}
        for trial in found.trials
    ]


@given(
    scores=st.integers(1, 4).flatmap(
        lambda trials: st.lists(
            st.lists(st.integers(0, 10**6), min_size=trials, max_size=trials).map(tuple),
            min_size=1,
            max_size=5,
            unique=True,
        )
    ),
    times=st.lists(st.integers(1, 3), min_size=5, max_size=5),
    order=st.randoms(use_true_random=False),
    missing=st.booleans(),
)
@law
def test_copies_in_any_number_and_order_change_no_figure(
    scores: list[tuple[int, ...]], times: list[int], order: random.Random, missing: bool
) -> None:
    """`scores` has a column of scores, one for each trial, of each instance; `times` how often each is there."""
    copied = [place for place in range(len(scores)) for _ in range(times[place])]
    order.shuffle(copied)
    first = list(dict.fromkeys(copied))

    def study(columns: list[int]) -> Results:
        rows = [{i: scores[c][t] / 97 for i, c in enumerate(columns)} for t in range(len(scores[0]))]
        if missing and len(rows) > 1:
            rows[-1].pop(len(columns) - 1)  # one that has left a race is there in part
        return results(rows, len(columns), fresh=len(columns))

    def same(one: str, other: str) -> bool:
        (trial, mine), (also, theirs) = one.split(), other.split()
        assert trial == also, "pictures of one setting are compared"
        return copied[int(mine)] == copied[int(theirs)]

    whole = study(copied)
    found = copies(seen(whole), same)
    merged, once = counted_once(whole, found, found), study(first)
    assert merged.instances == merged.fresh == once.instances == len(first)
    assert [copied[number] for number in merged.study_numbers] == first
    if missing:
        return
    for mine, theirs in zip(ranking(merged), ranking(once), strict=True):
        assert (mine.rank, mine.trial.number, mine.tied) == (theirs.rank, theirs.trial.number, theirs.tied)
        for one, other in ((mine.score, theirs.score), (mine.behind, theirs.behind)):
            assert one.n == other.n
            assert one.mean == pytest.approx(other.mean)
            assert (one.half_width is None) == (other.half_width is None)
            assert math.isclose(one.half_width or 0, other.half_width or 0, rel_tol=1e-6, abs_tol=1e-9)
    assert [(v.trial.number, v.score.n) for v in validation(merged)] == [
        (v.trial.number, v.score.n) for v in validation(once)
    ]


ROWS = [{0: 50.0, 1: 40.0, 2: 50.0, 3: 50.0}, {0: 30.0, 1: 20.0, 2: 30.0001, 3: 30.0}]


def test_equal_scores_of_other_pictures_are_no_copies() -> None:
    assert copies(seen(results(ROWS, 4)), lambda one, other: "3" not in (one + other)[1:]) == {2: 0}
    assert copies(seen(results(ROWS, 4)), lambda *_: False) == {}
    assert copies([], lambda *_: True) == {}


def test_equal_pictures_judged_by_another_text_are_no_copies() -> None:
    judged_otherwise = [{0: 50.0, 1: 50.0}, {0: 30.0, 1: 31.0}]
    assert copies(seen(results(judged_otherwise, 2)), lambda *_: True) == {}


def test_a_score_of_any_copy_counts_and_a_failure_only_where_none_has_a_score() -> None:
    found = results(ROWS, 4)
    trials = [
        found.trials[0],
        TrialResult(1, {"guidance_scale": 1}, {1: 20.0, 3: 30.0}, {0: "lost", 2: "lost"}, {3: "1 3"}),
        TrialResult(2, {"guidance_scale": 2}, {}, {0: "lost", 1: "lost"}, {}),
    ]
    merged = counted_once(Results(**{**vars(found), "trials": trials}), {2: 0, 3: 0}, {})
    assert [trial.scores for trial in merged.trials] == [{0: 50.0, 1: 40.0}, {0: 30.0, 1: 20.0}, {}]
    assert [trial.failures for trial in merged.trials] == [{}, {}, {0: "lost", 1: "lost"}]
    assert merged.trials[1].images == {0: "1 3"}
    assert merged.drawn == 4 + 4 + 2


def test_it_is_said_once_which_instances_count_with_others() -> None:
    merged = counted_once(results(ROWS, 4), {2: 0, 3: 0}, {})
    assert list(copies_text(merged)) == [
        "2 of 4 instances draw the same pictures as another, to the same score, and count once with it: 2 and 3 as 0"
    ]
    assert not list(copies_text(results(ROWS, 4)))
