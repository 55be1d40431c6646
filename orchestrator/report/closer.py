"""The study file that looks closer around a study's best: "our best is between 10 and 20, so look closer there"."""

import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.report.results import Results
from orchestrator.report.standing import part_text
from orchestrator.report.statistics import Nobody, best, ranking
from search_spaces import study_file
from search_spaces.domains import Domain
from search_spaces.errors import InputError
from search_spaces.requests import Value
from search_spaces.strategies.staged import between
from search_spaces.study import Study


def closer_study(study: Study, text: str, results: Results, inputs: Path, folder: Path) -> str:
    """The text of a study file, to be kept in `folder`, whose space lies around the best of `results`.

    `text` is the study's own file, `inputs` the folder of its pinned input images. Raises InputError where there
    is no best yet, or nothing between it and its neighbours.
    """
    document = study_file.document(text, study.name)
    space = closer_space(results, study.space.axes)
    if all(len(values) == 1 for values in space.values()):
        raise InputError(f"study {study.name}: nothing lies between the best settings and their neighbours")
    document["study"] = f"{study.name}-closer"
    for item, pinned in zip(document["inputs"], study.inputs, strict=True):
        for key, name in (("image", pinned.image), ("mask", pinned.mask)):
            if name is not None:
                item[key] = os.path.relpath((inputs / f"{name}.png").resolve(), folder.resolve())
    for key, location in (("model", study.model.location), ("clip_model", study.scorer.location)):
        if (
            key in document and Path(location).is_absolute()
        ):  # a folder may be named from where the study file lies
            document[key] = location
    document["space"] = {name: values for name, values in space.items() if len(values) > 1}
    fixed = {name: values[0] for name, values in space.items() if len(values) == 1}
    document["settings"] = {**document.get("settings", {}), **fixed}
    races = not (document.get("objectives") or document.get("constraints"))
    validated = document.get("search", {}).get("validate", 0)
    document["search"] = {"strategy": "halving" if races else "grid", "validate": validated}
    document.pop("exclude", None)
    part = part_text(results)
    best_of = f"best so far of {study.name}, {part}" if part else f"best of {study.name}"
    made = f"# Closer around the {best_of}.\n" + study_file.dump(document)
    try:
        study_file.parse(made, "the closer study file")
    except InputError as error:
        raise InputError(f"study {study.name} has no closer study file of this kind: {error}") from None
    return made


def closer_space(results: Results, axes: Mapping[str, Domain]) -> dict[str, list[Value]]:
    """For every axis the best's value; of a number, those halfway to its tried neighbours too; of a text, the ties'.

    Raises InputError where nobody is the best.
    """
    ranked = ranking(results)
    leader = best(results, ranked)
    if isinstance(leader, Nobody):
        raise InputError(f"study {results.study} has no best settings yet: {leader.why}; let it run on")
    ties = [entry.trial.settings for entry in ranked if entry.tied]
    space: dict[str, list[Value]] = {}
    for name, domain in axes.items():
        here = leader.trial.settings[name]
        if isinstance(here, int | float) and not isinstance(here, bool):
            tried = [value for value in results.axes[name] if isinstance(value, int | float)]
            lower = max((value for value in tried if value < here), default=here)
            upper = min((value for value in tried if value > here), default=here)
            values = [between(domain, here, lower), here, between(domain, here, upper)]
            space[name] = [value for value in values if value is not None]
        else:
            space[name] = list(dict.fromkeys([here, *(settings[name] for settings in ties)]))
    return space
