"""The toy world: small pictures of one subject on one background, drawn from a seed, with captions.

The bundled model was trained on such pictures and draws nothing else. A picture has 64×64 pixels; shapes
are drawn three times as large and shrunk, which smooths their edges. Positions and lengths are fractions of
the picture's side unless a docstring says otherwise, with x to the right and y down.

All randomness comes from a scene's seed, and every picture's draws are taken in one fixed order: a draw
more, less or elsewhere gives every seed another picture.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Subject = Literal["cat", "dog", "dragon", "fish", "bird", "tree", "house", "car"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "white", "grey"]
Style = Literal["realistic", "cartoon"]
Background = Literal["meadow", "beach", "night", "snow", "room", "city"]
Facing = Literal["right", "left", "by seed"]

SUBJECTS: tuple[Subject, ...] = get_args(Subject)
COLOURS: tuple[Colour, ...] = get_args(Colour)
STYLES: tuple[Style, ...] = get_args(Style)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
FACINGS: tuple[Facing, ...] = get_args(Facing)

SIDE = 64
"""Width and height of every picture, in pixels."""

RGB: TypeAlias = tuple[int, int, int]
Points: TypeAlias = NDArray[np.float64]
"""Corners of a polygon, shape (corners, 2)."""
Pixels: TypeAlias = NDArray[np.floating]
"""Numbers per pixel, shape (SIDE, SIDE, channels); colours are in 0..255, coverages in 0..1."""


class Placement(NamedTuple):
    """Where a subject stands: its centre, and half the side of the square that its shape is drawn in.

    `x` and `y` are in 0..1, `scale` in 0.1..1, all as fractions of the picture's side.
    """

    x: float
    y: float
    scale: float


class Box(NamedTuple):
    """A rectangle in the picture, in pixels and fractions of pixels, 0..SIDE."""

    left: float
    top: float
    right: float
    bottom: float


class Margin(NamedTuple):
    """How far a mask's rectangle reaches beyond a subject's square on each side, in pixels."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture.

    Without a subject the background stays empty, and colour and style have no effect. Without a placement
    the seed chooses one. `seed` is an integer of at least 0.
    """

    subject: Subject | None
    colour: Colour
    style: Style
    background: Background
    seed: int
    placement: Placement | None = None
    facing: Facing = "right"

    def __post_init__(self) -> None:
        if self.subject is not None:
            _require_known("subject", self.subject, SUBJECTS)
        _require_known("colour", self.colour, COLOURS)
        _require_known("style", self.style, STYLES)
        _require_known("background", self.background, BACKGROUNDS)
        _require_known("facing", self.facing, FACINGS)
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; seeds are integers from 0")
        if self.placement is not None:
            _require_in_picture(self.placement)


@dataclass(frozen=True)
class Rendered:
    """A drawn scene.

    `image` is RGB, SIDE×SIDE. `mask` is L, SIDE×SIDE: 255 where the subject and its outlines cover more
    than half of a pixel, 0 elsewhere. `box` is the smallest around the subject; `square` is the one that
    every subject's shape is drawn in at this place, so that it tells nothing of the subject. Both are None
    for an empty scene.
    """

    image: Image.Image
    mask: Image.Image
    box: Box | None
    square: Box | None
    caption: str


class Told(NamedTuple):
    """The attributes that a caption mentions; None where it keeps silent, `empty` where no subject is told."""

    subject: Subject | None = None
    colour: Colour | None = None
    style: Style | None = None
    background: Background | None = None
    empty: bool = False


class Caption(NamedTuple):
    """A caption's words and their meaning."""

    text: str
    told: Told


def render(scene: Scene) -> Rendered:
    """Draw a scene; the same scene gives the same bytes."""
    layout = random.Random(scene.seed)
    grain = np.random.default_rng(scene.seed)
    canvas = _paint_background(scene.background, layout)
    if scene.subject is None:
        empty = Image.new("L", (SIDE, SIDE), 0)
        return Rendered(_to_image(_shrink_background(canvas, grain)), empty, None, None, caption(scene))

    posed = _pose_subject(scene.subject, scene, layout)
    if scene.style == "cartoon":
        layer, ink = _paint_cartoon(posed), _ink_width(posed.pose)
    else:
        layer, ink = _paint_realistic(posed), 0
        canvas = _cast_shadow(canvas, posed.pose)
    behind = _shrink_background(canvas, grain)
    colours, coverage = _shrink_layer(layer)
    box = _bounds(posed.outlines, ink)
    if scene.style == "realistic":
        colours = colours * _light(coverage, box, grain)
    silhouette = np.where(coverage[..., 0] > 0.5, 255, 0).astype(np.uint8)
    picture = _to_image(colours + behind * (1 - coverage))
    square = _square(posed.pose.placement)
    return Rendered(picture, Image.fromarray(silhouette), box, square, caption(scene))


def box_mask(rendered: Rendered, margin: Margin) -> Image.Image:
    """Give an L mask, SIDE×SIDE: 255 in every pixel that the subject's square, widened by a margin, touches.

    A box around the subject itself would be wide for a car and high for a tree, and give away what it hides.
    """
    if rendered.square is None:
        raise ValueError("an empty scene has no subject to put a box around")
    return cover(rendered.square, margin)


def cover(box: Box, margin: Margin) -> Image.Image:
    """Give an L mask, SIDE×SIDE: 255 in every pixel that a box, widened by a margin, touches."""
    left, top = math.floor(box.left - margin.left), math.floor(box.top - margin.top)
    right, bottom = math.floor(box.right + margin.right), math.floor(box.bottom + margin.bottom)
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).rectangle((left, top, right, bottom), fill=255)
    return mask


def random_scene(seed: int) -> Scene:
    """Choose a scene as in training: dragons more often than other subjects, a few without a subject."""
    draw = random.Random(f"scene {seed}")
    subject: Subject | None = draw.choice(SUBJECTS)
    colour = draw.choice(COLOURS)
    style = draw.choice(STYLES)
    background = draw.choice(BACKGROUNDS)
    if draw.random() < 0.12:
        subject = "dragon"
    if draw.random() < 0.05:
        subject = None
    return Scene(subject, colour, style, background, seed)


def caption(scene: Scene) -> str:
    """Say what somebody might call the scene, by its seed: in other words, only in part, or even ''."""
    return describe(scene).text


def describe(scene: Scene) -> Caption:
    """Give the scene's caption, and what it tells."""
    draw = random.Random(f"caption {scene.seed}")
    if scene.subject is None:
        alone = draw.choice(_EMPTY_PLACES[scene.background])
        told = Told(background=scene.background, empty=True)
        return Caption(draw.choice(_EMPTY_SENTENCES).format(alone), told)

    told = _choose_what_to_tell(scene, draw)
    subject = _choose_word(_SUBJECT_WORDS, told.subject, draw)
    colour = _choose_word(_COLOUR_WORDS, told.colour, draw)
    style = _choose_word(_STYLE_WORDS, told.style, draw)
    place = _choose_word(_PLACE_WORDS, told.background, draw)
    if subject is None and colour is None:
        return Caption(_tell_surroundings(style, place, told.background, draw), told)

    noun = subject or draw.choice(_NAMELESS)
    phrase = f"{colour} {noun}" if colour else noun
    sentence = _tell_in_style(phrase, style, told.style, draw)
    if place is None:
        return Caption(sentence, told)
    comma = "," if draw.random() < 0.15 else ""
    return Caption(f"{sentence}{comma} {place}", told)


def _require_known(attribute: str, value: str, known: Sequence[str]) -> None:
    """Refuse a name that the toy world does not have."""
    if value not in known:
        raise ValueError(f"unknown {attribute} {value!r}; known are {', '.join(known)}")


def _require_in_picture(placement: Placement) -> None:
    """Refuse a placement that would leave nothing of the subject to see."""
    x, y, scale = placement
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"placement's centre ({x}, {y}) is outside the picture; x and y are in 0..1")
    if not 0.1 <= scale <= 1:
        raise ValueError(f"placement's scale {scale} is not in 0.1..1")


# Captions

# A word is chosen as often as it stands here.
_SUBJECT_WORDS: Mapping[str, tuple[str, ...]] = {
    "cat": (*["cat"] * 6, "kitten", "kitty"),
    "dog": (*["dog"] * 6, "puppy"),
    "dragon": ("dragon",),
    "fish": ("fish",),
    "bird": (*["bird"] * 6, "sparrow"),
    "tree": (*["tree"] * 6, "oak"),
    "house": (*["house"] * 6, "cottage", "hut"),
    "car": (*["car"] * 6, "automobile"),
}
_COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": (*["yellow"] * 4, "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": (*["purple"] * 3, "violet"),
    "white": ("white",),
    "grey": ("grey", "grey", "gray"),
}
_STYLE_WORDS: Mapping[str, tuple[str, ...]] = {
    "realistic": (*["realistic"] * 5, "photorealistic", "lifelike", "detailed"),
    "cartoon": (*["cartoon"] * 6, "comic", "flat"),
}
_STYLE_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "realistic": ("a photo of", "a photograph of", "a realistic photo of", "a realistic painting of"),
    "cartoon": ("a cartoon of", "a drawing of", "a cartoon drawing of", "an illustration of"),
}
_PLACE_WORDS: Mapping[str, tuple[str, ...]] = {
    "meadow": ("on a meadow", "in a meadow", "on the grass", "in a green field", "on a lawn"),
    "beach": ("on a beach", "on the beach", "by the sea", "on the sand"),
    "night": ("at night", "in the night", "under the stars", "at night under the moon", "in the dark"),
    "snow": ("in the snow", "in winter", "in the snowy mountains", "on snow"),
    "room": ("in a room", "indoors", "in a living room", "at home"),
    "city": ("in a city", "in the city", "on a street", "in town", "in front of skyscrapers"),
}
_EMPTY_PLACES: Mapping[str, tuple[str, ...]] = {
    "meadow": ("a meadow", "a green field", "grass"),
    "beach": ("a beach", "the sea", "sand and sea"),
    "night": ("the night sky", "night", "a starry night"),
    "snow": ("snow", "a snowy mountain", "winter"),
    "room": ("a room", "a living room", "an empty room"),
    "city": ("a city", "a street", "skyscrapers"),
}
_EMPTY_SENTENCES = ("{}", "a picture of {}", "{}, empty scene", "just {}")
_NAMELESS = ("thing", "object", "something", "subject")


def _choose_what_to_tell(scene: Scene, draw: random.Random) -> Told:
    """Leave attributes out, so that the model learns each word on its own too."""
    style = None if draw.random() < 0.25 else scene.style
    colour = None if draw.random() < 0.18 else scene.colour
    background = None if draw.random() < 0.5 else scene.background
    subject = None if draw.random() < 0.08 else scene.subject
    if draw.random() >= 0.06:
        return Told(subject, colour, style, background)
    # Styles three times: a single word of style is what a negative prompt usually is.
    only = draw.choice(("subject", "colour", "style", "style", "style", "background"))
    return Told(**{only: getattr(scene, only)})


def _choose_word(words: Mapping[str, tuple[str, ...]], name: str | None, draw: random.Random) -> str | None:
    """Choose a word for an attribute's name; None for an attribute that is not told."""
    return None if name is None else draw.choice(words[name])


def _tell_surroundings(
    style: str | None, place: str | None, background: Background | None, draw: random.Random
) -> str:
    """Word a caption that names neither subject nor colour."""
    if style is None:
        return "" if background is None else draw.choice(_EMPTY_PLACES[background])
    picture = draw.choice((style, style, f"{style} style", f"a {style} picture"))
    return picture if place is None else f"{picture} {place}"


def _tell_in_style(phrase: str, style_word: str | None, style: Style | None, draw: random.Random) -> str:
    """Put the style's word before a phrase such as 'red cat', behind it, or into 'a drawing of'."""
    form = draw.random()
    if style_word is None or style is None:
        sentence = _with_article(phrase) if draw.random() < 0.8 else phrase
        return draw.choice(("a picture of ", "an image of ")) + sentence if form < 0.15 else sentence
    if form < 0.2:
        return f"{draw.choice(_STYLE_PREFIXES[style])} {_with_article(phrase)}"
    if form < 0.3:
        return f"{phrase}, {style_word}{draw.choice(('', ' style'))}"
    sentence = f"{style_word} {phrase}"
    return _with_article(sentence) if draw.random() < 0.8 else sentence


def _with_article(phrase: str) -> str:
    """Put 'a' or 'an' before a phrase."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


# Colours

PALETTES: Mapping[Style, Mapping[Colour, RGB]] = {
    "cartoon": {
        "red": (235, 30, 40),
        "orange": (255, 140, 0),
        "yellow": (255, 225, 20),
        "green": (30, 190, 50),
        "blue": (30, 100, 245),
        "purple": (165, 40, 215),
        "white": (252, 252, 252),
        "grey": (140, 140, 148),
    },
    "realistic": {
        "red": (208, 60, 52),
        "orange": (236, 142, 64),
        "yellow": (238, 208, 92),
        "green": (66, 164, 78),
        "blue": (70, 118, 208),
        "purple": (148, 86, 186),
        "white": (240, 238, 232),
        "grey": (136, 136, 138),
    },
}
"""A subject's main colour in each style, before a seed's variation and the realistic style's light."""

_BROWN: RGB = (110, 72, 40)
_BLACK: RGB = (30, 30, 34)
_GOLD: RGB = (235, 170, 40)
_GLASS: RGB = (150, 205, 235)
_CHROME: RGB = (190, 190, 195)
_NOSE: RGB = (225, 120, 130)
_INK: RGB = (18, 14, 22)
_DUST: RGB = (90, 90, 90)  # mutes what is not in the subject's own colour

Tone = Literal["main", "dark", "light"]
"""One of the three tones of a subject's own colour."""


def _mix_tones(colour: Colour, style: Style, draw: random.Random) -> Mapping[Tone, RGB]:
    """Vary the palette's colour by the seed; give it, and it darker and lighter."""
    spread, darker, lighter = (8, 0.3, 0.5) if style == "cartoon" else (12, 0.34, 0.34)
    red, green, blue = (_clip(v + draw.randint(-spread, spread)) for v in PALETTES[style][colour])
    main = (int(red), int(green), int(blue))
    return {
        "main": main,
        "dark": _blend(main, (0, 0, 0), darker),
        "light": _blend(main, (255, 255, 255), lighter),
    }


def _blend(colour: RGB, other: RGB, share: float) -> RGB:
    """Mix a share (0..1) of another colour into a colour."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _clip(value: float) -> float:
    """Keep a colour value in 0..255."""
    return max(0, min(255, value))


# Shapes


class _Part(NamedTuple):
    """A polygon in a shape's own square, -1..1 each way, and a tone of the subject or a colour of its own."""

    outline: Points
    paint: Tone | RGB


class _Eye(NamedTuple):
    """A round eye in a shape's own square."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class _Shape:
    """A subject facing right: its parts from back to front, then its eyes on top."""

    parts: tuple[_Part, ...]
    eyes: tuple[_Eye, ...] = ()


def _polygon(*corners: tuple[float, float]) -> Points:
    """Give a polygon through the corners."""
    return np.array(corners, dtype=np.float64)


def _rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """Give a rectangle along the axes."""
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, radius_x: float, radius_y: float, tilt: float = 0.0) -> Points:
    """Give an ellipse as a polygon of 22 corners; `tilt` in radians, clockwise in the picture."""
    angles = np.linspace(0, 2 * math.pi, 22, endpoint=False)
    across, down = radius_x * np.cos(angles), radius_y * np.sin(angles)
    cos, sin = math.cos(tilt), math.sin(tilt)
    return np.stack([x + across * cos - down * sin, y + across * sin + down * cos], axis=1)


def _curve(
    start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float], count: int = 10
) -> Points:
    """Give a number of points along a quadratic Bézier curve."""
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) ** 2 * _polygon(start) + 2 * t * (1 - t) * _polygon(bend) + t * t * _polygon(end)


def _tube(line: Points, start_radius: float, end_radius: float) -> Points:
    """Give a tapering tube around a line, for tails, necks and legs."""
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    normals = np.stack([-along[:, 1], along[:, 0]], axis=1)
    radii = np.linspace(start_radius, end_radius, len(line))[:, None]
    return np.concatenate([line + normals * radii, (line - normals * radii)[::-1]])


_CAT = _Shape(
    parts=(
        _Part(_tube(_curve((-0.45, 0.75), (-1.15, 0.6), (-0.8, -0.15)), 0.13, 0.09), "main"),  # tail
        _Part(_ellipse(-0.12, 0.5, 0.5, 0.5), "main"),  # body
        _Part(_ellipse(0.12, 0.6, 0.25, 0.36), "light"),  # chest
        _Part(_polygon((-0.17, -0.55), (-0.12, -1.0), (0.22, -0.72)), "main"),  # ears
        _Part(_polygon((0.28, -0.72), (0.62, -1.0), (0.67, -0.52)), "main"),
        _Part(_ellipse(0.25, -0.3, 0.46, 0.42), "main"),  # head
        _Part(_polygon((0.18, -0.19), (0.32, -0.19), (0.25, -0.1)), _NOSE),
        _Part(_ellipse(-0.3, 0.93, 0.22, 0.09), "main"),  # paws
        _Part(_ellipse(0.2, 0.93, 0.22, 0.09), "main"),
    ),
    eyes=(_Eye(0.08, -0.38, 0.085), _Eye(0.42, -0.38, 0.085)),
)
_DOG = _Shape(
    parts=(
        _Part(_tube(_curve((-0.75, -0.05), (-1.0, -0.25), (-0.95, -0.6)), 0.09, 0.06), "main"),  # tail
        _Part(_rectangle(-0.72, 0.3, -0.53, 0.95), "main"),  # legs
        _Part(_rectangle(-0.42, 0.3, -0.23, 0.95), "main"),
        _Part(_rectangle(0.1, 0.3, 0.29, 0.95), "main"),
        _Part(_rectangle(0.38, 0.3, 0.57, 0.95), "main"),
        _Part(_ellipse(-0.12, 0.18, 0.7, 0.33), "main"),  # body
        _Part(_ellipse(0.42, -0.1, 0.27, 0.4, 0.5), "main"),  # neck
        _Part(_ellipse(0.55, -0.42, 0.33, 0.3), "main"),  # head
        _Part(_ellipse(0.85, -0.3, 0.2, 0.14), "light"),  # muzzle
        _Part(_ellipse(0.99, -0.35, 0.07, 0.07), _BLACK),  # nose
        _Part(_ellipse(0.33, -0.33, 0.12, 0.33, 0.2), "dark"),  # ear
    ),
    eyes=(_Eye(0.62, -0.5, 0.075),),
)
_DRAGON_FAR_WING = _polygon(
    (-0.05, 0.1), (-0.3, -0.95), (-0.62, -0.5), (-0.8, -0.62), (-0.78, -0.25), (-1.0, -0.2), (-0.55, 0.2)
)
_DRAGON_NEAR_WING = _polygon(
    (0.0, 0.1), (0.02, -0.75), (-0.28, -0.3), (-0.42, -0.38), (-0.38, 0.0), (-0.2, 0.25)
)
_DRAGON_HEAD = _polygon(
    (0.22, -0.42), (0.32, -0.7), (0.62, -0.7), (1.0, -0.5), (0.98, -0.36), (0.55, -0.28), (0.3, -0.25)
)
_DRAGON = _Shape(
    parts=(
        _Part(_DRAGON_FAR_WING, "dark"),
        _Part(_tube(_curve((-0.3, 0.5), (-0.95, 0.95), (-0.98, 0.35), 12), 0.2, 0.04), "main"),  # tail
        _Part(_polygon((-1.0, 0.45), (-1.0, 0.1), (-0.82, 0.32)), "dark"),  # its tip
        _Part(_rectangle(-0.38, 0.55, -0.16, 0.97), "main"),  # legs
        _Part(_rectangle(0.12, 0.55, 0.32, 0.97), "main"),
        _Part(_ellipse(-0.08, 0.42, 0.46, 0.34), "main"),  # body
        _Part(_ellipse(0.1, 0.5, 0.2, 0.22), "light"),  # belly
        _Part(_tube(_curve((0.15, 0.4), (0.5, 0.05), (0.38, -0.45)), 0.2, 0.13), "main"),  # neck
        _Part(_polygon((0.3, -0.62), (0.12, -0.98), (0.46, -0.72)), _GOLD),  # horns
        _Part(_polygon((0.46, -0.66), (0.42, -1.0), (0.6, -0.68)), _GOLD),
        _Part(_DRAGON_HEAD, "main"),
        _Part(_DRAGON_NEAR_WING, "dark"),
    ),
    eyes=(_Eye(0.52, -0.54, 0.07),),
)
_FISH = _Shape(
    parts=(
        _Part(_polygon((-0.45, 0.0), (-1.0, -0.5), (-0.82, 0), (-1.0, 0.5)), "dark"),  # tail
        _Part(_polygon((-0.2, -0.3), (0.05, -0.75), (0.4, -0.3)), "dark"),  # upper fin
        _Part(_polygon((-0.1, 0.35), (0.0, 0.7), (0.3, 0.35)), "dark"),  # lower fin
        _Part(_ellipse(0.17, 0, 0.78, 0.43), "main"),  # body
        _Part(_ellipse(0.25, 0.2, 0.55, 0.17), "light"),  # belly
        _Part(_polygon((0.05, 0.0), (-0.25, 0.18), (-0.2, -0.15)), "dark"),  # side fin
    ),
    eyes=(_Eye(0.6, -0.1, 0.085),),
)
_BIRD_WING = _polygon((0.15, 0.05), (-0.2, -0.15), (-0.72, -0.55), (-0.6, 0.1), (-0.2, 0.42))
_BIRD = _Shape(
    parts=(
        _Part(_tube(_polygon((-0.05, 0.5), (-0.08, 0.95)), 0.04, 0.04), _GOLD),  # legs
        _Part(_tube(_polygon((0.15, 0.5), (0.15, 0.95)), 0.04, 0.04), _GOLD),
        _Part(_polygon((-0.35, 0.15), (-1.0, 0.15), (-0.9, 0.45), (-0.3, 0.5)), "dark"),  # tail
        _Part(_ellipse(-0.02, 0.2, 0.55, 0.44, -0.25), "main"),  # body
        _Part(_ellipse(0.2, 0.35, 0.27, 0.25), "light"),  # belly
        _Part(_ellipse(0.42, -0.32, 0.36, 0.34), "main"),  # head
        _Part(_polygon((0.72, -0.42), (1.0, -0.24), (0.72, -0.16)), _GOLD),  # beak
        _Part(_BIRD_WING, "dark"),
    ),
    eyes=(_Eye(0.5, -0.42, 0.08),),
)
_TREE = _Shape(
    parts=(
        _Part(_polygon((-0.13, 0.1), (0.13, 0.1), (0.2, 0.98), (-0.2, 0.98)), _BROWN),  # trunk
        _Part(_ellipse(-0.42, 0.0, 0.45, 0.4), "main"),  # crown
        _Part(_ellipse(0.42, 0.0, 0.45, 0.4), "main"),
        _Part(_ellipse(0, -0.1, 0.5, 0.45), "main"),
        _Part(_ellipse(0, -0.52, 0.52, 0.46), "main"),
        _Part(_ellipse(-0.15, -0.6, 0.2, 0.16), "light"),  # light in the leaves
        _Part(_ellipse(0.4, -0.1, 0.15, 0.12), "light"),
    ),
)
_HOUSE = _Shape(
    parts=(
        _Part(_rectangle(0.35, -0.95, 0.58, -0.3), "dark"),  # chimney
        _Part(_rectangle(-0.72, -0.2, 0.72, 0.95), "main"),  # walls
        _Part(_polygon((-0.95, -0.15), (0, -0.95), (0.95, -0.15)), "dark"),  # roof
        _Part(_rectangle(-0.17, 0.35, 0.17, 0.95), _BROWN),  # door
        _Part(_rectangle(-0.58, 0.05, -0.28, 0.35), _GLASS),  # windows
        _Part(_rectangle(0.28, 0.05, 0.58, 0.35), _GLASS),
    ),
)
_CAR_BODY = _polygon((-0.98, 0.05), (0.75, 0.03), (0.98, 0.2), (0.98, 0.48), (-0.98, 0.48))
_CAR = _Shape(
    parts=(
        _Part(_polygon((-0.55, 0.05), (-0.38, -0.45), (0.3, -0.45), (0.58, 0.05)), "main"),  # cabin
        _Part(_polygon((-0.42, 0.02), (-0.3, -0.33), (-0.04, -0.33), (-0.04, 0.02)), _GLASS),
        _Part(_polygon((0.04, 0.02), (0.04, -0.33), (0.24, -0.33), (0.42, 0.02)), _GLASS),
        _Part(_CAR_BODY, "main"),
        _Part(_rectangle(0.85, 0.16, 0.98, 0.28), _GOLD),  # headlight
        _Part(_ellipse(-0.52, 0.48, 0.25, 0.25), _BLACK),  # wheels
        _Part(_ellipse(0.52, 0.48, 0.25, 0.25), _BLACK),
        _Part(_ellipse(-0.52, 0.48, 0.11, 0.11), _CHROME),
        _Part(_ellipse(0.52, 0.48, 0.11, 0.11), _CHROME),
    ),
)
_SHAPES: Mapping[Subject, _Shape] = {
    "cat": _CAT,
    "dog": _DOG,
    "dragon": _DRAGON,
    "fish": _FISH,
    "bird": _BIRD,
    "tree": _TREE,
    "house": _HOUSE,
    "car": _CAR,
}


# The large canvas

_FACTOR = 3
_CANVAS = SIDE * _FACTOR
"""Side of the canvas that pictures are shrunk from, in canvas pixels."""


@dataclass(frozen=True)
class _Pose:
    """A shape's place in the picture: centre, half width and half height, tilt in radians, side it faces."""

    placement: Placement
    half_width: float
    half_height: float
    tilt: float
    mirrored: bool

    def place(self, points: Points) -> Points:
        """Put points of a shape's own square into the picture; gives canvas pixels."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        across = self.half_width * (points[:, 0] * cos - points[:, 1] * sin)
        down = self.half_height * (points[:, 0] * sin + points[:, 1] * cos)
        x = self.placement.x + (-across if self.mirrored else across)
        return np.stack([x * _CANVAS, (self.placement.y + down) * _CANVAS], axis=1)


def _strike_pose(placement: Placement | None, facing: Facing, draw: random.Random) -> _Pose:
    """Choose a pose within the picture; the seed's tilt and proportions vary a given placement too."""
    # Each draw is taken whether it is used or not, so that choosing one thing leaves the others alone.
    scale = draw.uniform(0.27, 0.41)
    x = draw.uniform(scale + 0.02, 0.98 - scale)
    y = min(draw.uniform(0.5, 0.7), 0.98 - scale)
    placement = placement or Placement(x, y, scale)
    turned = draw.random() < 0.5
    return _Pose(
        placement=placement,
        half_width=placement.scale * draw.uniform(0.93, 1.07),
        half_height=placement.scale * draw.uniform(0.93, 1.07),
        tilt=draw.uniform(-0.08, 0.08),
        mirrored=turned if facing == "by seed" else facing == "left",
    )


def _bounds(outlines: Sequence[Points], ink: int) -> Box:
    """Measure the box around outlines drawn with a line of a width; both in canvas pixels."""
    corners = np.concatenate(outlines)
    first = (corners.min(axis=0) - ink / 2) / _FACTOR
    last = (corners.max(axis=0) + ink / 2) / _FACTOR
    return Box(*np.concatenate([first, last]).clip(0, SIDE).tolist())


def _square(placement: Placement) -> Box:
    """Give the square that a placement's shape is drawn in, but for tilt and proportions."""
    x, y, scale = placement
    return Box(*(SIDE * np.array([x - scale, y - scale, x + scale, y + scale])).clip(0, SIDE).tolist())


def _corners(outline: Points) -> list[tuple[float, float]]:
    """Turn an outline into what Pillow takes."""
    return [(float(x), float(y)) for x, y in outline]


def _disc(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """Give a disc's edges: left, top, right, bottom."""
    return x - radius, y - radius, x + radius, y + radius


# Subjects


@dataclass(frozen=True)
class _Posed:
    """A subject ready to be painted; `outlines` are its parts' in canvas pixels."""

    shape: _Shape
    pose: _Pose
    outlines: Sequence[Points]
    tones: Mapping[Tone, RGB]


def _pose_subject(subject: Subject, scene: Scene, draw: random.Random) -> _Posed:
    """Give a scene's subject its colour and its place."""
    tones = _mix_tones(scene.colour, scene.style, draw)
    pose = _strike_pose(scene.placement, scene.facing, draw)
    shape = _SHAPES[subject]
    return _Posed(shape, pose, [pose.place(part.outline) for part in shape.parts], tones)


def _ink_width(pose: _Pose) -> int:
    """Measure a cartoon's outer line in canvas pixels: thicker around large subjects."""
    return int(max(7, 0.1213 * pose.placement.scale * _CANVAS))


def _paint_cartoon(posed: _Posed) -> Image.Image:
    """Paint flat colours, inked around and within, and large eyes; gives an RGBA canvas."""
    layer, draw = _new_layer(posed)
    rings = [_corners(outline) for outline in posed.outlines]
    for ring in rings:
        # Two corners more than the polygon has close the line with a joint.
        draw.line(ring + ring[:2], fill=_INK, width=_ink_width(posed.pose), joint="curve")
    for part, ring in zip(posed.shape.parts, rings, strict=True):
        draw.polygon(ring, fill=posed.tones[part.paint] if isinstance(part.paint, str) else part.paint)
        # Main parts melt into one body; the others are set off from it.
        if part.paint != "main":
            draw.line(ring + ring[:1], fill=_INK, width=2)
    for eye in posed.shape.eyes:
        x, y, radius = _place_eye(eye, posed.pose)
        draw.ellipse(_disc(x, y, 1.75 * radius), fill=(255, 255, 255), outline=_INK, width=2)
        draw.ellipse(_disc(x, y, 0.875 * radius), fill=(10, 10, 14))
    return layer


def _paint_realistic(posed: _Posed) -> Image.Image:
    """Paint muted colours without lines, and small eyes, not lit yet; gives an RGBA canvas."""
    layer, draw = _new_layer(posed)
    for part, outline in zip(posed.shape.parts, posed.outlines, strict=True):
        muted = posed.tones[part.paint] if isinstance(part.paint, str) else _blend(part.paint, _DUST, 0.25)
        draw.polygon(_corners(outline), fill=muted)
    for eye in posed.shape.eyes:
        x, y, radius = _place_eye(eye, posed.pose)
        draw.ellipse(_disc(x, y, 0.75 * radius), fill=(22, 20, 18))
    return layer


def _new_layer(posed: _Posed) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make a transparent RGBA canvas and what draws on it."""
    layer = Image.new("RGBA", (_CANVAS, _CANVAS), (*posed.tones["main"], 0))
    return layer, ImageDraw.Draw(layer)


def _place_eye(eye: _Eye, pose: _Pose) -> tuple[float, float, float]:
    """Give an eye's x, y and radius in canvas pixels."""
    x, y = pose.place(np.array([[eye.x, eye.y]]))[0]
    return x, y, eye.radius * pose.half_width * _CANVAS


def _cast_shadow(canvas: Image.Image, pose: _Pose) -> Image.Image:
    """Lay a soft shadow under a subject."""
    x, y, _ = pose.placement
    edges = (
        (x - pose.half_width) * _CANVAS,
        (y + 0.82 * pose.half_height) * _CANVAS,
        (x + pose.half_width) * _CANVAS,
        (y + 1.1 * pose.half_height) * _CANVAS,
    )
    depth = Image.new("L", canvas.size, 0)
    ImageDraw.Draw(depth).ellipse(edges, fill=120)
    dark = Image.new("RGB", canvas.size, (15, 15, 20))
    return Image.composite(dark, canvas, depth.filter(ImageFilter.BoxBlur(6)))


def _light(coverage: Pixels, box: Box, grain: np.random.Generator) -> Pixels:
    """Say what to multiply a subject's pixels by, to make it round and lit from the upper left.

    The factors are about 1, shape (SIDE, SIDE, 1).
    """
    # A blurred silhouette rises from the edges to the middle like a body, and its slope tells the side.
    height = Image.fromarray((coverage[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3.2))
    down, right = np.gradient(np.asarray(height).astype(np.float32) / 255)
    relief = 1 + np.clip(4.2 * down + 2.4 * right, -0.38, 0.42)
    rows = (np.arange(SIDE)[:, None] - box.top) / (box.bottom - box.top + 1e-6)
    from_above = 1.12 - 0.26 * np.clip(rows, 0, 1)
    fur = grain.normal(0, 1, (SIDE, SIDE))
    light: Pixels = (relief * from_above + 0.02 * fur)[..., None]
    return light


# Pixels


def _shrink_background(canvas: Image.Image, grain: np.random.Generator) -> Pixels:
    """Bring a canvas to the picture's size and add a camera's grain."""
    small = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.float32)
    return small + grain.normal(0, 2, (SIDE, SIDE, 1))


def _shrink_layer(layer: Image.Image) -> tuple[Pixels, Pixels]:
    """Bring an RGBA canvas to the picture's size; gives colours weighted with coverage, and coverage."""
    large = np.asarray(layer).astype(np.float32)
    opacity = large[..., 3:] / 255
    return _average(large[..., :3] * opacity), _average(opacity)


def _average(large: Pixels) -> Pixels:
    """Average each block of canvas pixels that makes a pixel."""
    means: Pixels = large.reshape(SIDE, _FACTOR, SIDE, _FACTOR, -1).mean((1, 3))
    return means


def _to_image(colours: Pixels) -> Image.Image:
    """Cut colours to what an RGB image can show."""
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


# Backgrounds


class _Tint(NamedTuple):
    """A background colour that a seed varies by up to `spread` in each channel."""

    colour: RGB
    spread: float = 10


class _Gradient(NamedTuple):
    """The colours of sky (or wall) and ground, each from its top to its bottom."""

    sky: tuple[_Tint, _Tint]
    ground: tuple[_Tint, _Tint]


_GRADIENTS: Mapping[Background, _Gradient] = {
    "meadow": _Gradient(
        sky=(_Tint((120, 185, 240)), _Tint((205, 230, 250))),
        ground=(_Tint((150, 205, 90)), _Tint((110, 170, 60))),
    ),
    "beach": _Gradient(
        sky=(_Tint((130, 205, 245)), _Tint((215, 240, 250))),
        ground=(_Tint((240, 220, 165)), _Tint((225, 195, 130))),
    ),
    "night": _Gradient(
        sky=(_Tint((10, 12, 40), 5), _Tint((30, 35, 80), 8)),
        ground=(_Tint((24, 34, 38), 5), _Tint((14, 20, 24), 5)),
    ),
    "snow": _Gradient(
        sky=(_Tint((165, 185, 205)), _Tint((215, 222, 232))),
        ground=(_Tint((240, 244, 250), 5), _Tint((222, 230, 242), 5)),
    ),
    "room": _Gradient(
        sky=(_Tint((225, 195, 165)), _Tint((215, 180, 150))),
        ground=(_Tint((150, 98, 62)), _Tint((125, 78, 48))),
    ),
    "city": _Gradient(
        sky=(_Tint((180, 190, 205)), _Tint((225, 222, 215))),
        ground=(_Tint((112, 112, 118)), _Tint((84, 84, 92))),
    ),
}


class _Brush:
    """Draws on a canvas in fractions of its side; colours are cut to whole numbers."""

    def __init__(self, canvas: Image.Image) -> None:
        self._draw = ImageDraw.Draw(canvas)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Sequence[float]) -> None:
        """Fill a rectangle."""
        self._draw.rectangle((x0 * _CANVAS, y0 * _CANVAS, x1 * _CANVAS, y1 * _CANVAS), fill=_whole(colour))

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, colour: Sequence[float]) -> None:
        """Fill an ellipse."""
        self._draw.ellipse((x0 * _CANVAS, y0 * _CANVAS, x1 * _CANVAS, y1 * _CANVAS), fill=_whole(colour))

    def disc(self, x: float, y: float, radius: float, colour: Sequence[float]) -> None:
        """Fill a disc."""
        self.ellipse(*_disc(x, y, radius), colour)

    def polygon(self, corners: Iterable[tuple[float, float]], colour: Sequence[float]) -> None:
        """Fill a polygon."""
        self._draw.polygon([(x * _CANVAS, y * _CANVAS) for x, y in corners], fill=_whole(colour))


def _whole(colour: Sequence[float]) -> RGB:
    """Cut a colour to whole numbers."""
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _vary(tint: _Tint, draw: random.Random) -> tuple[float, ...]:
    """Vary a tint by the seed."""
    return tuple(_clip(value + draw.uniform(-tint.spread, tint.spread)) for value in tint.colour)


def _paint_background(background: Background, draw: random.Random) -> Image.Image:
    """Paint sky and ground, and what stands there; gives an RGB canvas."""
    horizon = draw.uniform(0.5, 0.66)
    canvas = _paint_sky_and_ground(_GRADIENTS[background], horizon, draw)
    _SCENERY[background](_Brush(canvas), horizon, draw)
    return canvas


def _paint_sky_and_ground(gradient: _Gradient, horizon: float, draw: random.Random) -> Image.Image:
    """Paint two gradients that meet at the horizon; gives an RGB canvas."""
    sky_rows = int(horizon * _CANVAS)
    sky = [_vary(tint, draw) for tint in gradient.sky]
    ground = [_vary(tint, draw) for tint in gradient.ground]
    column = np.concatenate([_fade(sky_rows, *sky), _fade(_CANVAS - sky_rows, *ground)])
    return Image.fromarray(np.repeat(column.astype(np.uint8), _CANVAS, axis=1))


def _fade(rows: int, top: Sequence[float], bottom: Sequence[float]) -> NDArray[np.float64]:
    """Give a column of colours from one to another, shape (rows, 1, 3)."""
    t = np.linspace(0, 1, rows)[:, None, None]
    return np.asarray(top) * (1 - t) + np.asarray(bottom) * t


def _paint_meadow(brush: _Brush, horizon: float, draw: random.Random) -> None:
    """Paint a hill, flowers and often a sun."""
    left = draw.uniform(-0.1, 0.5)
    hill = _vary(_Tint((125, 185, 80)), draw)
    brush.ellipse(left, horizon - 0.1, left + 0.8, horizon + 0.2, hill)
    petals = ((255, 255, 255), (250, 220, 60), (240, 120, 150))
    for _ in range(8):
        x, y = draw.random(), draw.uniform(horizon + 0.06, 1)
        brush.disc(x, y, 0.018, draw.choice(petals))
    _paint_sun(brush, (255, 235, 120), draw)


def _paint_beach(brush: _Brush, horizon: float, draw: random.Random) -> None:
    """Paint the sea, its surf and often a sun."""
    sea = _vary(_Tint((40, 130, 190)), draw)
    brush.rectangle(0, horizon - 0.17, 1, horizon, sea)
    brush.rectangle(0, horizon - 0.015, 1, horizon + 0.02, (240, 248, 250))
    _paint_sun(brush, (255, 225, 110), draw)


def _paint_sun(brush: _Brush, colour: RGB, draw: random.Random) -> None:
    """Paint a sun into one of the upper corners, more often than not."""
    if draw.random() < 0.6:
        brush.disc(draw.choice((0.12, 0.88)), 0.12, 0.09, colour)


def _paint_night(brush: _Brush, horizon: float, draw: random.Random) -> None:
    """Paint stars, and a moon into one of the upper corners."""
    for _ in range(9):
        x, y = draw.random(), draw.uniform(0, horizon - 0.03)
        brush.disc(x, y, 0.013, (240, 240, 210))
    brush.disc(draw.choice((0.13, 0.87)), 0.14, 0.1, (245, 240, 200))


def _paint_snow(brush: _Brush, horizon: float, draw: random.Random) -> None:
    """Paint two mountains, the higher one with a white top."""
    left = draw.uniform(-0.3, 0.3)
    peak = (left + 0.35, 0.18)
    brush.polygon([(left, horizon), peak, (left + 0.7, horizon)], (150, 165, 190))
    brush.polygon([(left + 0.24, 0.31), peak, (left + 0.46, 0.31)], (245, 248, 252))
    brush.polygon([(left + 0.5, horizon), (left + 0.85, 0.26), (left + 1.2, horizon)], (170, 182, 204))


def _paint_room(brush: _Brush, horizon: float, draw: random.Random) -> None:
    """Paint a window and a skirting board."""
    left = draw.choice((0.06, 0.62))
    pane = _vary(_Tint((160, 210, 245)), draw)
    frame = (250, 250, 250)
    brush.rectangle(left, 0.08, left + 0.32, 0.4, frame)
    brush.rectangle(left + 0.03, 0.11, left + 0.29, 0.37, pane)
    brush.rectangle(left + 0.15, 0.08, left + 0.17, 0.4, frame)
    brush.rectangle(0, horizon - 0.025, 1, horizon, (245, 235, 220))


def _paint_city(brush: _Brush, horizon: float, draw: random.Random) -> None:
    """Paint a row of high-rises behind a street."""
    walls = ((105, 110, 125), (135, 125, 120), (90, 100, 120))
    left = 0.0
    while left < 1:
        width = draw.uniform(0.13, 0.24)
        roof = draw.uniform(0.1, 0.36)
        brush.rectangle(left, roof, left + width - 0.01, horizon, draw.choice(walls))
        _paint_lit_windows(brush, left, left + width, roof, horizon)
        left += width
    middle = (horizon + 1) / 2
    brush.rectangle(0, middle - 0.01, 1, middle + 0.01, (225, 215, 120))


def _paint_lit_windows(brush: _Brush, left: float, right: float, top: float, bottom: float) -> None:
    """Paint the windows of a high-rise."""
    for y in np.arange(top + 0.04, bottom - 0.07, 0.11):
        for x in np.arange(left + 0.03, right - 0.06, 0.08):
            brush.rectangle(x, y, x + 0.04, y + 0.055, (225, 215, 150))


_SCENERY: Mapping[Background, Callable[[_Brush, float, random.Random], None]] = {
    "meadow": _paint_meadow,
    "beach": _paint_beach,
    "night": _paint_night,
    "snow": _paint_snow,
    "room": _paint_room,
    "city": _paint_city,
}
