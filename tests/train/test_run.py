"""Run folders: written, read back, and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from edgevae.train import (
    ARCHITECTURES,
    VAE,
    Dataset,
    DatasetInfo,
    Decoder,
    Encoder,
    EpochMetrics,
    Evaluation,
    ModelConfig,
    RunConfig,
    RunError,
    RunWriter,
    Trainer,
    TrainingConfig,
    evaluate_elbo,
    load_run,
    newest_run,
    run_config,
)
from edgevae.train.run import Checkpoint

SAMPLES = torch.rand(300, 1, 8, 8)
MODEL = ModelConfig((1, 8, 8), z_dim=3, hidden_dim=4)


@pytest.fixture
def config() -> RunConfig:
    return run_config(MODEL, TrainingConfig(epochs=2, seed=9), DatasetInfo("digits", 1437, 360))


def moment(vae: VAE, epoch: int = 1) -> Checkpoint:
    return Checkpoint({f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}, {"epoch": epoch})


def evaluation(elbo: float) -> Evaluation:
    return Evaluation(elbo, elbo + 5, 5.0, (1.0, 4.0), 2, 360, 10)


def write(path: Path, config: RunConfig, epochs: int = 2) -> VAE:
    vae = VAE(MODEL)
    writer = RunWriter(path, config, SAMPLES)
    for epoch in range(1, epochs + 1):
        writer.save_epoch(moment(vae, epoch), EpochMetrics(epoch, 30.0 - epoch, -29.0, 1, 0.5))
    return vae


def test_a_run_reads_back_as_it_was_written(tmp_path: Path, config: RunConfig) -> None:
    vae = write(tmp_path / "run", config)
    run = load_run(tmp_path / "run")
    assert run.config == config
    assert [line.epoch for line in run.metrics] == [1, 2]
    assert run.metrics[-1] == EpochMetrics(2, 28.0, -29.0, 1, 0.5)
    assert torch.equal(run.samples, SAMPLES[:256])
    for name, tensor in vae.state_dict().items():
        assert torch.equal(run.vae.state_dict()[name], tensor)
    assert not run.vae.training


def test_a_run_is_not_overwritten_unless_asked_to(tmp_path: Path, config: RunConfig) -> None:
    write(tmp_path / "run", config)
    with pytest.raises(RunError, match="already holds a run; go on with it by --resume, choose another"):
        RunWriter(tmp_path / "run", config, SAMPLES)
    (tmp_path / "run" / "loss.png").touch()
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    writer = RunWriter(tmp_path / "run", config, SAMPLES, overwrite=True)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before  # until there is a new checkpoint
    writer.save_epoch(moment(VAE(MODEL)), EpochMetrics(1, 30.0, -29.0, 1, 0.5))
    assert [line.epoch for line in load_run(tmp_path / "run").metrics] == [1]
    assert not (tmp_path / "run" / "loss.png").exists()  # the old run's picture is not the new one's


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path, config: RunConfig) -> None:
    write(tmp_path / "run", config)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    assert len(load_run(tmp_path / "run").metrics) == 2
    with pytest.raises(RunError, match="without a checkpoint to go on from; choose another --out"):
        RunWriter(tmp_path / "run", config, SAMPLES, resume=True)


def test_a_training_that_ends_before_its_first_checkpoint_leaves_no_trace(tmp_path: Path, config: RunConfig) -> None:
    RunWriter(tmp_path / "run", config, SAMPLES)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match=r"not a run with a checkpoint: config\.json is missing"):
        load_run(tmp_path / "run")


def test_a_file_in_the_way_is_refused(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunError, match="is a file"):
        RunWriter(tmp_path / "run", config, SAMPLES)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("weights.safetensors", b"nonsense"),
        ("samples.safetensors", b""),
        ("metrics.jsonl", b"{}\n"),
        ("metrics.jsonl", b""),
        ("config.json", b'{"schema_version": 1}'),
        ("config.json", b"[]"),
    ],
)
def test_a_damaged_run_is_refused(tmp_path: Path, config: RunConfig, file: str, content: bytes) -> None:
    write(tmp_path / "run", config)
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        load_run(tmp_path / "run")


def test_a_run_of_another_schema_is_refused(tmp_path: Path, config: RunConfig) -> None:
    write(tmp_path / "run", config)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 7}))
    with pytest.raises(RunError, match="schema version 7, this edgevae reads 1"):
        load_run(tmp_path / "run")


def test_weights_of_other_sizes_are_refused(tmp_path: Path, config: RunConfig) -> None:
    write(tmp_path / "run", config)
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    content["model"]["z_dim"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="size mismatch"):
        load_run(tmp_path / "run")


def test_the_newest_run_is_the_one_with_the_newest_checkpoint(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(RunError, match="there is no run"):
        newest_run(tmp_path)
    for age, name in ((10, "older"), (0, "newer"), (5, "middle")):
        write(tmp_path / name, config)
        os.utime(tmp_path / name / "weights.safetensors", (1e9 - age, 1e9 - age))
    assert newest_run(tmp_path) == tmp_path / "newer"


class Normed(Encoder):
    """The reference's encoder with a norm that keeps statistics."""

    def make_features(self) -> None:
        super().make_features()
        self.norm = torch.nn.BatchNorm1d(self.hidden_dim)

    def features(self, x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        normed: torch.Tensor = self.norm(super().features(x, labels))
        return normed


def test_statistics_of_norms_survive_and_evaluation_does_not_touch_them(
    tmp_path: Path, config: RunConfig, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pyro's own parameter store would forget them: they are no parameters.
    monkeypatch.setitem(ARCHITECTURES, "mlp", (Normed, Decoder))
    trainer = Trainer(config.model, TrainingConfig(), torch.device("cpu"))
    trainer.fit_epoch(digits.train)
    trained = {name: tensor.clone() for name, tensor in trainer.vae.state_dict().items()}
    assert trained["encoder.norm.running_mean"].abs().min() > 0
    evaluate_elbo(trainer.vae, digits.test)
    assert trainer.vae.training
    assert all(torch.equal(tensor, trained[name]) for name, tensor in trainer.vae.state_dict().items())
    writer = RunWriter(tmp_path / "run", config, SAMPLES)
    writer.save_epoch(trainer.checkpoint(), EpochMetrics(1, 30.0, -29.0, 1, 0.5))
    loaded = load_run(tmp_path / "run").vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())


def test_labels_of_the_samples_are_kept_with_them(tmp_path: Path, config: RunConfig) -> None:
    writer = RunWriter(tmp_path / "run", config, SAMPLES, torch.arange(300))
    writer.save_epoch(moment(VAE(MODEL)), EpochMetrics(1, 30.0, -29.0, 1, 0.5))
    labels = load_run(tmp_path / "run").labels
    assert labels is not None
    assert labels.tolist() == list(range(256))


def test_evenly_spaced_training_images_are_kept_for_a_calibration(tmp_path: Path, config: RunConfig) -> None:
    images, labels = 1 - SAMPLES, torch.arange(300)
    writer = RunWriter(tmp_path / "run", config, SAMPLES, train_samples=images, train_labels=labels)
    writer.save_epoch(moment(VAE(MODEL)), EpochMetrics(1, 30.0, -29.0, 1, 0.5))
    run = load_run(tmp_path / "run")
    assert run.train_samples is not None
    assert run.train_labels is not None
    assert torch.equal(run.train_samples, images[run.train_labels])
    assert (len(run.train_labels), int(run.train_labels[0]), int(run.train_labels[-1])) == (256, 0, 298)
    assert set(run.train_labels.diff().tolist()) == {1, 2}
    assert torch.equal(run.samples, SAMPLES[:256])
    assert run.labels is None


def test_a_small_training_set_is_kept_completely(tmp_path: Path, config: RunConfig) -> None:
    writer = RunWriter(tmp_path / "run", config, SAMPLES, train_samples=SAMPLES[:7])
    writer.save_epoch(moment(VAE(MODEL)), EpochMetrics(1, 30.0, -29.0, 1, 0.5))
    run = load_run(tmp_path / "run")
    assert run.train_samples is not None
    assert torch.equal(run.train_samples, SAMPLES[:7])


def test_the_elbo_of_each_test_image_is_kept_and_goes_with_a_new_run(tmp_path: Path, config: RunConfig) -> None:
    elbos = torch.linspace(-40, -20, 360)
    writer = RunWriter(tmp_path / "run", config, SAMPLES)
    writer.save_epoch(moment(VAE(MODEL)), EpochMetrics(1, 30.0, -30.0, 10, 0.5))
    assert load_run(tmp_path / "run").test_elbos is None  # until the training has come to its end
    assert load_run(tmp_path / "run").test_elbo == (-30.0, 10)
    writer.save_evaluations({"test": evaluation(-28.0)}, elbos)
    run = load_run(tmp_path / "run")
    assert run.test_elbos is not None
    torch.testing.assert_close(run.test_elbos, elbos)
    assert run.evaluations == {"test": evaluation(-28.0)}
    assert run.test_elbo == (-28.0, 10)
    again = RunWriter(tmp_path / "run", config, SAMPLES, overwrite=True)
    again.save_epoch(moment(VAE(MODEL)), EpochMetrics(1, 30.0, -30.0, 10, 0.5))
    assert load_run(tmp_path / "run").test_elbos is None
    assert not load_run(tmp_path / "run").evaluations


def test_a_run_is_resumed_after_its_last_complete_epoch(tmp_path: Path, config: RunConfig) -> None:
    vae = write(tmp_path / "run", config)
    interrupted = RunWriter(tmp_path / "run", config, SAMPLES, resume=True)
    assert [line.epoch for line in interrupted.metrics] == [1, 2]
    interrupted.save_checkpoint(moment(vae, 2))
    interrupted.save_epoch(moment(vae, 2), EpochMetrics(3, 20.0, -20.0, 1, 0.5, complete=False))
    assert len(load_run(tmp_path / "run").metrics) == 3
    again = RunWriter(tmp_path / "run", config, SAMPLES, resume=True)
    assert [line.epoch for line in again.metrics] == [1, 2]
    assert again.checkpoint is not None
    assert again.checkpoint.notes == {"epoch": 2}


def test_a_run_without_a_complete_epoch_says_how_to_get_one(tmp_path: Path, config: RunConfig) -> None:
    RunWriter(tmp_path / "run", config, SAMPLES).save_checkpoint(moment(VAE(MODEL), 0))
    with pytest.raises(RunError, match="has not completed an epoch; go on with it by --resume"):
        load_run(tmp_path / "run")
