"""The joined rows of a study: every swept setting is a column of the trial's own values."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator import api
from orchestrator.catalog import Judged
from orchestrator.catalog.parquet import ParquetCatalog
from orchestrator.catalog.tables import Tables
from orchestrator.exports import export, rows_of
from search_spaces.requests import Scored, Settings, Trial
from tests.orchestrator.catalog.test_contract import results
from tests.orchestrator.studies import small_study

README = Path(__file__).parents[3] / "README.md"

SWEPT: list[Settings] = [
    {
        "padding_mask_crop": None,
        "use_karras_sigmas": True,
        "eta": 0.0,
        "sigma": 1,
        "odd": "auto",
        "width": 16,
    },
    {"padding_mask_crop": 8, "use_karras_sigmas": False, "eta": 0.5, "sigma": 0.5, "odd": True, "width": 24},
    {"padding_mask_crop": 8, "use_karras_sigmas": None, "eta": None, "sigma": 2, "odd": None, "width": 8},
]
"""Settings with and without a column in `images`, of one type and of several, and a picture's size."""

COLUMNS = {
    "padding_mask_crop": (pa.int64(), [None, 8, 8]),
    "use_karras_sigmas": (pa.bool_(), [True, False, None]),
    "eta": (pa.float64(), [0.0, 0.5, None]),
    "sigma": (pa.float64(), [1, 0.5, 2]),
    "odd": (pa.string(), ["auto", "True", None]),
    "width": (pa.int64(), [16, 24, 8]),
}


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A root where one picture, with its score, serves three trials, as it serves twins."""
    (done,) = results(1)
    judged = [Judged(Trial(n, own), 0, done.request, done.outcome) for n, own in enumerate(SWEPT)]
    ParquetCatalog(Tables(tmp_path / "runs"), small_study()).write([done], judged)
    return str(tmp_path / "runs")


def test_every_swept_setting_is_a_column_of_the_trials_own_values(root: str, tmp_path: Path) -> None:
    export("small", "parquet", str(tmp_path / "out.parquet"), root)
    for table in (api.frame("small", root), pq.read_table(tmp_path / "out.parquet")):
        for name, (kind, values) in COLUMNS.items():
            assert table.schema.field(name).type == kind
            assert table[name].to_pylist() == values
    export("small", "csv", str(tmp_path / "out.csv"), root)
    assert list(pd.read_csv(tmp_path / "out.csv")["padding_mask_crop"].fillna(0)) == [0, 8, 8]


@pytest.mark.parametrize(
    ("where", "trials"),
    [
        ("padding_mask_crop == 8", [1, 2]),
        ("padding_mask_crop != 8", [0]),
        ("use_karras_sigmas", [0]),
        ("odd in ['auto', None]", [0, 2]),
        ("width >= 16 and sigma < 1", [1]),
    ],
)
def test_a_condition_may_name_every_swept_setting(where: str, trials: list[int], root: str) -> None:
    assert rows_of(Tables(root), "small", where)["trial"].to_pylist() == trials


def test_a_condition_may_call_a_score_what_the_report_calls_it(root: str) -> None:
    tables = Tables(root)
    (score,) = set(tables.read("scores")["value"].to_pylist())
    for name in ("value", "clip_score"):
        assert rows_of(tables, "small", f"{name} == {score!r}").num_rows == 3
        assert rows_of(tables, "small", f"{name} > {score!r}").num_rows == 0
    assert rows_of(tables, "small", "gpu_seconds >= 0 and gpu_seconds == seconds_generate").num_rows == 3


def test_the_query_of_the_readme_asks_one_study_and_its_own_scorer(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other scorers, other texts, other studies and a row that was written twice do not change its answer."""
    _, _, rest = README.read_text(encoding="utf-8").partition("```sql\n")
    query = rest.partition("```")[0].replace("cat-to-dragon", "small")
    monkeypatch.chdir(Path(root).parent)
    study, tables = small_study(), Tables(root)
    done = results(4)
    for number, each in enumerate(done):
        trial = Trial(number // 2, {"guidance_scale": [3, 10][number // 2]})
        judged = [Judged(trial, number % 2, each.request, each.outcome)]
        ParquetCatalog(tables, study.model_copy(update={"name": "asked"})).write([each], judged)
    query = query.replace("small", "asked")
    before = duckdb.sql(query).fetchall()
    means = api.frame("asked", root).to_pandas().groupby("guidance_scale")["value"].mean()
    assert [row[0] for row in before] == [3, 10]
    assert [row[1] for row in before] == pytest.approx([means[3], means[10]])
    other = study.model_copy(update={"name": "other"})
    dark = study.scorer.model_copy(update={"name": "preservation_psnr", "model": "pixels"})
    for each in done:
        text = replace(
            each, request=replace(each.request, score_text="another"), outcome=Scored({"clip_score": 9})
        )
        judged = [Judged(Trial(0, {"guidance_scale": 3}), 0, each.request, each.outcome)]
        ParquetCatalog(tables, other).write([text], judged)
        psnr = replace(each, outcome=Scored({"preservation_psnr": 58.9}))
        measured = study.model_copy(update={"scorer": dark, "objective": "preservation_psnr"})
        ParquetCatalog(tables, measured).write([psnr], [])
    scores = tables.read("scores")
    assert len(set(scores["scorer"].to_pylist())) == 2
    tables.write("scores", scores.filter(pa.compute.equal(scores["text"], "a bright picture")))
    assert duckdb.sql(query).fetchall() == before
