"""A study whose input pictures are files of a Comet artifact: planned, pinned, gone on with."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from orchestrator import cli, resolving
from orchestrator.study_folder import StudyFolder
from search_spaces.errors import InputError
from tests.comet_recorder import API_KEY, CometRecorder

STUDIES = Path(__file__).parents[2] / "studies"
CAT, MASK = ((STUDIES / name).read_bytes() for name in ("cat.png", "cat-mask.png"))

STUDY = """
study: dragon
model: toyworld
inputs:
  - {image: "comet://friends/photos:latest/cats/cat.png", mask: "comet://friends/photos/mask.png", prompt: a dragon}
seeds: 2
space: {strength: [0.5, 1.0]}
"""


def mirrored(png: bytes) -> bytes:
    stream = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(png))).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CometRecorder]:
    with CometRecorder() as recorder:
        recorder.put_artifact("friends", "photos", "1.2.0", {"cats/cat.png": CAT, "mask.png": MASK})
        for name, value in recorder.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "dragon.yaml").write_text(STUDY)
        yield recorder


def resolved() -> resolving.Resolved:
    return resolving.resolve(Path("dragon.yaml"), "runs", lambda: 0)


def test_an_alias_is_resolved_once_and_stays(
    recorder: CometRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "dragon.yaml"]) == 0
    out, _ = capsys.readouterr()
    assert "image: comet://friends/photos:latest/cats/cat.png is version 1.2.0, SHA-256 " in out
    assert "mask: comet://friends/photos:latest/mask.png is version 1.2.0, SHA-256 " in out
    assert API_KEY not in out

    made, folder = resolved(), StudyFolder("runs", "dragon")
    (item,) = made.study.inputs
    assert item.image_artifact is not None
    assert (item.image_artifact.version, item.image_name) == ("1.2.0", "cat.png")
    (tmp_path / "local.yaml").write_text(
        STUDY.replace("comet://friends/photos:latest/cats/cat.png", str(STUDIES / "cat.png")).replace(
            "comet://friends/photos/mask.png", str(STUDIES / "cat-mask.png")
        )
    )
    (local,) = resolving.resolve(Path("local.yaml"), "elsewhere", lambda: 0).study.inputs
    assert (local.image, local.mask, local.image_artifact) == (item.image, item.mask, None)

    folder.pin(made.study, made.text, made.images)
    recorder.put_artifact("friends", "photos", "2.0.0", {"cats/cat.png": mirrored(CAT), "mask.png": MASK})
    heard = len(recorder.requests)
    assert resolved().study.inputs == made.study.inputs
    shutil.rmtree(tmp_path / "cache")
    assert resolved().study.inputs == made.study.inputs  # from the study's own copy
    assert len(recorder.requests) == heard

    shutil.rmtree(folder.path / "inputs")
    assert resolved().study.inputs == made.study.inputs  # downloaded again, of the version that is pinned
    assert len(recorder.requests) > heard
    shutil.rmtree(folder.path / "inputs", ignore_errors=True)
    recorder.stop()
    assert resolved().study.inputs == made.study.inputs  # from the cache

    stored = (folder.path / "study.json").read_text()
    assert json.loads(stored)["inputs"][0]["image_artifact"]["version"] == "1.2.0"
    every = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert API_KEY.encode() not in every


def test_another_version_is_another_study_where_its_pixels_are(
    recorder: CometRecorder, tmp_path: Path
) -> None:
    made = resolved()
    StudyFolder("runs", "dragon").pin(made.study, made.text, made.images)
    recorder.put_artifact("friends", "photos", "2.0.0", {"cats/cat.png": mirrored(CAT), "mask.png": MASK})
    recorder.put_artifact("friends", "photos", "2.1.0", {"cats/cat.png": CAT, "mask.png": MASK})
    (tmp_path / "dragon.yaml").write_text(STUDY.replace("photos:latest", "photos:2.1.0"))
    (item,) = resolved().study.inputs
    assert item.image_artifact is not None
    assert item.image_artifact.version == "2.1.0"
    (tmp_path / "dragon.yaml").write_text(STUDY.replace("photos:latest", "photos:2.0.0"))
    with pytest.raises(InputError, match="belongs to another study of this name; inputs: was"):
        resolved()


def test_what_cannot_be_had_is_a_sentence_with_its_key(
    recorder: CometRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(old: str, new: str) -> str:
        (tmp_path / "dragon.yaml").write_text(STUDY.replace(old, new))
        assert cli.main(["plan", "dragon.yaml"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert API_KEY not in line
        return line

    assert said("photos/mask.png", "photos/maks.png") == (
        "latentsweep: dragon.yaml: inputs[0].mask: comet://friends/photos:1.2.0/maks.png: the artifact has no "
        "file of this path; did you mean 'mask.png'?"
    )
    recorder.put_artifact("friends", "texts", "1.0.0", {"cat.png": b"no picture"})
    assert "inputs[0].image: " in (line := said("photos:latest/cats/cat.png", "texts/cat.png"))
    assert line.endswith("is not an image that is read here; use PNG or JPEG")
    recorder.stop()
    assert said("photos:latest", "photos:best") == (
        "latentsweep: dragon.yaml: inputs[0].image: comet://friends/photos:best/cats/cat.png cannot be had: "
        "the Comet server cannot be reached or does not answer"
    )
