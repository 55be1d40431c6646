"""A study is brought from one root to another, whole or not at all, and twice without harm."""

import io
import tarfile
from pathlib import Path

import pyarrow.compute as pc
import pytest

from orchestrator import on_cluster
from orchestrator.catalog.frames import joined
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import check
from orchestrator.pool import InProcessPool
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from orchestrator.transfer import read_parcel, unpack, write_parcel
from search_spaces.errors import InputError
from tests.orchestrator.studies import fake_worker, grid, small_study
from workers import atomic_files


def run(root: Path, seeds: int = 3, name: str = "small", token: str = "0") -> None:
    study = small_study(name, seeds=seeds).model_copy(update={"token": token})
    folder, tables = StudyFolder(str(root), study.name), Tables(root)
    folder.pin(study, "study: small\n", {})
    (folder.path / "lock").write_text("process 1")
    strategy = grid(study, past_trials(tables, study.name))
    sweep(study, strategy, InProcessPool(fake_worker(), 4), ParquetCatalog(tables, study), NullTracker())


def parcel(root: Path, study: str = "small") -> str:
    out = io.StringIO()
    assert write_parcel(study, str(root), out) == 0
    return out.getvalue()


def bring(text: str, into: Path, study: str = "small") -> int:
    tar = io.BytesIO()
    read_parcel(text.splitlines(keepends=True), tar)
    tar.seek(0)
    return unpack(tar, study, str(into))[1]


def test_folder_rows_and_pictures_arrive(tmp_path: Path) -> None:
    run(tmp_path / "there")
    run(tmp_path / "there", name="other", seeds=5)
    images = bring(parcel(tmp_path / "there"), tmp_path / "here")
    there, here = (joined(Tables(tmp_path / place), "small") for place in ("there", "here"))
    order = [("trial", "ascending"), ("instance", "ascending")]
    assert here.sort_by(order).equals(there.sort_by(order))
    assert images == len(pc.unique(here["image_id"]))
    assert set(Tables(tmp_path / "here").read("trials", ["study"])["study"].to_pylist()) == {"small"}
    folder = StudyFolder(str(tmp_path / "here"), "small")
    assert folder.pinned() == StudyFolder(str(tmp_path / "there"), "small").pinned()
    assert not (folder.path / "lock").exists()


def test_what_is_there_already_stays_as_it_is(tmp_path: Path) -> None:
    run(tmp_path / "there")
    text = parcel(tmp_path / "there")
    assert bring(text, tmp_path / "here") > 0
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*.parquet")}
    assert bring(text, tmp_path / "here") == 0
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*.parquet")} == before
    run(tmp_path / "there", seeds=4)
    assert bring(parcel(tmp_path / "there"), tmp_path / "here") == 5, "one of each candidate"
    there, here = (Tables(tmp_path / place).read("trials").num_rows for place in ("there", "here"))
    assert here == there


@pytest.mark.parametrize("at", range(1, 6))
def test_a_study_that_was_half_brought_is_brought_by_the_same_again(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at each of the steps in which its folder's files are synced and renamed."""
    run(tmp_path / "there")
    (StudyFolder(str(tmp_path / "there"), "small").path / "report.txt").write_text("a report")
    text, steps, sync = parcel(tmp_path / "there"), [], atomic_files._sync

    def cut_off(path: Path) -> None:
        steps.append(path)
        if len(steps) == at:
            raise KeyboardInterrupt
        sync(path)

    monkeypatch.setattr(atomic_files, "_sync", cut_off)
    with pytest.raises(KeyboardInterrupt):
        bring(text, tmp_path / "here")
    monkeypatch.undo()
    folders = [StudyFolder(str(tmp_path / place), "small") for place in ("there", "here")]
    assert folders[1].pinned() in (None, folders[0].pinned()), "never half of it"
    assert bring(text, tmp_path / "here") == 0
    there, here = ({path.name for path in folder.path.rglob("*") if path.is_file()} for folder in folders)
    assert here == there - {"lock"}


def test_warnings_between_the_lines_do_no_harm(tmp_path: Path) -> None:
    run(tmp_path / "there")
    lines = parcel(tmp_path / "there").splitlines(keepends=True)
    tar = io.BytesIO()
    assert read_parcel(["a warning\n", lines[0], "another\n", *lines[1:], "bye\n"], tar) == [
        "a warning",
        "another",
    ]


@pytest.mark.parametrize("damage", ["cut", "lost", "changed"])
def test_what_does_not_arrive_whole_is_refused(tmp_path: Path, damage: str) -> None:
    run(tmp_path / "there")
    lines = parcel(tmp_path / "there").splitlines(keepends=True)
    assert len(lines) > 3
    if damage == "cut":
        lines = lines[:-1]
    elif damage == "lost":
        del lines[1]
    else:
        lines[1] = lines[1].replace("A", "B")
    with pytest.raises(InputError, match=r"fetch (it|them) again"):
        bring("".join(lines), tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_an_unknown_study_is_said_with_those_there_are(tmp_path: Path) -> None:
    run(tmp_path / "there")
    out = io.StringIO()
    assert write_parcel("smal", str(tmp_path / "there"), out) == 2
    with pytest.raises(InputError, match=r"there is no study 'smal' under .* it has small"):
        read_parcel(out.getvalue().splitlines(keepends=True), io.BytesIO())


def test_a_root_that_cannot_be_read_there_is_said_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_cluster._parcel("small", "s3://me:key@bucket/x") == 2
    lines = capsys.readouterr().out.splitlines(keepends=True)
    with pytest.raises(InputError, match=r"^--root s3://…: a root holds no credentials"):
        read_parcel(lines, io.BytesIO())


def test_another_study_of_the_name_is_not_mixed_in(tmp_path: Path) -> None:
    run(tmp_path / "there")
    run(tmp_path / "here", token="1")
    before = Tables(tmp_path / "here").read("trials").num_rows
    with pytest.raises(InputError, match=r"has another study named 'small' .*--into"):
        bring(parcel(tmp_path / "there"), tmp_path / "here")
    assert Tables(tmp_path / "here").read("trials").num_rows == before


def tar_with(name: str) -> io.BytesIO:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as made:
        entry = tarfile.TarInfo(name)
        entry.size = 4
        made.addfile(entry, io.BytesIO(b"evil"))
    tar.seek(0)
    return tar


@pytest.mark.parametrize("name", ["../outside", "studies/small/../../../../outside"])
def test_what_would_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="would leave its folder"):
        unpack(tar_with(name), "small", str(tmp_path / "in" / "here"))
    assert not list(tmp_path.rglob("outside"))


def test_an_absolute_name_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    assert unpack(tar_with(str(outside)), "small", str(tmp_path / "in" / "here"))[1] == 0
    assert not outside.exists()


def test_what_is_damaged_there_does_not_arrive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A picture that changed, and a row that is none: here all would count as written by this program."""
    run(tmp_path / "there")
    tables = Tables(tmp_path / "there")
    row = dict.fromkeys(SCHEMAS["scores"].names) | {
        "scorer": "clip_score/fake@1",
        "text": "",
        "value": float("nan"),
    }
    image_id = tables.read("trials", ["study", "image_id"])["image_id"][0].as_py()
    tables.append("scores", [row | {"image_id": image_id}])
    stored = tables.png(image_id)
    (path,) = (p for p in (tmp_path / "there" / "catalog" / "images").iterdir() if stored in p.read_bytes())
    path.write_bytes(path.read_bytes().replace(stored, stored[:-20] + b"x" + stored[-19:]))
    bring(parcel(tmp_path / "there"), tmp_path / "here")
    assert "1 of 16 rows of scores that arrived are damaged there" in caplog.text
    assert "1 of 15 rows of images that arrived are damaged there" in caplog.text
    here = Tables(tmp_path / "here")
    assert image_id not in here.read("images", ["image_id", "status"])["image_id"].to_pylist()
    health = check(here)
    assert [health.wrong, health.unreadable] == [{}, {}]
    assert health.without_picture == 1
