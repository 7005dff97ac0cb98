"""The functions that a bundle holds, as modules, and their traced programs.

The export makes graphs of them. A training traces them before its first step: it says at once, not after the last
epoch, that a model cannot be exported.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgevae import GraphName, ModelSpec, Signature, TensorSpec, signatures, tensor

from .conversion import DEFAULT_OPSET, convert
from .errors import ConfigError, TraceError
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

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `z_loc`, `z_scale`, and what else the latent's posterior has."""
        z_loc, z_scale = self.encoder(given["x"], given.get("y"))
        return z_loc, z_scale, *self.latent.posterior(z_loc, z_scale, *_noise(given))


class DecoderGraph(Graph):
    """z → the likelihood's parameters."""

    def keep(self, vae: VAE) -> None:
        """Keep the decoder."""
        self.decoder = vae.decoder

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `loc_img`, and the other parameters behind it."""
        return self.decoder.parameters_at(given["z"], given.get("y"))


class ReconstructGraph(Graph):
    """Encoder, reparameterization and decoder in one graph: x, eps → loc_img."""

    def keep(self, vae: VAE) -> None:
        """Keep encoder and decoder."""
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Decode z = z_loc + z_scale * eps."""
        y = given.get("y")
        z_loc, z_scale = self.encoder(given["x"], y)
        return (self.decoder(z_loc + z_scale * given["eps"], y),)


class ElboGraph(Graph):
    """The terms of the ELBO, from what encoder and decoder gave; without their weights, the graph is small."""

    def keep(self, vae: VAE) -> None:
        """Keep likelihood and latent."""
        self.likelihood, self.latent = vae.decoder.likelihood, vae.latent

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return log p(x|z), log p(z) and log q(z|x) in nats, shape `(batch,)` each."""
        parameters = tuple(given[name] for name in self.likelihood.parameter_names)
        log_prob = self.likelihood.distribution(parameters).log_prob(self.likelihood.observed(given["x"]))
        levels = (given["z"], given["z_loc"], given["z_scale"])
        return log_prob.sum(-1), *self.latent.log_densities(*levels, *_noise(given))


class ObservationGraph(Graph):
    """The likelihood's parameters, eps_obs → a draw of p(x|z)."""

    def keep(self, vae: VAE) -> None:
        """Keep the likelihood."""
        self.likelihood = vae.decoder.likelihood

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `obs`, in the units of the data."""
        parameters = tuple(given[name] for name in self.likelihood.parameter_names)
        return (self.likelihood.draw(parameters, given["eps_obs"]),)


class PriorGraph(Graph):
    """Noise of each level, and a mixture's component → z of the prior."""

    def keep(self, vae: VAE) -> None:
        """Keep the latent."""
        self.latent = vae.latent

    def compute(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return `z_prior`, and of a mixture p(c) in each row."""
        z_prior = self.latent.prior(*given.values())
        probs = self.latent.component_probs
        return (z_prior, probs.expand(z_prior.shape[0], -1)) if self.latent.enumerated else (z_prior,)


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
    y = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
    with torch.no_grad():
        examples = vae.decoder.parameters_at(torch.zeros(1, config.z_dim), y)
    names = vae.decoder.likelihood.parameter_names
    if (taken := _RESERVED.intersection(names)) or any(name.startswith(("eps", "z_")) for name in names):
        raise ConfigError(
            f"a likelihood's parameters must not be called {', '.join(sorted(taken)) or 'eps... or z_...'}, as other "
            f"inputs and outputs of graphs are; got {', '.join(names)}"
        )
    if names[:1] != ("loc_img",):
        raise ConfigError(f"a likelihood's first parameter must be loc_img, got {', '.join(names)}")
    parameters = [tensor(name, *example.shape[1:]) for name, example in zip(names, examples, strict=True)]
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
    )


def _noise(given: dict[str, Tensor]) -> list[Tensor]:
    """The noise of the levels, the lowest first."""
    return [value for name, value in given.items() if name.startswith("eps")]


def _example(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    shape = (TRACE_BATCH, *spec.row_shape)
    return torch.zeros(shape, dtype=torch.int64) if spec.dtype == "int64" else torch.rand(shape, generator=generator)
