"""Measures toyworld on scenes and seeds that it was not trained on: `python -m workers.toyworld.evaluate`.

The judge is a CLIP trained from another seed than the one that ships (`train.py`, stage `judge`). Writes
`figures.json`, `card.md` and contact sheets into a folder; with `--card` the card's figures are replaced too.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoPipelineForInpainting
from PIL import Image
from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTokenizer

from search_spaces.models import REGISTRY
from workers.toyworld.scenes import (
    BACKGROUNDS,
    SIDE,
    Background,
    Colour,
    Margin,
    Placement,
    Scene,
    Style,
    Subject,
    box_mask,
    render,
)
from workers.toyworld.training.clip import (
    ZERO_SHOT,
    classify,
    embed_pictures,
    embed_texts,
    zero_shot_accuracy,
)
from workers.toyworld.training.data import HELD_OUT, draw_scenes, pixels
from workers.toyworld.training.vae import psnr_each

PROMPT = "a realistic green dragon"
DEFAULTS: Mapping[str, Any] = dict(REGISTRY["toyworld"].defaults)

# Far from the held-out scenes that train.py shows figures of while it runs.
_SCENES = range(HELD_OUT + 100_000, HELD_OUT + 101_000)
_BATCH = 16
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True)
class Share:
    """How many of some pictures had a quality."""

    count: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.of or self.of == 0:
            raise ValueError(f"{self.count} of {self.of} pictures is no share")

    @property
    def value(self) -> float:
        """The share, 0..1."""
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, 0..1."""
        z2 = 1.96**2
        middle = (self.value + z2 / (2 * self.of)) / (1 + z2 / self.of)
        spread = math.sqrt(z2 * (self.value * (1 - self.value) + z2 / (4 * self.of)) / self.of)
        half = spread / (1 + z2 / self.of)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.0%} ({low:.0%}–{high:.0%})"


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error, `of` so many values."""

    value: float
    error: float
    of: int

    def __str__(self) -> str:
        return f"{self.value:.1f} ± {self.error:.1f}"


class Edit(NamedTuple):
    """A wish for another subject: what stands there, and what shall stand there."""

    before: Subject
    after: Subject
    colour: Colour
    style: Style

    @property
    def prompt(self) -> str:
        """The wish in words."""
        return f"a {self.style} {self.colour} {self.after}"


EDITS = (
    Edit("dog", "cat", "orange", "realistic"),
    Edit("cat", "dog", "white", "realistic"),
    Edit("fish", "bird", "blue", "realistic"),
    Edit("bird", "fish", "red", "cartoon"),
    Edit("car", "house", "yellow", "realistic"),
    Edit("house", "car", "red", "realistic"),
    Edit("tree", "dragon", "purple", "cartoon"),
    Edit("dragon", "tree", "green", "realistic"),
)
"""Edits that are measured beside the cat that becomes a green dragon."""

_EDITED: Sequence[tuple[Background, Colour]] = (
    ("meadow", "blue"),
    ("city", "grey"),
    ("beach", "red"),
    ("room", "yellow"),
)

WHOLE_SCENES: Sequence[tuple[str, Subject, Background]] = (
    ("a realistic green dragon on a beach", "dragon", "beach"),
    ("a cartoon red cat at night", "cat", "night"),
    ("a realistic blue car in the snow", "car", "snow"),
    ("a realistic yellow house in a city", "house", "city"),
    ("a cartoon purple fish in a room", "fish", "room"),
    ("a realistic white dog on a meadow", "dog", "meadow"),
    ("a cartoon orange bird on a beach", "bird", "beach"),
    ("a realistic green tree on a meadow", "tree", "meadow"),
)
"""Prompts for pictures from nothing: with their subject and background."""

NEGATIVES: Sequence[tuple[str, str]] = (
    ("a realistic green dragon", ""),
    ("a realistic green dragon", "cartoon"),
    ("a green dragon", ""),
    ("a green dragon", "cartoon"),
    ("a green dragon", "realistic"),
    ("a cartoon green dragon", "cartoon"),
)
"""Prompts with negative prompts."""


class Stage(NamedTuple):
    """A picture to edit, and the mask of what is painted anew."""

    picture: Image.Image
    mask: Image.Image


class Painter:
    """The pipeline that is measured."""

    def __init__(self, folder: Path) -> None:
        self._pipeline = AutoPipelineForInpainting.from_pretrained(folder / "pipeline", dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self.vae: AutoencoderKL = self._pipeline.vae

    def paint(
        self, stages: Sequence[Stage], seeds: int, prompt: str, **settings: Any
    ) -> Sequence[Image.Image]:
        """Paint every stage with the seeds 0 to seeds - 1; settings beside the defaults are as diffusers' ."""
        wanted = [(stage, seed) for stage in stages for seed in range(seeds)]
        painted: list[Image.Image] = []
        for first in range(0, len(wanted), _BATCH):
            part = wanted[first : first + _BATCH]
            chosen = dict(DEFAULTS) | settings
            negative = chosen.pop("negative_prompt", "")
            painted += self._pipeline(
                prompt=[prompt] * len(part),
                negative_prompt=[negative] * len(part),
                image=[stage.picture for stage, _ in part],
                mask_image=[stage.mask for stage, _ in part],
                height=SIDE,
                width=SIDE,
                generator=[torch.Generator().manual_seed(HELD_OUT + seed) for _, seed in part],
                **{"strength": 1.0} | chosen,
            ).images
        return painted


class Judge:
    """Says what pictures show."""

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        self._clip, self._tokenizer = clip.eval(), tokenizer

    def share(self, images: Sequence[Image.Image], attribute: str, name: str) -> Share:
        """Count the pictures whose subject, colour, style or background is the named one."""
        found = classify(self._clip, self._tokenizer, _stack(images), attribute)
        return Share(found.count(name), len(found))

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], text: str) -> Mean:
        """Give 100 times the mean cosine between pictures and a text."""
        embedded = embed_pictures(self._clip, _stack(images)) @ embed_texts(
            self._clip, self._tokenizer, [text]
        ).squeeze(0)
        return mean_of((100 * embedded).tolist())

    def margin(self, images: Sequence[Image.Image]) -> Mean:
        """Give by how much realistic is nearer than cartoon, in hundredths of a cosine."""
        styles = ZERO_SHOT["style"]
        with torch.no_grad():
            texts = embed_texts(self._clip, self._tokenizer, [styles["realistic"], styles["cartoon"]])
            likeness = embed_pictures(self._clip, _stack(images)) @ texts.T
        return mean_of((100 * (likeness[:, 0] - likeness[:, 1])).tolist())


def mean_of(values: Sequence[float]) -> Mean:
    """Give the mean of at least two values and its standard error."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no standard error; give at least two")
    return Mean(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)), len(values))


def saturation(images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Mean:
    """Give the mean saturation (HSV, 0..255) of what the masks show."""
    values = [
        float(np.asarray(image.convert("HSV"))[..., 1][np.asarray(mask) > 127].mean())
        for image, mask in zip(images, masks, strict=True)
    ]
    return mean_of(values)


def stage(
    subject: Subject, background: Background, number: int, colour: Colour, style: Style = "realistic"
) -> Stage:
    """Draw a held-out scene with its subject in the middle, and a box that does not give the subject away."""
    seed = _SCENES.stop + 100 * BACKGROUNDS.index(background) + number
    drawn = render(Scene(subject, colour, style, background, seed, Placement(0.5, 0.56, 0.36)))
    return Stage(drawn.image, box_mask(drawn, Margin(3, 3, 3, 3)))


def contact_sheet(rows: Sequence[Sequence[Image.Image]], zoom: int = 2) -> Image.Image:
    """Lay pictures out in rows, each enlarged without smoothing."""
    width = max(len(row) for row in rows)
    sheet = Image.new("RGB", (width * SIDE, len(rows) * SIDE), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * SIDE, y * SIDE))
    return sheet.resize((zoom * sheet.width, zoom * sheet.height), Image.Resampling.NEAREST)


class Evaluation:
    """Measures one thing after the other and keeps figures and sheets."""

    def __init__(self, model: Path, judge: CLIPModel, out: Path, seeds: int = 16) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(model / "pipeline" / "tokenizer")
        self.clip = CLIPModel.from_pretrained(model / "clip", dtype=torch.float32).eval()
        self.judge_clip, self.judge = judge, Judge(judge, self.tokenizer)
        self.painter, self.out, self.seeds = Painter(model), out, seeds
        self.cats = [
            stage("cat", "meadow", 0, "orange"),
            stage("cat", "beach", 1, "grey"),
            stage("cat", "room", 2, "white"),
            stage("cat", "snow", 3, "purple"),
        ]
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, Any]:
        """Measure everything."""
        return {
            "defaults": dict(DEFAULTS),
            "seeds": self.seeds,
            "clip": self.measure_clip(),
            "vae": self.measure_vae(),
            "dragon": self.measure_dragon(),
            "edits": self.measure_edits(),
            "steps": self.curve("num_inference_steps", (1, 2, 3, 5, 10, 20, 50)),
            "guidance": self.curve("guidance_scale", (1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)),
            "strength": self.curve("strength", tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))),
            "negative": self.measure_negatives(),
            "whole": self.measure_whole_scenes(),
        }

    def measure_clip(self) -> dict[str, Any]:
        """Give both CLIPs' zero-shot accuracies on held-out renders."""
        scenes = draw_scenes(_SCENES)
        return {
            "scenes": len(scenes),
            "clip": zero_shot_accuracy(self.clip, self.tokenizer, scenes),
            "judge": zero_shot_accuracy(self.judge_clip, self.tokenizer, scenes),
        }

    def measure_vae(self) -> Mean:
        """Give the PSNR in dB over held-out renders, and draw some before and after."""
        pictures = pixels(draw_scenes(_SCENES[:256]).images)
        with torch.no_grad():
            again = self.painter.vae.decode(
                self.painter.vae.encode(pictures[:16]).latent_dist.mean
            ).sample.clamp(-1, 1)
        self._sheet("vae", [_unstack(pictures[:16]), _unstack(again)])
        return mean_of(psnr_each(self.painter.vae, pictures).tolist())

    def measure_dragon(self) -> dict[str, Share]:
        """Turn four cats into realistic green dragons at the default settings."""
        painted = self.painter.paint(self.cats, self.seeds, PROMPT)
        rows = [[self.cats[row].picture, *painted[row * self.seeds :][:12]] for row in range(len(self.cats))]
        self._sheet("dragon", rows)
        return {
            "dragon": self.judge.share(painted, "subject", "dragon"),
            "green": self.judge.share(painted, "colour", "green"),
            "realistic": self.judge.share(painted, "style", "realistic"),
        }

    def measure_edits(self) -> list[dict[str, Any]]:
        """Turn other subjects into others, over four scenes and half of the seeds."""
        rows, found = [], []
        for edit in EDITS:
            stages = [stage(edit.before, place, 10, colour) for place, colour in _EDITED]
            painted = self.painter.paint(stages, self.seeds // 2, edit.prompt)
            rows.append([stages[0].picture, *painted[:: max(1, self.seeds // 6)][:12]])
            found.append(
                {
                    "edit": f"{edit.before} → {edit.prompt}",
                    "subject": self.judge.share(painted, "subject", edit.after),
                    "colour": self.judge.share(painted, "colour", edit.colour),
                    "style": self.judge.share(painted, "style", edit.style),
                }
            )
        self._sheet("edits", rows)
        return found

    def curve(self, setting: str, values: Sequence[float]) -> list[dict[str, Any]]:
        """Sweep one setting for the four cats, with a quarter of the seeds for each."""
        rows, found = [], []
        for value in values:
            painted = self.painter.paint(self.cats, max(1, self.seeds // 4), PROMPT, **{setting: value})
            rows.append(painted[:12])
            found.append({"value": value, **self._likeness(painted)})
        self._sheet(setting, rows)
        return found

    def measure_negatives(self) -> list[dict[str, Any]]:
        """Paint with and without negative prompts."""
        rows, found = [], []
        for prompt, negative in NEGATIVES:
            painted = self.painter.paint(self.cats, max(1, self.seeds // 4), prompt, negative_prompt=negative)
            rows.append(painted[:12])
            found.append(
                {
                    "prompt": prompt,
                    "negative": negative,
                    "margin": self.judge.margin(painted),
                    **self._likeness(painted),
                }
            )
        self._sheet("negative", rows)
        return found

    def measure_whole_scenes(self) -> dict[str, Share]:
        """Let the model draw whole scenes: a mask over everything, and nothing but grey beneath."""
        nothing = Stage(Image.new("RGB", (SIDE, SIDE), (128, 128, 128)), Image.new("L", (SIDE, SIDE), 255))
        subjects, places, rows = [], [], []
        for prompt, subject, place in WHOLE_SCENES:
            painted = self.painter.paint([nothing], max(2, self.seeds // 2), prompt)
            rows.append(painted)
            subjects.append(self.judge.share(painted, "subject", subject))
            places.append(self.judge.share(painted, "background", place))
        self._sheet("whole-scenes", rows)
        return {"subject": _together(subjects), "background": _together(places)}

    def _likeness(self, painted: Sequence[Image.Image]) -> dict[str, Any]:
        masks = [cat.mask for cat in self.cats for _ in range(len(painted) // len(self.cats))]
        return {
            "score": self.judge.score(painted, PROMPT),
            "dragon": self.judge.share(painted, "subject", "dragon"),
            "cat": self.judge.share(painted, "subject", "cat"),
            "green": self.judge.share(painted, "colour", "green"),
            "realistic": self.judge.share(painted, "style", "realistic"),
            "saturation": saturation(painted, masks),
        }

    def _sheet(self, name: str, rows: Sequence[Sequence[Image.Image]]) -> None:
        contact_sheet(rows).save(self.out / f"{name}.png")
        print(f"{name}: drawn", flush=True)


def markdown(figures: Mapping[str, Any]) -> str:
    """Word the figures for the model card."""
    clip, dragon, whole = figures["clip"], figures["dragon"], figures["whole"]
    defaults = ", ".join(f"{name} {value:g}" for name, value in figures["defaults"].items())
    curve_head = ["CLIP score", "dragon", "green", "realistic", "cat", "saturation"]
    curve_cells = ["score", "dragon", "green", "realistic", "cat", "saturation"]
    return "\n\n".join(
        [
            f"Settings, where nothing else is said: {defaults}, strength 1, no negative prompt. Shares are the "
            "judge's, with 95 % intervals; means have standard errors; the CLIP score is 100 times the "
            f"judge's cosine with “{PROMPT}”, saturation is 0 to 255 within the mask.",
            f"Zero-shot accuracy on {clip['scenes']:,} held-out scenes: "
            + "; ".join(
                f"{who} " + ", ".join(f"{name} {share:.1%}" for name, share in clip[key].items())
                for who, key in (("CLIP", "clip"), ("the judge", "judge"))
            )
            + f". VAE: {figures['vae']} dB PSNR over {figures['vae'].of} of them.",
            f"Four cats to “{PROMPT}”, {dragon['dragon'].of} pictures: "
            + ", ".join(f"{name} {share}" for name, share in dragon.items())
            + ".",
            _table(
                ["edit", "subject", "colour", "style"],
                [[row["edit"], row["subject"], row["colour"], row["style"]] for row in figures["edits"]],
            ),
            f"Whole scenes (a mask over everything), {whole['subject'].of} pictures: subject {whole['subject']}, "
            f"background {whole['background']}.",
            *(
                _table([name, *curve_head], [[f"{row['value']:g}", *(row[c] for c in curve_cells)] for row in rows])
                for name, rows in ((name, figures[name]) for name in ("steps", "guidance", "strength"))
            ),
            _table(
                ["prompt", "negative prompt", "realistic − cartoon", *curve_head[:4]],
                [
                    [row["prompt"], row["negative"] or "–", row["margin"], *(row[c] for c in curve_cells[:4])]
                    for row in figures["negative"]
                ],
            ),
        ]
    )  # fmt: skip


def replace_figures(card: str, figures: str) -> str:
    """Put figures between a card's two marks."""
    if card.count(BEGIN) != 1 or card.count(END) != 1:
        raise ValueError(f"the card must have one line {BEGIN} and one line {END} for the figures")
    before, rest = card.split(BEGIN)
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.toyworld.evaluate", description=(__doc__ or "").split("\n\n")[0]
    )
    bundled = Path(__file__).parent / "model"
    add: Callable[..., Any] = parser.add_argument
    add("--model", type=Path, default=bundled, help="folder with pipeline and clip (the bundled model)")
    add("--judge", type=Path, default=Path("build/toyworld/judge-model"), help="CLIP folder (%(default)s)")
    add("--out", type=Path, default=Path("build/toyworld/figures"), help="folder for results (%(default)s)")
    add("--card", type=Path, help="model card whose figures are replaced")
    add("--seeds", type=int, default=16, help="pictures per scene, at least 4 (%(default)s)")
    given = parser.parse_args(arguments)
    if given.seeds < 4:
        parser.error(f"--seeds is {given.seeds}; it must be at least 4")
    for folder in (given.model, given.judge):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}; `python -m workers.toyworld.train` makes one")
    try:
        _check_folders(given.model, given.judge)
        if given.card is not None:
            replace_figures(given.card.read_text("utf-8"), "")
        given.out.mkdir(parents=True, exist_ok=True)
        judge = CLIPModel.from_pretrained(given.judge, dtype=torch.float32)
        evaluation = Evaluation(given.model, judge, given.out, given.seeds)
    except OSError as problem:
        parser.error(f"{problem.filename}: {problem.strerror}" if problem.filename else _line(problem))
    except (ValueError, SafetensorError) as problem:
        parser.error(_line(problem))
    figures = evaluation.run()
    text = json.dumps(figures, default=asdict, indent=2, ensure_ascii=False)
    (given.out / "figures.json").write_text(text + "\n", "utf-8")
    words = markdown(figures)
    (given.out / "card.md").write_text(words + "\n", "utf-8")
    if given.card is not None:
        card = replace_figures(given.card.read_text("utf-8"), words)
        given.card.write_text(card, "utf-8")
    print(words)


def _check_folders(model: Path, judge: Path) -> None:
    """Raise a ValueError where a folder lacks what is loaded from it."""
    _check_clip(judge, "--judge")
    _check_clip(model / "clip", "--model")
    if not (model / "pipeline" / "model_index.json").is_file():
        raise ValueError(f"{model / 'pipeline'} has no model_index.json; --model needs a pipeline there")


def _check_clip(folder: Path, option: str) -> None:
    """Raise a ValueError where a folder has no CLIP; transformers would fill what lacks with random weights."""
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "clip" or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has no CLIP; {option} needs config.json of model_type clip and model.safetensors there"
        )


def _line(problem: Exception) -> str:
    """Word a problem in one line."""
    return " ".join(str(problem).split())


def _stack(images: Sequence[Image.Image]) -> torch.Tensor:
    return pixels(np.stack([np.asarray(image.convert("RGB")) for image in images]))


def _unstack(pictures: torch.Tensor) -> list[Image.Image]:
    arrays = ((pictures.movedim(1, -1) + 1) * 127.5).round().byte().numpy()
    return [Image.fromarray(array) for array in arrays]


def _together(shares: Sequence[Share]) -> Share:
    return Share(sum(share.count for share in shares), sum(share.of for share in shares))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main()
