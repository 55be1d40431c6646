"""Stored images scored again, by another model or against another text, without drawing any."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import pyarrow.compute as pc

from orchestrator.catalog.frames import joined
from orchestrator.catalog.parquet import Scores
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done, PngPicture, Pool
from search_spaces.requests import Failed, ImageRequest, Scored
from search_spaces.study import Study

INPUTS = ("image_id", "input_image", "input_mask")
"""Columns of a picture that say what it was drawn from."""

FLUSH_ROWS = 256
WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Rescored:
    """How many images have been scored anew, had the score already, or could not be scored; and by what.

    `stopped_by` is the signal that ended it before its end, if one did.
    """

    scorer: str
    scored: int
    known: int
    failed: Sequence[str]
    mean: float | None
    stopped_by: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether the user ended it."""
        return self.stopped_by is not None


def rescore(
    tables: Tables,
    study: Study,
    pool: Pool,
    text: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Rescored:
    """Score a study's pictures by its `scorer`, which may be another than it was run with.

    `text` is by default what each was judged against; a scorer that reads none has no use for it. What has been
    scored is durable every few hundred images, and is not scored again. The pictures are as they are stored: of
    `image_format: jpeg` a little else than what was drawn, and what was scored as it was drawn.
    """
    rows = joined(tables, study.name, pictures=False)
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    asked = (text or None) if study.scorer.reads_text else ""
    texts = rows["text"].to_pylist() if asked is None else [asked] * rows.num_rows
    wanted = dict.fromkeys(zip(rows["image_id"].to_pylist(), texts, strict=True))
    inputs = {row.pop("image_id"): row for row in rows.select(list(INPUTS)).to_pylist()}
    scores = Scores(tables, {study.scorer.id})
    missing = [pair for pair in wanted if scores.of(study.scorer.id, *pair) is None]
    failed: list[str] = []
    values: list[float] = []
    unsaved: list[Done] = []

    def save() -> None:
        now = datetime.now(UTC)
        told = [
            {
                "image_id": done.request.image_id,
                "scorer": study.scorer.id,
                "text": done.request.score_text,
                "value": done.outcome.scores[study.objective],
                "time": now,
            }
            for done in unsaved
            if isinstance(done.outcome, Scored)
        ]
        tables.append("scores", told)
        unsaved.clear()

    for turn in _turns(missing):
        waiting = iter(turn)
        while True:
            for image_id, score_text in islice(waiting, 0 if stopping() else pool.free):
                image, mask = (inputs[image_id][name] for name in INPUTS[1:])
                request = ImageRequest(image_id, {}, "", 0, image, mask, score_text)
                try:
                    picture = PngPicture(tables.png(image_id))
                except KeyError:
                    failed.append(f"{image_id}: its picture is not what was stored")
                    continue
                pool.score([(request, picture)])
            if not pool.outstanding:
                break
            for done in pool.next_done(WAIT_SECONDS):
                if isinstance(done.outcome, Scored):
                    values.append(done.outcome.scores[study.objective])
                    unsaved.append(done)
                elif isinstance(done.outcome, Failed):
                    failed.append(f"{done.request.image_id}: {done.outcome.reason}")
            if len(unsaved) >= FLUSH_ROWS:
                save()
    save()
    known = len(wanted) - len(missing)
    scored = len(values)
    values += [value for pair in wanted if (value := scores.of(study.scorer.id, *pair)) is not None]
    mean = sum(values) / len(values) if values and not failed else None
    return Rescored(study.scorer.id, scored, known, failed, mean)


def _turns(pairs: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Pairs of image and text in turns that have each image once, since a pool knows a picture by its image_id."""
    turns: list[list[tuple[str, str]]] = []
    had: Counter[str] = Counter()
    for image_id, text in pairs:
        if had[image_id] == len(turns):
            turns.append([])
        turns[had[image_id]].append((image_id, text))
        had[image_id] += 1
    return turns
