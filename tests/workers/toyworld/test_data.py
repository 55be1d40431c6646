"""What toyworld learns from is what the scenes say, the same every time, and gives nothing away."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.toyworld.scenes import SIDE, Box, random_scene, render
from workers.toyworld.training import data as data_module
from workers.toyworld.training.data import (
    HELD_OUT,
    draw_scenes,
    load_scenes,
    pixels,
    random_mask,
    reworded,
)
from workers.toyworld.training.latents import shrink_masks

SQUARE = Box(14.0, 20.0, 52.0, 58.0)


def test_scenes_are_drawn_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_scenes(tmp_path, 3, processes=1)
    monkeypatch.setattr(data_module, "multiprocessing", None)  # nothing is left to draw
    again = load_scenes(tmp_path, 3, processes=1)
    assert len(first) == 3
    assert np.array_equal(first.images, again.images)
    for index, scene in enumerate(again.scenes):
        assert scene == random_scene(index)
        drawn = render(scene)
        assert np.array_equal(again.images[index], np.asarray(drawn.image))
        assert again.square(index) == (None if drawn.square is None else pytest.approx(drawn.square))


@pytest.mark.parametrize("count", [0, HELD_OUT + 1])
def test_held_out_scenes_cannot_be_trained_on(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} scenes cannot be trained on; choose 1 to"):
        load_scenes(tmp_path, count, processes=1)


def test_an_empty_scene_has_no_square() -> None:
    empty = next(seed for seed in range(1000) if random_scene(seed).subject is None)
    drawn = draw_scenes([empty, empty + 1])
    assert drawn.square(0) is None
    assert (drawn.square(1) is None) == (random_scene(empty + 1).subject is None)


def test_pixels_are_from_minus_one_to_one_with_channels_first() -> None:
    images = np.zeros((2, 4, 5, 3), np.uint8)
    images[1, :, :, 2] = 255
    found = pixels(images)
    assert found.shape == (2, 3, 4, 5)
    assert torch.equal(found[0], -torch.ones(3, 4, 5))
    assert torch.equal(found[1, 2], torch.ones(4, 5))


def test_a_scene_is_worded_in_many_ways_and_first_in_its_own() -> None:
    scene = random_scene(7)
    assert reworded(scene, 0).text == render(scene).caption
    wordings = {reworded(scene, wording).text for wording in range(40)}
    assert len(wordings) > 20


def test_masks_cover_everything_the_square_or_anything() -> None:
    kinds = Counter[str]()
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[20:58, 14:52] = True
    count = 1500
    for seed in range(count):
        mask = random_mask(SQUARE, np.random.default_rng(seed))
        assert mask.shape == (SIDE, SIDE)
        assert mask.any()
        covered = mask[inside].mean()
        kinds["all"] += bool(mask.all())
        kinds["square"] += bool(covered > 0.9 and not mask.all())
        kinds["part"] += bool(covered <= 0.9)
    shares = {name: kinds[name] / count for name in kinds}
    assert shares["all"] == pytest.approx(0.15, abs=0.03)
    assert shares["square"] == pytest.approx(0.6, abs=0.08)
    assert shares["part"] > 0.15


def test_a_scene_without_a_subject_gets_masks_too() -> None:
    shares = [random_mask(None, np.random.default_rng(seed)).mean() for seed in range(200)]
    assert 0.3 < np.mean(shares) < 0.8


def test_masks_shrink_as_the_pipeline_shrinks_them() -> None:
    masks = np.stack([random_mask(SQUARE, np.random.default_rng(seed)) for seed in range(20)])
    wanted = torch.nn.functional.interpolate(torch.from_numpy(masks)[:, None].float(), size=(16, 16))
    assert np.array_equal(shrink_masks(masks), wanted[:, 0].numpy() > 0.5)
