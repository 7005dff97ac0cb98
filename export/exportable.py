"""A trained model as the export sees it: its functions, and what Pyro computes for given data and noise."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgevae import GraphName, ModelSpec, Signature, TensorSpec
from edgevae.train.tracing import trace

TRACE_BATCH = 3
"""Batch size while tracing: at least 2, because a batch of 1 is taken for a constant."""


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


class Exportable(abc.ABC):
    """A trained model on the CPU.

    Args:
        spec: Choices and sizes, as the manifest says them.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @property
    @abc.abstractmethod
    def programs(self) -> Mapping[GraphName, Program]:
        """The functions of a bundle, by name."""

    @abc.abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""

    @property
    def latent_space_id(self) -> str:
        """SHA-256 of the weights, which identifies the latent space: latents of other models do not fit."""
        return id_of(self.weights())


def id_of(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights, which identifies the latent space: latents of other models do not fit.

    Args:
        weights: Tensors on the CPU, by name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _example(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    shape = (TRACE_BATCH, *spec.row_shape)
    return torch.zeros(shape, dtype=torch.int64) if spec.dtype == "int64" else torch.rand(shape, generator=generator)
