import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Optional

import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler

from search_spaces.domains import FloatRange, IntRange
from search_spaces.errors import InputError
from search_spaces.space import Space
from search_spaces.strategies.samplers import SAMPLERS, distributions, make_sampler
from tests.search_spaces.examples import space

HERE = __name__
MIXED = space(guidance_scale=FloatRange(low=0, high=15), num_inference_steps=[3, 10, 30], prompt=["a", "b"])
NUMBERS = space(guidance_scale=FloatRange(low=0, high=15), num_inference_steps=IntRange(low=1, high=50))


class Mine(RandomSampler):  # type: ignore[misc]  # Optuna is untyped to mypy here
    """A sampler of somebody's own, which remembers what it was made with."""

    def __init__(
        self,
        seed: int | None = None,
        width: int = 3,
        callback: Any = None,
        names: list[str] = [],  # noqa: B006
        mode: Optional["Mode"] = None,  # as some write it
    ) -> None:
        super().__init__(seed)
        self.made_with = (seed, width, callback, names, mode)


class Mode:
    """Of a sampler."""


class Seedless(RandomSampler):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__(0)
        self.options = options


class Picky(RandomSampler):  # type: ignore[misc]
    """Fails with its second trial, and says so in two lines."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if trial.number:
            raise RuntimeError("numbers only\nand no others")
        return super().sample_independent(study, trial, name, distribution)


class Late(RandomSampler):  # type: ignore[misc]
    """Fails once it has learnt from as many trials as it begins with."""

    def __init__(self, n_startup_trials: int = 10) -> None:
        super().__init__(0)
        self.start = n_startup_trials

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if trial.number >= self.start:
            raise RuntimeError("not yet written")
        return super().sample_independent(study, trial, name, distribution)


def drawn(sampler: BaseSampler, axes: Space, trials: int = 6) -> list[dict[str, Any]]:
    """What a sampler suggests where every trial is worth its number."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    asked = []
    for value in range(trials):
        trial = study.ask(distributions(axes))
        asked.append(dict(trial.params))
        study.tell(trial, float(value))
    return asked


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "cmaes"])
def test_a_sampler_draws_the_same_with_the_same_seed(name: str) -> None:
    first, again, other = (drawn(make_sampler(name, {}, seed, MIXED, 1), MIXED) for seed in (5, 5, 6))
    assert first == again != other


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "nsga2", "nsga3", "qmc"])
def test_samplers_take_several_objectives(name: str) -> None:
    assert isinstance(make_sampler(name, {}, 0, MIXED, 3, constrained=True), SAMPLERS[name])


def test_a_sampler_of_ones_own_is_made_with_the_options_and_the_seed() -> None:
    options = {"width": 7, "names": ["a"], "mode": "fast"}
    made = make_sampler(f"{HERE}.Mine", options, 11, MIXED, 1)
    assert (type(made).__name__, vars(made)["made_with"]) == ("Mine", (11, 7, None, ["a"], "fast"))
    assert vars(make_sampler(f"{HERE}.Seedless", {"any": 1}, 11, MIXED, 1))["options"] == {"any": 1}


def test_options_change_what_is_drawn() -> None:
    plain, scrambled = (
        drawn(make_sampler("qmc", options, 5, MIXED, 1), MIXED) for options in ({}, {"scramble": True})
    )
    assert plain != scrambled


def test_the_rehearsal_leaves_no_trace_in_the_sampler() -> None:
    assert drawn(make_sampler("random", {}, 5, MIXED, 1), MIXED) == drawn(RandomSampler(seed=5), MIXED)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tpee", {}, "there is no sampler 'tpee'; did you mean 'tpe'?; one of your own"),
        ("annealing", {}, "there is no sampler 'annealing'; known are cmaes, gp"),
        ("bruteforce", {}, "bruteforce tries every cell; use grid"),
        ("optuna.samplers.GridSampler", {}, "tries every cell; use grid"),
        ("optuna.samplers.Sampler", {}, "cannot be imported: module 'optuna.samplers' has no attribute"),
        ("no_such_package.Mine", {}, "cannot be imported: No module named 'no_such_package'"),
        (".Mine", {}, "there is no sampler '.Mine'"),
        ("math.pi", {}, "math.pi is no class of optuna.samplers.BaseSampler"),
        ("collections.Counter", {}, "is no class of optuna.samplers.BaseSampler"),
        ("optuna.samplers.BaseSampler", {}, "refuses its options: Can't instantiate abstract class"),
        ("tpe", {"n_startup": 3}, "tpe has no option 'n_startup'; did you mean 'n_startup_trials'?"),
        ("tpe", {"seed": 3}, "the seed of the search"),
        ("tpe", {"n_startup_trials": "ten"}, "n_startup_trials takes int, not 'ten'"),
        ("tpe", {"n_startup_trials": True}, "n_startup_trials takes int, not True"),
        ("tpe", {"multivariate": 1}, "multivariate takes bool or None, not 1"),
        ("nsga2", {"population_size": 1}, "refuses its options: `population_size`"),
        (
            "nsga2",
            {"mutation": "much"},
            "mutation takes BaseMutation or None, not 'much'; a study file cannot",
        ),
        ("nsga3", {"reference_points": [1, 2]}, "takes np.ndarray or None, not [1, 2]; a study file cannot"),
        (
            "gp",
            {"independent_sampler": "random"},
            "independent_sampler takes BaseSampler or None, not 'random'",
        ),
        (
            "tpe",
            {"gamma": 5},
            "gamma takes Callable[[int],int] or None, not 5; a study file cannot write one",
        ),
        (
            "tpe",
            {"weights": "uniform"},
            "weights takes Callable[[int],np.ndarray] or None, not 'uniform'; a s",
        ),
        ("tpe", {"constraints_func": "f"}, "bounds on scores stand under constraints; give them there"),
        ("cmaes", {"x0": {"guidance_scale": 5}}, "settings to begin with are those of search.enqueue"),
        (
            "tpe",
            {"n_ei_candidates": 0, "n_startup_trials": 500},
            "tpe cannot search this space with these opt",
        ),
        (f"{HERE}.Mine", {"names": "one"}, "option names takes list[str], not 'one'"),
        ("qmc", {"qmc_type": "lattice"}, "refuses its options: The `qmc_type='lattice'` is invalid"),
        (f"{HERE}.Mine", {"width": "wide"}, "width takes int, not 'wide'"),
        (f"{HERE}.Mine", {"with": 3}, "no option 'with'; did you mean 'width'?"),
        (f"{HERE}.Picky", {}, "cannot search this space: numbers only"),
        (f"{HERE}.Late", {"n_startup_trials": 50}, "cannot search this space with these options: not yet"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(name: str, options: Mapping[str, object], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        make_sampler(name, options, 0, MIXED, 1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("search.strategy: ")


@pytest.mark.parametrize(
    ("axes", "objectives", "constrained", "said"),
    [
        (MIXED, 1, False, "would draw space.prompt at random"),
        (space(x=[1, 2], y=[3]), 1, False, "needs at least two axes of several numbers and the space has 1"),
        (NUMBERS, 2, False, "takes one objective, and the study has 2"),
        (NUMBERS, 1, True, "takes no constraints"),
        (NUMBERS, 1, False, "needs the package cmaes; install it with: pip install cmaes"),
    ],
)
def test_what_cma_es_cannot_do(
    monkeypatch: pytest.MonkeyPatch, axes: Space, objectives: int, constrained: bool, said: str
) -> None:
    real = importlib.util.find_spec
    absent = {"cmaes": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: absent[name] if name in absent else real(name)
    )
    with pytest.raises(InputError, match=re.escape(said)):
        make_sampler("cmaes", {}, 0, axes, objectives, constrained)


def test_making_a_sampler_needs_no_torch() -> None:
    script = (
        "import sys; from search_spaces.strategies.samplers import make_sampler\n"
        "from search_spaces.space import Space\n"
        "from search_spaces.domains import IntRange\n"
        "make_sampler('tpe', {}, 0, Space(axes={'x': IntRange(low=1, high=9)}), 1)\n"
        "assert not {'torch', 'ray', 'scipy.stats'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
