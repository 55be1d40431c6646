"""What a study's experiment holds: plain data, read from the catalog wherever it is to go."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from orchestrator.tracking import TrackedImage
from search_spaces.estimates import estimate
from search_spaces.requests import Value

MOST_IMAGES = 100_000
"""Images that Comet keeps per experiment."""

MOST_METADATA = 6_000
"""Characters of an image's metadata in a URL, where the REST way has it; servers take 8,190 in all."""

LONG_TEXTS = ("prompt", "negative_prompt", "score_text")


class CometError(Exception):
    """One sentence for the user that says what is wrong with Comet; it never quotes a key."""


class DiskError(CometError, OSError):
    """A disk of this machine failed, not Comet; the text says which folder and why."""


DISK_FAILURES = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENODEV,
    errno.ENOSPC,
    errno.EROFS,
    errno.ESTALE,
}
"""Of an OSError that is no server's: a place of this machine cannot be used."""


def disk_failure(error: object, scratch: Path) -> DiskError | None:
    """An error as a disk's, None where it is another; what names no file is of the folder that has `scratch`."""
    if isinstance(error, DiskError):
        return error
    if not isinstance(error, OSError) or error.errno not in DISK_FAILURES:
        return None
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else scratch
    return DiskError(f"{scratch.parent if named.is_relative_to(scratch) else named}: {error.strerror}")


@dataclass(frozen=True)
class CometImage:
    """One picture without its bytes: `name` is its role, `step` its trial's number."""

    image_id: str
    name: str
    step: int
    metadata: Mapping[str, Value]


@dataclass(frozen=True)
class CometMetric:
    """One value of a curve at a step; a value that is not finite is never sent."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class CometStudy:
    """What is said once per study; `workspace` and `project` None mean the uploader's own defaults.

    `files` are those that go beside the images, by name; `commit` is the code's, said when the experiment has none.
    """

    study: str
    workspace: str | None
    project: str | None
    experiment_name: str
    tags: Sequence[str]
    parameters: Mapping[str, object]
    files: Mapping[str, bytes] = field(default_factory=dict)
    commit: str | None = None


@dataclass(frozen=True)
class Content:
    """A study as Comet is to have it, read from the catalog as it is now.

    `images()` gives every image, each id once; `pictures(ids)` the PNGs of some, one in memory at a time;
    `described(record)` is the image that a tracker was told of, None where its picture is not to be sent now.
    """

    study: CometStudy
    key: str
    images: Callable[[], Iterable[CometImage]]
    pictures: Callable[[Set[str]], Iterator[tuple[str, bytes]]]
    metrics: Sequence[CometMetric]
    described: Callable[[TrackedImage], CometImage | None]


Source = Callable[[], Content]
"""Reads the content; called in a child process, so it must pickle by name."""


def experiment_key(study_identity: str) -> str:
    """Name the experiment of a study: the same 32 lowercase alphanumerics for the same identity, always."""
    return hashlib.sha256(study_identity.encode()).hexdigest()[:32]


AT_A_TIME = 256
"""Images whose pictures are looked up together."""


def with_pictures(
    content: Content, images: Iterable[CometImage], left_out: Callable[[str], object] = lambda _: None
) -> Iterator[tuple[CometImage, bytes]]:
    """Images with their PNGs, each id once and one picture in memory.

    Those that are gone, or are not what was stored, are left out; `left_out` hears of their ids.
    """
    seen: set[str] = set()
    rest = iter(images)
    while some := list(islice(rest, AT_A_TIME)):
        by_id = {image.image_id: image for image in some if image.image_id not in seen}
        seen.update(by_id)
        gone = set(by_id)
        for image_id, png in content.pictures(set(by_id)):
            gone.discard(image_id)
            yield by_id[image_id], png
        for image_id in gone:
            left_out(image_id)


def trial_metrics(score: str, step: int, values: Sequence[float]) -> list[CometMetric]:
    """A trial's mean over its instances, and the ends of its 95 % interval where it has one."""
    found = estimate(values)
    metrics = [CometMetric(score, found.mean, step)]
    if found.half_width is not None:
        metrics += [
            CometMetric(f"{score}_low", found.mean - found.half_width, step),
            CometMetric(f"{score}_high", found.mean + found.half_width, step),
        ]
    return metrics


def chosen(images: Sequence[TrackedImage], rule: str | int, score: str) -> list[TrackedImage]:
    """The images that a rule sends, in their order: all, the best_per_trial, or the N with the highest score."""
    if rule == "all":
        return list(images)
    best_first = sorted(images, key=lambda image: (-image.scores[score], image.trial, image.instance))
    if isinstance(rule, int):
        kept = {id(image) for image in best_first[:rule]}
    else:
        best: dict[int, TrackedImage] = {}
        for image in best_first:
            best.setdefault(image.trial, image)
        kept = {id(image) for image in best.values()}
    return [image for image in images if id(image) in kept]


def metadata_text(image: CometImage) -> str:
    """An image's metadata as the JSON that is sent, its texts cut where a URL would be too long for it.

    The catalog has them whole.
    """
    told = {**image.metadata, "image_id": image.image_id}
    limit = 2_000
    while len(quote(text := json.dumps(told, ensure_ascii=False))) > MOST_METADATA and limit > 20:
        for name, value in told.items():
            if isinstance(value, str) and len(value) > limit and name != "image_id":
                told[name] = value[: limit - 1] + "…"
        limit //= 2
    return text
