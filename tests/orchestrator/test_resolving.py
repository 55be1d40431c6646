"""What a study file comes to before anything runs: which texts and which inputs are one."""

import shutil
from pathlib import Path

import pytest

from orchestrator.plan import surveyed
from orchestrator.resolving import Resolved, resolve
from orchestrator.study_folder import StudyFolder

STUDIES = Path(__file__).parents[2] / "studies"

LONG = ", ".join(["ugly", "blurry", "deformed", "watermark"] * 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat.png", "cat-mask.png"):
        shutil.copy(STUDIES / name, tmp_path / name)
    return tmp_path


def resolved(folder: Path, negative: str, prompts: tuple[str, ...] = ("a green dragon",)) -> Resolved:
    """A study of toyworld that sweeps the negative prompt, as it would be run under `folder`/runs."""
    inputs = [f"{{image: cat.png, mask: cat-mask.png, prompt: {prompt!r}}}" for prompt in prompts]
    text = f"study: words\nmodel: toyworld\ninputs: [{', '.join(inputs)}]\nseeds: 2\n"
    text += f"space: {{negative_prompt: {negative}}}\n"
    (folder / "words.yaml").write_text(text, encoding="utf-8")
    return resolve(folder / "words.yaml", str(folder / "runs"), lambda: 0)


def pin(folder: Path, found: Resolved) -> None:
    StudyFolder(str(folder / "runs"), "words").pin(found.study, found.text, found.images)


def test_texts_of_the_same_tokens_are_one_candidate_and_named_once(folder: Path) -> None:
    found = resolved(folder, "['', ' ', cartoon, Cartoon, 'cartoon ']")
    survey = surveyed(found.study)
    assert survey is not None
    assert [cell["negative_prompt"] for cell in survey.candidates] == ["", "cartoon"]
    (said,) = [note for note in found.warnings if "tokenizer" in note]
    assert "reads ' ' as ''; 'Cartoon' and 'cartoon ' as 'cartoon'" in said


def test_a_text_that_is_cut_is_said_with_its_tokens_and_the_window(folder: Path) -> None:
    found = resolved(folder, f"['', cartoon, '{LONG}', '{LONG}, cartoon']", ("a dragon", f"a dragon, {LONG}"))
    of_prompts, of_negatives, alike = found.warnings
    assert of_prompts.startswith("1 of 2 prompts is longer than the 77 tokens that the text tower reads")
    assert of_negatives.startswith("2 of 4 negative prompts are longer than the 77 tokens")
    assert int(of_negatives.rpartition(" has ")[2]) > 80 * 2, "eighty words and as many commas"
    assert "they draw the same pictures" in alike


def test_a_later_session_goes_on_with_the_spellings_of_the_first(folder: Path) -> None:
    first = resolved(folder, "[Cartoon, cartoon]")
    assert first.study.texts == {
        "a green dragon": "a green dragon",
        "Cartoon": "Cartoon",
        "cartoon": "Cartoon",
    }
    pin(folder, first)
    later = resolved(folder, "[CARTOON, cartoon, photo]").study
    assert later.texts == {**first.study.texts, "CARTOON": "Cartoon", "photo": "photo"}
    one, two = (
        study.request({"negative_prompt": "cartoon"}, study.instances[0]) for study in (first.study, later)
    )
    assert one.image_id == two.image_id


def test_a_study_of_a_version_that_knew_no_tokens_goes_on_with_texts_as_they_are(folder: Path) -> None:
    first = resolved(folder, "[Cartoon, cartoon]")
    old = first.study.model_copy(update={"texts": None})
    pin(folder, Resolved(old, first.text, first.images, ()))
    again = resolved(folder, "[Cartoon, cartoon]").study
    assert again == old
