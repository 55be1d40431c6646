"""What a study wants: scores to be large or small, and bounds that a trial has to keep."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from search_spaces.errors import did_you_mean, shown

Direction = Literal["maximize", "minimize"]

CLIP_SCORE = "clip_score"
GPU_SECONDS = "gpu_seconds"
PRESERVATION = "preservation_psnr"
SCORES = (CLIP_SCORE, GPU_SECONDS, PRESERVATION)
"""What an objective or a constraint may name.

`gpu_seconds` is a worker's time for one image, on a CPU too; `preservation_psnr` is how alike picture and input
image are outside the mask, in dB.
"""


@dataclass(frozen=True)
class Constraint:
    """A bound, itself allowed, on a trial's mean of a score; `score` is a name in `Scored.scores`."""

    score: str
    op: Literal[">=", "<="]
    bound: float

    def violation(self, value: float) -> float:
        """How far a mean is beyond the bound, in units of the score; zero or less where it is kept."""
        return self.bound - value if self.op == ">=" else value - self.bound

    def excludes(self, other: "Constraint") -> bool:
        """Whether this is a lower bound above the upper bound that another sets on the same score."""
        sides = self.score, self.op, other.op
        return sides == (other.score, ">=", "<=") and self.bound > other.bound

    def __str__(self) -> str:
        return f"{self.score} {self.op} {self.bound:g}"


def keeps(constraints: Sequence[Constraint], scores: Sequence[Mapping[str, float]]) -> bool:
    """Whether the means of some instances' scores keep all bounds; a bound on what one of them lacks is broken."""
    for bound in constraints:
        values = [each[bound.score] for each in scores if bound.score in each]
        if len(values) < len(scores) or bound.violation(math.fsum(values) / len(values)) > 0:
            return False
    return True


def parse_constraint(text: str) -> Constraint:
    """`gpu_seconds <= 2.5` as a constraint. Raises ValueError with the sentence for the reader."""
    found = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
    if found is None:
        raise ValueError(f"{shown(text)} is not a bound on a score, such as 'gpu_seconds <= 2.5'")
    score, op, bound = found.groups()
    if score not in SCORES:
        raise ValueError(f"{shown(text)} bounds an unknown score {score!r}{did_you_mean(score, SCORES)}")
    return Constraint(score, ">=" if op == ">=" else "<=", float(bound))
