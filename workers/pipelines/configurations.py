"""What a model's configuration files say, checked before a weight is read: what is absurd is named with file and key.

Numbers are held to what pictures and towers can have; each part is built from its configuration without memory
(torch's `meta` device) and its shapes are compared with those that the head of its weights' file tells.
"""

import importlib
import inspect
import json
import math
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from search_spaces.errors import InputError, shown
from search_spaces.plain_files import open_plain, read_plain

Make = Callable[[Mapping[str, Any] | None], Any]
"""Makes something of a configuration, or of a class's defaults without one."""

MOST_BYTES = 16_000_000
"""Of a configuration file; those of models in use have under 0.1 MB."""

MOST_HEAD = 100_000_000
"""Bytes of the head of a safetensors file, as that format has it."""

MOST_DEPTH = 32
"""Lists and objects within each other."""

MOST_ITEMS = 10_000
"""Of a list or object; parts are built in a loop over some of them."""

LARGEST = 10**12
"""Of any other whole number."""

_LAYERS, _SIDES, _WIDTHS = (0, 1_000), (1, 16_384), (1, 10_000_000)
LIMITS: Mapping[str, tuple[int, int]] = {
    "depth": _LAYERS,
    "layers_per_block": _LAYERS,
    "num_hidden_layers": _LAYERS,
    "num_layers": _LAYERS,
    "num_single_layers": _LAYERS,
    "transformer_layers_per_block": _LAYERS,
    "height": _SIDES,
    "image_size": _SIDES,
    "patch_size": _SIDES,
    "sample_size": _SIDES,
    "shortest_edge": _SIDES,
    "width": _SIDES,
    "block_out_channels": _WIDTHS,
    "cross_attention_dim": _WIDTHS,
    "hidden_size": _WIDTHS,
    "in_channels": _WIDTHS,
    "intermediate_size": _WIDTHS,
    "joint_attention_dim": _WIDTHS,
    "latent_channels": _WIDTHS,
    "max_position_embeddings": _WIDTHS,
    "norm_num_groups": _WIDTHS,
    "num_channels": _WIDTHS,
    "num_train_timesteps": (1, 1_000_000),
    "out_channels": _WIDTHS,
    "vocab_size": _WIDTHS,
}
"""Least and most of a whole number by its key: what is built in a loop, a picture's side, an axis of weights."""

MOST_BLOCKS = 16
"""Of a UNet or VAE: each halves the picture."""

INFINITE = frozenset({"lambda_min_clipped"})
"""Keys that are infinite where nothing is to be cut off."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a configuration file. Raises InputError with its path."""
    try:
        content = json.loads(read_plain(path, MOST_BYTES).decode())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise InputError(f"{path}: more than {MOST_DEPTH} lists are within each other") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not JSON: it is no UTF-8") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {_why(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def check_numbers(config: Mapping[str, Any], path: Path, least_depth: int = 0) -> None:
    """Raise InputError, naming the key, for what no model has: absurd numbers, texts in their place, huge lists."""
    for name, value in config.items():
        for leaf in _leaves(value, f"{path}: {_named(name)}", least_depth):
            _check_leaf(name, leaf, path)
        if isinstance(value, dict):
            check_numbers(value, path, least_depth + 1)
    blocks = config.get("block_out_channels")
    if isinstance(blocks, list) and not 1 <= len(blocks) <= MOST_BLOCKS:
        raise InputError(
            f"{path}: block_out_channels: {shown(blocks)} is not a list of 1 to {MOST_BLOCKS} numbers"
        )


def _named(key: str) -> str:
    return key if key.isidentifier() else shown(key)


def _leaves(value: object, what: str, depth: int) -> Iterator[object]:
    """What lists hold in the end; objects are looked at on their own."""
    if isinstance(value, list | dict):
        if depth >= MOST_DEPTH:
            raise InputError(f"{what}: more than {MOST_DEPTH} lists are within each other")
        if len(value) > MOST_ITEMS:
            raise InputError(
                f"{what}: {len(value):,} items are more than the {MOST_ITEMS:,} that a model may have"
            )
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each, what, depth + 1)
    elif not isinstance(value, dict):
        yield value


def _check_leaf(name: str, value: object, path: Path) -> None:
    what = f"{path}: {_named(name)}"
    if isinstance(value, float) and not math.isfinite(value) and name not in INFINITE:
        raise InputError(f"{what}: {value} is not a finite number")
    if name in LIMITS:
        least, most = LIMITS[name]
        fits = value is None or (type(value) is int and least <= value <= most)
        if not fits:
            raise InputError(f"{what}: {shown(value)} is not a whole number from {least} to {most:,}")
    elif type(value) is int and abs(value) > LARGEST:
        raise InputError(f"{what}: {value:,} is beyond the {LARGEST:,} that a model may have")


def check_index(index: Mapping[str, Any], path: Path) -> None:
    """Raise InputError, naming the part, where a model_index.json names classes that are not there."""
    for part, named in index.items():
        if part.startswith("_") or not isinstance(named, list | dict):
            continue
        match named:
            case [None, None]:
                continue
            case [str(library), str(name)]:
                if library in ("diffusers", "transformers") and part_class(library, name) is None:
                    raise InputError(
                        f"{path}: {part}: {library} has no {shown(name)} in the version installed here"
                    )
            case _:
                raise InputError(f"{path}: {part}: {shown(named)} is not a library and one of its classes")


def part_class(library: str, name: str) -> type | None:
    """A class of diffusers or transformers; None where it has none of that name."""
    found = getattr(importlib.import_module(library), name, None) if name.isidentifier() else None
    return found if isinstance(found, type) else None


def is_model(kind: type) -> bool:
    """Whether a class has weights."""
    import torch

    return issubclass(kind, torch.nn.Module)


def check_part(kind: type, config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError where a part of a class cannot be made of its configuration, or does not fit the weights
    beside it, as far as these are on this machine; none is read.
    """
    check_numbers(config, path)
    for name, value in config.items():
        if name in _of_kinds(kind, (int, float)) and isinstance(value, str | dict):
            raise InputError(f"{path}: {name}: {shown(value)} is not a number")
        if name in _of_kinds(kind, (list, tuple)) and not isinstance(value, list | None):
            raise InputError(f"{path}: {name}: {shown(value)} is not a list")
    made = _tried(lambda held: _made(kind, held), config, path, kind)
    if hasattr(made, "named_parameters"):
        _compare(made, config, path)


def check_scheduler_config(kind: Any, config: Mapping[str, Any], path: Path) -> None:
    """`check_part` for a scheduler, which has to count ten steps, and to know what the model predicts, too."""

    def count(held: Mapping[str, Any] | None) -> None:
        with _silent():
            made = kind() if held is None else kind.from_config(dict(held))
            made.set_timesteps(10, **({"mu": 1.0} if made.config.get("use_dynamic_shifting") else {}))

    check_part(kind, config, path)
    _tried(count, config, path, kind)
    prediction = config.get("prediction_type")
    takes_it = "prediction_type" in inspect.signature(kind).parameters and prediction is not None
    if takes_it and f'"{prediction}"' not in inspect.getsource(
        kind
    ):  # it would say so in the first picture's midst
        raise InputError(f"{path}: prediction_type: {kind.__name__} knows no {shown(prediction)}")


def _tried(make: Make, config: Mapping[str, Any], path: Path, kind: type) -> Any:
    """What is made of a configuration. Raises InputError, naming the key without which it could be made.

    None where nothing can be made of the class's own defaults either: then it says nothing of the configuration.
    """
    try:
        return make(config)
    except Exception as error:  # noqa: BLE001  # of any kind: it is what a class makes of values that do not fit
        if not _succeeds(make, None):
            return None
        without = ({name: value for name, value in config.items() if name != key} for key in config)
        key = next((key for key, rest in zip(config, without, strict=True) if _succeeds(make, rest)), None)
        named = "" if key is None else f"{key}: {shown(config[key])}: "
        raise InputError(f"{path}: {named}no {kind.__name__} can be made of it: {_why(error)}") from None


def _succeeds(make: Make, config: Mapping[str, Any] | None) -> bool:
    try:
        make(config)
    except Exception:  # noqa: BLE001  # as above
        return False
    return True


def _why(error: Exception) -> str:
    """An error's first line, and the next where that is but a heading."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return first.rstrip(".:") or type(error).__name__


def check_tokenizer(kind: Any, folder: Path) -> None:
    """Raise InputError where the tokenizer in a folder cannot be made, or has a window that is none."""
    path = folder / "tokenizer_config.json"
    if not folder.is_dir():
        raise InputError(f"{folder} is not there, or no folder; the model's files are not complete")
    if path.exists():
        window = read_object(path).get("model_max_length", 1)
        if type(window) not in (int, float) or window < 1:
            raise InputError(f"{path}: model_max_length: {shown(window)} is not a whole number from 1 on")
    try:
        kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # noqa: BLE001  # as above
        raise InputError(f"{folder}: no {kind.__name__} can be made of it: {_why(error)}") from None


def check_judge(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError where the CLIP beside its configuration cannot be made of it, or prepares absurd pictures."""
    import transformers

    check_part(transformers.CLIPModel, config, path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        prepared = path.with_name(name)
        if prepared.exists():
            check_numbers(read_object(prepared), prepared)


@cache
def _of_kinds(kind: type, kinds: tuple[type, ...]) -> frozenset[str]:
    """The parameters of a class that take values of some kinds alone."""
    found = set()
    for parameter in inspect.signature(kind).parameters.values():
        annotation = parameter.annotation
        union = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        plain = {typing.get_origin(each) or each for each in union} - {type(None)}
        if plain and plain <= set(kinds):
            found.add(parameter.name)
    return frozenset(found)


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries', of what a configuration has beyond what they know
        yield


def _made(kind: Any, config: Mapping[str, Any] | None) -> Any:
    """A part without memory for its weights; of its class's defaults without a configuration."""
    import torch

    with _silent(), torch.device("meta"):
        if hasattr(kind, "config_class"):  # transformers'
            return kind(kind.config_class() if config is None else kind.config_class.from_dict(dict(config)))
        return kind() if config is None else kind.from_config(dict(config))


def _compare(made: Any, config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError where weights have other shapes than a part that is made of its configuration."""
    there = dict(_shapes(path.parent))
    wanted = {name: list(weight.shape) for name, weight in made.named_parameters()}
    other = [name for name in wanted.keys() & there.keys() if wanted[name] != there[name]]
    if not other:
        return
    first = min(other, key=lambda name: (name != "conv_in.weight", list(wanted).index(name)))
    asked, stored = wanted[first], there[first]
    key = _key_of(config, asked, stored)
    raise InputError(
        f"{path}: {key}it does not fit the weights beside it: {first} has {_times(stored)} numbers there, and "
        f"{_times(asked)} by this file" + (f", and {len(other) - 1} more" if len(other) > 1 else "")
    )


def _key_of(config: Mapping[str, Any], asked: list[int], stored: list[int]) -> str:
    """The key whose value is the first side of a weight that the configuration makes otherwise; "" where none is."""
    side = next((a for a, b in zip(asked, stored, strict=False) if a != b), None)
    objects = [config, *(value for value in config.values() if isinstance(value, dict))]
    for times in (1, 2):  # a VAE's encoder has two numbers for each of its latents
        for held in objects:
            for name in LIMITS.keys() & held.keys():
                if side is not None and type(held[name]) is int and held[name] * times == side:
                    return f"{name}: {held[name]:,}: "
    return ""


def _times(sides: list[int]) -> str:
    return "×".join(map(str, sides)) or "1"


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The shapes of the weights in a folder's safetensors files, by their heads; what is none is left out."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open_plain(path, 10**12) as file:
                size = int.from_bytes(file.read(8), "little")
                head = json.loads(file.read(size)) if size <= MOST_HEAD else {}
            found = {name: told["shape"] for name, told in head.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # the worker that loads it says what is wrong with it
        yield from found.items()
