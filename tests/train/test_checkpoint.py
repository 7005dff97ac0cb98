"""Checkpoints: whole or not at all, and a training that goes on from one as if it had never stopped."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest
import torch

from edgevae.train import Dataset, DatasetError, ModelConfig, RunError, Trainer, TrainingConfig
from edgevae.train.run import Checkpoint, write_whole

MODEL = ModelConfig((1, 8, 8), z_dim=4, hidden_dim=12)
CPU = torch.device("cpu")
TRAININGS = [
    TrainingConfig(batch_size=100),
    TrainingConfig(batch_size=100, binarize="stochastic", schedule="cosine", epochs=3, lr_warmup=1, clip_norm=50),
    TrainingConfig(batch_size=100, beta=2, beta_warmup=3, free_bits=0.1, num_particles=2),
]


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.checkpoint().tensors)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("steps", [0, 1, 7, 15, 20])
def test_a_training_goes_on_from_a_checkpoint_bit_for_bit(
    digits: Dataset, tmp_path: Path, training: TrainingConfig, steps: int
) -> None:
    whole = Trainer(MODEL, training, CPU)
    losses = [whole.fit_epoch(digits.train) for _ in range(3)]

    first = Trainer(MODEL, training, CPU)
    while first.steps < steps:
        first.fit_epoch(digits.train, should_stop=lambda: first.steps == steps)
    first.checkpoint().write(tmp_path / "checkpoint")
    second = Trainer(MODEL, training, CPU)
    second.restore(Checkpoint.read(tmp_path / "checkpoint"))
    assert (second.steps, second.epoch) == (first.steps, first.epoch)
    last = [second.fit_epoch(digits.train) for _ in range(3 - first.epoch)]

    assert last == losses[first.epoch :]
    assert second.steps == whole.steps
    expected = state(whole)
    assert state(second).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(second).items())


def test_pausing_changes_nothing(digits: Dataset) -> None:
    whole, paused = (Trainer(MODEL, TrainingConfig(batch_size=100), CPU) for _ in range(2))
    loss = whole.fit_epoch(digits.train)
    calls = itertools.count(1)
    while paused.epoch == 0:
        last = paused.fit_epoch(digits.train, should_stop=lambda: next(calls) % 4 == 0)
    assert last == loss
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(paused).items())


def test_an_epoch_ends_with_the_images_that_it_began_with(digits: Dataset) -> None:
    trainer = Trainer(MODEL, TrainingConfig(batch_size=100), CPU)
    trainer.fit_epoch(digits.train, should_stop=lambda: True)
    with pytest.raises(DatasetError, match="begun with 1437 images, got 500"):
        trainer.fit_epoch(digits.train[:500])


def test_a_checkpoint_of_another_model_is_refused(digits: Dataset) -> None:
    other = Trainer(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=12), TrainingConfig(), CPU)
    with pytest.raises(RunError, match="does not fit this training"):
        Trainer(MODEL, TrainingConfig(), CPU).restore(other.checkpoint())


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x10" + bytes(7) + b"{}" + bytes(14)])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        Checkpoint.read(tmp_path / "checkpoint")


def test_a_full_disk_is_an_error_and_the_file_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    Checkpoint({"a": torch.ones(3)}, {"epoch": 1}).write(path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"No space left on device; what it held before is still there.*--resume"):
        Checkpoint({"a": torch.zeros(3)}, {"epoch": 2}).write(path)
    assert Checkpoint.read(path).notes == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="could not be written"):
        write_whole(tmp_path / "taken", b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
