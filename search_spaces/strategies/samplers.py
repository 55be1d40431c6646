"""Optuna's samplers by name, and a search space as they see it."""

import importlib
import importlib.util
import inspect
import math
import random
import re
import warnings
from collections.abc import Mapping
from types import NoneType

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import TrialState

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.errors import InputError, did_you_mean, shown
from search_spaces.requests import Settings, Value
from search_spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

SAMPLERS: Mapping[str, type[BaseSampler]] = {
    "tpe": TPESampler,
    "random": RandomSampler,
    "gp": GPSampler,
    "cmaes": CmaEsSampler,
    "nsga2": NSGAIISampler,
    "nsga3": NSGAIIISampler,
    "qmc": QMCSampler,
}
"""Samplers by the name that a study file gives them."""

PACKAGES: Mapping[type[BaseSampler], tuple[str, ...]] = {
    CmaEsSampler: ("cmaes",),
    GPSampler: ("torch", "scipy"),
    QMCSampler: ("scipy",),
}
"""What a sampler imports only when it first suggests something."""

PLAIN_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (NoneType,),
}
"""Types of options that a study file can write, by their name in a signature."""


CONTAINERS: Mapping[str, type] = {
    "dict": dict,
    "Mapping": dict,
    "list": list,
    "Sequence": list,
    "tuple": list,
}
"""Types of options that a study file writes as a mapping or a list."""

UNWRITABLE = ("Callable", "BaseSampler", "BaseMutation", "BaseCrossover", "ndarray", "FrozenTrial")
"""Types of options that are Python objects: functions, other samplers, arrays, trials."""

INSTEAD: Mapping[str, str] = {
    "seed": "the sampler's seed is the seed of the search; give it there",
    "x0": "a sampler's settings to begin with are those of search.enqueue; give them there",
    "constraints_func": "bounds on scores stand under constraints; give them there",
}
"""Options for which a study file has a place of its own."""


def make_sampler(
    name: str,
    options: Mapping[str, object],
    seed: int,
    space: Space,
    objectives: int,
    constrained: bool = False,
) -> BaseSampler:
    """The sampler of a name in SAMPLERS, or of a class path such as `my_package.MySampler`.

    `options` are its constructor's keywords; `seed` is given where it takes one. It is tried on the space
    before it is handed out, so that what it cannot do is found before the first image. Raises InputError
    for an unknown name, class or option, a missing package, and a space, a number of objectives or
    constraints that it cannot take.
    """
    sampler_class = _sampler_class(name)
    keywords = inspect.signature(sampler_class).parameters
    _check_options(name, options, keywords, of_optuna=sampler_class.__module__.startswith("optuna."))
    _check_space(name, sampler_class, space, objectives, constrained)
    for package in next((PACKAGES[known] for known in PACKAGES if issubclass(sampler_class, known)), ()):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"search.strategy: {name} needs the package {package}; install it with: pip install {package}"
            )
    seeded = {**options, "seed": seed} if "seed" in keywords else dict(options)
    sampler = _construct(name, sampler_class, seeded)
    rehearsed = _construct(name, sampler_class, {**seeded, **_brief(seeded, keywords)})
    _try(name, rehearsed, space, objectives, bool(options))
    return sampler


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as a sampler sees it, by axis."""
    return {name: Axis(domain).distribution for name, domain in space.axes.items()}


def _sampler_class(name: str) -> type[BaseSampler]:
    if name in SAMPLERS:
        return SAMPLERS[name]
    module, _, attribute = name.rpartition(".")
    if name in ("bruteforce", "grid"):
        found: object = BruteForceSampler
    elif module:
        found = _imported(name, module, attribute)
    else:
        raise InputError(
            f"search.strategy: there is no sampler {shown(name)}{did_you_mean(name, SAMPLERS)}; "
            "one of your own is named by its class path, such as my_package.MySampler"
        )
    if not (isinstance(found, type) and issubclass(found, BaseSampler)):
        raise InputError(f"search.strategy: {name} is no class of optuna.samplers.BaseSampler")
    if issubclass(found, BruteForceSampler | GridSampler):
        raise InputError(f"search.strategy: {name} tries every cell; use grid, which does so lazily")
    return found


def _imported(name: str, module: str, attribute: str) -> object:
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise InputError(f"search.strategy: {name} cannot be imported: {_first_line(error)}") from error
    return found


def _check_space(
    name: str, sampler_class: type[BaseSampler], space: Space, objectives: int, constrained: bool
) -> None:
    """Refuse what CMA-ES would answer with random draws, a warning, or an exception in mid-study."""
    if not issubclass(sampler_class, CmaEsSampler):
        return
    seen = {axis: each for axis, each in distributions(space).items() if not each.single()}
    texts = [axis for axis, each in seen.items() if isinstance(each, CategoricalDistribution)]
    if texts:
        raise InputError(
            f"search.strategy: {name} searches axes of numbers only and would draw space.{texts[0]} at "
            "random; give it one value under settings, or use tpe, gp, nsga2, qmc or random"
        )
    if len(seen) < 2:
        raise InputError(
            f"search.strategy: {name} needs at least two axes of several numbers and the space has "
            f"{len(seen)}; use tpe, gp, nsga2, qmc or random"
        )
    if objectives > 1:
        raise InputError(
            f"search.strategy: {name} takes one objective, and the study has {objectives}; "
            "use tpe, gp, nsga2 or nsga3"
        )
    if constrained:
        raise InputError(f"search.strategy: {name} takes no constraints; use tpe, gp, nsga2 or nsga3")


def _check_options(
    name: str, options: Mapping[str, object], keywords: Mapping[str, inspect.Parameter], of_optuna: bool
) -> None:
    """Every option is a keyword of the constructor, of a type that a file can write and the constructor takes."""
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in keywords.values())
    for option, value in options.items():
        if option == "seed" or (of_optuna and option in INSTEAD):
            raise InputError(f"search.strategy: {INSTEAD[option]}")
        if option not in keywords:
            if takes_all:
                continue
            known = [each for each in keywords if each != "seed"]
            raise InputError(f"search.strategy: {name} has no option {option!r}{did_you_mean(option, known)}")
        kinds = _alternatives(_annotation(keywords[option]))
        if any(_is_of(value, kind) is not False for kind in kinds):
            continue
        objects = [kind for kind in kinds if _is_unwritable(kind)]
        what = f"{shown(value)}; a study file cannot write one" if objects else shown(value)
        raise InputError(f"search.strategy: {name}'s option {option} takes {' or '.join(kinds)}, not {what}")


def _alternatives(annotation: str) -> list[str]:
    """The members of a union, written with bars; bars within brackets belong to a member."""
    found, depth = [""], 0
    for character in annotation.replace(" ", ""):
        depth += (character in "([") - (character in ")]")
        if character == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def _is_unwritable(kind: str) -> bool:
    return any(word in UNWRITABLE for word in re.findall(r"\w+", kind))


def _annotation(parameter: inspect.Parameter) -> str:
    """A parameter's type as it is written, whether or not its module postpones annotations."""
    written = parameter.annotation
    return written if isinstance(written, str) else inspect.formatannotation(written)


def _is_of(value: object, kind: str) -> bool | None:
    """Whether an option's value is of a type as a signature writes it; None where that is not known here."""
    if kind in PLAIN_TYPES:
        return isinstance(value, PLAIN_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
    if _is_unwritable(kind):
        return False
    container = CONTAINERS.get(kind.partition("[")[0].rpartition(".")[2])
    return None if container is None else isinstance(value, container)


def _construct(name: str, sampler_class: type[BaseSampler], keywords: Mapping[str, object]) -> BaseSampler:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # NSGA-III and QMC have been so for years
            return sampler_class(**keywords)
    except Exception as error:
        raise InputError(f"search.strategy: {name} refuses its options: {_first_line(error)}") from error


TRIED = 6
"""Trials of the rehearsal, of which the first `STARTUP` may be drawn at random."""

STARTUP = 3


def _brief(options: Mapping[str, object], keywords: Mapping[str, inspect.Parameter]) -> dict[str, object]:
    """Options with which a rehearsal comes to what a sampler learns: a start as short as a given one, or shorter."""
    given = {
        name: options.get(name, keywords[name].default) for name in SIZES_OF_THE_START if name in keywords
    }
    return {name: min(size, STARTUP) for name, size in given.items() if isinstance(size, int)}


SIZES_OF_THE_START = ("n_startup_trials", "population_size")


def _try(name: str, sampler: BaseSampler, space: Space, objectives: int, options: bool) -> None:
    """Let a sampler suggest and learn a few times in a study of its own."""
    study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
    try:
        for value in range(TRIED):
            study.tell(study.ask(distributions(space)), [float(value)] * objectives)
        study.tell(study.ask(distributions(space)), state=TrialState.FAIL)
    except Exception as error:
        with_options = " with these options" if options else ""
        raise InputError(
            f"search.strategy: {name} cannot search this space{with_options}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Axis:
    """A domain as the sampler sees it: a position on a ladder of values, or a number of a range.

    Numbers stand on the ladder in ascending order, whatever their order in the file.
    """

    distribution: BaseDistribution

    def __init__(self, domain: Domain) -> None:
        self._domain, self._ladder = domain, list[Value]()
        if isinstance(domain, IntRange):
            last = domain.points()[-1]
            self.distribution = IntDistribution(domain.low, last, log=domain.log, step=domain.step)
        elif isinstance(domain, FloatRange) and domain.step is None:
            self.distribution = FloatDistribution(domain.low, domain.high, log=domain.log)
        elif isinstance(domain, Choices) and not domain.ordered:
            self._ladder = list(domain.values)
            self.distribution = CategoricalDistribution(range(len(self._ladder)))
        else:
            self._ladder = sorted(domain.points() or (), key=_number)
            self.distribution = IntDistribution(0, len(self._ladder) - 1)
        self._positions = {_typed(value): position for position, value in enumerate(self._ladder)}

    def value(self, param: Value) -> Value:
        """What a sampler's parameter stands for."""
        if not self._ladder:
            return param
        assert isinstance(param, int)
        return self._ladder[param]

    def drawn(self, chance: random.Random) -> Value:
        """A value at random: of a ladder or a lattice each alike, of a range evenly, by ratio where it is `log`."""
        domain = self._domain
        if isinstance(domain, FloatRange) and domain.step is None:
            if domain.log:
                grown = math.exp(chance.uniform(0, math.log(domain.high / domain.low)))
                return min(domain.low * grown, domain.high)
            return chance.uniform(domain.low, domain.high)
        return chance.choice(self._ladder or domain.points() or ())

    def param(self, value: Value) -> Value:
        """The sampler's parameter for a value. Raises ValueError where it is not in the domain."""
        domain = self._domain
        if self._ladder:
            inside = _typed(value) in self._positions
        elif isinstance(domain, IntRange):
            inside = type(value) is int and value in domain.points()
        else:
            assert isinstance(domain, FloatRange)
            inside = isinstance(value, int | float) and domain.low <= value <= domain.high
        if not inside:
            raise ValueError(f"{value!r} is not in the domain")
        return self._positions.get(_typed(value), value)


class Axes:
    """A space's axes as the sampler sees them."""

    def __init__(self, space: Space) -> None:
        self._axes = {name: Axis(domain) for name, domain in space.axes.items()}
        self.distributions = {name: axis.distribution for name, axis in self._axes.items()}

    def settings(self, params: Mapping[str, Value]) -> Settings:
        """What a sampler's parameters stand for."""
        return {name: axis.value(params[name]) for name, axis in self._axes.items()}

    def params(self, settings: Settings) -> dict[str, Value] | None:
        """The sampler's parameters for settings; None where it cannot represent them."""
        if set(settings) != set(self._axes):
            return None
        try:
            return {name: axis.param(settings[name]) for name, axis in self._axes.items()}
        except ValueError:
            return None

    def drawn(self, chance: random.Random) -> Settings:
        """Settings at random, as `Axis.drawn`."""
        return {name: axis.drawn(chance) for name, axis in self._axes.items()}


def _typed(value: Value) -> tuple[bool, Value]:
    """A key under which True is not 1, though Python says so, and 7 is 7.0."""
    return isinstance(value, bool), value


def _number(value: Value) -> float:
    assert isinstance(value, int | float)
    return value
