"""The contact sheet: one labelled picture that shows what two settings do, and which values won.

`plan_sheet` decides what stands where, as plain data; `draw_sheet` draws the plan.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from orchestrator.report.results import Results, TrialResult
from orchestrator.report.standing import part_text
from orchestrator.report.statistics import (
    Nobody,
    Ranked,
    TrialLookup,
    axes_by_effect,
    best,
    decimals,
    estimate_text,
    ranking,
    trial_lookup,
)
from orchestrator.report.values import Wording, plain_text, shorten
from search_spaces.errors import InputError, did_you_mean
from search_spaces.estimates import CONFIDENCE
from search_spaces.requests import Settings, Value

MOSAIC = 4  # instances in one cell at most
COLUMN_LABEL, ROW_LABEL = 48, 100  # characters, about, that there is room for
BEST_TRIALS, BEST_INSTANCES = 12, 8  # rows and columns where the trials form no grid

# all in pixels
LONGEST_SIDE = 8000  # what image viewers and browsers still open gladly
SMALLEST_CELL, LARGEST_CELL = 128, 256  # unless the longest side forces less
MARGIN, GAP, FRAME, SEAM = 20, 16, 4, 2  # SEAM: between the tiles of a cell
SMALLEST_TILE = 8
CAPTION, HEADINGS = 26, 300  # the room under a cell; at most above the grid
LEAST_COLUMN, LEAST_WIDTH = 96, 520  # so that captions and titles have room over narrow pictures

WHITE, INK, FAINT, GREY, ACCENT = (
    (255, 255, 255),
    (25, 25, 25),
    (105, 105, 105),
    (216, 218, 222),
    (214, 105, 0),
)

Picture = Callable[[str], Image.Image]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Mark = Literal["best", "tied", ""]


@dataclass(frozen=True)
class Tile:
    """One picture by its image_id; where there is none, the words that a grey tile shows instead."""

    image: str | None
    words: str = ""


@dataclass(frozen=True)
class Cell:
    """One settings: its first instances in order, its caption, and whether it is the best or ties with it.

    `mark` is drawn as a frame; `star` puts a star before the caption.
    """

    tiles: tuple[Tile, ...]
    caption: str
    mark: Mark = ""
    star: bool = False


@dataclass(frozen=True)
class Sheet:
    """What stands where: `cells[row][column]`, under the labels `columns` and beside the labels `rows`.

    `x` and `y` name what the columns and rows are values of; "" for none.
    """

    title: str
    note: str
    x: str
    y: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


def contact_sheet(
    results: Results, picture: Picture, x: str | None = None, y: str | None = None, title: str | None = None
) -> Image.Image:
    """The contact sheet of a study, mode RGB, neither side longer than 8000 px.

    `picture` gives the picture of an image_id; what it raises is passed on. `x` and `y` are swept settings;
    those not given are the ones with the largest effect. `title` stands above the line that names the
    settings. Raises InputError for an `x` or `y` that is not swept, and where both are the same.
    """
    return draw_sheet(plan_sheet(results, x, y), picture, title)


def plan_sheet(results: Results, x: str | None = None, y: str | None = None) -> Sheet:
    """The sheet over axes `x` and `y`, the other settings held as the best trial has them.

    Where less than half of its cells have a trial, as after a search that samples, the best trials instead,
    one a row, their instances as columns. Raises InputError as `contact_sheet` does.
    """
    axes = _chosen_axes(results, x, y)
    if not results.trials:
        cell = Cell((Tile(None, "not run"),), "")
        return Sheet(
            plain_text(results.study), "no settings were tried yet", "", "", ("",), ("",), ((cell,),)
        )
    study = _study(results)
    columns, rows = (_values(results, axis) for axis in axes)
    grid = [[{**study.anchor, **row, **column} for column in columns] for row in rows]
    found = [study.lookup.own(settings) or study.lookup.twin(settings) for row in grid for settings in row]
    if None not in axes and sum(trial is not None for trial in found) < len(found) / 2:
        return _best_trials(study)
    # A value that only settings off this sheet have, such as the model's own, gets no row of empty cells.
    kept = [
        [
            study.lookup.own(settings) is not None or study.lookup.twin(settings) is not None
            for settings in row
        ]
        for row in grid
    ]
    rows = [row for row, there in zip(rows, kept, strict=True) if any(there)]
    columns = [column for column, there in zip(columns, zip(*kept, strict=True), strict=True) if any(there)]
    grid = [[{**study.anchor, **row, **column} for column in columns] for row in rows]
    cells = tuple(tuple(_grid_cell(study, settings) for settings in row) for row in grid)
    return Sheet(
        title=_grid_title(study, axes),
        note=_note(study, cells),
        x=plain_text(axes[0] or ""),
        y=plain_text(axes[1] or ""),
        columns=_labels(results, axes[0], columns, COLUMN_LABEL),
        rows=_labels(results, axes[1], rows, ROW_LABEL),
        cells=cells,
    )


def _chosen_axes(results: Results, x: str | None, y: str | None) -> tuple[str | None, str | None]:
    """What was asked for, completed by the axes of the largest effect, as far as there are any."""
    for option, name in (("x", x), ("y", y)):
        if name is not None and name not in results.axes:
            known = did_you_mean(name, results.axes) or "; it sweeps nothing"
            raise InputError(f"{option}: study {results.study!r} does not sweep {name!r}{known}")
    if x is not None and x == y:
        raise InputError(
            f"x and y are both {x!r}; give two different settings, or one and let the other be chosen"
        )
    free = iter([name for name in axes_by_effect(results) if name not in (x, y)])
    return x or next(free, None), y or next(free, None)


@dataclass(frozen=True)
class _Study:
    """The results with what every cell needs of them; `anchor` holds the axes that are not on the sheet."""

    results: Results
    ranked: tuple[Ranked, ...]
    best: Ranked | Nobody
    by_number: Mapping[int, Ranked]
    lookup: TrialLookup
    anchor: Settings
    decimals: int


def _study(results: Results) -> _Study:
    ranked = ranking(results)
    return _Study(
        results=results,
        ranked=ranked,
        best=best(results, ranked),
        by_number={entry.trial.number: entry for entry in ranked},
        lookup=trial_lookup(results, ranked),
        anchor=(ranked[0].trial if ranked else _furthest(results)[0]).settings,
        decimals=decimals([entry.score for entry in ranked]),
    )


def _furthest(results: Results) -> list[TrialResult]:
    """The trials with the most scores first: what there is to see while none is complete."""
    return sorted(results.trials, key=lambda trial: (-len(trial.scores), trial.number))


def _values(results: Results, axis: str | None) -> list[dict[str, Value]]:
    # `axes` comes from domains, whose points are all of the type Value
    return [{axis: value} for value in results.axes[axis]] if axis is not None else [{}]  # type: ignore[dict-item]


def _labels(results: Results, axis: str | None, settings: Sequence[Settings], limit: int) -> tuple[str, ...]:
    """What stands at the columns or rows of an axis; one empty label where there is none."""
    if axis is None:
        return ("",) * len(settings)
    wording = Wording({axis: results.axes[axis]}, limit)
    return tuple(wording.value(axis, each[axis]) for each in settings)


def _grid_title(study: _Study, axes: tuple[str | None, str | None]) -> str:
    title = " × ".join(plain_text(axis) for axis in axes if axis) or plain_text(study.results.study)
    held = {name: value for name, value in study.anchor.items() if name not in axes}
    return f"{title} at {Wording(study.results.axes, limit=40).settings(held)}" if held else title


def _note(study: _Study, cells: Sequence[Sequence[Cell]]) -> str:
    """What the captions are, and what the frames on this sheet say."""
    results = study.results
    instances, objective, part = results.instances, plain_text(results.objective), part_text(results)
    so_far = "" if part is None else f". So far {part}"
    if not study.ranked:
        return f"no settings were judged on all of {instances} instances, so there is no best one yet{so_far}"
    marks = {cell.mark for row in cells for cell in row}
    score = f"{objective} of one instance"
    if instances > 1:
        score = f"mean {objective} ± {CONFIDENCE:.0%} over {instances} instances"
    if isinstance(study.best, Nobody):
        return f"{score}. No best{' yet' if results.is_partial else ''}: {study.best.why}{so_far}"
    word = "best so far" if results.is_partial else "best"
    framed = f". Thick frame: {word}" if "best" in marks else ""
    tied = f". Thin frame: cannot be told apart from the {word}" if "tied" in marks else ""
    return f"{score}{framed}{tied}{so_far}"


def _grid_cell(study: _Study, settings: Settings) -> Cell:
    """The cell of settings: their own trial's, else their twin's, else an empty one."""
    own = study.lookup.own(settings)
    if own:
        return _cell(study, own)
    twin = study.lookup.twin(settings)
    if twin is None:
        return Cell((Tile(None, "not run"),), "")
    cell = _cell(study, twin)
    # the frame of the best stays with the settings that the report names
    return Cell(cell.tiles, f"{cell.caption} (twin)", "tied" if cell.mark else "")


def _cell(study: _Study, trial: TrialResult) -> Cell:
    instances = study.results.instances
    tiles = tuple(_tile(trial, instance) for instance in range(min(instances, MOSAIC)))
    if len(set(tiles)) == 1 and tiles[0].image is None:
        tiles = tiles[:1]  # a reason is said once
    mark = _mark(study, trial)
    return Cell(tiles, _score_text(study, trial), mark, star=mark == "best")


def _tile(trial: TrialResult, instance: int) -> Tile:
    if instance in trial.images:
        return Tile(trial.images[instance])
    reason = trial.failures.get(instance)
    return Tile(None, "not run" if reason is None else f"failed: {shorten(plain_text(reason), 100)}")


def _score_text(study: _Study, trial: TrialResult) -> str:
    """The mean with its interval; for a trial without a mean, why it has none."""
    entry = study.by_number.get(trial.number)
    if entry:
        return estimate_text(entry.score, study.decimals)
    if trial.failures:
        return f"{len(trial.failures)} of {study.results.instances} failed"
    if not trial.scores and trial.looks:
        return "looked at only"
    return f"{len(trial.scores)} of {study.results.instances} judged"


def _mark(study: _Study, trial: TrialResult) -> Mark:
    entry = study.by_number.get(trial.number)
    if entry is None or not entry.tied or isinstance(study.best, Nobody):
        return ""
    return "best" if entry.rank == 1 else "tied"


def _best_trials(study: _Study) -> Sheet:
    """The best trials as rows; without a complete one, those that came furthest."""
    results = study.results
    shown = ([entry.trial for entry in study.ranked] or _furthest(results))[:BEST_TRIALS]
    instances = range(min(results.instances, BEST_INSTANCES))
    cells = tuple(tuple(_instance_cell(study, trial, i) for i in instances) for trial in shown)
    which = "most judged"
    if study.ranked:
        which = "of the largest means," if isinstance(study.best, Nobody) else "best"
    return Sheet(
        title=f"the {len(shown)} {which} of {len(results.trials)} settings",
        note=_note(study, cells),
        x="instance",
        y="",
        columns=tuple(str(results.study_numbers[instance]) for instance in instances),
        rows=tuple(_trial_label(study, trial) for trial in shown),
        cells=cells,
    )


def _trial_label(study: _Study, trial: TrialResult) -> str:
    mark = _mark(study, trial)
    first = f"{_score_text(study, trial)}{f' {mark}' if mark else ''}"
    wording = study.results.wording
    return "\n".join([first, *(wording.settings({name: value}) for name, value in trial.settings.items())])


def _instance_cell(study: _Study, trial: TrialResult, instance: int) -> Cell:
    score = trial.scores.get(instance)
    caption = "" if score is None else f"{score:.{study.decimals}f}"
    return Cell((_tile(trial, instance),), caption, _mark(study, trial))


@dataclass(frozen=True)
class _Layout:
    """A sheet's sizes in pixels and its wrapped labels. A cell is `across` × `down` tiles over a caption."""

    tile: tuple[int, int]
    across: int
    down: int
    head_height: int
    column_width: int
    row_height: int
    label_width: int
    label_font: Font
    caption_font: Font
    column_labels: tuple[tuple[str, ...], ...]
    row_labels: tuple[tuple[str, ...], ...]

    @property
    def grid_width(self) -> int:
        """From the left edge of the row labels to the right edge of the last column."""
        return self.label_width + len(self.column_labels) * (self.column_width + GAP) - GAP

    @property
    def grid_height(self) -> int:
        """From the top of the first row to the bottom of the last."""
        return len(self.row_labels) * (self.row_height + GAP) - GAP

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a cell's pictures."""
        width, height = self.tile
        return self.across * (width + SEAM) - SEAM, self.down * (height + SEAM) - SEAM

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a cell, from the left of the row labels and the top of the first row."""
        return self.label_width + column * (self.column_width + GAP), row * (self.row_height + GAP)


def draw_sheet(sheet: Sheet, picture: Picture, title: str | None = None) -> Image.Image:
    """The drawing of a plan, mode RGB, neither side longer than 8000 px."""
    layout = _layout(sheet, _first_size(sheet, picture))
    width = max(layout.grid_width, LEAST_WIDTH)
    heading = _heading(sheet, layout, title, width)
    head = MARGIN + sum(_line_height(font) for _, font, _ in heading)
    top = head + layout.head_height
    size = (width + 2 * MARGIN, top + layout.grid_height + MARGIN)
    image = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(image)
    y = MARGIN
    for line, font, colour in heading:
        draw.text((MARGIN, y), line, colour, font)
        y += _line_height(font)
    _draw_labels(draw, sheet, layout, head, top)
    for row, cells in enumerate(sheet.cells):
        for column, cell in enumerate(cells):
            left, down = layout.corner(row, column)
            _draw_cell(image, layout, cell, picture, (MARGIN + left, top + down))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))  # hundreds of values are too long with the smallest cells
    return image


def _first_size(sheet: Sheet, picture: Picture) -> tuple[int, int]:
    """Width and height of the first picture, which stand for all."""
    tiles = (tile for row in sheet.cells for cell in row for tile in cell.tiles)
    first = next((tile.image for tile in tiles if tile.image is not None), None)
    return (SMALLEST_CELL, SMALLEST_CELL) if first is None else picture(first).size


def _layout(sheet: Sheet, size: tuple[int, int]) -> _Layout:
    """The sizes for pictures of `size`: small ones as a mosaic; all shrunk where the longest side asks it."""
    several = max(len(cell.tiles) for row in sheet.cells for cell in row)
    across, down = (2, math.ceil(several / 2)) if several > 1 and max(size) <= SMALLEST_CELL else (1, 1)
    label_width = _label_width(sheet)
    room_x = (LONGEST_SIDE - 2 * MARGIN - label_width) / len(sheet.columns) - GAP
    room_y = (LONGEST_SIDE - HEADINGS) / len(sheet.rows) - GAP - CAPTION
    tile = _tile_size(size, (room_x / across - SEAM, room_y / down - SEAM), max(across, down))
    width, height = across * (tile[0] + SEAM) - SEAM, down * (tile[1] + SEAM) - SEAM
    column_width = max(width, int(min(room_x, LEAST_COLUMN)))

    label_font = _font(_between(9, column_width // 8, 15))
    trials = any("\n" in row for row in sheet.rows)
    row_lines = 14 if trials else max(1, (height + CAPTION) // _line_height(label_font))
    row_labels = _apart(sheet.rows, label_font, label_width - GAP, row_lines)
    tallest = max(map(len, row_labels)) * _line_height(label_font)
    column_labels = _apart(sheet.columns, label_font, column_width, 3)
    head_lines = bool(sheet.x or sheet.y) + (max(map(len, column_labels)) if any(sheet.columns) else 0)
    return _Layout(
        tile=tile,
        across=across,
        down=down,
        head_height=head_lines * _line_height(label_font) + GAP,
        column_width=column_width,
        row_height=max(height + CAPTION, tallest if trials else 0),
        label_width=label_width,
        label_font=label_font,
        caption_font=_font(_between(9, column_width // 9, 14)),
        column_labels=column_labels,
        row_labels=row_labels,
    )


def _label_width(sheet: Sheet) -> int:
    """The room for row labels and the gap beside them; 0 where there are none."""
    lines = [line for label in [sheet.y, *sheet.rows] for line in label.split("\n")]
    widest = math.ceil(max(_font(15).getlength(line) for line in lines))
    return min(widest, 320 if any("\n" in row for row in sheet.rows) else 180) + GAP if widest else 0


def _tile_size(size: tuple[int, int], room: tuple[float, float], tiles: int) -> tuple[int, int]:
    """A picture's width and height on the sheet, within `room`, `tiles` of them side by side in a cell.

    Small pictures are enlarged by a whole number, so that their pixels stay what they are.
    """
    longest = max(size)
    if longest > SMALLEST_CELL:
        scale = LARGEST_CELL / longest
    else:
        scale = min(math.ceil(SMALLEST_CELL / longest), LARGEST_CELL / (longest * tiles))
    scale = min(scale, room[0] / size[0], room[1] / size[1])
    scale = math.floor(scale) if scale > 1 else scale
    return max(SMALLEST_TILE, int(size[0] * scale)), max(SMALLEST_TILE, int(size[1] * scale))


def _heading(
    sheet: Sheet, layout: _Layout, title: str | None, width: int
) -> list[tuple[str, Font, tuple[int, int, int]]]:
    """The lines above the grid, each with its font and colour."""
    several = any(len(cell.tiles) > layout.across * layout.down for row in sheet.cells for cell in row)
    note = f"{sheet.note}. Pictures: instance 0" if several else sheet.note
    texts = [(sheet.title, _font(20 if title is None else 16), INK), (note, _font(14), FAINT)]
    if title is not None:
        texts.insert(0, (plain_text(title), _font(22), INK))
    return [(line, font, colour) for text, font, colour in texts for line in _wrap(text, font, width, 3)]


def _draw_labels(draw: ImageDraw.ImageDraw, sheet: Sheet, layout: _Layout, head: int, top: int) -> None:
    """The axes' names and values; `head` and `top` are where the labels and the first row begin."""
    font, height = layout.label_font, _line_height(layout.label_font)
    below = top - height - GAP // 2
    draw.text((MARGIN, below), _fit(sheet.y, font, layout.label_width - GAP), FAINT, font)
    draw.text((MARGIN + layout.label_width, head + GAP // 2), sheet.x, FAINT, font)
    for column, lines in enumerate(layout.column_labels):
        centre = MARGIN + layout.corner(0, column)[0] + layout.column_width / 2
        _draw_lines(draw, lines, font, (centre, top - GAP // 2 - len(lines) * height))
    for row, lines in enumerate(layout.row_labels):
        middle = top + layout.corner(row, 0)[1] + (layout.row_height - CAPTION) / 2
        y = max(middle - len(lines) * height / 2, top + layout.corner(row, 0)[1])
        for place, line in enumerate(lines):
            draw.text((MARGIN, y + place * height), line, INK, font)


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], font: Font, top: tuple[float, float]
) -> None:
    """Lines centred under the point `top`."""
    for place, line in enumerate(lines):
        draw.text((top[0], top[1] + place * _line_height(font)), line, INK, font, anchor="ma")


def _draw_cell(
    image: Image.Image, layout: _Layout, cell: Cell, picture: Picture, corner: tuple[int, int]
) -> None:
    """A cell's pictures, caption and frame, its left and top at `corner`."""
    draw = ImageDraw.Draw(image)
    (width, height), (tile_width, tile_height) = layout.size, layout.tile
    left, top = corner[0] + (layout.column_width - width) // 2, corner[1]
    if len(cell.tiles) == 1:
        _draw_tile(image, cell.tiles[0], picture, (left, top, left + width, top + height))
    else:
        for place, tile in enumerate(cell.tiles[: layout.across * layout.down]):
            x = left + place % layout.across * (tile_width + SEAM)
            y = top + place // layout.across * (tile_height + SEAM)
            _draw_tile(image, tile, picture, (x, y, x + tile_width, y + tile_height))
    _draw_caption(draw, layout, cell, (corner[0] + layout.column_width / 2, top + height + 4))
    if cell.mark:
        right, bottom = corner[0] + layout.column_width, top + height + CAPTION
        box = (corner[0] - FRAME - 1, top - FRAME - 1, right + FRAME, bottom + FRAME)
        draw.rectangle(box, outline=ACCENT, width=FRAME if cell.mark == "best" else 1)


def _draw_tile(image: Image.Image, tile: Tile, picture: Picture, box: tuple[int, int, int, int]) -> None:
    """A picture in the middle of its box (left, top, right, bottom), or a grey box with words."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if tile.image is not None:
        drawn = _fitted(picture(tile.image), (width, height))
        image.paste(drawn, (left + (width - drawn.width) // 2, top + (height - drawn.height) // 2))
        return
    draw, font = ImageDraw.Draw(image), _font(_between(9, width // 9, 14))
    draw.rectangle((left, top, right - 1, bottom - 1), fill=GREY)
    lines = _wrap(tile.words, font, width - 6, max(1, height // _line_height(font)))
    middle = (left + right) / 2, (top + bottom - len(lines) * _line_height(font)) / 2
    _draw_lines(draw, lines, font, middle)


def _fitted(picture: Image.Image, room: tuple[int, int]) -> Image.Image:
    """The picture as large as the room allows, mode RGB: enlarged by a whole number only, or shrunk."""
    picture = picture.convert("RGB")
    scale = min(room[0] / picture.width, room[1] / picture.height)
    if scale >= 1:
        size = picture.width * math.floor(scale), picture.height * math.floor(scale)
        return picture.resize(size, Image.Resampling.NEAREST)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _draw_caption(draw: ImageDraw.ImageDraw, layout: _Layout, cell: Cell, top: tuple[float, float]) -> None:
    """The caption, centred under the point `top`, with a star before it for the best."""
    font = layout.caption_font
    height = _line_height(font)
    star = height + 2 if cell.star else 0
    width = layout.column_width - star
    whole = font.getlength(cell.caption) <= width
    # a narrow cell loses the interval before it loses a digit
    text = cell.caption if whole else _fit(cell.caption.partition(" ±")[0], font, width)
    draw.text((top[0] + star / 2, top[1]), text, INK, font, anchor="ma")
    if star:
        x = top[0] - font.getlength(text) / 2 - 2
        draw.polygon(_star(x, top[1] + height / 2 - 1, height / 2 - 1), fill=ACCENT)


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a five-pointed star around a point; the font has none."""
    corners = []
    for place in range(10):
        reach, angle = radius * (0.42 if place % 2 else 1), math.pi * (place / 5 - 0.5)
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _line_height(font: Font) -> int:
    return math.ceil(font.size * 1.35) if isinstance(font, ImageFont.FreeTypeFont) else 12


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def _fit(text: str, font: Font, width: float) -> str:
    """The text, its end replaced by … as far as the width in pixels asks; "" where not even … fits."""
    if font.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, -1, -1):
        if font.getlength(text[:length].rstrip() + "…") <= width:
            return text[:length].rstrip() + "…"
    return ""


def _wrap(text: str, font: Font, width: float, most: int) -> tuple[str, ...]:
    """At most `most` lines no wider than `width` pixels, broken after spaces and _, else anywhere."""
    lines: list[str] = []
    for paragraph in _drawable(text).split("\n"):
        line = ""
        for piece in _pieces(paragraph, font, width):
            if line.strip() and font.getlength((line + piece).rstrip()) > width:
                lines.append(line.rstrip())
                line = piece.lstrip()
            else:
                line += piece
        lines.append(line.rstrip())
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]}…"]
    return tuple(_fit(line, font, width) for line in lines)


def _apart(labels: Sequence[str], font: Font, width: float, most: int) -> tuple[tuple[str, ...], ...]:
    """The labels' lines; of those that are drawn alike, as of letters that the font lacks, each is numbered."""
    wrapped = [_wrap(label, font, width, most) for label in labels]
    drawn = [tuple(bytes(font.getmask(line)) for line in lines) for lines in wrapped]
    alike = Counter(drawn)
    return tuple(
        lines if alike[pixels] == 1 else _wrap(f"{place}: {label}", font, width, most)
        for place, (label, lines, pixels) in enumerate(zip(labels, wrapped, drawn, strict=True), 1)
    )


def _pieces(text: str, font: Font, width: float) -> Iterator[str]:
    """What no line break may cut: words, parts of a name_with_underscores, characters of a very long word."""
    for piece in re.findall(r"\s+|[^\s_]+_*|_+", text):
        yield from [piece] if font.getlength(piece) <= width else piece


def _drawable(text: str) -> str:
    """Near forms of what Pillow's font lacks: é as e, × as x. What has none is drawn as a box."""
    plain = {c: unicodedata.normalize("NFD", c)[0] for c in set(text) if c.isalpha()}
    near = {ord(c): base for c, base in plain.items() if base.isascii()} | {ord("×"): "x", ord("–"): "-"}
    return text.translate(near)
