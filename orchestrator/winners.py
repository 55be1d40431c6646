"""The best settings of a study with all their pictures, as they are published."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.catalog.tables import Tables
from orchestrator.comet_study import comet_key
from orchestrator.report.results import Results
from orchestrator.report.statistics import Nobody, Ranked, best, front, ranking
from orchestrator.study_folder import StudyFolder
from orchestrator.tracking.comet.content import CometStudy
from orchestrator.tracking.comet.publish import Publication, PublishedFile
from search_spaces.errors import InputError
from search_spaces.requests import Value
from search_spaces.study import Study
from workers.png import as_png


@dataclass(frozen=True)
class Winner:
    """A picture of one of the best settings: its path in the artifact, and what is told of it."""

    image_id: str
    path: str
    metadata: Mapping[str, Value]


def winners(found: Results, study: Study, top: int) -> list[Winner]:
    """The pictures of the best `top` settings, or of all that were judged in full where these are fewer.

    Of several objectives those count that nothing else beats in all. Raises InputError where nobody is the best.
    """
    leaders = list(ranking(found))
    winner = best(found, leaders)
    if isinstance(winner, Nobody):
        raise InputError(f"study {found.study} has no best settings yet: {winner.why}; let it run on")
    if len(found.objectives) > 1:
        unbeaten = front(found)
        leaders = [leader for leader in leaders if leader.trial.number in unbeaten]
    return [
        Winner(image_id, f"rank-{rank:02d}/trial-{leader.trial.number}-instance-{told['instance']}.png", told)
        for rank, leader in enumerate(leaders[:top], 1)
        for place, image_id in sorted(leader.trial.images.items())
        for told in [_told(study, found, rank, leader, place, image_id)]
    ]


def _told(
    study: Study, found: Results, rank: int, leader: Ranked, place: int, image_id: str
) -> dict[str, Value]:
    trial, objective, number = leader.trial, found.objective, found.study_numbers[place]
    request = study.request(trial.settings, study.instances[number])
    scores = {name: values[place] for name, values in trial.measured.items() if place in values}
    return {
        "study": study.name,
        "rank": rank,
        "trial": trial.number,
        "instance": number,
        "image_id": image_id,
        "prompt": request.prompt,
        "score_text": request.score_text,
        "seed": request.seed,
        **request.settings,
        **scores,
        objective: trial.scores[place],
        f"mean_{objective}": leader.score.mean,
        f"half_width_{objective}": leader.score.half_width,
        "tied": leader.tied,
    }


def publication(
    root: str, name: str, pictures: Sequence[Winner], artifact: str, aliases: Sequence[str]
) -> Publication:
    """Winners and study file as a version of an artifact; called in the process that sends it."""
    folder = StudyFolder(root, name)
    study = folder.pinned()
    if study is None:
        raise InputError(f"the folder of study {name!r} is gone from {folder.path}")
    comet = study.comet
    sources = [
        f"{found.asked} is version {found.version}"
        for item in study.inputs
        for found in (item.image_artifact, item.mask_artifact)
        if found is not None
    ]
    metadata: dict[str, Value] = {
        "study": name,
        "model": study.model.identity,
        "scorer": study.scorer.id,
        "settings": len({picture.metadata["trial"] for picture in pictures}),
    }
    return Publication(
        study=CometStudy(
            study=name,
            workspace=comet.workspace,
            project=comet.project or name,
            experiment_name=comet.name or name,
            tags=comet.tags,
            parameters={},
        ),
        key=comet_key(study),
        artifact=artifact,
        aliases=aliases,
        metadata={**metadata, "inputs": "; ".join(sources)} if sources else metadata,
        files=_files(Tables(root), folder.study_file, name, pictures),
    )


def _files(
    tables: Tables, study_file: Path, name: str, pictures: Sequence[Winner]
) -> Iterator[PublishedFile]:
    # Not by the name that `sync` sends the study file under, which clears up older ones of it.
    yield PublishedFile(f"study/{name}.yaml", study_file.read_bytes(), {"study": name})
    by_id: dict[str, list[Winner]] = {}
    for picture in pictures:
        by_id.setdefault(picture.image_id, []).append(picture)
    for image_id, stored in tables.pictures(by_id.keys()):
        for picture in by_id[image_id]:
            yield PublishedFile(picture.path, as_png(stored), picture.metadata)
