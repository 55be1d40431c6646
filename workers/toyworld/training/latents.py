"""Every scene as the UNet sees it: its latent, and the latent of what some random masks leave of it."""

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from workers.toyworld.training.data import SceneSet, pixels, random_mask
from workers.toyworld.training.loop import aside_of
from workers.toyworld.training.vae import FACTOR

_SHARD = 1000
_BATCH = 50


@dataclass(frozen=True)
class Latents:
    """What a UNet learns from, side being the latents'.

    `whole` are the scenes, shape (scenes, 4, side, side), standardised; `rest` is what the masks leave of them
    (what they hide is grey), shape (scenes, masks, 4, side, side); `masks` is True where the UNet paints,
    shape (scenes, masks, side, side).
    """

    whole: NDArray[np.float16]
    rest: NDArray[np.float16]
    masks: NDArray[np.bool_]


def load_latents(folder: Path, vae: Path, data: SceneSet, masks: int, processes: int) -> Latents:
    """Give the latents of all scenes with some masks each; those that the folder lacks are encoded and kept."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    lacking = []
    for first in range(0, len(data), _SHARD):
        last = min(first + _SHARD, len(data))
        file = folder / f"{first:08}-{last - 1:08}-{masks}.npz"
        files.append(file)
        if not file.exists():
            part = SceneSet(data.scenes[first:last], data.images[first:last], data.squares[first:last])
            lacking.append((file, vae, part, masks, first))
    if lacking:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for done, _ in enumerate(pool.imap(_keep_shard, lacking), 1):
                print(f"latents: {done} of {len(lacking)} files encoded", flush=True)
    parts = [np.load(file) for file in files]
    return Latents(*(np.concatenate([part[name] for part in parts]) for name in ("whole", "rest", "masks")))


def shrink_masks(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bring masks, shape (…, SIDE, SIDE), to the latents' size as diffusers does: the nearest pixel's value."""
    return masks[..., ::FACTOR, ::FACTOR]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> NDArray[np.float16]:
    """Give the latents of pictures (-1..1), shape (pictures, 4, side, side)."""
    found = []
    for part in torch.split(pictures, _BATCH):
        part = part.to(vae.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(vae.device.type, torch.bfloat16):
            mean = vae.encode(part).latent_dist.mean
        found.append((mean.float() * vae.config.scaling_factor).cpu())
    latents: NDArray[np.float16] = torch.cat(found).half().numpy()
    return latents


def _keep_shard(task: tuple[Path, Path, SceneSet, int, int]) -> None:
    """Encode a file of scenes."""
    file, folder, data, count, first = task
    vae = _load(folder)
    pictures = pixels(data.images)
    masks = _masks(data, count, first)
    rest = np.empty((len(data), count, *encode(vae, torch.zeros_like(pictures[:1])).shape[1:]), np.float16)
    # Many masks hide everything; what they leave is the same for all scenes.
    rest[:] = encode(vae, torch.zeros_like(pictures[:1]))
    for index in range(count):
        seen = np.flatnonzero(~masks[:, index].all((1, 2)))
        left = pictures[seen] * ~torch.from_numpy(masks[seen, None, index])
        rest[seen, index] = encode(vae, left)
    aside = aside_of(file)
    with aside.open("wb") as stream:
        np.savez(stream, whole=encode(vae, pictures), rest=rest, masks=shrink_masks(masks))
    aside.replace(file)


def _masks(data: SceneSet, count: int, first: int) -> NDArray[np.bool_]:
    """Choose masks for scenes by their numbers, shape (scenes, count, SIDE, SIDE)."""
    chosen: Sequence[Sequence[NDArray[np.bool_]]] = [
        [
            random_mask(data.square(index), np.random.default_rng((first + index, mask)))
            for mask in range(count)
        ]
        for index in range(len(data))
    ]
    return np.array(chosen)


@cache
def _load(folder: Path) -> AutoencoderKL:
    """Load a VAE once per process; on a CPU, with one thread per process."""
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(1)
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
    return vae.to("cuda" if cuda else "cpu", memory_format=torch.channels_last).eval()
