"""How many trials a second the loop manages where pictures cost nothing, against Ray Tune and Optuna in one run.

Every trial is one flat picture of the fake pipeline, scored by its brightness, encoded as PNG. The loop runs as it
always does: two Ray actors, the Parquet catalog on disk. Ray Tune: a class trainable that does the same work on as
many actors, which it reuses; its results go to disk as they do by default. Optuna: `study.optimize(n_jobs=2)` in
this process, in memory, no picture kept and no other process: the least that Optuna costs. A rate is that from the
first result to the last, so that nobody pays for starting up. The space is the same for all: steps × guidance ×
negative prompt; all three tell TPE that numbers are ordered, which costs it more than lists of unrelated values.

Figures, medians of turns: `trials_per_s_vs_ray_tune_SEARCH` and `trials_per_s_vs_optimize_SEARCH`, for each search;
`rate_at_10000_vs_1000`, the rate of 10,000 grid trials over that of 1,000; `driver_growth_mb`, what this process
grows by between the 1,000th and the last trial of the longer run.
"""

import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.ray_pool import RayPool
from orchestrator.ray_session import ray_session
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import NullTracker
from orchestrator.wiring import make_strategy
from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.requests import Scored, Settings, Value
from search_spaces.space import Space
from search_spaces.study import Study
from search_spaces.study_file import SearchSpec
from tests.orchestrator.studies import small_study
from workers.pipelines.fake import FakePipeline
from workers.scoring.fake import BrightnessScorer
from workers.worker import Worker

optuna.logging.set_verbosity(optuna.logging.WARNING)

ACTORS = 2
BATCH = 8
SEARCHES = ("grid", "random", "tpe")

TURNS = 3
"""Of which the median counts: one takes a second or a few."""


def rate_study(cells: int) -> Study:
    """A study of one instance over `cells` distinct cells, a multiple of 100."""
    axes: dict[str, Domain] = {
        "num_inference_steps": IntRange(low=1, high=cells // 100),
        "guidance_scale": FloatRange(low=1.5, high=6.0, step=0.5),
        "negative_prompt": Choices(values=tuple("abcdefghij")),
    }
    return small_study(seeds=1).model_copy(update={"space": Space(axes=axes)})


def fake_worker(batch: int) -> Worker:
    """A worker whose pictures cost nothing, and which wants `batch` of them at a time."""
    return Worker(FakePipeline(batch), {"clip_score": BrightnessScorer()}, "fake device", batch)


class Pace:
    """Counts results as they come, from the first on."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def count(self, results: int) -> None:
        """So many results are there now."""
        if results > self._last[1]:
            self._last = time.perf_counter(), results
            self._first = self._first or self._last

    @property
    def per_second(self) -> float:
        """Results a second between the first and the last."""
        assert self._first is not None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def _optuna_sampler(search: str) -> optuna.samplers.BaseSampler:
    if search == "random":
        return optuna.samplers.RandomSampler(seed=0)
    return optuna.samplers.TPESampler(seed=0)


def loop_rate(search: str, trials: int, watch: Callable[[int], None] = lambda _: None) -> float:
    """Trials a second of the loop; `watch` hears how many there are so far."""
    spec = {"strategy": search} | ({} if search == "grid" else {"trials": trials})
    study = rate_study(trials if search == "grid" else 10_000)
    study = study.model_copy(update={"search": SearchSpec.model_validate(spec)})
    pool = RayPool(partial(ray_session, None), partial(fake_worker, BATCH), ACTORS, BATCH)
    pace = Pace()

    def look(progress: Progress) -> None:
        pace.count(progress.images)
        watch(progress.images)

    with tempfile.TemporaryDirectory() as root:
        try:
            catalog = ParquetCatalog(Tables(Path(root)), study)
            made = sweep(study, make_strategy(study, []), pool, catalog, NullTracker(), watch=look)
        finally:
            pool.close()
    assert made.images - trials in (0, 1), made  # the model's own settings come first, on the lattice or not
    return pace.per_second


def score(worker: Worker, study: Study, settings: Settings) -> float:
    """One trial of the fake pipeline."""
    outcome = worker.advance([study.request(settings, study.instances[0])])[0].outcome
    assert isinstance(outcome, Scored)
    return next(iter(outcome.scores.values()))


def tune_rate(search: str, trials: int) -> float:
    """Trials a second of Ray Tune over the same actors, reused."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    study = rate_study(trials if search == "grid" else 10_000)
    pace = Pace()

    class Fake(tune.Trainable):  # type: ignore[misc]  # Ray has no types
        def setup(self, config: dict[str, Any]) -> None:
            self._worker, self._config = fake_worker(1), config

        def step(self) -> dict[str, Any]:
            return {"score": score(self._worker, study, self._config), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._config = new_config
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """There is nothing to keep."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """There is nothing to load."""

    class Counting(tune.Callback):  # type: ignore[misc]
        done = 0

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.done += 1
            pace.count(self.done)

    space, sampler = _tune_space(study, search), None
    if search == "tpe":
        from ray.tune.search.optuna import OptunaSearch

        sampler = OptunaSearch(metric="score", mode="max", sampler=_optuna_sampler(search))
    with ray_session(None), tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(Fake, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=sampler,
                num_samples=1 if search == "grid" else trials,
                max_concurrent_trials=ACTORS,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(verbose=0, storage_path=folder, callbacks=[Counting()]),
        )
        assert len(tuner.fit()) == trials
    return pace.per_second


def _tune_space(study: Study, search: str) -> dict[str, Any]:
    from ray import tune

    if search == "tpe":
        return {name: _tune_domain(domain) for name, domain in study.space.axes.items()}
    way = tune.grid_search if search == "grid" else tune.choice
    return {name: way(list(domain.points() or ())) for name, domain in study.space.axes.items()}


def _tune_domain(domain: Domain) -> Any:
    from ray import tune

    if isinstance(domain, IntRange):
        return tune.randint(domain.low, domain.high + 1)
    if isinstance(domain, FloatRange):
        return tune.quniform(domain.low, domain.high, domain.step)
    return tune.choice(list(domain.points() or ()))


def _suggested(trial: optuna.Trial, name: str, domain: Domain, search: str) -> Value:
    """What Optuna's own loop tries of an axis."""
    value: Value
    if search == "tpe" and isinstance(domain, IntRange):
        value = trial.suggest_int(name, domain.low, domain.high)
    elif search == "tpe" and isinstance(domain, FloatRange):
        value = trial.suggest_float(name, domain.low, domain.high, step=domain.step)
    else:
        value = trial.suggest_categorical(name, list(domain.points() or ()))
    return value


def optimize_rate(search: str, trials: int) -> float:
    """Trials a second of Optuna's own loop with as many threads."""
    study = rate_study(trials if search == "grid" else 10_000)
    workers: dict[int, Worker] = {}
    pace = Pace()

    def objective(trial: optuna.Trial) -> float:
        worker = workers.setdefault(threading.get_ident(), fake_worker(1))
        settings = {name: _suggested(trial, name, axis, search) for name, axis in study.space.axes.items()}
        return score(worker, study, settings)

    points = {name: list(domain.points() or ()) for name, domain in study.space.axes.items()}
    sampler = optuna.samplers.GridSampler(points, seed=0) if search == "grid" else _optuna_sampler(search)
    own = optuna.create_study(direction="maximize", sampler=sampler)
    own.optimize(objective, trials, n_jobs=ACTORS, callbacks=[lambda _, trial: pace.count(trial.number + 1)])
    return pace.per_second


def resident_mb() -> float:
    """This process's resident memory in megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth_figures(few: int = 1000, many: int = 10_000) -> dict[str, float]:
    """What ten times as many trials do to the rate and to this process's memory."""
    memory: list[float] = []

    def watch(results: int) -> None:
        if results >= few and not memory:
            memory.append(resident_mb())

    short = loop_rate("grid", few)
    long = loop_rate("grid", many, watch)
    return {"rate_at_10000_vs_1000": long / short, "driver_growth_mb": resident_mb() - memory[0]}


def rate_figures(quick: bool = False) -> dict[str, float]:
    """All figures of this module; `quick` makes a tenth of the trials and no long run."""
    with ray_session(None):  # one for all of them, which find it there
        # First of all: memory that others have freed would hide what this takes.
        told = {} if quick else growth_figures()
        for search in SEARCHES:
            trials = (100 if quick else 1000) if search != "tpe" else (40 if quick else 300)
            told |= _side_by_side(search, trials, 1 if quick else TURNS)
        return told


def _side_by_side(search: str, trials: int, turns: int) -> dict[str, float]:
    """The rates of all in turns, the median of each, and ours over the others'."""
    makers = {"loop": loop_rate, "optimize": optimize_rate, "ray_tune": tune_rate}
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(turns):
        for name, make in makers.items():
            rates[name].append(_rate(name, make, search, trials))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {f"{name}_trials_per_s_{search}": rate for name, rate in medians.items()} | {
        f"trials_per_s_vs_{name}_{search}": medians["loop"] / medians[name]
        for name in makers
        if name != "loop"
    }


def _rate(name: str, make: Callable[[str, int], float], search: str, trials: int) -> float:
    """One rate; NaN, with the reason printed, where a peer cannot run here."""
    if name == "loop":
        return make(search, trials)
    try:
        with warnings.catch_warnings(action="ignore"):
            return make(search, trials)
    except Exception as error:  # noqa: BLE001  # a peer that cannot run here is told, and the others go on
        print(f"{name} {search}: cannot run here: {type(error).__name__}: {str(error).splitlines()[0]}")
        return float("nan")
