"""A study told to Comet by the real SDK, to the recorder, while it runs and after; its pictures are a fake's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator import api, cli, wiring
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.comet_study import comet_key
from orchestrator.pool import InProcessPool
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import sweep
from orchestrator.tracking import Guarded
from search_spaces.errors import InputError
from search_spaces.study import Study
from search_spaces.study_file import CometSpec, SearchSpec
from tests.comet_recorder import API_KEY, CometRecorder, Fault
from tests.disks import fill, small_disk
from tests.orchestrator.studies import fake_worker, grid, small_study

IMAGES = 15
"""Of the small study: 5 settings on 3 instances."""


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CometRecorder]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with CometRecorder() as recorder:
        for name, value in recorder.environment.items():
            monkeypatch.setenv(name, value)
        yield recorder


def study(**comet: object) -> Study:
    found = small_study().model_copy(update={"comet": CometSpec.model_validate(comet)})
    StudyFolder("runs", found.name).pin(found, "study: small\n", {})
    return found


def ran(found: Study) -> list[str]:
    """What a run says of Comet, as it begins and at its end."""
    lines: list[str] = []
    folder = StudyFolder("runs", found.name)
    with ExitStack() as session:
        session.enter_context(folder.locked())
        tracker = wiring.make_tracker(found, "runs", folder, session, lines.append)
        session.callback(tracker.abandon)
        catalog = ParquetCatalog(Tables("runs"), found)
        sweep(found, grid(found), InProcessPool(fake_worker(4), 4), catalog, tracker)
        lines.append(tracker.close() or "")
    return lines


@pytest.mark.parametrize(("rule", "count"), [("best_per_trial", 5), ({"top_k": 4}, 4), ("all", IMAGES)])
def test_a_run_sends_the_images_that_its_rule_chooses(
    recorder: CometRecorder, rule: object, count: int
) -> None:
    found = study(mode="online", images=rule)
    first, last = ran(found)
    assert first.startswith("Comet: streaming to ")
    assert last.startswith(f"Comet: all {count} images are in ")
    rows = api.frame("small", "runs", pictures=False).to_pandas().sort_values("value", ascending=False)
    best = {"all": rows, "best_per_trial": rows.groupby("trial").head(1)}.get(str(rule), rows.head(4))
    told = [asset.metadata or {} for asset in recorder.images(comet_key(found))]
    assert len(told) == count
    # of two pictures with one score either may be the best
    assert sorted(each["clip_score"] for each in told) == pytest.approx(sorted(best["value"]))
    assert {each["image_id"] for each in told} <= set(rows["image_id"])
    status = api.comet_status("small")
    assert (status.total, status.sent, status.pending) == (count, count, 0)
    assert cli.main(["comet", "sync", "small"]) == 0
    uploads = [request.query["type"] for request in recorder.heard("upload-asset")]
    assert uploads.count("image") == count
    assert recorder.unknown == []


class TestOneAtATime:
    def test_a_sync_during_a_run_or_another_is_refused_and_status_is_not(
        self, recorder: CometRecorder
    ) -> None:
        ran(study(mode="online"))
        folder = StudyFolder("runs", "small")
        uploads = len(recorder.heard("upload-asset"))
        with folder.locked():
            for act in (api.comet_sync, api.comet_archive, api.comet_publish):
                with pytest.raises(InputError, match="is being run by process"):
                    act("small")
            assert api.comet_status("small").sent == IMAGES
        with folder.told_to_comet():
            for act in (api.comet_sync, api.comet_archive, api.comet_publish):
                with pytest.raises(
                    InputError, match=r"is being told to Comet by process .*; wait for its end"
                ):
                    act("small")
            assert api.comet_status("small").sent == IMAGES
        assert len(recorder.heard("upload-asset")) == uploads

    def test_a_run_during_a_sync_leaves_its_images_to_the_next(self, recorder: CometRecorder) -> None:
        found = study(mode="online")
        with StudyFolder("runs", "small").told_to_comet():
            first, last = ran(found)
        assert first == last
        assert "is being told to Comet by process" in last
        assert "`latentsweep comet sync small` sends what this run makes, after that" in last
        assert recorder.requests == []
        assert api.comet_sync("small").sent == IMAGES
        assert (
            len(set(recorder.image_ids(comet_key(found)))) == len(recorder.images(comet_key(found))) == IMAGES
        )

    def test_a_run_holds_it_as_long_as_it_streams_and_off_does_not(self, recorder: CometRecorder) -> None:
        folder = StudyFolder("runs", "small")
        for mode, refused in (("online", True), ("offline", True), ("off", False)):
            with ExitStack() as session:
                tracker = wiring.make_tracker(study(mode=mode), "runs", folder, session)
                session.callback(tracker.abandon)
                if refused:
                    with pytest.raises(InputError, match="told to Comet"), folder.told_to_comet():
                        pass
                else:
                    with folder.told_to_comet():
                        pass
            with folder.told_to_comet():
                pass


def test_a_folder_that_cannot_be_used_ends_no_run(recorder: CometRecorder) -> None:
    found = study(mode="online")
    folder = StudyFolder("runs", "small")
    folder.comet.write_text("in the way")
    first, last = ran(found)
    assert first == last
    assert ".comet-streaming cannot be used: Not a directory; `latentsweep comet sync small` sends" in last
    folder.comet.unlink()
    assert api.comet_sync("small").sent == IMAGES


def test_what_was_refused_is_counted_with_its_reason(
    recorder: CometRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = study(mode="online")
    recorder.most_images = 6
    *_, last = ran(found)
    assert "9 are refused (Comet refuses it: the limit of images is reached)" in last
    assert cli.main(["comet", "status", "small"]) == 3
    out, _ = capsys.readouterr()
    assert "sent: 6 of 15 images\npending: 0\nrejected: 9: 9 × Comet refuses it: the limit of images" in out


def test_status_without_a_server_is_a_sentence(
    recorder: CometRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    study(mode="online")
    recorder.faults.append(Fault("", "status", 500))
    assert cli.main(["comet", "status", "small"]) == 2
    _, err = capsys.readouterr()
    assert err == "latentsweep: comet: the Comet server fails (500)\n"


OWN = "from optuna.samplers import RandomSampler\nclass Mine(RandomSampler): pass\n"


@pytest.mark.parametrize("log_code", [False, True])
def test_log_code_sends_the_commit_and_the_users_strategy_and_nothing_else(
    log_code: bool, recorder: CometRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_samplers.py").write_text(OWN)
    (tmp_path / "settings.py").write_text("token = 1\n")
    git = ["git", "-c", "user.name=CANARYname", "-c", "user.email=c@d"]
    for words in (["init", "-q"], ["add", "settings.py"], ["commit", "-qm", "CANARYmessage"]):
        subprocess.run([*git, *words], check=True)
    subprocess.run(["git", "remote", "add", "origin", "https://me:CANARYtoken@host/x"], check=True)
    (tmp_path / "settings.py").write_text("token = 'CANARYchange'\n")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    found = study(mode="off", log_code=log_code)
    ran(found)
    search = SearchSpec.model_validate({"strategy": "my_samplers.Mine", "trials": 5})
    StudyFolder("runs", "small").pin(found.model_copy(update={"search": search}), "study: small\n", {})
    assert api.comet_sync("small").problem is None
    experiment, files = recorder.experiments[comet_key(found)], recorder.files(comet_key(found))
    ours = {"study.yaml", "report.txt", "trials.csv", "contact-sheet.png"}
    assert files.keys() - ours == ({"my_samplers.py"} if log_code else set())
    assert experiment.others.get("git_commit") == (f"{commit.strip()} with changes" if log_code else None)
    if log_code:
        assert files["my_samplers.py"] == OWN.encode()
    (tmp_path / "settings.py").write_text("token = 1\n")
    assert api.comet_sync("small").problem is None
    assert experiment.others.get("git_commit") == (f"{commit.strip()} with changes" if log_code else None)
    whole = "".join(f"{each.path} {each.query} {each.body}" for each in recorder.requests).encode()
    whole += b"".join(files.values())
    for word in ("CANARY", "hostname", sys.executable, API_KEY, "system-details", "patch"):
        assert word.encode() not in whole, word
    assert recorder.unknown == []


@pytest.mark.parametrize("command", ["archive", "sync"])
def test_a_full_disk_is_a_sentence_and_exit_code_4(
    recorder: CometRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with small_disk(tmp_path / "runs", 2_000):
        ran(study(mode="off"))
        fill(tmp_path / "runs", leave=48_000 if command == "archive" else 33_000)
        assert cli.main(["comet", command, "small"]) == 4
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("latentsweep: ")
        assert "runs/studies/small" in err
        assert "No space left on device; what was stored is kept, mend it and run the same again" in err
        assert [path.name for path in Path("runs/studies/small/comet").glob("**/*")] == []
        Path("runs/ballast").unlink()
        assert cli.main(["comet", command, "small"]) == 0


def test_the_end_of_a_run_says_that_a_disk_failed(tmp_path: Path, recorder: CometRecorder) -> None:
    with small_disk(tmp_path / "runs", 2_000):
        found = study(mode="offline")
        folder = StudyFolder("runs", found.name)
        with ExitStack() as session:
            tracker = Guarded(wiring.make_tracker(found, "runs", folder, session))
            sweep(
                found,
                grid(found),
                InProcessPool(fake_worker(4), 4),
                ParquetCatalog(Tables("runs"), found),
                tracker,
            )
            assert not tracker.disk_failed
            fill(tmp_path / "runs", leave=48_000)
            line = tracker.close()
        assert tracker.disk_failed
        assert (
            line
            == f"tracking failed once with a disk's error: {folder.comet.absolute()}: No space left on device"
        )
