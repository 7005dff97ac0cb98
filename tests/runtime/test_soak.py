"""The runtime under load; EDGEVAE_SOAK_SECONDS and EDGEVAE_SOAK_OPENINGS say how long, by default 60 and 200."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SECONDS = float(os.environ.get("EDGEVAE_SOAK_SECONDS", "60"))
OPENINGS = int(os.environ.get("EDGEVAE_SOAK_OPENINGS", "200"))
FLAT = 0.05
NOT_YET_FLAT = 0.25  # in so short a run memory still grows to what the calls side by side need
KEEPS_LITTLE = {"MALLOC_TRIM_THRESHOLD_": str(2**17)}
"""glibc's initial threshold. Without it glibc raises the threshold, and each arena keeps more free memory."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts what a process holds in Linux's /proc")


def soaked(*arguments: object, environment: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Run the load in a process of its own; return its report, which must name no wrong answer and no error."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["wrong"], report["errors"]) == ([], [])
    assert report["before"] == report["after"]
    return report


def test_sixteen_threads_on_one_small_model_get_what_one_gets() -> None:
    assert soaked(REPOSITORY / "models" / "digits-mlp", "--seconds", 2)["calls"] > 16


@pytest.mark.slow
def test_sixteen_threads_on_all_models_get_what_one_gets_and_memory_is_flat() -> None:
    report = soaked("--seconds", SECONDS)
    assert report["calls"] > SECONDS
    assert report["held_growth"] < (FLAT if SECONDS >= 600 else NOT_YET_FLAT)


@pytest.mark.slow
def test_models_that_are_opened_and_closed_leave_nothing_behind() -> None:
    report = soaked("--openings", OPENINGS, environment=KEEPS_LITTLE)
    assert report["calls"] == OPENINGS
    assert report["in_use_growth"] < FLAT
    assert report["held_growth"] < FLAT
