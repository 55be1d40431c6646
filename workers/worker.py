"""The worker: generate, score, encode. A plain class, without Ray."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from search_spaces.requests import Failed, ImageRequest, Outcome, Scored
from workers.pipelines import Generated, Pipeline
from workers.png import decode_png, encode_png
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


@dataclass(frozen=True)
class Finished:
    """One request's end. `png` is None where there is no picture, or where the catalog already has it."""

    request: ImageRequest
    outcome: Outcome
    png: bytes | None
    provenance: Provenance
    notes: tuple[str, ...] = ()


class Worker:
    """One pipeline and its scorers on one device; work is taken in and given back as the seam Pipeline does."""

    def __init__(self, pipeline: Pipeline, scorers: Mapping[str, Scorer], device: str) -> None:
        self._pipeline, self._scorers, self._device = pipeline, scorers, device

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        """Take in requests, work until something is finished, score it and encode it."""
        return self._finish(self._pipeline.advance(new, cancelled), stored=False)

    def score(self, stored: Sequence[tuple[ImageRequest, bytes]]) -> Sequence[Finished]:
        """Score pictures that the catalog has, given as PNG; nothing is generated."""
        made = [Generated(request, decode_png(png), 0.0, None) for request, png in stored]
        return self._finish(made, stored=True)

    def _finish(self, made: Sequence[Generated], stored: bool) -> list[Finished]:
        begun = time.perf_counter()
        pictures = [(item.request, item.picture) for item in made if isinstance(item.picture, Image.Image)]
        images = [picture for _, picture in pictures]
        texts = [request.score_text for request, _ in pictures]
        values = {name: list(scorer.score(images, texts)) for name, scorer in self._scorers.items()}
        notes = tuple(note for scorer in self._scorers.values() for note in scorer.notes(texts))
        seconds = (time.perf_counter() - begun) / max(1, len(pictures))
        order = iter(range(len(pictures)))
        finished = []
        for item in made:
            if isinstance(item.picture, Failed):
                finished.append(Finished(item.request, item.picture, None, self._provenance(item, None, 0.0)))
                continue
            position = next(order)
            finished.append(
                Finished(
                    item.request,
                    _judged({name: scores[position] for name, scores in values.items()}),
                    None if stored else encode_png(item.picture, item.request),
                    self._provenance(item, item.picture, seconds),
                    notes,
                )
            )
        return finished

    def _provenance(self, item: Generated, picture: Image.Image | None, seconds_score: float) -> Provenance:
        width, height = picture.size if picture else (0, 0)
        return Provenance(self._device, width, height, item.unet_calls, item.seconds, seconds_score)


def _judged(scores: Mapping[str, float]) -> Outcome:
    """Scores as an outcome; a score that is not a number is a failure, never a number told."""
    wrong = [name for name, value in scores.items() if not math.isfinite(value)]
    return Failed("infeasible", f"{wrong[0]} is not a finite number") if wrong else Scored(scores)
