"""Trainings that torchrun starts: one that loses a process, and one that is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevae.train import load_run
from edgevae.train.run import Checkpoint
from tests.train.same_run import assert_same_run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OPTIONS = ["--dataset", "digits", "--epochs", "40", "--batch-size", "50", "--z-dim", "8", "--binarize", "stochastic"]


def start(out: Path, *torchrun: str) -> subprocess.Popen[str]:
    command = [
        *TORCHRUN,
        *torchrun,
        "-m",
        "edgevae.train",
        *OPTIONS,
        "--no-report",
        "--resume",
        "--checkpoint-every",
        "7",
    ]
    return subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        raise


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def steps_of(out: Path) -> int:
    file = out / "checkpoint.safetensors"
    return int(Checkpoint.read(file).notes["steps"]) if file.exists() else 0


def wait_for_steps(process: subprocess.Popen[str], out: Path, steps: int) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and steps_of(out) < steps:
        time.sleep(0.02)
        if time.monotonic() > end:
            process.terminate()
    assert process.poll() is None, finish(process)


def worker_of(process: subprocess.Popen[str], rank: int) -> int:
    """The process that torchrun has started with a rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    process = start(out)
    output = finish(process)
    assert process.returncode == 0, output
    return out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_torchrun_starts_a_killed_process_again_and_the_run_ends_as_if_nothing_had_been(
    tmp_path: Path, whole: Path
) -> None:
    process = start(tmp_path / "run", "--max-restarts", "3")
    steps = 0
    for rank in (1, 0):
        wait_for_steps(process, tmp_path / "run", steps + 50)
        os.kill(worker_of(process, rank), signal.SIGKILL)
        steps = steps_of(tmp_path / "run")
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("another of the 2 processes was killed or failed") == 2, output
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_that_is_told_to_stop_leaves_a_checkpoint_of_that_moment(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    process = start(tmp_path / "run")
    wait_for_steps(process, tmp_path / "run", 50)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode != 0, output
    assert output.count("the checkpoint is saved. Go on with --resume.") == 1, output
    assert load_run(tmp_path / "run").metrics[-1].step == steps_of(tmp_path / "run")
    process = start(tmp_path / "run")
    output = finish(process)
    assert process.returncode == 0, output
    assert_same_run(tmp_path / "run", whole)
