"""Toyworld's CLIP, in CLIPModel's format: first the text tower against meanings, then the vision tower against both.

A caption that leaves things out is true of many pictures, so every comparison counts all pairs that agree.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from workers.toyworld.scenes import BACKGROUNDS, COLOURS, SIDE, STYLES, SUBJECTS, Scene, Told
from workers.toyworld.training.data import SceneSet, pixels, reworded
from workers.toyworld.training.loop import Learner, Plan, learn
from workers.toyworld.training.tokenizer import LENGTH, VOCABULARY

_WIDTH = 64
_TOKENS = 24  # as many as the longest caption may have; the text tower looks back only, so padding is nothing
_SHARPNESS = 30.0
_ATTRIBUTES: tuple[Sequence[str], ...] = (SUBJECTS, COLOURS, STYLES, BACKGROUNDS)
_ANY = -1


class ClipPlans(NamedTuple):
    """How the two towers learn."""

    text: Plan
    vision: Plan


class Meaning(nn.Module):
    """A teacher: turns a scene's attributes into the embedding that its picture should have."""

    def __init__(self) -> None:
        super().__init__()
        # One more than there are: an empty scene has no subject, no colour, no style.
        self.parts = nn.ModuleList([nn.Embedding(len(names) + 1, _WIDTH) for names in _ATTRIBUTES])
        self.mix = nn.Sequential(nn.Linear(_WIDTH, 2 * _WIDTH), nn.GELU(), nn.Linear(2 * _WIDTH, _WIDTH))

    def forward(self, codes: Tensor) -> Tensor:
        """Turn codes, shape (scenes, 4), into unit embeddings, shape (scenes, 64)."""
        total = torch.stack([part(codes[:, index]) for index, part in enumerate(self.parts)]).sum(0)
        return functional.normalize(total + 0.3 * self.mix(total), dim=-1)


def make_clip() -> CLIPModel:
    """Give a CLIP with random weights."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
        "projection_dim": _WIDTH,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "projection_dim": _WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=_WIDTH))


def train_clip(
    plans: ClipPlans,
    data: SceneSet,
    held_out: SceneSet,
    tokenizer: CLIPTokenizer,
    file: Path,
    device: torch.device,
) -> CLIPModel:
    """Learn both towers; `file` is the name that the two checkpoints' names begin with."""
    torch.manual_seed(plans.text.seed)
    clip, meaning = make_clip().to(device), Meaning().to(device)
    # For so few and so short sequences, plain attention is twice as fast on a CPU.
    clip.set_attn_implementation("eager")
    codes = encode_scenes(data.scenes).to(device)
    _train_text(plans.text, clip, meaning, data, codes, tokenizer, file.with_suffix(".text.ckpt"))
    clip.requires_grad_(False)
    with torch.no_grad():
        wanted = meaning(codes)
    _train_vision(
        plans.vision, clip, wanted, data, codes, held_out, tokenizer, file.with_suffix(".vision.ckpt")
    )
    clip.requires_grad_(True)
    return clip.eval()


def encode_scenes(scenes: Sequence[Scene]) -> Tensor:
    """Number the attributes of scenes, shape (scenes, 4); what an empty scene has not is numbered last."""
    return torch.tensor([_codes(_visible(scene), absent=True) for scene in scenes])


def encode_told(told: Sequence[Told]) -> Tensor:
    """Number the attributes that captions tell, shape (captions, 4); -1 stands for what is not told."""
    return torch.tensor([_codes(each, absent=each.empty) for each in told])


def agreement(told: Tensor, seen: Tensor) -> Tensor:
    """Give 1 for each caption (rows) that is true of a scene (columns), else 0, from their codes."""
    return ((told[:, None] == seen[None]) | (told[:, None] == _ANY)).all(-1).float()


def embed_texts(clip: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Give unit embeddings of texts, shape (texts, 64)."""
    tokens = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
    ).input_ids
    pooled = clip.text_model(input_ids=tokens.to(clip.device)).pooler_output
    return functional.normalize(clip.text_projection(pooled).float(), dim=-1)


def embed_pictures(clip: CLIPModel, pictures: Tensor) -> Tensor:
    """Give unit embeddings of pictures (-1..1, shape (pictures, 3, SIDE, SIDE)), shape (pictures, 64)."""
    pooled = clip.vision_model(pixel_values=pictures.to(clip.device)).pooler_output
    return functional.normalize(clip.visual_projection(pooled).float(), dim=-1)


ZERO_SHOT: Mapping[str, Mapping[str, str]] = {
    "subject": {name: f"a {name}" for name in SUBJECTS},
    "colour": {name: f"{'an' if name == 'orange' else 'a'} {name} object" for name in COLOURS},
    "style": {name: f"a {name} picture" for name in STYLES},
    "background": {
        "meadow": "a meadow",
        "beach": "a beach",
        "night": "the night sky",
        "snow": "snow",
        "room": "a room",
        "city": "a city",
    },
}
"""What a picture is compared with to tell an attribute: a text for each name."""


@torch.no_grad()
def classify(clip: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor, attribute: str) -> list[str]:
    """Name the subject, colour, style or background of pictures (-1..1): the nearest of the zero-shot texts."""
    texts = ZERO_SHOT[attribute]
    likeness = embed_pictures(clip, pictures) @ embed_texts(clip, tokenizer, list(texts.values())).T
    names = list(texts)
    return [names[int(index)] for index in likeness.argmax(1)]


def zero_shot_accuracy(clip: CLIPModel, tokenizer: CLIPTokenizer, data: SceneSet) -> dict[str, float]:
    """Give the share of scenes, 0..1, whose attribute is told rightly; empty scenes count for backgrounds only."""
    found = {}
    pictures = pixels(data.images)
    for attribute in ZERO_SHOT:
        counted = [
            index
            for index, scene in enumerate(data.scenes)
            if scene.subject is not None or attribute == "background"
        ]
        guesses = classify(clip, tokenizer, pictures[counted], attribute)
        right = [
            guess == getattr(data.scenes[index], attribute)
            for guess, index in zip(guesses, counted, strict=True)
        ]
        found[attribute] = float(np.mean(right))
    return found


def _train_text(
    plan: Plan,
    clip: CLIPModel,
    meaning: Meaning,
    data: SceneSet,
    codes: Tensor,
    tokenizer: CLIPTokenizer,
    file: Path,
) -> None:
    """Bring captions near the meanings that they are true of."""
    towers = [clip.text_model, clip.text_projection, meaning]
    weights = [weight for tower in towers for weight in tower.parameters()] + [clip.logit_scale]
    learner = Learner(plan, weights, file)

    def loss_at(step: int) -> Tensor:
        draw, _ = plan.draw(step)
        chosen = draw.integers(0, len(data), plan.batch)
        texts, told = _captions(data, chosen, draw)
        pairs = agreement(told.to(codes), codes[chosen])
        scale = clip.logit_scale.clamp(0, math.log(50)).exp()
        return _contrast(embed_texts(clip, tokenizer, texts), meaning(codes[chosen]), pairs, scale)

    learn(learner, loss_at)
    learner.use_average()
    with torch.no_grad():
        clip.logit_scale.clamp_(0, math.log(50))


def _train_vision(
    plan: Plan,
    clip: CLIPModel,
    wanted: Tensor,
    data: SceneSet,
    codes: Tensor,
    held_out: SceneSet,
    tokenizer: CLIPTokenizer,
    file: Path,
) -> None:
    """Bring pictures near their meanings and their captions; the text tower stands still."""
    weights = [*clip.vision_model.parameters(), *clip.visual_projection.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    learner = Learner(plan, weights, file)
    scale = clip.logit_scale.exp()

    def loss_at(step: int) -> Tensor:
        draw, noise = plan.draw(step)
        chosen = draw.integers(0, len(data), plan.batch)
        texts, told = _captions(data, chosen, draw)
        seen = codes[chosen]
        pictures = _augmented(pixels(data.images[chosen]), draw, noise)
        with torch.autocast(clip.device.type, torch.bfloat16):
            drawn = embed_pictures(clip, pictures)
        same = (seen[:, None] == seen[None]).all(-1).float()
        by_captions = _contrast(
            embed_texts(clip, tokenizer, texts), drawn, agreement(told.to(codes), seen), scale
        )
        by_meanings = _one_sided(_SHARPNESS * drawn @ wanted[chosen].T, same)
        return by_captions + 0.5 * by_meanings + 2 * (1 - (drawn * wanted[chosen]).sum(1).mean())

    learn(learner, loss_at, tell=lambda: zero_shot_accuracy(clip, tokenizer, held_out))
    learner.use_average()


def _codes(told: Told, *, absent: bool) -> list[int]:
    """Number one description's attributes; a missing one is the number after the last, or any."""
    values = (told.subject, told.colour, told.style, told.background)
    return [
        names.index(value) if value is not None else (len(names) if absent else _ANY)
        for names, value in zip(_ATTRIBUTES, values, strict=True)
    ]


def _visible(scene: Scene) -> Told:
    """Give everything that a complete description of a scene would tell."""
    if scene.subject is None:
        return Told(background=scene.background, empty=True)
    return Told(scene.subject, scene.colour, scene.style, scene.background)


def _captions(
    data: SceneSet, chosen: NDArray[np.int64], draw: np.random.Generator
) -> tuple[list[str], Tensor]:
    """Word captions of some scenes anew; gives texts and codes."""
    wordings = draw.integers(0, 10_000, len(chosen))
    captions = [
        reworded(data.scenes[index], int(wording)) for index, wording in zip(chosen, wordings, strict=True)
    ]
    return [caption.text for caption in captions], encode_told([caption.told for caption in captions])


def _contrast(texts: Tensor, pictures: Tensor, pairs: Tensor, scale: Tensor) -> Tensor:
    """Give CLIP's loss where a text may be true of several pictures and a picture of several texts."""
    likeness = scale * texts @ pictures.T
    return (_one_sided(likeness, pairs) + _one_sided(likeness.T, pairs.T)) / 2


def _one_sided(likeness: Tensor, pairs: Tensor) -> Tensor:
    """Give the cross entropy of each row's likeness against an even choice among its pairs."""
    wanted = pairs / pairs.sum(1, keepdim=True).clamp(min=1)
    return -(wanted * likeness.log_softmax(1)).sum(1).mean()


def _augmented(pictures: Tensor, draw: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Mirror, shift, and make pictures noisy, blurred, brighter or darker, as a diffusion model may draw them."""
    if draw.random() < 0.5:
        pictures = pictures.flip(-1)
    down, right = draw.integers(0, 9, 2)
    pictures = functional.pad(pictures, (4, 4, 4, 4), mode="replicate")[
        ..., down : down + SIDE, right : right + SIDE
    ]
    spoilt = draw.random()
    if spoilt < 0.25:
        pictures = pictures + draw.uniform(0, 0.2) * torch.randn(pictures.shape, generator=noise)
    elif spoilt < 0.4:
        pictures = 0.7 * functional.avg_pool2d(pictures, 3, 1, 1) + 0.3 * pictures
    elif spoilt < 0.5:
        pictures = functional.interpolate(functional.avg_pool2d(pictures, 2), size=SIDE, mode="bilinear")
    return (draw.uniform(0.9, 1.1) * pictures + draw.uniform(-0.08, 0.08)).clamp(-1, 1)
