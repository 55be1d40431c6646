"""Against Comet itself, which only its users can: `COMET_API_KEY=… python -m pytest -m live tests/live`.

It makes one experiment in the project `latentsweep-live-test` of the key's default workspace, asks what only the
real service can answer, and deletes the experiment.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.tracking.comet.content import CometMetric, CometStudy, Content, experiment_key
from orchestrator.tracking.comet.sync import Status, sync_in_child
from tests.orchestrator.tracking.comet.contents import an_image, described, some_pictures

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not os.environ.get("COMET_API_KEY"), reason="needs COMET_API_KEY"),
]

IMAGES = 5

ASK = """
import json, sys, comet_ml.api
found = comet_ml.api.API(cache=False).get_experiment_by_key(sys.argv[1])
assets = [[a["fileName"], a["step"], a["metadata"]] for a in found.get_asset_list("image")]
metrics = [[m["metricName"], m["step"]] for m in found.get_metrics()]
files = [a["fileName"] for a in found.get_asset_list("all")]
print(json.dumps({"images": assets, "metrics": metrics, "files": files}))
"""

DELETE = "import sys, comet_ml.api; comet_ml.api.API().delete_experiment(sys.argv[1])"


def content(key: str, images: int) -> Content:
    study = CometStudy(
        "live",
        None,
        "latentsweep-live-test",
        "live test",
        ("latentsweep",),
        {"model": "toyworld"},
        {"a.txt": b"a"},
    )
    metrics = [CometMetric("clip_score", 25.125, 0)]
    return Content(study, key, lambda: map(an_image, range(images)), some_pictures, metrics, described)


def sdk(script: str, key: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, key], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def key() -> Iterator[str]:
    key = experiment_key(uuid.uuid4().hex)
    yield key
    sdk(DELETE, key)


def synced(key: str, images: int, folder: Path) -> Status:
    return sync_in_child(partial(content, key, images), folder / "comet", folder / "comet.log")


def test_comet_lists_each_image_once_with_its_name_step_and_metadata(key: str, tmp_path: Path) -> None:
    assert synced(key, IMAGES, tmp_path).sent == IMAGES
    time.sleep(5)  # curves are listed a moment later
    again = synced(key, IMAGES + 1, tmp_path)
    assert (again.sent, again.removed, again.problem) == (IMAGES + 1, 0, None)
    told = json.loads(sdk(ASK, key).splitlines()[-1])
    ids = []
    for name, step, metadata in told["images"]:
        facts = json.loads(metadata) if isinstance(metadata, str) else metadata
        number = int(facts["image_id"].removeprefix("id"))
        assert (name, step) == ("search", number // 2)
        assert facts["prompt"] == an_image(number).metadata["prompt"]
        ids.append(number)
    assert sorted(ids) == list(range(IMAGES + 1))
    assert told["metrics"].count(["clip_score", 0]) == 1
    assert told["files"].count("a.txt") == 1
