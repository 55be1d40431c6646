"""The search space: named domains, a lazy walk over their lattice, and which cells draw the same picture."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import islice
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict

from search_spaces.domains import Choices, Domain, FloatRange, contains, landmarks, spellings
from search_spaces.models import ModelDescription
from search_spaces.requests import Settings, Value, content_hash
from search_spaces.texts import ALL_TEXTS, Texts, as_read


class Space(BaseModel):
    """Named domains in the study file's order; the last axis varies fastest."""

    model_config = ConfigDict(frozen=True)
    axes: dict[str, Domain]

    @property
    def continuous(self) -> list[str]:
        """The axes that have no lattice."""
        return [name for name, domain in self.axes.items() if domain.points() is None]

    @property
    def size(self) -> int | None:
        """Cells in the lattice; None where an axis is continuous."""
        if self.continuous:
            return None
        return math.prod(len(domain.points() or ()) for domain in self.axes.values())

    def cell(self, index: int) -> dict[str, Value]:
        """The cell at a position of the lattice, 0 ≤ index < size; needs no memory for the others.

        Raises ValueError where an axis is continuous, IndexError outside the lattice.
        """
        settings: dict[str, Value] = {}
        for name, domain in reversed(self.axes.items()):
            points = domain.points()
            if points is None:
                raise ValueError(f"{name} is continuous and has no lattice")
            index, position = divmod(index, len(points))
            settings[name] = points[position]
        if index:
            raise IndexError("outside the lattice")
        return dict(reversed(settings.items()))

    def lattice(self) -> Iterator[dict[str, Value]]:
        """Every cell, one at a time. Raises ValueError where an axis is continuous."""
        size = self.size
        if size is None:
            raise ValueError(f"{self.continuous[0]} is continuous and has no lattice")
        return (self.cell(index) for index in range(size))

    def by_cost(self) -> "Space":
        """The same space with the axes first, and so changing least, that are costly to change between images."""
        names = sorted(self.axes, key=lambda name: _COST.index(name) if name in _COST else _COST.index(""))
        return Space(axes={name: self.axes[name] for name in names})

    def shuffled(self, seed: int) -> Iterator[dict[str, Value]]:
        """Every cell once, in a seeded random order that takes no memory. Raises ValueError as `lattice` does."""
        size = self.size
        if size is None:
            raise ValueError(f"{self.continuous[0]} is continuous and has no lattice")
        return (self.cell(_shuffled(index, size, seed)) for index in range(size))


_COST = (
    "width",
    "height",
    "scheduler",
    "",
    "num_inference_steps",
    "strength",
    "guidance_scale",
    "negative_prompt",
)
"""Settings in the order in which one call can least serve unlike values of them; "" stands for all others."""


def _shuffled(index: int, size: int, seed: int) -> int:
    """The place of `index` in a seeded random order of 0 … `size` - 1.

    A Feistel network over the next even number of bits; what falls outside is sent through it again (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for turn in range(4):
            key = f"{seed} {turn} {right}".encode()
            digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())
            left, right = right, left ^ (digest & ((1 << half) - 1))
        index = left << half | right
        if index < size:
            return index


_WITH_GUIDANCE_ONLY = ("negative_prompt", "negative_prompt_2", "guidance_rescale")
"""Settings that change nothing where guidance is off."""

_CUT_OTHERWISE = ("denoising_start", "denoising_end")
"""SDXL's settings that take the place of `strength` or cut further steps; their rule is not known here."""


SCHEDULERS_WITH_ETA = ("DDIMScheduler", "TCDScheduler")
"""Schedulers whose `step` takes `eta`; to all others the pipelines do not give it."""


def guidance_is_on(settings: Settings, model: ModelDescription) -> bool:
    """Whether a request costs two UNet rows (with and without the prompt) or one."""
    off_at = model.family.guidance_off_at
    guidance = settings.get("guidance_scale")
    if off_at is None or not isinstance(guidance, int | float):
        return True
    return guidance > off_at and not model.guidance_embedded


def effective_steps(settings: Settings, model: ModelDescription) -> int | None:
    """The steps that are run after `strength` cut them; None where the family's rule is not known."""
    steps = settings.get("num_inference_steps")
    if not isinstance(steps, int) or any(settings.get(name) is not None for name in _CUT_OTHERWISE):
        return None
    strength = settings.get("strength")
    if model.task == "text-to-image" or not isinstance(strength, int | float):
        return steps
    if not model.family.strength_cuts_steps:
        return None
    return min(int(steps * strength), steps)


def why_it_cannot_run(settings: Settings, model: ModelDescription) -> str | None:
    """The reason why complete settings have no picture at all, or None."""
    if effective_steps(settings, model) == 0:
        steps, strength = settings["num_inference_steps"], settings["strength"]
        return f"num_inference_steps {steps} × strength {strength:g} leaves no effective step"
    scheduler, steps = settings.get("scheduler"), settings.get("num_inference_steps")
    fewest, most = model.step_limits.get(str(scheduler), (None, None))
    if isinstance(steps, int) and fewest is not None and steps < fewest:
        return f"{scheduler} needs at least {fewest} num_inference_steps with this model"
    if isinstance(steps, int) and most is not None and steps > most:
        return f"{scheduler} takes at most {most} num_inference_steps with this model"
    return None


def canonical_settings(
    settings: Settings, model: ModelDescription, texts: Texts = MappingProxyType({})
) -> dict[str, Value]:
    """Complete settings as their family sees them: two that draw the same picture become one.

    A scheduler's options count where they differ from the model's own. For Stable Diffusion: guidance at or
    below 1 is off, and the negative prompt with it; strength counts through the steps it leaves; a missing
    negative prompt is an empty one. Of `texts` that the model reads alike the first spelling counts.
    """
    canon = dict(settings)
    if model.family.none_is_empty and canon.get("negative_prompt", "") is None:
        canon["negative_prompt"] = ""
    canon |= {name: as_read(name, canon[name], texts) for name in ALL_TEXTS & canon.keys()}
    if (
        model.family.guidance_off_at is not None
        and canon.get("scheduler", "DDIMScheduler") not in SCHEDULERS_WITH_ETA
    ):
        canon.pop("eta", None)  # the pipelines give it only to a scheduler whose step takes it
    options = model.scheduler_options.get(str(canon.get("scheduler")), {})
    for name in model.scheduler_kinds.keys() & canon.keys():
        if name not in options or canon[name] is None or canon[name] == options[name]:
            del canon[name]  # not this scheduler's, or what the model's configuration says anyway
    if not guidance_is_on(canon, model):
        for name in _WITH_GUIDANCE_ONLY:
            canon.pop(name, None)
        if not model.guidance_embedded:
            canon["guidance_scale"] = model.family.guidance_off_at
    steps = effective_steps(canon, model)
    if model.task == "text-to-image":
        canon.pop("strength", None)
    elif steps is not None and "strength" in canon:
        canon["effective_steps"] = steps
        canon["strength"] = 1.0 if canon["strength"] == 1 else None
    return canon


MOST_TWINS = 1000
"""Values of an axis among which one is looked for that draws the same as a value that the axis has not."""

Exclusion = Mapping[str, Domain]
"""Settings with a value in each of these domains are not tried."""


def excludes(rule: Exclusion, settings: Settings) -> bool:
    """Whether a rule leaves out complete settings."""
    return all(contains(domain, settings.get(name)) for name, domain in rule.items())


@dataclass(frozen=True)
class Judge:
    """Tells a strategy which swept settings are the same candidate and which cannot run.

    Of `axes` the conditions count: where one does not hold, its setting is the model's default. No setting may
    depend on itself, through others. `texts` are read alike, and where all inputs have one `prompt`, it is what
    settings without one draw.
    """

    fixed: Settings
    model: ModelDescription
    axes: Mapping[str, Domain] = field(default_factory=dict)
    exclude: Sequence[Exclusion] = ()
    texts: Texts = field(default_factory=dict)
    prompt: str | None = None

    def complete(self, swept: Settings) -> dict[str, Value]:
        """Fixed and swept settings together, without what their conditions do not allow."""
        settings = {**self.fixed, **swept}
        for name in self._conditional:
            if not self.axes[name].applies(settings):
                settings[name] = self.model.keywords.get(name)
        return settings

    @cached_property
    def _conditional(self) -> list[str]:
        """The axes with a condition, each after those that its condition names."""
        depends = {name: domain.when.keys() & self.axes.keys() for name, domain in self.axes.items()}
        if not any(depends.values()):
            return [name for name, domain in self.axes.items() if domain.when]
        return [name for name in TopologicalSorter(depends).static_order() if self.axes[name].when]

    def candidate(self, swept: Settings) -> str:
        """Equal for settings that draw the same pictures."""
        settings = self.complete(swept)
        if "prompt" in settings and settings["prompt"] is None:
            settings["prompt"] = self.prompt
        return content_hash(canonical_settings(settings, self.model, self.texts))

    def as_filed(self, swept: Settings) -> dict[str, Value]:
        """Swept settings under the study file's own values, wherever it has such that draw the same pictures.

        The model's own settings, those of `search.enqueue` and those of an earlier file may say None where the file
        says "", and whoever looks for the file's values would miss them.
        """
        own = dict(swept)
        for name in [name for name in self.axes if name in own]:
            same = spellings(self.axes[name], own[name]) or self._twins(own, name)
            able = (value for value in same if self.obstacle({**own, name: value}) is None)
            if same:
                own[name] = same[0] if len(same) == 1 else next(able, same[0])
        return own

    def _twins(self, own: Settings, name: str) -> list[Value]:
        """An axis' values that draw the same as the one in some settings; those first that do so by themselves."""
        points = islice(self.axes[name].points() or (), MOST_TWINS)
        wanted, alone = self.candidate(own), canonical_settings({name: own[name]}, self.model)
        found = [value for value in points if self.candidate({**own, name: value}) == wanted]
        return sorted(found, key=lambda value: canonical_settings({name: value}, self.model) != alone)

    def obstacle(self, swept: Settings) -> str | None:
        """Why the settings cannot run or are not to be tried, or None."""
        settings = self.complete(swept)
        for number, rule in enumerate(self.exclude):
            if excludes(rule, settings):
                return f"exclude[{number}] leaves them out"
        return why_it_cannot_run(settings, self.model)

    def steps(self, swept: Settings) -> int | None:
        """Denoising steps that the settings run; None where their family's rule is not known."""
        return effective_steps(self.complete(swept), self.model)


def telling_cells(space: Space, judge: Judge) -> Iterator[dict[str, Value]]:
    """Few cells, of which one can run wherever the space has one that can: none needs to be walked for it.

    Of an axis' values those are alike that the same rules and conditions name and the same schedulers take; the
    largest number stands for them, since more steps and strength never leave fewer effective steps.
    """
    axes: dict[str, Domain] = {name: Choices(values=_telling(name, space, judge)) for name in space.axes}
    return Space(axes=axes).lattice()


def _telling(name: str, space: Space, judge: Judge) -> tuple[Value, ...]:
    """One value of each kind that an axis has."""
    domain, limits = space.axes[name], judge.model.step_limits
    rules = [rule[name] for rule in judge.exclude if name in rule]
    rules += [Choices(values=each.when[name]) for each in space.axes.values() if name in each.when]
    points = domain.points()
    if points is None:
        assert isinstance(domain, FloatRange)
        points = landmarks(domain, rules)
    found: dict[object, Value] = {}
    for value in points:
        kind: list[object] = [contains(rule, value) for rule in rules]
        if name == "scheduler":
            kind.append(limits.get(str(value)))
        elif name == "num_inference_steps" and isinstance(value, int):
            kind += [fewest <= value <= (most or value) for fewest, most in limits.values()]
        elif name in _CUT_OTHERWISE:
            kind.append(value is None)
        before = found.setdefault(tuple(kind), value)
        if isinstance(value, int | float) and (not isinstance(before, int | float) or value > before):
            found[tuple(kind)] = value
    return tuple(found.values())


@dataclass
class Survey:
    """What a walk over the lattice found, before anything is drawn; `cells` are the lattice's alone."""

    cells: int = 0
    candidates: list[dict[str, Value]] = field(default_factory=list)
    inert: dict[str, int] = field(default_factory=dict)  # sentence → cells
    infeasible: dict[str, int] = field(default_factory=dict)  # sentence → cells


def survey(space: Space, judge: Judge, before: Sequence[dict[str, Value]] = ()) -> Survey:
    """Walk the whole lattice: distinct candidates in order, inert twins and cells that cannot run.

    Settings that are tried `before` the lattice, and can run, are candidates too. Raises ValueError where an
    axis is continuous.
    """
    found = Survey()
    first: dict[str, dict[str, Value]] = {}
    for cell in before:
        if first.setdefault(judge.candidate(cell), cell) is cell:
            found.candidates.append(cell)
    enqueued = set(first)
    for cell in space.lattice():
        found.cells += 1
        obstacle = judge.obstacle(cell)
        if obstacle is not None:
            found.infeasible[obstacle] = found.infeasible.get(obstacle, 0) + 1
            continue
        twin = first.setdefault(judge.candidate(cell), cell)
        if twin is cell:
            found.candidates.append(cell)
        elif judge.candidate(cell) in enqueued:
            enqueued.discard(judge.candidate(cell))  # the same settings again, or their first twin
        else:
            sentence = why_twins(cell, twin, judge)
            found.inert[sentence] = found.inert.get(sentence, 0) + 1
    return found


def why_twins(cell: Settings, other: Settings, judge: Judge) -> str:
    """One sentence that says why two swept settings draw the same picture."""
    settings, twin, model = judge.complete(cell), judge.complete(other), judge.model
    differing = {name for name in settings if settings[name] != twin.get(name)}
    unused = {name for name in cell if cell[name] != other.get(name)} - differing
    reasons = [f"{_change_nothing(unused)} where 'when' does not hold"] if unused else []
    dead = differing & {"guidance_scale", *_WITH_GUIDANCE_ONLY}
    if dead:
        if model.guidance_embedded:
            reasons.append(f"guidance is embedded in this model's UNet, so {_change_nothing(dead)}")
        elif not guidance_is_on(settings, model):
            reasons.append(
                f"guidance_scale ≤ {model.family.guidance_off_at:g} switches guidance off, so "
                f"{_change_nothing(dead)} there"
            )
        elif any(settings[name] is None or twin[name] is None for name in dead):
            reasons.append("a missing negative_prompt is an empty one")
    texts = {
        name
        for name in ALL_TEXTS & differing
        if as_read(name, settings[name], judge.texts) == as_read(name, twin[name], judge.texts)
    }
    if texts:
        reasons.append(f"the model's tokenizer reads texts of {' and '.join(sorted(texts))} as one")
    elif "prompt" in differing:
        reasons.append("the prompt is that of all inputs")
    if "eta" in differing and settings.get("scheduler") not in SCHEDULERS_WITH_ETA:
        reasons.append(f"eta changes nothing with {settings.get('scheduler')}")
    options = sorted(differing & model.scheduler_kinds.keys())
    if options:
        names = " and ".join(options)
        reasons.append(f"{settings.get('scheduler')} has no {names}, or has it so by itself")
    if "strength" in differing:
        steps, run = settings["num_inference_steps"], effective_steps(settings, model)
        reasons.append(
            f"at {_steps(steps)}, strength {twin['strength']:g} and {settings['strength']:g} run the same "
            f"{_steps(run)}"
        )
    return "; ".join(reasons)


def _change_nothing(names: set[str]) -> str:
    return f"{' and '.join(sorted(names))} change{'s' if len(names) == 1 else ''} nothing"


def _steps(count: Value) -> str:
    return "1 step" if count == 1 else f"{count} steps"
