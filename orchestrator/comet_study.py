"""A study's Comet experiment, told from the catalog."""

import importlib.util
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog.parquet import past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.copied import copied, scored_once
from orchestrator.study_folder import StudyFolder
from orchestrator.tracking import TrackedImage
from orchestrator.tracking.comet.content import (
    CometImage,
    CometMetric,
    CometStudy,
    Content,
    chosen,
    experiment_key,
    trial_metrics,
)
from search_spaces.objectives import keeps
from search_spaces.requests import Instance, Role, Scored, Settings, Value
from search_spaces.strategies import PastTrial
from search_spaces.strategies.trials import as_filed
from search_spaces.study import Study
from workers.png import as_png


def comet_key(study: Study) -> str:
    """The key of a study's experiment: the same whenever the study goes on, and nobody else's."""
    return experiment_key(f"{study.name} {study.token}")


def comet_source(root: str, name: str) -> Callable[[], Content]:
    """What reads a study's Comet content from the catalog, in a process that may run elsewhere."""
    return partial(comet_content, root if "://" in root else str(Path(root).absolute()), name)


FILES = ("study.yaml", "report.txt", "trials.csv", "contact-sheet.png")
"""Of a study's folder, that go to Comet where they are there."""


def comet_content(root: str, name: str) -> Content:
    """A study's Comet experiment as the catalog has it; runs in the process that sends it or builds the archive."""
    folder, tables = StudyFolder(root, name), Tables(root)
    study = folder.pinned()
    assert study is not None
    past = as_filed(past_trials(tables, name), study.judge)
    records = _comet_records(study, past)
    rule = study.comet.images if isinstance(study.comet.images, str) else study.comet.images.top_k
    instances = {"search": study.instances, "validate": study.validation_instances}
    described = partial(_comet_image, name, instances)
    wanted = chosen(records, rule, study.objective)
    files = {each: (folder.path / each).read_bytes() for each in FILES if (folder.path / each).is_file()}
    return Content(
        study=CometStudy(
            study=name,
            workspace=study.comet.workspace,
            project=study.comet.project or name,
            experiment_name=study.comet.name or name,
            tags=study.comet.tags,
            parameters={**_comet_parameters(study), **_provenance(tables, records)},
            files=files | own_code(study) if study.comet.log_code else files,
            commit=git_commit() if study.comet.log_code else None,
        ),
        key=comet_key(study),
        images=lambda: map(described, wanted),
        pictures=lambda ids: ((image_id, as_png(picture)) for image_id, picture in tables.pictures(ids)),
        metrics=list(_comet_metrics(study, past, copied(tables, name, past, len(study.instances)))),
        described=lambda record: described(record) if rule == "all" else None,
    )


def own_code(study: Study) -> dict[str, bytes]:
    """The source of a strategy of the user's own, by its name in Comet; nothing where it is not one file."""
    module = study.search.strategy.rpartition(".")[0]
    if not module or module.split(".")[0] == "optuna":
        return {}
    with suppress(ImportError, ValueError, OSError):
        found = importlib.util.find_spec(module)
        if found is not None and found.origin is not None and found.origin.endswith(".py"):
            return {f"{module}.py": Path(found.origin).read_bytes()}
    return {}


def git_commit() -> str | None:
    """The commit that is checked out where the command runs, and whether files differ from it; None without one."""
    with suppress(OSError, subprocess.SubprocessError):
        commit = _git("rev-parse", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no").strip()
        return f"{commit} with changes" if changed else commit
    return None


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout


def _comet_parameters(study: Study) -> dict[str, object]:
    return {
        **{key: json.dumps(value) if value is None else value for key, value in study.settings.items()},
        "model": study.model.name,
        "revision": study.model.revision,
        "task": study.model.task,
        "dtype": study.model.dtype,
        "scorer": study.scorer.id,
        "seeds": json.dumps(study.seeds),
        "space": study.space.model_dump_json(),
        "search": study.search.model_dump_json(),
    }


def _provenance(tables: Tables, records: Sequence[TrackedImage]) -> dict[str, object]:
    """The devices and versions that a study's pictures were made with, each as a list in one text."""
    names = ("device", "torch", "diffusers", "latentsweep")
    ids = pa.array(sorted({record.image_id for record in records}), pa.string())
    rows = tables.read("images", list(names), pc.field("image_id").isin(ids)) if records else None
    found = {
        name: sorted({str(value) for value in rows[name].unique().to_pylist()}) if rows else []
        for name in names
    }
    return {name: ", ".join(values) for name, values in found.items() if values}


def _comet_records(study: Study, past: Sequence[PastTrial]) -> list[TrackedImage]:
    """Every scored picture of the study, each once: of trials that draw the same the first."""
    records: dict[str, TrackedImage] = {}
    search, validation = study.instances, study.validation_instances
    roles: Sequence[Role] = ("search", "validate")
    for trial in past:
        shared: Settings = {}
        for role in roles:
            instances, outcomes = (
                (search, trial.outcomes) if role == "search" else (validation, trial.validation)
            )
            for number, outcome in outcomes.items():
                if not isinstance(outcome, Scored) or number >= len(instances):
                    continue
                request = study.request(trial.settings, instances[number])
                shared = shared if shared == request.settings else request.settings  # one in memory per trial
                record = TrackedImage(
                    request.image_id, trial.number, number, role, shared, outcome.scores, request.prompt
                )
                records.setdefault(request.image_id, record)
    return list(records.values())


def _comet_image(study: str, instances: Mapping[str, Sequence[Instance]], record: TrackedImage) -> CometImage:
    """A picture as Comet shows it: its role as the name, its trial as the step, all else beside it."""
    instance = instances[record.role][record.instance]
    metadata: dict[str, Value] = {
        "study": study,
        "trial": record.trial,
        "instance": record.instance,
        "role": record.role,
        "prompt": record.prompt or instance.prompt,
        "score_text": instance.score_text,
        "seed": instance.seed,
        **record.settings,
        **record.scores,
    }
    return CometImage(record.image_id, record.role, record.trial, metadata)


def _comet_metrics(study: Study, past: Sequence[PastTrial], same: Mapping[int, int]) -> Iterator[CometMetric]:
    """Each complete trial's score with its interval, and the best so far of those that keep the constraints.

    Instances that are the `same` as others count once with them.
    """
    best = None
    for trial in past:
        judged = scored_once(trial.outcomes, same, len(study.instances))
        if judged is None:
            continue
        scores = [outcome.scores for outcome in judged.values()]
        metrics = trial_metrics(study.objective, trial.number, [each[study.objective] for each in scores])
        if keeps(study.constraints, scores):
            best = metrics[0].value if best is None else max(best, metrics[0].value)
        yield from metrics
        if best is not None:
            yield CometMetric(f"best_{study.objective}", best, trial.number)
