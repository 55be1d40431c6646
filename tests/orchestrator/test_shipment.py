"""What is sent to a cluster: everything that the study needs, and nothing else of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from orchestrator import api, on_cluster, shipment
from orchestrator.shipment import entrypoint, pack
from search_spaces import study_file
from search_spaces.errors import InputError
from tests.unending_files import unending

STUDY = """\
study: sent
model: toyworld # a comment that stays
inputs:
  - {image: cat.png, mask: sub/mask.png, prompt: a dragon}
space: {guidance_scale: [3, 5]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study file with its inputs."""
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(home / "cat.png")
    Image.new("L", (64, 64), 255).save(home / "sub" / "mask.png")
    (home / "study.yaml").write_text(STUDY)
    return home / "study.yaml"


def test_code_study_and_inputs_are_sent(path: Path, tmp_path: Path) -> None:
    sent = pack(path, tmp_path / "sent")
    assert (sent.study, sent.file) == ("sent", "study/study.yaml")
    assert (sent.folder / sent.file).read_text() == STUDY, "with its comments"
    for name in ("cat.png", "sub/mask.png"):
        assert (sent.folder / "study" / name).read_bytes() == (path.parent / name).read_bytes()
    script = (
        "import orchestrator.cli, workers.toyworld, search_spaces, pathlib\n"
        "print(pathlib.Path(orchestrator.cli.__file__).parents[1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=sent.folder,
        env={**os.environ, "PYTHONPATH": str(sent.folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.strip() == str(sent.folder)
    assert (sent.folder / "workers/toyworld/model/pipeline/model_index.json").is_file()
    assert not list(sent.folder.rglob("*.pyc"))


def test_nothing_of_the_environment_is_sent(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "very-secret-0123456789"
    monkeypatch.setenv("COMET_API_KEY", secret)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secret * 2)
    (path.parent / ".env").write_text(f"COMET_API_KEY={secret}")
    sent = pack(path, tmp_path / "sent")
    assert not any(secret.encode() in file.read_bytes() for file in sent.folder.rglob("*") if file.is_file())


def test_inputs_that_lie_elsewhere_are_brought_along(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "photos"
    elsewhere.mkdir()
    (path.parent / "cat.png").rename(elsewhere / "cat.png")
    (path.parent / "sub/mask.png").rename(elsewhere / "mask.png")
    path.write_text(
        STUDY.replace("cat.png", "../photos/cat.png").replace("sub/mask.png", str(elsewhere / "mask.png"))
    )
    sent = pack(path, tmp_path / "sent")
    item = study_file.load(sent.folder / sent.file).inputs[0]
    assert (sent.folder / "study" / str(item.image)).read_bytes() == (elsewhere / "cat.png").read_bytes()
    assert (sent.folder / "study" / str(item.mask)).read_bytes() == (elsewhere / "mask.png").read_bytes()
    assert study_file.load(path).space == study_file.load(sent.folder / sent.file).space


def test_texts_that_look_like_numbers_stay_texts_where_the_file_is_written_anew(
    path: Path, tmp_path: Path
) -> None:
    (path.parent / "cat.png").rename(tmp_path / "cat.png")
    texts = 'negative_prompt: ["", "09", "1e-3", "+.5", "1.5e3", "off"]'
    path.write_text(STUDY.replace("cat.png", "../cat.png").replace("guidance_scale: [3, 5]", texts))
    sent = pack(path, tmp_path / "sent")
    assert study_file.load(path).space == study_file.load(sent.folder / sent.file).space


def test_what_never_ends_is_not_sent(path: Path, tmp_path: Path) -> None:
    (path.parent / "cat.png").unlink()
    with unending(path.parent, "device") as (device, words):
        device.rename(path.parent / "cat.png")
        with pytest.raises(InputError, match=rf"inputs\[0\].image: .*cat.png cannot be read \({words}\)"):
            pack(path, tmp_path / "sent")


def test_a_sampler_of_ones_own_is_brought_along(path: Path, tmp_path: Path) -> None:
    path.write_text(STUDY + "search: {strategy: mine.Sampler, trials: 3}\n")
    (path.parent / "mine.py").write_text("class Sampler: ...\n")
    (path.parent / "diary.py").write_text("nobody's business\n")
    sent = pack(path, tmp_path / "sent")
    assert {file.name for file in (sent.folder / "study").glob("*.py")} == {"mine.py"}


@pytest.mark.parametrize("key", ["model", "clip_model"])
def test_a_model_folder_of_this_machine_is_refused(path: Path, tmp_path: Path, key: str) -> None:
    (path.parent / "my-model").mkdir()
    document = yaml.safe_load(STUDY) | {key: "my-model"}
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(InputError, match=rf"{key}: my-model is a folder of this machine, .*absolute path"):
        pack(path, tmp_path / "sent")


def test_a_model_folder_of_the_clusters_is_left_to_it(path: Path, tmp_path: Path) -> None:
    path.write_text(STUDY.replace("toyworld", "/models/of/the/cluster"))
    assert pack(path, tmp_path / "sent").study == "sent"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sub/mask.png", "study.yaml", r"inputs\[0\].mask: .*study.yaml is not an image"),
        ("cat.png", "comet://me/photos:1/cat.png", r"inputs\[0\].mask: the mask .* is all black"),
        ("image: cat.png, ", "", r"inputs\[0\]: a mask needs an image beside it"),
    ],
)
def test_what_is_wrong_with_inputs_is_told_before_a_job_is_sent(
    path: Path, old: str, new: str, words: str
) -> None:
    Image.new("L", (64, 64), 0 if "comet" in new else 255).save(path.parent / "sub" / "mask.png")
    path.write_text(STUDY.replace(old, f'"{new}"' if new else ""))
    with pytest.raises(InputError, match=words):
        api.submit(no_server(), path)


def no_server() -> Any:
    """A job server that is asked for nothing."""
    return None


def test_an_input_that_is_not_there_is_named(path: Path, tmp_path: Path) -> None:
    (path.parent / "cat.png").unlink()
    with pytest.raises(InputError, match=r"inputs\[0\].image: .*cat.png cannot be read"):
        pack(path, tmp_path / "sent")


def test_what_is_too_large_is_named_with_both_sizes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path.parent / "cat.png").write_bytes(b"\0" * 3_000_000)
    monkeypatch.setattr(shipment, "MOST_BYTES", 2_000_000)
    with pytest.raises(
        InputError, match=r"are \d+ MB, more than the 2 MB that are sent; the largest is cat.png with 3"
    ):
        pack(path, tmp_path / "sent")


def test_a_command_reaches_the_shell_whole() -> None:
    words = ["run", "study/study.yaml", "--root", "~/it's; rm -rf $HOME"]
    line = entrypoint(words).replace("exec python3 -m orchestrator.on_cluster", "printf '%s\\n'")
    ran = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines() == words


class TestVersions:
    """The head's are compared with the sender's before anything is imported."""

    def versions(self, path: Path, tmp_path: Path) -> dict[str, object]:
        sent = pack(path, tmp_path / "sent")
        found: dict[str, object] = json.loads((sent.folder / "versions.json").read_text())
        return found

    def test_our_own_agree(self, path: Path, tmp_path: Path) -> None:
        assert on_cluster.disagreement(self.versions(path, tmp_path)) is None

    def test_another_python_is_named(self, path: Path, tmp_path: Path) -> None:
        problem = on_cluster.disagreement({**self.versions(path, tmp_path), "python": "3.99"})
        assert problem is not None
        assert "the sender's 3.99" in problem
        assert sys.executable in problem

    def test_another_diffusers_is_named(self, path: Path, tmp_path: Path) -> None:
        versions = self.versions(path, tmp_path)
        packages = {**versions["packages"], "diffusers": "0.1"}  # type: ignore[dict-item]
        problem = on_cluster.disagreement({**versions, "packages": packages})
        assert problem is not None
        assert "the sender 0.1" in problem

    def test_a_missing_package_is_named(self, path: Path, tmp_path: Path) -> None:
        versions = self.versions(path, tmp_path)
        problem = on_cluster.disagreement({**versions, "packages": {"no-such-package": None}})
        assert problem is not None
        assert "has no no-such-package" in problem

    def test_nothing_is_imported_before_that_is_known(self) -> None:
        script = (
            "import sys; from orchestrator import on_cluster\n"
            "other = {'yaml', 'pydantic', 'ray', 'numpy', 'rich'} & set(sys.modules)\n"
            "sys.exit(f'imported {other}' if other else 0)"
        )
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
