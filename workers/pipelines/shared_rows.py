"""What several rows of one UNet call have in common, computed once.

Both rows of a request with guidance hold the same latents and differ in their text, of which a UNet hears at its
first cross-attention only; and most requests of a sweep share a few texts, whose keys and values each layer projects
anew.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class SharedRows:
    """A UNet2DConditionModel's layers that may skip rows: those before the text, and those that see nothing else."""

    def __init__(self, unet: Any) -> None:
        self._before_text = _before_text(unet)
        self._of_text = [
            projection
            for name, module in unet.named_modules()
            if name.endswith(".attn2")
            for projection in (module.to_k, module.to_v)
        ]

    @contextmanager
    def within(self, samples: Sequence[Hashable], texts: Sequence[Hashable]) -> Iterator[None]:
        """Within the block, the UNet takes rows for equal whose `samples` (with their timesteps) or `texts` are.

        Both name what each row holds. Outside it the UNet is as it was.
        """
        with ExitStack() as patched:
            for layers, names in ((self._before_text, samples), (self._of_text, texts)):
                numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
                if len(numbers) == len(names):
                    continue
                spread = torch.tensor([numbers[name] for name in names])
                first = torch.tensor([names.index(name) for name in numbers])
                for layer in layers:
                    patched.enter_context(_forward(layer, _once(layer.forward, first, spread)))
            yield


def _before_text(unet: Any) -> list[torch.nn.Module]:
    """The layers before the first cross-attention; none where the text reaches them with the timestep (SDXL)."""
    config = unet.config
    if config.addition_embed_type or config.class_embed_type or config.encoder_hid_dim_type:
        return []
    found = [unet.conv_in]
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            found.append(block.resnets[0])
            alone = not (config.only_cross_attention or config.dual_cross_attention)
            return [*found, block.attentions[0].transformer_blocks[0].attn1] if alone else found
        found.append(block)
    return found


def _once(forward: Callable[..., Any], first: torch.Tensor, spread: torch.Tensor) -> Callable[..., Any]:
    """A layer's forward over the `first` of equal rows, each answer spread over all its rows."""

    def once(*arguments: Any, **keywords: Any) -> Any:
        return _rows(forward(*_rows(arguments, first), **_rows(keywords, first)), spread)

    return once


def _rows(value: Any, rows: torch.Tensor) -> Any:
    """Tensors, or what holds them, with these rows."""
    if isinstance(value, torch.Tensor):
        return value.index_select(0, rows)
    if isinstance(value, tuple):
        return tuple(_rows(each, rows) for each in value)
    return {name: _rows(each, rows) for name, each in value.items()} if isinstance(value, dict) else value


@contextmanager
def _forward(layer: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a layer; one that somebody had put there (accelerate does) is put back."""
    before = vars(layer).get("forward")
    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(layer)["forward"]
        else:
            vars(layer)["forward"] = before
