import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.report.contact_sheet import (
    ACCENT,
    GREY,
    LONGEST_SIDE,
    Cell,
    Tile,
    _layout,
    contact_sheet,
    draw_sheet,
    plan_sheet,
)
from orchestrator.report.results import Results, TrialResult
from search_spaces.errors import InputError
from search_spaces.requests import Settings, Value

Box = tuple[int, int, int, int]


def study(
    trials: Sequence[TrialResult],
    axes: Mapping[str, Sequence[object]],
    instances: int = 2,
    twin_of: Callable[[Settings], int | None] = lambda _: None,
) -> Results:
    return Results("cat-to-dragon", "clip_score", instances, axes, trials, twin_of, [], [])


def trial(number: int, one: Settings, scores: Sequence[float]) -> TrialResult:
    images = {instance: f"{number}/{instance}" for instance in range(len(scores))}
    return TrialResult(number, one, dict(enumerate(scores)), {}, images)


def grid(
    axes: Mapping[str, Sequence[Value]], score: Callable[[Settings], float], instances: int = 2
) -> Results:
    """A full grid whose scores spread by 1 over the instances, the same in all trials."""
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    trials = [
        trial(n, one, [score(one) + instance for instance in range(instances)])
        for n, one in enumerate(combinations)
    ]
    return study(trials, axes, instances)


AXES: dict[str, list[Value]] = {"guidance_scale": [1.0, 5.0, 7.5], "strength": [0.5, 0.8]}
BEST = {"guidance_scale": 5.0, "strength": 0.8}
SIX = grid(
    AXES, lambda one: (10.0 if one["guidance_scale"] == 5 else 0.0) + (1.0 if one["strength"] == 0.8 else 0.0)
)
# trials in this order: (1, 0.5) (1, 0.8) (5, 0.5) (5, 0.8) (7.5, 0.5) (7.5, 0.8)


def colour(image_id: str) -> tuple[int, int, int]:
    """A colour that no other picture and no part of the sheet has: its blue is 77."""
    number, instance = map(int, image_id.split("/"))
    return 10 + 12 * (number % 18), 20 + 25 * instance, 77


def flat(size: tuple[int, int] = (64, 64)) -> Callable[[str], Image.Image]:
    return lambda image_id: Image.new("RGB", size, colour(image_id))


def where(sheet: Image.Image, wanted: tuple[int, int, int]) -> Box:
    """Left, top, right, bottom of the pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == wanted).all(axis=2))
    assert len(rows), f"no pixel is {wanted}"
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def spot(sheet: Image.Image, image_id: str) -> Box:
    return where(sheet, colour(image_id))


def pixels(sheet: Image.Image, wanted: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == wanted).all(axis=2).sum())


class TestPlaces:
    def test_every_picture_is_at_its_cell(self) -> None:
        sheet = contact_sheet(SIX, flat(), x="guidance_scale", y="strength")
        boxes = [spot(sheet, f"{number}/0") for number in range(6)]
        lefts, tops = [box[0] for box in boxes], [box[1] for box in boxes]
        assert lefts[0] == lefts[1] < lefts[2] == lefts[3] < lefts[4] == lefts[5]
        assert tops[0] == tops[2] == tops[4] < tops[1] == tops[3] == tops[5]

    def test_exchanged_axes_exchange_places(self) -> None:
        sheet = contact_sheet(SIX, flat(), x="strength", y="guidance_scale")
        boxes = [spot(sheet, f"{number}/0") for number in range(6)]
        assert boxes[0][0] < boxes[1][0]
        assert boxes[0][1] == boxes[1][1] < boxes[2][1]

    def test_instances_are_a_mosaic_read_by_rows(self) -> None:
        results = grid(AXES, lambda _: 0.0, instances=5)
        sheet = contact_sheet(results, flat())
        a, b, c, d = (spot(sheet, f"0/{instance}") for instance in range(4))
        assert a[1] == b[1] < c[1] == d[1]
        assert a[0] == c[0] < b[0] == d[0]
        assert pixels(sheet, colour("0/4")) == 0

    @pytest.mark.parametrize(
        ("size", "instances", "tile"),
        [
            ((64, 64), 4, (128, 128)),  # 2 × 2 of twice the size
            ((64, 64), 1, (128, 128)),
            ((32, 32), 1, (128, 128)),
            ((100, 100), 4, (100, 100)),
            ((128, 64), 2, (128, 64)),
            ((512, 512), 4, (256, 256)),  # large ones stand alone
            ((768, 512), 1, (256, 170)),
        ],
    )
    def test_sizes(self, size: tuple[int, int], instances: int, tile: tuple[int, int]) -> None:
        sheet = contact_sheet(grid(AXES, lambda _: 0.0, instances), flat(size))
        left, top, right, bottom = spot(sheet, "0/0")
        assert (right - left, bottom - top) == pytest.approx(tile, abs=1)
        assert (pixels(sheet, colour("0/1")) > 0) == (instances > 1 and max(size) <= 128)

    def test_enlarged_pictures_keep_their_pixels(self) -> None:
        checks = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8))
        results = grid({"g": [1]}, lambda _: 0.0, instances=1)
        sheet = np.asarray(contact_sheet(results, lambda _: checks).convert("L"))
        bands = np.asarray(checks.resize((128, 128), Image.Resampling.NEAREST))
        windows = np.lib.stride_tricks.sliding_window_view(sheet, bands.shape)[:, 20]
        assert any(np.array_equal(window, bands) for window in windows)

    def test_pictures_of_other_sizes_stay_in_their_cells(self) -> None:
        def picture(image_id: str) -> Image.Image:
            size = (300, 40) if image_id.startswith("3/") else (64, 64)
            return Image.new("RGB", size, colour(image_id))

        sheet = contact_sheet(SIX, picture, x="guidance_scale", y="strength")
        assert spot(sheet, "1/1")[2] <= spot(sheet, "3/0")[0]
        assert spot(sheet, "3/1")[2] <= spot(sheet, "5/0")[0]

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
    def test_any_mode(self, mode: str) -> None:
        assert contact_sheet(SIX, lambda _: Image.new(mode, (64, 64))).mode == "RGB"


class TestAxes:
    def test_chosen_by_effect(self) -> None:
        sheet = plan_sheet(SIX)
        assert (sheet.x, sheet.y) == ("guidance_scale", "strength")
        assert sheet.title == "guidance_scale × strength"
        assert (sheet.columns, sheet.rows) == (("1", "5", "7.5"), ("0.5", "0.8"))

    def test_one_given_the_other_chosen(self) -> None:
        assert (plan_sheet(SIX, x="strength").x, plan_sheet(SIX, x="strength").y) == (
            "strength",
            "guidance_scale",
        )
        assert (plan_sheet(SIX, y="guidance_scale").x, plan_sheet(SIX, y="strength").x) == (
            "strength",
            "guidance_scale",
        )

    def test_the_others_are_held_at_the_leader_and_named(self) -> None:
        axes: dict[str, list[Value]] = {
            **AXES,
            "num_inference_steps": [3, 10],
            "negative_prompt": ["", "cartoon"],
        }
        results = grid(
            axes, lambda one: 9.0 * (one["num_inference_steps"] == 10) + (one["negative_prompt"] == "cartoon")
        )
        sheet = plan_sheet(results, "guidance_scale", "strength")
        assert sheet.title == "guidance_scale × strength at num_inference_steps 10, negative_prompt 'cartoon'"
        held = {
            t.images[0]
            for t in results.trials
            if "cartoon" in t.settings.values() and 10 in t.settings.values()
        }
        assert {cell.tiles[0].image for row in sheet.cells for cell in row} == held

    @pytest.mark.parametrize("option", ["x", "y"])
    def test_an_axis_that_is_not_swept(self, option: str) -> None:
        with pytest.raises(InputError, match=f"{option}: .*'guidence_scale'.*did you mean 'guidance_scale'"):
            contact_sheet(SIX, flat(), **{option: "guidence_scale"})
        with pytest.raises(InputError, match="known are guidance_scale, strength"):
            contact_sheet(SIX, flat(), **{option: "zzz"})

    def test_nothing_is_swept(self) -> None:
        with pytest.raises(InputError, match="it sweeps nothing"):
            plan_sheet(study([trial(0, {}, [1.0, 2.0])], {}), x="g")

    def test_the_same_axis_twice(self) -> None:
        with pytest.raises(InputError, match="both 'strength'"):
            plan_sheet(SIX, "strength", "strength")

    def test_one_axis_is_a_row_or_a_column(self) -> None:
        results = grid({"g": [1, 2, 3]}, lambda _: 0.0)
        row, column = plan_sheet(results), plan_sheet(results, y="g")
        assert (row.columns, row.rows, row.title) == (("1", "2", "3"), ("",), "g")
        assert (column.columns, column.rows, column.title) == (("",), ("1", "2", "3"), "g")
        sheet = contact_sheet(results, flat(), y="g")
        assert spot(sheet, "0/0")[3] < spot(sheet, "1/0")[1]

    def test_no_axis_is_one_cell(self) -> None:
        sheet = plan_sheet(study([trial(0, {}, [1.0, 2.0])], {}))
        assert sheet.title == "cat-to-dragon"
        assert [[cell.tiles for cell in row] for row in sheet.cells] == [[(Tile("0/0"), Tile("0/1"))]]

    def test_no_trials(self) -> None:
        results = study([], {"g": []})
        assert plan_sheet(results).cells == ((Cell((Tile(None, "not run"),), ""),),)
        assert pixels(contact_sheet(results, flat()), GREY) > 1000


class TestMarks:
    def test_the_best_is_framed_and_starred(self) -> None:
        sheet = contact_sheet(SIX, flat(), x="guidance_scale", y="strength")
        left, top, right, bottom = where(sheet, ACCENT)
        picture = spot(sheet, "3/0")
        other = spot(sheet, "3/1")
        assert left < picture[0] < other[2] < right
        assert top < picture[1] < picture[3] < bottom
        across = (np.asarray(sheet)[picture[1] + 5] == ACCENT).all(axis=1)
        assert list(across[left : picture[0]]) == [True] * 4 + [False]
        # nothing but this one cell lies within the frame
        assert spot(sheet, "1/1")[2] <= left
        assert right <= spot(sheet, "5/0")[0]
        assert spot(sheet, "2/0")[3] <= top
        below = np.asarray(sheet)[picture[3] + 4 : bottom - 6, left + 6 : right - 6]
        assert (below == ACCENT).all(axis=2).sum() > 30  # the star

    def test_captions_and_marks(self) -> None:
        trials = list(SIX.trials)
        trials[5] = trial(5, trials[5].settings, [14.0, 7.5])  # mean 10.75: below the best, and unsure
        cells = plan_sheet(replace(SIX, trials=trials), "guidance_scale", "strength").cells
        assert [cell.mark for row in cells for cell in row] == ["", "", "", "", "best", "tied"]
        assert [cell.star for row in cells for cell in row] == [False, False, False, False, True, False]
        # ± t(0.975, 1) · s / √2 = 12.706 / 2
        assert [cell.caption for cell in cells[1][:2]] == ["1.5 ± 6.4", "11.5 ± 6.4"]

    def test_a_tie_has_a_thin_frame(self) -> None:
        one = contact_sheet(SIX, flat())
        equal = [trial(t.number, t.settings, [1.0, 2.0]) for t in SIX.trials]
        assert pixels(one, ACCENT) < pixels(contact_sheet(replace(SIX, trials=equal), flat()), ACCENT)
        tied = contact_sheet(replace(SIX, trials=equal), flat(), x="guidance_scale", y="strength")
        left, top, _, _ = spot(tied, "5/0")
        assert (
            list((np.asarray(tied)[top + 5, left - 5 : left] == ACCENT).all(axis=1)) == [True] + [False] * 4
        )
        assert "Thin frame" not in plan_sheet(SIX).note
        assert "Thin frame" in plan_sheet(replace(SIX, trials=equal)).note

    def test_one_instance_knows_no_ties(self) -> None:
        sheet = plan_sheet(grid(AXES, lambda _: 0.0, instances=1))
        assert [cell.mark for row in sheet.cells for cell in row] == ["best", "", "", "", "", ""]
        assert sheet.note == "clip_score of one instance. Thick frame: best"

    def test_without_a_complete_trial_nothing_is_best(self) -> None:
        sheet = contact_sheet(replace(SIX, instances=3), flat())
        assert pixels(sheet, ACCENT) == 0
        plan = plan_sheet(replace(SIX, instances=3))
        assert "no best one" in plan.note
        assert plan.cells[0][0].caption == "2 of 3 judged"
        looked = replace(SIX, trials=[replace(t, scores={}, images={}, looks=1) for t in SIX.trials])
        assert plan_sheet(looked).cells[0][0].caption == "looked at only"


class TestGaps:
    def test_a_twin_is_shown_in_its_place(self) -> None:
        def twin_of(one: Settings) -> int | None:
            return 2 if one == {"guidance_scale": 7.5, "strength": 0.5} else None

        results = replace(SIX, trials=[t for t in SIX.trials if t.number != 4], twin_of=twin_of)
        sheet = contact_sheet(results, flat(), x="guidance_scale", y="strength")
        assert pixels(sheet, GREY) == 0
        left, _, right, _ = spot(sheet, "2/0")  # from the middle column to the last
        assert left == spot(sheet, "3/0")[0]
        assert right == spot(sheet, "5/0")[2]
        assert plan_sheet(results).cells[0][2].caption == "10.5 ± 6.4 (twin)"

    def test_the_twin_of_the_best_ties_and_is_not_starred(self) -> None:
        results = replace(SIX, trials=SIX.trials[:5], twin_of=lambda _: 3)
        cell = plan_sheet(results).cells[1][2]
        assert (cell.mark, cell.star) == ("tied", False)

    def test_cells_without_a_trial_are_grey_and_say_so(self) -> None:
        results = replace(SIX, trials=SIX.trials[:5])
        assert plan_sheet(results).cells[1][2] == Cell((Tile(None, "not run"),), "")
        sheet = contact_sheet(results, flat(), x="guidance_scale", y="strength")
        left, top, _, bottom = where(sheet, GREY)
        assert (left, top, bottom) == (spot(sheet, "4/0")[0], spot(sheet, "3/0")[1], spot(sheet, "3/0")[3])

    def test_failures_are_named_and_leave_no_mean(self) -> None:
        trials = list(SIX.trials)
        trials[0] = TrialResult(0, trials[0].settings, {0: 99.0}, {1: "black"}, {0: "0/0"})
        trials[1] = TrialResult(1, trials[1].settings, {}, {0: "black", 1: "black"}, {})
        trials[2] = TrialResult(2, trials[2].settings, {0: 99.0}, {}, {0: "2/0"})
        (first, unfinished, _), (second, _, _) = plan_sheet(replace(SIX, trials=trials)).cells
        assert first == Cell((Tile("0/0"), Tile(None, "failed: black")), "1 of 2 failed")
        assert second == Cell((Tile(None, "failed: black"),), "2 of 2 failed")
        assert unfinished == Cell((Tile("2/0"), Tile(None, "not run")), "1 of 2 judged")


class TestSampled:
    def sampled(self, count: int) -> Results:
        values = [n / 10 for n in range(count)]
        trials = [
            trial(n, {"g": value, "s": 1 - value}, [value, value + 0.1] * 5) for n, value in enumerate(values)
        ]
        return study(trials, {"g": values, "s": sorted(1 - value for value in values)}, 10)

    def test_the_twelve_best_with_their_instances(self) -> None:
        plan = plan_sheet(self.sampled(15))
        assert plan.title == "the 12 best of 15 settings"
        assert plan.columns == tuple("01234567")
        assert [row[0].tiles[0].image for row in plan.cells] == [f"{n}/0" for n in range(14, 2, -1)]
        assert plan.rows[0].split("\n") == ["1.450 ± 0.038 best", "g 1.4", "s -0.4"]
        assert [cell.caption for cell in plan.cells[0][:2]] == ["1.400", "1.500"]
        assert {cell.mark for cell in plan.cells[0]} == {"best"}

    def test_drawn_in_that_order(self) -> None:
        sheet = contact_sheet(self.sampled(15), flat())
        assert spot(sheet, "14/0")[3] < spot(sheet, "13/0")[1] < spot(sheet, "3/0")[1]
        assert spot(sheet, "14/0")[2] < spot(sheet, "14/1")[0]
        assert pixels(sheet, colour("2/0")) == 0

    def test_half_a_grid_is_a_grid(self) -> None:
        assert plan_sheet(replace(SIX, trials=SIX.trials[:3])).x == "guidance_scale"
        assert plan_sheet(replace(SIX, trials=SIX.trials[:2])).x == "instance"

    def test_without_a_complete_trial_those_that_came_furthest(self) -> None:
        results = self.sampled(5)
        trials = [replace(t, scores=dict.fromkeys(range(t.number), 1.0)) for t in results.trials]
        plan = plan_sheet(replace(results, trials=trials))
        assert plan.title == "the 5 most judged of 5 settings"
        assert plan.rows[0].startswith("4 of 10 judged\n")


class TestTexts:
    def test_long_values_do_not_reach_their_neighbours(self) -> None:
        prompts: list[Value] = ["", "W" * 400, "word " * 80]
        results = grid({"negative_prompt": prompts}, lambda _: 0.0)
        sheet = contact_sheet(results, flat((32, 32)))
        boxes = [(spot(sheet, f"{n}/0")[0], spot(sheet, f"{n}/1")[2]) for n in range(3)]
        above = np.asarray(sheet)[: spot(sheet, "0/0")[1], :].min(axis=2)
        band = above[-60:]
        for (_, right), (left, _) in itertools.pairwise(boxes):
            assert (band[:, right + 6 : left - 6] == 255).all()
        long_word = (band[:, boxes[1][0] : boxes[1][1]] < 100).any(axis=1)
        assert long_word.sum() > 20  # broken into three lines, not cut after one
        assert spot(sheet, "0/0")[1] < 200

    def test_long_row_labels_do_not_reach_the_pictures(self) -> None:
        axes: dict[str, list[Value]] = {"n": [1, 2], "p": ["W" * 400, "word " * 80]}
        results = grid(axes, lambda one: float(one["n"] or 0), instances=1)
        sheet = contact_sheet(results, flat(), x="n", y="p")
        left, first, _, bottom = spot(sheet, "0/0")
        second = spot(sheet, "1/0")[1]
        beside = np.asarray(sheet)[first:, :left].min(axis=2)
        assert (beside[: bottom - first, :-6] < 100).any()
        assert (beside[:, -12:-6] == 255).all()
        assert (beside[second - first - 10 : second - first - 2] == 255).all()

    def test_a_long_title_takes_three_lines(self) -> None:
        short, long = (contact_sheet(SIX, flat(), title=title) for title in ("dragon", "dragon " * 500))
        assert short.height + 50 < long.height < short.height + 70
        assert short.width == long.width

    def test_a_title_adds_a_line_and_changes_nothing_else(self) -> None:
        plain, titled = contact_sheet(SIX, flat()), contact_sheet(SIX, flat(), title="dragons")
        assert titled.width == plain.width
        assert titled.height > plain.height
        assert spot(titled, "3/0")[0] == spot(plain, "3/0")[0]

    def test_large_pictures_say_which_instance_they_are(self) -> None:
        # the note is longer by "Pictures: instance 0", so the drawing has more ink above the grid
        plan = plan_sheet(SIX)
        single = replace(
            plan, cells=tuple(tuple(replace(c, tiles=c.tiles[:1]) for c in row) for row in plan.cells)
        )
        shown = [np.asarray(draw_sheet(p, flat((256, 256))))[:80].sum() for p in (plan, single)]
        assert shown[0] < shown[1]

    @settings(max_examples=25, deadline=None)
    @given(st.text(min_size=1), st.text())
    def test_any_text_can_be_drawn(self, prompt: str, title: str) -> None:
        results = grid({prompt: [title, 1]}, lambda _: 0.0)
        contact_sheet(results, flat((16, 16)), title=title)

    @pytest.mark.parametrize(
        "text", ["\ud800", "猫がドラゴン", "👩‍👩‍👧", "\x00\x1b[31m", "\u202eabc", "é" * 300, "\n\n"]
    )
    def test_unusual_text_can_be_drawn(self, text: str) -> None:
        contact_sheet(grid({"negative_prompt": [text, "x"]}, lambda _: 0.0), flat((16, 16)), title=text)

    @pytest.mark.parametrize(
        "values",
        [
            ["cat", "Cat", " cat", "cat ", "a cat", "a  cat", None, "none", "5", ""],
            ["\u732b", "\u72ac", "\u9ce5"],
            ["caf\u00e9", "cafe", "cafe\u0301"],
            [f"{'a very long prompt, ' * 9}{end}{', oil on canvas' * 9}" for end in ("red", "blue", "grey")],
        ],
    )
    @pytest.mark.parametrize("axis", ["x", "y"])
    def test_labels_of_different_values_are_drawn_differently(self, values: list[Value], axis: str) -> None:
        sheet = plan_sheet(grid({"p": values, "g": [1, 2]}, lambda _: 1.0), **{axis: "p"})
        layout = _layout(sheet, (64, 64))
        labels = layout.column_labels if axis == "x" else layout.row_labels
        drawn = {tuple(bytes(layout.label_font.getmask(line)) for line in lines) for lines in labels}
        assert len(drawn) == len(values)


class TestLimits:
    @pytest.mark.parametrize("size", [(8, 8), (64, 64), (512, 512), (64, 512)])
    def test_thirty_by_thirty(self, size: tuple[int, int]) -> None:
        results = grid({"a": list(range(30)), "b": list(range(30))}, lambda _: 0.0, instances=1)
        pictures = [Image.new("RGB", size, (1, 2, 3))]
        sheet = contact_sheet(results, lambda _: pictures[0])
        # the cells are shrunk, not the finished sheet, which would be this long exactly and its text unreadable
        assert max(sheet.size) < LONGEST_SIDE
        assert min(sheet.size) > 2000

    def test_hundreds_of_values(self) -> None:
        results = grid({"a": list(range(600))}, lambda _: 0.0, instances=1)
        sheet = contact_sheet(results, lambda _: Image.new("RGB", (64, 64)))
        assert sheet.width == LONGEST_SIDE

    def test_small_pictures_are_shrunk_by_whole_numbers(self) -> None:
        # 60 cells have room for 1.8 times 64 px each
        sheet = contact_sheet(grid({"a": list(range(60))}, lambda _: 0.0, instances=1), flat())
        left, _, right, _ = where(sheet, colour("17/0"))
        assert right - left == 64 + 2 * 18 * (96 + 16)  # 17, 35 and 53 share a colour
