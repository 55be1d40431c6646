"""The catalog in Parquet as one study uses it, and what it knows of a study's trials."""

import json
from collections.abc import Container, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog import Judged, Unscored
from orchestrator.catalog.ids import Index, key, keys
from orchestrator.catalog.schema import image_row, score_rows, trial_row
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done, PngPicture
from search_spaces.objectives import GPU_SECONDS
from search_spaces.requests import Failed, ImageRequest, Looked, Outcome, Scored
from search_spaces.strategies import PastTrial
from search_spaces.study import Study


class ParquetCatalog:
    """The catalog as one study uses it: what was there at the beginning, compact, and what came since."""

    def __init__(self, tables: Tables, study: Study) -> None:
        self._tables, self._study = tables, study
        self._images = _Made(tables)
        self._scores = Scores(tables, {study.scorer.id})
        self._new_scores: dict[tuple[str, str], float] = {}
        self.reused: set[str] = set()  # image_ids that were there before, and were asked for

    @property
    def image_ids(self) -> Container[str]:
        """Everything that has been made, or found infeasible, under the root."""
        return self._images

    def find(self, request: ImageRequest) -> Scored | Failed | Unscored | None:
        """What is known of a request; None where it has to be generated."""
        image_id = request.image_id
        if image_id not in self._images:
            return None
        if image_id not in self._images.new:
            self.reused.add(image_id)
        reason = self._images.infeasible.get(image_id)
        if reason is not None:
            return Failed("infeasible", reason)
        value = self._score(request)
        seconds = self._images.seconds(image_id) if self._study.measures else 0.0
        if value is not None:
            return Scored({self._study.objective: value, **dict.fromkeys(self._study.measures, seconds)})
        return Unscored(PngPicture(self._tables.png(image_id)), seconds)

    def _score(self, request: ImageRequest) -> float | None:
        found = self._new_scores.get((request.image_id, request.score_text))
        return (
            self._scores.of(self._study.scorer.id, request.image_id, request.score_text)
            if found is None
            else found
        )

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        """Pictures, then their scores, then the trials that rest on them; durable on return.

        Where it raises OSError, the same call made again writes what is still missing.
        """
        images = [
            item for item in done if _belongs_in_images(item) and item.request.image_id not in self._images
        ]
        self._tables.append(
            "images",
            [image_row(item, self._study, item.picture.png() if item.picture else None) for item in images],
        )
        for item in images:
            self._images.add(item)
        scored = [
            item for item in done if isinstance(item.outcome, Scored) and self._score(item.request) is None
        ]
        self._tables.append("scores", [row for item in scored for row in score_rows(item, self._study)])
        for item in scored:
            assert isinstance(item.outcome, Scored)
            value = item.outcome.scores[self._study.objective]
            self._new_scores[item.request.image_id, item.request.score_text] = value
        self._tables.append("trials", [trial_row(item, self._study) for item in judged])


class _Made:
    """Every image_id that need not be made: drawn, or known to be infeasible."""

    def __init__(self, tables: Tables) -> None:
        drawn = tables.read("images", ["image_id", "seconds_generate"], pc.field("status") == "ok")
        self._index = Index(keys(drawn["image_id"]))
        self._seconds = drawn["seconds_generate"].to_numpy()
        failed = tables.read("images", ["image_id", "reason"], pc.field("status") == "infeasible").to_pylist()
        self.infeasible = {
            row["image_id"]: row["reason"] for row in failed if not self._drawn(row["image_id"])
        }
        self.new: dict[str, float] = {}

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.new or image_id in self.infeasible or self._drawn(str(image_id))

    def _drawn(self, image_id: str) -> bool:
        return self._index.row(key(image_id)) is not None

    def add(self, item: Done) -> None:
        """One more."""
        if isinstance(item.outcome, Failed):
            self.infeasible[item.request.image_id] = item.outcome.reason
        self.new[item.request.image_id] = item.provenance.seconds_generate

    def seconds(self, image_id: str) -> float:
        """How long a worker took for it."""
        row = self._index.row(key(image_id))
        return self.new.get(image_id, 0.0) if row is None else float(self._seconds[row])


def _belongs_in_images(item: Done) -> bool:
    """A picture, or a failure that is a property of the settings; what machines lost is not remembered here."""
    if isinstance(item.outcome, Failed):
        return item.outcome.kind == "infeasible"
    return item.picture is not None


class Scores:
    """Every value of some scorers; of several for one picture and text, the first, which has been told."""

    def __init__(self, tables: Tables, scorers: Set[str], among: pa.Array | None = None) -> None:
        """`among` are the only image_ids of interest."""
        wanted = pc.field("scorer").isin(pa.array(sorted(scorers), pa.string()))
        columns = ["scorer", "image_id", "text", "value"]
        if among is None:
            rows = tables.read("scores", columns, wanted)
        else:
            rows = tables.read_ids("scores", columns, among, wanted)
        self._index = Index(keys(rows["image_id"], rows["scorer"], rows["text"]))
        self._values: npt.NDArray[np.float64] = rows["value"].to_numpy()

    def of(self, scorer: str, image_id: str, text: str) -> float | None:
        """One value; None where there is none."""
        row = self._index.row(key(image_id, scorer, text))
        return None if row is None else float(self._values[row])

    def column(self, rows: pa.Table) -> pa.Array:
        """The value for each row with `image_id`, `scorer` and `text`; null where there is none."""
        found = self._index.rows(keys(rows["image_id"], rows["scorer"], rows["text"]))
        values = self._values[found] if len(self._values) else np.zeros(len(found))
        return pa.array(values, pa.float64(), mask=found < 0)


def past_trials(tables: Tables, study: str, forget_lost: bool = False) -> list[PastTrial]:
    """The trials of a study as the trials table has them, by number, each with what became of its instances.

    Scores have the seconds that the image took beside them. `forget_lost` leaves lost instances out, so that
    they are tried again; an instance whose picture or score is not there any more is left out too.
    """
    columns = ["trial", "instance", "image_id", "role", "state", "reason", "settings", "scorer", "text"]
    rows = tables.read("trials", [*columns, "after", "value"], pc.field("study") == study).to_pylist()
    if not rows:
        return []
    scores = Scores(tables, {row["scorer"] for row in rows})
    seconds = _seconds(tables, {row["image_id"] for row in rows})
    trials: dict[int, _Found] = {}
    for row in rows:
        found = trials.setdefault(row["trial"], _Found(row["settings"]))
        outcomes = found.validation if row["role"] == "validate" else found.outcomes
        scorer, instance, image_id = row["scorer"], row["instance"], row["image_id"]
        if row["state"] == "looked":
            look = Looked({scorer_name(scorer): row["value"]}, row["after"])
            found.looks.setdefault(instance, {})[look.after] = look
        elif row["state"] == "scored":
            value = scores.of(scorer, image_id, row["text"])
            if value is not None and image_id in seconds:
                outcomes[instance] = Scored({scorer_name(scorer): value, GPU_SECONDS: seconds[image_id]})
        elif row["state"] == "infeasible":  # which is for good, whatever machines lost before
            outcomes[instance] = Failed("infeasible", row["reason"])
        elif not forget_lost:
            outcomes.setdefault(instance, Failed("lost", row["reason"]))
    return [found.past_trial(number) for number, found in sorted(trials.items())]


def _seconds(tables: Tables, image_ids: Set[str]) -> dict[str, float]:
    """How long a worker took for each of some pictures that are there."""
    wanted = pc.field("image_id").isin(pa.array(sorted(image_ids), pa.string())) & (
        pc.field("status") == "ok"
    )
    rows = tables.read("images", ["image_id", "seconds_generate"], wanted).to_pylist()
    return {row["image_id"]: row["seconds_generate"] for row in rows}


@dataclass
class _Found:
    """A trial as its rows give it, piece by piece."""

    settings: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    looks: dict[int, dict[int, Looked]] = field(default_factory=dict)
    validation: dict[int, Outcome] = field(default_factory=dict)

    def past_trial(self, number: int) -> PastTrial:
        looks = {instance: list(found.values()) for instance, found in self.looks.items()}
        return PastTrial(number, json.loads(self.settings), self.outcomes, looks, self.validation)


def holds_another(tables: Tables, study: Study) -> bool:
    """Whether the trials table holds trials of another study of this name: other pixels for its instances."""
    instances = {"validate": study.validation_instances, "search": study.instances, "look": study.instances}
    columns = ["settings", "instance", "image_id", "role"]
    for row in tables.read("trials", columns, pc.field("study") == study.name).to_pylist():
        settings = json.loads(row["settings"])
        if settings.keys() != study.space.axes.keys():
            return True
        if row["instance"] < len(instances[row["role"]]):
            request = study.request(settings, instances[row["role"]][row["instance"]])
            if request.image_id != row["image_id"]:
                return True
    return False


def scorer_name(scorer: str) -> str:
    """The name in a scorer's id, which is what a study calls its objective."""
    return scorer.partition("/")[0]
