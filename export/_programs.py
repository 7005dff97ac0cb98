"""The functions that a bundle holds, as modules, and their traced programs."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from export._errors import GraphError
from runtime import TensorSpec
from train import VAE, Decoder, Encoder

TRACE_BATCH = 3
"""Batch size while tracing: at least 2, because a batch of 1 is taken for a constant."""


class Reconstruct(nn.Module):
    """Encoder, reparameterization and decoder in one graph: x, eps → loc_img."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """Decode z = z_loc + z_scale * eps, for `x` `(batch, data_dim)` and `eps` `(batch, z_dim)`."""
        z_loc, z_scale = self.encoder(x)
        loc_img: Tensor = self.decoder(z_loc + z_scale * eps)
        return loc_img


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
        dynamic_shapes = tuple({0: Dim("batch")} for _ in self.inputs)
        try:
            return torch.export.export(self.module, self.example(), dynamic_shapes=dynamic_shapes)
        except Exception as error:  # torch.export raises errors of many unrelated classes
            name = type(self.module).__name__
            raise GraphError(f"{name} cannot be traced with a dynamic batch axis: {error}") from error


def encoder_program(vae: VAE) -> Program:
    """Return x → z_loc, z_scale."""
    z_dim = vae.config.z_dim
    return Program(vae.encoder, (_rows("x", vae.config.data_dim),), (_rows("z_loc", z_dim), _rows("z_scale", z_dim)))


def decoder_program(vae: VAE) -> Program:
    """Return z → loc_img."""
    return Program(vae.decoder, (_rows("z", vae.config.z_dim),), (_rows("loc_img", vae.config.data_dim),))


def reconstruct_program(vae: VAE) -> Program:
    """Return x, eps → loc_img."""
    return Program(
        Reconstruct(vae.encoder, vae.decoder).eval(),
        (_rows("x", vae.config.data_dim), _rows("eps", vae.config.z_dim)),
        (_rows("loc_img", vae.config.data_dim),),
    )


def _rows(name: str, width: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=("batch", width))
