"""What a study will cost, found without generating anything."""

import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.study_folder import local_root
from search_spaces.domains import Domain, FloatRange
from search_spaces.requests import Settings, Value
from search_spaces.space import Survey, guidance_is_on, survey
from search_spaces.strategies.halving import pictures
from search_spaces.strategies.racing import smallest_significant
from search_spaces.strategies.validation import VALIDATED
from search_spaces.study import SURVEY_LIMIT, Study

BYTES_PER_PIXEL = 1.6
"""Of a PNG of a natural picture, about; renders of flat colours take less."""


@dataclass(frozen=True)
class Plan:
    """What running a study would take; None stands for unknown.

    `trials`, `images` and `unet_calls` count the whole study, `to_generate` what the catalog lacks of it.
    For a sampler they are the most that it can need. `cells` and the survey are of the lattice.
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


def surveyed(study: Study) -> Survey | None:
    """A walk over the study's lattice; None where it has none or is too large to walk for a question."""
    size = study.space.size
    if size is None or size > SURVEY_LIMIT:
        return None
    return survey(study.space, study.judge, study.first)


def trial_count(study: Study, found: Survey | None) -> int:
    """The trials that a study deals, at most."""
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
    instances, search = len(study.instances), study.search
    drawn = pictures(trials, instances, search.keep) if search.strategy == "halving" else trials * instances
    if study.budget.images is not None:
        drawn = min(drawn, study.budget.images)  # the validation is outside the search's budget
    return drawn + min(trials, VALIDATED + 1) * len(study.validation_instances)


def make_plan(study: Study, known: Container[str], judged: int, root: str, warnings: tuple[str, ...]) -> Plan:
    """The plan of a resolved study.

    `known` holds the image_ids that the catalog has; `judged` counts the images that the study has had.
    """
    from workers.pipelines.loading import unet_calls

    found = surveyed(study)
    trials = trial_count(study, found)
    sample = found.candidates if found else []
    calls = [unet_calls(study.model, study.judge.complete(settings)) for settings in sample]
    known_calls = [count for count in calls if count is not None]
    images = image_count(study, trials)
    each = images / len(sample) if sample else 0.0  # of every candidate, on average
    counted = bool(sample) and len(known_calls) == len(calls)
    total_calls = round(sum(known_calls) * each) if counted else None
    # A sampler's trials are not known beforehand: only those that it has had are.
    all_of_them = study.search.strategy == "grid" and study.search.trials is None
    have = _already_there(study, sample, known) if all_of_them else judged
    to_generate = max(0, images - have)
    rows = [
        count * (2 if guidance_is_on(study.judge.complete(settings), study.model) else 1)
        for settings, count in zip(sample, calls, strict=True)
        if count is not None
    ]
    total_rows = sum(rows) * each if counted else None
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
    )


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
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(rates, indent=2), encoding="utf-8")
    aside.rename(path)


def _rates(root: str) -> dict[str, object]:
    try:
        rates = json.loads(_rates_file(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
    fixed = {name: value for name, value in study.settings.items() if value is not None}
    yield (
        "fixed",
        ", ".join(f"{name} {value}" for name, value in fixed.items() if name not in ("width", "height")),
    )
    yield "defaults", f"from {model.defaults_source}"
    for name, domain in study.space.axes.items():
        yield "sweep", f"{name}: {_domain_text(domain)}"
    cells = "a continuous space" if plan.cells is None else f"{plan.cells:,} cells"
    yield "search", f"{study.search.strategy} over {cells}: {_up_to(study)}{plan.trials:,} trials"
    instances = len(study.instances)
    there = f"of which {plan.images - plan.to_generate:,} are in the catalog"
    if study.search.strategy == "halving":
        full = plan.trials * instances
        yield "images", f"{_up_to(study)}{plan.images:,}, of {full:,} that the grid would take, {there}"
    else:
        yield (
            "images",
            f"{plan.trials:,} trials × {instances} instances = {plan.images:,}, {there}"
            if not (study.search.validation or study.budget.images)
            else f"{_up_to(study)}{plan.images:,} of {plan.trials:,} trials × {instances} instances, {there}",
        )
    raced = pictures(plan.trials, instances)
    races = len(study.objectives) == 1 and not study.constraints
    if races and study.search.strategy == "grid" and raced <= plan.trials * instances / 2:
        yield (
            "advice",
            f"search: {{strategy: halving}} would race the same settings with about {raced:,} images",
        )
    fewest = smallest_significant()
    if study.search.samples and study.search.racing == "auto" and instances < fewest:
        yield (
            "note",
            f"with {instances} instances no trial can be told to have lost, so all are judged in full; "
            f"{fewest} are the fewest that could tell",
        )
    if study.search.validation:
        fresh = len(study.validation_instances)
        yield "validation", f"the best {VALIDATED} and the baseline on {fresh} fresh instances, counted above"
    for limit, value in study.budget.model_dump().items():
        if value is not None:
            yield "budget", f"{limit} {value:,}"
    yield "UNet calls", "unknown" if plan.unet_calls is None else f"{plan.unet_calls:,}"
    yield "disk", "unknown" if plan.disk_bytes is None else f"about {_bytes(plan.disk_bytes)}"
    yield (
        "time",
        (
            "unknown before the first longer run of this model here, and for continuous spaces"
            if plan.seconds is None
            else f"about {duration(plan.seconds)}"
        ),
    )
    for sentence, count in plan.inert.items():
        yield "inert", f"{sentence} ({count:,} cells are twins and not run)"
    for sentence, count in plan.infeasible.items():
        yield "cannot run", f"{sentence} ({count:,} cells)"
    for warning in plan.warnings:
        yield "note", warning


def _engine_text(study: Study) -> str:
    engine = study.engine
    rows = "as many UNet rows as are fastest" if engine.rows == "auto" else f"{engine.rows} UNet rows"
    extras = [*(["compiled"] if engine.compile else []), f"offload {engine.offload}"]
    return ", ".join([rows, *(extras if engine.offload != "none" else extras[:-1])])


def _domain_text(domain: Domain) -> str:
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
