"""Comet archives through the real SDK, each opened again. Sources run in the child: they pickle by name."""

import json
import os
import random
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from orchestrator.tracking.comet import archive as archive_module
from orchestrator.tracking.comet.archive import CometOfflineTracker, archive_in_child, count_images
from orchestrator.tracking.comet.content import CometError, Content, DiskError, Source
from tests.disks import small_disk
from tests.orchestrator.tracking.comet.contents import (
    FILE,
    KEY,
    a_study,
    an_image,
    png,
    some_pictures,
    with_images,
)

MARKER = "MARKERmarker0123456789abc"


def refuse_connection(*_: object) -> NoReturn:
    raise AssertionError("the network was used")


def without_network(images: int) -> Content:
    """A study whose child fails on any connection and knows no key."""
    socket.socket.connect = refuse_connection  # type: ignore[method-assign]
    socket.socket.connect_ex = refuse_connection  # type: ignore[method-assign]
    socket.getaddrinfo = refuse_connection  # type: ignore[assignment]
    assert MARKER not in os.environ.values()
    print("a chatty source", flush=True)
    return a_study(images)


def with_a_repeat() -> Content:
    return with_images(a_study(0), [an_image(0), an_image(1), an_image(0)])


def stalling() -> Content:
    def stall(ids: Set[str]) -> Iterator[tuple[str, bytes]]:
        yield from some_pictures({"id0"})
        time.sleep(600)

    return replace(a_study(2), pictures=stall)


def raising_late() -> Content:
    def fail(ids: Set[str]) -> Iterator[tuple[str, bytes]]:
        yield from some_pictures({"id0"})
        raise LookupError(f"rejected {MARKER}")

    return replace(a_study(2), pictures=fail)


def dying() -> Content:
    os._exit(7)


def with_a_lossy_sdk() -> Content:
    """An SDK that loses every second image and still reports success."""
    import comet_ml

    whole = comet_ml.OfflineExperiment.log_image

    def lossy(experiment: Any, *args: Any, **options: Any) -> Any:
        return None if options["metadata"]["image_id"] == "id1" else whole(experiment, *args, **options)

    comet_ml.OfflineExperiment.log_image = lossy
    return a_study(2)


def messages(archive: Path, kind: str) -> list[dict[str, Any]]:
    with zipfile.ZipFile(archive) as opened:
        lines = [json.loads(line) for line in opened.read("messages.json").splitlines()]
    return [line["payload"] for line in lines if line["type"] == kind]


def uploads(archive: Path, kind: str) -> list[tuple[dict[str, Any], bytes]]:
    """Each upload of a kind with the bytes it would send."""
    with zipfile.ZipFile(archive) as opened:
        found = [each for each in messages(archive, "file_upload") if each["upload_type"] == kind]
        return [(each, opened.read(each["file_path"])) for each in found]


class Built:
    """One archive built beside every place where a key may lie, and the traces it left in this process."""

    def __init__(self, root: Path) -> None:
        self.folder, self.log = root / "comet", root / "logs" / "comet.log"
        self.state_before = self.state()
        self.archive = archive_in_child(partial(without_network, 5), self.folder, self.log)
        self.state_after = self.state()

    @staticmethod
    def state() -> tuple[object, ...]:
        return sys.excepthook, random.getstate(), "comet_ml" in sys.modules, os.environ["COMET_API_KEY"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("COMET_API_KEY", MARKER)
        patch.setenv("COMET_OFFLINE_DIRECTORY", str(root / "elsewhere"))
        (root / ".comet.config").write_text(f"[comet]\napi_key={MARKER}\n[comet_auto_log]\ndisable=True\n")
        yield Built(root)


class TestArchive:
    def test_has_its_final_name_and_nothing_beside_it(self, built: Built) -> None:
        assert built.archive == built.folder / f"{KEY}.zip"
        assert list(built.folder.iterdir()) == [built.archive]

    def test_holds_each_image_once_byte_for_byte(self, built: Built) -> None:
        found = {
            each["metadata"]["image_id"]: (each, data)
            for each, data in uploads(built.archive, "visualization")
        }
        assert list(found) == [f"id{number}" for number in range(5)]
        assert count_images(built.archive) == 5
        for number, (each, data) in enumerate(found.values()):
            image = an_image(number)
            assert data == png(number)
            assert each["metadata"] == {**image.metadata, "image_id": image.image_id}
            assert each["additional_params"]["figName"] == "search"
            assert each["additional_params"]["step"] == number // 2

    def test_holds_the_study(self, built: Built) -> None:
        with zipfile.ZipFile(built.archive) as opened:
            experiment = json.loads(opened.read("experiment.json"))
        assert experiment["offline_id"] == KEY
        assert (experiment["workspace"], experiment["project_name"]) == ("friends", "dragons")
        assert sorted(experiment["tags"]) == ["cat", "latentsweep"]
        others = {each["key"]: each["value"] for each in messages(built.archive, "log_other")}
        assert (others["Name"], others["study"]) == ("cats at night", "cats")
        ((asset, data),) = uploads(built.archive, "asset")
        assert (asset["additional_params"]["fileName"], data) == ("cats.yaml", FILE)

    def test_holds_the_parameters(self, built: Built) -> None:
        logged = [each.get("param") or each["params"] for each in messages(built.archive, "parameter_msg")]
        manual = {each["paramName"]: each["paramValue"] for each in logged if each["source"] == "manual"}
        assert manual == {"model": "toyworld", "num_inference_steps": 30, "strength": "[0.3, 0.6]"}

    def test_holds_finite_metrics_only(self, built: Built) -> None:
        metrics = [each["metric"] for each in messages(built.archive, "metric_msg")]
        means = [
            (each["step"], each["metricValue"]) for each in metrics if each["metricName"] == "clip_score"
        ]
        assert means == [(0, 0.5), (2, 0.75)]

    def test_building_leaves_this_process_alone_and_prints_into_the_log(self, built: Built) -> None:
        assert built.state_after == built.state_before
        assert built.log.read_text() == "a chatty source\n"

    def test_says_nothing_of_a_key_or_of_this_machine(self, built: Built) -> None:
        root = built.log.parent.parent
        for path in root.rglob("*"):
            if path.is_file() and path.name != ".comet.config":
                assert MARKER.encode() not in path.read_bytes()
        assert str(root).encode() not in built.archive.read_bytes()
        assert not (root / "elsewhere").exists()


def test_a_rerun_replaces_the_archive_and_skips_a_repeated_image(tmp_path: Path) -> None:
    (tmp_path / f"{KEY}.zip").write_bytes(b"an earlier archive")
    left_by_a_killed_build = tmp_path / archive_module._SCRATCH / "half.zip"
    left_by_a_killed_build.parent.mkdir()
    left_by_a_killed_build.write_bytes(b"half")
    log = tmp_path / "comet.log"
    line = CometOfflineTracker(with_a_repeat, tmp_path, log).close()
    archive = tmp_path / f"{KEY}.zip"
    assert line == f"Comet archive: {archive} (2 images); upload it with `comet upload {archive}`"
    assert sorted(tmp_path.iterdir()) == sorted([archive, log])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (raising_late, "build_archive failed with LookupError; see"),
        (dying, "the process that talks to Comet died with code 7; see"),
        (with_a_lossy_sdk, "the Comet archive holds 1 of 5 things not as given: image id1, …"),
    ],
    ids=["a source that raises", "a child that dies", "an SDK that loses an image"],
)
def test_a_failed_build_is_one_sentence_and_keeps_the_earlier_archive(
    source: Source, sentence: str, tmp_path: Path
) -> None:
    earlier = tmp_path / "comet" / f"{KEY}.zip"
    earlier.parent.mkdir()
    earlier.write_bytes(b"an earlier archive")
    with pytest.raises(CometError) as caught:
        archive_in_child(source, tmp_path / "comet", tmp_path / "comet.log")
    assert str(caught.value).startswith(sentence)
    assert MARKER not in str(caught.value)
    assert list(earlier.parent.iterdir()) == [earlier]
    assert earlier.read_bytes() == b"an earlier archive"


def test_a_build_past_its_deadline_is_killed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(CometError, match="not done within 3 s"):
        archive_in_child(stalling, tmp_path / "comet", tmp_path / "comet.log", deadline=3)
    assert list((tmp_path / "comet").iterdir()) == []
    (child,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


@pytest.mark.parametrize(
    ("kib", "when"), [(8, "it begins"), (60, "pictures come"), (200, "the SDK zips them")], ids=str
)
def test_a_full_disk_is_a_sentence_and_leaves_nothing_that_looks_whole(
    tmp_path: Path, kib: int, when: str
) -> None:
    """40 pictures take some 105 KiB, and while they are zipped twice as much."""
    disk = tmp_path / "disk"
    with small_disk(disk, kib):
        with pytest.raises(DiskError) as caught:
            archive_in_child(partial(a_study, 40), disk / "comet", tmp_path / "comet.log")
        assert str(caught.value) == f"{disk}/comet: No space left on device"
        assert list((disk / "comet").iterdir()) == []


def test_an_archive_just_fits_or_is_refused(tmp_path: Path) -> None:
    """Whatever the SDK has to say of a disk that is full in its last step, half an archive is none."""
    for kib in range(204, 244, 12):
        disk = tmp_path / "disk"
        with small_disk(disk, kib):
            with suppress(DiskError):
                archive_in_child(partial(a_study, 40), disk / "comet", tmp_path / "comet.log")
            built = list((disk / "comet").iterdir())
            assert [count_images(path) for path in built] == [40] * len(built)
