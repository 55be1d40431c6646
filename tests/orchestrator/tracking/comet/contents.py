"""Contents for Comet by number; sources of them pickle by name, since they are called in a child."""

import io
from collections.abc import Iterator, Set
from dataclasses import replace

from PIL import Image

from orchestrator.tracking import TrackedImage
from orchestrator.tracking.comet.content import CometImage, CometMetric, CometStudy, Content, experiment_key
from search_spaces.requests import Value

KEY = experiment_key("a study")
FILE = b"study: cats\n"


def png(shade: int, side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def an_image(number: int) -> CometImage:
    metadata: dict[str, Value] = {
        "prompt": 'a "grün" dragon',
        "clip_score": 0.25,
        "seed": number,
        "flagged": False,
        "mask": None,
    }
    return CometImage(f"id{number}", "search", number // 2, metadata)


def a_record(number: int) -> TrackedImage:
    return TrackedImage(f"id{number}", number // 2, number % 2, "search", {}, {"clip_score": 0.25})


def some_pictures(ids: Set[str]) -> Iterator[tuple[str, bytes]]:
    for number in sorted(int(image_id.removeprefix("id")) for image_id in ids):
        yield f"id{number}", png(number)


def described(record: TrackedImage) -> CometImage:
    return an_image(int(record.image_id.removeprefix("id")))


def a_study(images: int) -> Content:
    parameters = {"model": "toyworld", "num_inference_steps": 30, "strength": "[0.3, 0.6]"}
    study = CometStudy(
        "cats", "friends", "dragons", "cats at night", ("latentsweep", "cat"), parameters, {"cats.yaml": FILE}
    )
    metrics = [
        CometMetric("clip_score", 0.5, 0),
        CometMetric("clip_score", float("nan"), 1),
        CometMetric("clip_score", 0.75, 2),
    ]
    return Content(
        study, KEY, lambda: [an_image(number) for number in range(images)], some_pictures, metrics, described
    )


def with_images(content: Content, images: list[CometImage]) -> Content:
    return replace(content, images=lambda: images)
