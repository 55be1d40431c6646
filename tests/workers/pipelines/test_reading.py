"""Against the tokenizers and text towers of real pipelines, toyworld's and small ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.models import ModelDescription
from workers.pipelines.loading import describe, load_pipeline, local_folder
from workers.pipelines.reading import TextReader, text_reader

LONG = ", ".join(["a green dragon on a blue sky"] * 20)


@pytest.fixture(scope="module")
def toyworld() -> ModelDescription:
    return describe("toyworld", None, "float32", Path())


@pytest.fixture(scope="module")
def reader(toyworld: ModelDescription) -> TextReader:
    found = text_reader(toyworld)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("one", "two", "alike"),
    [
        ("cartoon", "Cartoon", True),
        ("cartoon", "cartoon ", True),
        ("", " ", True),
        ("a green dragon", " A  Green\tDragon\n", True),
        ("caf\u00e9", "cafe\u0301", True),
        (LONG, LONG + ", in the rain", True),
        ("cartoon", "cartoons", False),
        ("a cat, a dog", "a dog, a cat", False),
        ("", "cartoon", False),
        ("cat", "cat<|endoftext|>", False),
    ],
)
def test_texts_of_the_same_tokens_are_embedded_alike(
    reader: TextReader, toyworld: ModelDescription, one: str, two: str, alike: bool
) -> None:
    assert (reader.tokens(one) == reader.tokens(two)) is alike
    pipeline = loaded(toyworld)
    first, second = (pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in (one, two))
    if alike:
        assert torch.equal(first, second)
    elif "<|" not in two:  # tokens that differ may, by a model's padding, be embedded alike
        assert not torch.equal(first, second)


_pipelines: dict[str, Any] = {}


def loaded(model: ModelDescription) -> Any:
    if model.location not in _pipelines:
        _pipelines[model.location] = load_pipeline(model, "cpu")
    return _pipelines[model.location]


def test_what_is_beyond_the_window_is_counted(reader: TextReader) -> None:
    assert reader.cut("a green dragon") is None
    found = reader.cut(LONG)
    assert found is not None
    tokens, window = found
    assert window == 77
    assert tokens > 140


def test_texts_of_a_model_stay_as_they_are_where_nobody_knows_what_it_reads(
    toyworld: ModelDescription, tmp_path: Path
) -> None:
    assert text_reader(toyworld.model_copy(update={"pipeline": "PipelineOfTomorrow"})) is None
    folder = local_folder(toyworld.location)
    assert folder is not None
    shutil.copy(folder / "model_index.json", tmp_path)
    here = toyworld.model_copy(update={"location": str(tmp_path)})
    assert text_reader(here) is None, "it has no tokenizer"
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("no tokenizer", encoding="utf-8")
    assert text_reader(here) is None


def test_a_pipeline_with_a_second_tokenizer_is_read_by_both(
    toyworld: ModelDescription, tmp_path: Path
) -> None:
    folder = local_folder(toyworld.location)
    assert folder is not None
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folder / "tokenizer", tmp_path / name)
    config = tmp_path / "tokenizer_2" / "tokenizer_config.json"
    shorter = json.loads(config.read_text(encoding="utf-8")) | {"model_max_length": 5}
    config.write_text(json.dumps(shorter), encoding="utf-8")
    xl = toyworld.model_copy(
        update={"location": str(tmp_path), "pipeline": "StableDiffusionXLInpaintPipeline"}
    )

    def read_by(**parts: object) -> TextReader:
        (tmp_path / "model_index.json").write_text(json.dumps({**index, **parts}), encoding="utf-8")
        found = text_reader(xl)
        assert found is not None
        return found

    both = read_by(tokenizer_2=index["tokenizer"])
    text = "a green dragon and a cat"
    assert both.cut(text) == (len(both.tokens(text)[0]), 5)  # type: ignore[index]
    assert both.tokens(text) != both.tokens(text + " and a dog"), "one of them reads on"
    second = read_by(tokenizer_2=index["tokenizer"], tokenizer=[None, None])
    assert second.tokens(text) == second.tokens(text + " and a dog")
