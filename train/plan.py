"""What a training is going to do, said before it does it."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from .checkpoint import Checkpoint
from .config import ModelConfig, TrainingConfig
from .data import Dataset, Images
from .run import CHECKPOINT_FILE, WEIGHTS_FILE
from .vae import VAE


def plan_of(
    dataset: Dataset[Images], model: ModelConfig, training: TrainingConfig, device: torch.device, out: Path
) -> str:
    """Return five lines: the data, the model, the training, the device and the run's folder."""
    steps = math.ceil(len(dataset.train) / training.batch_size)
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = ", ".join(f"{len(images):,} {name}" for name, images in parts.items() if images is not None)
    what = "images" if len(dataset.data_shape) == 3 else "rows"
    lines = {
        "data": f"{dataset.name}: {counts} {what}, shape {dataset.data_shape}",
        "model": _model(model),
        "training": f"{training.epochs} epochs of {steps:,} steps, batch size {training.batch_size}, {_how(training)}",
        "device": str(device),
        "run": f"{out}{_state(out, training)}",
    }
    return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def _model(model: ModelConfig) -> str:
    sizes = "-".join(map(str, (model.data_dim, model.hidden_dim, *model.z_dims)))
    latent = f"mixture of {model.components}" if model.latent == "mixture" else f"{model.latent} latent"
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in VAE(model).parameters())
    return f"{model.architecture} VAE {sizes}, {model.likelihood}, {latent}{classes}; {count:,} parameters"


def _how(training: TrainingConfig) -> str:
    said = [f"Adam {training.learning_rate:g}"]
    said += [training.schedule] * (training.schedule != "constant")
    said += [f"warm-up {training.lr_warmup}"] * (training.lr_warmup > 0)
    said += [f"beta {training.beta:g}"] * (training.beta != 1)
    said += [f"beta reached in {training.beta_warmup} epochs"] * (training.beta_warmup > 0)
    said += [f"{training.num_particles} particles"] * (training.num_particles > 1)
    said += [f"free bits {training.free_bits:g}"] * (training.free_bits > 0)
    said += [f"gradient at most {training.clip_norm:g}"] * (training.clip_norm > 0)
    said += [f"patience {training.patience}"] * (training.patience > 0)
    said += [f"binarized: {training.binarize}"] * (training.binarize != "none")
    return ", ".join([*said, f"seed {training.seed}"])


def _state(out: Path, training: TrainingConfig) -> str:
    if (out / CHECKPOINT_FILE).exists():
        notes = Checkpoint.read(out / CHECKPOINT_FILE).notes
        return f" (there already: {notes['epoch']} of {training.epochs} epochs, {notes['steps']:,} steps made)"
    return " (there already)" if (out / WEIGHTS_FILE).exists() else ""
