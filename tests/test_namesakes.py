"""Modules of the user's that bear the names of our packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import latentsweep

HERE = Path(__file__).parents[1]
PROGRAM = "import sys, latentsweep; sys.argv[0] = 'latentsweep'; sys.exit(latentsweep.main())"
"""As the installed script begins, whose folder holds no modules."""


@pytest.fixture(params=[*latentsweep.PACKAGES, "all"])
def namesakes(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of the user's with modules of these names, which nobody of ours may run."""
    for name in latentsweep.PACKAGES if request.param == "all" else [request.param]:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('mine')")
    return tmp_path


def program(*arguments: str, path: str, cwd: Path, code: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=cwd)


def test_the_program_imports_its_own(namesakes: Path) -> None:
    """On PYTHONPATH before ours, and in the folder where it is started."""
    ended = program("schema", path=f"{namesakes}:{HERE}", cwd=namesakes)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("{")


def test_folders_are_left_as_they_are_where_nothing_is_in_the_way(tmp_path: Path) -> None:
    code = "import sys, latentsweep; before = list(sys.path); latentsweep.come_first(); assert sys.path == before"
    ended = program(path=f"{tmp_path}:{HERE}", cwd=tmp_path, code=code)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("name", ["workers", "search_spaces"])
@pytest.mark.parametrize("package", [False, True])
def test_from_python_the_file_in_the_way_is_named(name: str, package: bool, tmp_path: Path) -> None:
    """There, who comes first is the user's to say; ours would otherwise fail somewhere, of something."""
    module = tmp_path / name / "__init__.py" if package else tmp_path / f"{name}.py"
    module.parent.mkdir(exist_ok=True)
    module.touch()
    ended = program(path=f"{tmp_path}:{HERE}", cwd=tmp_path, code="from orchestrator import api")
    assert ended.stderr.splitlines()[-1].startswith(
        f"ImportError: {module} is in the way of latentsweep's own package {name!r}; rename it"
    )
