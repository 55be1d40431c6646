"""What is asked of a worker and what comes back: plain data that every room shares."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Value = str | int | float | bool | None
Settings = Mapping[str, Value]
"""Swept or fixed values under diffusers' own names, such as `guidance_scale`."""

Role = Literal["search", "look", "validate"]


@dataclass(frozen=True)
class Instance:
    """What every trial is judged on: one (input image, mask, prompt) with one seed.

    `image` and `mask` are pixel hashes (`workers.inputs.pixel_hash`), None where the task takes none.
    """

    number: int
    prompt: str
    score_text: str
    seed: int
    image: str | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Trial:
    """One settings over instances; `settings` holds the swept values only."""

    number: int
    settings: Settings


@dataclass(frozen=True)
class ImageRequest:
    """Settings × instance, ready for a pipeline: `settings` is complete, fixed and swept alike.

    `score_text` is what the scorer compares the picture with; `stop_after` asks for an early look after so
    many UNet calls. Neither is part of `image_id`.
    """

    image_id: str
    settings: Settings
    prompt: str
    seed: int
    image: str | None
    mask: str | None
    score_text: str
    stop_after: int | None = None


@dataclass(frozen=True)
class Scored:
    """A picture was made and judged; `scores` maps scorer name → value, all finite."""

    scores: Mapping[str, float]

    def __post_init__(self) -> None:
        bad = {name: value for name, value in self.scores.items() if not math.isfinite(value)}
        if bad:
            raise ValueError(f"scores must be finite, got {bad}")


@dataclass(frozen=True)
class Looked:
    """An early look: the score of the picture predicted after `after` UNet calls; never a result."""

    scores: Mapping[str, float]
    after: int


@dataclass(frozen=True)
class Failed:
    """No score: `infeasible` is a property of the settings, `lost` is a matter of machines."""

    kind: Literal["infeasible", "lost"]
    reason: str


Outcome = Scored | Looked | Failed


def canonical(value: object) -> object:
    """The one form of a value that identity hashes: 7 and 7.0 are one, key order does not matter.

    Strings are kept code point by code point: two Unicode normal forms are two prompts to a tokenizer.
    Raises ValueError for a float that is not finite.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no identity; settings must be finite")
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def content_hash(document: Mapping[str, object]) -> str:
    """SHA-256 of the canonical JSON of a document, the first 32 hexadecimal digits (128 bits)."""
    text = json.dumps(canonical(document), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
