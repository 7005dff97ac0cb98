"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os

_CGROUPS = "/sys/fs/cgroup"
_OWN_CGROUPS = "/proc/self/cgroup"


def usable_cpus(cgroups: str = _CGROUPS, own_cgroups: str = _OWN_CGROUPS) -> int:
    """Return the number of CPUs that affinity and the quota of a container leave to this process, at least 1.

    Args:
        cgroups: Where Linux mounts the control groups.
        own_cgroups: The file in which it lists those of this process.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups, own_cgroups)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _quota(cgroups: str, own_cgroups: str) -> float | None:
    """CPUs' worth of time a period that the tightest control group above this process allows; `None` for no limit."""
    found = [limit for folder in _folders(cgroups, own_cgroups) if (limit := _limit(folder)) is not None]
    return min(found, default=None)


def _folders(cgroups: str, own_cgroups: str) -> list[str]:
    """The process's control groups and those above them, in version 2 and in version 1 of Linux's."""
    try:
        lines = _text(own_cgroups).splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = os.path.join(cgroups, "cpu") if controllers else cgroups
        names = path.strip("/").split("/")
        folders += [os.path.join(root, *names[:depth]) for depth in range(len(names), -1, -1)]
    return folders


def _limit(folder: str) -> float | None:
    try:
        if os.path.isfile(both := os.path.join(folder, "cpu.max")):
            quota, period = _text(both).split()
        else:
            quota, period = (_text(os.path.join(folder, f"cpu.cfs_{name}_us")).strip() for name in ("quota", "period"))
        return None if quota in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _text(file: str) -> str:
    with open(file, encoding="utf-8") as opened:
        return opened.read()
