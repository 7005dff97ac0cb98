"""The functions that a bundle holds, as modules, and their traced programs.

The export makes graphs of them. A training traces them before its first step: it says at once, not after the last
epoch, that a model cannot be exported.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgevae import GraphName, ModelSpec, Signature, TensorSpec, signatures, tensor

from .conversion import DEFAULT_OPSET, convert
from .elbo import draw_prior, evaluating, guide_trace, latent_terms
from .errors import ConfigError, TraceError
from .latents import COMPONENT_PROBS_SITE, Latent, site_names
from .program.draws import LiftedDraws
from .program.program import parameters_of, unwrapped
from .tracing import trace

if TYPE_CHECKING:
    from .vae import VAE

TRACE_BATCH = 3
"""Batch size while tracing: at least 2, because a batch of 1 is taken for a constant."""


class Graph(nn.Module, abc.ABC):
    """A function of a VAE whose arguments and results have names.

    Args:
        vae: The model; the function keeps what it needs of it, so that no graph holds another one's weights.
        inputs: Names of the arguments of `forward`, in order.
    """

    def __init__(self, vae: VAE, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self._inputs = inputs
        self.keep(vae)

    def forward(self, *arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the results; a single one as it is."""
        results = self.compute(dict(zip(self._inputs, arguments, strict=True)))
        return results if len(results) > 1 else results[0]

    @abc.abstractmethod
    def keep(self, vae: VAE) -> None:
        """Keep what is needed of the model."""

    @abc.abstractmethod
    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the results for arguments by name."""


class EncoderGraph(Graph):
    """x → q(z|x), all levels of it."""

    def keep(self, vae: VAE) -> None:
        """Keep encoder and latent."""
        self.encoder, self.latent = vae.encoder, vae.latent
        self._sizes = vae.config.z_dims

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `z_loc`, `z_scale`, and what else the guide says."""
        z_loc, z_scale = self.encoder(given["x"], given.get("y"))
        if len(self._sizes) == 1 and not self.latent.enumerated:
            return z_loc, z_scale
        unused = z_loc.new_zeros((z_loc.shape[0], self._sizes[-1]))  # the highest level's noise, which nothing needs
        return z_loc, z_scale, *rest_of_guide(self.latent, z_loc, z_scale, [*_noise(given), unused])


class DecoderGraph(Graph):
    """z → the likelihood's parameters."""

    def keep(self, vae: VAE) -> None:
        """Keep the decoder."""
        self.decoder, self._observed = vae.decoder, Observed(vae)

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `loc_img`, and the other parameters behind it."""
        with pyro.validation_enabled(False):
            outputs = self.decoder.outputs_at(given["z"], given.get("y"))
            return tuple(self._observed.parameters(self.decoder.likelihood.distribution(outputs)).values())


class ReconstructGraph(Graph):
    """Encoder, reparameterization and decoder in one graph: x, eps → loc_img."""

    def keep(self, vae: VAE) -> None:
        """Keep encoder and decoder."""
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Decode z = z_loc + z_scale * eps."""
        y = given.get("y")
        z_loc, z_scale = self.encoder(given["x"], y)
        with pyro.validation_enabled(False):
            return (self.decoder(z_loc + z_scale * given["eps"], y),)


class ElboGraph(Graph):
    """The terms of the ELBO, from what encoder and decoder gave; without their weights, the graph is small."""

    def keep(self, vae: VAE) -> None:
        """Keep the latent, and what is observed."""
        self.latent, self._observed = vae.latent, Observed(vae)

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return log p(x|z), log p(z) and log q(z|x) in nats, shape `(batch,)` each."""
        z, z_loc, z_scale = given["z"], given["z_loc"], given["z_scale"]
        with pyro.validation_enabled(False):
            log_px_z = self._observed.distribution(given).log_prob(given["x"]).sum(-1)
            terms = latent_terms(self.latent, z_loc, z_scale, [torch.zeros_like(z), *_noise(given)], z)
        return log_px_z, terms.log_pz, terms.log_qz_x


class ObservationGraph(Graph):
    """The likelihood's parameters, eps_obs → a draw of p(x|z)."""

    def keep(self, vae: VAE) -> None:
        """Keep what is observed."""
        self._observed = Observed(vae)

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `obs`, in the units of the data."""
        with pyro.validation_enabled(False):
            return (self._observed.draw(self._observed.distribution(given), given["eps_obs"]),)


class PriorGraph(Graph):
    """Noise of each level, and a mixture's component → z of the prior."""

    def keep(self, vae: VAE) -> None:
        """Keep the latent."""
        self.latent = vae.latent

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `z_prior`, and of a mixture p(c) in each row."""
        with pyro.validation_enabled(False):
            z_prior = draw_prior(self.latent, _noise(given), given.get("component"))
        probs = self.latent.component_probs
        return (z_prior, probs.expand(z_prior.shape[0], -1)) if self.latent.enumerated else (z_prior,)


def rest_of_guide(latent: Latent, z_loc: Tensor, z_scale: Tensor, eps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what q(z|x) has beside `z_loc` and `z_scale`: those of the levels above, or a mixture's components.

    Args:
        latent: The latent.
        z_loc: Means, shape `(batch, z_dim)`.
        z_scale: Standard deviations, of the same shape.
        eps: Noise of each level, that of z first.
    """
    with pyro.validation_enabled(False):
        nodes = guide_trace(latent, z_loc, z_scale, eps).nodes
    if latent.enumerated:
        return (nodes[COMPONENT_PROBS_SITE]["value"],)
    above = [nodes[name]["fn"].base_dist for name in site_names(len(eps))[1:]]
    return tuple(part for normal in above for part in (normal.loc, normal.scale))


class Observed:
    """How p(x|z) is made of the tensors that a decoder returns, and drawn from noise.

    Args:
        vae: The model.

    Attributes:
        names: Names of these tensors, `loc_img` first: the mean, which may be a parameter too.
        has_draws: Whether a draw takes as much noise as an observation has values. Counts are among those that do not.
    """

    def __init__(self, vae: VAE) -> None:
        with torch.no_grad(), pyro.validation_enabled(False), torch.random.fork_rng([]), evaluating(vae):
            outputs = torch.zeros(1, vae.decoder.likelihood.num_outputs * vae.config.data_dim)
            distribution = vae.decoder.likelihood.distribution(outputs)
            found = _made_of(distribution)
            with LiftedDraws() as draws:
                drawn = distribution.sample()
            self._class = type(unwrapped(distribution))
            self._tensor_of = {name: "loc_img" if value is distribution.mean else name for name, value in found.items()}
        self.names = ("loc_img", *(name for name in self._tensor_of.values() if name != "loc_img"))
        kinds = [each.kind for each in draws.drawn if each.noise.shape == drawn.shape]
        self.has_draws = len(draws.drawn) == len(kinds) == 1 and not draws.outside
        self._uniform = kinds == ["uniform"]

    def parameters(self, distribution: TorchDistribution) -> dict[str, Tensor]:
        """Return what a decoder returns, by name: the mean, and the parameters that differ from it."""
        found = _made_of(distribution)
        mean = next((found[name] for name, tensor in self._tensor_of.items() if tensor == "loc_img"), None)
        return {
            "loc_img": distribution.mean if mean is None else mean,
            **{name: found[name] for name in self.names[1:]},
        }

    def distribution(self, given: Mapping[str, Tensor]) -> TorchDistribution:
        """Return p(x|z), made of what a decoder returned."""
        made: TorchDistribution = self._class(**{name: given[tensor] for name, tensor in self._tensor_of.items()})
        return made

    def draw(self, distribution: TorchDistribution, eps: Tensor) -> Tensor:
        """Return a draw in the units of the data, for standard normal noise, shape `(batch, data_dim)` each."""
        with LiftedDraws({"": [uniform_of(eps) if self._uniform else eps]}):
            drawn: Tensor = distribution.sample()
        return drawn


def _made_of(distribution: TorchDistribution) -> dict[str, Tensor]:
    """Return the parameters that a distribution can be made of again."""
    found = parameters_of(distribution)
    if "logits" in found:
        found.pop("probs", None)
    return found


def uniform_of(eps: Tensor) -> Tensor:
    """Return uniform noise inside of (0, 1) for standard normal noise: Φ(eps)."""
    uniform = 0.5 * (1 + torch.erf(eps * math.sqrt(0.5)))
    margin = torch.finfo(eps.dtype).eps / 2
    return uniform.clamp(margin, 1 - margin)  # at 0 and 1, to which rounding may lead, the inverse is infinite


_GRAPHS: dict[GraphName, type[Graph]] = {
    "encoder": EncoderGraph,
    "decoder": DecoderGraph,
    "reconstruct": ReconstructGraph,
    "elbo": ElboGraph,
    "observation": ObservationGraph,
    "prior": PriorGraph,
}


_RESERVED = {"x", "y", "z", "obs", "component", "component_probs", "prior_probs", "log_px_z", "log_pz", "log_qz_x"}


@dataclasses.dataclass(frozen=True)
class Program:
    """One function of a bundle: the module, and what goes in and out of it.

    Args:
        module: Computes the outputs from the inputs, in order; in evaluation mode, on the CPU.
        signature: Names and shapes of its arguments and of what it returns.
    """

    module: nn.Module
    signature: Signature

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs to trace with."""
        generator = torch.Generator().manual_seed(0)
        return tuple(_example(spec, generator) for spec in self.signature.inputs)

    def trace(self) -> ExportedProgram:
        """Return the module as an `ExportedProgram` with a dynamic batch axis.

        Raises:
            TraceError: See `trace`.
        """
        return trace(self.module, self.example(), [0] * len(self.signature.inputs))


def make_programs(vae: VAE) -> dict[GraphName, Program]:
    """Return the functions of a bundle, by name.

    Raises:
        ConfigError: A parameter of the likelihood has the name of something else.
    """
    config = vae.config
    observed = Observed(vae)
    names = observed.names
    if (taken := _RESERVED.intersection(names)) or any(name.startswith(("eps", "z_")) for name in names):
        raise ConfigError(
            f"a likelihood's parameters must not be called {', '.join(sorted(taken)) or 'eps... or z_...'}, as other "
            f"inputs and outputs of graphs are; got {', '.join(names)}"
        )
    with torch.no_grad(), pyro.validation_enabled(False):
        outputs = torch.zeros(1, vae.decoder.likelihood.num_outputs * config.data_dim)
        examples = observed.parameters(vae.decoder.likelihood.distribution(outputs))
    parameters = [tensor(name, *example.shape[1:]) for name, example in examples.items()]
    return {
        name: Program(_GRAPHS[name](vae, tuple(spec.name for spec in signature.inputs)).eval(), signature)
        for name, signature in signatures(model_spec(vae), parameters).items()
    }


def check_exportable(vae: VAE) -> None:
    """Check that networks, a likelihood or a latent of a user's own can be exported; ours can.

    All functions are traced. Where the export's packages are installed, the networks are written in ONNX too, which
    shows operators that ONNX does not have.

    Args:
        vae: The model, on any device; left as it is.

    Raises:
        ConfigError: A parameter of the likelihood has the name of something else.
        TraceError: A function cannot be exported; the message names the line of the user's program.
    """
    parts = (vae.encoder, vae.decoder, vae.decoder.likelihood, vae.latent)
    if all(type(part).__module__.startswith(f"{__package__}.") for part in parts):
        return
    programs = make_programs(copy.deepcopy(vae).cpu().eval())
    try:
        traced = {name: program.trace() for name, program in programs.items()}
        if importlib.util.find_spec("onnxscript") is not None:
            convert(traced["reconstruct"], DEFAULT_OPSET)
    except TraceError as error:
        raise TraceError(
            f"the model could be trained, but not exported: {error}. To train it all the same, give --no-export-check"
        ) from error


def model_spec(vae: VAE) -> ModelSpec:
    """Return what a manifest says of the model."""
    config = vae.config
    return ModelSpec(
        architecture=config.architecture_name,
        likelihood=config.likelihood,
        latent=config.latent,  # type: ignore[arg-type]  # the manifest's schema knows which there are
        data_shape=config.data_shape,
        z_dims=config.z_dims,
        hidden_dim=config.hidden_dim,
        num_classes=config.num_classes,
        num_components=len(vae.latent.component_probs),
        unit_interval=vae.decoder.likelihood.unit_interval,
        has_draws=Observed(vae).has_draws,
    )


def _noise(given: dict[str, Tensor]) -> list[Tensor]:
    """The noise of the levels, the lowest first."""
    return [value for name, value in given.items() if name.startswith("eps")]


def _example(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    shape = (TRACE_BATCH, *spec.row_shape)
    return torch.zeros(shape, dtype=torch.int64) if spec.dtype == "int64" else torch.rand(shape, generator=generator)
