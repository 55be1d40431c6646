from collections.abc import Sequence

import pytest

from search_spaces.objectives import Constraint, keeps

LEAST, MOST = Constraint("psnr", ">=", 25.0), Constraint("seconds", "<=", 2.0)


@pytest.mark.parametrize(
    ("psnr", "seconds", "kept"),
    [
        ([20.0, 30.0], [2.0, 2.0], True),  # means at the bounds
        ([20.0, 29.0], [1.0, 1.0], False),
        ([30.0, 30.0], [1.0, 3.5], False),
        ([30.0, 30.0], [1.0], False),  # one instance lacks it
    ],
)
def test_means_keep_all_bounds(psnr: Sequence[float], seconds: Sequence[float], kept: bool) -> None:
    scores = [
        {"psnr": value, **({"seconds": seconds[place]} if place < len(seconds) else {})}
        for place, value in enumerate(psnr)
    ]
    assert keeps([LEAST, MOST], scores) is kept
    assert keeps([], scores)
