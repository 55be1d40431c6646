"""The catalog in Parquet: immutable part files under one root, local or on any pyarrow filesystem."""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from orchestrator.catalog import Judged, Unscored
from orchestrator.catalog.schema import SCHEMAS, SETTING_COLUMNS, image_row, score_rows, trial_row
from orchestrator.pool import Done, PngPicture
from search_spaces.models import PIXEL_SCORERS
from search_spaces.objectives import GPU_SECONDS
from search_spaces.requests import Failed, ImageRequest, Looked, Outcome, Scored
from search_spaces.strategies import PastTrial
from search_spaces.study import Study


class Tables:
    """The three tables under a root (`runs` or `s3://bucket/runs`), readable by anything that reads Parquet."""

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            self._filesystem, base = pafs.FileSystem.from_uri(str(root))
        else:
            self._filesystem, base = pafs.LocalFileSystem(), str(Path(root).absolute())
        self._base = f"{base.rstrip('/')}/catalog"

    def append(self, table: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Write rows as one part file; on return it is durable and whole, or not there at all."""
        if not rows:
            return
        data = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[table])
        folder = f"{self._base}/{table}"
        name = f"part-{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet"
        self._filesystem.create_dir(folder, recursive=True)
        if isinstance(self._filesystem, pafs.LocalFileSystem):
            _write_aside(data, Path(folder), name)
        else:  # an object store shows a whole object or none
            pq.write_table(data, f"{folder}/{name}", filesystem=self._filesystem)

    def read(
        self, table: str, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """Rows of a table, in the order they were written; empty where nothing was written yet."""
        rows: pa.Table = self._dataset(table).to_table(
            columns=list(columns) if columns else None, filter=where
        )
        return rows

    def png(self, image_id: str) -> bytes:
        """One picture. Raises KeyError where the catalog has none of that id."""
        found = self.read(
            "images", ["image"], (pc.field("image_id") == image_id) & (pc.field("status") == "ok")
        )
        if not found.num_rows:
            raise KeyError(image_id)
        png: bytes = found.column("image")[0].as_py()["bytes"]
        return png

    def pictures(self, image_ids: Set[str]) -> Iterator[tuple[str, bytes]]:
        """Those of some pictures that are there, each once, in one pass that holds few of them in memory."""
        wanted = pc.field("image_id").isin(pa.array(sorted(image_ids), pa.string())) & (
            pc.field("status") == "ok"
        )
        seen: set[str] = set()
        for batch in self._dataset("images").to_batches(
            columns=["image_id", "image"],
            filter=wanted,
            batch_size=64,
            batch_readahead=1,
            fragment_readahead=1,
        ):
            for row in batch.to_pylist():
                if row["image_id"] not in seen:
                    seen.add(row["image_id"])
                    yield row["image_id"], row["image"]["bytes"]

    def _dataset(self, table: str) -> ds.Dataset:
        folder = f"{self._base}/{table}"
        if self._filesystem.get_file_info(folder).type != pafs.FileType.Directory:
            return ds.dataset(SCHEMAS[table].empty_table())
        return ds.dataset(folder, filesystem=self._filesystem, schema=SCHEMAS[table], format="parquet")


def _write_aside(data: pa.Table, folder: Path, name: str) -> None:
    """Write under a hidden name, fsync, rename, fsync the folder: a reader never sees half a file."""
    aside = folder / f".{name}.tmp"
    try:
        with aside.open("wb") as file:
            pq.write_table(data, file)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(folder / name)
    finally:
        aside.unlink(missing_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ParquetCatalog:
    """The catalog as one study uses it."""

    def __init__(self, tables: Tables, study: Study) -> None:
        self._tables, self._study = tables, study
        rows = tables.read("images", ["image_id", "status", "reason", "seconds_generate"]).to_pylist()
        self._images = {
            row["image_id"]: row["reason"] if row["status"] == "infeasible" else None for row in rows
        }
        self._seconds = {row["image_id"]: row["seconds_generate"] for row in rows} if study.measures else {}
        self._scores = score_values(tables, {scorer.id for scorer in study.scorers.values()})

    @property
    def image_ids(self) -> Set[str]:
        """Everything that has been made, or found infeasible, under the root."""
        return self._images.keys()

    def find(self, request: ImageRequest) -> Scored | Failed | Unscored | None:
        """What is known of a request; None where it has to be generated."""
        if request.image_id not in self._images:
            return None
        reason = self._images[request.image_id]
        if reason is not None:
            return Failed("infeasible", reason)
        seconds = self._seconds.get(request.image_id, 0.0)
        scores = {GPU_SECONDS: seconds} if GPU_SECONDS in self._study.measures else {}
        for name, scorer in self._study.scorers.items():
            value = self._scores.get((scorer.id, request.image_id, scorer.text_of(request)))
            if value is not None:
                scores[name] = value
        if scores.keys() >= self._study.scorers.keys():
            return Scored(scores)
        return Unscored(PngPicture(self._tables.png(request.image_id)), seconds)

    def write(self, done: Sequence[Done], judged: Sequence[Judged]) -> None:
        """Pictures, then their scores, then the trials that rest on them; durable on return."""
        images = [
            item for item in done if _belongs_in_images(item) and item.request.image_id not in self._images
        ]
        self._tables.append(
            "images",
            [image_row(item, self._study, item.picture.png() if item.picture else None) for item in images],
        )
        scores = {_score_key(row): row for item in done for row in score_rows(item, self._study)}
        new = [row for key, row in scores.items() if key not in self._scores]
        self._tables.append("scores", new)
        self._tables.append("trials", [trial_row(item, self._study) for item in judged])
        for item in images:
            failed = isinstance(item.outcome, Failed)
            self._images[item.request.image_id] = item.outcome.reason if failed else None  # type: ignore[union-attr]
            if self._study.measures:
                self._seconds[item.request.image_id] = item.provenance.seconds_generate
        self._scores |= {_score_key(row): float(str(row["value"])) for row in new}


def _score_key(row: Mapping[str, object]) -> tuple[str, str, str]:
    return str(row["scorer"]), str(row["image_id"]), str(row["text"])


def _belongs_in_images(item: Done) -> bool:
    """A picture, or a failure that is a property of the settings; what machines lost is not remembered here."""
    if isinstance(item.outcome, Failed):
        return item.outcome.kind == "infeasible"
    return item.picture is not None


def past_trials(
    tables: Tables, study: str, forget_lost: bool = False, needed: Set[str] = frozenset()
) -> list[PastTrial]:
    """The trials of a study as the trials table has them, by number, each with what became of its instances.

    Scores have those of pixel scorers and the seconds that the image took beside them. `forget_lost` leaves lost
    instances out, so that they are tried again, and so are pictures without a `needed` score.
    """
    columns = ["trial", "instance", "image_id", "role", "strategy", "state", "reason", "settings"]
    columns += ["scorer", "text"]
    rows = tables.read("trials", [*columns, "after", "value"], pc.field("study") == study).to_pylist()
    if not rows:
        return []
    pixels = {each.id: name for name, each in PIXEL_SCORERS.items()}
    values = score_values(tables, {*pixels, *(row["scorer"] for row in rows)})
    seconds = _seconds(tables, {row["image_id"] for row in rows})
    trials: dict[int, _Found] = {}
    for row in rows:
        found = trials.setdefault(row["trial"], _Found(row["settings"]))
        outcomes = found.validation if row["role"] == "validate" else found.outcomes
        scorer, instance = row["scorer"], row["instance"]
        if row["role"] == "search" and row["strategy"] is not None:
            found.dealt_by[instance] = row["strategy"]
        if row["state"] == "looked":
            look = Looked({scorer_name(scorer): row["value"]}, row["after"])
            found.looks.setdefault(instance, {})[look.after] = look
        elif row["state"] == "scored":
            value = values.get((scorer, row["image_id"], row["text"]))
            if value is not None:
                scores = {scorer_name(scorer): value, GPU_SECONDS: seconds.get(row["image_id"], 0.0)}
                for each, name in pixels.items():
                    if (each, row["image_id"], "") in values:
                        scores[name] = values[each, row["image_id"], ""]
                if scores.keys() >= needed:
                    outcomes[instance] = Scored(scores)
        elif row["state"] == "infeasible":  # which is for good, whatever machines lost before
            outcomes[instance] = Failed("infeasible", row["reason"])
        elif not forget_lost:
            outcomes.setdefault(instance, Failed("lost", row["reason"]))
    return [found.past_trial(number) for number, found in sorted(trials.items())]


def _seconds(tables: Tables, image_ids: Set[str]) -> dict[str, float]:
    """How long a worker took for each of some images."""
    wanted = pc.field("image_id").isin(pa.array(sorted(image_ids), pa.string()))
    rows = tables.read("images", ["image_id", "seconds_generate"], wanted).to_pylist()
    return {row["image_id"]: row["seconds_generate"] for row in rows}


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


def score_values(tables: Tables, scorers: set[str]) -> dict[tuple[str, str, str], float]:
    """Every value of some scorers by (scorer, image_id, text)."""
    rows = tables.read(
        "scores",
        ["scorer", "image_id", "text", "value"],
        pc.field("scorer").isin(pa.array(sorted(scorers), pa.string())),
    )
    return {(row["scorer"], row["image_id"], row["text"]): row["value"] for row in rows.to_pylist()}


def joined(tables: Tables, study: str) -> pa.Table:
    """What people want of a study: a row per trial and instance, with settings, score and picture.

    Columns: those of `trials` but for `settings`, with `value` the score, null without one, then those of
    `images`; early looks, which have no picture, are left out. Swept settings are the trial's own, where a
    twin of other settings drew the picture.
    """
    trials = tables.read("trials", where=(pc.field("study") == study) & (pc.field("role") != "look"))
    swept = [json.loads(settings) for settings in trials["settings"].to_pylist()]
    trials = trials.drop_columns(["settings", "after", "value"])
    keys = trials.select(["scorer", "image_id", "text"]).to_pylist()
    values = score_values(tables, {key["scorer"] for key in keys})
    scores = [values.get((key["scorer"], key["image_id"], key["text"])) for key in keys]
    images = tables.read("images", where=pc.field("image_id").isin(trials["image_id"].unique()))
    position = {image_id: row for row, image_id in enumerate(images["image_id"].to_pylist())}
    rows = pa.array([position.get(key["image_id"]) for key in keys], pa.int64())
    made = images.take(rows)
    table = trials.append_column("value", pa.array(scores, pa.float64()))
    for name in images.column_names:
        if name not in table.column_names:
            column = made[name]
            if name in SETTING_COLUMNS:
                pairs = zip(swept, column.to_pylist(), strict=True)
                column = pa.array(
                    [own.get(name, drawn) for own, drawn in pairs], images.schema.field(name).type
                )
            table = table.append_column(images.schema.field(name), column)
    return table
