"""What only the Ray pool has to survive."""

import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray

from orchestrator import ray_pool
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.pictures import CatalogWriter
from orchestrator.catalog.tables import Tables
from orchestrator.dealing import Places, PoolError
from orchestrator.pool import Done, Kept
from orchestrator.ray_pool import RayPool
from orchestrator.ray_session import gpu_places, limited
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from search_spaces.errors import InputError
from search_spaces.requests import Failed, ImageRequest, Looked, Scored
from tests.orchestrator.studies import fake_worker, grid, requests_of, small_study
from tests.orchestrator.test_pool_contract import drain
from workers.worker import Finished, Worker

REQUESTS = requests_of(small_study(seeds=8))
POISON = REQUESTS[5].image_id


class Poisoned(Worker):
    """Dies with its process whenever it is given the poison."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self.batch, self.device = worker, worker.batch, worker.device

    @property
    def steps(self) -> int:
        return self._worker.steps

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        if any(request.image_id == POISON for request in new):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._worker.advance(new, cancelled)


class Slow(Poisoned):
    """Takes a while, so that it can be killed at work; leaves its process id in a file."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        super().__init__(worker)
        (folder / str(os.getpid())).touch()

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        time.sleep(0.05)
        return self._worker.advance(new, cancelled)


def poisoned_worker() -> Worker:
    return Poisoned(fake_worker())


def slow_worker(folder: Path) -> Worker:
    return Slow(fake_worker(), folder)


class Named(Poisoned):
    """Says in which process it drew, and takes so long that another can join meanwhile."""

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        time.sleep(0.2)
        finished = self._worker.advance(new, cancelled)
        here = str(os.getpid())
        return [replace(item, provenance=replace(item.provenance, device=here)) for item in finished]


def named_worker() -> Worker:
    return Named(fake_worker())


@pytest.mark.usefixtures("local_ray")
def test_what_was_looked_at_goes_on_where_it_is_kept() -> None:
    pool = RayPool(nullcontext, named_worker, workers=2, batch=4, num_cpus=0.1)
    pool.submit([replace(request, stop_after=2) for request in REQUESTS])
    looks = {done.request.image_id: done for done in drain(pool)}
    assert all(isinstance(done.outcome, Looked) and done.picture is None for done in looks.values())
    assert len({done.provenance.device for done in looks.values()}) == 2
    ended: dict[str, Done] = {}
    for request in REQUESTS:  # few at a time, so that both actors always have room
        pool.submit([request])
        while pool.outstanding:
            ended |= {done.request.image_id: done for done in pool.next_done(0.2)}
    pool.close()
    assert ended.keys() == looks.keys()
    assert all(isinstance(done.outcome, Scored) for done in ended.values())
    elsewhere = [i for i in ended if ended[i].provenance.device != looks[i].provenance.device]
    assert not elsewhere, "an idle actor takes another's only while that one is busy"


class Forgetful(Poisoned):
    """Leaves a file for each request that it is told to forget."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        super().__init__(worker)
        self.folder = folder

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        for image_id in cancelled:
            (self.folder / image_id).touch()
        return self._worker.advance(new, cancelled)


def forgetful_worker(folder: Path) -> Worker:
    return Forgetful(fake_worker(), folder)


@pytest.mark.usefixtures("local_ray")
def test_workers_forget_what_they_have_set_aside_and_is_cancelled(tmp_path: Path) -> None:
    """Though nothing of it is outstanding, and though they have nothing else to do."""
    pool = RayPool(nullcontext, partial(forgetful_worker, tmp_path), workers=2, batch=4, num_cpus=0.1)
    pool.submit([replace(request, stop_after=2) for request in REQUESTS])
    drain(pool)
    gone = {request.image_id for request in REQUESTS[::2]}
    pool.cancel(gone)
    deadline = time.monotonic() + 60
    while {path.name for path in tmp_path.iterdir()} != gone and time.monotonic() < deadline:
        pool.next_done(0.2)
    assert {path.name for path in tmp_path.iterdir()} == gone
    pool.submit(REQUESTS)
    assert {done.request.image_id for done in drain(pool)} == {request.image_id for request in REQUESTS}
    pool.close()


def unloadable() -> Worker:
    raise InputError("model: it cannot be loaded")


def broken() -> Worker:
    raise RuntimeError("no such luck")


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("by_the_kernel", [False, True])
def test_a_killed_actor_loses_nothing(
    by_the_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = RayPool(nullcontext, partial(slow_worker, tmp_path), workers=2, batch=4, num_cpus=0.1)
    pool.submit(REQUESTS)
    found: list[Done] = []
    killed = False
    while pool.outstanding:
        found += pool.next_done(0.2)
        if found and not killed:
            if by_the_kernel:  # which counts them
                monkeypatch.setattr(ray_pool, "oom_kills", lambda: pool._oom_kills + 1)
            os.kill(int(next(tmp_path.iterdir()).name), signal.SIGKILL)
            killed = True
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < deadline:  # another comes in its place
        pool.submit(REQUESTS)
        drain(pool)
    pool.close()
    assert Counter(d.request.image_id for d in found) == Counter(r.image_id for r in REQUESTS)
    assert all(isinstance(done.outcome, Scored) for done in found)
    (notice,) = pool.notices
    assert ("the kernel ended one here for want of memory (" in notice) == by_the_kernel
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("local_ray")
def test_a_request_that_kills_its_workers_is_lost_and_its_companions_are_not() -> None:
    pool = RayPool(nullcontext, poisoned_worker, workers=2, batch=4, num_cpus=0.1)
    pool.submit(REQUESTS)
    outcomes = {done.request.image_id: done.outcome for done in drain(pool)}
    pool.close()
    lost = outcomes.pop(POISON)
    assert isinstance(lost, Failed)
    assert lost.kind == "lost"
    assert len(outcomes) == len(REQUESTS) - 1
    assert all(isinstance(outcome, Scored) for outcome in outcomes.values())


@pytest.mark.usefixtures("local_ray")
def test_a_model_that_cannot_load_is_the_users_error_and_the_sentence_is_kept() -> None:
    pool = RayPool(nullcontext, unloadable, workers=1, batch=4, num_cpus=0.1)
    pool.submit(REQUESTS)
    with pytest.raises(InputError, match=r"^model: it cannot be loaded$"):
        drain(pool)
    pool.close()


@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_cannot_start_ends_the_pool_with_a_sentence() -> None:
    pool = RayPool(nullcontext, broken, workers=1, batch=4, num_cpus=0.1)
    pool.submit(REQUESTS)
    with pytest.raises(PoolError, match="a worker cannot start: RuntimeError: no such luck"):
        drain(pool)
    pool.close()


def on_one_of_two(folder: Path) -> Worker:
    """The first fails once the second is there too, as one on a GPU that is too small."""
    try:
        (folder / "first").mkdir()
    except FileExistsError:
        (folder / "second").touch()
        return fake_worker()
    deadline = time.monotonic() + 60
    while not (folder / "second").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    raise InputError("model: it takes 24 GB and a worker's GPU has 8 GB")


@pytest.mark.usefixtures("local_ray")
def test_a_gpu_that_is_too_small_is_left_out_where_another_will_do(tmp_path: Path) -> None:
    pool = RayPool(nullcontext, partial(on_one_of_two, tmp_path), workers=2, batch=4, num_cpus=0.1)
    pool.submit(REQUESTS)
    assert len(drain(pool)) == len(REQUESTS)
    deadline = time.monotonic() + 60
    while not pool.notices and time.monotonic() < deadline:  # the other may have drawn everything before
        pool.next_done(0.1)
    pool.close()
    (notice,) = pool.notices
    assert "is not used: it cannot start: model: it takes 24 GB and a worker's GPU has 8 GB" in notice


@pytest.mark.usefixtures("local_ray")
def test_a_model_that_no_gpu_holds_ends_the_run_with_the_models_sentence() -> None:
    pool = RayPool(nullcontext, unloadable, workers=2, batch=4, num_cpus=0.1)
    pool.submit(REQUESTS)
    with pytest.raises(InputError, match=r"^model: it cannot be loaded$"):
        drain(pool)
    pool.close()
    assert pool.notices == []


@pytest.mark.usefixtures("local_ray")
def test_actors_end_with_their_pool(tmp_path: Path) -> None:
    pool = RayPool(nullcontext, partial(slow_worker, tmp_path), workers=2, batch=4, num_cpus=0.1)
    pool.submit(REQUESTS[:4])
    drain(pool)
    pool.close()
    deadline = time.monotonic() + 30
    pids = [int(path.name) for path in tmp_path.iterdir()]
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_nothing_is_started_before_the_first_request() -> None:
    pool = RayPool(no_connection, broken, workers=1, batch=4)
    assert pool.free > 0
    assert pool.next_done(0.0) == []
    pool.close()


def no_connection() -> nullcontext[None]:
    raise AssertionError("the pool connected without need")


class FullDisk:
    """A writer whose disk takes nothing."""

    def write(self, done: Sequence[Done]) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.usefixtures("local_ray")
def test_pictures_are_durable_before_their_results_are_told(tmp_path: Path) -> None:
    study, root = small_study(seeds=8), str(tmp_path / "runs")
    writer = partial(CatalogWriter, root, study)
    pool = RayPool(nullcontext, fake_worker, workers=2, batch=4, num_cpus=0.1, make_writer=writer)
    pool.submit(REQUESTS)
    told: set[str] = set()
    deadline = time.monotonic() + 60
    while pool.outstanding and time.monotonic() < deadline:
        new = [done.request.image_id for done in pool.next_done(0.5)]
        told |= set(new)
        assert set(new) <= set(Tables(root).read("images", ["image_id"])["image_id"].to_pylist())
    pool.close()
    assert told == {request.image_id for request in REQUESTS}
    assert pool.notices == []


@pytest.mark.usefixtures("local_ray")
def test_the_driver_writes_what_the_writer_cannot() -> None:
    """Whose own error then says what is wrong, and waits for it to be mended."""
    pool = RayPool(nullcontext, fake_worker, workers=1, batch=4, num_cpus=0.1, make_writer=FullDisk)
    pool.submit(REQUESTS[:8])
    found = drain(pool)
    pool.close()
    assert len(found) == 8
    assert all(done.picture is not None and done.picture.png()[:4] == b"\x89PNG" for done in found)


@pytest.mark.usefixtures("local_ray")
def test_what_the_writer_has_kept_the_catalog_knows_and_does_not_write_again(tmp_path: Path) -> None:
    study, root = small_study(seeds=8), str(tmp_path / "runs")
    writer = partial(CatalogWriter, root, study)
    pool = RayPool(nullcontext, fake_worker, workers=2, batch=4, num_cpus=0.1, make_writer=writer)
    catalog = ParquetCatalog(Tables(root), study)
    progress = sweep(study, grid(study), pool, catalog, NullTracker())
    pool.close()
    assert progress.generated == len(REQUESTS)
    ids = Tables(root).read("images", ["image_id"])["image_id"].to_pylist()
    assert Counter(ids) == Counter(request.image_id for request in REQUESTS)
    assert all(isinstance(catalog.find(request), Scored) for request in REQUESTS)
    with pytest.raises(LookupError, match="the picture is in the catalog"):
        Kept().png()


def test_places_are_gpus_there_or_to_be_had_and_no_more_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr("orchestrator.ray_session.gpus_to_grow_to", lambda _: 0)
    assert gpu_places() == Places(2, 2)
    monkeypatch.setattr("orchestrator.ray_session.gpus_to_grow_to", lambda _: 16)
    assert gpu_places() == Places(2, 16)
    assert limited(gpu_places, None) == Places(2, 16)
    assert limited(gpu_places, 1) == Places(1, 1)
    assert limited(gpu_places, 4) == Places(2, 4)


@pytest.mark.usefixtures("local_ray")
def test_workers_that_nobody_listened_to_are_not_taken_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the loop waits for a disk that is full."""
    monkeypatch.setattr("orchestrator.ray_pool.MOST_DEAF_SECONDS", 0.5)
    pool = RayPool(nullcontext, named_worker, workers=2, batch=4, num_cpus=0.1, stall_timeout=4.0)
    pool.submit(REQUESTS)
    found = [*pool.next_done(60)]
    time.sleep(5.0)
    found += drain(pool)
    pool.close()
    assert pool.notices == []
    assert len(found) == len(REQUESTS)


@pytest.mark.usefixtures("local_ray")
def test_what_workers_wait_for_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.ray_pool.WAITING_SECONDS", 0.5)
    said: list[str] = []
    pool = RayPool(nullcontext, fake_worker, workers=2, batch=4, num_gpus=1, say=said.append)
    pool.submit(REQUESTS)
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        pool.next_done(0.1)
    for _ in range(10):
        pool.next_done(0.1)
    pool.close()
    (line,) = said
    assert "no worker has found a place for" in line
    assert line.endswith(
        "each needs 1 GPU, and the cluster has 0, 0 of them free; they begin once that changes"
    )


class ShortOfMemory(Poisoned):
    """Says with every result that it has halved its rows."""

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Finished]:
        made = self._worker.advance(new, cancelled)
        return [replace(item, notes=("out of memory: 4 UNet rows at a time instead of 8",)) for item in made]


def short_of_memory() -> Worker:
    return ShortOfMemory(fake_worker())


@pytest.mark.usefixtures("local_ray")
def test_what_an_engine_has_to_say_comes_through_the_pool_and_the_writer(tmp_path: Path) -> None:
    study, root = small_study(seeds=8), str(tmp_path / "runs")
    writer = partial(CatalogWriter, root, study)
    pool = RayPool(nullcontext, short_of_memory, workers=1, batch=4, num_cpus=0.1, make_writer=writer)
    progress = sweep(study, grid(study), pool, ParquetCatalog(Tables(root), study), NullTracker())
    pool.close()
    assert progress.notes == ["out of memory: 4 UNet rows at a time instead of 8"]
