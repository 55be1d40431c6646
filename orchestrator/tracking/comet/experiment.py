"""A study's experiment in Comet, by calls that each have an answer; imports the SDK, so only in a child process.

Images go by `APIExperiment.log_asset(…, ftype="image")`: it returns an id or raises, where `Experiment.log_image`
queues and may drop in silence. What the experiment holds is known from its listing alone.
"""

import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.tracking.comet import replies
from orchestrator.tracking.comet.connection import (
    RejectedError,
    UnansweredError,
    begun,
    connected,
    translated,
)
from orchestrator.tracking.comet.content import (
    CometError,
    CometImage,
    CometMetric,
    CometStudy,
    metadata_text,
)

T = TypeVar("T")

SIGNIFICANT = 9
"""Digits by which two values of a metric are one: Comet lists them as texts."""


@dataclass(frozen=True)
class ListedImage:
    """An image as the experiment lists it; `image_id` is None where it is not one of ours."""

    asset_id: str
    image_id: str | None


MetricPoint = tuple[str, int | None, str]
"""Name, step and value, this to nine significant digits."""


def metric_point(metric: CometMetric) -> MetricPoint:
    """A metric as it is compared with the listing."""
    return metric.name, metric.step, _digits(metric.value)


def _digits(value: object) -> str:
    try:
        return f"{float(value):.{SIGNIFICANT}g}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)


def facts(study: CometStudy) -> dict[str, str]:
    """What an experiment says of a study beside its parameters."""
    told = {"Name": study.experiment_name, "study": study.study, "Created from": "latentsweep"}
    return told if study.commit is None else {**told, "git_commit": study.commit}


LISTING_PATIENCE = 6
"""A list, which may be of 100,000, is waited for so many times as long as another call."""


class Experiment:
    """The experiment of a key, made where it is not there yet; threads may call it at once.

    With `make` False it is only looked for, and `exists` says whether it was found. `scratch` holds a file per
    thread. Every method raises CometError or one of its kinds, which quote no key.
    """

    def __init__(self, study: CometStudy, key: str, scratch: Path, make: bool = True) -> None:
        self._key, self._scratch, self._mine = key, scratch, threading.local()
        self._listing_seconds = LISTING_PATIENCE * float(os.environ.get("COMET_TIMEOUT_API", 10))
        there = _asked(lambda: connected().get_experiment_by_key(key))
        if there is None and make:
            _asked(lambda: begun(study, key).end())
            there = _asked(lambda: connected().get_experiment_by_key(key))
            if there is None:
                raise UnansweredError("Comet does not know the experiment that it has just made")
        self.exists = there is not None
        self.url = str(there.url) if self.exists else ""
        if self.exists:
            self._mine.experiment = there

    def images(self) -> list[ListedImage]:
        """Every image that the experiment lists, in its order."""
        return [
            ListedImage(str(asset["assetId"]), _image_id(asset.get("metadata")))
            for asset in self._assets("image")
        ]

    def send_image(self, image: CometImage, png: bytes) -> None:
        """Send one image; it was stored when this returns."""
        self._send(png, "png", name=image.name, step=image.step, ftype="image", metadata=metadata_text(image))

    def remove(self, asset_id: str) -> None:
        """Remove one asset."""
        _asked(lambda: self._here().delete_asset(asset_id))

    def metrics(self) -> set[MetricPoint]:
        """Every point of every curve that the experiment lists."""
        found = _asked(lambda: self._here().get_metrics()) or []
        return {(str(m["metricName"]), m.get("step"), _digits(m["metricValue"])) for m in found}

    def send_metric(self, metric: CometMetric) -> None:
        """Send one point of a curve."""
        _asked(lambda: self._here().log_metric(metric.name, metric.value, step=metric.step))

    def send_facts(self, study: CometStudy) -> None:
        """Make name, tags, parameters and the study's name those of the study; what is so already is not sent."""
        here = self._here()
        there = {p["name"]: str(p.get("valueCurrent")) for p in _asked(here.get_parameters_summary) or []}
        for name, value in study.parameters.items():
            if there.get(name) != str(value):
                _asked(lambda name=name, value=value: here.log_parameter(name, value))  # type: ignore[misc]
        others = {o["name"]: str(o.get("valueCurrent")) for o in _asked(here.get_others_summary) or []}
        told = facts(study)
        if "git_commit" in others:
            told.pop("git_commit", None)  # it is that of the first run
        for name, value in told.items():
            if others.get(name) != value:
                _asked(lambda name=name, value=value: here.log_other(name, value))  # type: ignore[misc]
        new = [tag for tag in study.tags if tag not in (_asked(here.get_tags) or [])]
        if new:
            _asked(lambda: here.add_tags(new))

    def send_files(self, files: Mapping[str, bytes]) -> None:
        """Make the files of those names the ones given; our earlier ones are removed once the new one is there."""
        listed = self._assets("all")
        for name, data in files.items():
            digest = sha256(data).hexdigest()
            named = [asset for asset in listed if asset.get("fileName") == name]
            digests = {
                str(asset["assetId"]): _mapping(asset.get("metadata")).get("sha256") for asset in named
            }
            ours = {asset_id: known for asset_id, known in digests.items() if known is not None}
            current = [asset_id for asset_id, known in ours.items() if known == digest]
            if not current:
                told = json.dumps({"sha256": digest})
                self._send(data, name.rpartition(".")[2], name=name, ftype="asset", metadata=told)
            for asset_id in ours.keys() - set(current[:1]):
                self.remove(asset_id)

    def _assets(self, kind: str) -> list[Any]:
        # The SDK's own patience with a list is ten minutes, whatever the other calls' is.
        with replies.at_most(replies.MOST_LISTING):
            return _asked(lambda: self._here().get_asset_list(kind, timeout=self._listing_seconds)) or []

    def _send(self, data: bytes, suffix: str, **options: object) -> None:
        file = self._scratch / f"{threading.get_ident()}.{suffix}"  # its name is not sent, but its suffix is
        file.write_bytes(data)
        answer = _asked(lambda: self._here().log_asset(str(file), **options))
        if not answer or not answer.get("assetId"):
            raise UnansweredError("Comet has named no id for what it was sent")

    def _here(self) -> Any:
        """The connection of the thread that asks."""
        if not hasattr(self._mine, "experiment"):
            self._mine.experiment = _asked(lambda: connected().get_experiment_by_key(self._key))
        if self._mine.experiment is None:
            del self._mine.experiment
            raise RejectedError("the experiment is gone from Comet")
        return self._mine.experiment


def _image_id(metadata: object) -> str | None:
    found = _mapping(metadata).get("image_id")
    return found if isinstance(found, str) else None


def _mapping(metadata: object) -> Mapping[str, object]:
    """An asset's metadata, which is listed as a mapping or as JSON."""
    if isinstance(metadata, str):
        with suppress(ValueError):
            metadata = json.loads(metadata)
    return metadata if isinstance(metadata, Mapping) else {}


def _asked(call: Callable[[], T]) -> T:
    """A call's answer; whatever else it fails with, nobody knows what the server has done."""
    try:
        with translated():
            return call()
    except CometError:
        raise
    except Exception as error:  # noqa: BLE001 -- of many kinds in the SDK, none of them documented
        raise UnansweredError(f"the Comet SDK failed with {type(error).__name__}") from None
