"""Which settings won, by how much, and how sure that is: pure functions of `Results`.

The intervals are those of `search_spaces.estimates`, for one pair each; they are not widened for the number of
settings tried, which is why a study validates its winner on fresh seeds.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from orchestrator.report.results import Results, TrialResult
from search_spaces.estimates import Estimate, doubted_gain, estimate
from search_spaces.requests import Settings, Value

STEPS = "num_inference_steps"


def complete_scores(trial: TrialResult, instances: int) -> tuple[float, ...] | None:
    """The scores of instances 0 … `instances` − 1; None where one failed or is missing.

    A mean over the survivors would flatter settings that fail on the hard instances, so it has none.
    """
    judged = trial.scores.keys() - trial.failures.keys()
    if instances < 1 or not judged.issuperset(range(instances)):
        return None
    return tuple(trial.scores[instance] for instance in range(instances))


def score_mean(trial: TrialResult, score: str, results: Results) -> float | None:
    """A trial's mean of any score over all instances; None where one lacks it."""
    values = _scores_of(trial, score, results)
    if trial.failures or not values.keys() >= set(range(results.instances)):
        return None
    return math.fsum(values[instance] for instance in range(results.instances)) / results.instances


def keeps_constraints(trial: TrialResult, results: Results) -> bool:
    """Whether a trial's means keep all bounds; a bound on what it has no mean of is broken."""
    means = [(bound, score_mean(trial, bound.score, results)) for bound in results.constraints]
    return all(mean is not None and bound.violation(mean) <= 0 for bound, mean in means)


def front(results: Results) -> frozenset[int]:
    """The ranked trials that no other is at least as good as in all objectives and better in one (Pareto)."""
    signs = {name: 1.0 if how == "maximize" else -1.0 for name, how in results.objectives.items()}
    values = {
        entry.trial.number: [
            signs[name] * mean
            for name in signs
            if (mean := score_mean(entry.trial, name, results)) is not None
        ]
        for entry in ranking(results)
    }
    whole = {number: found for number, found in values.items() if len(found) == len(signs)}

    def beaten(mine: list[float], other: list[float]) -> bool:
        return other != mine and all(theirs >= own for own, theirs in zip(mine, other, strict=True))

    return frozenset(
        number for number, mine in whole.items() if not any(beaten(mine, other) for other in whole.values())
    )


def trial_estimate(trial: TrialResult, instances: int) -> Estimate | None:
    """A trial's value: the estimate over all of its instances, or None where it has no mean."""
    scores = complete_scores(trial, instances)
    return None if scores is None else _over_pictures(dict(enumerate(scores)), trial)


def _over_pictures(values: Mapping[int, float], *trials: TrialResult) -> Estimate:
    """The mean of `values` by instance, with n and interval over what is independent: the pictures of `trials`.

    Instances for which one of the trials drew the same picture are one piece of evidence, whose value is their mean.
    """
    places = {instance: place for place, instance in enumerate(values)}
    pairs = [pair for trial in trials for pair in _of_one_picture(trial, places)]
    plain = estimate([*values.values()])
    if not pairs:
        return plain
    links = coo_array((np.ones(len(pairs)), tuple(zip(*pairs, strict=True))), shape=(len(values),) * 2)
    groups: dict[int, list[float]] = defaultdict(list)
    for group, value in zip(connected_components(links)[1], values.values(), strict=True):
        groups[group].append(value)
    pooled = estimate([math.fsum(each) / len(each) for each in groups.values()])
    return Estimate(plain.mean, pooled.half_width, pooled.n)


def _of_one_picture(trial: TrialResult, places: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """The places of instances whose picture is that of an earlier one, with that one's."""
    first: dict[str, int] = {}
    for instance, place in places.items():
        picture = trial.images.get(instance)
        if picture is not None and first.setdefault(picture, place) != place:
            yield first[picture], place


def _difference(first: TrialResult, second: TrialResult, instances: Iterable[int]) -> Estimate:
    """The paired estimate of first − second over some instances, which both have scores of."""
    return _over_pictures({i: first.scores[i] - second.scores[i] for i in instances}, first, second)


@dataclass(frozen=True)
class Ranked:
    """A complete trial's place: `rank` from 1 (the leader), its `score`, and leader − trial as `behind`.

    `tied`: the interval of `behind` includes 0, so the trial cannot be told apart from the leader. None
    where that cannot be tested, with one instance. The leader is tied with itself.
    """

    rank: int
    trial: TrialResult
    score: Estimate
    behind: Estimate
    tied: bool | None


def ranking(results: Results) -> tuple[Ranked, ...]:
    """The complete trials that keep the constraints, the largest mean first, of equal ones the lower number."""
    complete = [
        (trial, score)
        for trial in results.trials
        if (score := trial_estimate(trial, results.instances)) is not None
        and keeps_constraints(trial, results)
    ]
    complete.sort(key=lambda pair: (-pair[1].mean, pair[0].number))
    ranked = []
    for rank, (trial, score) in enumerate(complete, 1):
        behind = _difference(complete[0][0], trial, range(results.instances))
        tied = True if rank == 1 else behind.includes_zero
        ranked.append(Ranked(rank, trial, score, behind, tied))
    return tuple(ranked)


@dataclass(frozen=True)
class Nobody:
    """There are no best settings; `why` is a clause that says why not."""

    why: str


_FIRST = "settings of the largest mean on the instances that both have"


def best(results: Results, ranked: Sequence[Ranked]) -> Ranked | Nobody:
    """Who may be called the best: the leader of `ranked`, the results' `ranking`, or nobody.

    Only what is judged on all instances is ranked, and the baseline may not be so far yet. Then the leader is not
    called the best where the baseline is certainly above it (by the paired interval over the instances that both
    have, with several objectives in all of them), or above it as far as anybody knows, or awaited.
    """
    if not ranked:
        return Nobody("no setting is judged in full")
    leader = ranked[0]
    baseline = next((trial for trial in results.trials if trial.number == results.baseline), None)
    gains = None if baseline is None else _gains(leader.trial, baseline, results)
    if baseline is not None and complete_scores(baseline, results.instances) is not None:
        return leader  # which is not below the baseline, or that breaks a constraint
    if baseline is None or gains is None:
        return Nobody("the baseline is not judged yet") if results.awaits_baseline else leader
    certainly = all(gain.below_zero for gain in gains)
    if certainly and all(_trails(entry.trial, baseline, results) for entry in ranked):
        return Nobody(f"nothing judged{' so far' if results.is_partial else ''} beats the baseline")
    if certainly:
        return Nobody(f"the baseline certainly beats the {_FIRST}")
    if _trails(leader.trial, baseline, results) and not baseline.failures:
        return Nobody(f"the baseline is ahead of the {_FIRST}, and is not judged in full yet")
    return leader


def _gains(trial: TrialResult, baseline: TrialResult, results: Results) -> list[Estimate] | None:
    """In each objective, how far a trial is above the baseline on the instances that both have; None without any."""
    found = []
    for name, how in {results.objective: "maximize", **results.objectives}.items():
        mine, theirs = (_scores_of(one, name, results) for one in (trial, baseline))
        sign = 1 if how == "maximize" else -1
        found.append({i: sign * (mine[i] - theirs[i]) for i in sorted(mine.keys() & theirs.keys())})
    return [_over_pictures(gains, trial, baseline) for gains in found] if all(found) else None


def _scores_of(trial: TrialResult, name: str, results: Results) -> Mapping[int, float]:
    return trial.scores if name == results.objective else trial.measured.get(name, {})


def _trails(trial: TrialResult, baseline: TrialResult, results: Results) -> bool:
    """Whether a trial is no better than the baseline in any objective, on what both have."""
    gains = _gains(trial, baseline, results)
    return gains is not None and all(gain.mean <= 0 for gain in gains)


def shared_difference(first: TrialResult, second: TrialResult) -> Estimate | None:
    """The paired estimate of first − second over the instances that both have scores of; None without one."""
    shared = sorted(first.scores.keys() & second.scores.keys())
    return _difference(first, second, shared) if shared else None


@dataclass(frozen=True)
class Left:
    """Trials without a mean that were judged on some instances, and on none in vain: they left early, or wait.

    `certain` are worse than the leader by a paired interval wholly below it; `for_budget` left because the
    rule said so, and nobody knows, `at_looks` of them before any picture was finished.
    """

    certain: int
    for_budget: int
    at_looks: int = 0


def left_early(results: Results, leader: TrialResult) -> Left:
    """The trials that left a search early, by how sure it is that they are worse than the leader."""
    certain = budget = at_looks = 0
    for trial in results.trials:
        if trial.failures or complete_scores(trial, results.instances) is not None:
            continue
        behind = shared_difference(leader, trial)
        if behind is not None and behind.above_zero:
            certain += 1
        elif behind is not None or trial.looks:
            budget += 1
            at_looks += behind is None
    return Left(certain, budget, at_looks)


@dataclass(frozen=True)
class Validated:
    """A trial on all fresh instances: its score, and its doubted gain over the baseline's, if that is validated."""

    trial: TrialResult
    score: Estimate
    gain: Estimate | None


def validation(results: Results) -> tuple[Validated, ...]:
    """The trials that have scores on every fresh instance, the largest mean first; then by number."""
    fresh = range(results.fresh)
    scores = {
        trial.number: tuple(trial.validation[i] for i in fresh)
        for trial in results.trials
        if results.fresh and trial.validation.keys() >= set(fresh)
    }
    baseline = scores.get(results.baseline) if results.baseline is not None else None
    found = [
        Validated(
            trial,
            estimate(scores[trial.number]),
            doubted_gain(scores[trial.number], baseline)
            if baseline is not None and trial.number != results.baseline
            else None,
        )
        for trial in results.trials
        if trial.number in scores
    ]
    return tuple(sorted(found, key=lambda item: (-item.score.mean, item.trial.number)))


@dataclass(frozen=True)
class TrialLookup:
    """Finds the trial that answers for settings: their own, or the twin that drew the same pixels.

    Where two trials have the same settings, the better ranked one answers.
    """

    results: Results
    by_settings: Mapping[frozenset[tuple[str, Value]], TrialResult]
    by_number: Mapping[int, TrialResult]

    def own(self, settings: Settings) -> TrialResult | None:
        """The trial with exactly these settings (7 and 7.0 are one), or None."""
        return self.by_settings.get(frozenset(settings.items()))

    def twin(self, settings: Settings) -> TrialResult | None:
        """The trial that drew the same pixels under other settings, or None."""
        number = self.results.twin_of(settings)
        return None if number is None else self.by_number.get(number)


def trial_lookup(results: Results, ranked: Sequence[Ranked]) -> TrialLookup:
    """The lookup over all trials of the results; `ranked` is their `ranking`."""
    by_settings: dict[frozenset[tuple[str, Value]], TrialResult] = {}
    for trial in [*(entry.trial for entry in ranked), *results.trials]:
        by_settings.setdefault(frozenset(trial.settings.items()), trial)
    return TrialLookup(results, by_settings, {trial.number: trial for trial in results.trials})


@dataclass(frozen=True)
class StepValue:
    """One number of steps: its score, and the paired gain over the number before it (None for the first)."""

    steps: float
    score: Estimate
    gain: Estimate | None


@dataclass(frozen=True)
class StepsVerdict:
    """Where steps stop paying, at the leader's other settings `at`; `values` ascend, two or more.

    `enough` is the smallest number of steps that no larger number beats by an interval wholly above 0;
    None where that cannot be tested, with one instance.
    """

    at: Settings
    values: tuple[StepValue, ...]
    enough: float | None


def where_steps_stop_paying(results: Results) -> StepsVerdict | None:
    """The verdict on `num_inference_steps`.

    None where steps are not swept, or fewer than two numbers of steps are complete beside the leader.
    """
    ranked = ranking(results)
    if STEPS not in results.axes or not ranked:
        return None
    leader = ranked[0].trial.settings
    lookup = trial_lookup(results, ranked)
    judged: dict[float, TrialResult] = {}
    for steps in sorted({steps for steps in results.axes[STEPS] if isinstance(steps, int | float)}):
        settings = {**leader, STEPS: steps}
        trial = lookup.own(settings) or lookup.twin(settings)
        if trial is not None and complete_scores(trial, results.instances) is not None:
            judged[steps] = trial
    if len(judged) < 2:
        return None
    gains = {
        steps: _difference(judged[steps], judged[before], range(results.instances))
        for before, steps in pairwise(judged)
    }
    values = [
        StepValue(steps, score, gains.get(steps))
        for steps, trial in judged.items()
        if (score := trial_estimate(trial, results.instances)) is not None
    ]
    at = {name: value for name, value in leader.items() if name != STEPS}
    enough = _enough(judged, range(results.instances)) if results.instances > 1 else None
    return StepsVerdict(at, tuple(values), enough)


def _enough(judged: Mapping[float, TrialResult], instances: range) -> float:
    """The smallest key that no larger one beats; keys ascend, so that the last is beaten by none."""
    counts = list(judged)
    return next(
        steps
        for place, steps in enumerate(counts)
        if not any(
            _difference(judged[more], judged[steps], instances).above_zero for more in counts[place + 1 :]
        )
    )


@dataclass(frozen=True)
class AxisEffect:
    """What one axis does to the score, the other settings being equal.

    `effects` maps a value to the mean of (trial's mean − mean of its group), over groups of complete trials
    that differ in this axis alone: on a full grid the marginal mean less the grand mean. `spread` is the
    largest effect less the smallest, in the score's unit; 0 where no two trials can be so compared.
    """

    axis: str
    effects: Mapping[Value, float]
    spread: float


def axis_effect(results: Results, axis: str) -> AxisEffect:
    """The paired effect of one axis. Raises KeyError for a setting that is not swept."""
    order = {value: place for place, value in enumerate(results.axes[axis])}
    groups: dict[frozenset[tuple[str, Value]], dict[Value, float]] = defaultdict(dict)
    for entry in ranking(results):
        settings = entry.trial.settings
        others = frozenset((name, value) for name, value in settings.items() if name != axis)
        groups[others].setdefault(settings[axis], entry.score.mean)
    deviations: dict[Value, list[float]] = defaultdict(list)
    for group in groups.values():
        centre = math.fsum(group.values()) / len(group)
        if len(group) > 1:
            for value, mean in group.items():
                deviations[value].append(mean - centre)
    effects = {
        value: math.fsum(deviations[value]) / len(deviations[value])
        for value in sorted(deviations, key=lambda value: order.get(value, len(order)))
    }
    spread = max(effects.values()) - min(effects.values()) if effects else 0.0
    return AxisEffect(axis, effects, spread)


def axes_by_effect(results: Results) -> tuple[str, ...]:
    """The swept settings, the largest spread first: the order in which they deserve a picture's axes.

    Of equal spreads: an axis of several values before one of a single value, numbers before words, then
    the study file's order.
    """

    def place(name: str) -> tuple[float, bool, bool]:
        values = results.axes[name]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return (-axis_effect(results, name).spread, len(values) < 2, not numeric)

    return tuple(sorted(results.axes, key=place))


def decimals(estimates: Sequence[Estimate]) -> int:
    """How many decimals, 0 … 6, are worth printing: two significant digits of the typical half-width.

    Without half-widths: four significant digits of the largest mean. One number for a whole table, so that
    its columns line up.
    """
    widths = sorted(entry.half_width for entry in estimates if entry.half_width)
    largest = max((abs(entry.mean) for entry in estimates), default=0.0)
    if widths:
        digits = 1 - math.floor(math.log10(widths[len(widths) // 2]))
    elif largest > 0:
        digits = 3 - math.floor(math.log10(largest))
    else:
        digits = 0
    return min(max(digits, 0), 6)


def estimate_text(value: Estimate, places: int, signed: bool = False) -> str:
    """52.1 ± 3.2 with `places` decimals; without an interval the mean alone."""
    mean = f"{value.mean:+.{places}f}" if signed else f"{value.mean:.{places}f}"
    return mean if value.half_width is None else f"{mean} ± {value.half_width:.{places}f}"
