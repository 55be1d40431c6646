"""The study file: YAML text → `StudySpec`. The only parser, and the only place with defaults."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from search_spaces.artifacts import FORM, parse_artifact_file
from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.errors import InputError, did_you_mean, shown
from search_spaces.models import REGISTRY, Task, Trust
from search_spaces.objectives import CLIP_SCORE, PRESERVATION, SCORES, Constraint, parse_constraint
from search_spaces.plain_files import read_plain
from search_spaces.requests import Value, canonical


class _Keyword(BaseModel):
    """What is known of a pipeline's keyword before its pipeline is: type, bounds (both included), meaning."""

    kind: Literal["int", "float", "str"]
    low: float | None = None
    high: float | None = None
    optional: bool = False
    meaning: str


KEYWORDS: Mapping[str, _Keyword] = {
    "num_inference_steps": _Keyword(kind="int", low=1, high=1000, meaning="denoising steps"),
    "guidance_scale": _Keyword(kind="float", low=0, meaning="weight of the prompt; 1 and below is off"),
    "strength": _Keyword(kind="float", low=0, high=1, meaning="share of the steps that redraw the image"),
    "negative_prompt": _Keyword(kind="str", optional=True, meaning="what the picture should not show"),
    "prompt": _Keyword(kind="str", meaning="in place of each input's prompt"),
    "scheduler": _Keyword(kind="str", meaning="a diffusers scheduler class, such as DDIMScheduler"),
    "eta": _Keyword(kind="float", low=0, high=1, meaning="noise added by DDIM's steps"),
    "guidance_rescale": _Keyword(kind="float", low=0, high=1, meaning="rescaling against overexposure"),
    "clip_skip": _Keyword(
        kind="int", low=0, high=31, optional=True, meaning="last text encoder layers left out"
    ),
    "width": _Keyword(kind="int", low=8, high=16384, meaning="pixels"),
    "height": _Keyword(kind="int", low=8, high=16384, meaning="pixels"),
}


MOST_BYTES = 4_000_000
"""Of a study file; the longest lists that it may hold take less than half of that."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A study's name, which is that of its folder too."""

MOST_POINTS = 100_000
"""Of one axis: a range with more is a mistake, or wants no step at all."""

MOST_SEEDS = 100_000
"""Of one study."""


def parse_value(name: str, raw: object) -> Value:
    """A setting's value under its keyword's type. Raises ValueError with the sentence for the reader."""
    keyword = KEYWORDS.get(name)
    if keyword is None:
        if raw is None or isinstance(raw, str | bool):
            return raw
        if isinstance(raw, int | float):
            _check_storable(name, raw)
            return raw
        raise ValueError(f"{name}: {shown(raw)} is not a text, number, true, false or null")
    if raw is None and keyword.optional:
        return None
    if keyword.kind == "str":
        if isinstance(raw, str):
            return raw
        hint = "" if raw is None or isinstance(raw, dict | list) else "; put it in quotes to make it one"
        raise ValueError(f"{name}: {shown(raw)} is not a text{hint}")
    return _parse_number(name, keyword, raw)


def _parse_number(name: str, keyword: _Keyword, raw: object) -> int | float:
    kind = "a whole number" if keyword.kind == "int" else "a number"
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"{name}: {shown(raw)} is not {kind}")
    _check_storable(name, raw)
    if keyword.kind == "int" and raw != int(raw):
        raise ValueError(f"{name}: {raw!r} is not {kind}")
    if keyword.low is not None and raw < keyword.low:
        raise ValueError(f"{name}: {raw!r} is below {keyword.low:g}, the least that works")
    if keyword.high is not None and raw > keyword.high:
        raise ValueError(f"{name}: {raw!r} is above {keyword.high:g}, the most that works")
    return int(raw) if keyword.kind == "int" else float(raw)


def _check_storable(name: str, raw: float) -> None:
    if isinstance(raw, int) and not -(2**63) <= raw < 2**63:
        raise ValueError(f"{name}: {shown(raw)} is too large; a whole number lies within 64 bits")
    if not math.isfinite(raw):
        raise ValueError(f"{name}: {raw} is not a finite number")


def parse_domain(name: str, raw: object) -> Domain:
    """A list of values or a range. Raises ValueError with the sentence for the reader."""
    if isinstance(raw, Choices | FloatRange | IntRange):
        return raw
    if isinstance(raw, Mapping):
        return _parse_mapping(name, raw)
    return _parse_list(name, raw)


def _parse_list(name: str, raw: object, when: Mapping[str, tuple[Value, ...]] | None = None) -> Choices:
    if not isinstance(raw, list):
        raise ValueError(
            f"{name}: {shown(raw)} is neither a list of values nor a range; "
            "a single value belongs under 'settings'"
        )
    if not raw:
        raise ValueError(f"{name}: the list is empty; give at least one value")
    values = tuple(parse_value(name, item) for item in raw)
    seen: set[object] = set()
    for value in values:
        key = (type(value) is bool, canonical(value))
        if key in seen:
            raise ValueError(f"{name}: {shown(value)} is listed twice")
        seen.add(key)
    return Choices(values=values, when=dict(when or {}))


def _parse_conditions(name: str, raw: object) -> dict[str, tuple[Value, ...]]:
    """What `when` says: other settings, each with a value or a list of values of which it must have one."""
    if not isinstance(raw, Mapping) or not raw:
        raise ValueError(f"{name}.when: {shown(raw)} is not a mapping such as {{scheduler: DDIMScheduler}}")
    if name in raw:
        raise ValueError(f"{name}.when: {name} cannot depend on itself")
    try:
        return {
            other: _parse_list(other, values if isinstance(values, list) else [values]).values
            for other, values in raw.items()
        }
    except ValueError as error:
        raise ValueError(f"{name}.when.{error}") from None


def parse_exclusion(number: int, raw: Mapping[str, object]) -> dict[str, Domain]:
    """A rule of `exclude`: settings, each with a value, a list of values or a range. Raises ValueError."""
    if not raw:
        raise ValueError(f"exclude[{number}] is empty, and would leave out everything")
    try:
        return {
            name: parse_domain(name, values if isinstance(values, list | Mapping) else [values])
            for name, values in raw.items()
        }
    except ValueError as error:
        raise ValueError(f"exclude[{number}].{error}") from None


def _parse_mapping(name: str, raw: Mapping[str, object]) -> Domain:
    """A range, or a list of values under `values`; either may have a condition."""
    when = _parse_conditions(name, raw["when"]) if "when" in raw else {}
    if "values" not in raw:
        return _parse_range(name, {key: raw[key] for key in raw if key != "when"}).model_copy(
            update={"when": when}
        )
    for key in raw:
        if key not in ("values", "when"):
            raise ValueError(f"{name}: unknown key {shown(key)} beside values{did_you_mean(key, ('when',))}")
    return _parse_list(name, raw["values"], when)


def _parse_range(name: str, raw: Mapping[str, object]) -> FloatRange | IntRange:
    keys = ("low", "high", "step", "log", "when")
    for key in raw:
        if key not in keys:
            raise ValueError(f"{name}: unknown key {shown(key)} in a range{did_you_mean(key, keys)}")
    whole = all(isinstance(raw.get(key, 0), int) for key in ("low", "high", "step"))
    keyword = KEYWORDS.get(name, _Keyword(kind="int" if whole else "float", meaning=""))
    if keyword.kind == "str":
        raise ValueError(f"{name}: a range is of numbers and this setting takes texts; list them")
    for end in ("low", "high"):
        if end not in raw:
            raise ValueError(f"{name}: {end} is missing; a range needs both low and high")
    low, high = (_parse_number(f"{name}.{end}", keyword, raw[end]) for end in ("low", "high"))
    if low >= high:
        raise ValueError(f"{name}: low {low:g} must be below high {high:g}")
    step, log = None, raw.get("log", False)
    if "step" in raw:
        step = _parse_number(f"{name}.step", _Keyword(kind=keyword.kind, meaning=""), raw["step"])
        if step <= 0:
            raise ValueError(f"{name}.step: {step:g} must be above 0")
    if not isinstance(log, bool):
        raise ValueError(f"{name}.log: {shown(log)} is not true or false")
    if log and (low <= 0 or step is not None):
        raise ValueError(f"{name}: log needs low above 0 and no step")
    if keyword.kind == "int" and step is None:
        step = 1
    if step is not None and (high - low) / step >= MOST_POINTS:
        raise ValueError(
            f"{name}: more than {MOST_POINTS:,} points; make the step larger or the range smaller"
        )
    if keyword.kind == "int":
        return IntRange(low=int(low), high=int(high), step=int(step or 1), log=log)
    return FloatRange(low=low, high=high, step=step, log=log)


def _parse_each(parse: Callable[[str, object], object]) -> Callable[[object], object]:
    def parse_mapping(raw: object) -> object:
        if not isinstance(raw, Mapping):
            return raw
        for name in raw:
            if not name.isidentifier():
                raise ValueError(
                    f"{shown(name)} cannot be a pipeline's keyword{did_you_mean(name, KEYWORDS)}"
                )
        return {name: parse(name, item) for name, item in raw.items()}

    return parse_mapping


def _each_of(raw: object, parse: Callable[..., object], numbered: bool = False) -> object:
    """Each mapping of a list parsed; anything else as it is, for pydantic to refuse."""
    if not isinstance(raw, list):
        return raw
    return [
        item if not isinstance(item, Mapping) else parse(number, item) if numbered else parse(item)
        for number, item in enumerate(raw)
    ]


def _value_schema(keyword: _Keyword) -> dict[str, Any]:
    kind = {"int": "integer", "float": "number", "str": "string"}[keyword.kind]
    bounds = {"minimum": keyword.low, "maximum": keyword.high}
    return {
        "type": [kind, "null"] if keyword.optional else kind,
        "description": keyword.meaning,
        **{bound: limit for bound, limit in bounds.items() if limit is not None},
    }


_ANY_VALUE = {"type": ["string", "number", "boolean", "null"]}
_WHEN_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "description": "other settings with the values beside which this one is used",
    "additionalProperties": {"anyOf": [_ANY_VALUE, {"type": "array", "items": _ANY_VALUE, "minItems": 1}]},
}


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def _domain_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    ends = {end: {"type": "number"} for end in ("low", "high", "step")}
    values = {"type": "array", "items": dict(value), "minItems": 1, "uniqueItems": True}
    return {
        "description": value.get("description", "a list of values, or a range"),
        "anyOf": [
            values,
            _object({**ends, "log": {"type": "boolean"}, "when": _WHEN_SCHEMA}, "low", "high"),
            _object({"values": values, "when": _WHEN_SCHEMA}, "values"),
        ],
    }


_RULES_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {
            "anyOf": [
                _ANY_VALUE,
                {"type": "array", "items": _ANY_VALUE, "minItems": 1},
                _object({"low": {"type": "number"}, "high": {"type": "number"}}, "low", "high"),
            ]
        },
    },
}
_SETTINGS_SCHEMA = {
    "type": "object",
    "properties": {name: _value_schema(keyword) for name, keyword in KEYWORDS.items()},
    "additionalProperties": _ANY_VALUE,
}
_SPACE_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "properties": {name: _domain_schema(_value_schema(keyword)) for name, keyword in KEYWORDS.items()},
    "additionalProperties": _domain_schema(_ANY_VALUE),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _check_input_path(path: str) -> str:
    parse_artifact_file(path)
    return path


InputPath = Annotated[str, AfterValidator(_check_input_path)]
"""A local path, or a file of a Comet artifact."""


class InputSpec(_Section):
    """One input: what to draw, where, and what CLIP judges it by."""

    prompt: str = Field(min_length=1, description="what to draw")
    image: InputPath | None = Field(
        None, description=f"the image to start from: a path relative to this file, or {FORM}"
    )
    mask: InputPath | None = Field(
        None, description="the mask, named like the image: white is redrawn, black is kept"
    )
    score_text: str | None = Field(
        None, min_length=1, description="what CLIP judges by; the prompt by default"
    )

    @model_validator(mode="after")
    def _mask_has_image(self) -> "InputSpec":
        if self.mask is not None and self.image is None:
            raise ValueError("a mask needs an image beside it")
        return self


OWN_STRATEGIES: Mapping[str, str] = {
    "grid": "tries every cell",
    "halving": "races the cells: a few instances each, the worse leave, the rest get more",
    "coordinate": "one setting at a time, each holding the best of those before",
    "refine": "coarse, then closer around the best",
}
SAMPLERS = ("tpe", "random", "gp", "cmaes", "nsga2", "nsga3", "qmc")
"""Optuna's samplers that have a short name; all others go by class path."""

_STRATEGY_SCHEMA = {
    "anyOf": [{"enum": [*OWN_STRATEGIES, *SAMPLERS]}, {"type": "string", "pattern": r"^\w+(\.\w+)+$"}]
}

_ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "options": ("a sampler",),
    "racing": ("a sampler",),
    "early_look": ("halving",),
    "keep": ("halving", "coordinate", "refine"),
    "order": ("coordinate",),
    "rounds": ("coordinate",),
    "trials": ("grid", "halving", "refine", "a sampler"),
}
"""The strategies that some keys of `search` are for."""


class SearchSpec(_Section):
    """What decides which settings to try."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    strategy: Annotated[str, WithJsonSchema(_STRATEGY_SCHEMA)] = Field(
        "grid",
        description="; ".join(f"{name} {does}" for name, does in OWN_STRATEGIES.items())
        + f"; {', '.join(SAMPLERS)} or a class path: a sampler of Optuna",
    )
    trials: int | None = Field(
        None, ge=1, description="settings to try at most; of a grid a random subset; a sampler needs it"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the search")
    options: dict[str, Any] = Field({}, description="of the sampler, by its constructor's names")
    racing: Literal["auto", "off"] = Field(
        "auto", description="auto: a sampler's trial ends early when it has lost against the best"
    )
    early_look: Literal["auto", "off"] = Field(
        "off", description="auto: losers stop in mid-trajectory where the picture predicted there tells"
    )
    keep: float = Field(
        1 / 3, gt=0, lt=1, description="share of the settings that a rung of the race leaves in it"
    )
    order: list[str] = Field([], description="coordinate: the settings in the order of their turns")
    rounds: int = Field(1, ge=1, le=100, description="coordinate: turns of every setting")
    enqueue: Annotated[
        list[dict[str, Value]],
        BeforeValidator(lambda raw: _each_of(raw, _parse_each(parse_value))),
        WithJsonSchema({"type": "array", "items": _SETTINGS_SCHEMA}),
    ] = Field([], description="swept settings to try first")
    validation: int = Field(
        0, ge=0, le=10_000, alias="validate", description="fresh seeds on which the best few are tried again"
    )

    @property
    def samples(self) -> bool:
        """Whether a sampler of Optuna searches."""
        return self.strategy not in OWN_STRATEGIES

    @model_validator(mode="after")
    def _keys_fit_strategy(self) -> "SearchSpec":
        known = [*OWN_STRATEGIES, *SAMPLERS]
        if self.strategy not in known and "." not in self.strategy:
            raise ValueError(
                f"search.strategy: unknown strategy {shown(self.strategy)}{did_you_mean(self.strategy, known)}"
            )
        if (self.samples or self.strategy == "refine") and self.trials is None:
            raise ValueError(
                f"search.trials is missing: {self.strategy} needs to know how many settings to try, such as 40"
            )
        kind = "a sampler" if self.samples else self.strategy
        for key, strategies in _ONLY_FOR.items():
            default = type(self).model_fields[key].get_default(call_default_factory=True)
            if kind not in strategies and getattr(self, key) != default:
                raise ValueError(
                    f"search.{key} does not apply to {self.strategy}; it is for {' and '.join(strategies)}"
                )
        return self


class BudgetSpec(_Section):
    """What a run may use up: at the first of these the search ends with its best so far."""

    trials: int | None = Field(None, ge=1, description="the same as search.trials")
    images: int | None = Field(None, ge=1, description="pictures generated")
    unet_calls: int | None = Field(None, ge=1, description="of all pictures together")
    gpu_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="of all workers together, on CPUs too"
    )
    seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="by the clock, from the first request on"
    )

    @property
    def is_set(self) -> bool:
        """Whether anything is limited that is used up by and by: all but trials, which the search counts."""
        return any(limit is not None for limit in self.model_dump(exclude={"trials"}).values())


class TopImages(_Section):
    """So many images with the highest score."""

    top_k: int = Field(ge=1, le=1_000_000)


def _parse_images(raw: object) -> object:
    """Which images go to Comet. Raises ValueError for what is neither of the three forms."""
    many = raw.get("top_k") if isinstance(raw, Mapping) and len(raw) == 1 else None
    counted = isinstance(many, int) and not isinstance(many, bool) and 1 <= many <= 1_000_000
    if raw in ("all", "best_per_trial") or counted or isinstance(raw, TopImages):
        return raw
    raise ValueError(f"{shown(raw)} is neither all, best_per_trial nor {{top_k: N}}")


def _check_label(text: str) -> str:
    """A name that Comet can show. Raises ValueError."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{shown(text)} is empty or holds characters that no name should have")
    return text


_Label = Annotated[str, AfterValidator(_check_label)]


class CometSpec(_Section):
    """Where the pictures go to be looked at."""

    workspace: _Label | None = None
    project: _Label | None = Field(None, description="the study's name by default")
    name: _Label | None = Field(None, description="the experiment's name; the study's by default")
    tags: list[_Label] = Field([], description="of the experiment")
    mode: Literal["auto", "online", "offline", "off"] = Field(
        "auto",
        description="online streams images as they are made; offline builds an archive for `comet upload` at the "
        "end; auto is online where an API key is found and the server answers",
    )
    images: Annotated[Literal["all", "best_per_trial"] | TopImages, BeforeValidator(_parse_images)] = Field(
        "all", description="which images are sent: all, the best of each trial, or {top_k: N} of the study"
    )
    log_code: bool = Field(
        False, description="send the git commit and the source of a search strategy of your own too"
    )


class EngineSpec(_Section):
    """How the machines work; nothing here changes a picture beyond the last bits."""

    rows: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto",
        description="UNet rows per call; auto measures what is fastest. With guidance an image takes two",
    )
    compile: bool = Field(
        False, description="compile the UNet: minutes once, then faster; for long studies on a GPU"
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none", description="keep parts of the model in main memory where the GPU is too small for all of it"
    )
    stall_timeout: float = Field(
        600,
        ge=10,
        description="seconds without one UNet call, or with compile one more block compiled, after which a worker is "
        "taken for hung and replaced",
    )


class StudySpec(_Section):
    """Everything about one sweep, as the study file says it."""

    study: str = Field(pattern=NAME, description="name of the study and of its folder")
    model: str = Field(
        min_length=1,
        description="a registry name, a hub id with an optional @revision, or a local folder",
        examples=sorted(REGISTRY),
    )
    task: Task | None = Field(None, description="by default what the model was made for and the inputs allow")
    inputs: list[InputSpec] = Field(min_length=1)
    seeds: int | list[int] = Field(4, description="a count, or a list of seeds")
    settings: Annotated[
        dict[str, Value], BeforeValidator(_parse_each(parse_value)), WithJsonSchema(_SETTINGS_SCHEMA)
    ] = Field({}, description="fixed for every trial, under the pipeline's own names")
    space: Annotated[
        dict[str, Domain], BeforeValidator(_parse_each(parse_domain)), WithJsonSchema(_SPACE_SCHEMA)
    ] = Field(description="swept, under the pipeline's own names")
    exclude: Annotated[
        list[dict[str, Domain]],
        BeforeValidator(lambda raw: _each_of(raw, parse_exclusion, numbered=True)),
        WithJsonSchema(_RULES_SCHEMA),
    ] = Field([], description="cells left out: those with a value of each setting that a rule names")
    search: SearchSpec = SearchSpec()  # type: ignore[call-arg]
    budget: BudgetSpec = BudgetSpec()  # type: ignore[call-arg]
    objective: Literal["clip_score"] = "clip_score"
    objectives: list[
        dict[Literal["clip_score", "gpu_seconds", "preservation_psnr"], Literal["maximize", "minimize"]]
    ] = Field(
        [], description="several at once, each a score and its direction: what comes out is a Pareto front"
    )
    constraints: list[str] = Field(
        [],
        description="bounds that a trial's mean has to keep, such as gpu_seconds <= 2.5 or "
        "preservation_psnr >= 25 (dB, outside the mask)",
    )
    clip_model: str | None = Field(None, description="the CLIP that judges, named like `model`")
    comet: CometSpec = CometSpec()  # type: ignore[call-arg]
    engine: EngineSpec = EngineSpec()  # type: ignore[call-arg]
    trust: list[Trust] = Field(
        [],
        description="what the models may do beyond being safetensors: `pickles` reads weights that can hold code, "
        "`remote_code` runs Python that comes with a model; only for authors that you trust",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto: float16 on a GPU, float32 on a CPU"
    )
    image_format: Literal["png", "webp", "jpeg"] = Field(
        "png", description="how images are stored: png and webp lose nothing, jpeg does a little"
    )

    @model_validator(mode="before")
    @classmethod
    def _trials_are_counted_by_the_search(cls, raw: object) -> object:
        """`budget.trials` brought to where the search counts them."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("budget"), Mapping):
            return raw
        trials, search = raw["budget"].get("trials"), raw.get("search", {})
        if trials is None or not isinstance(search, Mapping):
            return raw
        if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
            raise ValueError(f"budget.trials: {shown(trials)} is not a whole number of 1 or more")
        if search.get("strategy") == "coordinate":
            raise ValueError(
                "budget.trials does not apply to coordinate, whose rounds say how many it tries; "
                "it is for " + " and ".join(_ONLY_FOR["trials"])
            )
        if search.get("trials", trials) != trials:
            raise ValueError(
                f"budget.trials is {trials} and search.trials is {shown(search['trials'])}, "
                "which mean the same; keep one of the two"
            )
        return {**raw, "search": {**search, "trials": trials}}

    @model_validator(mode="after")
    def _holds_together(self) -> "StudySpec":
        if not self.space:
            raise ValueError(
                "space is empty; give at least one setting to sweep, such as guidance_scale: [3, 5, 7.5]"
            )
        both = sorted(set(self.settings) & set(self.space))
        if both:
            raise ValueError(f"{both[0]} stands under both 'settings' and 'space'; keep one of the two")
        count = self.seeds if isinstance(self.seeds, int) else len(self.seeds)
        if count < 1:
            raise ValueError(f"seeds: {self.seeds} gives none, and at least one is needed")
        if count > MOST_SEEDS:
            raise ValueError(f"seeds: {shown(count)} are more than the {MOST_SEEDS:,} that a study may have")
        seeds = sorted(self.seed_list)
        for seed, following in pairwise(seeds):
            if seed == following:
                raise ValueError(f"seeds: {shown(seed)} is listed twice")
        for seed in (seeds[0], seeds[-1]):
            if not 0 <= seed < 2**63:
                raise ValueError(f"seeds: {shown(seed)} is not between 0 and 2^63 - 1")
        self._check_objectives()
        if "prompt" in self.space and any(item.score_text is None for item in self.inputs):
            raise ValueError(
                "space.prompt: give every input a score_text, so that all prompts are judged by one text"
            )
        if not self.search.samples and self.search.strategy != "refine":
            for name, domain in self.space.items():
                if domain.points() is None or (isinstance(domain, IntRange) and domain.log):
                    raise ValueError(
                        f"space.{name}: {self.search.strategy} needs a list or a range with a step; "
                        "tpe takes any range"
                    )
        return self

    def _check_objectives(self) -> None:
        """Several objectives are several, and are searched by what can have several."""
        if not self.objectives and "objectives" in self.model_fields_set:
            raise ValueError("objectives is empty; leave it out for clip_score alone, or give two or more")
        for number, objective in enumerate(self.objectives):
            if len(objective) != 1:
                raise ValueError(
                    f"objectives[{number}] names {len(objective)} scores; each entry is one, such as "
                    "clip_score: maximize"
                )
        names = [name for objective in self.objectives for name in objective]
        if len(names) == 1:
            raise ValueError(
                "objectives: one alone is no choice between several; it stands under 'objective'"
            )
        if len(set(names)) < len(names):
            raise ValueError("objectives: a score is listed twice")
        if names and "clip_score" not in names:
            raise ValueError("objectives: clip_score is missing; without it nobody looks at the pictures")
        for name in (CLIP_SCORE, PRESERVATION):
            if {name: "minimize"} in self.objectives:
                raise ValueError(f"objectives: {name} can only be maximized")
        bounds: list[Constraint] = []
        for number, text in enumerate(self.constraints):
            try:
                bounds.append(parse_constraint(text))
            except ValueError as error:
                raise ValueError(f"constraints[{number}]: {error}") from None
        for one, other in product(bounds, bounds):
            if one.excludes(other):
                raise ValueError(f"constraints: no mean keeps both {one} and {other}")
        strategy = self.search.strategy
        if (names or self.constraints) and strategy in ("halving", "coordinate", "refine"):
            what = "several objectives" if names else "constraints"
            raise ValueError(
                f"search.strategy: {strategy} races one objective and cannot have {what}; use tpe or grid"
            )

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds themselves: a count n means 0 … n - 1."""
        return tuple(range(self.seeds) if isinstance(self.seeds, int) else self.seeds)


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as YAML 1.2 and editors do: `off` and 2024-01-01 are texts, 1e-3 is a number."""


_TAG = "tag:yaml.org,2002:"
_SCALARS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "null": (r"~|null|Null|NULL|", lambda _: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+", int),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),
    ),
    "str": (r"(?s:.*)", str),
}
_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _) in _SCALARS.items():
    if _kind != "str":
        _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), None)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write out what comes twice: no alias is read back."""
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text; Unicode's own line breaks as escapes, since PyYAML's single quotes do not keep them."""
    style = '"' if any(each in text for each in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style)


_Dumper.add_representer(str, _text_node)
for _kind, (_pattern, _) in _SCALARS.items():
    if _kind != "str":
        _Dumper.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), None)


def dump(document: Mapping[str, object]) -> str:
    """Plain data as the YAML text that `document` reads back as the same, and PyYAML's own loader too."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _plain(node: yaml.Node, seen: set[int]) -> object:
    """A YAML node as plain data. Raises InputError for what a study file has no use for.

    That is: a key given twice or that is no text, a tag of other types, and an alias for a list or mapping,
    with which a short file could stand for an endless one. `seen` holds the ids of the nodes above and before.
    """
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        pattern, convert = _SCALARS.get(node.tag.removeprefix(_TAG), ("(?!)", str))
        if re.fullmatch(pattern, node.value):
            with suppress(ValueError):  # thousands of digits, or half a surrogate pair
                # A pair of escapes, as JSON writes 😀, is one character; half a pair raises.
                return convert(node.value.encode("utf-16", "surrogatepass").decode("utf-16"))
        raise InputError(f"line {line}: {shown(node.value)} is not of the type {_tag(node)}")
    if id(node) in seen:
        raise InputError(
            f"line {line}: an alias stands for this list or mapping; write it out in both places"
        )
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode) and _tag(node) == "seq":
        return [_plain(item, seen) for item in node.value]
    if not isinstance(node, yaml.MappingNode) or _tag(node) != "map":
        raise InputError(f"line {line}: the tag {_tag(node)!r} has no meaning in a study file")
    mapping: dict[str, object] = {}
    for key_node, value_node in node.value:
        key = _plain(key_node, seen)
        if not isinstance(key, str):
            raise InputError(f"line {key_node.start_mark.line + 1}: the key {shown(key)} is not a text")
        if key in mapping:
            raise InputError(f"line {key_node.start_mark.line + 1}: the key {shown(key)} is given twice")
        mapping[key] = _plain(value_node, seen)
    return mapping


def _tag(node: yaml.Node) -> str:
    tag: str = node.tag
    return tag.removeprefix(_TAG)


def document(text: str, source: str) -> dict[str, Any]:
    """YAML text as plain data, as a study file's YAML is read; `source` is the file's name. Raises InputError."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        found = None if node is None else _plain(node, set())
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except RecursionError:
        raise InputError(f"{source} is not a study file: its lists are nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"{source} is not valid YAML: line {line} holds the control character {error.character:#x}"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, (error.problem or "it cannot be read").removeprefix("but ")
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{source} is not valid YAML{where}: {problem}") from None
    if not isinstance(found, dict):
        kinds = {type(None): "empty", list: "a list", str: "a text"}
        raise InputError(
            f"{source} must be a mapping with the keys study, model, inputs, space; "
            f"it is {kinds.get(type(found), 'a single value')}"
        )
    return found


def parse(text: str, source: str) -> StudySpec:
    """YAML text → StudySpec; `source` is the file's name in messages. Raises InputError."""
    found = document(text, source)
    try:
        return StudySpec.model_validate(found)
    except ValidationError as error:
        # A misspelt key is also a missing one; the misspelling says more.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise InputError(f"{source}: {_sentence(first)}") from None


def read(path: Path) -> str:
    """A study file's text. Raises InputError."""
    try:
        return io.TextIOWrapper(io.BytesIO(read_plain(path, MOST_BYTES)), encoding="utf-8").read()
    except FileNotFoundError:
        raise InputError(f"there is no study file {path}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; a study file is YAML") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def load(path: Path) -> StudySpec:
    """Read and parse a study file. Raises InputError."""
    return parse(read(path), str(path))


def json_schema() -> dict[str, Any]:
    """The study file's JSON Schema, for editors."""
    return StudySpec.model_json_schema()


_NAMED_WITHIN = ("settings", "space", "search.enqueue")
"""Sections whose own messages begin with the key within them."""

_PROBLEMS = {
    "float_type": "is not a number",
    "greater_than": "must be above {gt:.10g}",
    "finite_number": "is not a finite number",
    "less_than_equal": "is above {le}, the most that works",
    "string_type": "is not a text",
    "int_type": "is not a whole number",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "too_short": "is empty; at least {min_length} is needed",
    "string_too_short": "is empty",
    "greater_than_equal": "is below {ge}, the least that works",
    "less_than": "must be below {lt:.10g}",
    "string_pattern_mismatch": "may hold letters, digits, '.', '_' and '-', and begins with a letter or digit",
}


def _sentence(error: ErrorDetails) -> str:
    """One pydantic error as a sentence with the key's path, its value and what would work."""
    where = _path(error["loc"])
    kind, given = error["type"], error["input"]
    if kind == "value_error":
        message = str(error["ctx"]["error"])
        if error["loc"][:1] in (("inputs",), ("comet",)):
            return f"{where}: {message}"
        return f"{where}.{message}" if where in _NAMED_WITHIN else message
    if kind == "extra_forbidden":
        *parents, key = error["loc"]
        place = f" in {_path(parents)}" if parents else ""
        return f"unknown key {shown(key)}{place}{did_you_mean(str(key), _fields(parents))}"
    if kind == "missing":
        return f"the key {where!r} is missing"
    if kind == "literal_error" and error["loc"][:2] != ("engine", "rows"):
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        if error["loc"][0] == "objectives":
            entry, is_score = _path(error["loc"][:2]), error["loc"][-1] == "[key]"
            what = "score" if is_score else f"direction of {error['loc'][2]}"
            return f"{entry}: unknown {what} {shown(given)}{did_you_mean(str(given), known)}"
        if where == "objective" and given in SCORES:
            return (
                f"objective: {given} alone would be won by pictures that show nothing of the prompt; name it "
                "under objectives beside clip_score, or bound it under constraints"
            )
        word = "entry" if isinstance(error["loc"][-1], int) else error["loc"][-1]
        return f"{where}: unknown {word} {shown(given)}{did_you_mean(str(given), known)}"
    if error["loc"][:2] == ("engine", "rows"):
        return f"engine.rows: {shown(given)} is neither auto nor a whole number from 1 to 4096"
    if error["loc"][0] == "seeds":
        return f"seeds: {shown(given)} is neither a count nor a list of whole numbers"
    problem = _PROBLEMS.get(kind, "is wrong: " + error["msg"])
    return f"{where}: {shown(given)} {problem.format(**error.get('ctx', {}))}"


def _path(parts: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _fields(parents: list[int | str]) -> list[str]:
    """The known keys of the section at a path such as ['inputs', 0]."""
    sections: dict[str, type[_Section]] = {
        "inputs": InputSpec,
        "search": SearchSpec,
        "comet": CometSpec,
        "engine": EngineSpec,
        "budget": BudgetSpec,
    }
    model = sections.get(str(parents[0])) if parents else StudySpec
    return [field.alias or name for name, field in model.model_fields.items()] if model else []
