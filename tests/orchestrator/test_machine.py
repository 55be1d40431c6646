"""What a machine has for us, as far as control groups let: trees as kernels and container engines show them."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import machine
from orchestrator.machine import Machine, oom_kills, this_machine

GB = 10**9
V2 = "30 23 0:26 {shown} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:27 {shown} /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n"
    "32 23 0:28 {shown} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.fixture(autouse=True)
def big(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine itself has 64 cores and 256 GB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine, "physical_memory", lambda: 256 * GB)


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mountinfo": "", "proc/self/cgroup": "", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return folder


SITUATIONS: dict[str, tuple[dict[str, str], Machine]] = {
    "no groups at all": ({}, Machine(64, 256 * GB)),
    "no limits, version 2": (
        {
            "proc/self/mountinfo": V2.format(shown="/"),
            "proc/self/cgroup": "0::/user.slice\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
        },
        Machine(64, 256 * GB),
    ),
    "no limits, version 1": (
        {
            "proc/self/mountinfo": V1.format(shown="/"),
            "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        Machine(64, 256 * GB),
    ),
    "docker --memory=1.5g --cpus=2.5, version 2": (
        {
            "proc/self/mountinfo": V2.format(shown="/"),
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1500000000\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
        },
        Machine(2, 1_500_000_000),
    ),
    "docker, version 1, told its path from outside": (
        {
            "proc/self/mountinfo": V1.format(shown="/docker/abc"),
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1500000000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        Machine(1, 1_500_000_000),
    ),
    "Slurm: the job's limit is above the step's": (
        {
            "proc/self/mountinfo": V2.format(shown="/"),
            "proc/self/cgroup": "0::/system.slice/slurmd/job_7/step_0\n",
            "sys/fs/cgroup/system.slice/slurmd/job_7/step_0/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/slurmd/job_7/memory.max": "16000000000\n",
            "sys/fs/cgroup/system.slice/slurmd/memory.max": "200000000000\n",
            "sys/fs/cgroup/system.slice/slurmd/job_7/cpu.max": "800000 100000\n",
        },
        Machine(8, 16 * GB),
    ),
    "both versions at once, memory in the first": (
        {
            "proc/self/mountinfo": V2.format(shown="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
            + V1.format(shown="/"),
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "3000000000\n",
        },
        Machine(64, 3 * GB),
    ),
    "a path that is not shown": (
        {
            "proc/self/mountinfo": V2.format(shown="/"),
            "proc/self/cgroup": "0::/../../elsewhere\n",
            "sys/fs/cgroup/memory.max": "4000000000\n",
        },
        Machine(64, 4 * GB),
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_limits_of_control_groups_are_obeyed(situation: str, tmp_path: Path) -> None:
    files, right = SITUATIONS[situation]
    assert this_machine(tree(tmp_path, files)) == right


def test_this_one_has_something() -> None:
    assert this_machine().cores >= 1
    assert this_machine().memory > GB / 10


@pytest.mark.parametrize(
    ("files", "right"),
    [
        ({"proc/vmstat": "nr_free_pages 1\noom_kill 3\n"}, 3),
        ({}, 0),
        (
            {
                "proc/self/mountinfo": V2.format(shown="/"),
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.events": "low 0\noom 9\noom_kill 9\n",
                "proc/vmstat": "oom_kill 300\n",  # of other containers too
            },
            9,
        ),
        (
            {
                "proc/self/mountinfo": V1.format(shown="/"),
                "proc/self/cgroup": "4:memory:/job\n",
                "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            },
            2,
        ),
    ],
)
def test_what_the_kernel_ended_is_counted(files: dict[str, str], right: int, tmp_path: Path) -> None:
    assert oom_kills(tree(tmp_path, files)) == right


@given(st.lists(st.sampled_from(["max", "0", "1", "50000", "1000000000"]), min_size=4, max_size=4))
def test_the_smallest_limit_on_the_way_up_holds(
    tmp_path_factory: pytest.TempPathFactory, limits: list[str]
) -> None:
    groups = ["", "a", "a/b", "a/b/c"]
    files = {f"sys/fs/cgroup/{group}/memory.max": limit for group, limit in zip(groups, limits, strict=True)}
    own = {"proc/self/mountinfo": V2.format(shown="/"), "proc/self/cgroup": "0::/a/b/c\n"}
    least = min([256 * GB, *(int(limit) for limit in limits if limit != "max")])
    assert machine.memory(tree(tmp_path_factory.mktemp("tree"), files | own)) == least
