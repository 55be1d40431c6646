import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.models import ModelDescription
from search_spaces.requests import Settings, Value
from search_spaces.space import (
    Judge,
    Space,
    canonical_settings,
    effective_steps,
    guidance_is_on,
    survey,
    telling_cells,
    why_it_cannot_run,
)
from tests.search_spaces.examples import (
    EMBEDDED,
    IMAGE_TO_IMAGE,
    INPAINTING,
    SDXL,
    TEXT_TO_IMAGE,
    UNKNOWN,
    law,
    space,
)

domains: st.SearchStrategy[Domain] = st.one_of(
    st.lists(st.integers(0, 9) | st.text(max_size=2), min_size=1, max_size=4, unique=True).map(
        lambda values: Choices(values=tuple(values))
    ),
    st.builds(lambda low, n: IntRange(low=low, high=low + n), st.integers(-3, 3), st.integers(1, 3)),
    st.builds(lambda n: FloatRange(low=0.1, high=0.1 * n + 0.1, step=0.1), st.integers(1, 3)),
)
spaces = st.dictionaries(st.sampled_from("abcd"), domains, min_size=1, max_size=4).map(
    lambda axes: Space(axes=axes)
)


@given(spaces)
@law
def test_the_lattice_is_the_product_with_the_last_axis_fastest(space: Space) -> None:
    points = [domain.points() or () for domain in space.axes.values()]
    product = [dict(zip(space.axes, cell, strict=True)) for cell in itertools.product(*points)]
    assert list(space.lattice()) == product
    assert [space.cell(index) for index in range(space.size or 0)] == product
    assert space.size == len(product)
    assert all(list(cell) == list(space.axes) for cell in space.lattice())


@given(spaces)
@law
def test_there_is_no_cell_outside_the_lattice(space: Space) -> None:
    size = space.size
    assert size is not None
    for index in (-1, size, size + 7):
        with pytest.raises(IndexError):
            space.cell(index)


@pytest.mark.parametrize(
    "huge",
    [
        space(**{f"axis{i}": list(range(10)) for i in range(12)}),
        space(a=IntRange(low=1, high=10**6), b=IntRange(low=1, high=10**6)),
        space(a=IntRange(low=1, high=10**12)),
        space(a=FloatRange(low=0, high=99.999, step=0.001), b=IntRange(low=1, high=10**7)),
    ],
)
def test_a_cell_of_a_huge_lattice_is_found_at_once(huge: Space) -> None:
    begun = time.perf_counter()
    assert huge.size == 10**12
    first, last = huge.cell(0), huge.cell(10**12 - 1)
    for name, domain in huge.axes.items():
        points = domain.points()
        assert points is not None
        assert (first[name], last[name]) == (points[0], points[-1])
    assert list(itertools.islice(huge.lattice(), 3)) == [huge.cell(index) for index in range(3)]
    assert time.perf_counter() - begun < 2


def test_a_continuous_axis_has_no_lattice_and_is_named() -> None:
    mixed = space(steps=[1, 2], guidance_scale=FloatRange(low=1, high=9), eta=FloatRange(low=0, high=1))
    assert mixed.size is None
    assert mixed.continuous == ["guidance_scale", "eta"]
    with pytest.raises(ValueError, match="guidance_scale is continuous"):
        mixed.lattice()
    with pytest.raises(ValueError, match="is continuous"):
        mixed.cell(0)


@given(steps=st.integers(1, 1000), strength=st.floats(0, 1))
@law
def test_strength_cuts_the_steps_as_diffusers_does(steps: int, strength: float) -> None:
    settings = {"num_inference_steps": steps, "strength": strength}
    for model in (INPAINTING, IMAGE_TO_IMAGE, SDXL):
        assert effective_steps(settings, model) == min(int(steps * strength), steps)
        assert (why_it_cannot_run(settings, model) is not None) == (int(steps * strength) == 0)
    assert effective_steps(settings, TEXT_TO_IMAGE) == steps
    assert effective_steps(settings, UNKNOWN) is None
    assert why_it_cannot_run(settings, TEXT_TO_IMAGE) is None
    assert why_it_cannot_run(settings, UNKNOWN) is None


def test_without_strength_all_steps_are_run() -> None:
    assert effective_steps({"num_inference_steps": 30}, INPAINTING) == 30
    assert effective_steps({"strength": 0.5}, INPAINTING) is None


def test_sdxl_cuts_steps_by_other_settings_too_and_that_is_not_guessed() -> None:
    settings = {"num_inference_steps": 30, "strength": 0.01, "denoising_start": 0.8}
    assert effective_steps(settings, SDXL) is None
    assert why_it_cannot_run(settings, SDXL) is None
    assert effective_steps({**settings, "denoising_start": None}, SDXL) == 0


def test_the_obstacle_is_a_sentence_with_the_figures() -> None:
    judge = Judge({"num_inference_steps": 3}, INPAINTING)
    obstacle = judge.obstacle({"strength": 0.25})
    assert obstacle == "num_inference_steps 3 × strength 0.25 leaves no effective step"
    assert judge.obstacle({"strength": 0.4}) is None


@pytest.mark.parametrize(
    ("guidance", "model", "on"),
    [
        (7.5, INPAINTING, True),
        (1.01, INPAINTING, True),
        (1, INPAINTING, False),
        (1.0, SDXL, False),
        (0, TEXT_TO_IMAGE, False),
        (7.5, EMBEDDED, False),
        (0, UNKNOWN, True),
        (None, INPAINTING, True),
    ],
)
def test_guidance_takes_a_second_row(guidance: Value, model: ModelDescription, on: bool) -> None:
    assert guidance_is_on({"guidance_scale": guidance}, model) is on


# What draws the same picture, written down once more from diffusers' pipelines: settings with equal keys do.


def _steps(settings: Settings) -> Hashable:
    steps, strength = settings["num_inference_steps"], settings["strength"]
    assert isinstance(steps, int)
    assert isinstance(strength, float)
    return (steps, int(steps * strength), strength == 1)


def _stable_diffusion(settings: Settings) -> Hashable:
    guidance = settings["guidance_scale"]
    assert isinstance(guidance, float | int)
    guided = (guidance, settings["negative_prompt"] or "") if guidance > 1 else "off"
    return (_steps(settings), guided)


def _sdxl(settings: Settings) -> Hashable:
    guidance = settings["guidance_scale"]
    assert isinstance(guidance, float | int)
    return (_steps(settings), (guidance, settings["negative_prompt"]) if guidance > 1 else "off")


def _embedded(settings: Settings) -> Hashable:
    return (_steps(settings), settings["guidance_scale"])


def _text_to_image(settings: Settings) -> Hashable:
    guidance = settings["guidance_scale"]
    assert isinstance(guidance, float | int)
    guided = (guidance, settings["negative_prompt"] or "") if guidance > 1 else "off"
    return (settings["num_inference_steps"], guided)


def _nothing_is_inert(settings: Settings) -> Hashable:
    return tuple(settings.items())


WIDE = space(
    num_inference_steps=[10, 30],
    strength=[0.5, 0.51, 0.52, 0.55, 0.99, 1.0],
    guidance_scale=[0, 0.5, 1, 1.5, 7.5],
    negative_prompt=[None, "", "cartoon"],
)


@pytest.mark.parametrize(
    ("model", "picture"),
    [
        (INPAINTING, _stable_diffusion),
        (IMAGE_TO_IMAGE, _stable_diffusion),
        (TEXT_TO_IMAGE, _text_to_image),
        (SDXL, _sdxl),
        (EMBEDDED, _embedded),
        (UNKNOWN, _nothing_is_inert),
    ],
    ids=["inpainting", "image-to-image", "text-to-image", "sdxl", "embedded", "unknown"],
)
def test_two_settings_are_twins_exactly_where_they_draw_the_same(
    model: ModelDescription, picture: Callable[[Settings], Hashable]
) -> None:
    judge = Judge({"scheduler": "DDIMScheduler"}, model)
    pictures, candidates = defaultdict(set), defaultdict(set)
    for number, cell in enumerate(WIDE.lattice()):
        pictures[picture(cell)].add(number)
        candidates[judge.candidate(cell)].add(number)
    assert sorted(map(sorted, candidates.values())) == sorted(map(sorted, pictures.values()))


def _twins(one: Settings, other: Settings, model: ModelDescription = INPAINTING) -> bool:
    judge = Judge(
        {"num_inference_steps": 30, "strength": 1.0, "guidance_scale": 7.5, "negative_prompt": ""}, model
    )
    return judge.candidate(one) == judge.candidate(other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"strength": 0.50}, {"strength": 0.51}, True),
        ({"strength": 0.50}, {"strength": 0.54}, False),
        ({"strength": 1.0}, {"strength": 0.999}, False),
        ({"guidance_scale": 7}, {"guidance_scale": 7.0}, True),
        ({"guidance_scale": 1.0}, {"guidance_scale": 0.3}, True),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.001}, False),
        ({"guidance_scale": 1, "negative_prompt": "a"}, {"guidance_scale": 1, "negative_prompt": "b"}, True),
        ({"guidance_scale": 2, "negative_prompt": "a"}, {"guidance_scale": 2, "negative_prompt": "b"}, False),
        (
            {"guidance_scale": 1, "guidance_rescale": 0.7},
            {"guidance_scale": 1, "guidance_rescale": 0.0},
            True,
        ),
        (
            {"guidance_scale": 2, "guidance_rescale": 0.7},
            {"guidance_scale": 2, "guidance_rescale": 0.0},
            False,
        ),
        ({"scheduler": "DDIMScheduler"}, {"scheduler": "PNDMScheduler"}, False),
        ({"eta": 0.0}, {"eta": 0.5}, False),
        ({"prompt": "a dragon"}, {"prompt": "a  dragon"}, False),
    ],
)
def test_twins_of_stable_diffusion(one: Settings, other: Settings, same: bool) -> None:
    assert _twins(one, other) is same


def test_of_an_unknown_family_nothing_is_inert() -> None:
    for one, other in (
        ({"strength": 0.50}, {"strength": 0.51}),
        ({"guidance_scale": 0.5}, {"guidance_scale": 1.0}),
        ({"negative_prompt": None}, {"negative_prompt": ""}),
    ):
        assert not _twins(one, other, UNKNOWN)
    assert _twins({"guidance_scale": 7}, {"guidance_scale": 7.0}, UNKNOWN)


@given(
    st.fixed_dictionaries(
        {name: st.sampled_from(domain.points() or ()) for name, domain in WIDE.axes.items()}
    )
)
@law
def test_canonical_settings_leave_their_input_alone(settings: dict[str, Value]) -> None:
    before = dict(settings)
    for model in (INPAINTING, SDXL, EMBEDDED, UNKNOWN, TEXT_TO_IMAGE):
        canonical_settings(settings, model)
    assert settings == before


def test_swept_settings_go_before_fixed_ones() -> None:
    assert Judge({"a": 1, "b": 2}, INPAINTING).complete({"b": 3}) == {"a": 1, "b": 3}


STUDY = space(
    num_inference_steps=[1, 10],
    strength=[0.5, 0.55, 1.0],
    guidance_scale=[0.5, 1.0, 5.0],
    negative_prompt=["", None, "cartoon"],
)


@pytest.mark.parametrize("model", [INPAINTING, SDXL, EMBEDDED, UNKNOWN])
def test_a_survey_counts_every_cell_once(model: ModelDescription) -> None:
    judge = Judge({}, model)
    found = survey(STUDY, judge)
    assert found.cells == STUDY.size
    assert len(found.candidates) + sum(found.inert.values()) + sum(found.infeasible.values()) == found.cells
    assert len({judge.candidate(settings) for settings in found.candidates}) == len(found.candidates)
    firsts: dict[str, dict[str, Value]] = {}
    for cell in STUDY.lattice():
        if judge.obstacle(cell) is None:
            firsts.setdefault(judge.candidate(cell), cell)
    assert found.candidates == list(firsts.values())
    assert all(sentence and "\n" not in sentence for sentence in [*found.inert, *found.infeasible])


def test_a_survey_says_why() -> None:
    found = survey(STUDY, Judge({}, INPAINTING))
    assert found.infeasible == {
        "num_inference_steps 1 × strength 0.5 leaves no effective step": 9,
        "num_inference_steps 1 × strength 0.55 leaves no effective step": 9,
    }
    # Of 3 × 3 cells of guidance and negative prompt 3 draw different pictures; of the strengths at 10 steps two.
    assert len(found.candidates) == 3 * 3
    sentences = " / ".join(found.inert)
    assert "guidance_scale ≤ 1 switches guidance off, so guidance_scale" in sentences
    assert "negative_prompt changes nothing there" in sentences
    assert "a missing negative_prompt is an empty one" in sentences
    assert "at 10 steps, strength 0.5 and 0.55 run the same 5 steps" in sentences


def test_a_survey_of_an_embedded_guidance_says_so() -> None:
    found = survey(space(negative_prompt=["", "cartoon"]), Judge({"guidance_scale": 8.0}, EMBEDDED))
    assert list(found.inert) == [
        "guidance is embedded in this model's UNet, so negative_prompt changes nothing"
    ]


def test_a_scheduler_that_takes_not_any_number_of_steps() -> None:
    limits = {"LCMScheduler": (1, 50), "PNDMScheduler": (4, None)}
    limited = INPAINTING.model_copy(update={"step_limits": limits})

    def obstacle(scheduler: str, steps: int) -> str | None:
        return why_it_cannot_run({"scheduler": scheduler, "num_inference_steps": steps}, limited)

    assert obstacle("LCMScheduler", 51) == "LCMScheduler takes at most 50 num_inference_steps with this model"
    assert (
        obstacle("PNDMScheduler", 3) == "PNDMScheduler needs at least 4 num_inference_steps with this model"
    )
    runs = [("LCMScheduler", 1), ("LCMScheduler", 50), ("PNDMScheduler", 4), ("DDIMScheduler", 1)]
    assert [obstacle(*each) for each in runs] == [None] * 4


def test_a_schedulers_option_counts_where_it_differs_from_the_models_own() -> None:
    space = Space(
        axes={
            "scheduler": Choices(values=("DDIMScheduler", "EulerDiscreteScheduler")),
            "use_karras_sigmas": Choices(values=(None, False, True)),
        }
    )
    options = {"DDIMScheduler": {}, "EulerDiscreteScheduler": {"use_karras_sigmas": False}}
    kinds = {"use_karras_sigmas": ("bool", "null")}
    model = INPAINTING.model_copy(update={"scheduler_options": options, "scheduler_kinds": kinds})
    found = survey(space, Judge({"num_inference_steps": 4, "guidance_scale": 5.0}, model))
    drawn = [(cell["scheduler"], cell["use_karras_sigmas"]) for cell in found.candidates]
    assert drawn == [
        ("DDIMScheduler", None),
        ("EulerDiscreteScheduler", None),
        ("EulerDiscreteScheduler", True),
    ]
    assert found.inert == {
        "DDIMScheduler has no use_karras_sigmas, or has it so by itself": 2,
        "EulerDiscreteScheduler has no use_karras_sigmas, or has it so by itself": 1,
    }


def test_eta_counts_only_where_the_scheduler_takes_it() -> None:
    space = Space(
        axes={
            "scheduler": Choices(values=("DDIMScheduler", "PNDMScheduler")),
            "eta": Choices(values=(0.0, 0.5)),
        }
    )
    model = ModelDescription(
        name="m",
        location="l",
        revision="r",
        task="text-to-image",
        pipeline="StableDiffusionPipeline",
        dtype="float32",
        keywords={},
        defaults_source="",
        scheduler="DDIMScheduler",
        schedulers=(),
        size_multiple=8,
        guidance_embedded=False,
        diffusers="0",
    )
    found = survey(space, Judge({"num_inference_steps": 4, "guidance_scale": 5.0}, model))
    assert len(found.candidates) == 3
    assert found.inert == {"eta changes nothing with PNDMScheduler": 1}


# Whether anything can run

eighths = st.integers(0, 8).map(lambda n: n / 8)
spans = st.tuples(eighths, eighths).filter(lambda ends: ends[0] < ends[1])
rules = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "strength": spans.map(lambda ends: FloatRange(low=ends[0], high=ends[1]))
            | eighths.map(lambda value: Choices(values=(value,))),
            "num_inference_steps": st.lists(st.integers(1, 6), min_size=1, max_size=4).map(
                lambda values: Choices(values=tuple(values))
            ),
            "scheduler": st.sampled_from("ABC").map(lambda name: Choices(values=(name,))),
        },
    ).filter(bool),
    max_size=6,
)


@law
@given(rules, st.booleans(), st.booleans(), st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True))
def test_few_cells_tell_whether_a_space_has_one_that_can_run(
    exclude: list[dict[str, Domain]], continuous: bool, conditional: bool, steps: list[int]
) -> None:
    limited = INPAINTING.model_copy(update={"step_limits": {"A": (2, None), "B": (1, 4)}})
    when: dict[str, tuple[Value, ...]] = {"scheduler": ("A", "B")} if conditional else {}
    strength = FloatRange(low=0, high=1, step=None if continuous else 0.125, when=when)
    made = space(scheduler=["A", "B", "C"], num_inference_steps=steps, strength=strength)
    judge = Judge({}, limited, made.axes, exclude)
    few = list(telling_cells(made, judge))
    # Rules speak of eighths, so that what lies between two is all alike; the last float before one can run longest.
    fine = sorted({max(0.0, n / 8 - off) for n in range(9) for off in (0, 1e-9)}) if continuous else None
    whole = made if fine is None else Space(axes={**made.axes, "strength": Choices(values=tuple(fine))})
    walked = [cell for cell in whole.lattice() if judge.obstacle(cell) is None]
    assert any(judge.obstacle(cell) is None for cell in few) == bool(walked)
    assert len(few) <= 3 * 3 * 40


@pytest.mark.parametrize(
    ("axes", "runs"),
    [
        # the largest number of steps is beyond what the scheduler takes
        (space(scheduler=["B"], num_inference_steps=[6, 3]), {"scheduler": "B", "num_inference_steps": 3}),
        # a strength without effective steps is used beside one guidance only
        (
            space(
                strength=Choices(values=(0.01,), when={"guidance_scale": (9,)}),
                guidance_scale=[9, 5],
                num_inference_steps=[20],
            ),
            {"strength": 0.01, "guidance_scale": 5, "num_inference_steps": 20},
        ),
    ],
)
def test_the_one_cell_that_can_run_is_among_the_telling_ones(axes: Space, runs: Settings) -> None:
    limited = INPAINTING.model_copy(update={"step_limits": {"B": (1, 4)}})
    judge = Judge({"strength": 1.0} if "strength" not in axes.axes else {}, limited, axes.axes)
    assert [cell for cell in telling_cells(axes, judge) if judge.obstacle(cell) is None] == [runs]


# The random order


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 100, 257])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_random_order_is_one_of_every_cell_once(size: int, seed: int) -> None:
    made = space(x=list(range(size)))
    order = [cell["x"] for cell in made.shuffled(seed)]
    assert sorted(order, key=str) == sorted(range(size), key=str)
    assert order == [cell["x"] for cell in made.shuffled(seed)]


@pytest.mark.parametrize("width", [25, 50])  # 500 and 1,000 cells: 9 and 10 bits
def test_the_random_order_is_random(width: int) -> None:
    made = space(x=list(range(20)), y=list(range(width)))
    positions = {tuple(cell.values()): place for place, cell in enumerate(made.lattice())}
    size = len(positions)
    orders = [[positions[tuple(cell.values())] for cell in made.shuffled(seed)] for seed in range(8)]
    assert len({tuple(order) for order in orders}) == len(orders)
    for order in orders:
        # of numbers at random, in units of their count: mean 0.50, mean step 0.33, correlation with places 0
        assert abs(sum(order[: size // 4]) / (size // 4) / size - 0.5) < 0.09
        steps = [abs(one - other) for one, other in itertools.pairwise(order)]
        assert abs(sum(steps) / len(steps) / size - 0.333) < 0.05
        middle = (size - 1) / 2
        correlated = sum((place - middle) * (value - middle) for place, value in enumerate(order))
        assert abs(correlated) < 0.18 * size * (size**2 - 1) / 12
    for one, other in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 12, "seeds share few places"


def test_each_place_of_the_random_order_may_hold_each_cell() -> None:
    made = space(x=list(range(10)))
    orders = [[cell["x"] for cell in made.shuffled(seed)] for seed in range(1000)]
    for place in range(10):
        counts = [sum(order[place] == value for order in orders) for value in range(10)]
        assert 50 < min(counts) <= max(counts) < 160, (place, counts)


def test_a_continuous_axis_has_no_order() -> None:
    with pytest.raises(ValueError, match="x is continuous"):
        space(x=FloatRange(low=0, high=1)).shuffled(0)
