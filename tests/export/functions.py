"""A function through the export: traced, decomposed, ONNX, rewritten, checked as by the runtime, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pyro
import torch
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgevae import check_graph
from edgevae.export.rewrites import rewrite_graph
from edgevae.train.conversion import DEFAULT_OPSET, convert
from tests.export.graphs import run

NAMES = ("a", "b", "c", "d")


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*arguments)


def traced(function: Callable[..., Tensor | tuple[Tensor, ...]], *example: Tensor) -> ExportedProgram:
    """The function as a program, with a dynamic first axis of each argument."""
    axes = tuple({0: Dim("batch")} for _ in example)
    with pyro.validation_enabled(False):
        return torch.export.export(Function(function), example, dynamic_shapes=(axes,))


def exported(function: Callable[..., Tensor | tuple[Tensor, ...]], *example: Tensor) -> onnx.ModelProto:
    """The function as a graph, whose inputs have the first of `NAMES`."""
    graph = convert(traced(function, *example), DEFAULT_OPSET, NAMES[: len(example)])
    model: onnx.ModelProto = ir.to_proto(rewrite_graph(graph))
    onnx.checker.check_model(model, full_check=True)
    check_graph(model.SerializeToString(), "function")
    return model


def run_exported(model: onnx.ModelProto, *arguments: NDArray[np.generic]) -> list[NDArray[np.float32]]:
    return run(model, dict(zip(NAMES, arguments, strict=False)))  # type: ignore[arg-type]  # integers are inputs too
