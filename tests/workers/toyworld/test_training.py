"""A stage that was stopped and resumed ends with the weights of one that was not, and a seed decides all."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForInpainting
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from workers.toyworld import train
from workers.toyworld.scenes import Scene, Told
from workers.toyworld.training import loop
from workers.toyworld.training.clip import (
    ClipPlans,
    agreement,
    encode_scenes,
    encode_told,
    make_clip,
    train_clip,
)
from workers.toyworld.training.data import SceneSet, draw_scenes, pixels
from workers.toyworld.training.export import export_clip, export_pipeline, text_encoder_of
from workers.toyworld.training.latents import Latents, encode
from workers.toyworld.training.loop import Learner, Plan, learn
from workers.toyworld.training.tokenizer import LENGTH, VOCABULARY, train_tokenizer
from workers.toyworld.training.unet import Lessons, UNetPlan, captions, make_scheduler, make_unet, train_unet
from workers.toyworld.training.vae import make_vae, psnr, standardised, train_vae

CPU = torch.device("cpu")
Weights = Mapping[str, Tensor]


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle of its work."""


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return draw_scenes(range(12))


@pytest.fixture(scope="module")
def tokenizer(offline: None) -> CLIPTokenizer:
    return train_tokenizer(captions=300)


@pytest.fixture(scope="module")
def lessons(scenes: SceneSet, tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    folder = tmp_path_factory.mktemp("lessons")
    torch.manual_seed(0)
    vae = make_vae()
    tokenizer.save_pretrained(folder / "tokenizer")
    text_encoder_of(make_clip()).save_pretrained(folder / "text_encoder")
    whole = encode(vae, pixels(scenes.images))
    masks = np.zeros((len(scenes), 1, 16, 16), dtype=np.bool_)
    masks[..., 4:12, 4:12] = True
    latents = Latents(whole, whole[:, None] * ~masks[:, :, None], masks)
    return Lessons(latents, list(scenes.scenes), folder / "tokenizer", folder / "text_encoder")


@pytest.fixture(params=["vae", "clip", "unet"])
def stage(
    request: pytest.FixtureRequest, scenes: SceneSet, tokenizer: CLIPTokenizer, lessons: Lessons
) -> Callable[[Path, int], Weights]:
    """Trains one stage for a few steps in a folder, from a seed; gives the weights."""

    def vae(folder: Path, seed: int) -> Weights:
        plan = Plan("vae", 5, 4, 1e-3, ema=0.9, seed=seed)
        return dict(train_vae(plan, scenes, pixels(scenes.images[:2]), folder / "vae.ckpt", CPU).state_dict())

    def clip(folder: Path, seed: int) -> Weights:
        plans = ClipPlans(Plan("text", 3, 6, 1e-3, seed=seed), Plan("vision", 3, 6, 1e-3, ema=0.9, seed=seed))
        return dict(train_clip(plans, scenes, scenes, tokenizer, folder / "clip", CPU).state_dict())

    def unet(folder: Path, seed: int) -> Weights:
        plan = UNetPlan("unet", 3, 2, 1e-3, ema=0.9, seed=seed)
        return dict(train_unet(plan, lessons, folder / "unet.ckpt", CPU).state_dict())

    stages: Mapping[str, Callable[[Path, int], Weights]] = {"vae": vae, "clip": clip, "unet": unet}
    return stages[request.param]


def test_stopped_and_resumed_is_as_never_stopped_and_another_seed_is_not(
    stage: Callable[[Path, int], Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("whole", "stopped", "other")]
    for folder in folders:
        folder.mkdir()
    whole = stage(folders[0], 1)

    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    original = Plan.draw

    def stopping(plan: Plan, step: int, rank: int = 0) -> tuple[np.random.Generator, torch.Generator]:
        if step == 2:
            raise StoppedError
        return original(plan, step, rank)

    # Both of CLIP's towers are stopped, one after the other.
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Plan, "draw", stopping)
            with pytest.raises(StoppedError):
                stage(folders[1], 1)
    resumed = stage(folders[1], 1)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    other = stage(folders[2], 2)
    assert any(not torch.equal(whole[name], other[name]) for name in whole)


def test_a_unet_begins_with_the_weights_of_a_folder(lessons: Lessons, tmp_path: Path) -> None:
    torch.manual_seed(6)
    begun = make_unet()
    begun.save_pretrained(tmp_path / "begun")
    # So slow that a step hardly moves a weight.
    plan = UNetPlan("unet", 1, 2, 1e-9, start=str(tmp_path / "begun"))
    found = train_unet(plan, lessons, tmp_path / "unet.ckpt", CPU).state_dict()
    wanted = begun.state_dict()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_captions_are_wrong_empty_or_a_style_as_often_as_the_plan_says() -> None:
    scenes = [
        Scene("cat", "red", "cartoon", "night", 1),
        Scene("cat", "red", "cartoon", "night", 2),
        Scene("car", "blue", "realistic", "city", 3),
    ]
    plan = UNetPlan("unet", 1, 1, 1e-3, caption_noise=0.3, caption_dropout=0.1, caption_style=0.2)
    texts = captions(plan, scenes, [0] * 4000, np.random.default_rng(0))
    # Words that tell nothing are empty too, one in some hundreds, and some captions' own words are but a style.
    assert texts.count("") / 4000 == pytest.approx(0.1, abs=0.02)
    assert texts.count("cartoon") / 4000 == pytest.approx(0.9 * 0.2, abs=0.03)
    # A third of the wrong ones are the car's, in many words; a style alone is never wrong.
    assert sum("car" in text.split() for text in texts) / 4000 == pytest.approx(0.3 / 3 * 0.9 * 0.8, abs=0.03)
    assert texts.count("realistic") / 4000 < 0.005


def test_the_noise_schedule_ends_in_almost_pure_noise() -> None:
    assert make_scheduler().alphas_cumprod[-1].sqrt() < 0.01


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "line.ckpt"
    plan = Plan("line", 2, 1, 0.1)
    weight = nn.Parameter(torch.ones(1))
    learn(Learner(plan, [weight], file), lambda _: (weight**2).sum())
    with pytest.raises(ValueError, match=r"was begun with other settings \(steps 2, rate 0.1\); keep them"):
        Learner(replace(plan, steps=3, rate=0.2), [weight], file)


def test_learning_reaches_a_minimum_and_goes_on_where_it_was(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.tensor([4.0, -3.0]))
    learner = Learner(Plan("bowl", 300, 1, 0.1, decay=0.0, ema=0.9), [weight], tmp_path / "bowl.ckpt")
    learn(learner, lambda _: ((weight - 1) ** 2).sum())
    learner.use_average()
    assert weight.detach().numpy() == pytest.approx([1, 1], abs=0.02)
    fresh = nn.Parameter(torch.zeros(2))
    assert Learner(learner.plan, [fresh], tmp_path / "bowl.ckpt").step == 300
    assert fresh.detach().numpy() == pytest.approx([1, 1], abs=0.02)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    learner = Learner(Plan("burst", 3, 1, 0.1), [weight], tmp_path / "burst.ckpt")
    with pytest.raises(RuntimeError, match="burst: the loss is nan at step 1; lower the learning rate"):
        learn(learner, lambda _: (weight * torch.nan).sum())
    assert not (tmp_path / "burst.ckpt").exists()


def test_processes_that_share_gradients_take_the_step_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(5))

    def after_a_step(rows: Tensor, share: Callable[[Tensor], None] | None, name: str) -> Tensor:
        weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1))]
        learner = Learner(Plan("shared", 1, 8, 0.1), weights, tmp_path / name)
        learner.learn(((rows @ weights[0] + weights[1]) ** 2).mean(), share)
        return torch.cat([weight.detach() for weight in weights])

    seen: list[Tensor] = []
    after_a_step(batch[4:], lambda flat: seen.append(flat.clone()), "second")
    shared = after_a_step(batch[:4], lambda flat: flat.add_(seen[0]).div_(2), "first")  # type: ignore[arg-type]
    assert torch.allclose(shared, after_a_step(batch, None, "alone"), atol=1e-6)


def test_the_rate_rises_and_falls() -> None:
    plan = Plan("plan", 1000, 1, 2.0, warm=0.1, floor=0.05)
    rates = [plan.rate_at(step) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(2, abs=0.02)
    assert rates.index(max(rates)) == pytest.approx(100, abs=1)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert all(later <= earlier for earlier, later in pairwise(rates[100:]))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Plan("part", 0, 4, 1e-3), "part: 0 steps of 4 samples; both must be at least 1"),
        (lambda: UNetPlan("unet", 1, 5, 1e-3, processes=2), "a batch of 5 cannot be shared evenly by 2"),
        (lambda: UNetPlan("unet", 1, 4, 1e-3, caption_noise=1.0), r"caption_noise 1.0 is not in 0..1"),
        (lambda: train.Settings(scenes=0), "scenes is 0; it must be at least 1"),
        (lambda: train.Settings(seed=-1), "seed -1 is negative"),
        (lambda: train.Settings(unet_start=Path("nowhere")), "no folder nowhere; --unet-start names one"),
        (lambda: train.train(train.Settings(), ["vea"]), "unknown stage 'vea'; known are scenes, tokenizer"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


def test_the_command_refuses_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train.main(["--work", str(tmp_path), "--masks", "0"])
    assert "masks is 0; it must be at least 1" in capsys.readouterr().err


# Tokenizer


def test_the_tokenizer_is_the_same_every_time(tokenizer: CLIPTokenizer) -> None:
    assert train_tokenizer(captions=300).get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.model_max_length == LENGTH


def test_the_tokenizer_knows_the_worlds_words_and_takes_any_other(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("A realistic GREEN dragon") == [
        "a</w>",
        "realistic</w>",
        "green</w>",
        "dragon</w>",
    ]
    for text in ("a realistic green dragon", "zebra, 42 xylophones!", "Ærøskøbing 龍"):
        ids = tokenizer(text).input_ids
        assert ids[0] == VOCABULARY - 2
        assert ids[-1] == VOCABULARY - 1
        again = tokenizer.decode(ids, skip_special_tokens=True)
        assert again.replace(" ", "") == text.lower().replace(" ", "")


# CLIP


def test_captions_agree_with_the_scenes_that_they_are_true_of() -> None:
    told = [
        Told(subject="cat"),
        Told(subject="cat", colour="red"),
        Told(background="night"),
        Told(background="night", empty=True),
        Told(),
    ]
    seen = [
        Scene("cat", "red", "cartoon", "night", 0),
        Scene("cat", "blue", "cartoon", "room", 0),
        Scene(None, "red", "cartoon", "night", 0),
    ]
    wanted = [[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1], [1, 1, 1]]
    assert agreement(encode_told(told), encode_scenes(seen)).tolist() == wanted


# VAE


def test_standardising_changes_latents_but_not_pictures(scenes: SceneSet) -> None:
    torch.manual_seed(3)
    vae, pictures = make_vae().eval(), pixels(scenes.images)
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        standardised(vae, scenes)
        found = vae.encode(pictures).latent_dist.mean
        after = vae.decode(found).sample
    assert found.mean((0, 2, 3)).numpy() == pytest.approx([0] * 4, abs=1e-3)
    assert found.std((0, 2, 3)).numpy() == pytest.approx([1] * 4, abs=1e-3)
    assert torch.allclose(before, after, atol=1e-4)


def test_psnr_is_that_of_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()

    class Flat:
        sample = torch.full((2, 3, 64, 64), 0.1)

    monkeypatch.setattr(vae, "decode", lambda _: Flat)
    pictures = torch.zeros(2, 3, 64, 64)
    # An error of 0.1 where the range is 2.
    assert psnr(vae, pictures) == pytest.approx(20 * np.log10(2 / 0.1), abs=1e-4)


# Export


def test_an_export_loads_and_runs_without_a_dtype(
    tokenizer: CLIPTokenizer, scenes: SceneSet, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    clip = make_clip()
    export_pipeline(make_vae(), make_unet(), text_encoder_of(clip), tokenizer, tmp_path / "pipeline")
    wanted = {name: weight.clone() for name, weight in clip.state_dict().items()}
    export_clip(clip, tokenizer, tmp_path / "clip")

    pipeline = AutoPipelineForInpainting.from_pretrained(tmp_path / "pipeline")
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    picture, mask = Image.fromarray(scenes.images[0]), Image.new("L", (64, 64), 255)
    (drawn,) = pipeline("a cat", picture, mask, height=64, width=64, num_inference_steps=1).images
    assert drawn.size == (64, 64)

    loaded = CLIPModel.from_pretrained(tmp_path / "clip")
    assert loaded.dtype == torch.float32
    assert all(
        torch.allclose(weight, wanted[name].float(), atol=1e-2)
        for name, weight in loaded.state_dict().items()
    )
    inputs = CLIPProcessor.from_pretrained(tmp_path / "clip")(
        text=["a cat"], images=[picture], return_tensors="pt"
    )
    assert torch.allclose(inputs["pixel_values"], pixels(scenes.images[:1]), atol=1e-5)
    encoder = pipeline.text_encoder(input_ids=inputs["input_ids"])
    assert torch.allclose(
        encoder.pooler_output, loaded.text_model(input_ids=inputs["input_ids"]).pooler_output, atol=1e-5
    )
