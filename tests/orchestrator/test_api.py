"""The whole road on the bundled model: real Ray, real diffusion, real CLIP, real Parquet, real Comet SDK."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image
from rich.console import Console

from orchestrator import api, comet_study, wiring
from orchestrator.catalog.parquet import past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.ray_pool import RayPool
from orchestrator.report.statistics import axis_effect, front, left_early, ranking, validation
from orchestrator.session import Extent
from orchestrator.tracking import optuna_storage
from search_spaces.errors import InputError
from search_spaces.requests import ImageRequest
from tests.comet_recorder import API_KEY, CometRecorder

STUDIES = Path(__file__).parents[2] / "studies"

STUDY = """
study: dragon
model: toyworld
inputs:
  - {image: cat.png, mask: cat-mask.png, prompt: a green dragon, score_text: a realistic green dragon}
seeds: 2
space:
  num_inference_steps: [2, 4]
  guidance_scale: [0.5, 1, 5]
  strength: [0.3, 1.0]
  negative_prompt: ["", cartoon]
"""
# 24 cells: at 2 steps strength 0.3 leaves none (6 cells); of the other 18, guidance ≤ 1 has one candidate per
# (steps, strength) in place of four: 3 × (1 + 2) = 9 candidates; and the model's own settings.
CANDIDATES, INSTANCES = 10, 2


def study_file(folder: Path, text: str = STUDY) -> Path:
    for name in ("cat.png", "cat-mask.png"):
        shutil.copy(STUDIES / name, folder / name)
    path = folder / "dragon.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Path, str, api.RunResult]:
    """A study run to its end: (study file, root, result)."""
    folder = tmp_path_factory.mktemp("finished")
    path, root = study_file(folder), str(folder / "runs")
    return path, root, api.run(path, root)


Finished = tuple[Path, str, api.RunResult]


def test_it_ends_with_every_candidate_judged_on_every_instance(finished: Finished) -> None:
    _, root, result = finished
    assert result.exit_code == 0
    assert result.progress.generated == CANDIDATES * INSTANCES
    frame = api.frame("dragon", root).to_pandas()
    assert Counter(frame["trial"]) == Counter(dict.fromkeys(range(CANDIDATES), INSTANCES))
    assert frame["value"].notna().all()
    assert frame["image_id"].is_unique


def test_the_rows_say_what_was_done(finished: Finished) -> None:
    _, root, _ = finished
    for row in api.frame("dragon", root).to_pylist():
        assert row["status"] == "ok"
        assert row["prompt"] == "a green dragon"
        assert row["scheduler"] == "DDIMScheduler"
        expected = row["num_inference_steps"] if row["strength"] == 1 else 1
        assert row["unet_calls"] == row["effective_steps"] == expected
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert picture.size == (row["width"], row["height"]) == (64, 64)
        assert json.loads(picture.text["latentsweep"])["image_id"] == row["image_id"]  # type: ignore[attr-defined]
        assert f"Seed: {row['seed']}" in picture.text["parameters"]  # type: ignore[attr-defined]


def test_the_scores_are_those_of_the_stored_pictures(finished: Finished) -> None:
    from workers.scoring.clip import ClipScorer

    _, root, _ = finished
    rows = api.frame("dragon", root).to_pylist()
    scorer = ClipScorer(Path(wiring.__file__).parents[1] / "workers/toyworld/model/clip")
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    again = scorer.against(pictures, ["a realistic green dragon"] * len(rows))
    assert again == pytest.approx([row["value"] for row in rows], abs=0.01)


def test_the_script_of_an_image_draws_it_again_with_plain_diffusers(
    finished: Finished, tmp_path: Path
) -> None:
    _, root, _ = finished
    rows = api.frame("dragon", root).to_pylist()
    row = next(r for r in rows if r["guidance_scale"] == 5 and r["strength"] == 1 and r["negative_prompt"])
    shown = api.show(row["image_id"][:8], root)
    assert shown.png is not None
    assert shown.png == row["image"]["bytes"]
    assert "search_spaces" not in shown.code
    (tmp_path / "again.py").write_text(shown.code, encoding="utf-8")
    subprocess.run([sys.executable, "again.py"], cwd=tmp_path, check=True, capture_output=True)
    again = np.asarray(Image.open(tmp_path / f"{row['image_id']}.png"), dtype=int)
    assert np.abs(again - np.asarray(Image.open(io.BytesIO(shown.png)))).max() <= 1


def test_an_image_is_drawn_again_by_our_own_engine(finished: Finished) -> None:
    _, root, _ = finished
    row = api.frame("dragon", root, pictures=False).to_pylist()[-1]
    found = api.reproduce(row["image_id"][:10], root)
    assert found.image_id == row["image_id"]
    assert found.largest <= 1
    with pytest.raises(InputError, match="holds none"):
        api.reproduce("0" * 32, root)


def test_stored_images_are_scored_against_another_text_on_the_same_pool(finished: Finished) -> None:
    _, root, result = finished
    count = result.progress.generated
    found = api.score("dragon", text="a cat", root=root)
    assert (found.scored, found.known, found.failed) == (count, 0, [])
    assert api.score("dragon", text="a cat", root=root).known == count
    assert api.score("dragon", scorer="toyworld", root=root).known == count, "its own scorer, by its name"


def test_stored_images_are_scored_by_their_pixels_too(finished: Finished) -> None:
    from workers.png import decode_png
    from workers.scoring.preservation import PreservationScorer

    _, root, result = finished
    count = result.progress.generated
    assert "preservation_psnr" not in api.frame("dragon", root, pictures=False).column_names
    found = api.score("dragon", scorer="preservation_psnr", root=root)
    assert (found.scored, found.known, found.failed) == (count, 0, [])
    assert api.score("dragon", scorer="preservation_psnr", root=root).known == count
    inputs = {each.stem: decode_png(each.read_bytes()) for each in (result.folder / "inputs").glob("*.png")}
    scorer = PreservationScorer(inputs)
    rows = api.frame("dragon", root).to_pylist()
    for row in rows:
        request = ImageRequest(row["image_id"], {}, "", 0, row["input_image"], row["input_mask"], "")
        (value,) = scorer.score([Image.open(io.BytesIO(row["image"]["bytes"]))], [request])
        assert row["preservation_psnr"] == pytest.approx(value)
    assert len({row["preservation_psnr"] for row in rows}) > 1
    with pytest.raises(InputError, match="--text: preservation_psnr compares pixels and reads no text"):
        api.score("dragon", scorer="preservation_psnr", text="a cat", root=root)
    there = past_trials(Tables(root), "dragon", needed={"preservation_psnr"})
    assert sum(len(trial.outcomes) for trial in there) == len(rows), (
        "a study that is bounded by it finds them"
    )


def test_an_image_that_is_not_there(finished: Finished) -> None:
    _, root, _ = finished
    for name, words in (
        ("0" * 32, "holds none"),
        ("dragon", "is not an image_id"),
        ("../x", "is not an image_id"),
    ):
        with pytest.raises(InputError, match=words):
            api.show(name, root)


def test_it_finds_that_strength_makes_the_dragon(finished: Finished) -> None:
    results = finished[2].results
    swept = [trial for trial in results.trials if trial.number != results.baseline]
    best = max(swept, key=lambda trial: sum(trial.scores.values()))
    assert best.settings["strength"] == 1
    assert axis_effect(results, "strength").effects[1.0] > 3, "in CLIP points"


def test_the_models_own_settings_are_tried_first_as_the_baseline(finished: Finished) -> None:
    results = finished[2].results
    assert results.baseline == 0
    assert results.trials[0].settings == {
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "strength": 1.0,
        "negative_prompt": "",
    }


def test_the_same_file_again_generates_nothing_and_starts_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root, first = finished
    monkeypatch.setattr(RayPool, "_carry_out", lambda *_: pytest.fail("an actor was started without need"))
    again = api.run(path, root)
    assert (again.progress.generated, again.progress.images) == (0, CANDIDATES * INSTANCES)
    assert again.was_complete
    assert not first.was_complete
    assert again.results.trials == first.results.trials


def test_the_report_needs_the_catalog_alone(finished: Finished, tmp_path: Path) -> None:
    _, root, result = finished
    shutil.copytree(Path(root) / "catalog", tmp_path / "catalog")
    alone = api.results("dragon", str(tmp_path))
    assert alone.trials == result.results.trials
    assert alone.objective == result.results.objective
    assert {name: set(values) for name, values in alone.axes.items()} == {
        "num_inference_steps": {2, 4, 20},
        "guidance_scale": {0.5, 5, 7.5},
        "strength": {0.3, 1},
        "negative_prompt": {"", "cartoon"},
    }
    assert api.write_contact_sheet(alone, str(tmp_path))


def test_a_run_says_that_what_it_made_before_is_gone(finished: Finished, tmp_path: Path) -> None:
    path, root, _ = finished
    shutil.copytree(root, tmp_path / "runs")
    (tmp_path / "runs" / "catalog").rename(tmp_path / "catalog")
    again = api.run(path, str(tmp_path / "runs"))
    gone = f"{CANDIDATES * INSTANCES} scored images that the catalog had are gone from it"
    assert gone in "\n".join(again.messages)
    assert (again.progress.generated, again.results.lost) == (CANDIDATES * INSTANCES, 0)


def test_an_unknown_study_is_a_sentence(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no study 'dragom'.*did you mean 'dragon'"):
        api.results("dragom", finished[1])
    with pytest.raises(InputError, match="it holds no study yet"):
        api.results("dragon", str(tmp_path))


def test_the_contact_sheet_is_drawn_and_its_axes_can_be_chosen(finished: Finished) -> None:
    _, root, result = finished
    assert result.contact_sheet is not None
    with Image.open(result.contact_sheet) as sheet:
        assert min(sheet.size) > 128
    chosen = api.write_contact_sheet(result.results, root, x="strength", y="negative_prompt")
    assert chosen == result.contact_sheet
    with pytest.raises(InputError, match="did you mean 'strength'"):
        api.write_contact_sheet(result.results, root, x="strenght")


def test_the_comet_archive_holds_every_picture_with_its_facts(finished: Finished) -> None:
    _, root, result = finished
    (archive,) = (result.folder / "comet").glob("*.zip")
    assert str(archive.absolute()) in " ".join(result.messages)
    rows = {row["image_id"]: row for row in api.frame("dragon", root).to_pylist()}
    with zipfile.ZipFile(archive) as opened:
        lines = [json.loads(line) for line in opened.read("messages.json").splitlines()]
        uploads = [line["payload"] for line in lines if line["type"] == "file_upload"]
        images = [upload for upload in uploads if upload["upload_type"] == "visualization"]
        assert len(images) == len(rows)
        for image in images:
            facts = image["metadata"]
            row = rows[facts["image_id"]]
            assert opened.read(image["file_path"]) == row["image"]["bytes"]
            for name in ("prompt", "negative_prompt", "seed", "guidance_scale", "strength", "trial"):
                assert facts[name] == row[name]
            assert facts["clip_score"] == pytest.approx(row["value"])
    metrics = [line["payload"]["metric"]["metricName"] for line in lines if line["type"] == "metric_msg"]
    ours = [name for name in metrics if "clip_score" in name]  # the SDK adds how long it ran
    curves = ("clip_score", "clip_score_low", "clip_score_high", "best_clip_score")
    assert Counter(ours) == dict.fromkeys(curves, CANDIDATES)
    files = [u["additional_params"]["fileName"] for u in uploads if u["upload_type"] == "asset"]
    assert sorted(files) == ["contact-sheet.png", "report.txt", "study.yaml", "trials.csv"]


def test_a_finished_study_goes_on_online_and_has_everything_in_comet(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root, _ = finished
    shutil.copytree(root, tmp_path / "runs")
    said = io.StringIO()
    with CometRecorder() as recorder:
        for name, value in recorder.environment.items():
            monkeypatch.setenv(name, value)
        result = api.run(path, str(tmp_path / "runs"), console=Console(file=said, width=200), quiet=False)
        assert result.exit_code == 0
        (key,) = recorder.experiments
        rows = {row["image_id"]: row for row in api.frame("dragon", root).to_pylist()}
        assert sorted(recorder.image_ids(key)) == sorted(rows)
        for asset in recorder.images(key):
            facts = asset.metadata or {}
            row = rows[facts["image_id"]]
            assert (asset.name, asset.step, asset.data) == ("search", row["trial"], row["image"]["bytes"])
            for name in ("prompt", "negative_prompt", "seed", "guidance_scale", "strength"):
                assert facts[name] == row[name]
        experiment = recorder.experiments[key]
        assert experiment.parameters["device"] == "cpu"
        assert {"model", "revision", "torch", "diffusers", "latentsweep"} <= experiment.parameters.keys()
        files = recorder.files(key)
        assert files["study.yaml"].decode() == STUDY
        assert files["trials.csv"].decode().count("\n") == 1 + CANDIDATES
        assert b"clip_score" in files["report.txt"]
        assert files["contact-sheet.png"].startswith(b"\x89PNG")
        assert f"Comet: all {len(rows)} images are in" in " ".join(result.messages)
        assert "Comet: streaming to" in said.getvalue()
        status = api.comet_status("dragon", str(tmp_path / "runs"))
        assert (status.sent, status.pending) == (len(rows), 0)
        assert recorder.unknown == []
        keys_left = [
            p for p in (tmp_path / "runs").rglob("*") if p.is_file() and API_KEY.encode() in p.read_bytes()
        ]
        assert keys_left == []
    with pytest.raises(InputError, match="the Comet server cannot be reached or does not answer"):
        api.comet_sync("dragon", str(tmp_path / "runs"))
    monkeypatch.setenv("COMET_API_KEY", "")
    with pytest.raises(InputError, match="no API key of Comet was found"):
        api.comet_status("dragon", str(tmp_path / "runs"))
    line = api.comet_archive("dragon", str(tmp_path / "runs"))
    assert f"({len(rows)} images)" in line


@pytest.mark.parametrize(("rule", "count"), [("best_per_trial", CANDIDATES), ({"top_k": 3}, 3)])
def test_thinned_images_are_the_best(
    finished: Finished, tmp_path: Path, rule: str | dict[str, int], count: int
) -> None:
    _, root, _ = finished
    shutil.copytree(root, tmp_path / "runs")
    pinned = tmp_path / "runs/studies/dragon/study.json"
    study = json.loads(pinned.read_text(encoding="utf-8"))
    study["comet"]["images"] = rule
    pinned.write_text(json.dumps(study), encoding="utf-8")
    content = comet_study.comet_content(str(tmp_path / "runs"), "dragon")
    sent = {image.image_id: image for image in content.images()}
    assert len(sent) == count
    rows = api.frame("dragon", root, pictures=False).to_pandas()
    best = rows.nlargest(3, "value") if count == 3 else rows.loc[rows.groupby("trial")["value"].idxmax()]
    assert set(best["image_id"]) == set(sent)
    assert dict(content.pictures(set(sent))).keys() == sent.keys()


def test_online_without_a_key_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMET_API_KEY", "")
    path = study_file(tmp_path, STUDY + "comet: {mode: online}\n")
    with pytest.raises(
        InputError, match=r"comet\.mode: online needs an API key of Comet, and COMET_API_KEY is empty"
    ):
        api.run(path, str(tmp_path / "runs"))


def test_the_dashboards_storage_is_told_and_can_be_told_again(finished: Finished, tmp_path: Path) -> None:
    path, root, first = finished
    shutil.copytree(root, tmp_path / "runs")
    result = api.run(path, str(tmp_path / "runs"), dashboard=True)
    assert (result.exit_code, result.progress.generated) == (0, 0)
    folder = result.folder / "optuna"
    advice = f"optuna-dashboard {folder}/study.journal --artifact-dir {folder}/artifacts"
    assert advice in " ".join(result.messages)
    storage = f"sqlite:///{tmp_path}/study.db"
    line = api.export("dragon", "optuna", storage, str(tmp_path / "runs"))
    assert line.startswith(f"{CANDIDATES} trials of dragon in {storage}; look at it with")
    means = {t.number: sum(t.scores.values()) / INSTANCES for t in first.results.trials}
    journal = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    for told in (journal, RDBStorage(storage)):
        trials = told.get_all_trials(told.get_study_id_from_name("dragon"))
        assert {trial.number: trial.value for trial in trials} == pytest.approx(means)
        images = {trial.number: list(trial.images.values()) for trial in first.results.trials}
        assert {trial.number: trial.user_attrs["image_ids"] for trial in trials} == images
    assert len(list((folder / "artifacts").iterdir())) == CANDIDATES * INSTANCES


def test_a_dashboard_that_breaks_leaves_the_run_as_it_is(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("no room for things\nat all")

    path, root, first = finished
    shutil.copytree(root, tmp_path / "runs")
    monkeypatch.setattr(optuna_storage.Projection, "bring_up_to_date", fail)
    result = api.run(path, str(tmp_path / "runs"), dashboard=True)
    assert result.exit_code == 0
    assert result.results.trials == first.results.trials
    (said,) = [message for message in result.messages if message.startswith("the dashboard")]
    assert "not brought up to date: no room for things; `latentsweep export dragon --to optuna" in said
    log = (result.folder / "run.log").read_text(encoding="utf-8")
    assert log.count("WARNING orchestrator.dashboard") == 1


def test_the_plan_counts_what_the_run_did(finished: Finished, tmp_path: Path) -> None:
    path, root, result = finished
    before, after = api.plan(path, str(tmp_path)), api.plan(path, root)
    assert (before.cells, before.trials, before.images) == (24, CANDIDATES, CANDIDATES * INSTANCES)
    assert (before.to_generate, after.to_generate) == (CANDIDATES * INSTANCES, 0)
    assert before.unet_calls == result.progress.unet_calls
    assert (before.seconds, after.seconds) == (None, 0 if after.seconds is not None else None)
    assert sum(before.inert.values()) == 9
    assert sum(before.infeasible.values()) == 6
    assert not any(tmp_path.iterdir()), "planning writes nothing"


def test_more_seeds_and_values_continue_a_study_with_its_numbers_kept(
    finished: Finished, tmp_path: Path, local_ray: None
) -> None:
    _, root, result = finished
    shutil.copytree(root, tmp_path / "runs")
    wider = study_file(
        tmp_path, STUDY.replace("seeds: 2", "seeds: 3").replace("[0.5, 1, 5]", "[0.5, 1, 3, 5]")
    )
    again = api.run(wider, str(tmp_path / "runs"))
    assert again.progress.generated == CANDIDATES * 1 + 6 * 3
    old = {trial.number: trial.settings for trial in result.results.trials}
    new = {trial.number: trial.settings for trial in again.results.trials}
    assert len(new) == 16
    assert old.items() <= new.items()


def test_another_study_under_the_same_name_is_refused_and_the_difference_named(finished: Finished) -> None:
    path, root, _ = finished
    other = path.with_name("other.yaml")
    other.write_text(STUDY.replace("a green dragon,", "a red dragon,"), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"belongs to another study of this name; inputs: was .*give this one"
    ):
        api.run(other, root)


def test_tpe_runs_and_pictures_of_other_studies_are_reused(
    finished: Finished, tmp_path: Path, local_ray: None
) -> None:
    _, root, _ = finished
    shutil.copytree(root, tmp_path / "runs")
    text = (
        STUDY.replace("study: dragon", "study: adaptive")
        + "search: {strategy: tpe, trials: 5}\ncomet: {mode: off}\n"
    )
    result = api.run(study_file(tmp_path, text), str(tmp_path / "runs"))
    assert result.exit_code == 0
    assert len(result.results.trials) == 5
    assert (result.progress.generated, result.progress.reused) == (0, 10)
    assert not (result.folder / "comet").exists()


def start(path: Path, root: Path, *options: str) -> subprocess.Popen[str]:
    """The command in a process of its own, as a user starts it."""
    environment = {**os.environ, "RAY_ADDRESS": ""}
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(path), "--root", str(root), *options]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_images(root: Path, process: subprocess.Popen[str]) -> None:
    """Until the catalog holds something."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if Tables(root).read("trials", ["trial"]).num_rows:
            return
        time.sleep(0.1)
    pytest.fail(f"no image came: {process.communicate(timeout=10)[0]}")


LONG_SEEDS = 24  # so many that no machine is through before it is stopped
LONG = (
    STUDY.replace("seeds: 2", f"seeds: {LONG_SEEDS}").replace("[2, 4]", "[20, 30]") + "comet: {mode: off}\n"
)
LONG_IMAGES = (2 * 2 * 3 + 1) * LONG_SEEDS  # and the model's own settings


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_was_made_and_sigkill_loses_nothing_acknowledged(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    path, root = study_file(tmp_path, LONG), tmp_path / "runs"

    process = start(path, root)
    wait_for_images(root, process)
    process.send_signal(number)
    os.killpg(process.pid, number)  # as `timeout` does; Ray's processes are to go on
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "the same command goes on where it was" in output
    assert "*** SIG" not in output, "Ray's own trace"
    kept = api.frame("dragon", str(root))
    assert 0 < kept.num_rows < LONG_IMAGES
    found = api.results("dragon", str(root))
    assert (found.ended, found.extent) == ("stopped", Extent(LONG_IMAGES // LONG_SEEDS, LONG_IMAGES))
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert f"{kept.num_rows} of {LONG_IMAGES} images; stopped by {by}" in api.best("dragon", str(root))
    assert f"{kept.num_rows} of {LONG_IMAGES} images; stopped by {by}" in " ".join(output.split())
    generated = int(re.findall(r"(\d+) generated", output)[0])
    assert generated == kept.num_rows

    process = start(path, root)
    deadline = time.monotonic() + 120
    while api.frame("dragon", str(root)).num_rows == kept.num_rows and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    acknowledged = set(api.frame("dragon", str(root))["image_id"].to_pylist())
    assert len(acknowledged) > kept.num_rows
    assert "; cut off, or run elsewhere" in api.best("dragon", str(root))

    process = start(path, root, "--quiet")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    frame = api.frame("dragon", str(root)).to_pandas()
    assert len(frame) == LONG_IMAGES
    assert api.results("dragon", str(root)).ended == "finished"
    assert not frame.duplicated(["trial", "instance"]).any()
    assert acknowledged <= set(frame["image_id"])
    assert frame["image"].notna().all()
    numbers = frame.groupby("trial")[["guidance_scale", "strength", "num_inference_steps"]].nunique()
    assert (numbers == 1).all().all()


def test_a_second_run_of_a_live_study_is_refused_with_its_owner(finished: Finished) -> None:
    from orchestrator.study_folder import StudyFolder

    path, root, _ = finished
    script = (
        "import sys, time; from orchestrator.study_folder import StudyFolder\n"
        "with StudyFolder(sys.argv[1], 'dragon').locked(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"is being run by process {owner.pid} on .+ since 20.+ UTC;"):
            api.run(path, root)
        owner.kill()
    with StudyFolder(root, "dragon").locked():
        pass  # a dead owner's lock is free


def test_a_catalog_with_another_study_of_this_name_is_refused(finished: Finished, tmp_path: Path) -> None:
    """Its folder is gone, so only the trials can tell that they are another study's."""
    shutil.copytree(Path(finished[1]) / "catalog", tmp_path / "runs" / "catalog")
    other = study_file(tmp_path, STUDY.replace("a green dragon,", "a red dragon,"))
    with pytest.raises(InputError, match="holds trials of another study named 'dragon'"):
        api.run(other, str(tmp_path / "runs"))
    same = study_file(tmp_path)
    assert api.plan(same, str(tmp_path / "runs")).to_generate == 0


def test_the_frame_shows_a_trials_own_settings_though_a_twin_drew_its_picture(
    finished: Finished, tmp_path: Path, local_ray: None
) -> None:
    shutil.copytree(finished[1], tmp_path / "runs")
    text = STUDY.replace("study: dragon", "study: twins").replace("[0.5, 1, 5]", "[0, 5]")
    result = api.run(study_file(tmp_path, text + "comet: {mode: off}\n"), str(tmp_path / "runs"))
    assert result.progress.generated == 0
    assert set(api.frame("twins", str(tmp_path / "runs"))["guidance_scale"].to_pylist()) == {0, 5, 7.5}


def test_a_sampler_is_not_planned_by_the_pictures_of_others(finished: Finished) -> None:
    path, root, _ = finished
    other = path.with_name("sampler.yaml")
    text = STUDY.replace("study: dragon", "study: sampler")
    other.write_text(text + "search: {strategy: tpe, trials: 5}\n", encoding="utf-8")
    assert api.plan(other, root).to_generate == 10


def test_names_that_are_no_study_are_sentences(finished: Finished) -> None:
    for name in ("../dragon", "dragon.yaml/x", ""):
        with pytest.raises(InputError, match="is not the name of a study"):
            api.results(name, finished[1])
    with pytest.raises(InputError, match="there is no study 'nothing'"):
        api.frame("nothing", finished[1])


# Searches, with the real engine and real looks

RACE = """
study: race
model: toyworld
inputs:
  - {image: cat.png, mask: cat-mask.png, prompt: a green dragon, score_text: a realistic green dragon}
seeds: 4
settings: {num_inference_steps: 6}
space:
  guidance_scale: [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 9, 12, 15]
  strength: [0.5, 1.0]
  negative_prompt: ["", cartoon, blurry]
search: {strategy: halving, validate: 2, early_look: auto}
comet: {mode: off}
"""


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Path, str, api.RunResult]:
    folder = tmp_path_factory.mktemp("raced")
    path, root = study_file(folder, RACE), str(folder / "runs")
    return path, root, api.run(path, root)


def test_a_race_takes_a_fraction_of_the_images_and_says_who_left(raced: Finished) -> None:
    _, root, result = raced
    assert result.exit_code == 0
    results = result.results
    assert result.progress.looks >= 16
    candidates = 2 * (1 + 3 * 11) + 1  # guidance 1 has no negative prompt; and the baseline
    assert candidates / 3 <= len(results.trials) <= candidates, "some may leave unseen"
    assert result.progress.generated < candidates * 4 / 2
    complete = [trial for trial in results.trials if len(trial.scores) == 4]
    assert 3 <= len(complete) < 12
    assert all(trial.settings["strength"] == 1 for trial in complete)
    left = left_early(results, ranking(results)[0].trial)
    assert left.certain + left.for_budget == len(results.trials) - len(complete)
    assert sum(trial.looks for trial in results.trials) == result.progress.looks
    assert len(validation(results)) >= 3
    table = api.frame("race", root)
    assert set(table["role"].to_pylist()) == {"search", "validate"}
    assert table["image"].null_count == 0, "looks have no row of their own"


def test_a_race_that_is_run_again_does_nothing(raced: Finished) -> None:
    path, root, first = raced
    again = api.run(path, root)
    assert again.was_complete
    assert (again.progress.images, again.progress.best) == (first.progress.images, first.progress.best)


def test_plan_of_a_race_counts_at_most_what_it_takes(raced: Finished, tmp_path: Path) -> None:
    path, _, result = raced
    planned = api.plan(path, str(tmp_path))
    assert planned.images >= result.progress.images
    assert planned.images < planned.trials * 4


def test_a_closer_study_file_runs(raced: Finished, tmp_path: Path) -> None:
    _, root, result = raced
    path = api.closer("race", tmp_path / "closer.yaml", root)
    planned = api.plan(path, str(tmp_path / "runs"))
    best = ranking(result.results)[0].trial.settings
    guidance = planned.study.space.axes["guidance_scale"].points()
    assert guidance is not None
    assert best["guidance_scale"] in guidance
    assert planned.trials < 20
    assert api.closer("race", path, root) == path, "a command that was killed may be given again"
    path.write_text("study: mine\n", encoding="utf-8")
    with pytest.raises(InputError, match="exists already"):
        api.closer("race", path, root)


def test_a_budget_ends_a_study_with_exit_code_3_and_the_same_command_has_no_more(
    tmp_path: Path, local_ray: None
) -> None:
    path, root = (
        study_file(tmp_path, STUDY + "budget: {images: 6}\ncomet: {mode: off}\n"),
        str(tmp_path / "runs"),
    )
    first = api.run(path, root)
    assert (first.exit_code, first.progress.generated) == (3, 6)
    assert "the search ended early: the budget of 6 images is used up" in first.messages
    again = api.run(path, root)
    assert (again.exit_code, again.progress.generated) == (3, 0)
    assert not again.was_complete, "there was something left to do"


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("{strategy: cmaes, trials: 5}", "cmaes"),
        ("{strategy: tpe, trials: 5, options: {n_startup: 3}}", "n_startup"),
        ("{strategy: my.Sampler, trials: 5}", "my.Sampler"),
    ],
)
def test_samplers_that_cannot_be_had_are_sentences_before_anything_runs(
    tmp_path: Path, search: str, words: str
) -> None:
    path = study_file(tmp_path, STUDY + f"search: {search}\n")
    with pytest.raises(InputError) as caught:
        api.plan(path, str(tmp_path / "runs"))
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_pareto_front_of_fidelity_and_time(tmp_path: Path, local_ray: None) -> None:
    several = (
        "objectives: [{clip_score: maximize}, {gpu_seconds: minimize}, {preservation_psnr: maximize}]\n"
        "constraints: [gpu_seconds <= 60, preservation_psnr >= 15]\n"
    )
    text = STUDY + several + "search: {strategy: nsga2, trials: 5}\ncomet: {mode: off}\n"
    path, root = study_file(tmp_path, text), str(tmp_path / "runs")
    result = api.run(path, root)
    assert result.exit_code == 0
    assert len(result.results.trials) == 5
    for trial in result.results.trials:
        assert all(seconds > 0 for seconds in trial.measured["gpu_seconds"].values())
        assert all(15 < psnr < 50 for psnr in trial.measured["preservation_psnr"].values())
    scores = Tables(root).read("scores").to_pandas()
    assert set(scores["text"][scores["scorer"] == "preservation_psnr/pixels@1"]) == {""}
    assert set(scores.groupby("image_id")["scorer"].nunique()) == {2}
    assert 1 <= len(front(result.results)) <= 5
    assert api.run(path, root).was_complete


@pytest.mark.parametrize(("form", "suffix", "difference"), [("webp", ".webp", 1), ("jpeg", ".jpg", 80)])
def test_pictures_in_another_format(
    form: str, suffix: str, difference: int, tmp_path: Path, local_ray: None
) -> None:
    """Stored, scored, shown, exported and drawn again as what the study file asks for."""
    text = STUDY.replace("seeds: 2", f"seeds: 1\nimage_format: {form}")
    text = text.replace("[2, 4]", "[2]").replace("[0.5, 1, 5]", "[5]").replace("[0.3, 1.0]", "[1.0]")
    root = str(tmp_path / "runs")
    result = api.run(study_file(tmp_path, text), root)
    assert result.exit_code == 0
    assert result.contact_sheet is not None
    rows = api.frame("dragon", root).to_pylist()
    assert len(rows) == 3
    for row in rows:
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert picture.format == form.upper()
        assert row["image"]["path"] == row["image_id"] + suffix
    shown = api.show(rows[0]["image_id"], root)
    assert (shown.png, shown.name) == (rows[0]["image"]["bytes"], rows[0]["image"]["path"])
    api.export("dragon", "folder", str(tmp_path / "pictures"), root)
    stored = {path.name for path in (tmp_path / "pictures").iterdir() if path.suffix != ".json"}
    assert stored == {row["image"]["path"] for row in rows}
    assert api.reproduce(rows[0]["image_id"], root).largest <= difference
    assert api.check(root).is_well
