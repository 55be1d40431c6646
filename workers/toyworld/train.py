"""Trains toyworld, tokenizer to UNet, from nothing but its scenes: `python -m workers.toyworld.train`.

Every stage leaves its result in the work folder and is not run again; a stage that was stopped goes on at its
last checkpoint when the same command is run again. The last stage writes the folder `model`, which has the
layout of the bundled one.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from workers.toyworld.training.clip import ClipPlans, train_clip, zero_shot_accuracy
from workers.toyworld.training.data import HELD_OUT, SceneSet, draw_scenes, load_scenes, pixels
from workers.toyworld.training.export import LIMIT, export_clip, export_pipeline, size_of, text_encoder_of
from workers.toyworld.training.latents import load_latents
from workers.toyworld.training.loop import Plan, aside_of, changes, remove_leftovers, to_folder
from workers.toyworld.training.tokenizer import train_tokenizer
from workers.toyworld.training.unet import Lessons, UNetPlan, train_unet, weights_of
from workers.toyworld.training.vae import psnr, train_vae

_TEXT_BATCH = 128


@dataclass(frozen=True)
class Settings:
    """How much to train on, and where.

    `device` is cpu or cuda. `scenes` are drawn, `masks` chosen for each; `…_samples` are counted with repetitions
    and are at least one batch, the judge's half of them too. The batches are for one step. On a CPU the UNet's
    batch is shared by as many processes as its largest divisor that is at most `processes` says. Parts get seeds
    of their own, counted up from `seed`. `unet_start` is the folder of a UNet to begin with instead of random
    weights. What cannot be trained is a ValueError.
    """

    work: Path = Path("build/toyworld")
    device: str = "cpu"
    processes: int = 1
    seed: int = 0
    scenes: int = 32_000
    masks: int = 2
    text_samples: int = 192_000
    clip_samples: int = 179_200
    clip_batch: int = 64
    vae_samples: int = 120_000
    vae_batch: int = 16
    unet_samples: int = 400_000
    unet_batch: int = 64
    caption_noise: float = 0.12
    unet_start: Path | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device {self.device!r} is unknown; choose cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda needs a GPU that torch sees, and there is none; choose cpu")
        for name in ("processes", "scenes", "masks", "clip_batch", "vae_batch", "unet_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; seeds are integers from 0")
        if self.unet_start is not None and not self.unet_start.is_dir():
            raise ValueError(
                f"there is no folder {self.unet_start}; --unet-start names one that a UNet was saved in"
            )

        for name, least in (
            ("text_samples", 2 * _TEXT_BATCH),
            ("clip_samples", 2 * self.clip_batch),
            ("vae_samples", self.vae_batch),
            ("unet_samples", self.unet_batch),
        ):
            if getattr(self, name) < least:
                whose = ", half of them for the judge" if least > getattr(self, name) >= least // 2 else ""
                raise ValueError(f"{name} is {getattr(self, name)}; a batch needs at least {least}{whose}")
        # The plans check what is left.
        self.vae_plan(), self.clip_plans(), self.judge_plans(), self.unet_plan()

    def vae_plan(self) -> Plan:
        """How the VAE learns."""
        steps = self.vae_samples // self.vae_batch
        return Plan("vae", steps, self.vae_batch, 1.5e-3, ema=0.998, seed=self.seed + 1)

    def clip_plans(self) -> ClipPlans:
        """How the CLIP that ships learns."""
        return self._clip_plans("clip", self.seed + 2, self.text_samples, self.clip_samples)

    def judge_plans(self) -> ClipPlans:
        """How the judge learns: half as long, from a seed of its own, so that it shares no fault by chance."""
        return self._clip_plans("judge", self.seed + 3, self.text_samples // 2, self.clip_samples // 2)

    def unet_plan(self) -> UNetPlan:
        """How the UNet learns."""
        most = min(self.processes, self.unet_batch) if self.device == "cpu" else 1
        return UNetPlan(
            "unet",
            self.unet_samples // self.unet_batch,
            self.unet_batch,
            1e-3,
            ema=0.998,
            seed=self.seed + 4,
            caption_noise=self.caption_noise,
            processes=max(count for count in range(1, most + 1) if self.unet_batch % count == 0),
            start=str(self.unet_start or ""),
        )

    def deciding(self) -> Mapping[str, Mapping[str, object]]:
        """Give the settings that decide what each stage leaves, as JSON holds them."""
        names: Mapping[str, Sequence[str]] = {
            "scenes": ("scenes",),
            "vae": ("seed", "vae_samples", "vae_batch"),
            "clip": ("seed", "text_samples", "clip_samples", "clip_batch"),
            "judge": ("seed", "text_samples", "clip_samples", "clip_batch"),
            "unet": ("seed", "masks", "unet_samples", "unet_batch", "caption_noise"),
        }
        plan = self.unet_plan()
        # Each of the UNet's processes draws from a randomness of its own.
        more = {"unet": {"processes": plan.processes, "unet_start": plan.start}}
        return {
            stage: {name: getattr(self, name) for name in own} | more.get(stage, {})
            for stage, own in names.items()
        }

    def _clip_plans(self, name: str, seed: int, texts: int, pictures: int) -> ClipPlans:
        batch, betas = self.clip_batch, (0.9, 0.98)
        return ClipPlans(
            Plan(f"{name} text", texts // _TEXT_BATCH, _TEXT_BATCH, 1.5e-3, betas=betas, seed=seed),
            Plan(f"{name} vision", pictures // batch, batch, 1.5e-3, 0.03, ema=0.995, betas=betas, seed=seed),
        )


# A GPU draws in minutes what takes a CPU an hour.
ON_GPU: Mapping[str, int] = {
    "scenes": 100_000,
    "masks": 4,
    "text_samples": 1_000_000,
    "clip_samples": 4_000_000,
    "clip_batch": 256,
    "vae_samples": 4_000_000,
    "vae_batch": 128,
    "unet_samples": 20_000_000,
    "unet_batch": 512,
}
"""What a GPU trains on where the command does not say otherwise."""


class Workshop:
    """The work folder, and what the stages find and leave there."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, settings.work
        self.device = torch.device(settings.device)
        self._scenes: SceneSet | None = None

    def open(self) -> None:
        """Make the folder, refuse settings that are not those of the stages in it, and clear what was left aside."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise ValueError(
                f"{self.folder} cannot be the work folder ({problem.strerror}); choose another --work"
            ) from problem
        for stage, now in self.settings.deciding().items():
            record = self._record(stage)
            if not record.exists() or not self._begun(stage):
                continue
            kept = json.loads(record.read_text("utf-8"))
            if kept != now:
                raise ValueError(
                    f"{stage} in {self.folder} was begun with other settings ({changes(kept, now)}); "
                    "keep them, or choose another --work"
                )
        for folder in (self.folder, self.folder / "scenes", self.folder / "latents"):
            remove_leftovers(folder)

    def scenes(self) -> SceneSet:
        """Draw the scenes, or load them."""
        if self._scenes is None:
            self._begin("scenes")
            self._scenes = load_scenes(self.folder / "scenes", self.settings.scenes, self.settings.processes)
        return self._scenes

    def tokenizer(self) -> CLIPTokenizer:
        """Learn the vocabulary, or load it."""
        folder = self.folder / "tokenizer"
        if not folder.exists():
            to_folder(folder, train_tokenizer().save_pretrained)
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
        return tokenizer

    def clip(self) -> CLIPModel:
        """Train the CLIP that ships, or load it."""
        return self._clip("clip", self.settings.clip_plans())

    def judge(self) -> CLIPModel:
        """Train the CLIP that only judges, or load it."""
        return self._clip("judge", self.settings.judge_plans())

    def text_encoder(self) -> Path:
        """Give the folder of the text tower that the UNet reads with."""
        folder = self.folder / "text_encoder"
        if not folder.exists():
            to_folder(folder, text_encoder_of(self.clip()).save_pretrained)
        return folder

    def vae(self) -> AutoencoderKL:
        """Train the VAE, or load it."""
        folder = self.folder / "vae"
        if not folder.exists():
            self._begin("vae")
            vae = train_vae(
                self.settings.vae_plan(), self.scenes(), _pictures(), self.folder / "vae.ckpt", self.device
            )
            print(f"vae: {psnr(vae, _pictures().to(self.device)):.2f} dB on held-out scenes", flush=True)
            to_folder(folder, vae.save_pretrained)
        return AutoencoderKL.from_pretrained(folder)

    def unet(self) -> UNet2DConditionModel:
        """Train the UNet, or load it."""
        folder = self.folder / "unet"
        if not folder.exists():
            lessons = self.lessons()
            self._begin("unet")
            unet = train_unet(self.settings.unet_plan(), lessons, self.folder / "unet.ckpt", self.device)
            to_folder(folder, unet.save_pretrained)
        return UNet2DConditionModel.from_pretrained(folder)

    def lessons(self) -> Lessons:
        """Give what the UNet learns from."""
        self.vae()
        self.tokenizer()
        scenes = self.scenes()
        latents = load_latents(
            self.folder / "latents",
            self.folder / "vae",
            scenes,
            self.settings.masks,
            self.settings.processes if self.settings.device == "cpu" else 1,
        )
        return Lessons(latents, list(scenes.scenes), self.folder / "tokenizer", self.text_encoder())

    def export(self) -> None:
        """Write the whole model in the formats that diffusers and transformers load."""
        encoder = CLIPTextModel.from_pretrained(self.text_encoder())

        def write(folder: Path) -> None:
            export_pipeline(self.vae(), self.unet(), encoder, self.tokenizer(), folder / "pipeline")
            export_clip(self.clip(), self.tokenizer(), folder / "clip")

        folder = self.folder / "model"
        if not folder.exists():
            to_folder(folder, write)
        size = size_of(folder)
        print(f"export: {folder} has {size / 1e6:.2f} MB", flush=True)
        if size > LIMIT:
            raise RuntimeError(f"{folder} has {size} bytes; the bundled model may have {LIMIT}")

    def _record(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"

    def _begun(self, stage: str) -> bool:
        """Whether a stage left a checkpoint or a result."""
        return any(path != self._record(stage) for path in self.folder.glob(f"{stage}*"))

    def _begin(self, stage: str) -> None:
        """Keep the settings of a stage that begins; one that has begun without is left to its checkpoint."""
        if self._begun(stage):
            return
        aside = aside_of(self._record(stage))
        aside.write_text(json.dumps(self.settings.deciding()[stage], indent=2) + "\n", "utf-8")
        aside.replace(self._record(stage))

    def _clip(self, name: str, plans: ClipPlans) -> CLIPModel:
        folder = self.folder / f"{name}-model"
        if not folder.exists():
            self._begin(name)
            clip = train_clip(
                plans, self.scenes(), _held_out(256), self.tokenizer(), self.folder / name, self.device
            )
            accuracy = zero_shot_accuracy(clip, self.tokenizer(), _held_out(1000))
            told = ", ".join(f"{attribute} {share:.1%}" for attribute, share in accuracy.items())
            print(f"{name}: {told} on 1,000 held-out scenes", flush=True)
            to_folder(folder, clip.save_pretrained)
        loaded: CLIPModel = CLIPModel.from_pretrained(folder)
        return loaded.eval()


STAGES: Mapping[str, Callable[[Workshop], object]] = {
    "scenes": Workshop.scenes,
    "tokenizer": Workshop.tokenizer,
    "vae": Workshop.vae,
    "clip": Workshop.clip,
    "judge": Workshop.judge,
    "unet": Workshop.unet,
    "export": Workshop.export,
}
"""The parts of the training, in order; each runs what it needs and finds undone."""


def train(settings: Settings, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Run stages by their names; what is done already is not done again, and refused with other settings."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}; known are {', '.join(STAGES)}")
    if settings.unet_start is not None:
        weights_of(str(settings.unet_start))
    workshop = Workshop(settings)
    workshop.open()
    for stage in stages:
        STAGES[stage](workshop)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.toyworld.train", description=(__doc__ or "").split("\n\n")[0]
    )
    plain = Settings()
    parser.add_argument("--stages", default=",".join(STAGES), help="which to run, with commas (%(default)s)")
    parser.add_argument("--work", type=Path, default=plain.work, help="folder for results (%(default)s)")
    devices = ("auto", "cpu", "cuda")
    parser.add_argument("--device", default="auto", choices=devices, help="(%(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count(),
        help="on a CPU; the UNet takes the largest divisor of --unet-batch that is at most this (%(default)s)",
    )
    parser.add_argument("--threads", type=int, help="of each stage but scenes and unet (as many as cores)")
    parser.add_argument("--caption-noise", type=float, default=plain.caption_noise, help="(%(default)s)")
    parser.add_argument("--unet-start", type=Path, help="folder of a UNet to go on from (random weights)")
    parser.add_argument("--seed", type=int, default=plain.seed, help="(%(default)s)")
    for name, on_gpu in ON_GPU.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            help=f"({getattr(plain, name):,} on a CPU, {on_gpu:,} on a GPU)",
        )
    given = vars(parser.parse_args(arguments))
    stages, threads = given.pop("stages").split(","), given.pop("threads")
    if given["device"] == "auto":
        given["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is not None:
        if threads < 1:
            parser.error(f"--threads is {threads}; it must be at least 1")
        torch.set_num_threads(threads)
    sizes = dict(ON_GPU) if given["device"] != "cpu" else {}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        train(replace(plain, **sizes | chosen), stages)
    except ValueError as problem:
        parser.error(str(problem))


def _held_out(count: int) -> SceneSet:
    return draw_scenes(range(HELD_OUT, HELD_OUT + count))


def _pictures() -> torch.Tensor:
    return pixels(_held_out(64).images)


if __name__ == "__main__":
    main()
