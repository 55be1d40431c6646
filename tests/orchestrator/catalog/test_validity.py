"""Part files of others: a row that is none bricks nothing, is said by the file's name, and a repair puts it aside."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.catalog.schema import SCHEMAS
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import check, repair
from orchestrator.catalog.validity import CHECKED, RULES, problem, strangers, valid
from orchestrator.studies import studies
from orchestrator.study_folder import named_folder
from search_spaces.errors import InputError
from tests.orchestrator.catalog.test_contract import STUDY
from tests.orchestrator.catalog.test_damage import parts, root, told

__all__ = ["root"]

NAN = float("nan")

WRONG = [
    ("images", "image_id", None),
    ("images", "image_id", "../../x"),
    ("images", "status", None),
    ("images", "seconds_generate", NAN),
    ("scores", "image_id", None),
    ("scores", "scorer", None),
    ("scores", "text", None),
    ("scores", "value", None),
    ("scores", "value", NAN),
    ("scores", "value", float("inf")),
    ("trials", "image_id", None),
    ("trials", "study", None),
    ("trials", "study", "../../escaped"),
    ("trials", "trial", None),
    ("trials", "trial", -1),
    ("trials", "instance", None),
    ("trials", "instance", -1),
    ("trials", "role", None),
    ("trials", "role", "judge"),
    ("trials", "state", None),
    ("trials", "settings", None),
    ("trials", "settings", "{"),
    ("trials", "settings", "[1]"),
    ("trials", "settings", '{"guidance_scale": [1]}'),
    ("trials", "scorer", None),
    ("trials", "text", None),
]


def changed(rows: pa.Table, column: str, value: object) -> pa.Table:
    index = rows.column_names.index(column)
    field = rows.schema.field(index)
    return rows.set_column(index, field, pa.array([value] * rows.num_rows, field.type))


def foreign_part(root: Path, table: str, rows: pa.Table, moment: int) -> Path:
    """A part file that another program has put there."""
    path = parts(root, table)[0].parent / f"part-{moment}-abcdef03.parquet"
    pq.write_table(rows, path)
    return path


@pytest.mark.parametrize(("number", "table", "column", "value"), [(n, *each) for n, each in enumerate(WRONG)])
def test_a_foreign_part_is_skipped_by_name_and_put_aside(
    root: Path, number: int, table: str, column: str, value: object
) -> None:
    """Whether it is read first or last."""
    moment = (1 if number % 2 else 4) * 10**18
    truth = told(root)
    whole = pq.read_table(parts(root, table)[0], partitioning=None)
    path = foreign_part(root, table, changed(whole, column, value), moment)
    assert told(root) == truth
    assert [listed.study for listed in studies(str(root))] == [STUDY.name]
    health = check(Tables(root))
    assert list(health.unreadable) == [str(path)]
    assert "is not what this program writes (3 of its 3 rows" in health.unreadable[str(path)]
    (said,) = repair(Tables(root))
    assert said.startswith(str(path))
    assert not path.exists()
    assert (root / "catalog" / "damaged" / f"{table}-{path.name}").exists()
    assert check(Tables(root)).is_well
    assert told(root) == truth


def test_a_repair_keeps_the_good_rows_of_a_part_with_bad_ones(root: Path) -> None:
    truth = told(root)
    old = parts(root, "scores")[1]
    rows = pq.read_table(old, partitioning=None)
    old.unlink()
    foreign_part(
        root, "scores", pa.concat_tables([rows, changed(rows, "value", NAN)]), int(old.name.split("-")[1])
    )
    assert "moved to" in repair(Tables(root))[0]
    assert check(Tables(root)).is_well
    assert told(root) == truth


@pytest.mark.parametrize("moment", [1_000_000_000_000_000_000, 4_000_000_000_000_000_000])
@pytest.mark.parametrize("swept", ["{}", '{"strength": 1}', '{"guidance_scale": 1, "strength": 1}'])
def test_rows_without_the_study_s_axes_are_left_out_and_put_aside(
    root: Path, swept: str, moment: int, caplog: pytest.LogCaptureFixture
) -> None:
    truth = told(root)
    rows = pq.read_table(parts(root, "trials")[0], partitioning=None)
    path = foreign_part(root, "trials", changed(rows, "settings", swept), moment)
    assert told(root) == truth
    assert "3 of the 12 rows of study small in the table trials name other settings" in caplog.text
    health = check(Tables(root))
    assert health.strange == {str(path): 3}
    assert not health.is_well
    assert ("foreign", f"{path}: 3 rows name other settings than their study's others") in health.summary
    (said,) = repair(Tables(root))
    assert "moved to" in said
    assert check(Tables(root)).is_well
    assert told(root) == truth
    assert not path.exists()


def test_a_study_s_name_that_climbs_out_of_its_folder_is_left_out_by_name(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the part's seal is whole."""
    (root.parent / "escaped").mkdir()
    rows = pq.read_table(parts(root, "trials")[0], partitioning=None)
    Tables(root).write("trials", changed(rows, "study", "../../escaped"))
    assert [listed.study for listed in studies(str(root))] == [STUDY.name]
    assert "'../../escaped' is not the name of a study" in caplog.text
    assert list((root.parent / "escaped").iterdir()) == []


@settings(deadline=None)
@given(st.sampled_from(sorted(RULES)), st.data())
def test_valid_rows_are_those_without_a_problem(table: str, data: st.DataObject) -> None:
    """A row is valid where a table of it alone has no problem."""
    ids = st.sampled_from([None, "", "x", "0" * 32, "f" * 31])
    values = {
        "image_id": ids,
        "study": st.sampled_from([None, "a", "../a", ""]),
        "settings": st.sampled_from([None, "{}", "[]", '{"a": 1}', '{"a": {}}', "x"]),
        "state": st.sampled_from([None, "scored", "looked", "gone"]),
        "status": st.sampled_from([None, "ok", "lost", "gone"]),
        "role": st.sampled_from([None, "search", "look", "x"]),
        "scorer": st.sampled_from([None, "s"]),
        "text": st.sampled_from([None, "", "t"]),
    }
    numbers = {
        "value": st.sampled_from([None, NAN, 1.0]),
        "seconds_generate": st.sampled_from([None, NAN, 1.0]),
    }
    counts = dict.fromkeys(("trial", "instance", "after"), st.sampled_from([None, -1, 0, 3]))
    row = st.fixed_dictionaries({name: {**values, **numbers, **counts}[name] for name in CHECKED[table]})
    schema = pa.schema([SCHEMAS[table].field(name) for name in CHECKED[table]])
    rows = pa.Table.from_pylist(data.draw(st.lists(row, max_size=5)), schema=schema)
    good = valid(table, rows).to_pylist()
    assert good == [problem(table, rows.slice(n, 1)) is None for n in range(rows.num_rows)]
    assert problem(table, rows.filter(pa.array(good, pa.bool_()))) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "xy", "y"])), max_size=12))
def test_strangers_are_fewer_than_those_at_home(rows: list[tuple[str, str]]) -> None:
    """Of each study those stay whose settings most have; whoever has the same settings as one that stays, stays."""
    trials = pa.table(
        {
            "study": pa.array([study for study, _ in rows], pa.string()),
            "settings": pa.array([json.dumps(dict.fromkeys(names, 1)) for _, names in rows], pa.string()),
        }
    )
    strange = strangers(trials).to_pylist()
    for study in "ab":
        at_home = {names for (of, names), odd in zip(rows, strange, strict=True) if of == study and not odd}
        assert len(at_home) == (1 if any(of == study for of, _ in rows) else 0)
        for names in at_home:
            counted = [kept for of, kept in rows if of == study]
            assert all(counted.count(names) >= counted.count(other) for other in counted)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe{", "cannot be read as a pinned study"),
        (b"{", "cannot be read as a pinned study"),
        (
            STUDY.model_copy(update={"name": "../escaped"}).model_dump_json().encode(),
            "is not the name of a study",
        ),
    ],
)
def test_a_folder_with_a_damaged_or_foreign_study_is_a_sentence_and_bricks_no_other(
    root: Path, content: bytes, why: str
) -> None:
    for name in ("foreign", "not a name"):
        (root / "studies" / name).mkdir(parents=True)
        (root / "studies" / name / "study.json").write_bytes(content)
    with pytest.raises(InputError, match=why):
        named_folder("foreign", str(root)).pinned()
    assert [listed.study for listed in studies(str(root))] == ["foreign", STUDY.name]
