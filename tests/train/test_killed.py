"""A training that is killed, as the power fails it, and goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from edgevae.train import load_run
from tests.train.same_run import assert_same_run

COMMAND = [
    sys.executable,
    "-W",
    "error",
    "-m",
    "edgevae.train",
    "--dataset",
    "digits",
    "--epochs",
    "100",
    "--batch-size",
    "20",
]
OPTIONS = ["--z-dim", "8", "--binarize", "stochastic", "--schedule", "cosine", "--validation-fraction", "0.1"]
KILLS = 20


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, *OPTIONS, "--no-report", "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def steps_of(out: Path) -> int:
    """Steps of the last checkpoint; it can be read whenever the process was killed."""
    if not (out / "checkpoint.safetensors").exists():
        return 0
    with safetensors.safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        notes: str = file.metadata()["notes"]
    return int(notes.split('"steps": ')[1].split(",", maxsplit=1)[0].rstrip("}"))


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    finish(start(tmp_path / "whole"))
    moments = random.Random(0)  # noqa: S311 - moments, no secret
    kills, before, log = 0, 0, []
    while kills < KILLS:
        process = start(tmp_path / "run", "--resume", "--checkpoint-every", "7")
        while process.poll() is None and steps_of(tmp_path / "run") == before:
            time.sleep(0.01)  # until it goes on: importing PyTorch is not what is to be interrupted
        time.sleep(moments.uniform(0, 0.25))
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        steps = steps_of(tmp_path / "run")
        assert steps > before, "it loses what came after the last checkpoint, and no more"
        log.append(f"kill {kills:2d} after step {steps}")
        before = steps
    print("\n".join(log))  # noqa: T201 - shown by pytest -s
    finish(start(tmp_path / "run", "--resume"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert not list((tmp_path / "run").glob(".*")), "what a kill left half-written is gone"


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_with_a_checkpoint_of_that_moment(
    tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    process = start(tmp_path / "run", "--epochs", "10000", "--checkpoint-every", "5")
    while process.poll() is None and steps_of(tmp_path / "run") == 0:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == exit_code, output
    assert "the checkpoint is saved. Go on with --resume." in output
    assert load_run(tmp_path / "run").metrics[-1].step == steps_of(tmp_path / "run")
