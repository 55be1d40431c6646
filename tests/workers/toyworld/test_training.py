"""A stage that was stopped and resumed ends with the weights of one that was not, and a seed decides all."""

import os
import subprocess
import sys
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

from tests.workers.tiny_models import TOYWORLD
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
        (lambda: train.Settings(device="gpu"), "device 'gpu' is unknown; choose cpu or cuda"),
        (lambda: train.Settings(caption_noise=1.5), "caption_noise 1.5 is not in 0..1"),
        (lambda: train.Settings(vae_samples=3), "vae_samples is 3; a batch needs at least 16"),
        (lambda: train.Settings(unet_samples=3), "unet_samples is 3; a batch needs at least 64"),
        (lambda: train.Settings(clip_samples=127), "clip_samples is 127; .* 128, half of them for the judge"),
        (lambda: train.Settings(text_samples=255), "text_samples is 255; .* 256, half of them for the judge"),
        (lambda: train.train(train.Settings(), ["vea"]), "unknown stage 'vea'; known are scenes, tokenizer"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--masks", "0"], "masks is 0; it must be at least 1"),
        (["--unet-batch", "0"], "unet_batch is 0; it must be at least 1"),
        (["--clip-batch", "0"], "clip_batch is 0; it must be at least 1"),
        (["--vae-batch", "0"], "vae_batch is 0; it must be at least 1"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
        (["--device", "cuda"], "there is none; choose cpu"),
        (["--threads", "-1"], "--threads is -1; it must be at least 1"),
        (["--work", __file__], "cannot be the work folder (File exists); choose another --work"),
        (["--unet-start", str(Path(__file__).parent)], "has no UNet that loads; --unet-start names a folder"),
        (["--unet-start", str(TOYWORLD / "vae")], "--unet-start"),
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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train, "STAGES", {"scenes": lambda _: pytest.fail("ran before it refused")})
    with pytest.raises(SystemExit) as ended:
        train.main(["--work", str(tmp_path / "work"), "--stages", "scenes", *arguments])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("processes", "batch", "taken"),
    [(1, 64, 1), (3, 64, 2), (12, 64, 8), (96, 64, 64), (6, 48, 6), (5, 7, 1)],
)
def test_the_unet_takes_as_many_processes_as_share_its_batch_evenly(
    processes: int, batch: int, taken: int
) -> None:
    assert train.Settings(processes=processes, unet_batch=batch).unet_plan().processes == taken


def test_a_finished_stage_refuses_other_settings_and_takes_what_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: SceneSet
) -> None:
    settings = train.Settings(work=tmp_path / "work", scenes=12)
    monkeypatch.setattr(train, "load_scenes", lambda *_: scenes)
    monkeypatch.setattr(train, "train_vae", lambda *_: make_vae())
    train.train(settings, ["vae"])
    monkeypatch.setattr(train, "train_vae", None)  # what is done is not done again
    train.train(replace(settings, processes=5, unet_samples=640), ["vae"])
    for changed, told in (({"seed": 7}, "seed 0"), ({"vae_samples": 160}, "vae_samples 120000")):
        with pytest.raises(
            ValueError, match=rf"vae in .*work was begun with other settings \({told}\); keep them, or choose"
        ):
            train.train(replace(settings, **changed), ["vae"])  # type: ignore[arg-type]


def test_settings_that_began_nothing_bind_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = train.Settings(work=tmp_path)

    def stopped(*_: object) -> None:
        raise StoppedError

    monkeypatch.setattr(train, "train_unet", stopped)
    monkeypatch.setattr(train.Workshop, "lessons", lambda _: None)
    for samples in (640, 1280):
        with pytest.raises(StoppedError):
            train.train(replace(settings, unet_samples=samples), ["unet"])
    (tmp_path / "unet.ckpt").touch()
    with pytest.raises(ValueError, match=r"unet in .* other settings \(unet_samples 1280, processes 1\)"):
        train.train(replace(settings, processes=2), ["unet"])


def test_leftovers_of_ended_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"vae.{ended.pid}.aside").mkdir()
    (tmp_path / f"vae.{ended.pid}.aside" / "config.json").touch()
    (tmp_path / f"0-999.npz.{ended.pid}.aside").touch()
    kept = [f"vae.{os.getppid()}.aside", f"unet.{ended.pid}", "unet.2", "unet.aside", "vae"]
    for name in kept:
        (tmp_path / name).mkdir()
    loop.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


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
