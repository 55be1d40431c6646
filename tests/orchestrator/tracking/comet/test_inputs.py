"""Files of artifacts, by the real SDK from the recorder: what was stored is what comes, byte for byte."""

import base64
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.tracking.comet.content import CometError
from orchestrator.tracking.comet.inputs import Fetched, Wanted, fetch
from search_spaces.artifacts import parse_artifact_file
from tests.comet_recorder import API_KEY, CometRecorder, Fault

CAT, OTHER, MASK = random.Random(1).randbytes(200_000), b"another cat", b"\x00\xff\r\n--mask"
WRONG_KEY = "WRONGwrong0123456789abcde"


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CometRecorder]:
    with CometRecorder() as recorder:
        recorder.put_artifact(
            "friends", "my photos", "1.0.0", {"cats/a cat.png": CAT, "mask.png": MASK}, ["best"]
        )
        recorder.put_artifact("friends", "my photos", "1.1.0", {"cats/a cat.png": OTHER, "mask.png": MASK})
        for name, value in recorder.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("COMET_TIMEOUT_API", "2")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield recorder


def wanted(text: str, sha256: str | None = None) -> Wanted:
    file = parse_artifact_file(text)
    assert file is not None
    return Wanted(file, sha256)


def one(text: str, sha256: str | None = None) -> Fetched:
    (found,) = fetch([wanted(text, sha256)])
    assert isinstance(found, Fetched), found
    return found


def test_versions_aliases_and_what_is_missing_in_one_go(recorder: CometRecorder, tmp_path: Path) -> None:
    state, modules = random.getstate(), set(sys.modules)
    cat = "comet://friends/my photos:{}/cats/a cat.png"
    texts = [
        *(cat.format(version) for version in ("1.0.0", "best", "latest", "1.1.0", "beast")),
        "comet://friends/my photos/mask.png",
        "comet://friends/my photos:best/cats/cat.png",
        "comet://friends/photos:1.0.0/mask.png",
    ]
    first, best, latest, second, beast, mask, no_cat, no_artifact = fetch([wanted(text) for text in texts])
    assert isinstance(first, Fetched)
    assert isinstance(latest, Fetched)
    assert isinstance(mask, Fetched)
    assert (first.path.read_bytes(), first.version) == (CAT, "1.0.0")
    assert first.sha256 == hashlib.sha256(CAT).hexdigest()
    assert (latest.path.read_bytes(), latest.version) == (OTHER, "1.1.0")
    assert (best, second) == (first, latest)
    assert (mask.path.read_bytes(), mask.version) == (MASK, "1.1.0")
    assert all(tmp_path / "cache" in each.path.parents for each in (first, latest, mask))
    assert beast == "the artifact friends/my photos has no version or alias 'beast'; did you mean 'best'?"
    assert no_cat == (
        "comet://friends/my photos:1.0.0/cats/cat.png: the artifact has no file of this path; "
        "did you mean 'cats/a cat.png'?"
    )
    assert no_artifact == "Comet has no artifact 'photos' in the workspace 'friends' for this API key"
    assert random.getstate() == state
    assert not any(name.startswith("comet_ml") for name in set(sys.modules) - modules)
    assert recorder.unknown == []
    assert not recorder.heard("add/run")  # no experiment is made for it

    asked = len(recorder.heard("get-asset"))
    assert asked == 3  # each file once
    assert one(cat.format("best")) == first
    assert len(recorder.heard("get-asset")) == asked
    recorder.stop()
    assert one(cat.format("1.0.0")) == first  # of a version that is here nobody asks


def test_a_file_of_the_cache_that_is_not_what_it_was_is_fetched_again(recorder: CometRecorder) -> None:
    text = "comet://friends/my photos:1.0.0/mask.png"
    found = one(text)
    found.path.write_bytes(b"cut o")
    assert one(text, found.sha256) == found
    assert found.path.read_bytes() == MASK
    (changed,) = fetch([wanted(text, "0" * 64)])
    assert changed == f"{text} is not what the study was made with: its bytes have changed in Comet"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("artifacts/version", "hang"), "cannot be reached or does not answer"),
        (Fault("get-asset", "hang"), "cannot be reached or does not answer"),
        (Fault("get-asset", "drop"), "cannot be reached or does not answer"),
        (Fault("get-asset", "status", status=500), "the Comet server fails (500)"),
        (Fault("artifacts/version", "status", status=503), "the Comet server fails (503)"),
        (Fault("artifacts/version", "status", status=429), "takes no more for now (429)"),
        (Fault("artifacts/version", "status", status=403), "does not let the API key that was found do this"),
    ],
)
def test_a_server_that_fails_is_a_sentence_and_leaves_nothing(
    recorder: CometRecorder, tmp_path: Path, fault: Fault, said: str
) -> None:
    recorder.faults.append(fault)
    with pytest.raises(CometError) as raised:
        fetch([wanted("comet://friends/my photos:1.0.0/mask.png")], 4 if fault.act == "hang" else 30)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == ["comet.log"]
    assert not list((tmp_path / "cache").rglob(".latentsweep-*"))


def test_a_server_that_is_not_there(recorder: CometRecorder) -> None:
    recorder.stop()
    with pytest.raises(CometError, match="cannot be reached or does not answer"):
        fetch([wanted("comet://friends/my photos:1.0.0/mask.png")])


def test_no_key_and_a_wrong_one_are_told_and_never_quoted(
    recorder: CometRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = [wanted("comet://friends/my photos:1.0.0/mask.png")]
    monkeypatch.setenv("COMET_API_KEY", WRONG_KEY)
    with pytest.raises(CometError) as wrong:
        fetch(file)
    assert "does not let the API key that was found do this" in str(wrong.value)
    monkeypatch.delenv("COMET_API_KEY")
    with pytest.raises(CometError, match="no API key of Comet was found; set COMET_API_KEY or"):
        fetch(file)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".comet.config").write_text(f"[comet]\napi_key = {API_KEY}\n")
    (found,) = fetch(file)
    assert isinstance(found, Fetched)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert WRONG_KEY.encode() not in kept + str(wrong.value).encode()
    assert API_KEY.encode() not in kept


def test_what_is_not_whole_in_comet_is_refused(recorder: CometRecorder) -> None:
    recorder.put_artifact("friends", "half", "1.0.0", {"a.png": CAT})
    recorder.artifacts[-1].state = "OPEN"
    (told,) = fetch([wanted("comet://friends/half:1.0.0/a.png")])
    assert told == "comet://friends/half:1.0.0/a.png: this version of the artifact is not complete in Comet"


def test_a_file_that_comes_in_part_is_not_kept(recorder: CometRecorder, tmp_path: Path) -> None:
    recorder.put_artifact("friends", "short", "1.0.0", {"a.png": CAT})
    (asset,) = recorder.experiments[recorder.artifacts[-1].experiment].assets
    asset.data = CAT[:1000]
    with pytest.raises(CometError, match=r"a\.png: 1,000 of 200,000 bytes came; try again"):
        fetch([wanted("comet://friends/short:1.0.0/a.png")])
    assert not list((tmp_path / "cache").rglob("a.png"))


def test_each_server_has_a_cache_of_its_own_however_it_is_named(
    recorder: CometRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers have the same artifact with other bytes; named by variable, configuration file and key."""
    text = "comet://friends/my photos:1.0.0/mask.png"
    (tmp_path / "home").mkdir()
    config = tmp_path / "home" / ".comet.config"
    with CometRecorder() as second:
        second.put_artifact("friends", "my photos", "1.0.0", {"mask.png": OTHER})
        by_variable = one(text)
        assert by_variable.path.read_bytes() == MASK
        monkeypatch.delenv("COMET_URL_OVERRIDE")
        config.write_text(f"[comet]\nurl_override = {second.url}\n")
        by_file = one(text)
        assert by_file.path.read_bytes() == OTHER
        config.write_text(f"[comet]\nurl_override = {recorder.url}\n")
        assert one(text) == by_variable
        config.unlink()
        told = json.dumps({"baseUrl": second.url.removesuffix("/clientlib/")}).encode()
        monkeypatch.setenv("COMET_API_KEY", f"{API_KEY}*{base64.b64encode(told).decode()}")
        assert one(text) == by_file
        assert len(second.heard("get-asset")) == len(recorder.heard("get-asset")) == 1


def test_an_alias_that_moves_is_another_version_and_a_version_does_not_move(recorder: CometRecorder) -> None:
    text = "comet://friends/my photos:{}/cats/a cat.png"
    before = one(text.format("best"))
    recorder.put_artifact("friends", "my photos", "2.0.0", {"cats/a cat.png": OTHER}, ["best"])
    after, pinned = one(text.format("best")), one(text.format("1.0.0"), before.sha256)
    assert (before.version, after.version) == ("1.0.0", "2.0.0")
    assert (after.path.read_bytes(), pinned) == (OTHER, before)
