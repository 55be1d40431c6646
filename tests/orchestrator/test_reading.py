"""Commands that read print what they know, also where results and working directory may only be read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import api, cli
from orchestrator.catalog.tables import Tables
from orchestrator.study_folder import StudyFolder
from tests.comet_recorder import CometRecorder
from tests.disks import read_only
from tests.orchestrator.studies import small_study
from tests.orchestrator.test_tools import run

STUDY = small_study("small")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image of a study under `runs`, in a folder where a fake of a model stands for a real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workers.pipelines.loading.local_folder", lambda _: None)
    run(tmp_path / "runs", STUDY)
    return str(Tables("runs").read("images", ["image_id"])["image_id"][0])


READING: dict[str, Callable[[str], list[str]]] = {
    "report": lambda _: ["report", "small"],
    "report with axes": lambda _: ["report", "small", "--x", "guidance_scale", "--top", "1"],
    "ls": lambda _: ["ls"],
    "show": lambda image: ["show", image],
    "show --code": lambda image: ["show", image, "--code"],
    "diff": lambda _: ["diff", "small", "small"],
    "catalog check": lambda _: ["catalog", "check"],
}


@pytest.mark.parametrize("name", READING)
def test_a_reading_command_needs_no_right_to_write(
    image: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = READING[name](image)
    assert cli.main(arguments) == 0
    free, _ = capsys.readouterr()
    sheet = StudyFolder("runs", "small").contact_sheet
    sheet.unlink(missing_ok=True)
    with read_only(Path.cwd()):
        assert cli.main(arguments) == 0
    bound, err = capsys.readouterr()
    assert err == ""
    if arguments[0] == "report":
        free = free.replace(f"contact sheet: {sheet}", f"contact sheet: not written: {sheet}: ")
    for line in free.splitlines():  # all that is known is told here too
        assert line in bound
    assert not sheet.exists()
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_a_frame_needs_no_right_to_write(image: str) -> None:
    with read_only(Path.cwd()):
        assert image in api.frame("small").column("image_id").to_pylist()
        assert api.best("small").startswith("best clip_score")
        with pytest.raises(api.NotWrittenError, match=r"contact-sheet\.png: "):
            api.write_contact_sheet(api.results("small"))


def test_show_writes_no_file_unasked(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = api.show(image)
    for more in ([], ["--code"]):
        assert cli.main(["show", image, *more]) == 0
        assert sorted(path.name for path in Path().iterdir()) == ["runs"]
    assert f"picture: --png {shown.name} writes it to a file" in capsys.readouterr().out
    assert cli.main(["show", image, "--png", "it.png"]) == 0
    assert "picture: it.png\n" in capsys.readouterr().out
    assert Path("it.png").read_bytes() == shown.png
    assert cli.main(["show", image, "--code", "--png", "again.png"]) == 0
    assert capsys.readouterr().out == shown.code
    assert Path("again.png").read_bytes() == shown.png


@pytest.mark.parametrize("more", [[], ["--code"]])
def test_show_prints_before_a_picture_that_was_asked_for_fails(
    image: str, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """And says so by its exit code: a file was asked for, and there is none."""
    with read_only(Path.cwd()):
        assert cli.main(["show", image, *more, "--png", "it.png"]) == 4
    out, err = capsys.readouterr()
    assert (api.show(image).code if more else f"image_id: {image}") in out
    assert err.startswith("latentsweep: it.png: ")


def test_comet_status_needs_no_right_to_write(
    image: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with CometRecorder() as recorder, read_only(Path("runs")):
        for name, value in recorder.environment.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["comet", "status", "small"]) == 3  # all is pending
    assert "pending: 15\n" in capsys.readouterr().out
    assert list(temporary.iterdir()) == []
