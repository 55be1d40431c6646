"""PNG in and out, with text chunks that carry what a picture is."""

import io
import json

from PIL import Image, PngImagePlugin

from search_spaces.requests import ImageRequest


def encode_png(image: Image.Image, request: ImageRequest | None = None) -> bytes:
    """The image as PNG bytes; with `request`, its settings in two text chunks.

    `parameters` is the line format that the web UIs write and image tools read; `latentsweep` is JSON with
    the image_id.
    """
    info = PngImagePlugin.PngInfo()
    if request is not None:
        info.add_text("parameters", parameters(request, image.size))
        document = {
            "image_id": request.image_id,
            "prompt": request.prompt,
            "seed": request.seed,
            "settings": dict(request.settings),
            "image": request.image,
            "mask": request.mask,
        }
        info.add_text("latentsweep", json.dumps(document))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def decode_png(png: bytes) -> Image.Image:
    """PNG bytes as an image, fully read."""
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def parameters(request: ImageRequest, size: tuple[int, int]) -> str:
    """Prompt, negative prompt and `Name: value` pairs as the Stable Diffusion web UI writes them."""
    settings = request.settings
    named = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": str(settings.get("scheduler", "")).removesuffix("Scheduler"),
        "CFG scale": settings.get("guidance_scale"),
        "Seed": request.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Denoising strength": settings.get("strength"),
        "Clip skip": settings.get("clip_skip"),
    }
    pairs = ", ".join(f"{name}: {value}" for name, value in named.items() if value not in (None, ""))
    negative = settings.get("negative_prompt")
    lines = [request.prompt, f"Negative prompt: {negative}" if negative else "", pairs]
    return "\n".join(line for line in lines if line)
