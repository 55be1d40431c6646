"""What a study will cost, found without generating anything."""

import json
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from orchestrator.comet_plan import images_for_comet, seconds_to_sync
from orchestrator.study_folder import local_root
from orchestrator.tracking.comet.content import MOST_IMAGES
from orchestrator.tracking.comet.pace import MOST_PER_HOUR, MOST_PER_MINUTE
from search_spaces.domains import Domain, FloatRange
from search_spaces.estimates import FEWEST_FOR_A_GAIN
from search_spaces.requests import Settings, Value
from search_spaces.space import Survey, guidance_is_on, survey
from search_spaces.strategies import PastTrial
from search_spaces.strategies.halving import pictures
from search_spaces.strategies.racing import smallest_significant
from search_spaces.strategies.staged import coarse
from search_spaces.strategies.trials import as_filed
from search_spaces.strategies.validation import VALIDATED
from search_spaces.study import SURVEY_LIMIT, Study
from workers.atomic_files import write_file

BYTES_PER_PIXEL = 1.6
"""Of a PNG of a natural picture, about; renders of flat colours take less."""


@dataclass(frozen=True)
class Plan:
    """What running a study would take; None stands for unknown.

    `trials`, `images` and `unet_calls` count the whole study, `to_generate` what the catalog lacks of it.
    For a sampler they are the most that it can need. `cells` and the survey are of the lattice. `tried` counts
    the trials of earlier sessions that the search goes on with, `left_out` the settings that a budget keeps out
    of a race.
    """

    study: Study
    cells: int | None
    trials: int
    images: int
    to_generate: int
    unet_calls: int | None
    disk_bytes: int | None
    seconds: float | None
    inert: Mapping[str, int]
    infeasible: Mapping[str, int]
    warnings: tuple[str, ...]
    tried: int = 0
    left_out: int = 0


def surveyed(study: Study) -> Survey | None:
    """A walk over the study's lattice; None where it has none or is too large to walk for a question."""
    size = study.space.size
    if size is None or size > SURVEY_LIMIT:
        return None
    return survey(study.space, study.judge, study.first)


def calls_of(study: Study, candidates: Sequence[Settings]) -> list[int | None]:
    """The UNet calls of one picture of each; None where the family's rule is not known."""
    from workers.pipelines.loading import unet_calls

    return [unet_calls(study.model, study.judge.complete(settings)) for settings in candidates]


def admitted(study: Study, candidates: Sequence[Settings]) -> int:
    """How many of some candidates, from the first on, a race can bring to its end within the study's budget.

    That is of images and UNet calls, which can be counted beforehand, whoever stays to the end; one at least.
    """
    images, calls = study.budget.images, study.budget.unet_calls
    costs = calls_of(study, candidates) if calls is not None else []
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        calls = None
    ends = [0] * len(candidates) if calls is None else most_race_costs(known, study)
    fits = (
        entrants
        for entrants in range(len(candidates), 1, -1)
        if (images is None or _race_pictures(study, entrants) <= images)
        and (calls is None or ends[entrants - 1] <= calls)
    )
    return next(fits, 1)


def most_race_costs(costs: Sequence[int], study: Study) -> list[int]:
    """What a race costs at most, of the first candidate, the first two and so on, by what a picture of each costs.

    Those that cost most may be those that stay.
    """
    sums, peaks = accumulate(costs), accumulate(costs, max)
    return [
        first + most * max(0, _race_pictures(study, entrants) - entrants)
        for entrants, (first, most) in enumerate(zip(sums, peaks, strict=True), 1)
    ]


def _race_pictures(study: Study, entrants: int) -> int:
    return pictures(entrants, len(study.instances), study.search.keep, always=1)


def trial_count(study: Study, found: Survey | None, raced: Sequence[Settings] | None = None) -> int:
    """The trials that a study deals, at most; `raced` are the entrants of its race."""
    if raced is not None:
        return len(raced)
    search, candidates = study.search, len(found.candidates) if found else study.space.size
    if search.strategy == "coordinate":
        values = sum(len(domain.points() or ()) for domain in study.space.axes.values())
        return search.rounds * values + len(study.first)
    if search.trials is None:
        assert candidates is not None  # what needs no number of trials has a lattice
        return candidates
    if search.strategy == "refine" or not candidates:  # it leaves the lattice
        return search.trials
    return min(search.trials, candidates) if found else search.trials


def image_count(study: Study, trials: int) -> int:
    """The pictures of a study, at most: of the search without its early looks, and of the validation."""
    drawn = searched_images(study, trials)
    if study.budget.images is not None:
        drawn = min(drawn, study.budget.images)  # the validation is outside the search's budget
    return drawn + min(trials, VALIDATED + 1) * len(study.validation_instances)


def searched_images(study: Study, trials: int) -> int:
    """The pictures of a study's search whatever its budget lasts for, at most, without its early looks."""
    races = study.search.strategy == "halving"
    return _race_pictures(study, trials) if races else trials * len(study.instances)


def of_this_space(past: Sequence[PastTrial], study: Study, found: Survey | None) -> list[PastTrial]:
    """Past trials that the study, as its file is now, would deal too, under the file's own settings."""
    candidates = {study.judge.candidate(settings) for settings in (found.candidates if found else ())}
    return [
        trial
        for trial in as_filed(past, study.judge)
        if study.judge.candidate(trial.settings) in candidates or study.holds(trial.settings)
    ]


def gone_on_with(past: Sequence[PastTrial], study: Study) -> list[PastTrial]:
    """What the study's search goes on with, of past trials of this space: what another search did does not count.

    A grid of every cell, and a sampler, take what is decided from whoever decided it.
    """
    search, instances = study.search, len(study.instances)
    if search.samples:
        from search_spaces.strategies import optuna_sampler

        assert search.trials is not None
        first = {study.judge.candidate(settings) for settings in study.first}
        enqueued = {trial.number for trial in past if study.judge.candidate(trial.settings) in first}
        chosen = optuna_sampler.gone_on_with(past, instances, search.trials, enqueued)
        return [trial for trial in past if trial.number in chosen]
    whole = search.strategy == "grid" and search.trials is None
    own = [
        replace(
            trial,
            outcomes={
                instance: outcome
                for instance, outcome in trial.outcomes.items()
                if whole or trial.dealt_by.get(instance, search.strategy) == search.strategy
            },
        )
        for trial in past
    ]
    return [trial for trial in own if trial.outcomes]


def judged(past: Sequence[PastTrial], study: Study) -> int:
    """How many of the study's instances past trials were judged on."""
    return sum(instance < len(study.instances) for trial in past for instance in trial.outcomes)


def of_other_searches(past: Sequence[PastTrial], study: Study) -> int:
    """How many instances the study's search does not go on with, of past trials of this space."""
    return judged(past, study) - judged(gone_on_with(past, study), study)


def make_plan(
    study: Study,
    known: Container[str],
    past: Sequence[PastTrial],
    root: str,
    warnings: tuple[str, ...],
    race: Callable[[Survey | None], Sequence[Settings] | None] = lambda _: None,
) -> Plan:
    """The plan of a resolved study.

    `known` holds the image_ids that the catalog has, `past` the trials that the study has had; `race` gives the
    entrants of its race, where it is one, from the survey of its lattice.
    """
    found = surveyed(study)
    raced = race(found)
    trials = trial_count(study, found, raced)
    sample = raced or (found.candidates if found else [])
    calls = calls_of(study, sample)
    known_calls = [count for count in calls if count is not None]
    images = image_count(study, trials)
    counted = bool(sample) and len(known_calls) == len(calls)
    total_calls = _cost(known_calls, study, images, raced is not None) if counted else None
    # A sampler's trials are not known beforehand: only those that it has had are.
    all_of_them = study.search.strategy == "grid" and study.search.trials is None
    there = of_this_space(past, study, found)
    own = gone_on_with(there, study)
    fresh = len(study.validation_instances)
    have = _already_there(study, sample, known) if all_of_them else judged(own, study)
    have += sum(instance < fresh for trial in there for instance in trial.validation)
    to_generate = max(0, images - have)
    rows = [
        count * (2 if guidance_is_on(study.judge.complete(settings), study.model) else 1)
        for settings, count in zip(sample, calls, strict=True)
        if count is not None
    ]
    total_rows = _cost(rows, study, images, raced is not None) if counted else None
    rate = remembered_rate(study, root)
    seconds = None
    if rate is not None and total_rows is not None and images:
        seconds = total_rows * to_generate / images / rate
    return Plan(
        study=study,
        cells=study.space.size,
        trials=trials,
        images=images,
        to_generate=to_generate,
        unet_calls=total_calls,
        disk_bytes=_disk_bytes(study, to_generate),
        seconds=seconds,
        inert=found.inert if found else {},
        infeasible=found.infeasible if found else {},
        warnings=warnings,
        tried=len(own),
        left_out=len(found.candidates) - trials if found and raced and study.search.trials is None else 0,
    )


def _cost(costs: Sequence[int], study: Study, images: int, races: bool) -> int:
    """What a study costs, by what a picture of each of its candidates does; of a race, at most."""
    if not races:
        return round(sum(costs) * images / len(costs))
    validated = min(len(costs), VALIDATED + 1) * len(study.validation_instances)
    return most_race_costs(costs, study)[-1] + max(costs) * validated


def _already_there(study: Study, candidates: Sequence[Settings], known: Container[str]) -> int:
    return sum(
        study.request(settings, instance).image_id in known
        for settings in candidates
        for instance in study.instances
    )


def _disk_bytes(study: Study, images: int) -> int | None:
    width, height = study.settings.get("width"), study.settings.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        return None
    return int(images * width * height * BYTES_PER_PIXEL)


def remembered_rate(study: Study, root: str) -> float | None:
    """UNet rows per second of the last run of this model, dtype and size under this root; None before the first."""
    rate = _rates(root).get(_rate_key(study))
    return rate if isinstance(rate, float) and rate > 0 else None


def remember_rate(study: Study, root: str, rows_per_second: float) -> None:
    """Keep a run's rate for the plans to come."""
    path = _rates_file(root)
    rates = {**_rates(root), _rate_key(study): rows_per_second}
    write_file(path, json.dumps(rates, indent=2).encode())


def _rates(root: str) -> dict[str, object]:
    try:
        rates = json.loads(_rates_file(root).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return rates if isinstance(rates, dict) else {}


def _rates_file(root: str) -> Path:
    return local_root(root) / "rates.json"


def _rate_key(study: Study) -> str:
    from workers.device import device_name

    size = f"{study.settings.get('width')}x{study.settings.get('height')}"
    return f"{study.model.identity} {study.model.dtype} {size} on {device_name()}"


def plan_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """The plan as (label, sentence) pairs, for a terminal."""
    study, model = plan.study, plan.study.model
    size = f"{study.settings.get('width')}×{study.settings.get('height')}"
    yield (
        "study",
        f"{study.name}: {model.name} ({model.task}), {size}, {model.dtype}, {_of(study.settings, 'scheduler')}",
    )
    if model.family.slots:
        yield "served by", f"the slot engine, over {model.pipeline}: {_engine_text(study)}"
    else:
        yield "served by", f"whole calls of {model.pipeline}"
    yield "model", model.identity
    yield from _artifact_lines(study)
    fixed = {name: value for name, value in study.settings.items() if value is not None}
    yield (
        "fixed",
        ", ".join(f"{name} {value}" for name, value in fixed.items() if name not in ("width", "height")),
    )
    yield "defaults", f"from {model.defaults_source}"
    for name, domain in study.space.axes.items():
        yield "sweep", f"{name}: {domain_text(domain)}"
    wanted = ", ".join(f"{name} ({how})" for name, how in study.objectives.items())
    yield ("objectives" if len(study.objectives) > 1 else "objective"), f"{wanted}, {study.scorer.id}"
    for bound in study.constraints:
        yield "constraint", f"{bound}, of a setting's mean"
    cells = "a continuous space" if plan.cells is None else f"{plan.cells:,} cells"
    yield "search", f"{study.search.strategy} over {cells}: {_up_to(study)}{plan.trials:,} trials"
    instances = len(study.instances)
    there = f"of which {plan.images - plan.to_generate:,} are in the catalog"
    if study.search.strategy == "halving":
        full = plan.trials * instances
        yield "images", f"{_up_to(study)}{plan.images:,}, of {full:,} that the grid would take, {there}"
        if plan.left_out:
            chosen = "drawn at random"
            if plan.trials <= len(study.first):
                chosen = "those of search.enqueue and the model's own, so that nothing is searched: give more"
            yield (
                "note",
                f"the budget lasts for a race of {plan.trials:,} of {plan.trials + plan.left_out:,} settings, "
                + chosen,
            )
    else:
        yield (
            "images",
            f"{plan.trials:,} trials × {instances} instances = {plan.images:,}, {there}"
            if not (study.search.validation or study.budget.images)
            else f"{_up_to(study)}{plan.images:,} of {plan.trials:,} trials × {instances} instances, {there}",
        )
    yield from (("note", sentence) for sentence in _ends_with_nothing(study))
    raced = pictures(plan.trials, instances, always=1)
    races = len(study.objectives) == 1 and not study.constraints
    races &= study.search.trials is not None or (plan.cells or 0) <= SURVEY_LIMIT
    if races and study.search.strategy == "grid" and raced <= plan.trials * instances / 2:
        yield (
            "advice",
            f"search: {{strategy: halving}} would race the same settings with about {raced:,} images",
        )
    if study.search.samples and plan.tried >= plan.trials:
        yield (
            "note",
            f"{plan.tried:,} trials of earlier sessions count, so that nothing new is tried: "
            "let search.trials be more",
        )
    fewest = smallest_significant()
    one_objective = len(study.objectives) == 1  # several are not raced
    if instances == 1:
        yield (
            "note",
            "with 1 instance nothing has an interval, so that nobody can tell settings apart; "
            "2 are the fewest that could",
        )
    if study.search.samples and study.search.racing == "auto" and one_objective and instances < fewest:
        yield (
            "note",
            f"with {instances} instance{'s' if instances > 1 else ''} no trial can be told to have lost, so all "
            f"are judged in full; "
            f"{fewest} are the fewest that could tell",
        )
    if study.search.validation:
        fresh = len(study.validation_instances)
        yield "validation", f"the best {VALIDATED} and the baseline on {fresh} fresh instances, counted above"
        if fresh < FEWEST_FOR_A_GAIN:
            yield (
                "note",
                f"on {fresh} fresh instance{'s' if fresh > 1 else ''} no gain can be told from none; "
                f"{FEWEST_FOR_A_GAIN} are the fewest that could, and 16 are a good number",
            )
    for limit, value in study.budget.model_dump().items():
        if value is not None:
            yield "budget", f"{limit} {value:,}"
    most = _up_to(study) if study.search.strategy == "halving" else ""
    yield "UNet calls", "unknown" if plan.unet_calls is None else f"{most}{plan.unet_calls:,}"
    yield "disk", "unknown" if plan.disk_bytes is None else f"about {_bytes(plan.disk_bytes)}"
    yield (
        "time",
        (
            "unknown before the first longer run of this model here, and for continuous spaces"
            if plan.seconds is None
            else f"about {duration(plan.seconds)}"
        ),
    )
    yield from _comet_lines(plan)
    for sentence, count in plan.inert.items():
        yield "inert", f"{sentence} ({count:,} cells are twins and not run)"
    for sentence, count in plan.infeasible.items():
        yield "cannot run", f"{sentence} ({count:,} cells)"
    for warning in plan.warnings:
        yield "note", warning


def _artifact_lines(study: Study) -> Iterator[tuple[str, str]]:
    """Which version of a Comet artifact each input is of."""
    for item in study.inputs:
        for key, artifact in (("image", item.image_artifact), ("mask", item.mask_artifact)):
            if artifact is not None:
                yield key, f"{artifact.asked} is version {artifact.version}, SHA-256 {artifact.sha256[:12]}…"


def _comet_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """What goes to Comet, whether Comet takes that much, and how long a sync of it takes at least."""
    study = plan.study
    if study.comet.mode == "off":
        return
    sent = images_for_comet(study, plan.images, plan.trials)
    thinned = "" if study.comet.images == "all" else f" of {plan.images:,}, by comet.images"
    seconds = seconds_to_sync(min(sent, MOST_IMAGES), plan.trials)
    quotas = f"{MOST_PER_MINUTE:,} images a minute and {MOST_PER_HOUR:,} submissions an hour"
    wait = f"at least {duration(seconds)} for a sync" if seconds else "no wait in a sync"
    yield "Comet", f"{_up_to(study)}{sent:,} images{thinned}; by its quotas, {quotas}, {wait}"
    if sent > MOST_IMAGES:
        yield (
            "note",
            f"Comet keeps {MOST_IMAGES:,} images of an experiment, and {sent:,} may come; "
            f"comet: {{images: best_per_trial}} or {{images: {{top_k: {MOST_IMAGES}}}}} sends fewer",
        )


def _ends_with_nothing(study: Study) -> Iterator[str]:
    """A sentence where a budget may end a race, or a staged search's first, before anybody has come to its end."""
    budget, search, instances = study.budget, study.search, len(study.instances)
    counted = budget.images is not None or budget.unet_calls is not None
    if search.strategy == "halving" and (budget.seconds or budget.gpu_seconds):
        yield "a budget of seconds may end a race before any setting is judged in full" + (
            "" if counted else "; by one of images or unet_calls it races as many as it can bring to the end"
        )
    if search.strategy not in ("coordinate", "refine") or not budget.is_set:
        return
    axes = study.space.axes
    turn = next(iter([*search.order, *axes]))
    if search.strategy == "coordinate":
        entrants = len(study.first) + len(axes[turn].points() or ())
    else:
        entrants = len(study.first) + math.prod(len(coarse(domain)) for domain in axes.values())
    needed = pictures(entrants, instances, search.keep)
    others = budget.model_dump(exclude={"images", "trials"}).values()
    if any(limit is not None for limit in others) or needed > (budget.images or needed):
        yield (
            f"the budget may end the first race, of up to {entrants:,} settings and {needed:,} images, before any "
            "setting is judged in full"
        )


def _engine_text(study: Study) -> str:
    engine = study.engine
    rows = "as many UNet rows as are fastest" if engine.rows == "auto" else f"{engine.rows} UNet rows"
    extras = [*(["compiled"] if engine.compile else []), f"offload {engine.offload}"]
    return ", ".join([rows, *(extras if engine.offload != "none" else extras[:-1])])


def domain_text(domain: Domain) -> str:
    """A domain for a reader, shortened."""
    points = domain.points()
    if isinstance(domain, FloatRange) and points is None:
        return f"{domain.low:g} to {domain.high:g}"
    values = [_short(value) for value in points or ()]
    return ", ".join(values if len(values) <= 12 else [*values[:6], "…", values[-1]])


def _up_to(study: Study) -> str:
    return "up to " if study.search.strategy != "grid" or study.budget.is_set else ""


def _of(settings: Settings, name: str) -> str:
    return str(settings.get(name, "swept"))


def _short(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else "none" if value is None else f"{value:g}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for a reader: `40 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
