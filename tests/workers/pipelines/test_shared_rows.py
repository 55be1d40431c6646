"""Rows that hold the same are computed once, and the UNet's answer is what it is without that."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.workers.helpers import SCHEDULER_NOISE
from tests.workers.pipelines.test_slot_engine import Bench, Load, Pair, benches, drained
from tests.workers.tiny_models import TOYWORLD
from workers.pipelines.shared_rows import SharedRows

pytestmark = SCHEDULER_NOISE


@pytest.fixture(scope="module")
def load(tiny_sd: Path, tiny_sdxl: Path, cat: Pair, dog: Pair) -> Load:
    return benches(tiny_sd, tiny_sdxl, [cat, dog])


@pytest.fixture
def unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel.from_pretrained(TOYWORLD / "unet").eval()


class Rows:
    """Stands before a layer's forward, as accelerate's hooks do, and notes how many rows it is given."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.forward = layer, layer.forward
        self.seen: list[int] = []
        layer.forward = self

    def __call__(self, first: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        self.seen.append(len(first))
        return self.forward(first, *arguments, **keywords)

    def remove(self) -> None:
        assert vars(self.layer).pop("forward") is self


def batch(samples: list[int], texts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, timesteps and texts of rows that hold what these numbers name."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(9, 9, 16, 16, generator=generator)[samples],
        torch.rand(9, generator=generator)[samples] * 999,
        torch.randn(9, 77, 96, generator=generator)[texts],
    )


@pytest.mark.parametrize(
    ("samples", "texts"),
    [
        ([0, 0, 1, 1, 2], [0, 1, 0, 2, 1]),
        ([0, 1, 0, 1], [0, 0, 0, 1]),
        ([0, 0, 0], [0, 1, 2]),
        ([0, 1, 2], [0, 0, 0]),
        ([3, 2], [1, 0]),
        ([0], [0]),
    ],
)
@torch.inference_mode()
def test_the_answer_is_that_of_all_rows(unet: Any, samples: list[int], texts: list[int]) -> None:
    sample, times, text = batch(samples, texts)
    plain = unet(sample, times, text).sample
    first, projection = (
        Rows(unet.conv_in),
        Rows(unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v),
    )
    with SharedRows(unet).within(samples, texts):
        shared = unet(sample, times, text).sample
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=0)
    assert first.seen == [len(set(samples))]
    assert projection.seen == [len(set(texts))]


@torch.inference_mode()
def test_the_names_decide(unet: Any) -> None:
    """So that the comparison can fail: rows named alike that are not give one answer."""
    sample, times, text = batch([0, 1], [0, 1])
    plain = unet(sample, times, text).sample
    for names in (([0, 0], [0, 1]), ([0, 1], [0, 0])):
        with SharedRows(unet).within(*names):
            assert (unet(sample, times, text).sample - plain)[1].abs().max() > 1e-2


def test_the_unet_is_as_it_was_whatever_happens(unet: Any) -> None:
    own = Rows(unet.conv_in)
    before = {name: dict(vars(module)) for name, module in unet.named_modules()}
    with SharedRows(unet).within([0, 0], [0, 0]):
        assert unet.conv_in.forward is not own
    with pytest.raises(KeyboardInterrupt), SharedRows(unet).within([0, 0], [0, 0]):
        raise KeyboardInterrupt
    assert {name: dict(vars(module)) for name, module in unet.named_modules()} == before


class TestInTheEngine:
    @pytest.fixture
    def text(self, load: Load) -> Bench:
        return load("sd", "text-to-image")

    @pytest.fixture
    def first(self, text: Bench) -> Iterator[Rows]:
        rows = Rows(text.pipeline.unet.conv_in)
        yield rows
        rows.remove()

    @pytest.fixture
    def projection(self, text: Bench) -> Iterator[Rows]:
        rows = Rows(text.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k)
        yield rows
        rows.remove()

    def test_pairs_and_texts_are_found(self, text: Bench, first: Rows, projection: Rows) -> None:
        requests = [
            text.request(1),
            text.request(2),
            text.request(3, negative_prompt="cartoon"),
            text.request(4, guidance_scale=1.0),
        ]
        text.assert_plain(drained(text.engine(rows=7), requests), requests)
        assert first.seen == [4] * 4
        assert projection.seen == [3] * 4  # the prompt, no negative prompt, a negative prompt

    def test_one_seed_with_different_guidance_is_not_one(self, text: Bench, first: Rows) -> None:
        requests = [text.request(1, guidance_scale=guidance) for guidance in (3.0, 5.0)]
        text.assert_plain(drained(text.engine(), requests), requests)
        assert first.seen == [2] * 4

    def test_not_where_shapes_must_not_change(
        self, text: Bench, first: Rows, projection: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
        engine = text.engine(rows=6)
        engine.compile()
        drained(engine, [text.request(seed, num_inference_steps=2) for seed in range(2)])
        assert (first.seen, projection.seen) == ([6] * 2, [6] * 2)

    def test_the_bare_unet_is_given_all_rows(self, text: Bench, first: Rows, projection: Rows) -> None:
        text.engine(rows=6).bare_rate(text.request(), seconds=0.0)
        assert (first.seen, projection.seen) == ([6], [6])

    def test_where_the_text_comes_with_the_timestep_only_texts_are_shared(self, load: Load) -> None:
        """SDXL."""
        bench = load("sdxl", "text-to-image")
        first = Rows(bench.pipeline.unet.conv_in)
        try:
            requests = [bench.request(seed) for seed in range(2)]
            bench.assert_plain(drained(bench.engine(rows=4), requests), requests)
        finally:
            first.remove()
        assert first.seen == [4] * 4
