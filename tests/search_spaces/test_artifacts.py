"""How a study file names files of Comet artifacts."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.artifacts import ArtifactFile, check_alias, check_artifact_name, parse_artifact_file
from search_spaces.errors import InputError
from search_spaces.study_file import StudySpec, parse

STUDY = """
study: cats
model: toyworld
inputs: [{{prompt: a dragon, image: {image}, mask: {mask}}}]
space: {{strength: [0.5, 1.0]}}
"""


def parsed(image: str, mask: str = "mask.png") -> StudySpec:
    return parse(STUDY.format(image=image, mask=mask), "cats.yaml")


names = st.text(string.ascii_letters + string.digits + " ._-äé", min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..")
)


@given(names, names, names, st.lists(names, min_size=1, max_size=3))
def test_what_is_written_is_read_again(workspace: str, artifact: str, version: str, path: list[str]) -> None:
    file = ArtifactFile(workspace, artifact, version, "/".join(path))
    assert parse_artifact_file(str(file)) == file


@pytest.mark.parametrize(
    ("text", "version", "resolved"),
    [
        ("comet://friends/photos:1.0.0/cat.png", "1.0.0", True),
        ("comet://friends/photos:1.0.0-rc.1/cat.png", "1.0.0-rc.1", True),
        ("comet://friends/photos:latest/cat.png", "latest", False),
        ("comet://friends/photos:1.0/cat.png", "1.0", False),
        ("comet://friends/photos/cat.png", "latest", False),
    ],
)
def test_versions_and_aliases(text: str, version: str, resolved: bool) -> None:
    file = parse_artifact_file(text)
    assert file is not None
    assert (file.version, file.is_resolved, file.path) == (version, resolved, "cat.png")


@pytest.mark.parametrize("text", ["cat.png", "../cats/cat.png", "/photos/cat.png", "a:b.png"])
def test_a_local_path_is_none(text: str) -> None:
    assert parse_artifact_file(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("comet://friends", "is not of the form comet://WORKSPACE/ARTIFACT:VERSION-OR-ALIAS/PATH"),
        ("comet:///photos:1.0.0/cat.png", "is not of the form"),
        ("comet://friends/photos:/cat.png", "is not of the form"),
        ("comet://friends/a:b:c/cat.png", "is not of the form"),
        ("comet://friends/photos:latest", "names no file of the artifact"),
        ("comet://friends/photos:latest/", "names no file of the artifact"),
        ("comet://friends/photos:latest/../../cat.png", "leaves the artifact's folder"),
        ("comet://friends/photos:latest//etc/passwd", "leaves the artifact's folder"),
        ("comet://friends/photos:../cat.png", "leaves the artifact's folder"),
        ("comet://../photos:1.0.0/cat.png", "leaves the artifact's folder"),
        ("comet://friends/photos:1.0.0/a\\b.png", "holds characters"),
        ("s3://bucket/cat.png", "is neither a path nor a file of a Comet artifact"),
        ("https://example.org/cat.png", "is neither a path nor a file of a Comet artifact"),
    ],
)
@pytest.mark.parametrize("key", ["image", "mask"])
def test_a_mistake_is_a_sentence_with_its_place(text: str, said: str, key: str) -> None:
    with pytest.raises(InputError) as raised:
        parsed(**{"image": "cat.png", key: f"'{text}'"})
    assert str(raised.value).startswith(f"cats.yaml: inputs[0].{key}: {text!r} {said}")


def test_a_study_file_keeps_what_it_says() -> None:
    spec = parsed("comet://friends/photos:latest/cats/cat.png")
    assert spec.inputs[0].image == "comet://friends/photos:latest/cats/cat.png"


@pytest.mark.parametrize("name", ["cats-winners", "my cats", "x" * 100])
def test_names_of_artifacts(name: str) -> None:
    assert check_artifact_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a\\b", "a\nb", "x" * 101])
def test_what_cannot_name_an_artifact(name: str) -> None:
    with pytest.raises(InputError, match="cannot be an artifact's name"):
        check_artifact_name(name)


@pytest.mark.parametrize("alias", ["", "a b", "1.0.0", "a:b", "-x"])
def test_what_cannot_be_an_alias(alias: str) -> None:
    with pytest.raises(InputError, match="cannot be an alias"):
        check_alias(alias)


def test_an_alias() -> None:
    assert check_alias("best-2026.1") == "best-2026.1"
