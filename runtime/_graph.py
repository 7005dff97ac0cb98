"""One ONNX graph of a bundle, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._bundle import Bundle
from ._errors import BundleError, EdgeVAEError
from ._manifest import MODEL_PROPERTY, GraphName, TensorSpec
from ._providers import Execution, check_runs, create_session

FloatArray = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

_MAX_ROWS = 4096  # in one run: what a graph needs beside its inputs and outputs does not grow with the batch


class Graph:
    """A session of one graph, checked against the manifest.

    Args:
        bundle: The bundle.
        name: Which of its graphs.
        execution: Where to run it.

    Raises:
        BundleError: The graph's file is missing, changed, cannot be loaded, or is not what the manifest says.
        ProviderError: The provider does not work here.
    """

    def __init__(self, bundle: Bundle, name: GraphName, execution: Execution) -> None:
        self.spec = bundle.manifest.graphs[name]
        file = self.spec.file.file
        self._session, self.provider = create_session(bundle.read(self.spec.file), file, execution)
        self._check(file, "inputs", self._session.get_inputs(), self.spec.inputs)
        self._check(file, "outputs", self._session.get_outputs(), self.spec.outputs)
        choices = self._session.get_modelmeta().custom_metadata_map.get(MODEL_PROPERTY)
        if choices != bundle.manifest.model.encode():
            raise BundleError(
                f"{file} does not fit its manifest: it was made for {choices}, not for {bundle.manifest.model}"
            )
        self.inputs = [tensor.name for tensor in self.spec.inputs]
        self.outputs = [tensor.name for tensor in self.spec.outputs]
        self._row_shapes = {tensor.name: tensor.row_shape for tensor in self.spec.outputs}

    def check_runs_on_provider(self) -> None:
        """Refuse a provider that runs none of the graph's nodes.

        Raises:
            ProviderError: All would run on the CPU.
        """
        check_runs(self._session, self.provider, self.spec.file.file)

    def __call__(self, arrays: Arrays) -> dict[str, FloatArray]:
        """Run the graph on its inputs, picked from `arrays` by name, shape `(batch, ...)` each; return its outputs."""
        inputs = {name: arrays[name] for name in self.inputs}
        batch = len(inputs[self.inputs[0]])
        if batch == 0:
            return {name: np.empty((0, *shape), np.float32) for name, shape in self._row_shapes.items()}
        if batch <= _MAX_ROWS:
            return self._run(inputs)
        outputs = {name: np.empty((batch, *shape), np.float32) for name, shape in self._row_shapes.items()}
        for start in range(0, batch, _MAX_ROWS):
            rows = slice(start, start + _MAX_ROWS)
            for name, part in self._run({name: array[rows] for name, array in inputs.items()}).items():
                outputs[name][rows] = part
        return outputs

    def _run(self, inputs: Arrays) -> dict[str, FloatArray]:
        try:
            outputs = self._session.run(self.outputs, inputs)
        except Exception as error:
            raise EdgeVAEError(f"{self.provider} failed in {self.spec.file.file}: {error}") from error
        return dict(zip(self.outputs, outputs, strict=True))

    @staticmethod
    def _check(file: str, what: str, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
        actual = [(tensor.name, tensor.type, tuple(tensor.shape)) for tensor in found]
        wanted = [(tensor.name, f"tensor({_ONNX_TYPE[tensor.dtype]})", tensor.shape) for tensor in expected]
        if actual != wanted:
            raise BundleError(f"{file} does not fit its manifest: expected {what} {wanted}, got {actual}")


_ONNX_TYPE = {"float32": "float", "int64": "int64"}
