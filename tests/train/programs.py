"""Small Pyro programs, one for each thing that a program can do; the table `PROGRAMS` names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn

DIM, Z = 6, 3
ROWS = 4


@dataclasses.dataclass(frozen=True)
class Example:
    """A program and its arguments.

    Args:
        model: The model.
        guide: The guide.
        arguments: Arrays by name.
        enumerated: Whether Pyro fits it with `TraceEnum_ELBO`.
        static: Arguments without a batch axis.
        scale: How many rows its plate lets each row stand for.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    arguments: Mapping[str, Tensor]
    enumerated: bool = False
    static: tuple[str, ...] = ()
    scale: float = 1.0


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand((ROWS, *shape), generator=torch.Generator().manual_seed(seed))


def counts() -> Tensor:
    return (rows(DIM) * 6).floor()


def one_hot(classes: int) -> Tensor:
    return torch.eye(classes)[torch.arange(ROWS) % classes]


def pairs(inputs: int, outputs: int) -> nn.Module:
    """A network whose outputs come in pairs."""
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 2 * outputs))


def normal(network: nn.Module, x: Tensor) -> dist.TorchDistribution:
    loc, raw = network(x).chunk(2, dim=-1)
    return dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)


class Plain(nn.Module):
    """One latent, one observed site; subclasses change a part of it."""

    @staticmethod
    def data() -> Tensor:
        return rows(DIM).round()

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module = pairs(DIM, Z)
        self.decoder: nn.Module = nn.Linear(Z, DIM)
        self.make()

    def make(self) -> None:
        """Make further networks."""

    def prior(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x.new_zeros(Z), 1.0).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        return normal(self.encoder, x)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))

    @classmethod
    def example(cls) -> Example:
        program = cls()
        return Example(program.model, program.guide, {"x": cls.data()})


def of_latent(name: str, posterior: Callable[[Tensor, Tensor], Any], prior: Callable[[], Any]) -> type[Plain]:
    """A program whose latent has another distribution: of two positive parameters, shape `(batch, Z)` each."""

    class Other(Plain):
        def prior(self, x: Tensor) -> Any:
            return prior()

        def posterior(self, x: Tensor) -> Any:
            first, second = nn.functional.softplus(self.encoder(x)).chunk(2, dim=-1)
            return posterior(0.2 + first, 0.2 + second)

        def likelihood(self, z: Tensor) -> Any:
            return dist.Bernoulli(logits=self.decoder(z.tanh())).to_event(1)

    Other.__name__ = Other.__qualname__ = name
    return Other


def of_observation(name: str, likelihood: Callable[[Tensor, Tensor], Any], data: Callable[[], Tensor]) -> type[Plain]:
    """A program whose observed site has another distribution: of two tensors of shape `(batch, DIM)`."""

    class Other(Plain):
        def make(self) -> None:
            self.decoder = pairs(Z, DIM)

        def likelihood(self, z: Tensor) -> Any:
            return likelihood(*self.decoder(z).chunk(2, dim=-1))

    Other.data = staticmethod(data)  # type: ignore[method-assign]  # the data of this distribution
    Other.__name__ = Other.__qualname__ = name
    return Other


def positive(raw: Tensor) -> Tensor:
    return nn.functional.softplus(raw) + 0.1


class TwoLevels(Plain):
    """A guide site that hangs on another's draw; a prior with a network; a site that is computed."""

    def make(self) -> None:
        self.up, self.down = pairs(Z, 2), pairs(2, Z)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", normal(self.down, z2))
            pyro.deterministic("energy", z1.square().sum(-1))
            pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(self.encoder, x))
            pyro.sample("z2", normal(self.up, z1))


class ScaledAndMasked(Plain):
    """Factors, scales, masks, and a plate that stands for more rows than it has."""

    def model(self, x: Tensor, seen: Tensor) -> None:  # type: ignore[override]  # has another argument
        with pyro.plate("data", 1000, subsample=x), poutine.scale(scale=0.25):
            z = pyro.sample("z", self.prior(x))
            pyro.factor("pull", -0.1 * z.square().sum(-1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).mask(seen.bool()).to_event(1), obs=x)

    def guide(self, x: Tensor, seen: Tensor) -> None:  # type: ignore[override]  # has another argument
        with pyro.plate("data", 1000, subsample=x), poutine.scale(scale=0.5):
            z = pyro.sample("z", self.posterior(x))
            pyro.factor("push", 0.05 * z.sum(-1), has_rsample=False)

    @classmethod
    def example(cls) -> Example:
        program = cls()
        return Example(
            program.model, program.guide, {"x": rows(DIM).round(), "seen": rows(DIM, seed=2).round()}, scale=250.0
        )


class TwoMixtures(Plain):
    """Two discrete sites of the model alone; the observed site depends on one of them."""

    def make(self) -> None:
        self.loc, self.shift = nn.Parameter(torch.randn(4, Z)), nn.Parameter(torch.randn(2, DIM))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.4])))
            z = pyro.sample("z", dist.Normal(self.loc[c], 0.7).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.3)))
            logits = self.decoder(z) + self.shift[b.long()]
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    @classmethod
    def example(cls) -> Example:
        program = cls()
        return Example(config_enumerate(program.model), program.guide, {"x": cls.data()}, enumerated=True)


class Labels(Plain):
    """A class that is a latent where it is not given: a sum over the guide's values, or a draw."""

    classes = 3

    def make(self) -> None:
        self.classifier, self.encoder = nn.Linear(DIM, self.classes), pairs(DIM + self.classes, Z)
        self.decoder = nn.Linear(Z + self.classes, DIM)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), self.classes) / self.classes), obs=y)
            z, y = torch.broadcast_tensors(nn.functional.pad(z, (0, self.classes)), nn.functional.pad(y, (Z, 0)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z + y)).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            x = x.expand(*y.shape[:-1], DIM)
            pyro.sample("z", normal(self.encoder, torch.cat([x, y], dim=-1)))

    @classmethod
    def drawn(cls) -> Example:
        program = cls()
        return Example(program.model, program.guide, {"x": cls.data()})

    @classmethod
    def summed(cls) -> Example:
        program = cls()
        guide = config_enumerate(program.guide, "parallel", expand=True)
        return Example(program.model, guide, {"x": cls.data()}, enumerated=True)

    @classmethod
    def given(cls) -> Example:
        program = cls()
        return Example(program.model, program.guide, {"x": cls.data(), "y": one_hot(cls.classes)})


class Steps(Plain):
    """A sequence: a recurrent network, a latent for each step, missing steps."""

    def make(self) -> None:
        self.rnn, self.encoder = nn.GRU(2, 5, batch_first=True), pairs(5 + Z, Z)
        self.transition, self.decoder = pairs(Z, Z), nn.Linear(Z, 2)

    def model(self, x: Tensor, seen: Tensor) -> None:  # type: ignore[override]  # has another argument
        z = x.new_zeros(x.size(0), Z)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.size(1))):
                z = pyro.sample(f"z_{t}", normal(self.transition, z).mask(seen[:, t] > 0))
                pyro.sample(f"x_{t}", dist.Normal(self.decoder(z), 0.3).to_event(1).mask(seen[:, t] > 0), obs=x[:, t])

    def guide(self, x: Tensor, seen: Tensor) -> None:  # type: ignore[override]  # has another argument
        hidden, _ = self.rnn(x.flip(1))
        z = x.new_zeros(x.size(0), Z)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.size(1))):
                features = torch.cat([hidden[:, -1 - t], z], dim=-1)
                z = pyro.sample(f"z_{t}", normal(self.encoder, features).mask(seen[:, t] > 0))

    @classmethod
    def example(cls) -> Example:
        program = cls()
        seen = torch.ones(ROWS, 3)
        seen[1, 2:] = 0
        return Example(program.model, program.guide, {"x": rows(3, 2), "seen": seen})


class Flow(Plain):
    """An inverse autoregressive flow that is used twice, and a coupling layer, in the guide."""

    def make(self) -> None:
        self.iaf = transforms.affine_autoregressive(Z, hidden_dims=[8])
        self.coupling = transforms.affine_coupling(Z, hidden_dims=[8])

    def posterior(self, x: Tensor) -> Any:
        loc, raw = self.encoder(x).chunk(2, dim=-1)
        return dist.TransformedDistribution(dist.Normal(loc, positive(raw)), [self.iaf, self.coupling])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z, w = (pyro.sample(name, self.prior(x)) for name in ("z", "w"))
            pyro.sample("x", self.likelihood(z + w), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))
            pyro.sample("w", self.posterior(-x))


class OwnModule(PyroModule):
    """A PyroModule with a parameter that has a constraint."""

    def __init__(self) -> None:
        super().__init__()
        linear: Any = PyroModule[nn.Linear]
        self.encoder, self.decoder = linear(DIM, Z), linear(Z, DIM)
        self.scale: Any = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def own_module() -> Example:
    program = OwnModule()
    return Example(program.model, program.guide, {"x": rows(DIM)})


def functions() -> Example:
    """Plain functions with parameters in Pyro's store, and an argument without a batch axis."""

    def model(x: Tensor, weights: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(DIM), constraint=constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, scale).to_event(1), obs=x)

    def guide(x: Tensor, weights: Tensor) -> None:
        width = pyro.param("width", torch.tensor(0.3), constraint=constraints.interval(0.1, 0.9))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x @ weights.T, width).to_event(1))

    torch.manual_seed(0)
    return Example(model, guide, {"x": rows(DIM), "weights": torch.randn(Z, DIM)}, static=("weights",))


class Branches(Plain):
    """Python that looks at values: a branch, and numbers taken out of tensors."""

    def likelihood(self, z: Tensor) -> Any:
        sharpness = torch.tensor([1.0, 2.0]).sum().item()
        if torch.sum(z) == 0:  # never, but only the data say so
            z = z + 1
        return dist.Bernoulli(logits=sharpness * self.decoder(z)).to_event(1)


class Filled(Plain):
    """Entries that are missing, filled in from another tensor by a mask."""

    def make(self) -> None:
        self.guess = nn.Linear(DIM, DIM)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        filled = x.clone()
        filled[x == 0] = self.guess(x)[x == 0]
        return normal(self.encoder, filled)


class CategoricalObserved(Plain):
    """Observed integers."""

    @staticmethod
    def data() -> Tensor:
        return (rows(DIM) * 4).long()

    def make(self) -> None:
        self.decoder = nn.Linear(Z, 4 * DIM)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        return normal(self.encoder, x.float())

    def prior(self, x: Tensor) -> dist.TorchDistribution:
        return super().prior(x.float())

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.decoder(z).unflatten(-1, (DIM, 4))).to_event(1)


class Auxiliary(Plain):
    """A latent that the guide alone has, and a plate over something else within a row."""

    def make(self) -> None:
        self.from_u, self.encoder = nn.Linear(2, Z), pairs(DIM, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0], dim=-2), pyro.plate("pixels", DIM, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=2 * z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0], dim=-2):
            u = pyro.sample("u", normal(self.encoder, x[:, None]), infer={"is_auxiliary": True})
            with pyro.plate("pixels", DIM, dim=-1):
                pyro.sample("z", dist.Normal(self.from_u(u).repeat(1, 1, DIM // Z).squeeze(1), 0.5))


PROGRAMS: dict[str, Callable[[], Example]] = {
    "a latent and an observed site": Plain.example,
    "a latent that hangs on another's draw": TwoLevels.example,
    "scales, masks, factors, a plate of more rows": ScaledAndMasked.example,
    "discrete sites of the model alone": TwoMixtures.example,
    "a discrete latent that is summed over": Labels.summed,
    "a discrete latent that is drawn": Labels.drawn,
    "a class that is given": Labels.given,
    "a sequence": Steps.example,
    "flows in the guide": Flow.example,
    "a PyroModule": own_module,
    "functions and Pyro's parameter store": functions,
    "branches on the data": Branches.example,
    "missing entries, filled in by a mask": Filled.example,
    "plates within a row, and a latent of the guide alone": Auxiliary.example,
    "LogNormal latent": of_latent(
        "LogNormalLatent",
        lambda a, b: dist.LogNormal(a, b).to_event(1),
        lambda: dist.LogNormal(torch.zeros(Z), 1.0).to_event(1),
    ).example,
    "Laplace latent": of_latent(
        "LaplaceLatent",
        lambda a, b: dist.Laplace(a, b).to_event(1),
        lambda: dist.Laplace(torch.zeros(Z), 1.0).to_event(1),
    ).example,
    "Gumbel latent": of_latent(
        "GumbelLatent", lambda a, b: dist.Gumbel(a, b).to_event(1), lambda: dist.Gumbel(torch.zeros(Z), 1.0).to_event(1)
    ).example,
    "Uniform latent": of_latent(
        "UniformLatent",
        lambda a, b: dist.Uniform(a, a + b).to_event(1),
        lambda: dist.Uniform(torch.zeros(Z), 9.0).to_event(1),
    ).example,
    "Exponential latent": of_latent(
        "ExponentialLatent",
        lambda a, b: dist.Exponential(a * b).to_event(1),
        lambda: dist.Exponential(torch.ones(Z)).to_event(1),
    ).example,
    "MultivariateNormal latent": of_latent(
        "MultivariateNormalLatent",
        lambda a, b: dist.MultivariateNormal(a, torch.diag_embed(b) + 0.1 * torch.ones(Z, Z)),
        lambda: dist.MultivariateNormal(torch.zeros(Z), torch.eye(Z)),
    ).example,
    "LowRankMultivariateNormal latent": of_latent(
        "LowRankLatent",
        lambda a, b: dist.LowRankMultivariateNormal(a, b[..., None], a),
        lambda: dist.MultivariateNormal(torch.zeros(Z), torch.eye(Z)),
    ).example,
    "Gamma latent": of_latent(
        "GammaLatent", lambda a, b: dist.Gamma(a, b).to_event(1), lambda: dist.Gamma(torch.ones(Z), 1.0).to_event(1)
    ).example,
    "Dirichlet latent": of_latent(
        "DirichletLatent", lambda a, b: dist.Dirichlet(a + b), lambda: dist.Dirichlet(torch.ones(Z))
    ).example,
    "Normal observed": of_observation(
        "NormalObserved", lambda a, b: dist.Normal(a, positive(b)).to_event(1), lambda: rows(DIM)
    ).example,
    "StudentT observed": of_observation(
        "StudentObserved", lambda a, b: dist.StudentT(4.0, a, positive(b)).to_event(1), lambda: rows(DIM)
    ).example,
    "Poisson observed": of_observation(
        "PoissonObserved", lambda a, _b: dist.Poisson(positive(a)).to_event(1), counts
    ).example,
    "Binomial observed": of_observation(
        "BinomialObserved", lambda a, _b: dist.Binomial(8, logits=a).to_event(1), counts
    ).example,
    "NegativeBinomial observed": of_observation(
        "NegativeBinomialObserved", lambda a, b: dist.NegativeBinomial(positive(a), logits=b).to_event(1), counts
    ).example,
    "ZeroInflatedPoisson observed": of_observation(
        "ZeroInflatedPoissonObserved",
        lambda a, b: dist.ZeroInflatedPoisson(positive(a), gate_logits=b).to_event(1),
        counts,
    ).example,
    "ZeroInflatedNegativeBinomial observed": of_observation(
        "ZeroInflatedNegativeBinomialObserved",
        lambda a, b: dist.ZeroInflatedNegativeBinomial(positive(a), logits=b, gate_logits=a - b).to_event(1),
        counts,
    ).example,
    "Multinomial observed": of_observation(
        "MultinomialObserved", lambda a, _b: dist.Multinomial(9, logits=a, validate_args=False), counts
    ).example,
    "Categorical observed": CategoricalObserved.example,
    "Beta observed": of_observation(
        "BetaObserved", lambda a, b: dist.Beta(positive(a), positive(b)).to_event(1), lambda: 0.05 + 0.9 * rows(DIM)
    ).example,
    "Gamma observed": of_observation(
        "GammaObserved", lambda a, b: dist.Gamma(positive(a), positive(b)).to_event(1), lambda: 0.05 + rows(DIM)
    ).example,
    "Dirichlet observed": of_observation(
        "DirichletObserved", lambda a, _b: dist.Dirichlet(positive(a)), lambda: rows(DIM).softmax(-1)
    ).example,
}
