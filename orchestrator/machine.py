"""What this machine has for us: cores and memory, as far as a container's or a batch job's limits (cgroups) let it.

Formats: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of Linux. A limit anywhere above us holds for us too.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What a machine has for workers; `memory` in bytes."""

    cores: int
    memory: int


def this_machine(root: Path = Path("/")) -> Machine:
    """As far as this process may use it; `root` is where /proc and /sys are looked for."""
    return Machine(cores(root), memory(root))


def cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: those it may run on, or fewer where its time is limited; at least 1."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [*_v2_quotas(root), *_v1_quotas(root)]
    return max(1, int(min([there, *quotas])))


def memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its children may use together."""
    there = physical_memory()
    limits = [
        limit
        for group in _groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(group / name)) is not None
    ]
    return min([there, *limits])


def physical_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has ended here for want of memory: under our limits, or without any, at all."""
    counts = [
        count
        for group in _groups(root, "memory")
        for name in ("memory.events", "memory.oom_control")
        if (count := _entry(group / name, "oom_kill")) is not None
    ]
    return max(counts) if counts else _entry(root / "proc/vmstat", "oom_kill") or 0


def _v2_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (
                (group / "cpu.max").read_text(encoding="ascii").split()
            )  # "max 100000" where there is none
            yield int(quota) / int(period)


def _v1_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:  # -1 where there is none
            yield quota / period


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that we are in, innermost first."""
    ours = dict(_memberships(root))
    for where, shown, kind, options in _mounts(root):
        path = ours.get("") if kind == "cgroup2" else ours.get(controller) if controller in options else None
        if path is None:
            continue
        # A container may be shown its own group as the top, and be told its path from outside.
        inside = path.removeprefix(shown.rstrip("/")) if path.startswith(shown) else ""
        top = root / where.lstrip("/")
        group = top / inside.strip("/")
        yield from (each for each in (group, *group.parents) if each == top or top in each.parents)


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Controller and path, with "" for the one hierarchy of version 2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        yield from ((controller, path) for controller in controllers.split(","))


def _mounts(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Where a hierarchy of control groups is, which of its groups is shown there as the top, its type and options."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = (*rest.split(" ", 2), "", "")[:3]
        if kind in ("cgroup", "cgroup2"):
            yield fields.split(" ")[4], fields.split(" ")[3], kind, options.split(",")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" where there is none
        return None


def _entry(path: Path, name: str) -> int | None:
    return next((int(line.split()[1]) for line in _lines(path) if line.split()[:1] == [name]), None)
