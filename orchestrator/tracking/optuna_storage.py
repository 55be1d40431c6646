"""A study's trials in an Optuna storage, for optuna-dashboard: a projection of the catalog, rebuilt at need.

Optuna's number of a trial is ours. A storage cannot alter a trial that is finished, so a study that is no
longer what the storage says of it (it was continued with more seeds, say) is deleted there and told anew.
"""

import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.artifacts import ArtifactMeta
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from PIL import Image

from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.errors import InputError, did_you_mean
from search_spaces.requests import Failed, Settings, Value

optuna.logging.set_verbosity(optuna.logging.WARNING)

TOKEN = "latentsweep_token"
"""User attribute of a study that is ours, and which of that name."""

THUMBNAILS = 4
"""Instances of a trial, the first ones, that have a thumbnail: the same for all trials."""

THUMBNAIL_PIXELS = 192
"""Its longer side, at most."""

MOST_IMAGE_IDS = 1000
"""Of a trial in its user attribute: MySQL takes 64 KiB of text."""

CONNECT_SECONDS = 10
"""After which a server that does not answer counts as one that cannot be reached."""

# Names that Optuna and its dashboard read; they have no public constant.
_METRIC_NAMES = "study:metric_names"
_ARTIFACT = "artifacts:"

_TIMED_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")
_EXACT_INTEGERS = 2**53  # Optuna keeps parameters as doubles

_FORMS = (
    "write journal:PATH, a path that ends in .journal or .log, or a database's URL such as "
    "sqlite:///study.db or postgresql://user@host/name"
)

Pictures = Callable[[Set[str]], Iterable[tuple[str, bytes]]]
"""Some image_ids → those of them that there are, with their PNG."""


@dataclass(frozen=True)
class ProjectedTrial:
    """A trial as the catalog has it.

    `scores` maps instance → objective, `images` instance → image_id. `mean` and its 95 % `interval` (low,
    high) are None where an instance lacks its score. `begun` and `ended` are its first and last row's times.
    `looked` counts the instances with an early look.
    """

    number: int
    settings: Settings
    scores: Mapping[int, float]
    failures: Mapping[int, Failed]
    images: Mapping[int, str]
    mean: float | None
    interval: tuple[float, float] | None
    begun: datetime
    ended: datetime
    looked: int = 0


@dataclass(frozen=True)
class ProjectedStudy:
    """A study as the catalog has it; `ended` says that nobody works on it now."""

    name: str
    token: str
    objective: str
    instances: int
    axes: Mapping[str, Domain]
    trials: Sequence[ProjectedTrial]
    ended: bool


def distribution(domain: Domain | None, tried: Sequence[Value]) -> BaseDistribution:
    """A setting's values as Optuna knows them: a span for numbers, choices for all else; the real values.

    It holds every value that was tried, on the domain's lattice or off it, and has no steps, so that it stays
    the same for all trials: Optuna reckons importance only over distributions that are equal.
    """
    values = [*_own_values(domain), *tried]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return CategoricalDistribution(list({(type(v) is bool, v): v for v in values}.values()))
    numbers = [value for value in values if isinstance(value, int | float)]
    low, high = min(numbers), max(numbers)
    log = isinstance(domain, FloatRange | IntRange) and domain.log and low > 0
    if all(isinstance(value, int) and abs(value) <= _EXACT_INTEGERS for value in numbers):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _own_values(domain: Domain | None) -> Sequence[Value]:
    if domain is None:
        return ()
    return domain.values if isinstance(domain, Choices) else (domain.low, domain.high)


def frozen_trials(study: ProjectedStudy, thumbnails: Set[str] = frozenset()) -> list[FrozenTrial]:
    """A study's trials as Optuna's, each at the place of its number; `thumbnails` are image_ids that have one.

    A number that nothing is known of yet waits; when the study has ended, it failed.
    """
    names = dict.fromkeys([*study.axes, *(name for trial in study.trials for name in trial.settings)])
    known = {
        name: distribution(
            study.axes.get(name), [t.settings[name] for t in study.trials if name in t.settings]
        )
        for name in names
    }
    trials = {trial.number: trial for trial in study.trials}
    return [
        _frozen(trials[number], study, known, thumbnails) if number in trials else _gap(number, study.ended)
        for number in range(max(trials, default=-1) + 1)
    ]


def _frozen(
    trial: ProjectedTrial, study: ProjectedStudy, known: Mapping[str, BaseDistribution], thumbnails: Set[str]
) -> FrozenTrial:
    state, reason = _state(trial, study)
    attributes: dict[str, object] = {"trial": trial.number, "instances": len(trial.scores)}
    if trial.interval is not None:
        attributes[f"{study.objective}_interval"] = list(trial.interval)
    if reason:
        attributes["reason"] = reason
    images = dict(sorted(trial.images.items()))
    attributes["image_ids"] = list(images.values())[:MOST_IMAGE_IDS]
    frozen = optuna.trial.create_trial(
        state=state,
        value=trial.mean if state == TrialState.COMPLETE else None,
        params={name: _param(known[name], value) for name, value in trial.settings.items()},
        distributions={name: known[name] for name in trial.settings},
        user_attrs=attributes,
        system_attrs={
            _ARTIFACT + image_id: _artifact(image_id, instance)
            for instance, image_id in images.items()
            if instance < THUMBNAILS and image_id in thumbnails
        },
        intermediate_values=dict(sorted(trial.scores.items())),
    )
    frozen.datetime_start = _local(trial.begun)
    frozen.datetime_complete = _local(trial.ended) if state.is_finished() else None
    return frozen


def _state(trial: ProjectedTrial, study: ProjectedStudy) -> tuple[TrialState, str | None]:
    """A trial's state, and why it has no value where that is certain."""
    if trial.mean is not None:
        return TrialState.COMPLETE, None
    infeasible = sorted(i for i, failed in trial.failures.items() if failed.kind == "infeasible")
    lost = sorted(i for i, failed in trial.failures.items() if failed.kind == "lost")
    if infeasible or (lost and study.ended):
        first = (infeasible or lost)[0]
        kind = "infeasible" if infeasible else "lost"
        return TrialState.FAIL, f"instance {first} is {kind}: {trial.failures[first].reason}"
    if not study.ended:
        return TrialState.RUNNING, None
    looked = f"looked at on {trial.looked} and " if trial.looked else ""
    return (
        TrialState.PRUNED,
        f"{looked}judged on {len(trial.scores)} of {study.instances} instances when the study ended",
    )


def _gap(number: int, ended: bool) -> FrozenTrial:
    attributes: dict[str, object] = {"trial": number}
    if ended:
        attributes["reason"] = "nothing was judged under this number"
    state = TrialState.FAIL if ended else TrialState.WAITING
    return optuna.trial.create_trial(state=state, user_attrs=attributes)


def _param(known: BaseDistribution, value: Value) -> Value:
    return float(value) if isinstance(known, FloatDistribution) and value is not None else value


def _artifact(image_id: str, instance: int) -> str:
    return json.dumps(asdict(ArtifactMeta(image_id, f"instance-{instance}.png", "image/png", None)))


def _local(time: datetime) -> datetime:
    """As Optuna writes times: this machine's, without a zone."""
    return time.astimezone().replace(tzinfo=None)


@dataclass(frozen=True)
class Place:
    """Where a storage is: a journal's path or a database's URL, of which one is None."""

    journal: Path | None = None
    database: sqlalchemy.URL | None = None

    def __str__(self) -> str:
        """As optuna-dashboard takes it, without a password or anything that may be one."""
        if self.database is None:
            return str(self.journal)
        return self.database.set(query={}).render_as_string(hide_password=True)

    def check(self) -> None:
        """See that the storage can be reached, writing nothing. Raises InputError, one sentence."""
        if self.journal is not None:
            _check_file(self.journal)
        elif self._file is not None:
            _check_file(self._file)
        else:
            engine = self._engine()
            try:
                engine.connect().close()
            except Exception as error:  # noqa: BLE001 -- drivers raise what they like
                raise self.unreachable(error) from None
            finally:
                engine.dispose()

    def open(self) -> BaseStorage:
        """Open the storage, made where it is not there yet. Raises InputError, one sentence."""
        self.check()
        try:
            if self.journal is not None:
                # Absolute: Optuna waits for ever for the lock that a killed process left on a relative path.
                return JournalStorage(JournalFileBackend(str(self.journal.absolute())))
            assert self.database is not None
            url = self.database.render_as_string(hide_password=False)
            return RDBStorage(url, engine_kwargs=self._engine_arguments())
        except Exception as error:  # noqa: BLE001 -- whatever a file or a driver makes of it
            if self.journal is not None:
                raise InputError(
                    f"{self.journal} is no journal that Optuna can read; move it away, it is written anew"
                ) from None
            raise self.unreachable(error) from None

    def unreachable(self, error: Exception) -> InputError:
        """The sentence for a storage that cannot be reached."""
        return InputError(f"the Optuna storage {self} cannot be reached: {self.why(error)}")

    def why(self, error: Exception) -> str:
        """An error in one line, without the secrets of this place."""
        if isinstance(error, InputError):
            return str(error)
        cause = error
        while cause.__cause__ is not None and isinstance(cause, optuna.exceptions.OptunaError):
            cause = cause.__cause__  # type: ignore[assignment]  # Optuna says that something went wrong
        text = str(getattr(cause, "orig", None) or cause).strip() or type(cause).__name__
        line = text.splitlines()[0].strip()
        for secret in self._secrets():
            line = line.replace(secret, "***")
        return line

    @property
    def _file(self) -> Path | None:
        """SQLite's file."""
        if self.database is None or self.database.get_backend_name() != "sqlite":
            return None
        return Path(self.database.database or "")

    def _engine(self) -> sqlalchemy.Engine:
        assert self.database is not None
        try:
            return sqlalchemy.create_engine(self.database, **self._engine_arguments())
        except sqlalchemy.exc.NoSuchModuleError:
            known = did_you_mean(self.database.drivername, ("postgresql", "mysql", "mariadb", "sqlite"))
            raise InputError(
                f"{self.database.drivername!r} is no database that SQLAlchemy knows{known}"
            ) from None
        except ImportError as error:
            wanted = "latentsweep[postgresql]" if error.name in ("psycopg", "psycopg2") else None
            advice = f"`pip install '{wanted}'`" if wanted else "install it"
            raise InputError(
                f"the Optuna storage {self} needs the Python module {error.name}, which is not here: {advice}"
            ) from None
        except Exception as error:  # noqa: BLE001 -- a URL's parts that a driver does not take
            raise self.unreachable(error) from None

    def _engine_arguments(self) -> dict[str, Any]:
        assert self.database is not None
        if self._file is not None:
            return {}
        arguments: dict[str, Any] = {"pool_pre_ping": True}
        driver = self.database.drivername.partition("+")[2]
        if not driver:
            with suppress(Exception):  # said when the engine is made
                driver = self.database.get_dialect().driver
        if driver in _TIMED_DRIVERS and "connect_timeout" not in self.database.query:
            arguments["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
        return arguments

    def _secrets(self) -> list[str]:
        if self.database is None:
            return []
        found = [self.database.password or ""]
        for name, value in self.database.query.items():
            if re.search(r"pass|key|token|secret", name, re.IGNORECASE):
                found += [value] if isinstance(value, str) else value
        return [secret for secret in found if secret]


def parse_place(text: str) -> Place:
    """`journal:PATH`, a path ending in .journal or .log, or a database's URL. Raises InputError."""
    if text.startswith("journal:"):
        path = text.removeprefix("journal:")
        if not path:
            raise InputError(f"journal: has no path behind it; {_FORMS}")
        return Place(journal=Path(path))
    if "://" not in text:
        if text.endswith((".journal", ".log")):
            return Place(journal=Path(text))
        named = "that" if "@" in text else repr(text)  # it may be a URL with a password, less its beginning
        raise InputError(f"{named} is no Optuna storage; {_FORMS}")
    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # their texts may quote a password
        raise InputError(f"the URL of the Optuna storage cannot be read; {_FORMS}") from None
    if url.drivername.startswith("sqlite") and url.database in (None, "", ":memory:"):
        raise InputError(f"{text.partition('?')[0]} is in memory only, where nobody can look at it; {_FORMS}")
    return Place(database=url)


def _check_file(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(
            f"the Optuna storage {path} cannot be reached: {folder} is no folder; make it, or name another"
        )
    if path.exists() and not path.is_file():
        raise InputError(f"the Optuna storage {path} cannot be reached: it is a folder; name a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"the Optuna storage {path} cannot be reached: it may not be written")


class Projection:
    """One study in one storage. `folder` is the study's own: it takes `artifacts/`, the thumbnails.

    Raises InputError where the storage cannot be reached.
    """

    def __init__(self, place: Place, folder: Path) -> None:
        self._place, self._folder = place, folder
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir(parents=True, exist_ok=True)
        self._storage = place.open()

    def claim(self, study: ProjectedStudy) -> None:
        """Put the study's name into the storage. Raises InputError where another study has it."""
        with self._alone():
            self._own(study)

    def bring_up_to_date(self, study: ProjectedStudy, pictures: Pictures) -> int:
        """Make the storage say what the catalog says; the result is the number of trials there.

        A trial that is finished in the storage and differs makes the whole study be told anew. Raises
        InputError where another study has the name, and whatever the storage raises.
        """
        due = frozen_trials(study, self._thumbnails(study, pictures))
        with self._alone():
            study_id = self._own(study)
            stored = self._storage.get_all_trials(study_id, deepcopy=False)
            fits = len(stored) <= len(due)
            if not fits or not all(map(_can_become, stored, due)):
                self._storage.delete_study(study_id)
                study_id, stored = self._own(study), []
            for old, new in zip(stored, due, strict=False):
                if not old.state.is_finished():
                    _advance(self._storage, old, new)
            for new in due[len(stored) :]:
                self._storage.create_new_trial(study_id, template_trial=new)
        return len(due)

    def close(self) -> None:
        """Let go of the storage's connections."""
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()

    def _own(self, study: ProjectedStudy) -> int:
        """The storage's id of the study, made where it is not there. Raises InputError."""
        try:
            study_id: int = self._storage.get_study_id_from_name(study.name)
        except KeyError:
            study_id = self._storage.create_new_study([StudyDirection.MAXIMIZE], study.name)
        token = self._storage.get_study_user_attrs(study_id).get(TOKEN)
        if token is None and not self._storage.get_all_trials(study_id, deepcopy=False):
            # Just made, perhaps by a process that was killed before it could say so.
            self._storage.set_study_system_attr(study_id, _METRIC_NAMES, [study.objective])
            self._storage.set_study_user_attr(study_id, TOKEN, study.token)
        elif token != study.token:
            raise InputError(
                f"the Optuna storage {self._place} holds another study named {study.name!r}; "
                "name another storage, or give this study another name"
            )
        return study_id

    def _thumbnails(self, study: ProjectedStudy, pictures: Pictures) -> set[str]:
        """Write the thumbnails that are not there yet; the image_ids of those that are."""
        wanted = {
            image_id
            for trial in study.trials
            for instance, image_id in trial.images.items()
            if instance < THUMBNAILS
        }
        there = {path.name for path in self.artifacts.iterdir()} & wanted
        missing = wanted - there
        for image_id, png in pictures(missing) if missing else ():
            aside = self.artifacts / f".{image_id}.tmp"
            aside.write_bytes(thumbnail(png))
            aside.rename(self.artifacts / image_id)
            there.add(image_id)
        return there

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two processes that bring one study up to date would tell its trials twice."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def thumbnail(png: bytes) -> bytes:
    """A picture made small enough to be looked at in a table, as PNG."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return buffer.getvalue()


def _can_become(stored: FrozenTrial, due: FrozenTrial) -> bool:
    """Whether the storage's calls can turn a stored trial into the one that is due."""
    for name, value in stored.params.items():
        if due.distributions.get(name) != stored.distributions[name] or due.params[name] != value:
            return False
    if not stored.intermediate_values.keys() <= due.intermediate_values.keys():
        return False
    if not stored.state.is_finished():
        return not (due.state == TrialState.WAITING and stored.state == TrialState.RUNNING)
    return all(
        (
            stored.state == due.state,
            stored.values == due.values,
            stored.params.keys() == due.params.keys(),
            stored.intermediate_values == due.intermediate_values,
            stored.user_attrs.items() >= due.user_attrs.items(),
            stored.system_attrs.items() >= due.system_attrs.items(),
        )
    )


def _advance(storage: BaseStorage, stored: FrozenTrial, due: FrozenTrial) -> None:
    """Bring an unfinished trial to what is due; its state last, after which nothing more can be said."""
    trial_id = stored._trial_id
    if stored.state == TrialState.WAITING and due.state == TrialState.RUNNING:
        storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    for name, value in due.params.items():
        if name not in stored.params:
            known = due.distributions[name]
            storage.set_trial_param(trial_id, name, known.to_internal_repr(value), known)
    for step, score in due.intermediate_values.items():
        if stored.intermediate_values.get(step) != score:
            storage.set_trial_intermediate_value(trial_id, step, score)
    for key, attribute in due.user_attrs.items():
        if stored.user_attrs.get(key) != attribute:
            storage.set_trial_user_attr(trial_id, key, attribute)
    for key, attribute in due.system_attrs.items():
        if stored.system_attrs.get(key) != attribute:
            storage.set_trial_system_attr(trial_id, key, attribute)
    if due.state.is_finished():
        storage.set_trial_state_values(trial_id, due.state, due.values)
