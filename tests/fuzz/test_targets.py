"""Each fuzz target on its seeds and on damage that is the same at each run; no atheris is needed for that."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.fuzz import bundle as bundle_target
from tests.fuzz.__main__ import TARGETS, TooMuchError, limited
from tests.fuzz.target import Target, mutations

COUNT = int(os.environ.get("EDGEVAE_EXAMPLES", "200"))
DEAR = 10
"""A damaged bundle takes as long as so many other inputs."""


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "bundle"])
def test_damage_gives_an_answer_or_a_documented_error(name: str, tmp_path: Path) -> None:
    try_all(importlib.import_module(f"tests.fuzz.{name}").make(tmp_path), COUNT)


def test_a_damaged_bundle_gives_an_answer_or_a_documented_error(bundle: Path, tmp_path: Path) -> None:
    short = Path(shutil.copytree(bundle, tmp_path / "short"))
    bundle_target.keep_one_row_of_each_case(short)
    try_all(bundle_target.target(short, tmp_path / "damaged"), COUNT // DEAR)


def try_all(target: Target, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and NumPy warn of damage that they can read around
        for data in (*target.seeds[:30], *mutations(target, count)):
            target.check(data)


def test_a_slow_input_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.__main__.MAX_SECONDS", -1.0)
    with pytest.raises(TooMuchError, match=r"s of the processor and .* MB for 3 bytes"):
        limited(Target(lambda _: None, [b""]), b"123")


def divide(data: bytes) -> None:
    assert 1 / len(data)


def test_an_undocumented_error_is_a_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        limited(Target(divide, [b""]), b"")


def test_the_command_fuzzes_a_target() -> None:
    pytest.importorskip("atheris", reason="atheris is for Linux, and not needed for the rest")
    command = [sys.executable, "-m", "tests.fuzz", "manifest", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Done " in done.stderr
    assert "INITED cov:" in done.stderr
    assert done.returncode == 0, done.stderr[-2000:]
