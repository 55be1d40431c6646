"""The catalog in Parquet as one study uses it, and what it knows of a study's trials."""

import json
import logging
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.catalog import Judged, Unscored
from orchestrator.catalog.ids import Index, key, keys
from orchestrator.catalog.pictures import write_images
from orchestrator.catalog.schema import score_rows, trial_row
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.validity import strangers
from orchestrator.pool import Done, Kept, PngPicture
from search_spaces.models import PIXEL_SCORERS
from search_spaces.objectives import GPU_SECONDS
from search_spaces.requests import Failed, ImageRequest, Looked, Outcome, Scored
from search_spaces.strategies import PastTrial
from search_spaces.study import Study

_log = logging.getLogger(__name__)


class ParquetCatalog:
    """The catalog as one study uses it: what was there at the beginning, compact, and what came since."""

    def __init__(self, tables: Tables, study: Study) -> None:
        self._tables, self._study = tables, study
        self._images = _Made(tables)
        self._scores = Scores(tables, {scorer.id for scorer in study.scorers.values()})
        self._new_scores: dict[tuple[str, str, str], float] = {}
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
        seconds = self._images.seconds(image_id) if self._study.measures else 0.0
        scores = {GPU_SECONDS: seconds} if GPU_SECONDS in self._study.measures else {}
        for name, scorer in self._study.scorers.items():
            value = self._value(scorer.id, image_id, scorer.text_of(request))
            if value is not None:
                scores[name] = value
        if scores.keys() >= self._study.scorers.keys():
            return Scored(scores)
        try:
            return Unscored(PngPicture(self._tables.png(image_id)), seconds)
        except KeyError:  # a repair, or a removal on another machine, has taken it away since
            self._images.forget(image_id)
            return None

    def _value(self, scorer: str, image_id: str, text: str) -> float | None:
        found = self._new_scores.get((scorer, image_id, text))
        return self._scores.of(scorer, image_id, text) if found is None else found

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        """Pictures, then their scores, then the trials that rest on them; durable on return.

        Where it raises OSError, the same call made again writes what is still missing.
        """
        images = [
            item for item in done if _belongs_in_images(item) and item.request.image_id not in self._images
        ]
        write_images(
            self._tables, self._study, [item for item in images if not isinstance(item.picture, Kept)]
        )
        for item in images:
            self._images.add(item)
        scores = {_score_key(row): row for item in done for row in score_rows(item, self._study)}
        new = {key: row for key, row in scores.items() if self._value(*key) is None}
        self._tables.append("scores", [*new.values()])
        self._new_scores |= {key: float(str(row["value"])) for key, row in new.items()}
        self._tables.append("trials", [trial_row(item, self._study) for item in judged])


def _score_key(row: Mapping[str, object]) -> tuple[str, str, str]:
    return str(row["scorer"]), str(row["image_id"]), str(row["text"])


class _Made:
    """Every image_id that need not be made: drawn, or known to be infeasible."""

    def __init__(self, tables: Tables) -> None:
        ids, drawn = tables.read_keys("images", [], ["seconds_generate"], pc.field("status") == "ok")
        self._gone: set[str] = set()
        self._index = Index(ids)
        self._seconds = drawn["seconds_generate"].to_numpy()
        failed = tables.read("images", ["image_id", "reason"], pc.field("status") == "infeasible").to_pylist()
        self.infeasible = {
            row["image_id"]: row["reason"] for row in failed if not self._drawn(row["image_id"])
        }
        self.new: dict[str, float] = {}

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.new or image_id in self.infeasible or self._drawn(str(image_id))

    def _drawn(self, image_id: str) -> bool:
        return self._index.row(key(image_id)) is not None and image_id not in self._gone

    def forget(self, image_id: str) -> None:
        """One that is not there any more."""
        self.new.pop(image_id, None)
        self._gone.add(image_id)

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
        if among is None:
            found, rows = tables.read_keys("scores", ["scorer", "text"], ["value"], wanted)
        else:
            rows = tables.read_ids("scores", ["scorer", "image_id", "text", "value"], among, wanted)
            found = keys(rows["image_id"], rows["scorer"], rows["text"])
        self._index = Index(found)
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


def trial_rows(
    tables: Tables, study: str, columns: Sequence[str], where: pc.Expression | None = None
) -> pa.Table:
    """A study's rows of `trials`, without those that name other settings than the others, which are named."""
    wanted = pc.field("study") == study
    names = dict.fromkeys([*columns, "study", "settings"])
    rows = tables.read("trials", list(names), wanted if where is None else wanted & where)
    return without_strangers(rows, study).select(list(columns))


def without_strangers(trials: pa.Table, study: str) -> pa.Table:
    """A study's trials without rows that name other settings than most of them do, which are named."""
    strange = strangers(trials)
    count = pc.sum(strange).as_py()
    if not count:
        return trials
    _log.warning(
        "%s of the %s rows of study %s in the table trials name other settings than its others; they are left out, "
        "and `latentsweep catalog repair` moves them out of the way",
        *(f"{count:,}", f"{trials.num_rows:,}", study),
    )
    return trials.filter(pc.invert(strange))


def scored_count(tables: Tables, study: str) -> int:
    """How many instances of a study's trials, those of its validation too, the trials table calls scored."""
    rows = trial_rows(tables, study, ["trial", "instance", "role"], pc.field("state") == "scored")
    return int(rows.group_by(["trial", "instance", "role"]).aggregate([]).num_rows)


def past_trials(
    tables: Tables, study: str, forget_lost: bool = False, needed: Set[str] = frozenset()
) -> list[PastTrial]:
    """The trials of a study as the trials table has them, by number, each with what became of its instances.

    Scores have those of pixel scorers and the seconds that the image took beside them. `forget_lost` leaves lost
    instances out, so that they are tried again; an instance whose picture or score is not there any more, or that
    has not all `needed` scores, is left out too.
    """
    columns = ["trial", "instance", "image_id", "role", "strategy", "state", "reason", "settings"]
    columns += ["scorer", "text"]
    rows = trial_rows(tables, study, [*columns, "after", "value"]).to_pylist()
    if not rows:
        return []
    pixels = {each.id: name for name, each in PIXEL_SCORERS.items()}
    values = Scores(tables, {*pixels, *(row["scorer"] for row in rows)})
    seconds = _seconds(tables, {row["image_id"] for row in rows})
    trials: dict[int, _Found] = {}
    for row in rows:
        found = trials.setdefault(row["trial"], _Found(row["settings"]))
        outcomes = found.validation if row["role"] == "validate" else found.outcomes
        scorer, instance, image_id = row["scorer"], row["instance"], row["image_id"]
        if row["role"] == "search" and row["strategy"] is not None:
            found.dealt_by[instance] = row["strategy"]
        if row["state"] == "looked":
            look = Looked({scorer_name(scorer): row["value"]}, row["after"])
            found.looks.setdefault(instance, {})[look.after] = look
        elif row["state"] == "scored":
            value = values.of(scorer, image_id, row["text"])
            if value is None or image_id not in seconds:
                continue
            scores = {scorer_name(scorer): value, GPU_SECONDS: seconds[image_id]}
            for each, name in pixels.items():
                kept = values.of(each, image_id, "")
                if kept is not None:
                    scores[name] = kept
            if scores.keys() >= needed:
                outcomes[instance] = Scored(scores)
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
    return {row["image_id"]: row["seconds_generate"] or 0.0 for row in rows}


@dataclass
class _Found:
    """A trial as its rows give it, piece by piece."""

    settings: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    looks: dict[int, dict[int, Looked]] = field(default_factory=dict)
    validation: dict[int, Outcome] = field(default_factory=dict)
    dealt_by: dict[int, str] = field(default_factory=dict)

    def past_trial(self, number: int) -> PastTrial:
        looks = {instance: list(found.values()) for instance, found in self.looks.items()}
        settings = json.loads(self.settings)
        return PastTrial(number, settings, self.outcomes, looks, self.validation, self.dealt_by)


def holds_another(tables: Tables, study: Study) -> bool:
    """Whether the trials table holds trials of another study of this name: other pixels for its instances."""
    instances = {"validate": study.validation_instances, "search": study.instances, "look": study.instances}
    columns = ["settings", "instance", "image_id", "role"]
    for row in trial_rows(tables, study.name, columns).to_pylist():
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
