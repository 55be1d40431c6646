"""The evaluation's figures are what their definitions say on inputs whose answers are known."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from tests.workers.tiny_models import TOYWORLD
from workers.toyworld import evaluate
from workers.toyworld.evaluate import (
    EDITS,
    WHOLE_SCENES,
    Judge,
    Mean,
    Painter,
    Share,
    contact_sheet,
    markdown,
    mean_of,
    replace_figures,
    saturation,
    stage,
)
from workers.toyworld.scenes import BACKGROUNDS, SIDE, Placement, Scene, Subject, render
from workers.toyworld.training.data import HELD_OUT

MODEL = TOYWORLD.parent
JUDGE = str(MODEL / "clip")


@pytest.fixture(scope="module")
def judge(offline: None) -> Judge:
    """The CLIP that ships as the judge: it sees renders well enough."""
    clip = CLIPModel.from_pretrained(MODEL / "clip", dtype=torch.float32)
    return Judge(clip, CLIPTokenizer.from_pretrained(TOYWORLD / "tokenizer"))


def renders(
    subjects: Sequence[Subject], colour: Any = "green", style: Any = "realistic"
) -> list[Image.Image]:
    middle = Placement(0.5, 0.55, 0.37)
    return [
        render(Scene(subject, colour, style, BACKGROUNDS[index % 6], HELD_OUT + index, middle)).image
        for index, subject in enumerate(subjects)
    ]


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 64, 0.0, 0.0566), (64, 64, 0.9434, 1.0), (32, 64, 0.3811, 0.6189)],
)
def test_a_shares_interval_is_wilsons(count: int, of: int, low: float, high: float) -> None:
    share = Share(count, of)
    assert share.value == count / of
    assert share.interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("count", "of"), [(0, 0), (5, 4), (-1, 3)])
def test_no_share_is_made_up(count: int, of: int) -> None:
    with pytest.raises(ValueError, match=f"{count} of {of} pictures is no share"):
        Share(count, of)


def test_a_mean_has_its_standard_error() -> None:
    found = mean_of([1.0, 2.0, 3.0, 6.0])
    assert (found.value, found.of) == (3.0, 4)
    assert found.error == pytest.approx(1.0801, abs=1e-4)
    with pytest.raises(ValueError, match="1 values have no standard error"):
        mean_of([1.0])


def test_saturation_is_measured_within_the_mask() -> None:
    picture = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    picture.paste((255, 0, 0), (0, 0, SIDE // 2, SIDE))
    left, whole = Image.new("L", (SIDE, SIDE), 0), Image.new("L", (SIDE, SIDE), 255)
    left.paste(255, (0, 0, SIDE // 2, SIDE))
    assert saturation([picture, picture], [left, left]) == Mean(255.0, 0.0, 2)
    assert saturation([picture, picture], [whole, whole]) == Mean(127.5, 0.0, 2)


def test_the_judge_counts_what_it_sees(judge: Judge) -> None:
    mixed = renders(["dragon"] * 9) + renders(["car"] * 3)
    assert judge.share(mixed, "subject", "dragon") == Share(9, 12)
    assert judge.share(mixed, "subject", "car") == Share(3, 12)
    assert judge.share(mixed, "colour", "green").value > 0.9
    assert judge.share(mixed, "style", "cartoon") == Share(0, 12)


def test_the_judge_scores_the_true_text_higher_and_tells_styles_apart(judge: Judge) -> None:
    dragons = renders(["dragon"] * 6)
    assert judge.score(dragons, evaluate.PROMPT).value > judge.score(dragons, "a cartoon red car").value + 20
    assert judge.margin(dragons).value > 0 > judge.margin(renders(["dragon"] * 6, style="cartoon")).value


def test_a_stage_is_masked_without_giving_its_subject_away() -> None:
    cat, car = (stage(subject, "beach", 3, "grey") for subject in ("cat", "car"))
    assert np.array_equal(np.asarray(cat.mask), np.asarray(car.mask))
    assert not np.array_equal(np.asarray(cat.picture), np.asarray(car.picture))


def test_painting_keeps_what_the_mask_leaves_and_depends_on_the_seed(offline: None) -> None:
    painter = Painter(MODEL)
    cat = stage("cat", "beach", 3, "grey")
    one, two = painter.paint([cat], 2, "a red dog", num_inference_steps=2)
    again, _ = painter.paint([cat], 2, "a red dog", num_inference_steps=2)
    assert np.array_equal(np.asarray(one), np.asarray(again))
    assert not np.array_equal(np.asarray(one), np.asarray(two))
    painted, _ = painter.paint([cat], 2, "a red dog", num_inference_steps=8)
    change = np.abs(np.asarray(painted).astype(int) - np.asarray(cat.picture)).mean(-1)
    inside = np.asarray(cat.mask) > 0
    assert change[~inside].mean() < 0.5 * change[inside].mean()


def test_a_contact_sheet_has_every_picture_in_its_place() -> None:
    red, blue = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue"))
    sheet = contact_sheet([[red, blue], [blue]], zoom=2)
    assert sheet.size == (4 * SIDE, 4 * SIDE)
    corners = [sheet.getpixel((x, y)) for y in (SIDE, 3 * SIDE) for x in (SIDE, 3 * SIDE)]
    assert corners == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 255, 255)]


def test_what_is_asked_for_is_in_the_world() -> None:
    for edit in EDITS:
        assert edit.before != edit.after
        assert edit.prompt == f"a {edit.style} {edit.colour} {edit.after}"
    for prompt, subject, _ in WHOLE_SCENES:
        assert subject in prompt


def some_figures() -> dict[str, Any]:
    likeness = {
        "score": Mean(50.04, 1.26, 16),
        **{name: Share(15, 16) for name in ("dragon", "cat", "green", "realistic")},
        "saturation": Mean(120.0, 2.0, 16),
    }
    accuracy = {"subject": 0.987, "colour": 1.0}
    return {
        "defaults": {"num_inference_steps": 20, "guidance_scale": 7.5},
        "clip": {"scenes": 1000, "clip": accuracy, "judge": accuracy},
        "vae": Mean(29.86, 0.12, 256),
        "dragon": {"dragon": Share(60, 64)},
        "edits": [
            {"edit": "dog → a cat", "subject": Share(30, 32), "colour": Share(31, 32), "style": Share(32, 32)}
        ],
        **{name: [{"value": 0.5, **likeness}] for name in ("steps", "guidance", "strength")},
        "negative": [{"prompt": "a dragon", "negative": "", "margin": Mean(4.0, 0.5, 16), **likeness}],
        "whole": {"subject": Share(50, 64), "background": Share(64, 64)},
    }


def test_the_cards_words_give_each_figure_with_its_error() -> None:
    words = markdown(some_figures())
    assert "CLIP subject 98.7%, colour 100.0%" in words
    assert "VAE: 29.9 ± 0.1 dB PSNR over 256" in words
    assert "dragon 94% (85%–98%)" in words
    assert "| dog → a cat | 94% (80%–98%) | 97% (84%–99%) | 100% (89%–100%) |" in words
    assert "| 0.5 | 50.0 ± 1.3 | 94% (72%–99%) |" in words
    assert "| a dragon | – | 4.0 ± 0.5 |" in words
    assert json.loads(json.dumps(some_figures(), default=asdict))["whole"]["subject"] == {
        "count": 50,
        "of": 64,
    }


def test_only_the_cards_figures_are_replaced() -> None:
    card = f"# Model\n\n{evaluate.BEGIN}\n\nold\n\n{evaluate.END}\n\nLimits.\n"
    replaced = replace_figures(card, "new")
    assert replaced == card.replace("old", "new")
    assert replace_figures(replaced, "new") == replaced
    with pytest.raises(ValueError, match="the card must have one line"):
        replace_figures("# Model\n", "new")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--seeds", "3"], "it must be at least 4"),
        (["--judge", "nowhere"], "there is no folder nowhere"),
        (["--judge", str(MODEL)], "has no CLIP; --judge needs config.json of model_type clip"),
        (["--judge", str(TOYWORLD / "text_encoder")], "has no CLIP; --judge needs config.json"),
        (["--judge", JUDGE, "--model", str(TOYWORLD)], "has no CLIP; --model needs config.json"),
        (["--judge", JUDGE, "--card", "nowhere.md"], "nowhere.md: No such file"),
        (["--judge", JUDGE, "--card", __file__], "the card must have one line"),
        (["--judge", JUDGE, "--out", __file__], "File exists"),
    ],
)
def test_the_command_refuses_in_a_sentence(
    arguments: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline: None,
) -> None:
    monkeypatch.setattr(evaluate.Evaluation, "run", lambda _: pytest.fail("measured before it refused"))
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--out", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_a_stages_mask_covers_all_that_its_subject_changes() -> None:
    cat = stage("cat", "city", 10, "grey")
    outside = np.asarray(cat.mask) == 0
    assert outside.any()
    for edit in EDITS:
        other = stage(edit.before, "city", 10, "grey")
        changed = (np.asarray(cat.picture) != np.asarray(other.picture)).any(-1)
        assert not (changed & outside).any(), edit.before
