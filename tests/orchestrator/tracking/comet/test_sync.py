"""Sync: what is missing is sent, nothing twice, whatever goes wrong; over a fake, and over the real SDK."""

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tracking.comet.connection import (
    BAD_KEY,
    NO_KEY,
    UNANSWERED,
    RejectedError,
    ThrottledError,
    UnansweredError,
)
from orchestrator.tracking.comet.content import (
    CometError,
    CometImage,
    CometMetric,
    CometStudy,
    Content,
    chosen,
    metadata_text,
)
from orchestrator.tracking.comet.experiment import ListedImage, MetricPoint, metric_point
from orchestrator.tracking.comet.pace import Pace, seconds_for
from orchestrator.tracking.comet.sync import (
    SENDERS,
    Status,
    status_in_child,
    superfluous,
    sync_in_child,
    synchronise,
)
from tests.comet_recorder import API_KEY, CometRecorder, Fault
from tests.orchestrator.tracking.comet.contents import (
    FILE,
    KEY,
    a_record,
    a_study,
    an_image,
    png,
    some_pictures,
)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeExperiment:
    """An experiment in memory; `script` says by image_id what becomes of successive attempts to send it.

    An image is listed `late` listings after it came; `fails` are numbers of listings, from 0, that are not answered.
    """

    url = "http://fake"

    def __init__(
        self, script: Mapping[str, list[str]] | None = None, late: int = 0, fails: Collection[int] = ()
    ) -> None:
        self.listed: list[ListedImage] = []
        self.listings = 0
        self.keeps_copies = False
        self.refuses_metric = ""
        self.remote_removes: list[str] = []
        self._late, self._fails = late, fails
        self._since: dict[str, int] = {}
        self.points: set[MetricPoint] = set()
        self.files: dict[str, bytes] = {}
        self.facts: list[CometStudy] = []
        self.attempts: list[str] = []
        self._script = {name: iter(acts) for name, acts in (script or {}).items()}
        self._numbers = iter(range(10**6))

    def images(self) -> list[ListedImage]:
        self.listings += 1
        if self.listings - 1 in self._fails:
            raise UnansweredError("no listing")
        return [
            image
            for image in self.listed
            if self._since.setdefault(image.asset_id, self.listings) + self._late <= self.listings
        ]

    def send_image(self, image: CometImage, png: bytes) -> None:
        self.attempts.append(image.image_id)
        act = next(self._script.get(image.image_id, iter(())), "store")
        if act in ("store", "lose reply"):
            self.listed.append(ListedImage(str(next(self._numbers)), image.image_id))
        if act in ("lose reply", "fail"):
            raise UnansweredError("no answer")
        if act == "throttle":
            raise ThrottledError("too much", 7.0)
        if act in ("reject", "full"):
            raise RejectedError("refused", full=act == "full")

    def remove(self, asset_id: str) -> None:
        self.remote_removes.append(asset_id)
        if len(self.remote_removes) == 1:
            raise UnansweredError("no answer")
        if self.keeps_copies:
            return
        self.listed = [image for image in self.listed if image.asset_id != asset_id]

    def metrics(self) -> set[MetricPoint]:
        return set(self.points)

    def send_metric(self, metric: CometMetric) -> None:
        assert metric_point(metric) not in self.points
        if f"{metric.name} at {metric.step}" == self.refuses_metric:
            raise RejectedError("no such curve")
        self.points.add(metric_point(metric))

    def send_facts(self, study: CometStudy) -> None:
        self.facts.append(study)

    def send_files(self, files: Mapping[str, bytes]) -> None:
        self.files.update(files)


def synchronised(remote: FakeExperiment, content: Content, clock: Clock | None = None) -> Status:
    clock = clock or Clock()
    return synchronise(content, remote, Pace(), clock=clock, sleep=clock.sleep)


class TestSynchronise:
    def test_sends_everything_once_and_nothing_again(self) -> None:
        remote, content = FakeExperiment(), a_study(9)
        status = synchronised(remote, content)
        assert (status.total, status.sent, status.pending, status.problem) == (9, 9, 0, None)
        assert sorted(remote.attempts) == sorted(f"id{n}" for n in range(9))
        assert remote.files == {"cats.yaml": FILE}
        assert ("clip_score", 0, "0.5") in remote.points
        again = synchronised(remote, content)
        assert again.sent == 9
        assert len(remote.attempts) == 9

    def test_what_was_stored_without_a_reply_is_not_sent_again(self) -> None:
        remote = FakeExperiment({"id1": ["lose reply"], "id2": ["fail", "lose reply"]})
        status = synchronised(remote, a_study(4))
        assert (status.sent, status.pending) == (4, 0)
        assert sorted(image.image_id or "" for image in remote.listed) == ["id0", "id1", "id2", "id3"]
        assert remote.attempts.count("id1") == 1

    def test_a_server_that_asks_to_wait_is_waited_for(self) -> None:
        remote, clock = FakeExperiment({"id0": ["throttle"]}), Clock()
        assert synchronised(remote, a_study(1), clock).sent == 1
        assert clock.now >= 7

    def test_a_server_that_is_gone_ends_it_with_a_sentence_and_the_count(self) -> None:
        remote = FakeExperiment({f"id{n}": ["fail"] * 100 for n in range(3, 60)})
        status = synchronised(remote, a_study(60))
        assert (status.sent, status.pending, status.problem) == (3, 57, "no answer")
        assert len(remote.attempts) < 30

    def test_what_is_refused_for_good_is_told_and_the_rest_goes_on(self) -> None:
        remote = FakeExperiment({"id1": ["reject"] * 100})
        status = synchronised(remote, a_study(5))
        assert (status.sent, status.pending, status.rejected) == (4, 0, {"id1": "refused"})
        assert remote.attempts.count("id1") == 1

    def test_an_experiment_that_is_full_is_left_alone(self) -> None:
        remote = FakeExperiment({f"id{n}": ["full"] for n in range(4, 100)})
        status = synchronised(remote, a_study(100))
        assert (status.sent, status.pending, len(status.rejected)) == (4, 0, 96)
        assert status.problem == "refused"
        assert len(remote.attempts) < 20

    def test_images_that_are_there_twice_are_removed_and_those_of_others_stay(self) -> None:
        remote = FakeExperiment()
        remote.listed = [
            ListedImage(f"a{n}", name) for n, name in enumerate(["id0", None, "id0", "x", "x", None])
        ]
        status = synchronised(remote, a_study(2))
        assert (status.sent, status.removed) == (2, 1)
        assert [image.image_id for image in remote.listed] == ["id0", None, "x", "x", None, "id1"]

    def test_copies_alone_are_removed_and_looked_for_again(self) -> None:
        remote = FakeExperiment()
        remote.listed = [ListedImage("a", "id0"), ListedImage("b", "id0")]
        status = synchronised(remote, a_study(1))
        assert (status.sent, status.removed, status.problem) == (1, 1, None)
        assert (remote.listed, remote.listings) == ([ListedImage("a", "id0")], 2)

    def test_copies_that_stay_are_told(self) -> None:
        remote = FakeExperiment()
        remote.listed = [ListedImage("a", "id0"), ListedImage("b", "id0")]
        remote.keeps_copies = True
        status = synchronised(remote, a_study(1))
        assert (status.sent, status.removed) == (1, 0)
        assert status.problem == "Comet still lists 1 copies that it was asked to remove"

    def test_a_listing_that_fails_is_asked_for_again(self) -> None:
        remote = FakeExperiment(fails=(0, 2, 3))
        status = synchronised(remote, a_study(3))
        assert (status.sent, status.pending, status.problem) == (3, 0, None)

    def test_a_listing_that_always_fails_is_an_error(self) -> None:
        with pytest.raises(CometError, match="no listing"):
            synchronised(FakeExperiment(fails=range(100)), a_study(3))

    @pytest.mark.parametrize("late", [1, 2, 3])
    def test_what_is_acknowledged_and_listed_later_is_sent_once(self, late: int) -> None:
        remote = FakeExperiment(late=late)
        status = synchronised(remote, a_study(3))
        assert (status.sent, status.problem) == (3, None)
        assert sorted(remote.attempts) == ["id0", "id1", "id2"]

    def test_what_was_acknowledged_just_before_is_waited_for(self) -> None:
        remote, clock = FakeExperiment(late=1), Clock()
        remote.listed = [ListedImage("a", "id0")]
        status = synchronise(a_study(2), remote, Pace(), clock=clock, sleep=clock.sleep, acknowledged=["id0"])
        assert (status.sent, remote.attempts) == (2, ["id1"])

    def test_what_is_acknowledged_and_never_listed_is_sent_anew(self) -> None:
        remote = FakeExperiment({"id1": ["forget"]})
        status = synchronised(remote, a_study(3))
        assert (status.sent, status.problem) == (3, None)
        assert remote.attempts.count("id1") == 2
        never = FakeExperiment({"id1": ["forget"] * 100})
        status = synchronised(never, a_study(3))
        assert (status.sent, status.pending) == (2, 1)
        assert status.problem == "the rest does not appear in Comet's list"

    def test_a_point_that_is_refused_is_told_and_the_others_come(self) -> None:
        remote = FakeExperiment()
        remote.refuses_metric = "clip_score at 0"
        status = synchronised(remote, a_study(1))
        assert status.problem == "no such curve"
        assert ("clip_score", 2, "0.75") in remote.points
        assert remote.files

    def test_a_long_wait_for_the_quota_is_said(self) -> None:
        clock, told = Clock(), list[object]()
        remote = FakeExperiment()
        status = synchronise(
            a_study(30), remote, Pace(per_hour=20), tell=told.append, clock=clock, sleep=clock.sleep
        )
        assert status.sent == 30
        assert {"waiting": 3600.0} in told

    def test_few_pictures_are_in_memory_however_many_there_are(self) -> None:
        lock, taken, done, most = threading.Lock(), [0], [0], [0]

        class Slow(FakeExperiment):
            def send_image(self, image: CometImage, png: bytes) -> None:
                with lock:
                    most[0] = max(most[0], taken[0] - done[0])
                    super().send_image(image, png)
                    done[0] += 1

        def counted(ids: Set[str]) -> Iterator[tuple[str, bytes]]:
            for pair in some_pictures(ids):
                with lock:
                    taken[0] += 1
                yield pair

        status = synchronised(Slow(), replace(a_study(400), pictures=counted))
        assert (status.sent, taken[0]) == (400, 400)
        assert most[0] <= 2 * SENDERS + 1

    def test_a_time_limit_ends_it(self) -> None:
        clock = Clock()
        remote = FakeExperiment({f"id{n}": ["throttle"] * 50 for n in range(2, 40)})
        status = synchronise(a_study(40), remote, Pace(), 10.0, clock=clock, sleep=clock.sleep)
        assert status.sent == 2
        assert status.problem is not None
        assert clock.now < 20

    @given(
        st.lists(
            st.lists(st.sampled_from(["store", "lose reply", "fail", "throttle", "forget"]), max_size=3),
            max_size=12,
        )
    )
    def test_enough_syncs_list_every_image_exactly_once(self, scripts: list[list[str]]) -> None:
        remote = FakeExperiment({f"id{n}": acts for n, acts in enumerate(scripts)})
        content = a_study(len(scripts))
        for _ in range(12):
            status = synchronised(remote, content)
        assert status.sent == status.total == len(scripts)
        assert sorted(image.image_id or "" for image in remote.listed) == sorted(
            f"id{n}" for n in range(len(scripts))
        )


@given(st.lists(st.sampled_from(["a", "b", "c", None])))
def test_of_each_of_our_images_one_is_left(names: list[str | None]) -> None:
    listed = [ListedImage(str(n), name) for n, name in enumerate(names)]
    gone = set(superfluous(listed, {"a", "b"}))
    left = [image.image_id for image in listed if image.asset_id not in gone]
    assert [name for name in left if name in ("c", None)] == [name for name in names if name in ("c", None)]
    assert sorted(name for name in left if name in ("a", "b")) == sorted({"a", "b"} & set(names))


class TestPace:
    def test_keeps_both_quotas(self) -> None:
        pace, now, times = Pace(3, 5), 0.0, []
        for _ in range(11):
            now += pace.wait(now)
            pace.take(now)
            times.append(now)
        assert times == [0, 0, 0, 60, 60, 3600, 3600, 3600, 3660, 3660, 7200]
        assert [seconds_for(n, 3, 5) for n in range(12)] == [0, *times]


class TestChosen:
    def test_the_best_of_each_trial_or_of_all(self) -> None:
        records = [
            replace(a_record(n), scores={"clip_score": float(v)}) for n, v in enumerate([3, 5, 9, 7, 1, 1])
        ]

        def ids(rule: str | int) -> list[str]:
            return [image.image_id for image in chosen(records, rule, "clip_score")]

        assert ids("all") == [f"id{n}" for n in range(6)]
        assert ids("best_per_trial") == ["id1", "id2", "id4"]
        assert ids(3) == ["id1", "id2", "id3"]
        assert ids(100) == ids("all")


def test_long_texts_are_cut_where_a_url_could_not_hold_them() -> None:
    image = replace(an_image(0), metadata={**an_image(0).metadata, "prompt": "ü" * 5_000})
    text = metadata_text(image)
    assert '"image_id": "id0"' in text
    assert "…" in text
    assert metadata_text(an_image(0)) == metadata_text(replace(an_image(0)))
    assert "…" not in metadata_text(an_image(0))


# Over the real SDK


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[CometRecorder]:
    with CometRecorder() as recorder:
        for name, value in {**recorder.environment, "COMET_TIMEOUT_FILE_UPLOAD": "1"}.items():
            monkeypatch.setenv(name, value)
        yield recorder


def synced(folder: Path, images: int) -> Status:
    return sync_in_child(partial(a_study, images), folder / "comet", folder / "comet.log")


def status(folder: Path, images: int) -> Status:
    return status_in_child(partial(a_study, images), folder / "comet", folder / "status.log")


def expect_everything(recorder: CometRecorder, images: int) -> None:
    """Each image once, byte for byte with its facts; curves, files and facts too."""
    assert sorted(recorder.image_ids(KEY)) == sorted(f"id{n}" for n in range(images))
    for asset in recorder.images(KEY):
        assert asset.metadata is not None
        number = int(asset.metadata["image_id"].removeprefix("id"))
        assert (asset.name, asset.step, asset.data) == ("search", number // 2, png(number))
        assert asset.metadata == {**an_image(number).metadata, "image_id": f"id{number}"}
    experiment = recorder.experiments[KEY]
    points = [(m["metricName"], m["step"], m["metricValue"]) for m in experiment.metrics]
    assert sorted(p for p in points if p[0] == "clip_score") == [
        ("clip_score", 0, 0.5),
        ("clip_score", 2, 0.75),
    ]
    assert recorder.files(KEY)["cats.yaml"] == FILE
    assert experiment.parameters["model"] == "toyworld"
    assert (experiment.name, experiment.workspace, experiment.project) == (
        "cats at night",
        "friends",
        "dragons",
    )
    assert sorted(experiment.tags) == ["cat", "latentsweep"]
    assert recorder.unknown == []


def test_the_sdk_brings_everything_and_a_second_sync_nothing(recorder: CometRecorder, tmp_path: Path) -> None:
    before = status(tmp_path, 20)
    assert (before.total, before.sent, before.url) == (20, 0, "")
    assert KEY not in recorder.experiments
    made = synced(tmp_path, 20)
    assert (made.sent, made.pending, made.rejected, made.problem) == (20, 0, {}, None)
    expect_everything(recorder, 20)
    sent = len(recorder.heard("write/"))
    assert synced(tmp_path, 20) == made
    assert len(recorder.heard("write/")) == sent
    assert status(tmp_path, 20) == made
    assert list((tmp_path / "comet").iterdir()) == []
    assert API_KEY not in (tmp_path / "comet.log").read_text()


def test_the_sdk_brings_the_rest_where_replies_were_lost_and_copies_made(
    recorder: CometRecorder, tmp_path: Path
) -> None:
    synced(tmp_path, 6)
    first = recorder.images(KEY)[0]
    recorder.experiments[KEY].assets.append(replace(first, asset_id="copy"))
    recorder.faults += [
        Fault("upload-asset", "lose reply", times=1),
        Fault("upload-asset", "drop", times=1),
        Fault("upload-asset", "status", status=500, times=1),
        Fault("upload-asset", "status", status=429, times=1, headers={"Retry-After-Custom": "1"}),
    ]
    made = synced(tmp_path, 16)
    assert (made.sent, made.removed, made.problem) == (16, 1, None)
    expect_everything(recorder, 16)


def test_what_comet_refuses_is_remembered_with_its_reason(recorder: CometRecorder, tmp_path: Path) -> None:
    recorder.most_images = 3
    made = synced(tmp_path, 5)
    assert (made.sent, made.pending, len(made.rejected)) == (3, 0, 2)
    assert set(made.rejected.values()) == {"Comet refuses it: the limit of images is reached"}
    told = status(tmp_path, 5)
    assert (told.sent, told.pending, told.rejected) == (3, 0, made.rejected)
    recorder.most_images = 10
    assert synced(tmp_path, 5).rejected == {}
    assert (status(tmp_path, 5).sent, status(tmp_path, 5).rejected) == (5, {})


@pytest.mark.faults
def test_a_list_that_does_not_come_is_given_up(
    recorder: CometRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced(tmp_path, 1)
    monkeypatch.setenv("COMET_TIMEOUT_API", "1")
    recorder.faults.append(Fault("asset/list", "hang"))
    with pytest.raises(CometError, match=UNANSWERED):
        status(tmp_path, 1)


def test_nothing_of_this_machine_or_its_user_is_sent_and_nobody_gets_mail(
    recorder: CometRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "CANARYuser")
    synced(tmp_path, 1)
    assert recorder.heard("notification") == []
    whole = "".join(f"{request.path} {request.query} {request.body}" for request in recorder.requests)
    for word in ("CANARYuser", "hostname", str(tmp_path), sys.executable, "system-details", "git"):
        assert word not in whole, word


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda r, _: r.stop(), "the Comet server cannot be reached or does not answer"),
        (lambda _, m: m.setenv("COMET_API_KEY", "b" * 25), BAD_KEY),
        (lambda _, m: m.setenv("COMET_API_KEY", ""), NO_KEY),
        (lambda r, _: r.faults.append(Fault("add/run", "status", 429)), "Comet takes no more for now (429)"),
    ],
    ids=["no server", "a wrong key", "no key", "429"],
)
def test_what_cannot_begin_is_one_sentence_without_the_key(
    spoil: Callable[[CometRecorder, pytest.MonkeyPatch], None],
    sentence: str,
    recorder: CometRecorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(recorder, monkeypatch)
    with pytest.raises(CometError) as caught:
        synced(tmp_path, 2)
    assert str(caught.value) == sentence
    log = (tmp_path / "comet.log").read_text()
    assert API_KEY not in log
    assert "b" * 25 not in log
