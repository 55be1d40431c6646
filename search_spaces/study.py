"""A study: one run of a study file with every default resolved, as it is pinned in the study's folder."""

import math
import random
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from typing import Literal

from pydantic import BaseModel, ConfigDict

from search_spaces.domains import Choices, Domain, FloatRange, IntRange, contains, offers, spans
from search_spaces.errors import InputError, did_you_mean, shown
from search_spaces.models import PIXEL_SCORERS, Kind, ModelDescription, ScorerDescription, is_of_kind
from search_spaces.objectives import Constraint, Direction, parse_constraint
from search_spaces.requests import ImageRequest, Instance, Role, Settings, Value, content_hash
from search_spaces.space import Judge, Space, canonical_settings, excludes, telling_cells
from search_spaces.strategies.staged import coarse, coarse_cells
from search_spaces.study_file import BudgetSpec, CometSpec, EngineSpec, SearchSpec, StudySpec
from search_spaces.texts import ALL_TEXTS, Texts

PIXEL_REVISION = 1
"""Raised whenever our own code changes the pixels of an unchanged request."""

VALIDATION_SEED = 20_261_122
"""Of the seeds that no search sees; the same for all studies, so that their pictures are shared."""

MOST_COARSE = 10_000
"""Coarse settings of a refinement beyond which their twins are not looked for: half a second."""

SURVEY_LIMIT = 1_000_000
"""Cells beyond which a space is not walked before anything is asked for."""


class PinnedArtifact(BaseModel):
    """Where an input came from in Comet: the file as `asked` for, its artifact's version, its bytes' SHA-256."""

    model_config = ConfigDict(frozen=True)
    asked: str
    version: str
    sha256: str


class PinnedInput(BaseModel):
    """One input with its pixels named by hash; `image_name` and `mask_name` are for the reader.

    `image_artifact` and `mask_artifact` say which version of a Comet artifact they are of, where they are.
    """

    model_config = ConfigDict(frozen=True)
    prompt: str
    score_text: str
    image: str | None = None
    mask: str | None = None
    image_name: str | None = None
    mask_name: str | None = None
    image_artifact: PinnedArtifact | None = None
    mask_artifact: PinnedArtifact | None = None


class Study(BaseModel):
    """Everything that decides a study's pictures and scores, resolved at its creation.

    `settings` are the fixed ones, complete: every setting of the catalog that is not an axis of `space`.
    `token` is drawn at random at the study's creation and tells it from all others of its name. `texts` are its
    texts, each with the spelling that the identity of pictures is made of (`search_spaces.texts`); None where each
    is its own, as in studies of earlier versions.
    """

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    name: str
    token: str
    model: ModelDescription
    scorer: ScorerDescription
    inputs: tuple[PinnedInput, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Value]
    space: Space
    search: SearchSpec
    objective: str
    comet: CometSpec
    engine: EngineSpec = EngineSpec()  # type: ignore[call-arg]
    image_format: Literal["png", "webp", "jpeg"] = "png"
    exclude: tuple[dict[str, Domain], ...] = ()
    directions: dict[str, Direction] = {}
    constraints: tuple[Constraint, ...] = ()
    budget: BudgetSpec = BudgetSpec()  # type: ignore[call-arg]
    texts: dict[str, str] | None = None

    @property
    def objectives(self) -> dict[str, Direction]:
        """The scores that count and whether they are to be large or small; the first is the report's."""
        return self.directions or {self.objective: "maximize"}

    @property
    def measures(self) -> frozenset[str]:
        """The scores that count beside the first objective: judged from pixels, or measured as an image is made."""
        return frozenset({*self.objectives, *(bound.score for bound in self.constraints)}) - {self.objective}

    @property
    def scorers(self) -> dict[str, ScorerDescription]:
        """What judges the pictures, by the score that it gives."""
        pixels = {name: each for name, each in PIXEL_SCORERS.items() if name in self.measures}
        return {self.objective: self.scorer, **pixels}

    @property
    def judge(self) -> Judge:
        """Tells twins and cells that cannot run or are left out."""
        prompts = {self._as_read(item.prompt) for item in self.inputs}
        prompt = next(iter(prompts)) if len(prompts) == 1 else None
        return Judge(self.settings, self.model, self.space.axes, self.exclude, self.texts or {}, prompt)

    def _as_read(self, prompt: str) -> str:
        return (self.texts or {}).get(prompt, prompt)

    @property
    def baseline(self) -> dict[str, Value]:
        """The swept settings as the model itself has them: what every other trial is compared with.

        Where the model has no default (a prompt, a scheduler's option), None; under the file's own values where it
        has such.
        """
        defaults = {**self.model.keywords, "scheduler": self.model.scheduler}
        return self.judge.as_filed({name: defaults.get(name) for name in self.space.axes})

    @property
    def first(self) -> list[dict[str, Value]]:
        """Swept settings that are tried before all others: the model's defaults, and then what the file says."""
        judge, baseline = self.judge, self.baseline
        named = [judge.as_filed({**baseline, **settings}) for settings in self.search.enqueue]
        return [settings for settings in [baseline, *named] if judge.obstacle(settings) is None]

    def holds(self, swept: Settings) -> bool:
        """Whether the study, as its file is now, may try some swept settings of an earlier session.

        Values may have left an axis since, or been excluded. A refinement leaves the lattice between its ends.
        """
        judge = self.judge
        settings = judge.complete(swept)
        if judge.obstacle(swept) is not None:
            return False
        if judge.candidate(swept) in {judge.candidate(first) for first in self.first}:
            return True
        closer = self.search.strategy == "refine"
        return all(
            name in swept and (offers(domain, swept[name]) or (closer and spans(domain, swept[name])))
            for name, domain in self.space.axes.items()
            if domain.applies(settings)
        )

    @property
    def example(self) -> dict[str, Value]:
        """Swept settings that can run, of the largest values where those can."""
        last: dict[str, Value] = {}
        for name, domain in self.space.axes.items():
            points = domain.points()
            numbers = isinstance(domain, FloatRange | IntRange) or name in ("width", "height")
            last[name] = domain.high if isinstance(domain, FloatRange) else (points or ())[-1]
            if points and numbers:
                last[name] = max(points, key=lambda value: value or 0)
        judge = self.judge
        cells = telling_cells(self.space, judge)
        return next((cell for cell in (last, *cells) if judge.obstacle(cell) is None), last)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The shared instances in dealt order: each seed over all inputs before the next seed."""
        return self._over(self.seeds)

    @property
    def validation_instances(self) -> tuple[Instance, ...]:
        """Instances of fresh seeds, which no search sees: the best few are tried on them at the end."""
        drawn = random.Random(VALIDATION_SEED)
        fresh: list[int] = []
        while len(fresh) < self.search.validation:
            seed = drawn.randrange(2**31, 2**32)
            if seed not in map(as_drawn, self.seeds) and seed not in fresh:
                fresh.append(seed)
        return self._over(fresh)

    def instance(self, role: Role, number: int) -> Instance:
        """The instance of an assignment. Raises IndexError for a number that the study does not have."""
        return (self.validation_instances if role == "validate" else self.instances)[number]

    def _over(self, seeds: Sequence[int]) -> tuple[Instance, ...]:
        pairs = [(seed, item) for seed in seeds for item in self.inputs]
        return tuple(
            Instance(number, item.prompt, item.score_text, seed, item.image, item.mask)
            for number, (seed, item) in enumerate(pairs)
        )

    def request(self, swept: Settings, instance: Instance) -> ImageRequest:
        """The image request of settings on an instance."""
        settings = self.judge.complete(swept)
        prompt = settings.pop("prompt", None)
        prompt = instance.prompt if prompt is None else str(prompt)
        identity = {
            "model": self.model.identity,
            "task": self.model.task,
            "pipeline": self.model.pipeline,
            "dtype": self.model.dtype,
            "diffusers": self.model.diffusers,
            "pixel_revision": PIXEL_REVISION,
            "settings": canonical_settings(settings, self.model, self.texts or {}),
            "prompt": self._as_read(prompt),
            "seed": instance.seed,
            "image": instance.image,
            "mask": instance.mask,
        }
        return ImageRequest(
            content_hash(identity),
            settings,
            prompt,
            instance.seed,
            instance.image,
            instance.mask,
            instance.score_text,
        )


def as_drawn(seed: int) -> int:
    """The seed that torch's generator on the CPU makes of one: it reads the lower 32 bits alone."""
    return seed % 2**32


def texts_of(spec: StudySpec) -> list[str]:
    """Every text of a study file that its model reads, each once: prompts, then the settings that are texts."""
    found: list[Value] = [item.prompt for item in spec.inputs]
    for name in sorted(ALL_TEXTS):
        found += (*_values(spec, name), *(settings.get(name) for settings in spec.search.enqueue))
    return list(dict.fromkeys(text for text in found if isinstance(text, str)))


def pin(
    spec: StudySpec,
    model: ModelDescription,
    scorer: ScorerDescription,
    inputs: Sequence[PinnedInput],
    token: str,
    source: str,
    texts: Texts | None = None,
) -> Study:
    """Resolve a study file against its model. Raises InputError for settings that the model does not take."""
    for section, names in (("settings", spec.settings), ("space", spec.space)):
        for name in names:
            if name not in {*model.keywords, *model.scheduler_kinds, "scheduler", "prompt"}:
                known = [*model.keywords, *model.scheduler_kinds, "scheduler"]
                raise InputError(
                    f"{source}: {section}.{name}: {model.pipeline} takes no setting {name!r}"
                    f"{did_you_mean(name, known)}"
                )
    if "prompt" in spec.settings:
        raise InputError(f"{source}: settings.prompt: a fixed prompt belongs to each of 'inputs'")
    _check_kinds(spec, model, source)
    _check_schedulers(spec, model, source)
    _check_scheduler_options(spec, model, source)
    _check_sizes(spec, model, source)
    _check_engine(spec, model, source)
    defaults: dict[str, Value] = {**model.keywords, "scheduler": model.scheduler}
    fixed = {name: value for name, value in {**defaults, **spec.settings}.items() if name not in spec.space}
    study = Study(
        name=spec.study,
        token=token,
        model=model,
        scorer=scorer,
        inputs=tuple(inputs),
        seeds=spec.seed_list,
        settings=fixed,
        space=Space(axes=spec.space),
        search=spec.search,
        objective=spec.objective,
        comet=spec.comet,
        engine=spec.engine,
        image_format=spec.image_format,
        exclude=tuple(spec.exclude),
        directions={name: how for entry in spec.objectives for name, how in entry.items()},
        constraints=tuple(map(parse_constraint, spec.constraints)),
        budget=spec.budget,
        texts=None if texts is None else dict(texts),
    )
    _check_conditions(study, source)
    _check_search(study, source)
    _check_something_can_run(study, source)
    _check_branches(study, source)
    return study


def _values(spec: StudySpec, name: str) -> Sequence[Value]:
    """Every value that the file names for a setting; of a range its points."""
    enqueued = [settings[name] for settings in spec.search.enqueue if name in settings]
    if name in spec.settings:
        return (spec.settings[name], *enqueued)
    return (*((spec.space[name].points() or ()) if name in spec.space else ()), *enqueued)


_KIND_NAMES: Mapping[Kind, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "null": "null",
}


def _check_kinds(spec: StudySpec, model: ModelDescription, source: str) -> None:
    """Every value is of a type that the pipeline's own signature gives its keyword."""
    for section, names in (("settings", spec.settings), ("space", spec.space)):
        for name in names:
            kinds = model.kinds.get(name) or model.scheduler_kinds.get(name, ())
            unfit = [value for value in _examples(spec, name) if not is_of_kind(value, kinds)]
            if kinds and unfit:
                raise InputError(
                    f"{source}: {section}.{name}: {shown(unfit[0])} does not fit; "
                    f"{_taker(name, model)} takes {' or '.join(_KIND_NAMES[kind] for kind in kinds)}"
                )


def _taker(name: str, model: ModelDescription) -> str:
    """Who it is that takes a setting, for a sentence."""
    return model.pipeline if name in model.kinds else "a scheduler"


def _examples(spec: StudySpec, name: str) -> Sequence[Value]:
    """A setting's values; of a range, floats or integers as it gives them."""
    match spec.space.get(name):
        case FloatRange() | IntRange() as found:
            return (found.low,)
    return _values(spec, name)


def _check_schedulers(spec: StudySpec, model: ModelDescription, source: str) -> None:
    for value in _values(spec, "scheduler"):
        if value not in model.schedulers:
            raise InputError(
                f"{source}: scheduler: {model.pipeline} with this model does not take "
                f"{value!r}{did_you_mean(str(value), model.schedulers)}"
            )


def _check_scheduler_options(spec: StudySpec, model: ModelDescription, source: str) -> None:
    """Every option is one of a scheduler that the study uses."""
    used = [str(name) for name in _values(spec, "scheduler") or (model.scheduler,)]
    for name in {**spec.settings, **spec.space}:
        if name in model.scheduler_kinds and not any(name in model.scheduler_options[each] for each in used):
            able = [each for each, options in model.scheduler_options.items() if name in options]
            raise InputError(
                f"{source}: {name}: {' and '.join(used)} has no such option; it is one of {', '.join(able)}"
            )


def _check_sizes(spec: StudySpec, model: ModelDescription, source: str) -> None:
    for name in ("width", "height"):
        for value in _values(spec, name):
            if isinstance(value, int) and value % model.size_multiple:
                raise InputError(
                    f"{source}: {name}: {value} is not a multiple of {model.size_multiple} pixels"
                )


def _check_engine(spec: StudySpec, model: ModelDescription, source: str) -> None:
    """Rows and compiling are the slot engine's; whole calls know neither."""
    for name in ("rows", "compile"):
        if not model.family.slots and getattr(spec.engine, name) != EngineSpec.model_fields[name].default:
            raise InputError(
                f"{source}: engine.{name}: {model.pipeline} runs in whole calls, which have no such setting; "
                "remove it"
            )


def _check_conditions(study: Study, source: str) -> None:
    """Conditions and exclusions speak of settings that the study has, and no setting depends on itself."""
    depends = {name: domain.when.keys() for name, domain in study.space.axes.items()}
    try:
        TopologicalSorter(depends).prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise InputError(f"{source}: space: the conditions under 'when' go in a circle: {circle}") from None
    for name, domain in study.space.axes.items():
        for other, wanted in domain.when.items():
            where = f"{source}: space.{name}.when.{other}"
            if other not in study.space.axes and other not in study.settings:
                known = [*study.space.axes, *study.settings]
                raise InputError(f"{where}: the study has no such setting{did_you_mean(other, known)}")
            if not any(_may_be(study, other, value) for value in wanted):
                raise InputError(f"{where}: {other} is never {' or '.join(map(shown, wanted))} in this study")
    for number, rule in enumerate(study.exclude):
        for name in rule:
            if name not in study.space.axes:
                raise InputError(
                    f"{source}: exclude[{number}].{name}: the study does not sweep {name}"
                    f"{did_you_mean(name, list(study.space.axes))}"
                )


def _may_be(study: Study, name: str, value: Value) -> bool:
    domain = study.space.axes.get(name)
    return study.settings.get(name) == value if domain is None else contains(domain, value)


def _check_search(study: Study, source: str) -> None:
    """What the search names is swept, and the budget lasts for one candidate."""
    axes, search = list(study.space.axes), study.search
    for key, names in [("order", search.order), *_enqueued(search)]:
        for name in names:
            if name not in axes:
                raise InputError(
                    f"{source}: search.{key}: the study does not sweep {name}{did_you_mean(name, axes)}"
                )
    for name in search.order:
        if search.order.count(name) > 1:
            raise InputError(f"{source}: search.order: {name} is listed twice")
    for number, settings in enumerate(search.enqueue):
        obstacle = study.judge.obstacle({**study.baseline, **settings})
        if obstacle is not None:
            raise InputError(f"{source}: search.enqueue[{number}] cannot run: {obstacle}")
    tried_first = {study.judge.candidate(settings) for settings in study.first}
    if search.trials is not None and search.trials < len(tried_first):
        raise InputError(
            f"{source}: search.trials: {search.trials} are fewer than the {len(tried_first)} settings that are tried "
            "first, those of search.enqueue and the model's own"
        )
    size = study.space.size
    if search.strategy == "halving" and search.trials is None and size is not None and size > SURVEY_LIMIT:
        raise InputError(
            f"{source}: search: halving cannot race all of {size:,} cells at once; give search.trials, the number "
            "of them to draw at random, such as 10000"
        )
    if search.strategy == "refine":
        lists = [domain.values for domain in study.space.axes.values() if isinstance(domain, Choices)]
        words = [all(isinstance(value, str | bool | None) for value in values) for values in lists]
        if all(words) and len(words) == len(study.space.axes):
            raise InputError(
                f"{source}: search.strategy: refine looks closer between numbers, and no swept setting has any; "
                "use halving"
            )
        judge = study.judge
        coarsest = math.prod(len(coarse(domain)) for domain in study.space.axes.values())
        if coarsest <= MOST_COARSE:
            begun = coarse_cells(study.space.axes, study.first)
            coarsest = len({judge.candidate(cell) for cell in begun if judge.obstacle(cell) is None})
        if search.trials is not None and search.trials <= coarsest:
            raise InputError(
                f"{source}: search.trials: {search.trials} leave nothing to refine with after the {coarsest:,} "
                "settings that come first, the coarse ones and the model's own; give more, or fewer values"
            )
    images = study.budget.images
    if images is not None and images < len(study.instances):
        raise InputError(
            f"{source}: budget.images: {images} are fewer than the {len(study.instances)} instances that one "
            "candidate is judged on"
        )


def _enqueued(search: SearchSpec) -> list[tuple[str, Sequence[str]]]:
    return [(f"enqueue[{number}]", list(settings)) for number, settings in enumerate(search.enqueue)]


def _check_something_can_run(study: Study, source: str) -> None:
    judge, obstacle = study.judge, None
    for cell in telling_cells(study.space, judge):
        obstacle = judge.obstacle(cell)
        if obstacle is None:
            return
    raise InputError(f"{source}: no cell of the space can run: {obstacle}")


def _check_branches(study: Study, source: str) -> None:
    """Every condition holds in a cell that can run."""
    judge = study.judge
    able = [cell for cell in telling_cells(study.space, judge) if judge.obstacle(cell) is None]
    for name, domain in study.space.axes.items():
        if domain.when and not any(domain.applies(judge.complete(cell)) for cell in able):
            raise InputError(
                f"{source}: space.{name}.when: no cell that can run has "
                + " and ".join(f"{k} {' or '.join(map(shown, v))}" for k, v in domain.when.items())
                + f", so that {name} would never be swept"
            )


def idle_exclusions(study: Study) -> list[int]:
    """The places of those rules of `exclude` that leave out nothing: no cell has the values that they name.

    None where the search leaves the lattice, and may come to such a cell.
    """
    if study.search.strategy == "refine":
        return []
    judge, idle = study.judge, dict(enumerate(study.exclude))
    for cell in chain([study.baseline], telling_cells(study.space, judge)):
        settings = judge.complete(cell)
        for number in [n for n, rule in idle.items() if excludes(rule, settings)]:
            del idle[number]
        if not idle:
            break
    return list(idle)


def difference(old: Study, new: Study) -> str | None:
    """What makes `new` another study than `old`, as 'key: was …, is …'; None where it continues it.

    More seeds, other values on an axis, another search or Comet section continue a study.
    """
    compared: dict[str, tuple[object, object]] = {
        "model": (old.model.identity, new.model.identity),
        "task": (old.model.task, new.model.task),
        "dtype": (old.model.dtype, new.model.dtype),
        "diffusers' version": (old.model.diffusers, new.model.diffusers),
        "objective": (f"{old.objective} by {old.scorer.id}", f"{new.objective} by {new.scorer.id}"),
        "inputs": (_input_facts(old), _input_facts(new)),
        "axes of the space": (sorted(old.space.axes), sorted(new.space.axes)),
    }
    for key, (was, now) in compared.items():
        if was != now:
            return f"{key}: was {was}, is {now}"
    for name in sorted(set(old.settings) | set(new.settings)):
        if old.settings.get(name) != new.settings.get(name):
            return f"settings.{name}: was {old.settings.get(name)!r}, is {new.settings.get(name)!r}"
    if new.seeds[: len(old.seeds)] != old.seeds:
        return f"seeds: was {_seeds(old)}, which {_seeds(new)} does not begin with"
    return None


def _seeds(study: Study) -> str:
    shown = [str(seed) for seed in study.seeds[:8]]
    return f"[{', '.join(shown if len(study.seeds) <= 8 else [*shown, f'… {len(study.seeds)} seeds'])}]"


def _input_facts(study: Study) -> list[tuple[str, str, str | None, str | None]]:
    return [(i.prompt, i.score_text, i.image, i.mask) for i in study.inputs]
