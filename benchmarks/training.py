"""Seconds an epoch: ours, Pyro's way, and a loop by hand.

    python -m benchmarks.training --dataset mnist --data-dir ~/mnist --also bf16 --also compile --json training.json

Pyro's way is a DataLoader over single images and `svi.step`. The loop by hand is plain PyTorch: the same network, both
densities written out, one fused Adam, all images in one tensor. First their losses are compared, step by step on the
same batches from the same seed. Then they take turns in one process, in a random order, and the medians of the ratios
are compared. `--also bf16` times the loop by hand and ours in bfloat16 too, `--also compile` the loop by hand with
`torch.compile`.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import pyro
import torch
from PIL import Image
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from benchmarks.timing import draw_bars, rounds
from edgevae.train import (
    DATASET_NAMES,
    VAE,
    DatasetName,
    DeviceError,
    ModelConfig,
    Precision,
    Trainer,
    TrainingConfig,
    evaluate_elbo,
    load_dataset,
)

_BATCH_SIZE = 256
_LEARNING_RATE = 1e-3
_COMPARED_STEPS = 50
_OURS = "python -m train"
_MAX_RELATIVE_DIFF = 1e-5

Way = tuple[VAE, Callable[[], float]]
"""A model, and a function that trains it for an epoch and returns the mean loss, nats an image."""


class _SingleImages(Dataset[Tensor]):
    """Images one by one, as torchvision's MNIST gives them: each made a PIL image, and that a tensor."""

    def __init__(self, images: Tensor) -> None:
        self._pixels = (images[:, 0] * 255).round().to(torch.uint8)
        self._to_tensor = ToTensor()

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self._to_tensor(Image.fromarray(self._pixels[index].numpy()))
        return image


def pyros_step(vae: VAE) -> Callable[[Tensor], float]:
    """Return a function that makes a step as Pyro's example does, and returns its loss, in nats."""
    vae.eval()  # as in the example, the likelihood takes probabilities
    svi = SVI(vae.model, vae.guide, Adam({"lr": _LEARNING_RATE}), Trace_ELBO())
    step: Callable[[Tensor], float] = svi.step
    return step


def step_by_hand(vae: VAE, also: str | None = None) -> Callable[[Tensor], Tensor]:
    """Return a function that makes a step and returns its loss, in nats: log q(z|x) - log p(z) - log p(x|z).

    Args:
        vae: The model.
        also: `bf16` for products in bfloat16 (PyTorch's autocast), `compile` for `torch.compile`.
    """
    optimizer = torch.optim.Adam(vae.parameters(), _LEARNING_RATE, fused=True)

    def loss_of(x: Tensor) -> Tensor:
        z_loc, z_scale = vae.encoder(x)
        eps = torch.randn_like(z_loc)
        z = z_loc + z_scale * eps
        reconstruction = binary_cross_entropy_with_logits(vae.decoder.outputs_at(z), x, reduction="sum")
        loss: Tensor = reconstruction + (0.5 * z.square() - 0.5 * eps.square() - z_scale.log()).sum()
        return loss

    compiled: Callable[[Tensor], Tensor] = torch.compile(loss_of) if also == "compile" else loss_of

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=also == "bf16"):
            loss = compiled(x.flatten(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def pyros_way(images: Tensor, model_config: ModelConfig) -> Way:
    """Train as Pyro's example does."""
    vae = _new_vae(model_config)
    step = pyros_step(vae)
    loader = DataLoader(_SingleImages(images), _BATCH_SIZE, shuffle=True, num_workers=1)
    return vae, lambda: sum(step(batch) for batch in loader) / len(images)


def by_hand(images: Tensor, model_config: ModelConfig, also: str | None = None) -> Way:
    """Train with a loop written for this model alone."""
    vae = _new_vae(model_config)
    step = step_by_hand(vae, also)

    def fit_epoch() -> float:
        total = torch.zeros((), dtype=torch.float64)
        for indices in torch.randperm(len(images)).split(_BATCH_SIZE):
            total += step(images[indices])
        return float(total) / len(images)

    return vae, fit_epoch


def our_way(images: Tensor, model_config: ModelConfig, precision: Precision = "fp32") -> Way:
    """Train with `Trainer`.

    Raises:
        ClickException: This processor has no fast instructions for the precision.
    """
    try:
        trainer = _new_trainer(model_config, precision)
    except DeviceError as error:
        raise click.ClickException(str(error)) from error
    return trainer.vae, lambda: trainer.fit_epoch(images)


def check_equal(images: Tensor, model_config: ModelConfig) -> float:
    """Return the largest relative difference between the losses of the first steps and Pyro's.

    Raises:
        ClickException: The difference is more than rounding.
    """
    ours: list[Tensor] = []
    _new_trainer(model_config).fit_epoch(images, ours.append, lambda: len(ours) == _COMPARED_STEPS)
    others = []
    for make_step in (pyros_step, step_by_hand):
        step = make_step(_new_vae(model_config))
        order = torch.randperm(len(images)).split(_BATCH_SIZE)[: len(ours)]
        others.append(torch.tensor([float(step(images[indices])) / len(indices) for indices in order]))
    pyros, by_hands = others
    worst = max(float((each - pyros).abs().div(pyros.abs()).max()) for each in (torch.stack(ours), by_hands))
    if not worst <= _MAX_RELATIVE_DIFF:
        raise click.ClickException(f"losses differ by {worst:.1e} of Pyro's, expected at most {_MAX_RELATIVE_DIFF}")
    return worst


@click.command(context_settings={"show_default": True})
@click.option("--dataset", type=click.Choice(DATASET_NAMES), default="digits", help="The images to train on.")
@click.option("--data-dir", type=click.Path(exists=True, path_type=Path), help="Folder with the IDX files.")
@click.option("--epochs", type=click.IntRange(min=2), default=6, help="Epochs of each; the first is not timed.")
@click.option("--also", type=click.Choice(["bf16", "compile"]), multiple=True, help="Time this variant too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where to write the numbers.")
@click.option("--chart", type=click.Path(path_type=Path), help="Where to draw them, .svg or .png.")
def main(
    dataset: DatasetName,
    data_dir: Path | None,
    epochs: int,
    also: tuple[str, ...],
    json_file: Path | None,
    chart: Path | None,
) -> None:
    """Compare the losses of three ways, then their time and their test ELBO."""
    data = load_dataset(dataset, data_dir)
    model_config = ModelConfig(data.data_shape)
    worst = check_equal(data.train, model_config)
    makers: dict[str, Callable[[Tensor, ModelConfig], Way]] = {
        _OURS: our_way,
        "Pyro's way": pyros_way,
        "a loop by hand": by_hand,
        **{f"by hand, {each}": functools.partial(by_hand, also=each) for each in also},
    }
    if "bf16" in also:
        makers[f"{_OURS}, bf16"] = functools.partial(our_way, precision="bf16")
    ways = {name: make(data.train, model_config) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for epoch, names in enumerate(rounds(ways, epochs)):
        for name in names:
            _, fit_epoch = ways[name]
            start = time.perf_counter()
            fit_epoch()
            if epoch > 0:
                seconds[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "of_pyros_way": _ratio(seconds[name], seconds["Pyro's way"]),
            "of_a_loop_by_hand": _ratio(seconds[name], seconds["a loop by hand"]),
            "test_elbo_nats": evaluate_elbo(vae, data.test, num_particles=10),
        }
        for name, (vae, _) in ways.items()
    }
    click.echo(f"{dataset}, {len(data.train)} images, {torch.get_num_threads()} threads, median of {epochs - 1} epochs")
    click.echo(f"losses of the first steps agree to {worst:.1e}")
    for name, row in rows.items():
        click.echo(
            f"{name:22} {row['seconds']:7.2f} s  {row['of_pyros_way']:.2f} of Pyro's way  "
            f"{row['of_a_loop_by_hand']:.2f} of a loop by hand  "
            f"test ELBO after {epochs} epochs {row['test_elbo_nats']:.2f} nats"
        )
    if json_file is not None:
        about = {"dataset": dataset, "images": len(data.train), "threads": torch.get_num_threads(), "epochs": epochs}
        content = json.dumps({**about, "max_relative_diff": worst, "ways": rows}, indent=2)
        json_file.write_text(f"{content}\n", encoding="utf-8")
    if chart is not None:
        draw_bars(chart, [(f"{dataset}, an epoch", {name: row["seconds"] for name, row in rows.items()})], _OURS)


def _ratio(seconds: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(seconds, others, strict=True))


def _new_vae(model_config: ModelConfig) -> VAE:
    """A model as `Trainer` makes it: of the same seed, in a parameter store of its own."""
    pyro.clear_param_store()
    torch.manual_seed(TrainingConfig.seed)
    return VAE(model_config)


def _new_trainer(model_config: ModelConfig, precision: Precision = "fp32") -> Trainer:
    config = TrainingConfig(batch_size=_BATCH_SIZE, learning_rate=_LEARNING_RATE, precision=precision)
    return Trainer(model_config, config, torch.device("cpu"))


if __name__ == "__main__":
    main()
