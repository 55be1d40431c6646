"""The command: bad input is one sentence and exit code 2 before any model is loaded."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tomllib
import zlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import huggingface_hub.constants
import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from PIL import Image

import latentsweep
from orchestrator import cli, resolving, wiring
from orchestrator.plan import remember_rate
from orchestrator.ray_pool import RayPool
from orchestrator.study_folder import StudyFolder
from tests.orchestrator.test_api import STUDIES, STUDY, study_file
from tests.workers.tiny_models import TOYWORLD, save_tiny_sd


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good study file, in a place where no model may be loaded and no Ray started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(wiring, "build_worker", lambda _: pytest.fail("a model was loaded"))
    monkeypatch.setattr(RayPool, "_dispatch", lambda _: pytest.fail("Ray was started"))
    return study_file(tmp_path)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must fail with exit code 2 says: one line, no traceback."""
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert err.startswith("latentsweep: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in out + err
    return err


EDITS = {
    "an unknown key": ("seeds:", "sedes:", ["unknown key 'sedes'", "did you mean 'seeds'"]),
    "an unknown setting": (
        "guidance_scale:",
        "guidence_scale:",
        ["'guidence_scale'", "did you mean 'guidance_scale'"],
    ),
    "a setting of other pipelines": (
        "strength:",
        "true_cfg_scale:",
        ["StableDiffusionInpaintPipeline takes no setting"],
    ),
    "a wrong type": ("[2, 4]", "[2, four]", ["num_inference_steps", "'four' is not a whole number"]),
    "a wrong type of a keyword that only its pipeline knows": (
        "strength: [0.3, 1.0]",
        "padding_mask_crop: [8, x]",
        ["space.padding_mask_crop: 'x' does not fit", "takes a whole number or null"],
    ),
    "true in place of a number of such a keyword": (
        "strength: [0.3, 1.0]",
        "padding_mask_crop: [true]",
        ["space.padding_mask_crop: True does not fit"],
    ),
    "a range of fractions for such a keyword": (
        "strength: [0.3, 1.0]",
        "padding_mask_crop: {low: 0.5, high: 8.5, step: 2}",
        ["space.padding_mask_crop: 0.5 does not fit"],
    ),
    "an option that no scheduler of the study has": (
        "strength: [0.3, 1.0]",
        "use_karras_sigmas: [true, false]",
        ["use_karras_sigmas: DDIMScheduler has no such option", "EulerDiscreteScheduler"],
    ),
    "a value that a scheduler's option does not take": (
        "strength: [0.3, 1.0]",
        "timestep_spacing: [leading, sideways]",
        ["DDIMScheduler does not take timestep_spacing sideways"],
    ),
    "a wrong type of a scheduler's option": (
        "strength: [0.3, 1.0]",
        "timestep_spacing: [leading, 3]",
        ["space.timestep_spacing: 3 does not fit", "a scheduler takes a text or null"],
    ),
    "rows below 1": ("seeds: 2", "engine: {rows: 0}", ["engine.rows", "0"]),
    "steps that the only scheduler does not take": (
        "num_inference_steps: [2, 4]",
        "scheduler: [LCMScheduler]\n  num_inference_steps: [51, 60]",
        ["no cell of the space can run", "LCMScheduler takes at most 50 num_inference_steps"],
    ),
    "strength above 1": ("[0.3, 1.0]", "[0.3, 1.1]", ["strength", "1.1 is above 1"]),
    "strength below 0": ("[0.3, 1.0]", "[-0.1, 1.0]", ["strength", "-0.1 is below 0"]),
    "steps below 1": ("[2, 4]", "[0, 4]", ["num_inference_steps", "0 is below 1"]),
    "NaN": ("[0.5, 1, 5]", "[0.5, .nan]", ["guidance_scale", "not a finite number"]),
    "no effective step anywhere": (
        "[0.3, 1.0]",
        "[0.1, 0.2]",
        ["no cell of the space can run", "no effective step"],
    ),
    "an empty list": ("[0.3, 1.0]", "[]", ["strength", "the list is empty"]),
    "duplicate values": ("[0.5, 1, 5]", "[1, 5, 5.0]", ["guidance_scale", "5.0 is listed twice"]),
    "an unknown model": (
        "model: toyworld",
        "model: toyword",
        ["unknown model 'toyword'", "did you mean 'toyworld'"],
    ),
    "a hub model that is not there": (
        "model: toyworld",
        "model: nobody/nothing",
        ["unknown model 'nobody/nothing'", "the hub cannot be reached"],
    ),
    "a folder that is no model": ("model: toyworld", "model: .", ["is not a model", "model_index.json"]),
    "an unknown strategy": (
        "seeds: 2",
        "search: {strategy: gird}",
        ["unknown strategy 'gird'", "did you mean 'grid'"],
    ),
    "an unknown scheduler": (
        "seeds: 2",
        "settings: {scheduler: DDIMSchedular}",
        ["'DDIMSchedular'", "did you mean 'DDIMScheduler'"],
    ),
    "an unknown objective": ("seeds: 2", "objective: clip", ["unknown objective 'clip'", "clip_score"]),
    "a missing image": ("cat.png", "dog.png", ["inputs[0].image", "there is no file", "dog.png"]),
    "a missing mask": ("cat-mask.png", "mask.png", ["inputs[0].mask", "there is no file", "mask.png"]),
    "no mask for inpainting": (
        ", mask: cat-mask.png",
        "",
        ["inputs[0].mask is missing", "inpainting needs one"],
    ),
    "a mask without image": ("image: cat.png, ", "", ["inputs[0]: a mask needs an image beside it"]),
    "a task the model cannot do": ("seeds: 2", "task: image-to-image", ["cannot do the task image-to-image"]),
    "an unreadable image": ("image: cat.png", "image: dragon.yaml", ["inputs[0].image", "not an image"]),
    "a study name that is a path": ("study: dragon", "study: ../dragon", ["study", "letters, digits"]),
    "a bad size": ("seeds: 2", "settings: {width: 60}", ["width", "60 is not a multiple of 8"]),
    "fewer UNet calls than one candidate takes": (
        "seeds: 2",
        "budget: {unet_calls: 39}",
        [
            "budget.unet_calls: 39 are fewer than the 80 that one candidate (num_inference_steps 20,",
            "4 instances",
        ],
    ),
    "a race that its budget is too small for": (
        "seeds: 2",
        "search: {strategy: halving, enqueue: [{strength: 0.6}, {strength: 0.7}]}\nbudget: {images: 9}",
        ["budget: it lasts for a race of 2 settings, and 3 are tried first"],
    ),
    "fewer trials than settings to try first": (
        "seeds: 2",
        "search: {strategy: tpe, trials: 2, enqueue: [{strength: 0.6}, {strength: 0.7}]}",
        ["search.trials: 2 are fewer than the 3 settings that are tried first"],
    ),
    "a function for a sampler": (
        "seeds: 2",
        "search: {strategy: tpe, trials: 5, options: {gamma: 10}}",
        ["tpe's option gamma takes Callable", "a study file cannot write one"],
    ),
    "exclusions that leave nothing": (
        "seeds: 2",
        "exclude: [{strength: 0.3}, {strength: {low: 0.5, high: 1}}]",
        ["no cell of the space can run", "exclude["],
    ),
    "a fixed and swept setting": (
        "seeds: 2",
        "settings: {strength: 1.0}",
        ["strength", "both 'settings' and 'space'"],
    ),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("case", EDITS)
def test_a_bad_study_file(case: str, command: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, words = EDITS[case]
    assert old in STUDY
    path.write_text(STUDY.replace(old, new), encoding="utf-8")
    said = complaint(capsys, command, str(path))
    assert "dragon.yaml" in said
    for word in words:
        assert word in said
    assert not (path.parent / "runs").exists(), "nothing is written for a study that cannot run"


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("study.db", ["'study.db' is no Optuna storage", "write journal:PATH"]),
        ("journal:nowhere/study.log", ["cannot be reached", "nowhere is no folder"]),
        ("sqlite:///nowhere/study.db", ["cannot be reached", "nowhere is no folder"]),
        ("postgres://me:s3cret@127.0.0.1:1/x", ["'postgres' is no database", "did you mean 'postgresql'"]),
        ("postgresql://me:s3cret@127.0.0.1:port/x", ["cannot be read"]),
        ("postgresql://me:s3cret@127.0.0.1:1/x", ["the Optuna storage postgresql://me:***@127.0.0.1:1/x"]),
    ],
)
def test_a_storage_that_cannot_be_reached(
    storage: str, words: list[str], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one is refused by its driver, or for the want of it."""
    for said in (
        complaint(capsys, "run", str(path), "--dashboard", storage),
        _export_complaint(storage, capsys),
    ):
        assert "s3cret" not in said
        for word in words:
            assert word in said
    assert not (path.parent / "runs" / "catalog").exists()


def _export_complaint(storage: str, capsys: pytest.CaptureFixture[str]) -> str:
    resolved = resolving.resolve(Path("dragon.yaml"), "runs", lambda: 0)
    StudyFolder("runs", "dragon").pin(resolved.study, resolved.text, resolved.images)
    return complaint(capsys, "export", "dragon", "--to", "optuna", storage)


def test_a_driver_that_is_not_installed_is_named_with_what_installs_it(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    said = complaint(capsys, "run", str(path), "--dashboard", "postgresql://127.0.0.1:1/x")
    assert (
        "needs the Python module psycopg, which is not here: `pip install 'latentsweep[postgresql]'`" in said
    )
    assert not (path.parent / "runs").exists()


def test_a_storage_that_holds_another_study_of_this_name_is_refused_before_ray_starts(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = optuna.storages.JournalStorage(JournalFileBackend("theirs.log"))
    optuna.create_study(study_name="dragon", storage=storage).add_trial(optuna.trial.create_trial(value=1.0))
    said = complaint(capsys, "run", str(path), "--dashboard", "journal:theirs.log")
    assert "theirs.log holds another study named 'dragon'" in said


def test_what_cannot_be_exported(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no study 'dragon'" in complaint(capsys, "export", "dragon", "--to", "optuna", "a.log")
    assert "did you mean 'optuna'" in complaint(capsys, "export", "dragon", "--to", "optun", "a.log")
    assert "is not the name of a study" in complaint(capsys, "export", "../x", "--to", "optuna", "a.log")


def test_a_study_file_is_not_taken_for_the_storage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--dashboard", "dragon.yaml"])
    assert ended.value.code == 2
    assert "write it before --dashboard" in capsys.readouterr().err


def bomb(width: int, height: int) -> bytes:
    """A tiny PNG that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_bad_images(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = path.with_name("cat.png"), path.with_name("cat-mask.png")
    good = image.read_bytes()
    image.write_bytes(good[: len(good) // 2])
    assert "is it complete" in complaint(capsys, "run", str(path))
    for side in (9_000, 60_000):
        image.write_bytes(bomb(side, side))
        assert "pixels" in complaint(capsys, "run", str(path))
    image.write_bytes(b"")
    assert "not an image" in complaint(capsys, "run", str(path))
    image.unlink()
    image.mkdir()
    assert "is a folder" in complaint(capsys, "run", str(path))
    image.rmdir()
    image.write_bytes(good)
    Image.new("L", (64, 64), 0).save(mask)
    assert "all black" in complaint(capsys, "run", str(path))
    Image.new("L", (64, 64), 255).save(mask)
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "constraints: [preservation_psnr >= 25]\n", encoding="utf-8")
    sentence = complaint(capsys, "run", str(path))
    assert "inputs[0].mask: cat-mask.png covers everything at 64×64 pixels" in sentence
    path.write_text(text, encoding="utf-8")
    Image.new("L", (64, 32), 255).save(mask)
    assert "64×32 pixels, its image 64×64" in complaint(capsys, "run", str(path))


def test_preservation_needs_a_mask(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_sd(path.parent / "tiny")
    capsys.readouterr()
    path.write_text(
        "study: s\nmodel: tiny\nclip_model: toyworld\ninputs: [{prompt: a cat}]\nspace: {guidance_scale: [1, 5]}\n"
        "objectives: [{clip_score: maximize}, {preservation_psnr: maximize}]\n",
        encoding="utf-8",
    )
    sentence = complaint(capsys, "plan", str(path))
    assert "preservation_psnr compares a picture with its input image outside the mask" in sentence
    assert "the task text-to-image has no mask" in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("- a list", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("study: [unclosed", "is not valid YAML at line 1"),
        ("study: a\nstudy: b", "given twice"),
        ("space: {}", "missing"),
        (yaml.safe_dump({**yaml.safe_load(STUDY), "space": {}}), "space is empty"),
    ],
)
def test_what_is_no_study_file(path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(text, encoding="utf-8")
    assert words in complaint(capsys, "run", str(path))


def test_a_missing_study_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no study file nothing.yaml" in complaint(capsys, "run", "nothing.yaml")


def test_a_folder_that_belongs_to_another_study(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = resolving.resolve(path, "runs", lambda: 0)
    StudyFolder("runs", "dragon").pin(study.study, study.text, study.images)
    path.write_text(STUDY.replace("seeds: 2", "settings: {eta: 0.5}"), encoding="utf-8")
    said = complaint(capsys, "run", str(path))
    assert "belongs to another study" in said
    assert "settings.eta: was 0.0, is 0.5" in said


def test_a_damaged_pinned_study_is_a_sentence(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = path.parent / "runs" / "studies" / "dragon"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text("{ half", encoding="utf-8")
    assert "cannot be read as a pinned study" in complaint(capsys, "run", str(path))


def test_a_broken_api_key_is_said_in_a_line_and_is_not_shown(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_API_KEY", "not a key!")
    path.write_text(STUDY.replace("cat.png", "dog.png"), encoding="utf-8")
    cli.main(["run", str(path)])
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if "COMET_API_KEY" in line]
    assert len(lines) == 1
    assert "goes on offline" in lines[0]
    assert "not a key!" not in out + err


def test_plan_says_everything_and_writes_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    for words in (
        "10 trials × 2 instances = 20",
        "served by: the slot engine, over StableDiffusionInpaintPipeline: as many UNet rows as are fastest",
        "unknown before the first longer run",
        "switches guidance off",
        "leaves no effective step (6 cells)",
        "UNet calls: 82",
    ):
        assert words in out
    assert not (path.parent / "runs").exists()


def test_plan_says_what_a_budget_of_seconds_is_likely_to_last_for(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(
        path.read_text(encoding="utf-8") + "budget: {seconds: 5, gpu_seconds: 50}\n", encoding="utf-8"
    )
    cli.main(["plan", str(path)])
    assert "likely too few" not in capsys.readouterr().out
    root = path.parent / "runs"
    root.mkdir()
    remember_rate(resolving.resolve(path, str(root), lambda: 0).study, str(root), 8.0)
    assert cli.main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    # 2 instances × 20 steps × 2 rows with guidance
    assert "budget.seconds: 5 s are likely too few for one candidate, which takes about 10 s" in out
    assert "budget.gpu_seconds: 50 s" not in out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("search: {strategy: tpe, trials: 5}", ["with 2 instances no trial can be told", "4 are the fewest"]),
        ("search: {strategy: halving}", ["that the grid would take"]),
        (
            "search: {strategy: tpe, trials: 5}\nobjectives: [{clip_score: maximize}, {gpu_seconds: minimize}]",
            ["5 trials × 2 instances", "- no trial can be told"],
        ),
        ("search: {validate: 3}", ["validation: the best 3 and the baseline on 3 fresh instances"]),
        ("budget: {images: 4}", ["budget: images 4", "up to 4"]),
    ],
)
def test_plan_says_what_a_search_may_take(
    path: Path, capsys: pytest.CaptureFixture[str], more: str, words: list[str]
) -> None:
    path.write_text(path.read_text(encoding="utf-8") + more + "\n", encoding="utf-8")
    assert cli.main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words if not word.startswith("- ")), out
    assert not any(word[2:] in out for word in words if word.startswith("- ")), out


def test_plan_says_that_one_instance_tells_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("seeds: 2", "seeds: 1"), encoding="utf-8")
    assert cli.main(["plan", str(path)]) == 0
    assert "with 1 instance nothing has an interval" in capsys.readouterr().out


def test_several_options_of_schedulers_are_each_tried_with_their_own_values(path: Path) -> None:
    space = (
        "strength: [0.3, 1.0]\n  scheduler: [DPMSolverMultistepScheduler]\n  use_karras_sigmas: [true, false]\n"
        "  timestep_spacing: [leading, trailing]\n  algorithm_type: [dpmsolver++, sde-dpmsolver++]\n"
        "  solver_order: [2, 3]"
    )
    path.write_text(STUDY.replace("strength: [0.3, 1.0]", space), encoding="utf-8")
    study = resolving.resolve(path, "runs", lambda: 0).study
    assert study.space.axes["solver_order"].points() == (2, 3)


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert "guidance_scale" in json.loads(capsys.readouterr().out)["properties"]["space"]["properties"]


def test_report_of_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no study 'dragon' under runs" in complaint(capsys, "report", "dragon")


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["run"], ["run", "x.yaml", "--workers", "0"], ["run", "--batch", "x"]]
)
def test_bad_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_an_internal_error_is_a_sentence_and_exit_code_1(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(resolving, "resolve", fail)
    assert cli.main(["plan", str(path)]) == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_the_example_studies_are_good(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for example in sorted(STUDIES.glob("*.yaml")):
        assert cli.main(["plan", str(example), "--root", str(tmp_path)]) == 0, capsys.readouterr().err


def test_the_command_is_installed_by_its_name() -> None:
    pyproject = (STUDIES.parent / "pyproject.toml").read_text(encoding="utf-8")
    script = tomllib.loads(pyproject)["project"]["scripts"]["latentsweep"]
    assert EntryPoint("latentsweep", script, "console_scripts").load() is latentsweep.main
    assert entry_points(group="console_scripts", name="latentsweep")


def test_a_root_that_is_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("afile").touch()
    assert "afile is no folder" in complaint(capsys, "run", str(path), "--root", "afile")


@pytest.mark.parametrize("arguments", [["schema"], ["plan", "dragon.yaml"]])
def test_a_reader_that_has_had_enough_is_no_error(path: Path, arguments: list[str]) -> None:
    """As with `| head -1`: the reading end is closed before anything is written."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(STUDIES.parent)}
    ended = subprocess.run(
        command, check=False, stdout=write_end, stderr=subprocess.PIPE, env=environment, cwd=path.parent
    )
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_root_that_cannot_be_written(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even by root, who runs some of these tests."""
    assert "--root /proc/nowhere cannot be written: " in complaint(
        capsys, "run", str(path), "--root", "/proc/nowhere"
    )


def test_a_home_that_cannot_be_written_and_one_that_is_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Containers with a random user, and read-only homes: nothing of a local study is kept there."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert cli.main(["plan", str(path)]) == 0, capsys.readouterr().err

    def nobody(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    path.write_text(path.read_text(encoding="utf-8") + "comet: {mode: online}\n", encoding="utf-8")
    assert "comet.mode: online needs an API key" in complaint(capsys, "run", str(path))


def test_plan_says_what_of_the_inputs_is_not_used(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(path.parent / "cat-mask.png") as mask:
        shape = mask.convert("L")
    white = Image.new("RGBA", shape.size, "white")
    white.putalpha(shape)
    white.save(path.parent / "cat-mask.png")
    assert cli.main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert "note: " in out
    assert "inputs[0].mask: the mask" in out
    assert "is painted on a transparent layer: what is opaque is redrawn" in out


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "in_channels", 10**9),
        ("unet/config.json", "in_channels", 10),
        ("unet/config.json", "sample_size", 10**9),
        ("vae/config.json", "scaling_factor", "one"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
        ("tokenizer/tokenizer_config.json", "model_max_length", "77"),
        ("model_index.json", "unet", ["diffusers", "NoSuchModel"]),
    ],
)
def test_plan_and_run_refuse_an_absurd_model_alike(
    path: Path, capsys: pytest.CaptureFixture[str], file: str, key: str, value: object
) -> None:
    shutil.copytree(TOYWORLD, path.parent / "mine")
    path.write_text(
        path.read_text(encoding="utf-8").replace("model: toyworld", "model: mine\nclip_model: toyworld")
    )
    config = json.loads((path.parent / "mine" / file).read_text())
    (path.parent / "mine" / file).write_text(json.dumps({**config, key: value}))
    said = complaint(capsys, "plan", str(path))
    assert said.startswith(f"latentsweep: {path}: model: {path.parent}/mine/{file}: {key}: ")
    assert complaint(capsys, "run", str(path)) == said
