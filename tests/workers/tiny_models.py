"""Tiny random-weight Stable Diffusion and SDXL folders: real classes and file layout, meaningless pictures."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import workers.toyworld

TOYWORLD = Path(workers.toyworld.__path__[0]) / "model" / "pipeline"
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SIDE = 32
"""Pixels of a side of these models' pictures: 16 latents × 2."""


def save_tiny_sd(folder: Path, guidance_embedded: bool = False) -> Path:
    """A Stable Diffusion folder; with `guidance_embedded`, one as Latent Consistency Models are."""
    torch.manual_seed(0)
    parts = {
        "unet": _unet(cross_attention_dim=32, time_cond_proj_dim=16 if guidance_embedded else None),
        "vae": _vae(),
        "text_encoder": CLIPTextModel(_text_config()),
        "tokenizer": CLIPTokenizer.from_pretrained(TOYWORLD / "tokenizer"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    if guidance_embedded:
        made: Any = LatentConsistencyModelPipeline(**parts, scheduler=LCMScheduler(**BETAS))
    else:
        scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
        made = StableDiffusionPipeline(**parts, scheduler=scheduler)
    made.save_pretrained(folder)
    return folder


def save_tiny_sdxl(folder: Path) -> Path:
    """An SDXL folder, with its two text encoders and its embedding of sizes."""
    torch.manual_seed(1)
    tokenizer = CLIPTokenizer.from_pretrained(TOYWORLD / "tokenizer")
    StableDiffusionXLPipeline(
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,  # 6 numbers of size and crop × 8, pooled text 32
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(**BETAS),
    ).save_pretrained(folder)
    return folder


def _unet(**special: object) -> Any:
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **special,
    )
    with torch.no_grad():  # as they are born, random weights hardly listen to the prompt
        for name, weight in unet.named_parameters():
            if "attn2.to_v" in name:
                weight.mul_(8)
    return unet


def _vae() -> Any:
    return AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )


def _text_config() -> Any:
    return CLIPTextConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=1022,
        eos_token_id=1023,
        pad_token_id=1023,
    )
