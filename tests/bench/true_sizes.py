"""Models of true size without true weights: Stable Diffusion 1.5 inpainting and SDXL, drawn at random.

    python -m tests.bench.true_sizes {sd15-inpainting,sdxl} FOLDER [--width 0.25] [--dtype bfloat16]

writes a diffusers folder with the architecture of the published configurations (stable-diffusion-v1-5/
stable-diffusion-inpainting, stabilityai/stable-diffusion-xl-base-1.0) and random weights, and a study file beside
it, for `python -m tests.bench.engine --study FOLDER/study.yaml`. The pictures are noise; speed and memory are those
of the real model. `--width` narrows every layer, for a machine without a GPU. The tokenizer is toyworld's.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

TOYWORLD = Path(__file__).parents[2] / "workers" / "toyworld" / "model" / "pipeline"
STUDIES = Path(__file__).parents[2] / "studies"

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def narrowed(channels: int, width: float) -> int:
    """A layer's channels at a width, in whole groups of 32."""
    return max(32, round(channels * width / 32) * 32)


def text_encoder(hidden: int, layers: int, width: float, projection: int | None = None) -> Any:
    """A CLIP text encoder; with a projection where `projection` gives its size."""
    hidden = max(64, round(hidden * width / 64) * 64)
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        projection_dim=hidden if projection is None else max(64, round(projection * width / 64) * 64),
        hidden_act="quick_gelu" if projection is None else "gelu",
        bos_token_id=1022,
        eos_token_id=1023,
        pad_token_id=1023,
    )
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return kind(config)


def autoencoder(width: float, sample_size: int, scaling_factor: float, force_upcast: bool) -> Any:
    """The VAE of both families."""
    return diffusers.AutoencoderKL(
        block_out_channels=tuple(narrowed(channels, width) for channels in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
        force_upcast=force_upcast,
    )


def sd15_inpainting(width: float) -> Any:
    """Stable Diffusion 1.5 for inpainting: 9 input channels, 512² pixels."""
    text = text_encoder(768, 12, width)
    blocks = tuple(narrowed(channels, width) for channels in (320, 640, 1280, 1280))
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        in_channels=9,
        out_channels=4,
        block_out_channels=blocks,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        layers_per_block=2,
        cross_attention_dim=text.config.hidden_size,
        attention_head_dim=8,
    )
    return diffusers.StableDiffusionInpaintPipeline(
        vae=autoencoder(width, 512, 0.18215, force_upcast=False),
        text_encoder=text,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(TOYWORLD / "tokenizer"),
        unet=unet,
        scheduler=diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(width: float) -> Any:
    """Stable Diffusion XL base: text-to-image, 1024² pixels."""
    text, text_2 = text_encoder(768, 12, width), text_encoder(1280, 32, width, projection=1280)
    blocks = tuple(narrowed(channels, width) for channels in (320, 640, 1280))
    unet = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=tuple(max(1, channels // 64) for channels in blocks),
        cross_attention_dim=text.config.hidden_size + text_2.config.hidden_size,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=text_2.config.projection_dim + 6 * 256,
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOYWORLD / "tokenizer")
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(width, 1024, 0.13025, force_upcast=True),
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
    )


FAMILIES = {"sd15-inpainting": (sd15_inpainting, 512), "sdxl": (sdxl, 1024)}


def write(family: str, folder: Path, width: float, dtype: str) -> Path:
    """Write model, inputs and study file; the study file's path."""
    torch.manual_seed(0)
    make, size = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    make(width).to(getattr(torch, dtype)).save_pretrained(folder / "model")
    inputs = "{prompt: a green dragon}"
    if family == "sd15-inpainting":
        for name in ("cat.png", "cat-mask.png"):
            with Image.open(STUDIES / name) as image:
                image.resize((size, size)).save(folder / name)
        inputs = "{prompt: a green dragon, image: cat.png, mask: cat-mask.png}"
    study = folder / "study.yaml"
    study.write_text(
        f"study: {family}\nmodel: ./model\nclip_model: toyworld\ndtype: {dtype}\n"
        f"inputs:\n  - {inputs}\nseeds: 2\n"
        "space: {guidance_scale: [5, 7.5]}\n",
        encoding="utf-8",
    )
    return study


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=float, default=1.0, help="of every layer, as a share (default 1)")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "float16", "bfloat16"))
    options = parser.parse_args()
    shutil.rmtree(options.folder / "model", ignore_errors=True)
    print(write(options.family, options.folder, options.width, options.dtype))


if __name__ == "__main__":
    main()
