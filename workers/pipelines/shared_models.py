"""The parts of a pipeline that many running calls share: each call believes that it has them for itself.

A plain diffusers call runs in a greenlet of its own. Where it would call the UNet or decode latents it hands its
tensors to the engine instead and sleeps until the engine, which has collected those of all other calls, wakes it
with the answer. What calls would compute again and again (prompts, input images) is remembered.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import greenlet
import torch

PROMPTS = 256
"""Encoded prompts kept per worker: two of SDXL in half precision take about 0.6 MB."""

IMAGES = 64
"""Input images kept per worker, preprocessed and encoded: one of 1024² pixels takes 12 MB as float32."""


@dataclass(frozen=True)
class UNetCall:
    """One call's rows for the UNet: `sample` (rows, channels, height, width), a timestep, other tensors by name."""

    sample: torch.Tensor
    timestep: torch.Tensor
    keywords: dict[str, Any]


@dataclass(frozen=True)
class DecodeCall:
    """Latents (1, channels, height, width), scaled as the VAE takes them."""

    latents: torch.Tensor


@dataclass(frozen=True)
class LookCall:
    """The clean latents (1, channels, height, width) that a call predicts after so many UNet calls."""

    latents: torch.Tensor
    after: int


Call = UNetCall | DecodeCall | LookCall


def hand_over(call: Call) -> Any:
    """Sleep until the engine has the answer. To be called within a greenlet that the engine has started."""
    parent = greenlet.getcurrent().parent
    assert parent is not None
    return parent.switch(call)


class Remembered:
    """A bounded memory: the least recently used goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` once gave for a key."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class SharedUNet:
    """In place of a UNet: hands every call over."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self._unet = unet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **keywords: Any) -> tuple[torch.Tensor]:
        """The noise that the UNet predicts for `sample`, as a UNet gives it with `return_dict=False`."""
        keywords.pop("return_dict", None)
        return (hand_over(UNetCall(sample, timestep, keywords)),)


class SharedVae:
    """In place of a VAE: remembers what it encoded, hands decoding over.

    Pipelines that upcast the VAE to decode must not see each other's upcasting: `dtype` is the one it was
    loaded with, and every use first brings it to its input's.
    """

    def __init__(self, vae: Any) -> None:
        self._vae, self.dtype = vae, vae.dtype
        self._encoded = Remembered(IMAGES)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def encode(self, image: torch.Tensor, return_dict: bool = True) -> Any:
        """The posterior of an image (1, 3, height, width), computed once."""
        assert return_dict
        return self._encoded.get(content(image), lambda: self._as(image.dtype).encode(image))

    def decode(self, latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        """Hand latents over; a generator is not needed, since decoding draws nothing."""
        return (hand_over(DecodeCall(latents)),)

    def decode_now(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents (n, channels, height, width) into images (n, 3, height, width) from -1 to 1."""
        decoded: torch.Tensor = self._as(latents.dtype).decode(latents, return_dict=False)[0]
        return decoded

    def _as(self, dtype: torch.dtype) -> Any:
        if next(self._vae.parameters()).dtype != dtype:
            self._vae.to(dtype=dtype)
        return self._vae


def content(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype, bytes]:
    """Equal for tensors that hold the same; a GPU is waited for."""
    raw = tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy()
    return tensor.shape, tensor.dtype, hashlib.blake2b(raw.data, digest_size=16).digest()


class SharedProcessor:
    """In place of an image processor: remembers what it made of an image, as long as that is the same object."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._made = Remembered(IMAGES)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def preprocess(self, image: Any, *arguments: Any, **keywords: Any) -> Any:
        """The image as a tensor; `image` itself is kept, so that its id stays its own."""
        key = (id(image), repr(arguments), repr(sorted(keywords.items())))
        return self._made.get(
            key, lambda: (image, self._processor.preprocess(image, *arguments, **keywords))
        )[1]


def remembered_prompts(encode_prompt: Callable[..., Any]) -> Callable[..., Any]:
    """A pipeline's `encode_prompt` that encodes the same texts in the same way once."""
    known = Remembered(PROMPTS)

    def encode(*arguments: Any, **keywords: Any) -> Any:
        key = (repr(arguments), repr(sorted(keywords.items())))
        return known.get(key, lambda: encode_prompt(*arguments, **keywords))

    return encode
