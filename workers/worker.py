"""The worker: generate, score, encode. A plain class, without Ray."""

import hashlib
import math
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from search_spaces.requests import Failed, ImageRequest, Looked, Outcome, Scored
from workers.pipelines import NOT_FINITE, Generated, Pipeline
from workers.png import Encoder, decode_png
from workers.scoring import Scorer


@dataclass(frozen=True)
class Provenance:
    """How a picture came to be, beyond what its identity says; `seconds_*` are this picture's shares."""

    device: str
    width: int
    height: int
    unet_calls: int | None
    seconds_generate: float
    seconds_score: float
    sha256: str | None = (
        None  # of the picture as it is encoded; made here, since the catalog has one writer for all
    )


@dataclass(frozen=True)
class Finished:
    """One request's end. `png` is None where there is no picture, or where the catalog already has it."""

    request: ImageRequest
    outcome: Outcome
    png: bytes | None
    provenance: Provenance
    notes: tuple[str, ...] = ()


class Worker:
    """One pipeline and its scorers on one device; work is taken in and given back as the seam Pipeline does.

    `batch` is how many requests keep the pipeline busy until it is called again. With `overlap`, scoring and
    encoding go on in a thread beside the generation of what follows: for a GPU, which waits for neither. `encode`
    makes files of pictures. `notes` are sentences for the user about how it came to be.
    """

    notes: Sequence[str] = ()

    def __init__(
        self,
        pipeline: Pipeline,
        scorers: Mapping[str, Scorer],
        device: str,
        batch: int = 8,
        overlap: bool = False,
        encode: Encoder = Encoder(),  # noqa: B008 -- it is frozen
        notes: Sequence[str] = (),
    ) -> None:
        self._pipeline, self._scorers, self.device = pipeline, scorers, device
        self.batch, self.notes = batch, notes
        self._encode = encode
        self._beside = ThreadPoolExecutor(1) if overlap else None
        self._unfinished: deque[Future[list[Finished]]] = deque()

    @property
    def steps(self) -> int:
        """How much its pipeline has done: while it grows, the worker is alive. Asked from another thread."""
        return self._pipeline.steps

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        """Take in requests, work until something is finished, score it and encode it."""
        made = self._pipeline.advance(new, cancelled)
        if self._beside is None:
            return self._finish(made, stored=False)
        if made:
            self._unfinished.append(self._beside.submit(self._finish, made, stored=False))
        # Where nothing was made there is nothing to overlap with: then the oldest is waited for.
        ended: list[Finished] = []
        while self._unfinished and (self._unfinished[0].done() or not (made or ended)):
            ended += self._unfinished.popleft().result()
        return ended

    def score(self, stored: Sequence[tuple[ImageRequest, bytes]]) -> Sequence[Finished]:
        """Score pictures that the catalog has, given as PNG; nothing is generated."""
        made = [Generated(request, decode_png(png), 0.0, None) for request, png in stored]
        if self._beside is None:
            return self._finish(made, stored=True)
        return self._beside.submit(self._finish, made, stored=True).result()

    def _finish(self, made: Sequence[Generated], stored: bool) -> list[Finished]:
        begun = time.perf_counter()
        pictures = [(item.request, item.picture) for item in made if isinstance(item.picture, Image.Image)]
        images = [picture for _, picture in pictures]
        requests = [request for request, _ in pictures]
        values = {name: list(scorer.score(images, requests)) for name, scorer in self._scorers.items()}
        notes = tuple(note for scorer in self._scorers.values() for note in scorer.notes(requests))
        seconds = (time.perf_counter() - begun) / max(1, len(pictures))
        order = iter(range(len(pictures)))
        finished = []
        for item in made:
            if isinstance(item.picture, Failed):
                provenance = self._provenance(item, None, 0.0, None)
                finished.append(Finished(item.request, item.picture, None, provenance, item.notes))
                continue
            position = next(order)
            judged = _judged({name: scores[position] for name, scores in values.items()}, item.after)
            encoded = None
            if not stored and item.after is None:  # a look is no result
                encoded, judged = self._encoded(item.picture, item.request, judged)
            provenance = self._provenance(item, item.picture, seconds, encoded)
            finished.append(Finished(item.request, judged, encoded, provenance, (*item.notes, *notes)))
        return finished

    def _encoded(
        self, picture: Image.Image, request: ImageRequest, judged: Outcome
    ) -> tuple[bytes | None, Outcome]:
        """A picture as a file, and its outcome: lost where the format cannot hold it, which another one may."""
        try:
            return self._encode(picture, request, judged.scores if isinstance(judged, Scored) else {}), judged
        except (ValueError, OSError) as error:
            return None, Failed("lost", f"it cannot be written as {self._encode.form}: {error}")

    def _provenance(
        self, item: Generated, picture: Image.Image | None, seconds_score: float, encoded: bytes | None
    ) -> Provenance:
        width, height = picture.size if picture else (0, 0)
        sha256 = None if encoded is None else hashlib.sha256(encoded).hexdigest()
        return Provenance(self.device, width, height, item.unet_calls, item.seconds, seconds_score, sha256)


def _judged(scores: Mapping[str, float], after: int | None) -> Outcome:
    """Scores as an outcome; a score that is not a number is a failure, never a number told."""
    wrong = [name for name, value in scores.items() if not math.isfinite(value)]
    if wrong:
        return Failed("infeasible", f"{wrong[0]} {NOT_FINITE}")
    return Scored(scores) if after is None else Looked(scores, after)
