"""One ONNX graph of a bundle, ready to run."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._bundle import Bundle
from ._errors import BundleError, EdgeVAEError
from ._manifest import GraphName, TensorSpec
from ._providers import ProviderChoice, create_session

FloatArray = NDArray[np.float32]


class Graph:
    """A session of one graph, checked against the manifest.

    Args:
        bundle: The bundle.
        name: Which of its graphs.
        provider: Where to run it.
        threads: Threads inside one operator.

    Raises:
        BundleError: The graph is missing, changed, cannot be loaded, or is not what the manifest says.
        ProviderError: The provider does not work here.
    """

    def __init__(self, bundle: Bundle, name: GraphName, provider: ProviderChoice, threads: int) -> None:
        if name not in bundle.manifest.graphs:
            there = ", ".join([*bundle.manifest.graphs, *bundle.manifest.torch_files])
            raise BundleError(
                f"{bundle.path} has no ONNX graph {name!r}, only {there}; export it again with --format onnx"
            )
        self._spec = bundle.manifest.graphs[name]
        file = self._spec.file.file
        self._session, self.provider = create_session(bundle.read(self._spec.file), file, provider, threads)
        self._check(file, "inputs", self._session.get_inputs(), self._spec.inputs)
        self._check(file, "outputs", self._session.get_outputs(), self._spec.outputs)
        self.inputs = [tensor.name for tensor in self._spec.inputs]
        self.outputs = [tensor.name for tensor in self._spec.outputs]
        self._row_shapes = [tuple(map(int, tensor.shape[1:])) for tensor in self._spec.outputs]

    def __call__(self, *arrays: FloatArray) -> list[FloatArray]:
        """Run the graph on its inputs, float32, shape `(batch, ...)` each; return its outputs in order."""
        if len(arrays[0]) == 0:
            return [np.empty((0, *shape), np.float32) for shape in self._row_shapes]
        try:
            outputs: list[FloatArray] = self._session.run(self.outputs, dict(zip(self.inputs, arrays, strict=True)))
        except Exception as error:
            raise EdgeVAEError(f"{self.provider} failed in {self._spec.file.file}: {error}") from error
        return outputs

    @staticmethod
    def _check(file: str, what: str, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
        actual = [(tensor.name, tensor.type, tuple(tensor.shape)) for tensor in found]
        wanted = [(tensor.name, f"tensor({_ONNX_TYPE[tensor.dtype]})", tensor.shape) for tensor in expected]
        if actual != wanted:
            raise BundleError(f"{file} does not fit its manifest: expected {what} {wanted}, got {actual}")


_ONNX_TYPE = {"float32": "float"}


def usable_cpus() -> int:
    """Number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
