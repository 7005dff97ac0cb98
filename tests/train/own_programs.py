"""Pyro programs as users train them, by `--program`: their data are the digits, `x` of shape `(batch, 1, 8, 8)`."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

DIM, Z, CLASSES = 64, 3, 10


def normal(parameters: Tensor) -> Any:
    loc, raw = parameters.chunk(2, dim=-1)
    return dist.Normal(loc, softplus(raw)).to_event(1)


def pixels(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)


class OneLatent(nn.Module):
    """A normal latent and an observed site."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 2 * Z))
        self.decoder: nn.Module = nn.Sequential(nn.Linear(Z, 16), nn.Tanh(), nn.Linear(16, DIM))
        self.make()

    def make(self) -> None:
        """Make further networks."""

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("pixels", pixels(self.decoder(z)), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x)))


class TwoLatents(OneLatent):
    def make(self) -> None:
        self.up, self.down = nn.Linear(Z, 4), nn.Linear(2, 2 * Z)

    def model(self, x: Tensor) -> None:
        pyro.module("all", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", normal(self.down(z2)))
            pyro.sample("pixels", pixels(self.decoder(z1)), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(self.encoder(x)))
            pyro.sample("z2", normal(self.up(z1)))


class SummedClass(OneLatent):
    """A class that the guide gives probabilities for, and that is summed over."""

    def make(self) -> None:
        self.classifier, self.shift = nn.Linear(DIM, 3), nn.Parameter(torch.randn(3, DIM))

    def model(self, x: Tensor) -> None:
        pyro.module("all", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("pixels", pixels(self.decoder(z) + self.shift[c]), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            probs = dist.Categorical(logits=self.classifier(x.flatten(1)))
            pyro.sample("c", probs, infer={"enumerate": "parallel"})
            pyro.sample("z", normal(self.encoder(x)))


class MixturePrior(OneLatent):
    """A component of the model alone, on which the latent depends; the program does not say to enumerate it."""

    def make(self) -> None:
        self.loc = nn.Parameter(torch.randn(4, Z))

    def model(self, x: Tensor) -> None:
        pyro.module("all", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(4) / 4))
            z = pyro.sample("z", dist.Normal(self.loc[c], 0.7).to_event(1))
            pyro.sample("pixels", pixels(self.decoder(z)), obs=x.flatten(1))


class HiddenShift(OneLatent):
    """A discrete site of the model alone on which the observed site depends."""

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("pixels", pixels(self.decoder(z) + c[..., None]), obs=x.flatten(1))


class Labelled(OneLatent):
    """The model sees the labels."""

    def make(self) -> None:
        self.shift = nn.Linear(CLASSES, DIM)

    def model(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]  # takes labels too
        pyro.module("all", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            logits = self.decoder(z) + self.shift(one_hot(y, CLASSES).float())
            pyro.sample("pixels", pixels(logits), obs=x.flatten(1))

    def guide(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]  # takes labels too
        super().guide(x)


class Layers(PyroModule):
    """Parameters that Pyro finds in the layers."""

    def __init__(self) -> None:
        super().__init__()
        linear: Any = PyroModule[nn.Linear]  # whose arguments Pyro's types do not know
        self.encoder, self.decoder = linear(DIM, 2 * Z), linear(Z, DIM)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("pixels", pixels(self.decoder(z)), obs=x.flatten(1))

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x.flatten(1))))


def plain_model(x: Tensor) -> None:
    weight = pyro.param("decoder.weight", lambda: 0.1 * torch.randn(Z, DIM))
    bias = pyro.param("decoder.bias", torch.zeros(DIM))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
        pyro.sample("pixels", pixels(z @ weight + bias), obs=x.flatten(1))


def plain_guide(x: Tensor) -> None:
    weight = pyro.param("encoder.weight", lambda: 0.1 * torch.randn(DIM, Z))
    scale = pyro.param("scale", torch.ones(Z), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.flatten(1) @ weight, scale).to_event(1))


plain_functions = (plain_model, plain_guide)


encoder, decoder = nn.Sequential(nn.Linear(DIM, 2 * Z), nn.Dropout(0.3)), nn.Linear(Z, DIM)


def model_of_networks(x: Tensor) -> None:
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
        pyro.sample("pixels", pixels(decoder(z)), obs=x.flatten(1))


def guide_of_networks(x: Tensor) -> None:
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(encoder(x.flatten(1))))


functions_of_networks = (model_of_networks, guide_of_networks)


# Programs that are refused, or fail


class Grey(OneLatent):
    """Observes grey values where only 0 and 1 are."""

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.flatten(1))


class Unregistered(OneLatent):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("pixels", pixels(self.decoder(z)), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x)))


class OtherArguments(OneLatent):
    def model(self, images: Tensor) -> None:
        super().model(images)


class MoreArguments(OneLatent):
    def model(self, x: Tensor, mask: Tensor) -> None:  # type: ignore[override]  # takes more
        super().model(x)


class Wide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class NotInONNX(OneLatent):
    def make(self) -> None:
        self.decoder = nn.Sequential(nn.Linear(Z, DIM), Wide())


class WrongShape(OneLatent):
    def make(self) -> None:
        self.decoder = nn.Linear(Z + 1, DIM)


class LateParameter(OneLatent):
    """Registers a parameter in training mode alone, which the first step is too late for."""

    def model(self, x: Tensor) -> None:
        super().model(x)
        if self.training:
            pyro.param("late", torch.zeros(()))
