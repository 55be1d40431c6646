"""An export is there whole or not at all, and the command that was killed may be given again."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator import api, cli
from orchestrator.exports import FORMATS, export
from orchestrator.study_folder import StudyFolder
from search_spaces.domains import Choices
from search_spaces.errors import InputError
from search_spaces.space import Space
from tests.orchestrator.studies import small_study
from tests.orchestrator.test_tools import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of 15 pictures."""
    folder = tmp_path_factory.mktemp("exports")
    run(folder / "runs", small_study("old"))
    return str(folder / "runs")


def content(place: Path) -> dict[str, bytes]:
    """Every file of a place, by its path there."""
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


KILLED = """
import os, signal, sys
from orchestrator import exports
from workers import atomic_files
def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{at} = kill
exports.export("old", sys.argv[1], sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("to", sorted(FORMATS))
@pytest.mark.parametrize("at", ["atomic_files._sync", "os.rename, os.replace", "atomic_files._remove"])
def test_a_killed_export_is_made_by_the_same_command(to: str, at: str, root: str, tmp_path: Path) -> None:
    """Killed when everything is written, when it is to be renamed, and when it has its name."""
    place = tmp_path / "out"
    code = KILLED.format(at=at.replace(", ", " = "))
    killed = subprocess.run([sys.executable, "-c", code, to, str(place), root], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert place.exists() == (at == "atomic_files._remove")
    export("old", to, str(place), root)
    export("old", to, str(tmp_path / "whole"), root)
    assert content(place) == content(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_the_same_export_again_is_right_and_another_is_refused(to: str, root: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    first = export("old", to, str(place), root)
    before = content(place)
    assert export("old", to, str(place), root) == f"{first}, as before"
    with pytest.raises(InputError, match="exists already, and is not this export"):
        export("old", to, str(place), root, where="guidance_scale > 1")
    assert content(place) == before
    name = min(before)
    damaged = place if place.is_file() else place / name
    damaged.write_bytes(before[name][:-9])
    with pytest.raises(InputError, match="is not this export"):
        export("old", to, str(place), root)
    for other in FORMATS:
        if other != to:
            with pytest.raises(InputError, match="is not this export"):
                export("old", other, str(place), root)


def test_a_picture_that_was_changed_makes_a_folder_another_one(root: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    export("old", "folder", str(place), root)
    picture = min(place.glob("*.png"))
    picture.write_bytes(max(place.glob("*.png")).read_bytes())
    with pytest.raises(InputError, match="is not this export"):
        export("old", "folder", str(place), root)


def test_a_picture_that_was_changed_makes_a_parquet_file_another_one(root: str, tmp_path: Path) -> None:
    place = tmp_path / "out.parquet"
    export("old", "parquet", str(place), root)
    rows = pq.read_table(place)
    pictures = rows["image"].to_pylist()
    swapped = pa.array([pictures[-1], *pictures[1:]], rows["image"].type)
    pq.write_table(rows.set_column(rows.column_names.index("image"), "image", swapped), place)
    with pytest.raises(InputError, match="is not this export"):
        export("old", "parquet", str(place), root)


@pytest.mark.parametrize("to", ["folder", "hf"])
def test_a_users_folder_is_never_touched(
    to: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.chdir(mine)
    with pytest.raises(InputError, match="is the folder that you are in"):
        export("old", to, ".", root)
    monkeypatch.chdir(tmp_path)
    (mine / "photo.png").write_bytes(b"a photo")
    with pytest.raises(InputError, match="exists already"):
        export("old", to, "mine", root)
    assert content(mine) == {"photo.png": b"a photo"}
    (mine / "photo.png").unlink()
    assert "old" in export("old", to, "mine", root), "an empty one is filled"


def test_what_came_there_meanwhile_is_left_alone(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out.csv"

    def written_meanwhile(_: object, aside: Path) -> None:
        aside.write_text("ours")
        place.write_text("a user's")

    monkeypatch.setitem(FORMATS, "csv", replace(FORMATS["csv"], write=written_meanwhile))
    with pytest.raises(InputError, match="exists already"):
        export("old", "csv", str(place), root)
    assert content(tmp_path) == {"out.csv": b"a user's"}


def test_a_disk_that_is_full_leaves_nothing(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("workers.atomic_files._sync", full)
    for to in FORMATS:
        assert cli.main(["export", "old", "--to", to, str(tmp_path / "out"), "--root", root]) == 4
        assert f"{tmp_path / 'out'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)


def test_what_others_wrote_is_text_in_every_table_and_page(tmp_path: Path) -> None:
    """Prompts, texts of settings and a model's name may hold what a spreadsheet, a browser or a terminal obeys."""
    study = small_study("hostile", guidance=(3.0, 5.0))
    space = Space(
        axes={"guidance_scale": Choices(values=(3, 5)), "negative_prompt": Choices(values=("", "=1+1"))}
    )
    hostile = study.inputs[0].model_copy(update={"prompt": "-cat\x1b[2J <script>", "score_text": "@SUM(A1)"})
    model = study.model.model_copy(update={"name": "<img src=x>|`a`"})
    study = study.model_copy(update={"space": space, "inputs": (hostile,), "model": model})
    root = str(tmp_path / "runs")
    run(tmp_path / "runs", study)
    api.write_report(api.results("hostile", root), root)
    folder = StudyFolder(root, "hostile")
    trials = list(csv.DictReader(io.StringIO(folder.trials.read_text(encoding="utf-8"))))
    assert {row["negative_prompt"] for row in trials} == {"", "'=1+1"}
    assert {row["guidance_scale"] for row in trials} == {"3", "5"}
    assert "\x1b" not in folder.report.read_text(encoding="utf-8")
    export("hostile", "csv", str(tmp_path / "out.csv"), root)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["prompt"], row["text"]) for row in rows} == {("'-cat?[2J <script>", "'@SUM(A1)")}
    export("hostile", "hf", str(tmp_path / "out"), root)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "A sweep of `` <img src=x>¦`a` `` by Latentsweep" in card
    assert card.count("<") == 1
