"""How many threads there are by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgevae.providers import usable_cpus


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cpus(folder: Path, own: str) -> int:
    write(folder / "own", own)
    return usable_cpus(str(folder / "cgroup"), str(folder / "own"))


def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert usable_cpus(str(tmp_path), str(tmp_path / "missing")) == 8


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 8), ("nonsense", 8), ("5 0", 8)],
)
def test_a_quota_of_version_2_limits_it(tmp_path: Path, limit: str, expected: int) -> None:
    write(tmp_path / "cgroup" / "app" / "cpu.max", limit)
    assert cpus(tmp_path, "0::/app\n") == expected


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / "cpu.max", "max 100000")
    write(tmp_path / "cgroup" / "pod" / "cpu.max", "300000 100000")
    write(tmp_path / "cgroup" / "pod" / "app" / "cpu.max", "600000 100000")
    assert cpus(tmp_path, "0::/pod/app\n") == 3


def test_a_quota_of_version_1_limits_it(tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / "cpu" / "app" / "cpu.cfs_quota_us", "400000\n")
    write(tmp_path / "cgroup" / "cpu" / "app" / "cpu.cfs_period_us", "100000\n")
    assert cpus(tmp_path, "5:memory:/app\n4:cpu,cpuacct:/app\n") == 4
    write(tmp_path / "cgroup" / "cpu" / "app" / "cpu.cfs_quota_us", "-1\n")
    assert cpus(tmp_path, "4:cpu,cpuacct:/app\n") == 8
