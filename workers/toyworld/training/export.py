"""Toyworld in stock formats: a diffusers pipeline and a transformers CLIP, in half precision."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer

from workers.toyworld.scenes import SIDE
from workers.toyworld.training.unet import make_scheduler

LIMIT = 15_000_000
"""Bytes that all of the bundled model may have."""


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """Give a CLIP's text tower as the model that pipelines take."""
    encoder = CLIPTextModel(clip.config.text_config)
    weights = clip.text_model.state_dict()
    wanted = encoder.state_dict()
    # Releases of transformers differ in whether the tower is nested once more.
    prefix = "text_model." if any(name.startswith("text_model.") for name in wanted) else ""
    encoder.load_state_dict({f"{prefix}{name}": weight for name, weight in weights.items()})
    return encoder.eval()


def export_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
) -> None:
    """Write the folder that AutoPipelineForInpainting loads."""
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    _declare_float32(folder / "text_encoder" / "config.json")


def export_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the folder that CLIPModel and CLIPProcessor load."""
    clip.half().save_pretrained(folder)
    _declare_float32(folder / "config.json")
    images = CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


def size_of(folder: Path) -> int:
    """Add up the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _declare_float32(config: Path) -> None:
    """Let the half-precision weights load as float32 where nobody asks for a dtype.

    transformers loads what the configuration says and diffusers float32, and a pipeline of both fails.
    """
    said = json.loads(config.read_text("utf-8"))
    said["dtype"] = "float32"
    for part in ("text_config", "vision_config"):
        if part in said:
            said[part]["dtype"] = "float32"
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", "utf-8")
