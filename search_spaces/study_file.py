"""The study file: YAML text → `StudySpec`. The only parser, and the only place with defaults."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.errors import InputError, did_you_mean
from search_spaces.models import REGISTRY, Task
from search_spaces.requests import Value, canonical


class _Keyword(BaseModel):
    """What is known of a pipeline's keyword before its pipeline is: type, bounds (both included), meaning."""

    kind: Literal["int", "float", "str"]
    low: float | None = None
    high: float | None = None
    optional: bool = False
    meaning: str


KEYWORDS: Mapping[str, _Keyword] = {
    "num_inference_steps": _Keyword(kind="int", low=1, meaning="denoising steps"),
    "guidance_scale": _Keyword(kind="float", low=0, meaning="weight of the prompt; 1 and below is off"),
    "strength": _Keyword(kind="float", low=0, high=1, meaning="share of the steps that redraw the image"),
    "negative_prompt": _Keyword(kind="str", optional=True, meaning="what the picture should not show"),
    "prompt": _Keyword(kind="str", meaning="in place of each input's prompt"),
    "scheduler": _Keyword(kind="str", meaning="a diffusers scheduler class, such as DDIMScheduler"),
    "eta": _Keyword(kind="float", low=0, high=1, meaning="noise added by DDIM's steps"),
    "guidance_rescale": _Keyword(kind="float", low=0, high=1, meaning="rescaling against overexposure"),
    "clip_skip": _Keyword(kind="int", low=0, optional=True, meaning="last text encoder layers left out"),
    "width": _Keyword(kind="int", low=8, meaning="pixels"),
    "height": _Keyword(kind="int", low=8, meaning="pixels"),
}


def parse_value(name: str, raw: object) -> Value:
    """A setting's value under its keyword's type. Raises ValueError with the sentence for the reader."""
    keyword = KEYWORDS.get(name)
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ValueError(f"{name}: {raw} is not a finite number")
    if keyword is None:
        if raw is None or isinstance(raw, str | int | float | bool):
            return raw
        raise ValueError(f"{name}: {raw!r} is not a text, number, true, false or null")
    if raw is None and keyword.optional:
        return None
    if keyword.kind == "str":
        if isinstance(raw, str):
            return raw
        hint = (
            "; YAML reads a bare yes, no, on or off as a boolean: quote it" if isinstance(raw, bool) else ""
        )
        raise ValueError(f"{name}: {raw!r} is not a text{hint}")
    return _parse_number(name, keyword, raw)


def _parse_number(name: str, keyword: _Keyword, raw: object) -> int | float:
    kind = "a whole number" if keyword.kind == "int" else "a number"
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"{name}: {raw!r} is not {kind}")
    if keyword.kind == "int" and raw != int(raw):
        raise ValueError(f"{name}: {raw!r} is not {kind}")
    if keyword.low is not None and raw < keyword.low:
        raise ValueError(f"{name}: {raw!r} is below {keyword.low:g}, the least that works")
    if keyword.high is not None and raw > keyword.high:
        raise ValueError(f"{name}: {raw!r} is above {keyword.high:g}, the most that works")
    return int(raw) if keyword.kind == "int" else float(raw)


def parse_domain(name: str, raw: object) -> Domain:
    """A list of values or a range. Raises ValueError with the sentence for the reader."""
    if isinstance(raw, Choices | FloatRange | IntRange):
        return raw
    if isinstance(raw, Mapping):
        return _parse_range(name, raw)
    if not isinstance(raw, list):
        raise ValueError(
            f"{name}: {raw!r} is neither a list of values nor a range; "
            "a single value belongs under 'settings'"
        )
    if not raw:
        raise ValueError(f"{name}: the list is empty; give at least one value")
    values = tuple(parse_value(name, item) for item in raw)
    seen: list[object] = []
    for value in values:
        key = (type(value) is bool, canonical(value))
        if key in seen:
            raise ValueError(f"{name}: {value!r} is listed twice")
        seen.append(key)
    return Choices(values=values)


def _parse_range(name: str, raw: Mapping[object, object]) -> FloatRange | IntRange:
    for key in raw:
        if key not in ("low", "high", "step", "log"):
            raise ValueError(
                f"{name}: unknown key {str(key)!r} in a range{did_you_mean(str(key), ['low', 'high', 'step', 'log'])}"
            )
    keyword = KEYWORDS.get(name, _Keyword(kind="float", meaning=""))
    if keyword.kind == "str" or "low" not in raw or "high" not in raw:
        need = "a list of texts" if keyword.kind == "str" else "both low and high"
        raise ValueError(f"{name}: a range needs numbers, and this setting takes {need}")
    log, step = raw.get("log", False), raw.get("step")
    low, high = (_parse_number(f"{name}.{end}", keyword, raw[end]) for end in ("low", "high"))
    spacing = (
        None if step is None else _parse_number(f"{name}.step", _Keyword(kind="float", meaning=""), step)
    )
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(spacing or 0)):
        raise ValueError(f"{name}: a range's ends and step must be finite")
    if low >= high:
        raise ValueError(f"{name}: low {low:g} must be below high {high:g}")
    if spacing is not None and spacing <= 0:
        raise ValueError(f"{name}.step: {spacing:g} must be above 0")
    if not isinstance(log, bool):
        raise ValueError(f"{name}.log: {log!r} is not true or false")
    if log and (low <= 0 or spacing is not None):
        raise ValueError(f"{name}: log needs low above 0 and no step")
    given = [raw[key] for key in ("low", "high", "step") if raw.get(key) is not None]
    if keyword.kind == "int" or (name not in KEYWORDS and all(isinstance(v, int) for v in given)):
        if spacing is not None and spacing != int(spacing):
            raise ValueError(f"{name}.step: {spacing:g} is not a whole number")
        return IntRange(low=int(low), high=int(high), step=int(spacing or 1), log=log)
    return FloatRange(low=low, high=high, step=spacing, log=log)


def _parse_each(parse: Callable[[str, object], object]) -> Callable[[object], object]:
    def parse_mapping(raw: object) -> object:
        if not isinstance(raw, Mapping):
            return raw
        return {str(name): parse(str(name), item) for name, item in raw.items()}

    return parse_mapping


def _value_schema(keyword: _Keyword) -> dict[str, Any]:
    kind = {"int": "integer", "float": "number", "str": "string"}[keyword.kind]
    bounds = {"minimum": keyword.low, "maximum": keyword.high}
    return {
        "type": [kind, "null"] if keyword.optional else kind,
        "description": keyword.meaning,
        **{bound: limit for bound, limit in bounds.items() if limit is not None},
    }


_ANY_VALUE = {"type": ["string", "number", "boolean", "null"]}


def _domain_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    ends = {end: {"type": "number"} for end in ("low", "high", "step")}
    return {
        "description": value.get("description", "a list of values, or a range"),
        "anyOf": [
            {"type": "array", "items": dict(value), "minItems": 1, "uniqueItems": True},
            {
                "type": "object",
                "properties": {**ends, "log": {"type": "boolean"}},
                "required": ["low", "high"],
                "additionalProperties": False,
            },
        ],
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


class InputSpec(_Section):
    """One input: what to draw, where, and what CLIP judges it by."""

    prompt: str = Field(min_length=1, description="what to draw")
    image: str | None = Field(None, description="path of the image to start from, relative to this file")
    mask: str | None = Field(None, description="path of the mask: white is redrawn, black is kept")
    score_text: str | None = Field(
        None, min_length=1, description="what CLIP judges by; the prompt by default"
    )


class SearchSpec(_Section):
    """What decides which settings to try."""

    strategy: Literal["grid", "tpe"] = Field(
        "grid", description="grid tries every cell; tpe is Optuna's sampler"
    )
    trials: int | None = Field(None, ge=1, description="settings to try; for tpe")
    seed: int = Field(0, ge=0, description="seed of the sampler")

    @model_validator(mode="after")
    def _trials_fit_strategy(self) -> "SearchSpec":
        if self.strategy == "tpe" and self.trials is None:
            raise ValueError(
                "search.trials is missing: tpe needs to know how many settings to try, such as 40"
            )
        if self.strategy == "grid" and self.trials is not None:
            raise ValueError(
                "search.trials does not apply to grid, which tries every cell; remove it or use tpe"
            )
        return self


class CometSpec(_Section):
    """Where the pictures go to be looked at."""

    workspace: str | None = None
    project: str | None = Field(None, description="the study's name by default")
    name: str | None = Field(None, description="the experiment's name; the study's by default")
    tags: list[str] = Field([], description="of the experiment")
    mode: Literal["offline", "off"] = Field(
        "offline", description="offline builds an archive for `comet upload`"
    )


class StudySpec(_Section):
    """Everything about one sweep, as the study file says it."""

    study: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the study and of its folder"
    )
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
    search: SearchSpec = SearchSpec()  # type: ignore[call-arg]
    objective: Literal["clip_score"] = "clip_score"
    clip_model: str | None = Field(None, description="the CLIP that judges, named like `model`")
    comet: CometSpec = CometSpec()  # type: ignore[call-arg]
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto: float16 on a GPU, float32 on a CPU"
    )

    @model_validator(mode="after")
    def _holds_together(self) -> "StudySpec":
        if not self.space:
            raise ValueError(
                "space is empty; give at least one setting to sweep, such as guidance_scale: [3, 5, 7.5]"
            )
        both = sorted(set(self.settings) & set(self.space))
        if both:
            raise ValueError(f"{both[0]} stands under both 'settings' and 'space'; keep one of the two")
        seeds = self.seed_list
        if not seeds:
            raise ValueError("seeds: at least one is needed")
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds: a seed is listed twice")
        if min(seeds) < 0 or max(seeds) >= 2**63:
            raise ValueError("seeds: a seed lies between 0 and 2^63 - 1")
        if "prompt" in self.space and any(item.score_text is None for item in self.inputs):
            raise ValueError(
                "space.prompt: give every input a score_text, so that all prompts are judged by one text"
            )
        if self.search.strategy == "grid":
            for name, domain in self.space.items():
                if domain.points() is None or (isinstance(domain, IntRange) and domain.log):
                    raise ValueError(
                        f"space.{name}: grid needs a list or a range with a step; tpe takes any range"
                    )
        return self

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds themselves: a count n means 0 … n - 1."""
        return tuple(range(self.seeds) if isinstance(self.seeds, int) else self.seeds)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, str):
                if key in seen:
                    raise InputError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse(text: str, source: str) -> StudySpec:
    """YAML text → StudySpec; `source` is the file's name in messages. Raises InputError."""
    try:
        document = yaml.load(text, Loader=_Loader)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InputError(f"{source} is not valid YAML{where}: {problem}") from None
    if not isinstance(document, dict):
        kind = "empty" if document is None else f"a {type(document).__name__}"
        raise InputError(
            f"{source} must be a mapping with the keys study, model, inputs, space; it is {kind}"
        )
    try:
        return StudySpec.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{source}: {_sentence(error.errors()[0])}") from None


def load(path: Path) -> StudySpec:
    """Read and parse a study file. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no study file {path}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; a study file is YAML") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return parse(text, str(path))


def json_schema() -> dict[str, Any]:
    """The study file's JSON Schema, for editors."""
    return StudySpec.model_json_schema()


_PROBLEMS = {
    "string_type": "is not a text",
    "int_type": "is not a whole number",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "too_short": "is empty; at least {min_length} is needed",
    "string_too_short": "is empty",
    "greater_than_equal": "is below {ge}, the least that works",
    "string_pattern_mismatch": "may hold letters, digits, '.', '_' and '-', and begins with a letter or digit",
}


def _sentence(error: ErrorDetails) -> str:
    """One pydantic error as a sentence with the key's path, its value and what would work."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    kind, given = error["type"], error["input"]
    if kind == "value_error":
        message = str(error["ctx"]["error"])
        return f"{where}.{message}" if where in ("settings", "space") else message
    if kind == "extra_forbidden":
        *parents, key = error["loc"]
        section = where.rpartition(".")[0]
        place = f" in {section}" if section else ""
        return f"unknown key {str(key)!r}{place}{did_you_mean(str(key), _fields(parents))}"
    if kind == "missing":
        return f"the key {where!r} is missing"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{where}: unknown {error['loc'][-1]} {given!r}{did_you_mean(str(given), known)}"
    if error["loc"][0] == "seeds":
        return f"seeds: {given!r} is neither a count nor a list of whole numbers"
    problem = _PROBLEMS.get(kind, "is wrong: " + error["msg"])
    return f"{where}: {given!r} {problem.format(**error.get('ctx', {}))}"


def _fields(parents: list[int | str]) -> list[str]:
    """The known keys of the section at a path such as ['inputs', 0]."""
    sections: dict[str, type[_Section]] = {"inputs": InputSpec, "search": SearchSpec, "comet": CometSpec}
    model = sections.get(str(parents[0])) if parents else StudySpec
    return list(model.model_fields) if model else []
