"""The studies under a root: which there are, what one costs on disk, and how two differ."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog.ids import Index, firsts, keys
from orchestrator.catalog.parquet import scored_count
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import Freed, free, of_study_alone
from orchestrator.report.results import Results, TrialResult
from orchestrator.report.statistics import Nobody, Ranked, best, ranking
from orchestrator.report.values import Wording
from orchestrator.study_folder import DEFAULT_ROOT, StudyFolder, is_study_name, local_root, named_folder
from search_spaces.errors import InputError, did_you_mean, shown
from search_spaces.estimates import Estimate, estimate
from search_spaces.requests import Settings, Value
from search_spaces.study import Study

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """One study of a root: `size` in bytes of its images, where they are known; `owner` runs it now."""

    study: str
    trials: int
    images: int
    size: int
    last: datetime | None
    owner: str | None


def studies(root: str = DEFAULT_ROOT) -> list[Listed]:
    """Every study that a root knows, by catalog or folder, by name."""
    tables = Tables(root)
    rows = tables.read("trials", ["study", "trial", "image_id", "time"])
    images = tables.read("images", ["image_id", "file_bytes"], pc.field("status") == "ok")
    index = Index(keys(images["image_id"]))
    found = []
    for name in sorted({*_folders(root)} | set(rows["study"].unique().to_pylist())):
        if not is_study_name(name):  # which would name another folder
            _log.warning("%s is not the name of a study; it is left out", shown(name))
            continue
        own = rows.filter(pc.equal(rows["study"], name))
        ids = own["image_id"].unique()
        there = index.rows(keys(pa.chunked_array([ids])))
        sizes = images["file_bytes"].take(pa.array(there[there >= 0]))
        found.append(
            Listed(
                name,
                len(own["trial"].unique()),
                int((there >= 0).sum()),
                pc.sum(sizes).as_py() or 0,
                pc.max(own["time"]).as_py(),
                StudyFolder(root, name).owner,
            )
        )
    return found


def lost_of(tables: Tables, folder: StudyFolder) -> int:
    """How many scored instances the catalog had of a study when that was last run, and has no more."""
    session = folder.session()
    return max(0, session.scored - scored_count(tables, folder.name)) if session and session.scored else 0


def lost(root: str = DEFAULT_ROOT) -> dict[str, int]:
    """The scored instances that are gone altogether, by study; studies that lack none are left out."""
    tables = Tables(root)
    found = {name: lost_of(tables, StudyFolder(root, name)) for name in _folders(root) if is_study_name(name)}
    return {name: count for name, count in found.items() if count}


def _folders(root: str) -> list[str]:
    """The names of what lies in a root's folder of studies, ascending."""
    folders = local_root(root) / "studies"
    return sorted(path.name for path in folders.iterdir() if path.is_dir()) if folders.is_dir() else []


def reused_from(tables: Tables, image_ids: set[str], study: str) -> dict[str, int]:
    """Which study first had each of some images, as study → images, the most first."""
    rows = tables.read("trials", ["study", "image_id"], pc.field("image_id").isin(sorted(image_ids)))
    first = rows.take(pa.array(firsts(keys(rows["image_id"]))))
    counted = {row["values"]: row["counts"] for row in pc.value_counts(first["study"]).to_pylist()}
    unknown = len(image_ids) - first.num_rows
    if unknown:  # drawn by a run that was killed before it could say for what
        counted[study] = counted.get(study, 0) + unknown
    return dict(sorted(counted.items(), key=lambda pair: -pair[1]))


def removal(study: str, root: str = DEFAULT_ROOT) -> Freed:
    """What `remove` would free. Raises InputError for a study that is not there, and where one is being run.

    A run that is under way may have been answered with an image that no trial of its study names yet.
    """
    folder = named_folder(study, root)
    known = studies(root)
    if study not in {listed.study for listed in known} and not folder.path.exists():
        names = [listed.study for listed in known]
        raise InputError(f"there is no study {study!r} under {root}{did_you_mean(study, names)}")
    for listed in known:
        if listed.owner is not None:
            raise InputError(
                f"{listed.study} is being run by {listed.owner}; remove {study} when that has ended"
            )
    return of_study_alone(Tables(root), study)


def remove(study: str, root: str = DEFAULT_ROOT) -> Freed:
    """Remove a study, its folder, and the images that no other study uses; what that was.

    Killed in between, the same again goes on. Raises InputError as `removal`, OSError where it cannot.
    """
    freed = removal(study, root)
    folder = named_folder(study, root)
    with folder.locked(), folder.told_to_comet():
        free(Tables(root), study, freed)
        shutil.rmtree(folder.path)
    return freed


@dataclass(frozen=True)
class Compared:
    """Two studies: which facts differ, and their scores where these can be compared.

    `shared` counts the instances (input, mask, prompt, text, seed) that both have. `best` is the second's best minus
    the first's over these; `same` the mean difference, over instances, of the settings that both tried, of which
    there are `settings`. Each is None where nothing can be paired, or the scorers differ. `bests` are
    the settings, or why there are none, `wording` how they are written.
    """

    facts: Sequence[tuple[str, str, str]]
    shared: int
    settings: int
    bests: tuple[Settings | Nobody, Settings | Nobody]
    best: Estimate | None
    same: Estimate | None
    wording: Wording


def diff(first: tuple[Study, Results], second: tuple[Study, Results]) -> Compared:
    """Compare two studies, paired where they share instances."""
    (old, before), (new, after) = first, second
    places = {_instance(old, number): place for place, number in enumerate(before.study_numbers)}
    pairs = {
        places[key]: place
        for place, number in enumerate(after.study_numbers)
        if (key := _instance(new, number)) in places
    }
    old_best, new_best = best(before, ranking(before)), best(after, ranking(after))
    comparable = old.scorer.id == new.scorer.id and old.objective == new.objective
    common = _common(before, after)
    between = same = None
    if comparable and pairs:
        if isinstance(old_best, Ranked) and isinstance(new_best, Ranked):
            between = _paired([(old_best.trial.scores, new_best.trial.scores)], pairs)
        same = _paired([(a.scores, b.scores) for a, b in common], pairs)
    bests = _settings_of(old_best), _settings_of(new_best)
    return Compared(_facts(old, new), len(pairs), len(common), bests, between, same, _wording(before, after))


def _wording(*found: Results) -> Wording:
    """How the values of all these results are written beside each other."""
    names = dict.fromkeys(name for each in found for name in each.axes)
    return Wording({name: [value for each in found for value in each.axes.get(name, ())] for name in names})


def _settings_of(found: Ranked | Nobody) -> Settings | Nobody:
    return found if isinstance(found, Nobody) else found.trial.settings


def _instance(study: Study, number: int) -> tuple[Value, ...]:
    found = study.instances[number]
    return found.prompt, found.score_text, found.image, found.mask, found.seed


def _common(before: Results, after: Results) -> list[tuple[TrialResult, TrialResult]]:
    """The trials of the same swept settings."""
    theirs = {tuple(sorted(trial.settings.items(), key=str)): trial for trial in after.trials}
    return [
        (trial, theirs[key])
        for trial in before.trials
        if (key := tuple(sorted(trial.settings.items(), key=str))) in theirs
    ]


def _paired(
    scores: Sequence[tuple[Mapping[int, float], Mapping[int, float]]], pairs: Mapping[int, int]
) -> Estimate | None:
    """The mean difference by instance, then over instances, which are what is independent."""
    by_instance = [
        [b[there] - a[here] for a, b in scores if here in a and there in b] for here, there in pairs.items()
    ]
    means = [sum(found) / len(found) for found in by_instance if found]
    return estimate(means) if means else None


def _facts(old: Study, new: Study) -> list[tuple[str, str, str]]:
    """What the studies were run with, where that differs, as (name, first, second)."""
    found = {
        "model": (old.model.identity, new.model.identity),
        "task": (old.model.task, new.model.task),
        "dtype": (old.model.dtype, new.model.dtype),
        "diffusers": (old.model.diffusers, new.model.diffusers),
        "scorer": (old.scorer.id, new.scorer.id),
        "inputs": (_inputs(old), _inputs(new)),
        "seeds": (str(len(old.seeds)), str(len(new.seeds))),
        "search": (old.search.strategy, new.search.strategy),
    }
    for name in dict.fromkeys([*old.settings, *new.settings, *old.space.axes, *new.space.axes]):
        texts = Wording({name: [*_values(old, name), *_values(new, name)]})
        found[name] = _held(old, name, texts), _held(new, name, texts)
    return [(name, was, now) for name, (was, now) in found.items() if was != now]


def _inputs(study: Study) -> str:
    return "; ".join(f"{item.prompt} ({item.image_name or 'no image'})" for item in study.inputs)


def _values(study: Study, name: str) -> Sequence[Value]:
    """The values that a study lists for a setting."""
    if name in study.space.axes:
        return study.space.axes[name].points() or ()
    return [study.settings[name]] if name in study.settings else []


def _held(study: Study, name: str, texts: Wording) -> str:
    shown = [texts.in_words(name, value) for value in _values(study, name)]
    if name in study.space.axes:
        return f"one of {', '.join(shown)}" if shown else "a range"
    return shown[0] if shown else "the model's own"
