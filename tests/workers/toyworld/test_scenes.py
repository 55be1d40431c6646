"""The toy world's pictures and captions obey their attributes, and the bundled CLIP recognises them."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import workers.toyworld
from studies import make_inputs
from workers.toyworld.scenes import (
    BACKGROUNDS,
    COLOURS,
    FACINGS,
    PALETTES,
    SIDE,
    STYLES,
    SUBJECTS,
    Box,
    Margin,
    Placement,
    Rendered,
    Scene,
    Style,
    Subject,
    box_mask,
    caption,
    describe,
    random_scene,
    render,
)
from workers.toyworld.training.data import HELD_OUT

# No deadline: how long a picture takes says nothing where processors are shared.
law = settings(deadline=None, max_examples=60)

some_placement = st.builds(Placement, x=st.floats(0, 1), y=st.floats(0, 1), scale=st.floats(0.1, 1))
any_placement = st.none() | some_placement
some_subject = st.sampled_from(SUBJECTS)


def scenes(
    subjects: st.SearchStrategy[Subject | None] = some_subject,
    styles: Sequence[Style] = STYLES,
    places: st.SearchStrategy[Placement | None] = any_placement,
) -> st.SearchStrategy[Scene]:
    return st.builds(
        Scene,
        subject=subjects,
        colour=st.sampled_from(COLOURS),
        style=st.sampled_from(styles),
        background=st.sampled_from(BACKGROUNDS),
        seed=st.integers(0, 2**64),
        placement=places,
        facing=st.sampled_from(FACINGS),
    )


any_scene = scenes(subjects=st.none() | some_subject)


def pixels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image).astype(np.float64)


def silhouette(rendered: Rendered) -> NDArray[np.bool_]:
    return np.asarray(rendered.mask) > 0


def box_of(rendered: Rendered) -> Box:
    assert rendered.box is not None
    return rendered.box


def within(box: Box) -> tuple[slice, slice]:
    """Every pixel that a box touches."""
    rows = slice(math.floor(box.top), math.ceil(box.bottom))
    return rows, slice(math.floor(box.left), math.ceil(box.right))


# Pictures


@law
@given(any_scene)
def test_a_scene_always_gives_the_same_bytes(scene: Scene) -> None:
    first, second = render(scene), render(replace(scene))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.mask.tobytes() == second.mask.tobytes()
    assert (first.box, first.caption) == (second.box, second.caption)


def test_another_seed_gives_another_picture() -> None:
    drawn = {render(Scene("dog", "blue", "cartoon", "room", seed)).image.tobytes() for seed in range(20)}
    assert len(drawn) == 20


@law
@given(any_scene)
def test_size_and_mode_are_the_same_for_any_scene(scene: Scene) -> None:
    rendered = render(scene)
    assert (rendered.image.mode, rendered.image.size) == ("RGB", (SIDE, SIDE))
    assert (rendered.mask.mode, rendered.mask.size) == ("L", (SIDE, SIDE))
    assert set(np.unique(np.asarray(rendered.mask))) <= {0, 255}
    assert rendered.caption == caption(scene)


@law
@given(scenes())
def test_the_mask_is_not_empty_and_lies_in_the_box(scene: Scene) -> None:
    rendered = render(scene)
    mask, box = silhouette(rendered), box_of(rendered)
    assert mask.any()
    assert 0 <= box.left < box.right <= SIDE
    assert 0 <= box.top < box.bottom <= SIDE
    mask[within(box)] = False
    assert not mask.any()


@law
@given(scenes(places=st.none()))
def test_the_box_is_tight_around_the_mask(scene: Scene) -> None:
    # Tips of wings and ears cover less than half of a pixel and are not in the mask.
    rendered = render(scene)
    assert np.abs(np.array(rendered.mask.getbbox()) - np.array(box_of(rendered))).max() < 2


@law
@given(scenes(places=st.none()))
def test_a_subject_that_the_seed_places_is_neither_a_speck_nor_everything(scene: Scene) -> None:
    assert 0.08 < silhouette(render(scene)).mean() < 0.55


@law
@given(scenes(styles=["cartoon"]))
def test_a_cartoon_leaves_the_background_outside_its_box_alone(scene: Scene) -> None:
    rendered, empty = render(scene), render(replace(scene, subject=None))
    changed = pixels(rendered.image) != pixels(empty.image)
    changed[within(box_of(rendered))] = False
    assert not changed.any()


@law
@given(scenes())
def test_the_subject_hides_the_background(scene: Scene) -> None:
    rendered, empty = render(scene), render(replace(scene, subject=None))
    changed = (pixels(rendered.image) != pixels(empty.image)).any(-1)
    assert changed[silhouette(rendered)].mean() > 0.95


@law
@given(any_scene)
def test_an_empty_scene_has_no_subject(scene: Scene) -> None:
    rendered = render(replace(scene, subject=None))
    assert rendered.box is None
    assert rendered.square is None
    assert not silhouette(rendered).any()
    with pytest.raises(ValueError, match="no subject to put a box around"):
        box_mask(rendered, Margin(1, 1, 1, 1))


@law
@given(scenes(), some_placement)
def test_a_placement_says_where_the_subject_is(scene: Scene, placement: Placement) -> None:
    box = box_of(render(replace(scene, placement=placement)))
    # Proportions vary by 7 %, a tilt adds some more, ink the rest.
    reach = 1.2 * SIDE * placement.scale + 3
    assert max(SIDE * placement.x - box.left, box.right - SIDE * placement.x) < reach
    assert max(SIDE * placement.y - box.top, box.bottom - SIDE * placement.y) < reach
    assert max(box.right - box.left, box.bottom - box.top) > 0.5 * min(reach, SIDE)


@pytest.mark.parametrize(("style", "share"), [("cartoon", 0.99), ("realistic", 0.88)])
def test_the_subjects_colour_is_nearest_to_its_own_in_the_palette(style: Style, share: float) -> None:
    names = list(PALETTES[style])
    palette = np.array([PALETTES[style][name] for name in names])
    drawn = [replace(scene, style=style) for scene in map(random_scene, range(400)) if scene.subject]
    right = Counter[str]()
    for scene in drawn:
        nearest = np.abs(palette - main_colour(render(scene))).sum(-1).argmin()
        right[scene.colour] += names[nearest] == scene.colour
    assert right.total() >= share * len(drawn)
    total = Counter(scene.colour for scene in drawn)
    assert all(right[name] >= 0.7 * total[name] for name in COLOURS), (right, total)


def main_colour(rendered: Rendered) -> NDArray[np.float64]:
    """The median colour of the silhouette's brighter half: the other half is ink, dark parts and shade."""
    inside = pixels(rendered.image)[silhouette(rendered)]
    brightness = inside.sum(-1)
    colour: NDArray[np.float64] = np.median(inside[brightness >= np.median(brightness)], axis=0)
    return colour


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_cartoon_is_inked_and_flat_where_a_realistic_subject_is_not(subject: Subject) -> None:
    for seed in range(5):
        scene = Scene(subject, "yellow", "cartoon", "beach", seed, Placement(0.5, 0.5, 0.4))
        cartoon, realistic = render(scene), render(replace(scene, style="realistic"))
        assert rim_brightness(cartoon) < 0.45 * rim_brightness(realistic)
        assert flat_share(cartoon) > 0.2
        assert flat_share(realistic) < 0.05


def rim_brightness(rendered: Rendered) -> float:
    """The mean brightness of the silhouette's outermost pixels, 0..255."""
    mask = np.pad(silhouette(rendered), 1)
    inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return float(pixels(rendered.image)[silhouette(rendered) & ~inner].mean())


def flat_share(rendered: Rendered) -> float:
    """The share of the silhouette's pixels that are exactly of its most frequent colour."""
    colours, counts = np.unique(np.asarray(rendered.image)[silhouette(rendered)], axis=0, return_counts=True)
    assert len(colours)
    return float(counts.max() / counts.sum())


@law
@given(scenes())
def test_facing_left_is_the_mirror_of_facing_right(scene: Scene) -> None:
    middle = replace(scene, placement=Placement(0.5, 0.5, 0.35), facing="right")
    right = silhouette(render(middle))
    left = silhouette(render(replace(middle, facing="left")))[:, ::-1]
    assert (left & right).sum() / (left | right).sum() > 0.9


@pytest.mark.parametrize("subject", sorted(set(SUBJECTS) - {"tree"}))
def test_left_is_not_right(subject: Subject) -> None:
    middle = Scene(subject, "red", "cartoon", "room", 3, Placement(0.5, 0.5, 0.4))
    right = silhouette(render(middle))
    left = silhouette(render(replace(middle, facing="left")))
    assert (left & right).sum() / (left | right).sum() < 0.9


def test_facing_by_seed_is_left_for_about_half_of_the_seeds() -> None:
    turned = 0
    for seed in range(100):
        scene = Scene("bird", "red", "cartoon", "night", seed, facing="by seed")
        drawn = render(scene).image.tobytes()
        right, left = (render(replace(scene, facing=way)).image.tobytes() for way in ("right", "left"))
        assert drawn in (left, right)
        turned += drawn == left
    assert 35 <= turned <= 65


@law
@given(scenes(), st.tuples(*[st.integers(0, 12)] * 4))
def test_the_box_mask_is_the_square_and_its_margin(scene: Scene, margin: tuple[int, int, int, int]) -> None:
    rendered = render(scene)
    assert rendered.square is not None
    mask, square = box_mask(rendered, Margin(*margin)), rendered.square
    assert (mask.mode, mask.size) == ("L", (SIDE, SIDE))
    left, top, right, bottom = mask.getbbox()  # type: ignore[misc]
    assert left == max(0, math.floor(square.left - margin[0]))
    assert top == max(0, math.floor(square.top - margin[1]))
    assert right == min(SIDE, math.floor(square.right + margin[2]) + 1)
    assert bottom == min(SIDE, math.floor(square.bottom + margin[3]) + 1)
    assert np.asarray(mask).sum() == 255 * (right - left) * (bottom - top)


@law
@given(scenes(), some_subject)
def test_the_square_gives_no_subject_away_and_holds_it(scene: Scene, other: Subject) -> None:
    rendered = render(scene)
    assert rendered.square == render(replace(scene, subject=other)).square
    assert rendered.square is not None
    # Proportions vary by 7 %, a tilt and ink reach out further.
    reach = 0.1 * (rendered.square.right - rendered.square.left) + 4
    mask = np.asarray(box_mask(rendered, Margin(*[reach] * 4)))
    assert mask[silhouette(rendered)].all()


@pytest.mark.parametrize("name", ["cat.png", "cat-mask.png"])
def test_the_studies_pictures_are_what_the_script_draws(name: str) -> None:
    drawn = make_inputs.draw_inputs()[name]
    with Image.open(Path(make_inputs.__file__).parent / name) as stored:
        assert stored.mode == drawn.mode
        assert np.array_equal(np.asarray(stored), np.asarray(drawn))


# Refusals


@pytest.mark.parametrize(
    ("attribute", "value", "known"),
    [
        ("subject", "cow", SUBJECTS),
        ("colour", "pink", COLOURS),
        ("style", "baroque", STYLES),
        ("background", "moon", BACKGROUNDS),
        ("facing", "up", FACINGS),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    attribute: str, value: str, known: Sequence[str]
) -> None:
    good: dict[str, Any] = {
        "subject": "cat",
        "colour": "red",
        "style": "cartoon",
        "background": "room",
        "seed": 0,
    }
    with pytest.raises(ValueError) as refusal:
        Scene(**good | {attribute: value})
    assert str(refusal.value) == f"unknown {attribute} {value!r}; known are {', '.join(known)}"


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        (Placement(-0.1, 0.5, 0.3), r"centre \(-0.1, 0.5\) is outside the picture"),
        (Placement(0.5, 1.1, 0.3), r"centre \(0.5, 1.1\) is outside the picture"),
        (Placement(0.5, 0.5, 0.05), "scale 0.05 is not in 0.1..1"),
        (Placement(0.5, 0.5, math.nan), "scale nan is not in 0.1..1"),
    ],
)
def test_a_placement_that_hides_the_subject_is_refused(placement: Placement, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Scene("cat", "red", "cartoon", "room", 0, placement)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed -1 is negative"):
        Scene("cat", "red", "cartoon", "room", -1)


# Captions

MEANINGS: Mapping[str, str] = {
    **{name: name for name in (*SUBJECTS, *COLOURS, *STYLES, *BACKGROUNDS)},
    **dict.fromkeys(("kitten", "kitty"), "cat"),
    "puppy": "dog",
    "sparrow": "bird",
    "oak": "tree",
    **dict.fromkeys(("cottage", "hut"), "house"),
    "automobile": "car",
    "golden": "yellow",
    "violet": "purple",
    "gray": "grey",
    **dict.fromkeys(("photorealistic", "lifelike", "detailed", "photo", "photograph"), "realistic"),
    **dict.fromkeys(("comic", "flat", "drawing", "illustration"), "cartoon"),
    **dict.fromkeys(("grass", "field", "lawn"), "meadow"),
    **dict.fromkeys(("sea", "sand"), "beach"),
    **dict.fromkeys(("stars", "starry", "moon", "dark", "sky"), "night"),
    **dict.fromkeys(("winter", "snowy", "mountain", "mountains"), "snow"),
    **dict.fromkeys(("indoors", "home", "living"), "room"),
    **dict.fromkeys(("street", "town", "skyscrapers"), "city"),
}
FILLERS = frozenset(("a", "an", "the", "of", "on", "in", "at", "by", "and", "under", "front")) | frozenset(
    (
        "image",
        "picture",
        "painting",
        "style",
        "just",
        "empty",
        "scene",
        "thing",
        "object",
        "something",
        "subject",
    )
)


def meanings(text: str) -> set[str]:
    """The attributes that a caption's words stand for; fails on a word that means nothing known."""
    # A field is green whatever the subject's colour.
    words = re.findall(r"\w+", text.replace("green field", "field"))
    assert all(word in MEANINGS or word in FILLERS for word in words), text
    return {MEANINGS[word] for word in words if word in MEANINGS}


@settings(deadline=None, max_examples=400)
@given(any_scene)
def test_a_description_tells_what_its_words_mean(scene: Scene) -> None:
    text, told = describe(scene)
    assert text == caption(scene)
    assert told.empty == (scene.subject is None)
    assert meanings(text) == {value for value in told[:4] if value is not None}


@settings(deadline=None, max_examples=400)
@given(any_scene)
def test_captions_mention_only_true_attributes(scene: Scene) -> None:
    if scene.subject is None:
        assert meanings(caption(scene)) == {scene.background}
    else:
        assert meanings(caption(scene)) <= {scene.subject, scene.colour, scene.style, scene.background}


def test_captions_leave_each_attribute_out_now_and_then() -> None:
    told = Counter[str]()
    count = 4000
    for seed in range(count):
        mentioned = meanings(caption(Scene("dragon", "green", "cartoon", "city", seed)))
        told.update(mentioned or {"nothing"})
    shares = {name: told[name] / count for name in ("dragon", "green", "cartoon", "city", "nothing")}
    expected = {"dragon": 0.875, "green": 0.78, "cartoon": 0.735, "city": 0.48, "nothing": 0.0025}
    assert shares == pytest.approx(expected, abs=0.03)
    assert told["nothing"] > 0


def test_captions_use_the_right_article() -> None:
    for seed in range(500):
        text = caption(Scene("tree", "orange", "realistic", "snow", seed))
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def test_captions_do_not_change_between_processes() -> None:
    cats = [Scene("cat", "orange", "realistic", "meadow", seed) for seed in (0, 4, 7)]
    assert [caption(cat) for cat in cats] == [
        "orange cat, photorealistic on the grass",
        "a realistic cat in a green field",
        "realistic",
    ]


# Random scenes


def test_random_scenes_have_every_attribute_and_more_dragons() -> None:
    drawn = [random_scene(seed) for seed in range(2000)]
    assert drawn[:50] == [random_scene(seed) for seed in range(50)]
    subjects = Counter(scene.subject for scene in drawn)
    assert {None, *SUBJECTS} == set(subjects)
    assert subjects["dragon"] > 1.5 * max(subjects[name] for name in SUBJECTS if name != "dragon")
    assert 0.03 < subjects[None] / len(drawn) < 0.07
    assert {scene.colour for scene in drawn} == set(COLOURS)
    assert {scene.style for scene in drawn} == set(STYLES)
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)


# The bundled CLIP


@pytest.fixture(scope="module")
def embed() -> tuple[
    Callable[[Sequence[Image.Image]], torch.Tensor], Callable[[Sequence[str]], torch.Tensor]
]:
    """Unit embeddings of images and of texts, shape (count, 64)."""
    folder = Path(workers.toyworld.__file__).parent / "model" / "clip"
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder)

    @torch.no_grad()
    def of_images(images: Sequence[Image.Image]) -> torch.Tensor:
        inputs = processor.image_processor(images=list(images), return_tensors="pt")
        found = clip.visual_projection(clip.vision_model(**inputs).pooler_output)
        return torch.nn.functional.normalize(found, dim=-1)

    @torch.no_grad()
    def of_texts(texts: Sequence[str]) -> torch.Tensor:
        inputs = processor.tokenizer(list(texts), padding=True, return_tensors="pt")
        found = clip.text_projection(clip.text_model(**inputs).pooler_output)
        return torch.nn.functional.normalize(found, dim=-1)

    return of_images, of_texts


def test_the_bundled_clip_recognises_what_is_drawn(embed: Any) -> None:
    of_images, of_texts = embed
    drawn = [
        scene for scene in map(random_scene, range(HELD_OUT, HELD_OUT + 320)) if scene.subject is not None
    ]
    images = of_images([render(scene).image for scene in drawn])

    def accuracy(truth: Sequence[str | None], names: Sequence[str], prompt: str) -> float:
        likeness = images @ of_texts([prompt.format(name) for name in names]).T
        guesses = [names[int(index)] for index in likeness.argmax(1)]
        return float(np.mean([guess == true for guess, true in zip(guesses, truth, strict=True)]))

    found = {
        "subject": accuracy([scene.subject for scene in drawn], SUBJECTS, "a {}"),
        "colour": accuracy([scene.colour for scene in drawn], COLOURS, "a {} object"),
        "style": accuracy([scene.style for scene in drawn], STYLES, "a {} picture"),
    }
    assert len(drawn) >= 160
    assert found["subject"] >= 0.95, found
    assert found["colour"] >= 0.97, found
    assert found["style"] >= 0.97, found
