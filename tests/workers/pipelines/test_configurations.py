"""Absurd configurations of models: named in a sentence with file and key, before memory is taken for a weight."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import workers.toyworld
from search_spaces.errors import InputError
from tests.workers.helpers import refusal
from tests.workers.tiny_models import TOYWORLD, save_tiny_sd, save_tiny_sdxl
from workers.pipelines.configurations import MOST_DEPTH, check_numbers, check_part, check_scheduler_config
from workers.pipelines.loading import describe, describe_clip, load_pipeline

CLIP = Path(workers.toyworld.__path__[0]) / "model" / "clip"
UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
TOWER, TOKENIZER = "text_encoder/config.json", "tokenizer/tokenizer_config.json"
DEEP = "[" * 10_000 + "]" * 10_000


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The bundled model in folders of the user's."""
    shutil.copytree(TOYWORLD, tmp_path / "model")
    shutil.copytree(CLIP, tmp_path / "clip")
    return tmp_path / "model"


def change(path: Path, key: str, value: object) -> None:
    """Set a key, `a.b` within an object; a value that is already JSON text of its own is written as it is."""
    config = json.loads(path.read_text())
    held, (*outer, last) = config, key.split(".")
    for name in outer:
        held = held[name]
    held[last] = "VALUE" if value is DEEP else value
    text = json.dumps(config)
    path.write_text(text.replace('"VALUE"', DEEP) if value is DEEP else text)


def described(folder: Path) -> None:
    describe(str(folder), None, "float32", folder.parent)
    describe_clip(str(folder.parent / "clip"), str(folder), folder.parent)


ABSURD: list[tuple[str, str, object]] = [
    (UNET, "in_channels", 10**9),
    (UNET, "in_channels", -9),
    (UNET, "in_channels", "nine"),
    (UNET, "in_channels", 9.5),
    (UNET, "in_channels", True),
    (UNET, "in_channels", [9]),
    (UNET, "in_channels", DEEP),
    (UNET, "in_channels", {"a": 1}),
    (UNET, "in_channels", None),
    (UNET, "in_channels", 10),
    (UNET, "out_channels", 0),
    (UNET, "sample_size", 10**9),
    (UNET, "sample_size", "sixteen"),
    (UNET, "sample_size", -16),
    (UNET, "sample_size", [16, 10**9]),
    (UNET, "block_out_channels", []),
    (UNET, "block_out_channels", [64] * 64),
    (UNET, "block_out_channels", [64, 96, 10**12]),
    (UNET, "block_out_channels", 64),
    (UNET, "block_out_channels", [64, 96, 97]),
    (UNET, "down_block_types", ["NoSuchBlock"] * 3),
    (UNET, "down_block_types", 7),
    (UNET, "layers_per_block", 10**8),
    (UNET, "layers_per_block", [1, 1, 10**8]),
    (UNET, "norm_num_groups", 0),
    (UNET, "norm_num_groups", 7),
    (UNET, "norm_eps", "small"),
    (UNET, "norm_eps", float("nan")),
    (UNET, "cross_attention_dim", 97),
    (UNET, "attention_head_dim", 0),
    (UNET, "time_embedding_dim", 10**30),
    (UNET, "act_fn", "no such function"),
    (VAE, "latent_channels", -4),
    (VAE, "latent_channels", 5),
    (VAE, "scaling_factor", "one"),
    (VAE, "block_out_channels", [[16], [32], [96, [10**10]]]),
    (SCHEDULER, "num_train_timesteps", 0),
    (SCHEDULER, "num_train_timesteps", 10**10),
    (SCHEDULER, "num_train_timesteps", "many"),
    (SCHEDULER, "num_train_timesteps", None),
    (SCHEDULER, "beta_start", "low"),
    (SCHEDULER, "beta_end", float("inf")),
    (SCHEDULER, "beta_schedule", "no such schedule"),
    (SCHEDULER, "prediction_type", "no such prediction"),
    (SCHEDULER, "timestep_spacing", "no such spacing"),
    (TOWER, "hidden_size", 10**9),
    (TOWER, "hidden_size", 97),
    (TOWER, "num_hidden_layers", 10**8),
    (TOWER, "num_attention_heads", 0),
    (TOWER, "vocab_size", "many"),
    (TOWER, "max_position_embeddings", 78),
    (TOWER, "hidden_act", "no such function"),
    (TOKENIZER, "model_max_length", "77"),
    (TOKENIZER, "model_max_length", -1),
    (TOKENIZER, "model_max_length", None),
    ("model_index.json", "_class_name", "NoSuchPipeline"),
    ("model_index.json", "_class_name", "\ud800"),
    ("model_index.json", "unet", ["diffusers", "NoSuchModel"]),
    ("model_index.json", "unet", ["diffusers"]),
    ("model_index.json", "unet", ["diffusers", ["UNet2DConditionModel"]]),
    ("model_index.json", "text_encoder", ["transformers", "no identifier"]),
    ("model_index.json", "scheduler", ["diffusers", "NoSuchScheduler"]),
    ("model_index.json", "vae", DEEP),
    ("../clip/config.json", "text_config.num_hidden_layers", 10**9),
    ("../clip/config.json", "text_config.vocab_size", 1025),
    ("../clip/config.json", "vision_config.image_size", 10**9),
    ("../clip/config.json", "vision_config.patch_size", 0),
    ("../clip/config.json", "vision_config", []),
    ("../clip/config.json", "projection_dim", "64"),
    ("../clip/processor_config.json", "image_processor.size.shortest_edge", 10**9),
]


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


WHOLE: dict[str, Callable[[Path], object]] = {
    "it is a folder": lambda path: replaced(path, Path.mkdir),
    "it is no JSON": lambda path: path.write_text("{'in_channels': 9}"),
    "it is empty": lambda path: path.write_text(""),
    "it is deep": lambda path: path.write_text(DEEP),
    "it is a list": lambda path: path.write_text("[1, 2]"),
    "it is no text": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "it is huge": lambda path: os.truncate(path, 10**8),
    "it is a pipe": lambda path: replaced(path, os.mkfifo),
}


def sentence(folder: Path) -> str:
    """What refuses a model, which no memory was taken for."""
    before = torch.get_default_device(), torch.random.get_rng_state()
    with pytest.raises(InputError) as caught:
        described(folder)
    assert torch.get_default_device() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    said = str(caught.value)
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(("file", "key", "value"), ABSURD, ids=lambda each: str(each)[:30])
def test_what_is_absurd_is_named_with_file_and_key(copied: Path, file: str, key: str, value: object) -> None:
    path = (copied / file).resolve()
    change(path, key, value)
    said = sentence(copied)
    assert said.startswith("clip_model: " if "clip" in file else "model: ")
    if key == "_class_name":
        named = "NoSuchPipeline" if value == "NoSuchPipeline" else r"'\ud800'"
        assert (
            said
            == f"model: a {named} cannot do the task text-to-image; it is no pipeline that diffusers knows"
        )
        return
    if value == ["diffusers", "NoSuchScheduler"]:
        assert said.endswith("has no diffusers scheduler, and a study needs one")
        return
    assert str(path) in said or str(path.parent) in said
    if value is not DEEP and value not in (
        [64, 96, 97],
        ["NoSuchBlock"] * 3,
    ):  # of which no one key is at fault
        assert key.split(".")[-1] in said, said


@pytest.mark.parametrize(
    "file", [UNET, VAE, SCHEDULER, TOWER, TOKENIZER, "model_index.json", "../clip/config.json"]
)
@pytest.mark.parametrize("how", WHOLE)
def test_a_file_that_is_none_is_named(copied: Path, file: str, how: str) -> None:
    path = (copied / file).resolve()
    WHOLE[how](path)
    said = sentence(copied)
    assert str(path.parent) in said, said


@pytest.mark.parametrize("file", [VAE, TOWER, SCHEDULER, TOKENIZER])
def test_a_part_that_is_not_there_is_refused(copied: Path, file: str) -> None:
    shutil.rmtree((copied / file).parent)
    assert file.partition("/")[0] in sentence(copied)


SOUND = ["AutoencoderKL", "AutoencoderTiny"]


@pytest.mark.parametrize("name", [*SOUND, *(n for n in dir(diffusers) if n.endswith("Scheduler"))])
def test_what_diffusers_itself_makes_is_not_refused(tmp_path: Path, name: str) -> None:
    kind = getattr(diffusers, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = kind()
    except (TypeError, ImportError):  # no default of it, or no library
        pytest.skip(f"diffusers makes no {name} here")
    config = json.loads(made.to_json_string())
    check = check_scheduler_config if hasattr(made, "set_timesteps") else check_part
    check(kind, config, tmp_path / "config.json")


@pytest.mark.parametrize("save", [save_tiny_sd, save_tiny_sdxl])
def test_a_sound_model_is_not_refused(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    describe(str(save(tmp_path / "sound")), None, "float32", tmp_path)


def test_limits_are_exact(tmp_path: Path) -> None:
    nested: Any = 1
    for _ in range(MOST_DEPTH):
        nested = [nested]
    path = tmp_path / "config.json"
    check_numbers({"sample_size": 16_384, "a": nested, "b": [0] * 10_000, "layers_per_block": 0}, path)
    for config in ({"sample_size": 16_385}, {"a": [nested]}, {"b": [0] * 10_001}, {"layers_per_block": -1}):
        with pytest.raises(InputError, match=next(iter(config))):
            check_numbers(config, path)


def test_what_a_library_raises_while_it_loads_is_a_sentence(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = describe(str(copied), None, "float32", copied.parent)

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of whatever kind")

    monkeypatch.setattr(diffusers.AutoPipelineForInpainting, "from_pretrained", fail)
    with refusal("model: ", "cannot be loaded: of whatever kind"):
        load_pipeline(model, "cpu")
