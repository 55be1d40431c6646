"""What a study file comes to before anything runs: which texts and which inputs are one."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from orchestrator.catalog.schema import image_row
from orchestrator.catalog.tables import Tables
from orchestrator.plan import surveyed
from orchestrator.pool import Done
from orchestrator.resolving import Resolved, resolve
from orchestrator.study_folder import StudyFolder
from search_spaces.requests import Failed
from workers.worker import Provenance

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


def copies(folder: Path, seeds: str = "2", **more: str) -> Resolved:
    """A cat by two names and in two formats, and a prompt in three spellings; `more` inputs by their texts."""
    with Image.open(folder / "cat.png") as cat:
        cat.save(folder / "copy.webp", lossless=True)
    shutil.copy(folder / "cat.png", folder / "copy.png")
    cats = [(name, "a green dragon") for name in ("cat.png", "copy.png", "copy.webp")]
    spelled = [("cat.png", "A Green Dragon"), ("cat.png", " a  green dragon ")]
    inputs = [
        f"{{image: {image}, mask: cat-mask.png, prompt: {prompt!r}}}" for image, prompt in cats + spelled
    ]
    inputs += [
        f"{{image: cat.png, mask: cat-mask.png, prompt: {p!r}, score_text: {t!r}}}" for p, t in more.items()
    ]
    text = f"study: words\nmodel: toyworld\ninputs: [{', '.join(inputs)}]\nseeds: {seeds}\n"
    (folder / "words.yaml").write_text(text + "space: {guidance_scale: [3, 7.5]}\n", encoding="utf-8")
    return resolve(folder / "words.yaml", str(folder / "runs"), lambda: 0)


def test_inputs_that_draw_the_same_pictures_are_one_and_said_once(folder: Path) -> None:
    found = copies(folder)
    assert len(found.study.instances) == 2
    assert [note for note in found.warnings if "inputs" in note] == [
        "inputs[1], inputs[2], inputs[3], inputs[4] draw the same pictures as inputs[0], to be judged by the same "
        "text: counted once"
    ]
    pin(folder, found)
    assert copies(folder).study == found.study


def test_the_same_pictures_judged_by_another_text_are_another_instance(folder: Path) -> None:
    more = {
        "A green  dragon": "a blue dragon",
        "a GREEN dragon": "a Blue Dragon",
        "a red dragon": "a green dragon",
    }
    found = copies(folder, **more)
    assert [item.score_text for item in found.study.inputs] == [
        "a green dragon",
        "a blue dragon",
        "a green dragon",
    ]
    one, other = (
        found.study.request({"guidance_scale": 3}, instance) for instance in found.study.instances[:2]
    )
    assert one.image_id == other.image_id, "which is drawn once"


@pytest.mark.parametrize(
    ("prompt", "counted"),
    [
        ("[a green dragon, a red dragon]", 1),
        ("{values: [a red dragon], when: {guidance_scale: 3}}", 2),
    ],
)
def test_prompts_of_inputs_that_a_swept_one_replaces_make_no_other_instance(
    folder: Path, prompt: str, counted: int
) -> None:
    each = "image: cat.png, mask: cat-mask.png, score_text: a dragon"
    inputs = f"[{{{each}, prompt: a green dragon}}, {{{each}, prompt: a red dragon}}]"
    text = f"study: words\nmodel: toyworld\ninputs: {inputs}\nseeds: 1\n"
    space = f"space: {{guidance_scale: [3, 5], prompt: {prompt}}}\n"
    (folder / "words.yaml").write_text(text + space, encoding="utf-8")
    found = resolve(folder / "words.yaml", str(folder / "runs"), lambda: 0)
    assert len(found.study.instances) == counted
    said = [note for note in found.warnings if "inputs[1] draws the same pictures as inputs[0]" in note]
    assert len(said) == 2 - counted


def test_a_study_that_was_begun_with_copies_goes_on_with_them(folder: Path) -> None:
    found = copies(folder)
    prompts = ["a green dragon"] * 3 + ["A Green Dragon", " a  green dragon "]
    listed = tuple(found.study.inputs[0].model_copy(update={"prompt": p, "score_text": p}) for p in prompts)
    old = found.study.model_copy(update={"inputs": listed, "texts": None, "seeds": (3, 2**32 + 3)})
    pin(folder, Resolved(old, found.text, found.images, ()))
    again = copies(folder, seeds="[3, 4294967299, 5]").study
    assert [item.prompt for item in again.inputs] == prompts
    assert again.seeds == (3, 2**32 + 3, 5)


def test_seeds_of_the_same_noise_are_one(folder: Path) -> None:
    found = copies(folder, seeds="[3, 4294967299, 5, 8589934595]")
    assert found.study.seeds == (3, 5)
    (said,) = [note for note in found.warnings if "noise" in note]
    assert said.startswith("seed 4294967299 draws the same noise as 3")
    assert "2 such seeds count once" in said
    one, two = (torch.Generator().manual_seed(seed) for seed in (3, 2**32 + 3))
    assert torch.equal(torch.randn(64, generator=one), torch.randn(64, generator=two))


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
    assert alike.endswith("they draw the same pictures")


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


def test_a_new_study_finds_what_a_catalog_has_of_other_spellings(folder: Path) -> None:
    drawn = resolved(folder, "[CARTOON]", ("A green Dragon",)).study
    tables = Tables(folder / "runs")
    request = drawn.request({"negative_prompt": "CARTOON"}, drawn.instances[0])
    done = Done(request, Failed("infeasible", "black"), Provenance("", 0, 0, None, 0.0, 0.0), None)
    tables.append("images", [image_row(done, drawn)])
    other = resolved(folder, "[Cartoon, cartoon, photo]").study
    assert other.texts == {
        "a green dragon": "A green Dragon",
        "Cartoon": "CARTOON",
        "cartoon": "CARTOON",
        "photo": "photo",
    }
    again = other.request({"negative_prompt": "cartoon"}, other.instances[0])
    assert (again.image_id, again.prompt) == (request.image_id, "a green dragon")


def test_a_study_of_a_version_that_knew_no_tokens_goes_on_with_texts_as_they_are(folder: Path) -> None:
    first = resolved(folder, "[Cartoon, cartoon]")
    old = first.study.model_copy(update={"texts": None})
    pin(folder, Resolved(old, first.text, first.images, ()))
    again = resolved(folder, "[Cartoon, cartoon]").study
    assert again == old
