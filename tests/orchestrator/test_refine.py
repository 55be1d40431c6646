"""The closer study file, read back from where it was written: the same pictures, masks, model and judge."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from orchestrator import api, resolving
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.pool import InProcessPool
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from search_spaces.study import Study
from tests.orchestrator.studies import fake_worker, grid
from tests.orchestrator.test_api import STUDIES
from workers import toyworld

MODEL = Path(toyworld.__file__).parent / "model"

STUDY = """
study: dragon
model: models/toy
clip_model: ./models/judge
inputs: [{image: pictures/cat.png, mask: pictures/mask.png, prompt: a green dragon}]
seeds: 2
space: {guidance_scale: [2, 4, 8]}
settings: {num_inference_steps: 2, width: 64, height: 64}
comet: {mode: off}
"""


def beside(folder: Path, text: str = STUDY) -> Path:
    """A study file with model, judge, picture and mask (an alpha channel's) in folders beside it."""
    (folder / "models").mkdir(parents=True)
    shutil.copytree(MODEL / "pipeline", folder / "models" / "toy")
    shutil.copytree(MODEL / "clip", folder / "models" / "judge")
    (folder / "pictures").mkdir()
    shutil.copy(STUDIES / "cat.png", folder / "pictures" / "cat.png")
    with Image.open(STUDIES / "cat-mask.png") as mask:
        shape = mask.convert("L")
    painted = Image.new("RGBA", shape.size, "white")
    painted.putalpha(shape)
    painted.save(folder / "pictures" / "mask.png")
    path = folder / "dragon.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run(path: Path, root: str) -> Study:
    """Run a study file with a fake's pictures; the study."""
    resolved = resolving.resolve(path, root, lambda: 0)
    study = resolved.study
    StudyFolder(root, study.name).pin(study, resolved.text, resolved.images)
    sweep(
        study,
        grid(study),
        InProcessPool(fake_worker(4), 4),
        ParquetCatalog(Tables(root), study),
        NullTracker(),
    )
    return study


def check_same(study: Study, again: Study) -> None:
    """The pictures, the weights and the judge are those of before."""
    assert again.name == f"{study.name}-closer"
    for before, after in zip(study.inputs, again.inputs, strict=True):
        assert (after.image, after.mask) == (before.image, before.mask)
        assert (after.prompt, after.score_text) == (before.prompt, before.score_text)
    assert (again.model.location, again.model.revision) == (study.model.location, study.model.revision)
    assert (again.scorer.location, again.scorer.id) == (study.scorer.location, study.scorer.id)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that are reached through links, as home folders of clusters are: `home` leads to `disks/7/friend`."""
    real = tmp_path / "disks" / "7" / "friend"
    real.mkdir(parents=True)
    (tmp_path / "home").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("at", "out"),
    [
        ("home/work", "closer.yaml"),
        ("home/work", "linked/closer.yaml"),
        ("home/work", "../closer.yaml"),
        ("disks/7/friend/work", "deep/down/closer.yaml"),
        ("disks/7/friend/work", "linked/closer.yaml"),
    ],
)
def test_the_closer_file_names_what_the_study_had(
    tree: Path, monkeypatch: pytest.MonkeyPatch, at: str, out: str
) -> None:
    beside(tree / at)
    monkeypatch.chdir(tree / at)
    Path("deep/down").mkdir(parents=True)
    (tree / "elsewhere" / "far").mkdir(parents=True)
    Path("linked").symlink_to(tree / "elsewhere" / "far")
    study = run(Path("dragon.yaml"), "runs")
    path = api.closer("dragon", out, "runs")
    check_same(study, resolving.resolve(path, "runs", lambda: 0).study)
    monkeypatch.chdir("/")  # and from anywhere, by any of its names
    for name in (tree / at / out, (tree / at / out).resolve()):
        check_same(study, resolving.resolve(name, str(tree / "other"), lambda: 0).study)


def test_it_does_so_for_a_study_file_and_a_root_that_are_links(tree: Path) -> None:
    beside(tree / "home" / "work")
    (tree / "runs-on-another-disk").mkdir()
    (tree / "runs").symlink_to(tree / "runs-on-another-disk")
    (tree / "home" / "work" / "again.yaml").symlink_to("dragon.yaml")
    study = run(tree / "home" / "work" / "again.yaml", "runs")
    path = api.closer("dragon", "home/closer.yaml", "runs")
    text = path.read_text(encoding="utf-8")
    check_same(study, resolving.resolve(path, "runs", lambda: 0).study)
    assert "runs-on-another-disk" in text  # real folders, between which .. leads back


def test_pictures_that_are_gone_or_have_changed_do_not_matter(tree: Path) -> None:
    path = beside(tree / "work")
    study = run(path, "runs")
    shutil.rmtree(tree / "work" / "pictures")
    closer = api.closer("dragon", "work/closer.yaml", "runs")
    check_same(study, resolving.resolve(closer, "runs", lambda: 0).study)


def test_a_closer_study_has_a_closer_study(tree: Path) -> None:
    study = run(beside(tree / "work"), "runs")
    first = api.closer("dragon", "closer.yaml", "runs")
    nearer = run(first, "runs")
    check_same(study, nearer)
    second = api.closer("dragon-closer", "home/closer-still.yaml", "runs")
    check_same(nearer, resolving.resolve(second, "runs", lambda: 0).study)


def test_a_model_folder_that_is_named_from_home(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree / "home"))
    shutil.copytree(MODEL / "pipeline", tree / "home" / "mine")
    study = run(beside(tree / "work", STUDY.replace("models/toy", "~/mine")), "runs")
    monkeypatch.setenv("HOME", "/nowhere")
    closer = api.closer("dragon", "home/closer.yaml", "runs")
    check_same(study, resolving.resolve(closer, "runs", lambda: 0).study)
