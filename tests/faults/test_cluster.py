"""A study over several nodes of one cluster, whose processes and machines die, hang, join late or draw rubbish."""

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator import dealing
from orchestrator.catalog.frames import joined
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.pool import Done
from orchestrator.ray_pool import RayPool
from orchestrator.ray_session import gpu_places
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import NullTracker
from orchestrator.versions import versions
from search_spaces.errors import InputError
from search_spaces.requests import Failed, Scored
from search_spaces.study import Study
from tests.bench.cluster import BATCH, made, score_of
from tests.faults.cluster_workers import Faulty, HeldWriter
from tests.orchestrator.studies import grid, requests_of, small_study

pytestmark = pytest.mark.faults

HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}
IN_FLIGHT = 2 * BATCH  # of one worker


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without GPU, to which the tests add nodes, and this process as its driver."""
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": HEALTH},
    )
    try:
        ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        if before is None:
            del os.environ["RAY_AUTH_MODE"]
        else:
            os.environ["RAY_AUTH_MODE"] = before


@dataclass
class Trial:
    """One study in a folder of its own, over nodes of a cluster."""

    cluster: Cluster | None
    folder: Path
    nodes: list[Any] = field(default_factory=list)
    seeds: int = 24
    stall_timeout: float = 60.0

    def __post_init__(self) -> None:
        self.study: Study = small_study("faults", seeds=self.seeds)
        self.root = str(self.folder / "runs")
        self.requests = {request.image_id: request for request in requests_of(self.study)}
        self.pool: RayPool | None = None
        self.progress = Progress()

    def add_node(self, gpus: int = 1) -> Any:
        assert self.cluster is not None
        self.nodes.append(self.cluster.add_node(num_cpus=1, num_gpus=gpus))
        return self.nodes[-1]

    def run(
        self, meanwhile: Callable[[], None] = lambda: None, between: Callable[[], None] = lambda: None
    ) -> list[str]:
        """The study to its end, with something going on beside it, or between its turns; the pool's notices."""
        self.pool = RayPool(
            nullcontext,
            partial(Faulty, self.folder),
            workers=2,
            batch=BATCH,
            num_cpus=0,
            num_gpus=1,
            places=gpu_places,
            make_writer=partial(HeldWriter, self.folder, self.root, self.study),
            stall_timeout=self.stall_timeout,
        )
        problems: list[BaseException] = []

        def beside() -> None:
            try:
                meanwhile()
            except BaseException as error:  # noqa: BLE001  # raised again below
                problems.append(error)

        thread = threading.Thread(target=beside)
        thread.start()

        def watch(progress: Progress) -> None:
            self.progress = progress
            between()
            if problems:
                raise problems[0]

        try:
            catalog = ParquetCatalog(Tables(self.root), self.study)
            sweep(self.study, grid(self.study), self.pool, catalog, NullTracker(), watch=watch)
        finally:
            thread.join(120)
            self.pool.close()
        assert not problems
        return self.pool.notices

    def wait_for(self, images: int) -> None:
        """Until so many images have been begun."""
        wait(lambda: len(made(self.folder / "made.log")) >= images, f"{images} images")

    def workers(self, node: Any = None) -> list[int]:
        """Processes of living workers, on one node or all."""
        found = []
        for path in (self.folder / "nodes").glob("*"):
            on_it = node is None or path.read_text(encoding="ascii") == node.node_id
            if on_it and Path(f"/proc/{path.name}").exists():
                found.append(int(path.name))
        return sorted(found)

    def check(self, lost: frozenset[str] = frozenset(), at_most_twice: int | None = None) -> None:
        """Every image once on reading, with its own bytes and its own value, and few made twice."""
        tables, there = Tables(self.root), self.requests.keys() - lost
        pictures = list(tables.pictures(set(self.requests)))
        assert Counter(image_id for image_id, _ in pictures) == Counter(there)
        rows = joined(tables, "faults").to_pylist()
        hashes = {row["image_id"]: row["sha256"] for row in tables.read("images").to_pylist()}
        for image_id, picture in pictures:
            assert image_id.encode() in picture
            assert hashlib.sha256(picture).hexdigest() == hashes[image_id]
        assert {row["image_id"]: row["value"] for row in rows if row["value"] is not None} == {
            image_id: score_of(image_id) for image_id in there
        }
        outcomes = [o for trial in past_trials(tables, "faults") for o in trial.outcomes.values()]
        assert len(outcomes) == len(self.requests)
        assert sum(isinstance(outcome, Scored) for outcome in outcomes) == len(there)
        for trial in past_trials(tables, "faults"):
            for number, outcome in trial.outcomes.items():
                request = self.study.request(trial.settings, self.study.instances[number])
                expected = score_of(request.image_id)
                assert isinstance(outcome, Failed) or outcome.scores["clip_score"] == expected
        if at_most_twice is not None:
            counts = Counter(image_id for _, image_id in made(self.folder / "made.log"))
            assert sum(count - 1 for count in counts.values()) <= at_most_twice


def wait(condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.fixture
def trial(cluster: Cluster, tmp_path: Path) -> Iterator[Trial]:
    found = Trial(cluster, tmp_path)
    yield found
    for node in found.nodes:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)
    wait(lambda: gpu_places().now == 0, "the nodes to leave")


def only(notices: list[str], *words: str) -> None:
    """One line, which says what happened."""
    assert len(notices) == 1, notices
    assert all(word in notices[0] for word in words), notices


def test_an_actor_is_killed_in_mid_batch(trial: Trial) -> None:
    trial.add_node(gpus=2)

    def meanwhile() -> None:
        trial.wait_for(30)
        os.kill(trial.workers()[0], signal.SIGKILL)

    only(trial.run(meanwhile), "died (its process is gone)", "are tried again")
    trial.check(at_most_twice=IN_FLIGHT)


def test_a_node_is_killed_and_nothing_counts_against_its_requests(trial: Trial) -> None:
    trial.add_node()
    second = trial.add_node()

    def meanwhile() -> None:
        trial.wait_for(30)
        second.kill_raylet()

    notices = trial.run(meanwhile)
    only([line for line in notices if "were lost" not in line], "is gone with its workers")
    trial.check(at_most_twice=3 * IN_FLIGHT)
    assert trial.pool is not None
    assert not trial.pool._dealer._deaths


def test_a_node_is_killed_that_holds_results_not_yet_written(trial: Trial) -> None:
    trial.add_node()
    second = trial.add_node()
    hold = trial.folder / "hold"
    hold.touch()

    def meanwhile() -> None:
        trial.wait_for(60)
        assert not (trial.folder / "runs/catalog/images").exists(), "nothing is written"
        second.kill_raylet()
        wait(lambda: not trial.workers(second), "its workers to die")
        hold.unlink()

    notices = trial.run(meanwhile)
    assert any("were lost with their machine before they were written" in line for line in notices), notices
    assert any("is gone with its workers" in line for line in notices), notices
    assert len(notices) <= 4
    trial.check()


def test_a_slow_disk_slows_the_sweep_and_fills_no_memory(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.keeping.UNWRITTEN_BYTES", 20 * 200_000)
    trial.add_node(gpus=2)
    hold = trial.folder / "hold"
    hold.touch()
    seen: list[int] = []

    def meanwhile() -> None:
        trial.wait_for(20)
        before = 0
        while before < (now := len(made(trial.folder / "made.log"))):  # until nobody begins anything
            before = now
            time.sleep(4 * 0.4)
        seen.append(now)
        hold.unlink()

    assert trial.run(meanwhile) == []
    assert seen[0] <= 20 + 2 * IN_FLIGHT
    trial.check(at_most_twice=0)


def test_a_node_that_joins_late_gets_work(trial: Trial) -> None:
    trial.seeds = 40
    trial.__post_init__()
    begun = time.monotonic()

    def between() -> None:
        waits_for_a_first = not trial.nodes and time.monotonic() - begun > 1
        drawn = len(made(trial.folder / "made.log"))
        if waits_for_a_first or (len(trial.nodes) == 1 and drawn > 10):
            trial.add_node()

    assert trial.run(between=between) == []
    first, second = trial.nodes
    by_node = Counter(
        (trial.folder / "nodes" / str(pid)).read_text(encoding="ascii")
        for pid, _ in made(trial.folder / "made.log")
    )
    assert by_node.keys() == {first.node_id, second.node_id}
    assert by_node[second.node_id] >= BATCH
    trial.check(at_most_twice=0)


def test_an_actor_that_hangs_is_replaced(trial: Trial) -> None:
    trial.stall_timeout = 4.0
    trial.add_node(gpus=2)

    def meanwhile() -> None:
        trial.wait_for(20)
        (trial.folder / "hang").touch()
        wait((trial.folder / "hung").exists, "one to hang")

    only(trial.run(meanwhile), "it hung:", "without getting anywhere", "are tried again")
    hung = int((trial.folder / "hung").read_text(encoding="ascii"))
    assert hung not in trial.workers()
    trial.check(at_most_twice=IN_FLIGHT)


def test_a_poison_is_lost_by_name_and_its_companions_are_finished(trial: Trial) -> None:
    trial.add_node(gpus=2)
    poison = list(trial.requests)[40]
    (trial.folder / "poison").write_text(poison, encoding="ascii")
    notices = trial.run()
    deaths = (trial.folder / "deaths").read_text(encoding="ascii").splitlines()
    assert len(deaths) == 1 + dealing.DEATHS_ALONE
    assert deaths[1:] == ["1 0"] * dealing.DEATHS_ALONE, "alone, after the first"
    assert any(poison in line and "is lost" in line for line in notices)
    assert len(notices) == len(deaths) + 1
    assert trial.progress.lost == 1
    trial.check(lost=frozenset({poison}))


def test_a_device_that_draws_black_is_set_aside_and_its_requests_are_drawn_elsewhere(trial: Trial) -> None:
    trial.add_node()
    bad = trial.add_node()

    def meanwhile() -> None:
        trial.wait_for(20)
        (trial.folder / "black").write_text(bad.node_id, encoding="ascii")

    only(trial.run(meanwhile), "gets no more work", "the picture is all black")
    assert trial.progress.infeasible == 0
    trial.check()


def test_the_only_process_that_comes_to_fail_at_everything_is_replaced(trial: Trial) -> None:
    trial.add_node()
    guilty = list(trial.requests)[40]
    (trial.folder / "guilty").write_text(guilty, encoding="ascii")
    notices = trial.run()
    assert len(notices) == 2, "whoever meets the guilty one breaks, and twice is enough"
    assert all("is replaced: 8 results in a row failed (CUDA error" in line for line in notices)
    assert trial.progress.lost == 1
    trial.check(lost=frozenset({guilty}))


def test_the_writer_dies(trial: Trial) -> None:
    trial.add_node(gpus=2)

    def meanwhile() -> None:
        trial.wait_for(40)
        pid = int((trial.folder / "writers").read_text(encoding="ascii").splitlines()[0])
        os.kill(pid, signal.SIGKILL)

    only(trial.run(meanwhile), "the catalog's writer died")
    assert len((trial.folder / "writers").read_text(encoding="ascii").splitlines()) == 2
    trial.check(at_most_twice=0)


def test_a_node_falls_silent_and_comes_back(trial: Trial) -> None:
    """As one does whose network is cut: nothing on it answers, and then all of it does."""
    trial.add_node()
    second = trial.add_node()
    trial.seeds = 60
    trial.__post_init__()

    def meanwhile() -> None:
        trial.wait_for(30)
        raylet = second.all_processes[ray._private.ray_constants.PROCESS_TYPE_RAYLET][0].process.pid
        silent = [*trial.workers(second), raylet]
        for pid in silent:
            os.kill(pid, signal.SIGSTOP)
        try:
            wait(lambda: gpu_places().now == 1, "the head to notice")
        finally:
            for pid in silent:
                os.kill(pid, signal.SIGCONT)

    notices = trial.run(meanwhile)
    only([line for line in notices if "were lost" not in line], "is gone with its workers")
    trial.check()


def test_idle_actors_are_let_go_and_a_warm_one_stays(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dealing, "IDLE_SECONDS", 1.0)
    trial.add_node(gpus=2)
    pool = RayPool(
        nullcontext,
        partial(Faulty, trial.folder),
        2,
        BATCH,
        num_cpus=0,
        num_gpus=1,
        places=gpu_places,
    )
    pool.submit(list(trial.requests.values()))
    found: list[Done] = []
    while pool.outstanding:
        found += pool.next_done(0.2)
    assert len(trial.workers()) == 2
    pool._dealer._longest_load = 0.0
    wait(lambda: pool.next_done(0.1) == [] and len(trial.workers()) == 1, "one to be let go", 30)
    wait(lambda: ray.available_resources().get("GPU") == 1, "its GPU to be free")
    warm = trial.workers()
    pool.submit(list(trial.requests.values())[:1])
    while pool.outstanding:
        found += pool.next_done(0.2)
    assert trial.workers() == warm
    assert len(found) == len(trial.requests) + 1
    pool.close()


def test_other_versions_on_a_worker_are_refused_by_name(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = versions()
    monkeypatch.setattr("orchestrator.ray_pool.versions", lambda: {**here, "torch": "1.0"})
    trial.add_node()
    with pytest.raises(InputError, match=rf"has torch {here['torch'].partition('+')[0]}.* instead of 1\.0"):
        trial.run()
