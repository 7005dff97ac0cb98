"""Programs for PyTorch users: TorchScript, which PyTorch has deprecated, and `torch.export`'s archive."""

from __future__ import annotations

import contextlib
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from .programs import Program

FloatArray = NDArray[np.float32]
TorchFunction = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def to_torchscript(program: Program) -> bytes:
    """Return the program as a TorchScript archive, without the source positions of this machine."""
    buffer = io.BytesIO()
    with _deprecations_silenced(), pyro.validation_enabled(False):  # a trace has no values to validate
        traced = torch.jit.trace(program.module, program.example())
        torch.jit.save(traced, buffer)
    return _without_debug_files(buffer.getvalue())


def to_pt2(traced: ExportedProgram) -> bytes:
    """Return a traced program as an archive of `torch.export.save`, without the source positions of this machine."""
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


class TorchGraph:
    """A function over tensors, run over arrays.

    Args:
        program: Names its inputs and outputs.
        function: Computes them.
    """

    def __init__(self, program: Program, function: TorchFunction) -> None:
        self.inputs = [tensor.name for tensor in program.signature.inputs]
        self.outputs = [tensor.name for tensor in program.signature.outputs]
        self._function = function

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, FloatArray]:
        """Run it on its inputs, picked from `arrays` by name, shape `(batch, ...)` each; return its outputs by name."""
        with torch.no_grad():
            outputs = self._function(*(torch.from_numpy(arrays[name]) for name in self.inputs))
        results = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.numpy() for name, output in zip(self.outputs, results, strict=True)}


def _without_debug_files(archive: bytes) -> bytes:
    """Drop TorchScript's `.debug_pkl` entries: they hold this machine's paths, and nothing that runs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return buffer.getvalue()


@contextlib.contextmanager
def _deprecations_silenced() -> Iterator[None]:
    """PyTorch has deprecated `torch.jit`; the format stays, because LibTorch on devices reads nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
        yield
