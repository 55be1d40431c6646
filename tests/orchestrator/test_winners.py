"""A study's winners as versions of an artifact, by the real SDK to the recorder; believed by the listing alone."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import api, cli
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.comet_study import comet_key
from orchestrator.pool import InProcessPool
from orchestrator.report.statistics import ranking
from orchestrator.study_folder import StudyFolder
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from orchestrator.tracking.comet.inputs import Fetched, Wanted, fetch
from orchestrator.winners import winners
from search_spaces.artifacts import parse_artifact_file
from search_spaces.errors import InputError
from tests.comet_recorder import API_KEY, Asset, CometRecorder, Fault
from tests.orchestrator.studies import fake_worker, grid, small_study
from workers.png import as_png

STUDY = small_study()
TEXT = "study: small\n"


def run_on(guidance: tuple[float, ...]) -> None:
    study = small_study(guidance=guidance)
    StudyFolder("runs", study.name).pin(study, TEXT, {})
    catalog = ParquetCatalog(Tables("runs"), study)
    sweep(study, grid(study), InProcessPool(fake_worker(4), 4), catalog, NullTracker())


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CometRecorder]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COMET_TIMEOUT_API", "3")
    monkeypatch.setenv("COMET_TIMEOUT_FILE_UPLOAD", "3")
    run_on((0.5, 1, 3, 5))
    with CometRecorder() as recorder:
        for name, value in recorder.environment.items():
            monkeypatch.setenv(name, value)
        yield recorder


def sent(recorder: CometRecorder, version: str) -> dict[str, Asset]:
    (found,) = (each for each in recorder.artifacts if each.version == version)
    assets = [a for e in recorder.experiments.values() for a in e.assets if a.artifact_version == found.id]
    assert len({asset.name for asset in assets}) == len(assets)
    return {asset.name: asset for asset in assets}


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["comet", "publish", *arguments]) == code
    out, err = capsys.readouterr()
    assert API_KEY not in out + err
    return out + err


def test_the_winners_go_once_with_their_settings_and_scores(
    recorder: CometRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = said(capsys, "small", "--top", "2")
    assert "artifact: default/small-winners:1.0.0" in first
    assert "files: 7, " in first
    assert "aliases: Latest, best" in first
    files = sent(recorder, "1.0.0")
    assert files.pop("study/small.yaml").data == TEXT.encode()

    found, tables = api.results("small"), Tables("runs")
    leaders = ranking(found)[:2]
    assert sorted(files) == sorted(
        f"rank-{leader.rank:02d}/trial-{leader.trial.number}-instance-{number}.png"
        for leader in leaders
        for number in range(3)
    )
    for name, asset in files.items():
        told = asset.metadata
        assert told is not None
        leader = leaders[int(name[5:7]) - 1]
        number = told["instance"]
        assert asset.data == as_png(tables.png(leader.trial.images[number]))
        assert told["image_id"] == leader.trial.images[number]
        assert told["sha256"] == hashlib.sha256(asset.data).hexdigest()
        assert told["clip_score"] == pytest.approx(leader.trial.scores[number])
        assert told["mean_clip_score"] == pytest.approx(leader.score.mean)
        assert (told["trial"], told["rank"], told["seed"]) == (leader.trial.number, leader.rank, number)
        assert (told["guidance_scale"], told["num_inference_steps"]) == (
            leader.trial.settings["guidance_scale"],
            4,
        )
    (version,) = recorder.artifacts
    assert version.experiment == comet_key(STUDY)
    assert json.loads(str(version.metadata))["study"] == "small"

    uploads = len(recorder.heard("asset/upload"))
    again = said(capsys, "small", "--top", "2", "--alias", "best", "--alias", "friday")
    assert "unchanged: default/small-winners:1.0.0, which holds just that" in again
    assert recorder.artifacts[0].aliases == ["Latest", "best", "friday"]
    assert (len(recorder.artifacts), len(recorder.heard("asset/upload"))) == (1, uploads)

    assert "small-winners:2.0.0" in said(capsys, "small", "--top", "1")
    assert len(sent(recorder, "2.0.0")) == 4
    assert "best" in recorder.artifacts[1].aliases
    assert "best" not in recorder.artifacts[0].aliases
    assert recorder.unknown == []

    name = "rank-01/" + next(each for each in files if each.startswith("rank-01"))[8:]
    file = parse_artifact_file(f"comet://default/small-winners:1.0.0/{name}")
    assert file is not None
    (back,) = fetch([Wanted(file)])
    assert isinstance(back, Fetched)
    assert back.path.read_bytes() == files[name].data

    api.comet_sync("small")  # which clears up files of its own alone
    assert len(sent(recorder, "1.0.0")) == 7
    every = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert API_KEY.encode() not in every
    assert not [path for name in (".comet-*", ".latentsweep-*") for path in (tmp_path / "runs").rglob(name)]


@pytest.mark.faults  # the SDK takes half a minute to give up
def test_an_upload_that_fails_is_no_version_and_the_same_command_makes_one(
    recorder: CometRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.faults.append(Fault("clientlib/asset/upload", "status", status=400))
    told = said(capsys, "small", "--name", "my best", code=2)
    assert "Comet has not got all of my best:1.0.0; the same command makes a version anew" in told
    assert recorder.artifacts[0].state != "CLOSED"
    recorder.faults.clear()
    assert "my best:2.0.0" in said(capsys, "small", "--name", "my best")
    assert recorder.artifacts[1].state == "CLOSED"


def test_a_listing_that_is_not_what_was_sent_is_told(
    recorder: CometRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = recorder.store

    def cut(query: dict[str, str], data: bytes, kind: str, name: str, metadata: str | None) -> Asset:
        return store(query, data[:-1] if name.startswith("rank-02") else data, kind, name, metadata)

    monkeypatch.setattr(recorder, "store", cut)
    with pytest.raises(InputError, match=r"Comet lists 3 of 7 files of small-winners:1\.0\.0 not as sent"):
        api.comet_publish("small", top=2)


@pytest.mark.parametrize("path", ["artifacts/upsert", "logger/add/run", "artifacts/version"])
def test_what_comet_refuses_once_is_a_sentence_and_the_same_command_goes_on(
    path: str, recorder: CometRecorder
) -> None:
    recorder.faults.append(Fault(path, "status", status=400, times=1))
    with pytest.raises(InputError, match=r"^comet: Comet refuses it: as the test asks$"):
        api.comet_publish("small")
    made = api.comet_publish("small")
    assert (made.new, made.files) == (True, 10)
    assert len(sent(recorder, made.version)) == 10
    assert recorder.heard("notification") == []


@pytest.mark.parametrize("act", ["stop", "hang", "status"])
def test_a_server_that_is_not_there_is_a_sentence(recorder: CometRecorder, act: str) -> None:
    if act == "stop":
        recorder.stop()
    elif act == "hang":
        recorder.faults.append(Fault("", "hang"))
    else:
        recorder.faults.append(Fault("upsert", "status"))
    with pytest.raises(InputError) as raised:
        api.comet_publish("small")
    expected = "the Comet server fails (500)" if act == "status" else "cannot be reached or does not answer"
    assert expected in str(raised.value)
    assert API_KEY not in str(raised.value)


def test_mistakes_are_sentences_before_anything_is_asked(recorder: CometRecorder) -> None:
    with pytest.raises(InputError, match="'a/b' cannot be an artifact's name"):
        api.comet_publish("small", name="a/b")
    with pytest.raises(InputError, match=r"'1\.0\.0' cannot be an alias"):
        api.comet_publish("small", aliases=["1.0.0"])
    with pytest.raises(InputError, match="there is no study 'smal'"):
        api.comet_publish("smal")
    empty = small_study("empty")
    StudyFolder("runs", "empty").pin(empty, TEXT, {})
    with pytest.raises(InputError, match="has no best settings yet: no setting is judged in full"):
        api.comet_publish("empty")
    assert recorder.requests == []


def test_without_a_key(recorder: CometRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMET_API_KEY")
    with pytest.raises(InputError, match="comet: no API key of Comet was found; set COMET_API_KEY"):
        api.comet_publish("small")


def test_there_are_no_more_winners_than_settings(recorder: CometRecorder) -> None:
    found = api.results("small")
    assert len(winners(found, STUDY, 100)) == 3 * len(ranking(found)) == 15
