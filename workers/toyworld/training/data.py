"""What toyworld learns from: many random scenes, their captions in several wordings, and random masks."""

import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from workers.toyworld.scenes import (
    SIDE,
    Box,
    Caption,
    Margin,
    Scene,
    cover,
    describe,
    random_scene,
    render,
)
from workers.toyworld.training.loop import aside_of

HELD_OUT = 1_000_000_000
"""Scenes with seeds from here on are never trained on."""

_SHARD = 1000
"""Scenes in a file: what a stopped rendering has to draw again."""

_WORDINGS = 10_000_000
"""Two wordings of a scene's caption are this many seeds apart."""


@dataclass(frozen=True)
class SceneSet:
    """Drawn scenes.

    `images` is RGB in 0..255, shape (scenes, SIDE, SIDE, 3); `squares` holds the edges of the subjects'
    squares in pixels (left, top, right, bottom), shape (scenes, 4), NaN for a scene without a subject.
    """

    scenes: Sequence[Scene]
    images: NDArray[np.uint8]
    squares: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scenes)

    def square(self, index: int) -> Box | None:
        """The square of a scene's subject."""
        edges = self.squares[index]
        return None if np.isnan(edges).any() else Box(*map(float, edges))


def load_scenes(folder: Path, count: int, processes: int) -> SceneSet:
    """Give the scenes of the seeds 0 to count - 1; those that the folder lacks are drawn and kept there."""
    if not 0 < count <= HELD_OUT:
        raise ValueError(f"{count} scenes cannot be trained on; choose 1 to {HELD_OUT}")
    folder.mkdir(parents=True, exist_ok=True)
    shards = [(folder, first, min(_SHARD, count - first)) for first in range(0, count, _SHARD)]
    lacking = [shard for shard in shards if not _shard_file(*shard).exists()]
    if lacking:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for done, _ in enumerate(pool.imap(_keep_shard, lacking), 1):
                if done % 5 == 0 or done == len(lacking):
                    print(f"scenes: {done} of {len(lacking)} files drawn", flush=True)
    parts = [np.load(_shard_file(*shard)) for shard in shards]
    images = np.concatenate([part["images"] for part in parts])
    squares = np.concatenate([part["squares"] for part in parts])
    return SceneSet([random_scene(seed) for seed in range(count)], images, squares)


def draw_scenes(seeds: Iterable[int]) -> SceneSet:
    """Draw the random scenes of some seeds."""
    scenes = [random_scene(seed) for seed in seeds]
    drawn = [render(scene) for scene in scenes]
    squares = np.array([picture.square or [np.nan] * 4 for picture in drawn], dtype=np.float32)
    return SceneSet(scenes, np.stack([np.asarray(picture.image) for picture in drawn]), squares)


def reworded(scene: Scene, wording: int) -> Caption:
    """Give one of the many captions of a scene; wording 0 is its own."""
    return describe(replace(scene, seed=scene.seed + wording * _WORDINGS))


def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn RGB images of 0..255, shape (…, side, side, 3), into -1..1, shape (…, 3, side, side)."""
    return torch.from_numpy(images).movedim(-1, -3).float() / 127.5 - 1


def random_mask(square: Box | None, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Choose where to paint anew, shape (SIDE, SIDE); nothing in its shape tells which subject it covers.

    15 % cover everything, which teaches drawing whole scenes; 60 % cover the subject's square, as a box or a
    blob; 25 % lie anywhere and leave parts of the subject, or all of it, to see.
    """
    kind = draw.random()
    if kind < 0.15:
        return np.ones((SIDE, SIDE), dtype=np.bool_)
    if kind < 0.75:
        square = square or _random_square(draw)
        margin = Margin(*draw.uniform(-1, 11, 4).tolist())
        if kind < 0.6:
            return np.asarray(cover(square, margin)) > 0
        return _blob_around(square, margin, draw)
    return _box_anywhere(draw) if kind < 0.9 else _blob_anywhere(draw)


def _keep_shard(shard: tuple[Path, int, int]) -> None:
    """Draw a file of scenes."""
    file = _shard_file(*shard)
    _, first, count = shard
    drawn = draw_scenes(range(first, first + count))
    aside = aside_of(file)
    with aside.open("wb") as stream:
        np.savez(stream, images=drawn.images, squares=drawn.squares)
    aside.replace(file)


def _shard_file(folder: Path, first: int, count: int) -> Path:
    """Name the file of some scenes."""
    return folder / f"{first:08}-{first + count - 1:08}.npz"


def _random_square(draw: np.random.Generator) -> Box:
    """Choose a square such as a subject would be in."""
    scale = draw.uniform(0.27, 0.41)
    x, y = draw.uniform(scale, 1 - scale), min(draw.uniform(0.5, 0.7), 0.98 - scale)
    return Box(*(SIDE * np.array([x - scale, y - scale, x + scale, y + scale])).tolist())


def _blob_around(square: Box, margin: Margin, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Cover most of a square with a round shape and smaller ones on its rim."""
    left, top = square.left - margin.left, square.top - margin.top
    right, bottom = square.right + margin.right, square.bottom + margin.bottom
    x, y, across, down = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    canvas = Image.new("L", (SIDE, SIDE), 0)
    brush = ImageDraw.Draw(canvas)
    brush.ellipse((x - 1.12 * across, y - 1.12 * down, x + 1.12 * across, y + 1.12 * down), fill=255)
    for angle in draw.uniform(0, 2 * np.pi, draw.integers(3, 9)):
        radius = draw.uniform(4, 10)
        at_x, at_y = x + across * np.cos(angle), y + down * np.sin(angle)
        brush.ellipse((at_x - radius, at_y - radius, at_x + radius, at_y + radius), fill=255)
    return np.asarray(canvas) > 0


def _box_anywhere(draw: np.random.Generator) -> NDArray[np.bool_]:
    """Cover a rectangle of any size and place."""
    width, height = draw.integers(12, 56, 2)
    left, top = draw.integers(-6, SIDE - width // 2), draw.integers(-6, SIDE - height // 2)
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[max(0, top) : top + height, max(0, left) : left + width] = True
    return mask


def _blob_anywhere(draw: np.random.Generator) -> NDArray[np.bool_]:
    """Cover what a wandering brush touches."""
    canvas = Image.new("L", (SIDE, SIDE), 0)
    brush = ImageDraw.Draw(canvas)
    x, y = draw.uniform(6, SIDE - 6, 2)
    for _ in range(draw.integers(3, 10)):
        radius = draw.uniform(4, 12)
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        x, y = np.clip(np.array([x, y]) + draw.uniform(-12, 12, 2), 0, SIDE)
    return np.asarray(canvas) > 0
