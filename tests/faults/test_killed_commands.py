"""SIGKILL for every command that writes, at random steps of its writing: the same command again mends it all."""

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.api import check

pytestmark = pytest.mark.faults

STUDY = """
study: killed
model: toyworld
inputs: [{image: cat.png, mask: cat-mask.png, prompt: a green dragon}]
seeds: 2
space: {guidance_scale: [1, 4], negative_prompt: ["", cartoon]}
settings: {num_inference_steps: 2}
comet: {mode: "off"}
"""
OTHER = STUDY.replace("study: killed", "study: other").replace("[1, 4]", "[1, 4, 9]")
EXAMPLES = Path("studies").absolute()
TABLES = ("images", "trials", "scores")


def damage(place: Path) -> None:
    """Half of a part is gone."""
    part = sorted((place / "runs/catalog/images").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-200])


def nothing(_place: Path) -> None:
    """The finished study as it is."""


@dataclass(frozen=True)
class Command:
    """What is typed, what is done to the finished study before, and what is said once all has been done."""

    words: str
    before: Callable[[Path], None] = nothing
    kills: int = 4
    already: str | None = None


COMMANDS = {
    "folder": Command("export killed --to folder out/pictures"),
    "csv": Command("export killed --to csv out.csv"),
    "parquet": Command("export killed --to parquet out.parquet"),
    "hf": Command("export killed --to hf out/hf"),
    "optuna": Command("export killed --to optuna journal:journal.log"),
    "report": Command("report killed"),
    "refine": Command("refine killed"),
    "archive": Command("comet archive killed"),
    "compact": Command("catalog compact"),
    "repair": Command("catalog repair", damage),
    "rm": Command("rm killed --yes", already="there is no study 'killed'"),
    "score": Command("score killed --text dragon --workers 1", kills=3),
    "run": Command("run other.yaml --workers 1", kills=4),
}


def rows(folder: Path) -> list[str]:
    """Everything that a table holds, whatever parts it lies in; but for times, which differ by nature."""
    every = [row for part in folder.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    return sorted({repr({name: value for name, value in row.items() if not is_time(name)}) for row in every})


def is_time(column: str) -> bool:
    """Whether a column tells when, how long, or in what company an image was drawn."""
    return "seconds" in column or column in {"time", "device"}


VARYING = {".log", ".lock", ".zip", ".json", ""}
"""Ends of file names whose content holds times, or who wrote them: it is enough that they are there."""


def state(place: Path) -> dict[str, object]:
    """All files by their content, and the catalog by its rows; what was put aside as damaged, by its count."""
    catalog = place / "runs/catalog"
    found: dict[str, object] = {table: rows(catalog / table) for table in TABLES}
    found["damaged"] = len(list((catalog / "damaged").glob("*")))
    for file in sorted(place.rglob("*")):
        if not file.is_file() or catalog in file.parents or ".log.lock" in file.name:
            continue  # the last are Optuna's own, which it takes over from who was killed
        name = str(file.relative_to(place))
        if file.suffix == ".parquet":
            found[name] = pq.read_table(file).to_pylist()
        elif file.suffix in VARYING:
            found[name] = "there"
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def is_well(place: Path) -> bool:
    """What `catalog check` says; pictures that a repair put aside are wanted until the next run."""
    return check(str(place / "runs")).is_well


def latentsweep(
    place: Path, words: str, step: int = 0, delay: float = 0.0
) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, in that folder."""
    command = [sys.executable, "-m", "tests.faults.killed_command", str(place), str(step), str(delay)]
    project = Path(__file__).parents[2]
    command = [sys.executable, "-c", START, str(project), *command[3:], *words.split()]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=400, check=False)


START = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("tests.faults.killed_command", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two study files; one has been run to its end, in two sessions, so that each table has parts."""
    place = tmp_path_factory.mktemp("finished")
    for name in ("cat.png", "cat-mask.png"):
        shutil.copy(EXAMPLES / name, place)
    (place / "other.yaml").write_text(OTHER, encoding="utf-8")
    for text in (STUDY.replace("seeds: 2", "seeds: 1"), STUDY):
        (place / "killed.yaml").write_text(text, encoding="utf-8")
        done = latentsweep(place, "run killed.yaml --workers 1")
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_is_finished_by_the_same_again(name: str, finished: Path, tmp_path: Path) -> None:
    command, chance = COMMANDS[name], random.Random(name)

    def fresh(folder: str) -> Path:
        place = tmp_path / folder
        shutil.copytree(finished, place)
        command.before(place)
        return place

    undisturbed = fresh("undisturbed")
    done = latentsweep(undisturbed, command.words)
    assert done.returncode == 0, done.stderr
    right, steps = state(undisturbed), int(done.stdout.splitlines()[-1])
    assert steps, "the command writes"

    for kill in range(command.kills):
        place = fresh(f"killed-{kill}")
        step, delay = chance.randint(1, steps), chance.choice([0.0, chance.uniform(0.0, 0.03)])
        killed = latentsweep(place, command.words, step, delay)
        assert killed.returncode == -9, (step, killed.returncode, killed.stderr)
        again = latentsweep(place, command.words)
        was_done = command.already is not None and command.already in again.stderr
        assert again.returncode == 0 or was_done, (step, delay, again.stdout, again.stderr)
        assert state(place) == right, (step, delay)
        assert is_well(place) == is_well(undisturbed)
