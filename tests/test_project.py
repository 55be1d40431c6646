"""The project's own files: what they promise a newcomer holds."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_cluster_yaml_validates_by_rays_own_loader() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(cluster))
    gpu_worker = cluster["available_node_types"]["gpu_worker"]
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config({**cluster, "idle_timeout_minuts": 5}))
    assert gpu_worker["resources"]["GPU"] == 1


def test_the_readme_shows_the_example_study_as_it_is() -> None:
    study = (ROOT / "studies" / "cat-to-dragon.yaml").read_text(encoding="utf-8").strip()
    assert study in README


def test_every_command_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)) <= targets
    parser = cli._parser()
    commands = re.findall(r"latentsweep ([a-z]+)[ `]", README)
    assert len(set(commands)) >= 4
    for command in set(commands):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([command, "--help"])
        assert ended.value.code == 0


def test_every_command_is_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["--help"])
    for command in re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE):
        assert f"latentsweep {command}" in README


def test_files_that_the_readme_links_to_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).is_file(), link


def test_the_readme_names_every_registry_model() -> None:
    from search_spaces.models import REGISTRY

    for name in REGISTRY:
        assert name in README


def test_constraints_are_plain_pins_of_everything_the_project_needs() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert "torch==2.13.0" in lines
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=\[]", name)[0].lower().replace("_", "-") for name in wanted} <= pinned
    assert not {"torchvision", "torchaudio"} & pinned


def test_help_needs_no_heavy_import() -> None:
    script = (
        "import sys; from orchestrator import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'diffusers', 'optuna', 'comet_ml', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_nothing_in_the_code_knows_the_bundled_model_by_name() -> None:
    sources = [
        path for room in ("orchestrator", "workers", "search_spaces") for path in (ROOT / room).rglob("*.py")
    ]
    naming = {
        path.relative_to(ROOT).as_posix() for path in sources if '"toyworld"' in path.read_text("utf-8")
    }
    # What trains and measures the model is not what runs it.
    assert naming == {"search_spaces/models.py", "workers/toyworld/evaluate.py"}
