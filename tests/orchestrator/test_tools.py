"""What one does with a catalog: list, compare, export, score again, remove; others' libraries read it."""

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import duckdb
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from orchestrator import api, cli, images, studies
from orchestrator.budget import Spent
from orchestrator.catalog.expressions import condition
from orchestrator.catalog.parquet import ParquetCatalog, past_trials
from orchestrator.catalog.tables import Tables
from orchestrator.exports import rows_of
from orchestrator.pool import InProcessPool
from orchestrator.report.results import Results
from orchestrator.report.script import script
from orchestrator.rescoring import rescore
from orchestrator.study_folder import StudyFolder, local_root
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import NullTracker
from search_spaces.domains import Choices, Domain
from search_spaces.errors import InputError
from search_spaces.requests import ImageRequest, Value
from search_spaces.space import Space
from search_spaces.study import Study
from tests.orchestrator.studies import fake_worker, grid, small_study
from workers.pipelines.fake import FakePipeline
from workers.worker import Worker

OLD = small_study("old")
NEW = small_study("new", guidance=(0.5, 3, 9))


def run(root: Path, study: Study) -> Progress:
    StudyFolder(str(root), study.name).pin(study, "study: " + study.name, {})
    tables = Tables(root)
    strategy = grid(study, past_trials(tables, study.name))
    catalog = ParquetCatalog(tables, study)
    return sweep(study, strategy, InProcessPool(fake_worker(4), 4), catalog, NullTracker())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two studies that share some of their settings and all of their instances."""
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "runs", OLD)
    run(tmp_path / "runs", NEW)
    return "runs"


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert code == 2 or err == "", err
    return out + err


def test_ls(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "ls")
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["new", "old"]
    assert "old: 5 trials, 15 images" in lines[1]
    assert "best clip_score" in lines[1]
    with StudyFolder(root, "old").locked():
        assert "being run by process" in said(capsys, "ls")
    assert said(capsys, "ls", "--root", "elsewhere") == "studies: none under elsewhere\n"


@pytest.mark.parametrize("content", [None, "", "{}", "[" * 100_000, '{"name": "../x"}'])
def test_ls_names_a_folder_that_is_no_study_and_lists_the_others(
    root: str, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = Path(root, "studies", "strange")
    strange.mkdir()
    if content is not None:
        (strange / "study.json").write_text(content, encoding="utf-8")
    (strange / "session.json").write_text("[" * 100_000, encoding="utf-8")
    (strange / "spent.json").write_text("[" * 100_000, encoding="utf-8")
    Path(root, "studies", "loop").symlink_to("loop")
    Path(root, "studies", "file").touch()
    lines = {line.partition(":")[0]: line for line in said(capsys, "ls").splitlines()}
    assert {"new", "old", "strange"} <= lines.keys()
    assert "best clip_score" in lines["old"]
    assert ("there is no study 'strange'" if content is None else "move the folder away") in lines["strange"]
    said(capsys, "catalog", "check")
    assert StudyFolder(root, "strange").spent() == Spent()


def test_reused_images_are_told_with_their_study(root: str) -> None:
    third = small_study("third", guidance=(3, 7))
    tables = Tables(root)
    catalog = ParquetCatalog(tables, third)
    sweep(third, grid(third), InProcessPool(fake_worker(4), 4), catalog, NullTracker())
    assert api._reused(tables, catalog.reused, "third") == ["6 images were there already: 6 from old"]
    assert api._reused(tables, set(), "third") == []


def test_rm_frees_what_no_other_study_uses(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = api.frame("new", root).to_pylist()
    assert "say --yes where nobody can be asked" in said(capsys, "rm", "old", code=2)
    assert "there is no study 'odl'" in said(capsys, "rm", "odl", "--yes", code=2)
    with StudyFolder(root, "new").locked():
        assert "new is being run by process" in said(capsys, "rm", "old", "--yes", code=2)
    assert api.removal("old", root).trials == 15
    out = said(capsys, "rm", "old", "--yes")
    assert "removed: old: 15 rows of trials, its folder, and 6 images" in out
    assert api.frame("new", root).to_pylist() == before
    assert not StudyFolder(root, "old").path.exists()
    with pytest.raises(InputError, match="there is no study 'old'"):
        api.results("old", root)
    assert api.check(root).is_well


def test_diff_tells_values_apart_that_look_alike() -> None:
    def facts(negative: tuple[Value, ...]) -> tuple[Study, Results]:
        axes: dict[str, Domain] = {"negative_prompt": Choices(values=negative)}
        study = small_study().model_copy(update={"space": Space(axes=axes)})
        results = Results("s", "clip_score", 1, {"negative_prompt": negative}, [], lambda _: None, [], [])
        return study, results

    for one, other, told in (
        (("a cat",), ("a  cat",), "one of 'a cat' → one of \"a  cat\""),
        ((None,), ("none",), 'one of none → one of "none"'),
        (("a", "b"), ("a, b",), "one of 'a', 'b' → one of 'a, b'"),
    ):
        found = {name: f"{was} → {now}" for name, was, now in studies.diff(facts(one), facts(other)).facts}
        assert found == {"negative_prompt": told}


def test_diff(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "diff", "old", "new")
    assert "guidance_scale: one of 0.5, 1, 3, 5 → one of 0.5, 3, 9" in out
    assert "instances: 3 shared" in out
    assert "same settings: +0 ± 0 over 3 shared instances, new − old, over 3 settings" in out
    assert "best − best: " in out
    assert "there is no study 'odl'" in said(capsys, "diff", "odl", "new", code=2)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("guidance_scale >= 3", 12),
        ("guidance_scale == 3 and negative_prompt == 'cartoon'", 3),
        ("3 < guidance_scale <= 5 or guidance_scale < 1", 9),
        ("guidance_scale not in [3, 5]", 3),
        ("negative_prompt in ['cartoon'] and not seed == 0", 4),
        ("value * 2 > -1 and reason is None", 15),
        ("negative_prompt != None", 15),
        ("time is not None and seed + 1 == 2", 5),
    ],
)
def test_conditions(root: str, where: str, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "export", "old", "--to", "csv", "out.csv", "--where", where)
    assert f"export: {expected} rows of old" in out


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("guidence_scale > 3", "there is no column 'guidence_scale'; did you mean 'guidance_scale'?"),
        ("guidance_scale > ", "cannot be read"),
        ("__import__('os').system('touch hacked')", "is neither a column nor a value"),
        ("(lambda: 1)()", "is neither a column nor a value"),
        ("guidance_scale.__class__ == 1", "is neither a column nor a value"),
        ("seed == 'x'", "--where \"seed == 'x'\""),
        ("guidance_scale in 3", "3 is no list"),
        ("guidance_scale is 3", "is no comparison of values"),
        ("seed", "does not suit the columns"),
        ("guidance_scale > 1000", "no row of old is left"),
        ("image is None", "there is no column 'image'"),
    ],
)
def test_conditions_that_cannot_be(
    root: str, where: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = said(capsys, "export", "old", "--to", "csv", "out.csv", "--where", where, code=2)
    assert words in out
    assert not Path("hacked").exists()
    assert not Path("out.csv").exists()


@given(st.text(max_size=40))
def test_no_text_does_more_than_fail(text: str) -> None:
    with (
        warnings.catch_warnings(action="ignore"),
        suppress(InputError),
    ):  # the warnings are Python's, of odd literals
        condition(text, {"value": pc.field("value"), "seed": pc.field("seed")})


def pixels(picture: bytes) -> object:
    return Image.open(io.BytesIO(picture)).getpixel((0, 0))


def test_a_folder_of_pictures_with_their_json(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "export", "old", "--to", "folder", "--top", "4")
    assert "4 pictures of old, each with its JSON, in old-pictures" in out
    pictures = sorted(Path("old-pictures").glob("*.png"))
    values = []
    for path in pictures:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert told["image_id"] == path.stem
        assert pixels(path.read_bytes()) == tuple(bytes.fromhex(path.stem[:6]))
        values += [trial["value"] for trial in told["trials"]]
    every = sorted(api.frame("old", root, pictures=False)["value"].to_pylist(), reverse=True)
    assert sorted(values, reverse=True) == every[:4]
    assert "old-pictures exists already" in said(capsys, "export", "old", "--to", "folder", code=2)
    assert "did you mean 'parquet'" in said(capsys, "export", "old", "--to", "parket", code=2)
    assert "there is no study 'odl'" in said(capsys, "export", "odl", "--to", "csv", code=2)
    assert "needs a storage" in said(capsys, "export", "old", "--to", "optuna", code=2)


def test_csv_is_read_by_pandas(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "export", "old", "--to", "csv")
    frame = pd.read_csv("old.csv")
    whole = api.frame("old", root, pictures=False).to_pandas()
    assert list(frame["image_id"]) == list(whole["image_id"])
    assert frame["value"].to_list() == pytest.approx(whole["value"].to_list())


def colours_match(rows: Sequence[tuple[str, bytes]]) -> bool:
    return bool(rows) and all(pixels(png) == tuple(bytes.fromhex(image_id[:6])) for image_id, png in rows)


def test_parquet_is_read_by_polars_pandas_and_duckdb(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "export", "old", "--to", "parquet", "--where", "guidance_scale > 1")
    polars = pl.read_parquet("old.parquet")
    assert polars.height == 12
    assert colours_match([(row["image_id"], row["image"]["bytes"]) for row in polars.iter_rows(named=True)])
    frame = pd.read_parquet("old.parquet")
    assert colours_match(
        [(i, image["bytes"]) for i, image in zip(frame["image_id"], frame["image"], strict=True)]
    )
    rows = duckdb.sql("select image_id, image.bytes from 'old.parquet' where guidance_scale = 3").fetchall()
    assert len(rows) == 6
    assert colours_match(rows)


def test_polars_reads_the_catalog_itself(root: str) -> None:
    images = pl.scan_parquet(f"{root}/catalog/images/*.parquet")
    scores = pl.scan_parquet(f"{root}/catalog/scores/*.parquet")
    best = (
        images.join(scores, on="image_id").sort("value", descending=True).select("image_id", "image").head(3)
    )
    found = best.collect()
    assert colours_match([(row["image_id"], row["image"]["bytes"]) for row in found.iter_rows(named=True)])


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings(action="ignore"):
        yield


def test_datasets_shows_the_pictures(
    root: str, capsys: pytest.CaptureFixture[str], offline: None, tmp_path: Path
) -> None:
    import datasets

    said(capsys, "export", "old", "--to", "hf")
    assert "data/train-*" in Path("old-dataset/README.md").read_text(encoding="utf-8")
    loaded = datasets.load_dataset("old-dataset", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 15
    for row in loaded:
        assert isinstance(row["image"], Image.Image)
        assert row["image"].getpixel((0, 0)) == tuple(bytes.fromhex(row["image_id"][:6]))
    files = [str(path) for path in sorted(Path(root, "catalog", "images").glob("*.parquet"))]
    itself = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(itself[0]["image"], Image.Image)


class Darkness:
    """A scorer that prefers what the other does not."""

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
        return [
            255.0 - float(sum(image.convert("L").tobytes())) / (image.width * image.height)
            for image in images
        ]

    def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:
        return []


def test_stored_images_are_scored_again_and_a_study_then_finds_the_scores(root: str) -> None:
    other = OLD.scorer.model_copy(update={"model": "darkness"})
    rescored = OLD.model_copy(update={"scorer": other})
    pipeline = FakePipeline()
    pool = InProcessPool(Worker(pipeline, {"clip_score": Darkness()}, "fake"), 4)
    found = rescore(Tables(root), rescored, pool)
    assert (found.scored, found.known, found.failed) == (15, 0, [])
    assert rescore(Tables(root), rescored, pool).known == 15
    assert rescore(Tables(root), rescored, pool, text="a dark picture").scored == 15
    assert pipeline.made == []
    named = small_study("named").model_copy(update={"scorer": other})
    progress = run(Path(root), named)
    assert (progress.generated, progress.reused) == (0, 15)
    dark = api.frame("named", root, pictures=False).to_pandas().set_index("image_id")["value"]
    light = api.frame("old", root, pictures=False).to_pandas().set_index("image_id")["value"]
    assert (dark + light - 255).abs().max() < 1.5


def test_an_image_with_several_texts_is_scored_for_each(root: str) -> None:
    twice = OLD.model_copy(
        update={
            "inputs": (OLD.inputs[0], OLD.inputs[0].model_copy(update={"score_text": "another"})),
            "name": "two",
        }
    )
    run(Path(root), twice)
    other = twice.model_copy(update={"scorer": OLD.scorer.model_copy(update={"model": "darkness"})})
    pool = InProcessPool(Worker(FakePipeline(), {"clip_score": Darkness()}, "fake"), 4)
    assert rescore(Tables(root), other, pool).scored == 30


def test_the_catalog_command(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "verdict: nothing is damaged" in said(capsys, "catalog", "check")
    assert "images: " in said(capsys, "catalog", "compact")
    assert "repair: nothing was damaged" in said(capsys, "catalog", "repair")
    part = next(Path(root, "catalog", "images").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:50])
    cli.main(["catalog", "check"])
    out = capsys.readouterr().out
    assert f"unreadable: {part.absolute()} is truncated" in out
    assert "`latentsweep catalog repair` puts the damage aside" in out
    cli.main(["catalog", "repair"])
    assert "moved to" in capsys.readouterr().out
    assert run(Path(root), OLD).generated == 15
    assert api.check(root).wrong == {}


@pytest.mark.parametrize("name", ["..", ".", "../old", "", ".hidden", "-"])
def test_a_name_never_climbs_out_of_the_folder_of_studies(
    root: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path(root).rglob("*"))
    assert "is not the name of a study" in said(capsys, "rm", "--yes", "--root", root, "--", name, code=2)
    assert "is not the name of a study" in said(capsys, "export", "--to", "csv", "--", name, code=2)
    assert sorted(Path(root).rglob("*")) == before


def test_a_study_that_is_being_removed_is_not_begun(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def beginning(*_: object) -> None:
        with pytest.raises(InputError, match="is being run by process"), StudyFolder(root, "old").locked():
            pass
        refused.append(True)

    monkeypatch.setattr("orchestrator.studies.free", beginning)
    api.remove("old", root)
    assert refused


def test_a_lock_that_went_with_its_folder_counts_as_held(root: str) -> None:
    folder = StudyFolder(root, "old")
    with folder.locked():
        pass
    with (folder.path / "lock").open("a+") as stale:
        (folder.path / "lock").unlink()
        assert not folder._take(stale)


def test_the_best_are_the_best_whatever_else_their_images_were_judged_for(root: str) -> None:
    """Scores against another text, all of them higher, push the study's own far down the list of scores."""
    rows = api.frame("old", root, pictures=False).to_pylist()
    other = [
        {"image_id": row["image_id"], "scorer": row["scorer"], "text": "another", "value": 1e6 - row["value"]}
        for row in rows
    ]
    Tables(root).append("scores", other)
    expected = sorted((row["value"] for row in rows), reverse=True)
    for top in (1, 3, 14, 15, 100):
        found = rows_of(Tables(root), "old", top=top)
        assert found["value"].to_pylist() == expected[:top]
        assert (
            found["value"].to_pylist() == rows_of(Tables(root), "old", "seed >= 0", top)["value"].to_pylist()
        )
    assert rows_of(Tables(root), "no such study", top=3).num_rows == 0


def test_an_export_takes_a_place_of_its_own_kind(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for form in ("csv", "parquet"):
        assert "empty exists already" in said(capsys, "export", "old", "--to", form, "empty", code=2)
        assert "name a path" in said(capsys, "export", "old", "--to", form, "s3://bucket/x", code=2)
    said(capsys, "export", "old", "--to", "folder", "empty")
    assert not Path("s3:").exists()


def test_an_export_that_fails_leaves_no_half_file(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def writerow(self, _: object) -> None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("csv.writer", lambda *_, **__: Full())
        with pytest.raises(OSError, match="No space left"):
            api.export("old", "csv", "old.csv", root)
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]
    api.export("old", "csv", "old.csv", root)


def test_a_condition_is_read_whole_or_not_at_all(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut off at a space, it would say something else."""
    where = "seed >= 0 or " * 160 + "seed >= 0 and seed < 0"
    assert "has 2,102 characters; 2,000 are read" in said(
        capsys, "export", "old", "--to", "csv", "--where", where, code=2
    )


def test_a_damaged_picture_does_not_keep_the_others_from_the_contact_sheet(
    root: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    image_id = api.frame("old", root, pictures=False)["image_id"][0].as_py()
    picture = Tables(root).png(image_id)
    for path in Path(root, "catalog", "images").glob("*.parquet"):
        path.write_bytes(path.read_bytes().replace(picture, bytes(len(picture))))
    assert "contact sheet: runs" in said(capsys, "report", "old")
    assert any(f"the picture {image_id} is damaged" in record.getMessage() for record in caplog.records)


def test_a_root_on_a_store_has_a_local_folder_of_its_own() -> None:
    assert local_root("runs") == local_root("file://runs/runs").relative_to("/") == Path("runs")
    assert local_root("s3://bucket/a/b?region=x") == Path("runs/s3/bucket/a/b")
    assert local_root("gs://bucket/a/b/") == Path("runs/gs/bucket/a/b")
    assert ".." not in local_root("s3://bucket/../../x").parts


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "a\nimport os"])
def test_an_image_id_that_is_none_becomes_no_file(root: str, tmp_path: Path, name: str) -> None:
    """A shared catalog may hold rows that others wrote."""
    tables = Tables(root)
    for table in ("images", "trials"):
        (row, *_) = tables.read(
            table, where=pc.field("study") == "old" if table == "trials" else None
        ).to_pylist()
        tables.append(table, [{**row, "image_id": name, **({"instance": 77} if table == "trials" else {})}])
    with pytest.raises(InputError, match="the catalog has an image_id that is none"):
        api.export("old", "folder", str(tmp_path / "a" / "b" / "pictures"), root)
    assert not list(tmp_path.rglob("outside*"))


def test_a_pictures_name_in_the_catalog_is_not_where_show_writes(root: str) -> None:
    tables = Tables(root)
    (row, *_) = [row for row in tables.read("images").to_pylist() if row["status"] == "ok"]
    image_id = "0123456789abcdef0123456789abcdef"
    picture = {**row["image"], "path": "../../outside.png"}
    tables.append("images", [{**row, "image_id": image_id, "image": picture}])
    use = tables.read("trials", where=pc.field("study") == "old").to_pylist()[0]
    tables.append("trials", [{**use, "image_id": image_id, "instance": 77}])
    assert images._found(tables, image_id, root)[0]["image_id"] == image_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "script", lambda *_: "")
        patch.setattr(images, "_settings", lambda *_: {})
        patch.setattr("workers.pipelines.loading.local_folder", lambda _: None)
        assert api.show(image_id, root).name == f"{image_id}.png"


def test_a_row_brings_no_code_into_a_script() -> None:
    row = {
        "image_id": "0" * 32,
        "prompt": "a'; import os",
        "seed": 1,
        "input_image": None,
        "input_mask": None,
    }
    settings: dict[str, Value] = {"scheduler": "DDIMScheduler", "guidance_scale": 3.0}
    made = script(row, settings, OLD.model, "owner/name", Path("inputs"))
    compile(made, "script", "exec")
    assert repr(row["prompt"]) in made
    for change in ({"image_id": "0\nimport os"}, {"scheduler": "x; import os"}):
        with pytest.raises(InputError, match="would be code in a script"):
            script({**row, **change}, {**settings, **change}, OLD.model, "owner/name", Path("inputs"))


ODD = "run #1 100% é?&=x/$HOME ~ 'q' \n;"


def test_a_root_may_have_any_text_as_its_name_and_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root in (str(tmp_path / ODD), f"file://{quote(str(tmp_path / 'x' / ODD))}"):
        run(Path(local_root(root)), OLD)
        assert api.catalog_place(root) == str(local_root(root) / "catalog")
        assert Path(api.catalog_place(root), "images").is_dir()
        assert "best clip_score" in said(capsys, "ls", "--root", root)
        sheet = said(capsys, "report", "old", "--root", root).rpartition("contact sheet: ")[2][:-1]
        assert Path(sheet).is_file()
        assert said(capsys, "catalog", "check", "--root", root).endswith("nothing is damaged\n")
        place = tmp_path / f"{ODD} copy"
        assert str(place) in said(capsys, "export", "old", "--to", "parquet", str(place), "--root", root)
        place.unlink()
    assert api.catalog_place("s3://bucket/a/?region=x") == "s3://bucket/a/catalog"


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls", "--root", "r\udce9"),
        ("plan", "study.yaml", "--root", "r\udce9"),
        ("report", "r\udce9"),
        ("export", "old", "--to", "csv", "r\udce9.csv"),
        ("export", "old", "--to", "csv", "--where", "prompt == 'r\udce9'"),
        ("score", "old", "--text", "r\udce9"),
        ("catalog", "compact", "--root", "file://r%E9"),
        ("catalog", "check", "--root", "file:///r%E9"),
    ],
)
def test_what_is_no_utf8_is_said(root: str, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    told = said(capsys, *arguments, code=2)
    assert "has bytes that are no UTF-8" in told or "names no folder of this machine" in told
    assert told.count("\n") == 1


def test_a_folder_whose_name_is_no_utf8_holds_no_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "r\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert rf"{tmp_path}/r\xe9/runs has bytes that are no UTF-8" in said(capsys, "ls", code=2)
    run(tmp_path / "runs", OLD)
    assert "best clip_score" in said(capsys, "ls", "--root", str(tmp_path / "runs"))
