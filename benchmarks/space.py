"""The model space as a table: each combination of choices trained for a few steps, exported and verified.

    python -m benchmarks.space

The models are tiny and hardly trained: the table shows the difference between exported graphs and Pyro.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

import click
import torch

from edgevae import Report
from edgevae.export import Format, Source, export_bundle
from edgevae.train import ARCHITECTURES, LATENTS, LIKELIHOODS, ModelConfig, Trainer, TrainingConfig, load_dataset

COMBINATIONS = list(itertools.product(ARCHITECTURES, LIKELIHOODS, LATENTS, [False, True]))
"""Architecture, likelihood, latent, conditional."""

_FORMATS: tuple[Format, ...] = ("onnx", "torchscript")


def tiny_config(architecture: str, likelihood: str, latent: str, conditional: bool) -> ModelConfig:
    """Return the choices with small sizes, for 8 by 8 images of ten classes."""
    config = ModelConfig((1, 8, 8), 3, 12, architecture, likelihood, levels=4, num_classes=10 * conditional)
    if not LIKELIHOODS[likelihood].unit_interval:
        config = dataclasses.replace(config, data_loc=0.3, data_scale=0.4)
    return dataclasses.replace(config, latent=latent, upper_dims=(2,) * (latent == "hierarchical"), components=4)


@click.command()
def main() -> None:
    """Print a row for each combination."""
    digits = load_dataset("digits", labels=True)
    click.echo(
        "| architecture | likelihood | latent | conditional | loss, epochs 1 and 2 "
        "| ONNX max_abs_diff | ONNX ELBO drift, nats | TorchScript max_abs_diff | TorchScript ELBO drift, nats |"
    )
    click.echo(f"|{' --- |' * 9}")
    for choices in COMBINATIONS:
        config = tiny_config(*choices)
        trainer = Trainer(config, TrainingConfig(batch_size=120, learning_rate=1e-2), torch.device("cpu"))
        train_labels, test_labels = (digits.train_labels, digits.test_labels) if config.num_classes else (None, None)
        losses = [trainer.fit_epoch(digits.train, labels=train_labels) for _ in range(2)]
        source = Source("tiny", trainer.vae.eval(), digits.test, "test images of digits", None, test_labels)
        with tempfile.TemporaryDirectory() as folder:
            reports = export_bundle(source, Path(folder) / "tiny", _FORMATS)
        *names, conditional = choices
        cells = [*names, "yes" if conditional else "no", f"{losses[0]:.1f} → {losses[1]:.1f}"]
        click.echo(f"| {' | '.join([*cells, *(cell for report in reports for cell in _measured(report))])} |")


def _measured(report: Report) -> tuple[str, str]:
    """The largest difference of the networks' outputs, and that of the ELBO."""
    outputs = [check for check in report.checks if check.graph not in {"elbo", "model"}]
    drift = next(check for check in report.checks if check.output == "ELBO drift nats")
    return f"{max(check.max_abs_diff for check in outputs):.1e}", f"{drift.max_abs_diff:.1e}"


if __name__ == "__main__":
    main()
