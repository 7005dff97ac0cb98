"""Your own networks, from training to a bundle: `python examples/own_networks.py`.

The VAE of Burda, Grosse & Salakhutdinov, "Importance Weighted Autoencoders", 2016, section 5: one stochastic layer of
50 units, two deterministic layers of 200 tanh units on each side, weights initialised as by Glorot & Bengio, 2010, and
pixels drawn as 0 or 1 in each epoch. Unlike the paper, the learning rate is constant.

The commands do the same, in this folder:

    python -m train --dataset mnist --architecture own_networks:TanhEncoder,TanhDecoder --hidden-dim 200 \
        --binarize stochastic --batch-size 100 --out runs/own
    python -m export runs/own
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch  # noqa: TID251 - this example trains
from torch import Tensor, nn  # noqa: TID251 - likewise

import edgevae
from edgevae.export import Source, export_bundle
from edgevae.train import (
    DATASET_NAMES,
    AbstractDecoder,
    AbstractEncoder,
    DatasetName,
    TrainingConfig,
    fit,
    load_dataset,
    model_for,
)


def glorot(module: nn.Module) -> None:
    """Draw a linear layer's weights from U(-a, a) with a = sqrt(6 / (inputs + outputs))."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class TanhEncoder(AbstractEncoder):
    """Two layers of tanh units; the heads for z_loc and z_scale are the base's."""

    def __init__(self, *sizes: Any, **choices: Any) -> None:
        super().__init__(*sizes, **choices)
        self.apply(glorot)

    def make_features(self) -> None:
        """Make the layers."""
        self.layers = nn.Sequential(
            nn.Linear(self.data_dim + self.num_classes, self.hidden_dim),
            nn.Tanh(),
            nn.Linear(self.hidden_dim, self.hidden_dim),
            nn.Tanh(),
        )

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return the second layer, shape `(batch, hidden_dim)`."""
        features: Tensor = self.layers(x if labels is None else torch.cat([x, labels], dim=1))
        return features


class TanhDecoder(AbstractDecoder):
    """Two layers of tanh units, and one for the likelihood."""

    def __init__(self, *sizes: Any, **choices: Any) -> None:
        super().__init__(*sizes, **choices)
        self.apply(glorot)

    def make_outputs(self, num_outputs: int) -> None:
        """Make the layers."""
        self.layers = nn.Sequential(
            nn.Linear(self.code_dim, self.hidden_dim),
            nn.Tanh(),
            nn.Linear(self.hidden_dim, self.hidden_dim),
            nn.Tanh(),
            nn.Linear(self.hidden_dim, num_outputs * self.data_dim),
        )

    def outputs(self, code: Tensor) -> Tensor:
        """Return the last layer, shape `(batch, num_outputs * data_dim)`."""
        outputs: Tensor = self.layers(code)
        return outputs


@click.command(context_settings={"show_default": True})
@click.option("--dataset", "name", type=click.Choice(DATASET_NAMES), default="digits", help="What to train on.")
@click.option("--epochs", type=click.IntRange(min=1), default=20, help="Passes over the training images.")
@click.option("--out", type=click.Path(path_type=Path), default="own-networks", help="Folder for run and bundle.")
def main(name: DatasetName, epochs: int, out: Path) -> None:
    """Train the networks above, export them, and run them without PyTorch."""
    dataset, training = load_dataset(name), TrainingConfig(epochs=epochs, batch_size=100, binarize="stochastic")
    # A run imports its networks by this name. For classes that your program imports from a module,
    # architecture_of(TanhEncoder, TanhDecoder) returns it.
    architecture = "own_networks:TanhEncoder,TanhDecoder"
    config = model_for(dataset, training, architecture=architecture, hidden_dim=200)
    run = fit(dataset, out / "run", config, training, overwrite=True, report=False)
    print(f"trained {architecture}: test ELBO {run.test_elbo[0]:.2f} nats an image")

    source = Source("own-networks", run.vae, run.samples, f"test images of {name}", dataset=None)
    (report,) = export_bundle(source, out / "bundle", overwrite=True)
    print(report)

    with edgevae.load(out / "bundle") as model:  # needs neither this file nor PyTorch
        x = run.samples[:64].numpy()
        restored = model.reconstruct(x, seed=0).reshape(x.shape)
        elbo = model.elbo(x, seed=0).mean()
        print(f"{len(x)} images: ELBO {elbo:.2f} nats, mean error {abs(restored - x).mean():.3f}")


if __name__ == "__main__":
    main()
