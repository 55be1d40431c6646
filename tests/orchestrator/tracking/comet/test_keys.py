"""A key's form, and where one may lie."""

from pathlib import Path

import pytest

from orchestrator.tracking.comet.content import experiment_key
from orchestrator.tracking.comet.keys import api_key_problem, may_have_key
from tests.orchestrator.tracking.comet.contents import KEY

MARKER = "MARKERmarker0123456789abc"


def test_an_experiment_key_is_what_comet_takes_and_always_the_same() -> None:
    assert experiment_key("a study") == KEY == "88765bd0a21f44368db3a7794e97ffdb"
    assert len(KEY) == 32
    assert KEY.isalnum()
    assert KEY.islower()
    assert experiment_key("another study") != KEY


@pytest.mark.parametrize("key", [None, "a" * 25, MARKER, f"{MARKER}*eyJiYXNlVXJsIjoiIn0=", "_SECRET_-e30="])
def test_a_plausible_or_absent_key_is_no_problem(key: str | None) -> None:
    assert api_key_problem({} if key is None else {"COMET_API_KEY": key}) is None


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        (f"{MARKER}\n", "white space"),
        (f'"{MARKER}"', "characters other than"),
        ("ä" * 25, "characters other than"),
        (f"{MARKER}*a*b", "characters other than"),
        ("short1", "too short or too long"),
        ("a" * 65, "too short or too long"),
    ],
)
def test_a_broken_key_is_named_without_quoting_it(key: str, problem: str) -> None:
    sentence = api_key_problem({"COMET_API_KEY": key})
    assert sentence is not None
    assert problem in sentence
    assert sentence.startswith("COMET_API_KEY ")
    assert sentence.endswith("; the run goes on offline")
    assert not key.strip() or key.strip() not in sentence


def test_a_key_may_lie_where_the_sdk_looks(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    folder.mkdir()
    assert not may_have_key({}, folder, home)
    assert may_have_key({"COMET_API_KEY": MARKER}, folder, home)
    assert not may_have_key({"COMET_API_KEY": ""}, folder, home)
    (folder / ".env").write_text("OTHER=1\n")
    assert not may_have_key({}, folder, home)
    (folder / ".env").write_text(f"COMET_API_KEY={MARKER}\n")
    assert may_have_key({}, folder, home)
    assert not may_have_key({"COMET_API_KEY": ""}, folder, home)
    (folder / ".env").unlink()
    (home / ".comet.config").write_text(f"[comet]\napi_key={MARKER}\n")
    assert may_have_key({}, folder, home)
    (home / ".comet.config").rename(tmp_path / "mine")
    assert may_have_key({"COMET_CONFIG": str(tmp_path / "mine")}, folder, home)
    assert not may_have_key({"COMET_CONFIG": str(tmp_path / "gone")}, folder, home)
