"""What a study found, as plain data: the one input of every report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from orchestrator.report.values import Wording
from orchestrator.session import Ended, Extent
from search_spaces.objectives import Constraint, Direction
from search_spaces.requests import Settings


@dataclass(frozen=True)
class TrialResult:
    """One trial's settings and what its instances gave.

    `scores` maps instance → objective value, finite, larger is better; `failures` maps instance → reason,
    for instances whose image is infeasible or lost. No instance is in both; one in neither has not been
    judged. `images` maps instance → image_id, where there is a picture. `validation` maps fresh instances,
    which the search never saw, to their scores. `measured` maps a measure, such as gpu_seconds, to its values
    by instance. `looks` counts the early looks at it, which are no results.
    """

    number: int
    settings: Settings
    scores: Mapping[int, float]
    failures: Mapping[int, str]
    images: Mapping[int, str]
    validation: Mapping[int, float] = field(default_factory=dict)
    measured: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    looks: int = 0


@dataclass(frozen=True)
class Results:
    """All trials of a study over its shared instances, which are numbered 0 … `instances` − 1.

    `axes` maps each swept setting to its values in the study file's order (for a range: the values tried,
    ascending). `twin_of(settings)` gives the number of the trial that drew the same pixels, or None.
    `inert` and `infeasible` are finished sentences. `baseline` is the number of the trial with the model's own
    settings, None where there is none; `fresh` counts the validation's instances. With several `objectives`,
    what counts is the front of them; a trial whose means break `constraints` is not ranked. `gone` counts the
    trials of earlier sessions whose values the study no longer has. `ended` is None where nobody wrote down how the
    last session ended (by which `signal`, where it was stopped), `extent` where nobody knows how far it was to go;
    `has_baseline` says that the study judges the model's own settings sooner or later. Where instances turned out
    to be `copies` of others (the study's number → that of the one that counts), `numbers` has the study's number of
    each that counts, and `drawn` how many pictures there are with the copies'. `lost` counts the scored instances
    that the catalog had when the study was last run, and has no more.
    """

    study: str
    objective: str
    instances: int
    axes: Mapping[str, Sequence[object]]
    trials: Sequence[TrialResult]
    twin_of: Callable[[Settings], int | None]
    inert: Sequence[str]
    infeasible: Sequence[str]
    baseline: int | None = None
    fresh: int = 0
    objectives: Mapping[str, Direction] = field(default_factory=dict)
    constraints: Sequence[Constraint] = ()
    gone: int = 0
    ended: Ended | None = None
    extent: Extent | None = None
    signal: str = "Ctrl-C"
    has_baseline: bool = False
    numbers: Sequence[int] = ()
    copies: Mapping[int, int] = field(default_factory=dict)
    drawn: int | None = None
    lost: int = 0

    @property
    def study_numbers(self) -> Sequence[int]:
        """The study's own number of each instance."""
        return self.numbers or range(self.instances)

    @cached_property
    def wording(self) -> Wording:
        """How the values of the swept settings are written, so that different ones can be told apart."""
        return Wording(self.axes)

    @property
    def is_partial(self) -> bool:
        """Whether these are known to be the results of a part of the study.

        A session that was cut off when all was judged already, as one that found nothing to do, leaves them whole.
        """
        return self.ended not in (None, "finished") and not self._has_all

    @property
    def _has_all(self) -> bool:
        """Whether as many settings as there are to be are through, where that is known, and nothing follows."""
        if self.extent is None or self.extent.at_most or self.fresh:
            return False
        judged = (len(trial.scores.keys() | trial.failures.keys()) for trial in self.trials)
        return sum(count >= self.instances for count in judged) >= self.extent.settings

    @property
    def awaits_baseline(self) -> bool:
        """Whether the study goes on, and has not judged the model's own settings on all instances yet."""
        if not (self.is_partial and self.has_baseline):
            return False
        own = next((trial for trial in self.trials if trial.number == self.baseline), None)
        return own is None or len(own.scores.keys() | own.failures.keys()) < self.instances
