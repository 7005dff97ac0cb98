"""Encoders of one's own, of layers that ours do not have: exported, also in integers, and verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevae import load
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, AbstractDecoder, AbstractEncoder, Dataset, ModelConfig


class Twice(AbstractEncoder):
    """A layer that is used twice."""

    def make_features(self) -> None:
        self.first = nn.Linear(self.data_dim, self.hidden_dim)
        self.again = nn.Linear(self.hidden_dim, self.hidden_dim)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.first(x))))))


class Halves(AbstractEncoder):
    """Both halves of an image through the same layer."""

    def make_features(self) -> None:
        self.side = nn.Linear(self.data_dim // 2, self.hidden_dim)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return torch.tanh(self.side(left)) - torch.tanh(self.side(right))


class Factor(AbstractEncoder):
    """A product with a factor."""

    def make_features(self) -> None:
        self.first = nn.Linear(self.data_dim, self.hidden_dim)
        self.w = nn.Parameter(torch.randn(self.hidden_dim, self.hidden_dim) / 8)
        self.w_scale = nn.Parameter(torch.randn(self.hidden_dim))

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return torch.tanh(torch.addmm(self.w_scale, torch.tanh(self.first(x)), self.w, alpha=0.5))


class Attention(AbstractEncoder):
    """A transformer's layer over the lines of an image."""

    def make_features(self) -> None:
        self.line = nn.Linear(8, self.hidden_dim)
        self.layer = nn.TransformerEncoderLayer(self.hidden_dim, 4, 64, dropout=0.0, batch_first=True)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        lines: Tensor = self.layer(self.line(x.unflatten(1, (8, 8))))
        return lines.mean(dim=1)


class Outputs(AbstractDecoder):
    """Two layers."""

    def make_outputs(self, num_outputs: int) -> None:
        self.hidden = nn.Linear(self.code_dim, self.hidden_dim)
        self.last = nn.Linear(self.hidden_dim, num_outputs * self.data_dim)

    def outputs(self, code: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.hidden(code)))
        return found


@pytest.mark.parametrize("encoder", [Twice, Halves, Factor, Attention])
def test_an_encoder_of_ones_own_is_exported_in_float32_and_integers(
    encoder: type[AbstractEncoder], digits: Dataset, tmp_path: Path
) -> None:
    architecture = f"{__name__}:{encoder.__name__},Outputs"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        vae = VAE(ModelConfig((1, 8, 8), 5, 32, architecture=architecture)).eval()
    source = Source("own", vae, digits.test, "test images of digits", None, train_samples=digits.train)
    export_bundle(source, tmp_path / "own", precisions={"int8": 0.5})
    exact, reduced = (load(tmp_path / "own", provider="cpu", precision=name) for name in ("fp32", "int8"))
    assert exact.verify().passed
    assert reduced.verify().passed
    x = digits.test[:100].numpy()
    found, expected = reduced.encode(x).z_loc, exact.encode(x).z_loc
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
