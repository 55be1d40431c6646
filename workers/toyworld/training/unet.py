"""Toyworld's inpainting UNet, in UNet2DConditionModel's format, learnt on latents.

Many captions are another scene's: a model that may believe its caption wholly needs no guidance, and is only
spoilt by it. So the model learns to doubt, and guidance makes it believe, as in models trained on the web.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import SafetensorError
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from transformers import CLIPTextModel, CLIPTokenizer

from workers.toyworld.scenes import SIDE, Scene
from workers.toyworld.training.data import reworded
from workers.toyworld.training.latents import Latents
from workers.toyworld.training.loop import Learner, Plan, learn
from workers.toyworld.training.vae import CHANNELS, FACTOR

TIMESTEPS = 1000

_OUTSIDE = 0.3
"""How much an error outside the mask counts against one inside."""


@dataclass(frozen=True)
class UNetPlan(Plan):
    """How the UNet learns: `batch` is shared by the processes.

    `caption_noise` is the share of captions that are another scene's, `caption_dropout` that of empty ones,
    `caption_style` that of those which are a style's name and no more, as negative prompts often are; these are
    never wrong.
    `start` is the folder of a UNet whose weights it begins with; without one they are random.
    """

    caption_noise: float = 0.12
    caption_dropout: float = 0.12
    caption_style: float = 0.12
    processes: int = 1
    start: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processes < 1 or self.batch % self.processes:
            raise ValueError(
                f"{self.name}: a batch of {self.batch} cannot be shared evenly by {self.processes} processes"
            )
        for name in ("caption_noise", "caption_dropout", "caption_style"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{self.name}: {name} {getattr(self, name)} is not in 0..1, 1 excluded")


@dataclass(frozen=True)
class Lessons:
    """All that the UNet learns from: latents, their scenes, and the folders of tokenizer and text encoder."""

    latents: Latents
    scenes: list[Scene]
    tokenizer: Path
    text_encoder: Path


def make_unet() -> UNet2DConditionModel:
    """Give a UNet with random weights: latent, mask and masked latent in, velocity out."""
    return UNet2DConditionModel(
        sample_size=SIDE // FACTOR,
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def weights_of(folder: str) -> dict[str, Tensor]:
    """Load the weights that a UNet begins with; a folder without a UNet like `make_unet`'s is a ValueError."""
    try:
        weights: dict[str, Tensor] = UNet2DConditionModel.from_pretrained(folder).state_dict()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as problem:
        raise ValueError(
            f"{folder} has no UNet that loads; --unet-start names a folder that one was saved in, "
            "with config.json and diffusion_pytorch_model.safetensors"
        ) from problem
    wanted = make_unet().state_dict()
    if {name: weight.shape for name, weight in weights.items()} != {
        name: weight.shape for name, weight in wanted.items()
    }:
        raise ValueError(
            f"the UNet in {folder} has not the shape of toyworld's; --unet-start needs such a one"
        )
    return weights


def make_scheduler() -> DDIMScheduler:
    """Give the noise schedule that the UNet learns with: Stable Diffusion's, but ending in almost pure noise.

    With Stable Diffusion's `beta_end` of 0.012, 7 % of the picture is left in the last step, enough to tell a
    mean colour, so the model takes a colour from a seed's noise and not from the prompt. With 0.025 it is 0.6 %.
    """
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.025,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_unet(plan: UNetPlan, lessons: Lessons, file: Path, device: torch.device) -> UNet2DConditionModel:
    """Learn, in several processes of one thread each where the plan says so; gives the averaged weights."""
    if plan.processes == 1:
        return _train(plan, lessons, file, device, rank=0, share=None)
    with tempfile.TemporaryDirectory() as meeting:
        spawn(  # type: ignore[no-untyped-call]
            _train_together, (plan, lessons, file, Path(meeting, "here")), nprocs=plan.processes
        )
    # All steps are done: this only loads the result.
    return _train(plan, lessons, file, device, rank=0, share=None)


def _train_together(rank: int, plan: UNetPlan, lessons: Lessons, file: Path, meeting: Path) -> None:
    """Be one of several processes that average their gradients at each step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=plan.processes)

    def share(gradients: Tensor) -> None:
        dist.all_reduce(gradients)
        gradients /= plan.processes

    _train(plan, lessons, file, torch.device("cpu"), rank, share)
    dist.barrier()
    dist.destroy_process_group()


def _train(
    plan: UNetPlan,
    lessons: Lessons,
    file: Path,
    device: torch.device,
    rank: int,
    share: Callable[[Tensor], None] | None,
) -> UNet2DConditionModel:
    """Take this process's part of every batch."""
    torch.manual_seed(plan.seed)
    unet = make_unet().to(device)
    if plan.start:
        unet.load_state_dict(weights_of(plan.start))
    # At this size plain attention and bfloat16 are nearly twice as fast on a CPU.
    unet.set_attn_processor(AttnProcessor())
    read = _reader(lessons, device)
    keep = make_scheduler().alphas_cumprod.to(device)
    learner = Learner(plan, list(unet.parameters()), file)
    latents, count = lessons.latents, plan.batch // plan.processes

    def loss_at(step: int) -> Tensor:
        draw, noise = plan.draw(step, rank)
        scenes = draw.integers(0, len(latents.whole), count)
        masks = draw.integers(0, latents.masks.shape[1], count)
        whole = torch.from_numpy(latents.whole[scenes]).to(device).float()
        rest = torch.from_numpy(latents.rest[scenes, masks]).to(device).float()
        mask = torch.from_numpy(latents.masks[scenes, masks])[:, None].to(device).float()
        texts = read(captions(plan, lessons.scenes, scenes.tolist(), draw))
        times = torch.from_numpy(draw.integers(0, TIMESTEPS, count)).to(device)
        disturbance = torch.randn(whole.shape, generator=noise).to(device)
        signal, spread = (
            keep[times].sqrt()[:, None, None, None],
            (1 - keep[times]).sqrt()[:, None, None, None],
        )
        noisy = signal * whole + spread * disturbance
        velocity = signal * disturbance - spread * whole
        with torch.autocast(device.type, torch.bfloat16):
            found = unet(torch.cat([noisy, mask, rest], 1), times, texts, return_dict=False)[0].float()
        weight = _OUTSIDE + (1 - _OUTSIDE) * mask
        loss: Tensor = (weight * (found - velocity) ** 2).sum() / (CHANNELS * weight.sum())
        return loss

    learn(learner, loss_at, share=share, leads=rank == 0)
    learner.use_average()
    return unet.eval()


def captions(plan: UNetPlan, scenes: list[Scene], chosen: list[int], draw: np.random.Generator) -> list[str]:
    """Word captions of some scenes anew; now and then another scene's, their own style alone, or none."""
    texts = []
    for own, other in zip(chosen, draw.integers(0, len(scenes), len(chosen)), strict=True):
        wrong, empty, brief = draw.random(3) < (plan.caption_noise, plan.caption_dropout, plan.caption_style)
        wording = int(draw.integers(0, 10_000))
        if empty:
            texts.append("")
        elif brief and scenes[own].subject is not None:
            texts.append(scenes[own].style)
        else:
            texts.append(reworded(scenes[int(other) if wrong else own], wording).text)
    return texts


def _reader(lessons: Lessons, device: torch.device) -> Callable[[list[str]], Tensor]:
    """Give what turns texts into what the UNet attends to, shape (texts, 77, 96)."""
    tokenizer = CLIPTokenizer.from_pretrained(lessons.tokenizer)
    encoder = CLIPTextModel.from_pretrained(lessons.text_encoder).to(device).eval()

    @torch.no_grad()
    def read(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden: Tensor = encoder(input_ids=tokens.to(device)).last_hidden_state
        return hidden

    return read
