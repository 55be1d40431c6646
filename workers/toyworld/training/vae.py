"""Toyworld's VAE: pictures to a quarter of their side in four channels, and back, in AutoencoderKL's format."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from workers.toyworld.scenes import SIDE
from workers.toyworld.training.data import SceneSet, pixels
from workers.toyworld.training.loop import Learner, Plan, learn

FACTOR = 4
"""How many times smaller a latent's side is than the picture's."""

CHANNELS = 4
"""Channels of a latent: what diffusers' inpainting pipelines take."""

_CROP = 32
_KL_WEIGHT = 5e-4


def make_vae() -> AutoencoderKL:
    """Give a VAE with random weights."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def train_vae(
    plan: Plan, data: SceneSet, held_out: Tensor, file: Path, device: torch.device
) -> AutoencoderKL:
    """Learn encoder and decoder together, mostly on crops; `held_out` are pictures as `pixels` gives them."""
    torch.manual_seed(plan.seed)
    vae = make_vae().to(device, memory_format=torch.channels_last)
    learner = Learner(plan, list(vae.parameters()), file)

    def loss_at(step: int) -> Tensor:
        draw, noise = plan.draw(step)
        # Every fifth step sees whole pictures, a quarter as many: edges and norms are not those of crops.
        whole = step % 5 == 4
        chosen = draw.integers(0, len(data), max(1, plan.batch // 4) if whole else plan.batch)
        target = _augmented(data.images[chosen], SIDE if whole else _CROP, draw).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            found = vae.encode(target.contiguous(memory_format=torch.channels_last)).latent_dist
            sampled = found.mean + found.std * _normal_like(found.mean, noise)
            drawn = vae.decode(sampled).sample.float()
        mean, variance = found.mean.float(), found.logvar.float()
        divergence = 0.5 * (mean**2 + variance.exp() - 1 - variance).mean()
        loss: Tensor = _difference(drawn, target) + _KL_WEIGHT * divergence
        return loss

    def tell() -> Mapping[str, float]:
        return {"PSNR": psnr(vae, held_out.to(device))}

    learn(learner, loss_at, tell=tell)
    learner.use_average()
    return standardised(vae, data)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Give the mean PSNR, in dB, of pictures (-1..1) that went through the VAE without sampling."""
    return float(psnr_each(vae, pictures).mean())


@torch.no_grad()
def psnr_each(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Give the PSNR of each picture in dB, shape (pictures,)."""
    errors = [
        (((vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) - part) / 2) ** 2).mean(
            (1, 2, 3)
        )
        for part in torch.split(pictures, 64)
    ]
    return -10 * torch.log10(torch.cat(errors))


@torch.no_grad()
def standardised(vae: AutoencoderKL, data: SceneSet) -> AutoencoderKL:
    """Fold shift and scale of each latent channel into the VAE, so that latents have mean 0 and deviation 1."""
    device = vae.device
    latents = torch.cat(
        [vae.encode(pixels(data.images[first : first + 64]).to(device)).latent_dist.mean
         for first in range(0, min(len(data), 1024), 64)]
    )  # fmt: skip
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:CHANNELS] /= deviation[:, None, None, None]
    into.bias[:CHANNELS] = (into.bias[:CHANNELS] - mean) / deviation
    into.bias[CHANNELS:] -= 2 * deviation.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
    return vae


def _augmented(images: NDArray[np.uint8], side: int, draw: np.random.Generator) -> Tensor:
    """Crop, mirror half, and blank a rectangle of some, as an inpainting pipeline blanks what it paints anew."""
    tops, lefts = draw.integers(0, SIDE - side + 1, (2, len(images)))
    crops = [
        image[top : top + side, left : left + side]
        for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    pictures = pixels(np.stack(crops))
    if draw.random() < 0.5:
        pictures = pictures.flip(-1)
    for picture in pictures[: len(pictures) // 4]:
        top, bottom = sorted(draw.integers(0, side + 1, 2))
        left, right = sorted(draw.integers(0, side + 1, 2))
        picture[:, top:bottom, left:right] = 0
    return pictures


def _difference(drawn: Tensor, target: Tensor) -> Tensor:
    """Compare pictures by their values and by their edges, which alone would not keep an outline sharp."""
    values: Tensor = (drawn - target).abs().mean() + 4 * functional.mse_loss(drawn, target)
    across = (drawn - target).diff(dim=-1).abs().mean()
    down = (drawn - target).diff(dim=-2).abs().mean()
    return values + 0.25 * (across + down)


def _normal_like(like: Tensor, noise: torch.Generator) -> Tensor:
    """Draw normal noise on the CPU, where it is the same for every device."""
    return torch.randn(like.shape, generator=noise).to(like)
