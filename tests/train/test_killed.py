"""Trainings that are killed, told to stop, or out of disk: the run stays whole, and training resumes from it."""

from __future__ import annotations

import errno
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from edgevae.train import (
    VAE,
    DatasetInfo,
    EpochMetrics,
    Evaluation,
    ModelConfig,
    RunConfig,
    RunError,
    RunWriter,
    TrainingConfig,
    load_run,
    newest_run,
    run_config,
)
from edgevae.train.run import Checkpoint
from edgevae.train.runs import main as list_runs
from tests.killing import DONE, contents, killed_at_each_step, refused_at_each_step

COMMAND = ["-m", "edgevae.train", "--dataset", "digits", "--z-dim", "8", "--binarize", "stochastic", "--no-report"]
OPTIONS = ["--epochs", "100", "--batch-size", "20", "--schedule", "cosine", "--validation-fraction", "0.1"]
KILLS = 20


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", *COMMAND, *OPTIONS, "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_same_run(found: Path, expected: Path) -> None:
    for file in ("weights.safetensors", "checkpoint.safetensors"):
        ours, theirs = (safetensors.torch.load_file(folder / file) for folder in (found, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), file
    assert load_run(found).evaluations == load_run(expected).evaluations


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
    output, _ = process.communicate(timeout=200)
    assert process.returncode == exit_code, output
    assert "the checkpoint is saved. Go on with --resume." in output
    assert load_run(tmp_path / "run").metrics[-1].step == steps_of(tmp_path / "run")


# A kill or a full disk at each step of writing


SAMPLES = torch.zeros(4, 1, 2, 2)
EPOCHS = 2


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


MODEL = ModelConfig((1, 2, 2), z_dim=1, hidden_dim=1)


@functools.cache
def config(seed: int) -> RunConfig:
    return run_config(MODEL, TrainingConfig(epochs=EPOCHS, seed=seed), DatasetInfo("digits", 8, 4))


def train(path: Path, seed: int, *, overwrite: bool = False, resume: bool = False) -> None:
    """Train a run whose weights are all `seed * 10 + epoch`, and its ELBOs the same, negative."""
    writer = RunWriter(path, config(seed), SAMPLES, overwrite=overwrite, resume=resume)
    done = 0 if writer.checkpoint is None else int(writer.checkpoint.notes["epoch"])
    vae = VAE(MODEL)
    for epoch in range(done + 1, EPOCHS + 1):
        value = seed * 10.0 + epoch
        weights = {f"vae.{name}": torch.full_like(tensor, value) for name, tensor in vae.state_dict().items()}
        if epoch == 1:
            writer.save_checkpoint(Checkpoint(weights, {"epoch": 0}))
        writer.save_epoch(Checkpoint(weights, {"epoch": epoch}), EpochMetrics(epoch, value, -value, 1, 0.5, step=epoch))
    last = -(seed * 10.0 + EPOCHS)
    evaluation = Evaluation(last, last + 1, 1.0, (1.0,), 1, 4, 10)
    writer.save_evaluations({"test": evaluation}, torch.full((4,), last))


def state(path: Path) -> tuple[int, int]:
    """Return seed and epoch of a run whose parts agree."""
    run = load_run(path)
    value = float(next(iter(run.vae.state_dict().values())).flatten()[0])
    assert all((tensor == value).all() for tensor in run.vae.state_dict().values())
    assert run.test_elbo[0] == -value, "an ELBO of other weights"
    assert int(value // 10) == run.config.training.seed
    assert run.test_elbos is None or (run.test_elbos == -value).all()
    assert bool(run.evaluations) <= (run.test_elbos is not None)
    return run.config.training.seed, int(value % 10)


def what_is_there(path: Path) -> tuple[int, int] | str:
    """Return seed and epoch, or what `load_run` says."""
    try:
        return state(path)
    except RunError as error:
        return str(error)


@pytest.mark.slow
def test_a_new_run_is_there_from_its_first_checkpoint_on_and_goes_on(tmp_path: Path, no_fsync: None) -> None:
    path, seen = tmp_path / "run", []
    for _ in killed_at_each_step(lambda: train(path, 1), tmp_path):
        assert path.exists() == (path / "checkpoint.safetensors").exists()
        seen.append(what_is_there(path))
        train(path, 1, resume=True)
        assert state(path) == (1, EPOCHS)
        assert names(tmp_path) == ["run"]
        assert not list(path.glob(".*"))
        shutil.rmtree(path)
    print(f"{len(seen)} kills of a new run")  # noqa: T201 - shown by pytest -s
    assert len(seen) >= 50
    assert {found for found in seen if not isinstance(found, str)} == {(1, 1), (1, 2)}


@pytest.mark.slow
def test_a_run_that_is_replaced_is_the_old_one_or_the_new_one(tmp_path: Path, no_fsync: None) -> None:
    path, seen, missing = tmp_path / "run", [], 0
    train(tmp_path / "old", 1)
    (tmp_path / "old" / "tensorboard").mkdir()
    (tmp_path / "old").rename(path)
    old = contents(path)
    for _ in killed_at_each_step(lambda: train(path, 2, overwrite=True), tmp_path):
        found = what_is_there(path)
        seen.append(found)
        assert found != (1, EPOCHS) or contents(path) == old
        if not path.exists():  # between two renames
            missing += 1
            assert contents(tmp_path / ".run.old") == old
        else:
            assert isinstance(found, tuple) or "has not completed an epoch; go on with it by --resume" in found
        train(path, 2, overwrite=True)
        assert state(path) == (2, EPOCHS)
        assert names(tmp_path) == ["run"], "the next one takes over what a kill left"
        put(path, old)
    print(f"{len(seen)} kills of a run that replaces another one")  # noqa: T201 - shown by pytest -s
    assert len(seen) >= 50
    assert missing == 1
    assert {found for found in seen if not isinstance(found, str)} == {(1, EPOCHS), (2, 1), (2, EPOCHS)}


@pytest.mark.slow
def test_beside_other_files_a_run_is_replaced_without_ever_being_mixed(tmp_path: Path, no_fsync: None) -> None:
    path, seen = tmp_path / "run", []
    train(path, 1)
    (path / "notes.txt").write_text("precious")
    old = contents(path)
    for _ in killed_at_each_step(lambda: train(path, 2, overwrite=True), tmp_path):
        seen.append(what_is_there(path))
        train(path, 2, overwrite=True)
        assert state(path) == (2, EPOCHS)
        assert not list(path.glob(".*"))
        assert (path / "notes.txt").read_text() == "precious"
        put(path, old)
    assert len(seen) >= 50
    assert {found for found in seen if not isinstance(found, str)} == {(1, EPOCHS), (2, 1), (2, EPOCHS)}


def put(path: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(path)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)


@pytest.mark.slow
def test_a_run_that_cannot_be_written_says_so_and_the_old_one_stays(tmp_path: Path, no_fsync: None) -> None:
    path = tmp_path / "run"
    train(path, 1)
    old, outcomes, moved = contents(path), [], 0
    for outcome in refused_at_each_step(lambda: train(path, 2, overwrite=True), tmp_path, errno.ENOSPC):
        outcomes.append(outcome)
        if ".run.old now" in outcome:  # it could not be renamed back either
            (tmp_path / ".run.old").rename(path)
            moved += 1
        assert not list(tmp_path.rglob(".*"))
        found = what_is_there(path)
        assert found != (1, EPOCHS) or contents(path) == old
        if outcome != DONE:
            assert outcome.startswith(f"RunError: {path}")
            assert "No space left on device; what " in outcome
            assert "what it held before is still there. Make room" in outcome
            train(path, 2, overwrite=found == (1, EPOCHS), resume=found != (1, EPOCHS))
        assert state(path) == (2, EPOCHS)
        put(path, old)
    assert len(outcomes) >= 50
    assert moved == 1


def test_a_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    writer = RunWriter(path, config(1), SAMPLES)
    writer.save_checkpoint(Checkpoint({"vae.x": torch.ones(1)}, {"epoch": 0}))
    shutil.rmtree(path)
    with pytest.raises(RunError, match=r"the folder .*run is not there any more"):
        writer.save_checkpoint(Checkpoint({"vae.x": torch.ones(1)}, {"epoch": 0}))


def test_leftovers_of_a_kill_are_not_listed_as_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "runs" / ".digits.part", 1)
    with pytest.raises(RunError, match="there is no run"):
        newest_run(tmp_path / "runs")
    list_runs(["list", str(tmp_path / "runs")], standalone_mode=False)
    assert "There are no runs" in capsys.readouterr().err


def test_the_second_of_two_trainings_that_start_the_same_run_is_refused(tmp_path: Path) -> None:
    first, second = (RunWriter(tmp_path / "run", config(seed), SAMPLES) for seed in (1, 2))
    first.save_checkpoint(Checkpoint({"vae.x": torch.ones(1)}, {"epoch": 0}))
    with pytest.raises(RunError, match="could not be written"):
        second.save_checkpoint(Checkpoint({"vae.x": torch.zeros(1)}, {"epoch": 0}))
    assert Checkpoint.read(tmp_path / "run" / "checkpoint.safetensors").tensors["vae.x"].item() == 1


# torchrun


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TORCHRUN_OPTIONS = ["--epochs", "40", "--batch-size", "50", "--resume", "--checkpoint-every", "7"]


def start_torchrun(out: Path, *torchrun: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, *torchrun, *COMMAND, *TORCHRUN_OPTIONS, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish_torchrun(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=400)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        raise


def wait_for_steps(process: subprocess.Popen[str], out: Path, steps: int) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and steps_of(out) < steps:
        time.sleep(0.02)
        if time.monotonic() > end:
            process.terminate()
    assert process.poll() is None, finish_torchrun(process)


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
    process = start_torchrun(out)
    output = finish_torchrun(process)
    assert process.returncode == 0, output
    return out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_torchrun_starts_a_killed_process_again_and_the_run_ends_as_if_nothing_had_been(
    tmp_path: Path, whole: Path
) -> None:
    process = start_torchrun(tmp_path / "run", "--max-restarts", "3")
    steps = 0
    for rank in (1, 0):
        wait_for_steps(process, tmp_path / "run", steps + 50)
        os.kill(worker_of(process, rank), signal.SIGKILL)
        steps = steps_of(tmp_path / "run")
    output = finish_torchrun(process)
    assert process.returncode == 0, output
    assert output.count("another of the 2 processes was killed or failed") == 2, output
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_that_is_told_to_stop_leaves_a_checkpoint_of_that_moment(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    process = start_torchrun(tmp_path / "run")
    wait_for_steps(process, tmp_path / "run", 50)
    process.send_signal(number)
    output = finish_torchrun(process)
    assert process.returncode != 0, output
    assert output.count("the checkpoint is saved. Go on with --resume.") == 1, output
    assert load_run(tmp_path / "run").metrics[-1].step == steps_of(tmp_path / "run")
    process = start_torchrun(tmp_path / "run")
    output = finish_torchrun(process)
    assert process.returncode == 0, output
    assert_same_run(tmp_path / "run", whole)
