"""The project's own files: what they promise a newcomer holds."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


CLUSTER = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


def cluster_variant(title: str) -> dict[str, Any]:
    """The sections that a comment in cluster.yaml offers in place of its own."""
    commented = CLUSTER[CLUSTER.index(f"# {title}") :].split("\n#\n")[1]
    found: dict[str, Any] = yaml.safe_load("\n".join(line[2:] for line in commented.splitlines()))
    return found


@pytest.mark.parametrize("variant", [None, "On Google Cloud", "On machines of your own"])
def test_cluster_yaml_validates_by_rays_own_loader(variant: str | None) -> None:
    cluster = yaml.safe_load(CLUSTER) | (cluster_variant(variant) if variant else {})
    if cluster["provider"]["type"] == "local":
        del cluster["available_node_types"], cluster["head_node_type"]
    validate_config(prepare_config(cluster))
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config({**cluster, "idle_timeout_minuts": 5}))
    if "available_node_types" in cluster:
        head, worker = (cluster["available_node_types"][name] for name in ("head", "gpu_worker"))
        assert worker["resources"]["GPU"] == 1
        assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
        assert head["resources"] == {"CPU": 0}, "actors stay on the workers"
        assert cluster["idle_timeout_minutes"] <= 15
        node = worker["node_config"]  # of which Ray's loader knows no key
        spot = node.get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert spot or {"preemptible": True} in node.get("scheduling", [])


def test_cluster_yaml_is_closed() -> None:
    cluster = yaml.safe_load(CLUSTER)
    starts = [cluster[f"{who}_start_ray_commands"][-1] for who in ("head", "worker")]
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert cluster["provider"]["security_group"] == {"GroupName": "latentsweep"}
    assert "pip install" in cluster["setup_commands"][0]
    assert "-c constraints.txt" in cluster["setup_commands"][0]


def pinned_ray() -> str:
    found = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_images_have_the_pinned_ray() -> None:
    docker = yaml.safe_load(CLUSTER)["docker"]
    for image, kind in ((docker["image"], "gpu"), (docker["head_image"], "cpu")):
        assert image == f"rayproject/ray:{pinned_ray()}-py311-{kind}"


def test_the_kubernetes_job_is_of_the_same_shape() -> None:
    job = yaml.safe_load((ROOT / "cluster" / "kuberay-rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    arguments = cli._parser().parse_args(spec["entrypoint"].split()[1:])
    assert arguments.root.startswith("s3://")
    ray = spec["rayClusterSpec"]
    assert ray["authOptions"] == {"mode": "token"}
    assert ray["rayVersion"] == pinned_ray()
    assert ray["enableInTreeAutoscaling"] is True
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = ray["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"] == arguments.workers == 8
    pods = [ray["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(arguments.study.parent) == mounts["study"]
        assert {volume["name"] for volume in pod["volumes"]} == mounts.keys()
        assert set(container["resources"]["limits"]) <= set(container["resources"]["requests"])
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for pod in pods]
    assert gpus == [0, 1]


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
