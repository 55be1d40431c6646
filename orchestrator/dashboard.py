"""A study for optuna-dashboard: told to an Optuna storage while it runs, off the loop's path, or afterwards."""

import logging
import shlex
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from orchestrator.catalog.parquet import past_trials, trial_rows
from orchestrator.catalog.tables import Tables
from orchestrator.copied import copied, scored_once
from orchestrator.study_folder import StudyFolder
from orchestrator.tracking.optuna_storage import (
    Place,
    ProjectedStudy,
    ProjectedTrial,
    Projection,
    parse_place,
)
from search_spaces.errors import InputError
from search_spaces.estimates import estimate
from search_spaces.requests import Failed, Scored
from search_spaces.strategies.trials import as_filed
from search_spaces.study import Study

_log = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""Between two projections, at least."""

BUSY_SHARE = 20
"""A pause lasts so many times what the projection before it took: a large study takes no more of the machine."""

PATIENCE_SECONDS = 60.0
"""That the last projection may take before the run ends without it."""

UNTOLD = datetime.fromtimestamp(0, UTC)
"""The time of a row that does not tell it, since another program wrote it."""


def projected(study: Study, root: str, ended: bool) -> ProjectedStudy:
    """A study as the catalog under a root has it; `ended` says that nobody works on it now."""
    tables, instances = Tables(root), len(study.instances)
    past = as_filed(past_trials(tables, study.name), study.judge)
    columns = ["trial", "instance", "image_id", "time"]
    images: dict[tuple[int, int], str] = {}
    times: dict[int, list[datetime]] = {}
    rows = trial_rows(tables, study.name, [*columns, "role"]).to_pylist()
    for row in rows:
        if row["role"] == "search":
            images[row["trial"], row["instance"]] = row["image_id"]
        times.setdefault(row["trial"], []).append(row["time"] or UNTOLD)
    trials, same = [], copied(tables, study.name, past, instances)
    for trial in past:
        outcomes = {i: outcome for i, outcome in trial.outcomes.items() if i < instances}
        scores = {i: o.scores[study.objective] for i, o in outcomes.items() if isinstance(o, Scored)}
        once = scored_once(outcomes, same, instances)
        whole = estimate([each.scores[study.objective] for each in once.values()]) if once else None
        interval = None
        if whole is not None and whole.half_width is not None:
            interval = (whole.mean - whole.half_width, whole.mean + whole.half_width)
        trials.append(
            ProjectedTrial(
                trial.number,
                trial.settings,
                scores,
                {i: outcome for i, outcome in outcomes.items() if isinstance(outcome, Failed)},
                {i: images[trial.number, i] for i in scores},
                whole.mean if whole else None,
                interval,
                min(times[trial.number]),
                max(times[trial.number]),
                sum(instance < instances for instance in trial.looks),
            )
        )
    return ProjectedStudy(
        study.name, study.token, study.objective, instances, study.space.axes, trials, ended
    )


def export(study: Study, root: str, storage: str) -> str:
    """Bring a study into a storage; the result is one line that says how to look at it. Raises InputError."""
    place, folder = parse_place(storage), StudyFolder(root, study.name)
    projection = Projection(place, folder.optuna)
    try:
        told = projected(study, root, ended=not folder.is_being_run)
        count = projection.bring_up_to_date(told, Tables(root).pictures)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 -- its text may quote a password
        raise InputError(f"the Optuna storage {place} failed: {place.why(error)}") from None
    finally:
        projection.close()
    return f"{count} trials of {study.name} in {place}; {_advice(place, folder)}"


class Dashboard:
    """Tells a study that is being run to a storage, at intervals, in a thread of its own.

    Nothing that goes wrong there reaches the study: it is logged once, and the next projection, which begins
    from the catalog, makes up for it.
    """

    def __init__(self, study: Study, root: str, storage: str | None, pause: float = PAUSE_SECONDS) -> None:
        """`storage` None is a journal in the study's folder; `pause` is in seconds.

        Raises InputError where the storage cannot be had.
        """
        self._study, self._root, self._folder = study, root, StudyFolder(root, study.name)
        self._place = (
            parse_place(storage) if storage else Place(journal=self._folder.optuna / "study.journal")
        )
        self._projection: Projection | None = Projection(self._place, self._folder.optuna)
        self._projection.claim(ProjectedStudy(study.name, study.token, study.objective, 0, {}, [], False))
        self.advice = _advice(self._place, self._folder)
        self._teller = Repeating(self._tell, self._place.why, pause)

    def start(self) -> None:
        """Begin to tell."""
        self._teller.start()

    def close(self) -> str | None:
        """Tell the study a last time (seconds); a line for the user where that failed."""
        problem = self._teller.close(PATIENCE_SECONDS)
        if problem is None:
            return None
        again = f"latentsweep export {self._study.name} --to optuna {shlex.quote(str(self._place))}"
        return f"the dashboard was not brought up to date: {problem}; `{again}` does it"

    def abandon(self) -> None:
        """Stop telling, without a last time."""
        self._teller.abandon()

    def _tell(self, ended: bool) -> None:
        if self._projection is None:
            self._projection = Projection(self._place, self._folder.optuna)
        try:
            told = projected(self._study, self._root, ended)
            self._projection.bring_up_to_date(told, Tables(self._root).pictures)
        except BaseException:
            broken, self._projection = self._projection, None  # its connection may be what broke
            broken.close()
            raise
        if ended:
            self._projection.close()


class Repeating:
    """Calls `act(False)` at intervals in a thread, and `act(True)` at the end; its failures stop nothing."""

    def __init__(
        self,
        act: Callable[[bool], None],
        why: Callable[[Exception], str] = str,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        """`why` makes one line of an error, without secrets; `pause` is in seconds."""
        self._act, self._why, self._pause = act, why, pause
        self._ending, self._abandoned = threading.Event(), False
        self._problem: str | None = "it did not begin"
        self._warned = False
        self._thread = threading.Thread(target=self._live, name="dashboard", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, patience: float) -> str | None:
        """End with a last call, for which `patience` seconds are waited; what is wrong with it, or None."""
        self._ending.set()
        self._thread.join(patience)
        if self._thread.is_alive():
            return f"it takes longer than {patience:g} s"
        return self._problem

    def abandon(self) -> None:
        """End without a last call."""
        self._abandoned = True
        self._ending.set()

    def _live(self) -> None:
        pause = 0.0
        while not self._ending.wait(pause):
            begun = time.monotonic()
            self._attempt(ended=False)
            pause = max(self._pause, BUSY_SHARE * (time.monotonic() - begun))
        if not self._abandoned:
            self._attempt(ended=True)

    def _attempt(self, ended: bool) -> None:
        try:
            self._act(ended)
            self._problem = None
        except Exception as error:  # noqa: BLE001 -- an observer's failure, of any kind, stops nothing
            self._problem = self._why(error)
            if not self._warned:
                self._warned = True
                _log.warning("the dashboard's projection failed: %s; the study goes on", self._problem)


def _advice(place: Place, folder: StudyFolder) -> str:
    """How to look at a storage."""
    words = ["optuna-dashboard", str(place), "--artifact-dir", str(folder.optuna / "artifacts")]
    return f"look at it with `{shlex.join(words)}`"
