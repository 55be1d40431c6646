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
from workers.pipelines import Generated, Pipeline
from workers.png import ImageFormat, decode_png, encode
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
    encoding go on in a thread beside the generation of what follows: for a GPU, which waits for neither.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        scorers: Mapping[str, Scorer],
        device: str,
        batch: int = 8,
        overlap: bool = False,
        image_format: ImageFormat = "png",
    ) -> None:
        self._pipeline, self._scorers, self._device = pipeline, scorers, device
        self.batch = batch
        self._format: ImageFormat = image_format
        self._beside = ThreadPoolExecutor(1) if overlap else None
        self._unfinished: deque[Future[list[Finished]]] = deque()

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
            keep = not stored and item.after is None  # a look is no result
            encoded = encode(item.picture, item.request, self._format) if keep else None
            provenance = self._provenance(item, item.picture, seconds, encoded)
            finished.append(Finished(item.request, judged, encoded, provenance, (*item.notes, *notes)))
        return finished

    def _provenance(
        self, item: Generated, picture: Image.Image | None, seconds_score: float, encoded: bytes | None
    ) -> Provenance:
        width, height = picture.size if picture else (0, 0)
        sha256 = None if encoded is None else hashlib.sha256(encoded).hexdigest()
        return Provenance(self._device, width, height, item.unet_calls, item.seconds, seconds_score, sha256)


def _judged(scores: Mapping[str, float], after: int | None) -> Outcome:
    """Scores as an outcome; a score that is not a number is a failure, never a number told."""
    wrong = [name for name, value in scores.items() if not math.isfinite(value)]
    if wrong:
        return Failed("infeasible", f"{wrong[0]} is not a finite number")
    return Scored(scores) if after is None else Looked(scores, after)
