"""Files for PyTorch users: TorchScript, which PyTorch has deprecated, and the archive of `torch.export`."""

from __future__ import annotations

import contextlib
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.jit._trace import TracerWarning

from edgevae import Bundle, GraphName, Report, RunnableGraph, TensorSpec, verify_graphs
from edgevae.train import TraceError
from edgevae.train.programs import Program
from edgevae.train.tracing import last_line, line_of_script_error, symbolic_lengths

TORCH_PROGRAMS: tuple[GraphName, ...] = ("encoder", "decoder")
"""The programs that are written for PyTorch."""

TORCH_SUFFIXES = {"torchscript": ".ts", "pt2": ".pt2"}

FloatArray = NDArray[np.float32]
TorchFunction = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def to_torchscript(program: Program) -> bytes:
    """Return the program as a TorchScript archive, without paths of this machine.

    The check of `torch.jit.trace` is left out: it compares the operators of two traces, and PyTorch's attention has
    others each time. `verify_torch` compares the numbers.

    Raises:
        TraceError: The program cannot be traced, or works for one batch size only.
    """
    buffer, example = io.BytesIO(), program.example()
    try:
        # Validation looks at values, and a trace has none.
        with _deprecations_silenced(), pyro.validation_enabled(False), symbolic_lengths():
            traced = torch.jit.trace(program.module, example, check_trace=False)
            traced(*(tensor[1:] for tensor in example))
            torch.jit.save(traced, buffer)
    except Exception as error:  # torch.jit raises errors of many unrelated classes
        where = line_of_script_error(error) or "the network"
        raise TraceError(
            f"{where} cannot be written as TorchScript for any batch size: {last_line(error)}. Write x.shape[0] "
            "in place of int(x.shape[0]), or leave that format out"
        ) from error
    return _without_debug_files(buffer.getvalue())


def to_pt2(traced: ExportedProgram) -> bytes:
    """Return a traced program as an archive of `torch.export.save`, without paths of this machine."""
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(traced, buffer)
    return buffer.getvalue()


def load_torchscript(path: Path) -> TorchFunction:
    """Return the function in a TorchScript file."""
    with _deprecations_silenced():
        return torch.jit.load(path)


def load_pt2(path: Path) -> TorchFunction:
    """Return the function in a file of `torch.export.save`."""
    return torch.export.load(path).module()


def verify_torch(
    bundle: Bundle,
    format_name: str,
    signatures: Mapping[GraphName, InputsAndOutputs],
    others: Mapping[GraphName, RunnableGraph],
) -> Report:
    """Verify a bundle's files of one format for PyTorch by loading them, as users will.

    Args:
        bundle: The bundle.
        format_name: `torchscript` or `pt2`.
        signatures: Inputs and outputs of the bundle's graphs, by name.
        others: The other graphs that compute the ELBO; empty where the bundle holds a part of the model only.
    """
    load_program = {"torchscript": load_torchscript, "pt2": load_pt2}[format_name]
    graphs = {
        name: TorchGraph(signatures[name], load_program(bundle.path / f"{name}{TORCH_SUFFIXES[format_name]}"))
        for name in TORCH_PROGRAMS
        if name in signatures
    }
    return verify_graphs(bundle, format_name, graphs, others)


class InputsAndOutputs(Protocol):
    """A graph's inputs and outputs, in order."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What the graph takes."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What it gives."""


class TorchGraph:
    """A function of tensors that is called with arrays by name.

    Args:
        signature: Names its inputs and outputs.
        function: Computes the outputs.
    """

    def __init__(self, signature: InputsAndOutputs, function: TorchFunction) -> None:
        self.inputs = [tensor.name for tensor in signature.inputs]
        self.outputs = [tensor.name for tensor in signature.outputs]
        self._function = function

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, FloatArray]:
        """Run it on its inputs, picked from `arrays` by name, shape `(batch, ...)` each; return its outputs by name."""
        with torch.no_grad():
            outputs = self._function(*(torch.from_numpy(arrays[name]) for name in self.inputs))
        results = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.numpy() for name, output in zip(self.outputs, results, strict=True)}


def _without_debug_files(archive: bytes) -> bytes:
    """Drop TorchScript's `.debug_pkl` entries, which contain paths of this machine and nothing that runs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return buffer.getvalue()


@contextlib.contextmanager
def _deprecations_silenced() -> Iterator[None]:
    """Silence the deprecation of `torch.jit`; the format stays because LibTorch on devices reads no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)  # what it warns of is tried
        yield
