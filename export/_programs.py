"""The functions that a bundle holds, as modules, and their traced programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from export._errors import GraphError
from runtime import GraphName, TensorSpec
from train import VAE, AbstractDecoder, AbstractEncoder, Likelihood

TRACE_BATCH = 3
"""Batch size while tracing: at least 2, because a batch of 1 is taken for a constant."""


class LikelihoodParameters(nn.Module):
    """The decoder with all that it knows: z → the likelihood's parameters."""

    def __init__(self, decoder: AbstractDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return p(x|z)'s parameters, `loc_img` first; a single one as it is."""
        parameters = self.decoder.parameters_at(z)
        return parameters if len(parameters) > 1 else parameters[0]


class Reconstruct(nn.Module):
    """Encoder, reparameterization and decoder in one graph: x, eps → loc_img."""

    def __init__(self, encoder: AbstractEncoder, decoder: AbstractDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """Decode z = z_loc + z_scale * eps, for `x` `(batch, data_dim)` and `eps` `(batch, z_dim)`."""
        z_loc, z_scale = self.encoder(x)
        loc_img: Tensor = self.decoder(z_loc + z_scale * eps)
        return loc_img


class Elbo(nn.Module):
    """The terms of the ELBO, from what encoder and decoder gave; without their weights, the graph is small."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(
        self, x: Tensor, z: Tensor, z_loc: Tensor, z_scale: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(x|z), log p(z) and log q(z|x) in nats, shape `(batch,)` each."""
        log_px_z = self.likelihood.distribution(parameters).log_prob(self.likelihood.observed(x)).sum(-1)
        log_pz = dist.Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False).log_prob(z).sum(-1)
        log_qz_x = dist.Normal(z_loc, z_scale, validate_args=False).log_prob(z).sum(-1)
        return log_px_z, log_pz, log_qz_x


@dataclasses.dataclass(frozen=True)
class Program:
    """One function of a bundle: the module, and what goes in and out of it.

    Args:
        module: Computes the outputs from the inputs, in order; in evaluation mode, on the CPU.
        inputs: Names and shapes of its arguments.
        outputs: Names and shapes of what it returns.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs to trace with."""
        generator = torch.Generator().manual_seed(0)
        shapes = [[TRACE_BATCH, *tensor.shape[1:]] for tensor in self.inputs]
        return tuple(torch.rand([int(size) for size in shape], generator=generator) for shape in shapes)

    def trace(self) -> ExportedProgram:
        """Return the module as an `ExportedProgram` with a dynamic batch axis.

        Raises:
            GraphError: The module cannot be traced, or works for one batch size only.
        """
        dynamic_shapes: list[Any] = [{0: Dim("batch")} for _ in self.inputs]
        if isinstance(self.module, Elbo):  # torch.export wants the shapes of *parameters together
            dynamic_shapes[4:] = [tuple(dynamic_shapes[4:])]
        try:
            with pyro.validation_enabled(False):  # validation looks at values, which a trace has none of
                return torch.export.export(self.module, self.example(), dynamic_shapes=tuple(dynamic_shapes))
        except Exception as error:  # torch.export raises errors of many unrelated classes
            name = type(self.module).__name__
            raise GraphError(f"{name} cannot be traced with a dynamic batch axis: {error}") from error


def make_programs(vae: VAE) -> dict[GraphName, Program]:
    """Return the functions of a bundle: `encoder`, `decoder`, `reconstruct` and `elbo`."""
    data_dim, z_dim = vae.config.data_dim, vae.config.z_dim
    x, z, eps = _rows("x", data_dim), _rows("z", z_dim), _rows("eps", z_dim)
    posterior = (_rows("z_loc", z_dim), _rows("z_scale", z_dim))
    with torch.no_grad():
        shapes = [parameter.shape[1:] for parameter in vae.decoder.parameters_at(torch.zeros(1, z_dim))]
    names = vae.decoder.likelihood.parameter_names
    parameters = tuple(_rows(name, *shape) for name, shape in zip(names, shapes, strict=True))
    terms = tuple(_rows(name) for name in ("log_px_z", "log_pz", "log_qz_x"))
    return {
        "encoder": Program(vae.encoder, (x,), posterior),
        "decoder": Program(LikelihoodParameters(vae.decoder).eval(), (z,), parameters),
        "reconstruct": Program(Reconstruct(vae.encoder, vae.decoder).eval(), (x, eps), parameters[:1]),
        "elbo": Program(Elbo(vae.decoder.likelihood).eval(), (x, z, *posterior, *parameters), terms),
    }


def _rows(name: str, *sizes: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=("batch", *sizes))
