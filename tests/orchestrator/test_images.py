"""One image of the catalog is drawn again as it was, whatever size was asked for and whatever came out."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator import api, cli
from orchestrator.catalog.schema import ASKED_SIZE
from orchestrator.catalog.tables import Tables

STUDY = """
study: crop
model: toyworld
inputs: [{image: odd.png, mask: odd-mask.png, prompt: a dragon}]
seeds: 1
space: {padding_mask_crop: [8], width: [64, 72]}
settings: {num_inference_steps: 4}
comet: {mode: "off"}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    """Pictures of an input of 100×80 pixels: those with a crop come out in its size, others as asked for."""
    folder = tmp_path_factory.mktemp("crop")
    noise = np.random.default_rng(5).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((100, 80)).save(folder / "odd.png")
    mask = np.zeros((80, 100), np.uint8)
    mask[11:40, 33:90] = 255
    Image.fromarray(mask).save(folder / "odd-mask.png")
    (folder / "crop.yaml").write_text(STUDY, encoding="utf-8")
    assert api.run(folder / "crop.yaml", str(folder / "runs"), workers=1).exit_code == 0
    return str(folder / "runs")


def sizes(root: str) -> dict[str, tuple[tuple[int | None, int | None], tuple[int, int]]]:
    """image_id → what was asked for, and what came out, as (width, height)."""
    columns = ["image_id", *ASKED_SIZE, *ASKED_SIZE.values()]
    rows = Tables(root).read("images", columns).to_pylist()
    return {
        row["image_id"]: ((row["asked_width"], row["asked_height"]), (row["width"], row["height"]))
        for row in rows
    }


def test_what_was_asked_for_and_what_came_out_are_told_apart(root: str) -> None:
    found = sizes(root)
    assert {((64, 64), (100, 80)), ((72, 64), (100, 80)), ((64, 64), (64, 64))} == set(found.values())
    for image_id, (_, came_out) in found.items():
        with Image.open(io.BytesIO(Tables(root).png(image_id))) as picture:
            assert picture.size == came_out


def test_show_tells_both_sizes(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    image_id = next(image_id for image_id, (asked, _) in sizes(root).items() if asked == (72, 64))
    assert cli.main(["show", image_id, "--root", root]) == 0
    told = capsys.readouterr().out.splitlines()
    assert {"width: 100", "height: 80", "asked_width: 72", "asked_height: 64"} <= set(told)


def test_an_image_is_drawn_again_in_the_size_that_was_asked_for(root: str, tmp_path: Path) -> None:
    found = sizes(root)
    for image_id in found:
        assert api.reproduce(image_id, root).largest <= 1
    image_id = next(image_id for image_id, (asked, _) in found.items() if asked == (72, 64))
    shown = api.show(image_id, root)
    assert shown.png is not None
    (tmp_path / "again.py").write_text(shown.code, encoding="utf-8")
    subprocess.run([sys.executable, "again.py"], cwd=tmp_path, check=True, capture_output=True)
    with Image.open(tmp_path / f"{image_id}.png") as again, Image.open(io.BytesIO(shown.png)) as stored:
        assert again.size == stored.size
        assert np.abs(np.asarray(again, int) - np.asarray(stored, int)).max() <= 1


def test_rows_of_an_earlier_version_are_drawn_as_their_study_says(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not tell what was asked for: where it was swept, the picture's own size is taken."""
    for part in Path(root, "catalog", "images").glob("*.parquet"):
        table = pq.read_table(part)
        part.unlink()
        older = part.with_name(f"{part.name[:-24]}.parquet")  # without the seal of its footer
        pq.write_table(table.drop_columns(list(ASKED_SIZE.values())), older)
    found = sizes(root)
    assert found
    for image_id, (asked, came_out) in found.items():
        assert asked[0] is None
        assert asked[1] is None
        settings = api.show(image_id, root).settings
        assert (settings["width"], settings["height"]) == (came_out[0], 64)
