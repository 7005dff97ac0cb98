"""One ONNX graph of a bundle, ready to run."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bundle import Bundle
from .errors import BundleError, EdgeVAEError
from .execution import Execution
from .inputs import FLOAT32, LARGEST, MANY
from .lanes import ALONE, Lanes
from .manifest import MODEL_PROPERTY, FileEntry, GraphName, Manifest, TensorSpec
from .ort import run_of
from .providers import check_runs, create_session, has_own_threads
from .untrusted import check_graph

FloatArray = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

_CPU = "cpu"
_MAX_ROWS = 4096  # in one run: what a graph needs beside its inputs and outputs does not grow with the batch
_MAX_ROWS_A_THREAD = 256  # likewise on the CPU, where what is between two layers shall stay in a core's own cache
_BATCH_SIZES = 16  # whose shapes are kept: to make them takes 4 us of a call


_Shape = tuple[int, ...]
_Taken = tuple[str, _Shape, float, float]
"""What an input must be like that a graph takes as it is: its name, its shape, its least and its largest value."""
_Given = tuple[str, _Shape]
"""An output's name and shape."""


class Graph:
    """A session of one graph, checked against the manifest.

    Args:
        bundle: The bundle.
        name: Which of its graphs.
        execution: Where to run it.
        entry: Its file.
        lanes: Threads for the parts of a batch of many rows.

    Raises:
        BundleError: The graph's file is missing, changed, cannot be loaded, or is not what the manifest says.
        ProviderError: The provider does not work here.
    """

    def __init__(self, bundle: Bundle, name: GraphName, execution: Execution, entry: FileEntry, lanes: Lanes) -> None:
        self.spec = bundle.manifest.graphs[name]
        self.file = file = entry.file
        content = bundle.read(entry)
        versions, stated = check_graph(content, file), (self.spec.ir_version, self.spec.opset)
        if versions != stated:
            raise BundleError(
                f"{file} does not fit its manifest: expected IR version and opset {stated}, got {tuple(versions)}"
            )
        self._session, self.provider = create_session(content, file, execution)
        try:
            self._check(file, "inputs", self._session.get_inputs(), self.spec.inputs)
            self._check(file, "outputs", self._session.get_outputs(), self.spec.outputs)
            choices = self._session.get_modelmeta().custom_metadata_map.get(MODEL_PROPERTY)
        except UnicodeDecodeError as error:  # ONNX Runtime takes names of any bytes
            raise BundleError(
                f"{file} is damaged: a name in it is no text, {error}; copy the whole bundle again"
            ) from error
        if choices != bundle.manifest.model.encode():
            raise BundleError(
                f"{file} does not fit its manifest: it was made for {choices}, not for {bundle.manifest.model}"
            )
        self._run_session = run_of(self._session)
        self.inputs = [tensor.name for tensor in self.spec.inputs]
        self.outputs = [tensor.name for tensor in self.spec.outputs]
        self._max_rows = min(_MAX_ROWS, _MAX_ROWS_A_THREAD * execution.threads) if self.provider == _CPU else _MAX_ROWS
        self._lanes = lanes if has_own_threads(self._session, execution) else ALONE
        self._lock = threading.RLock()  # a signal's handler may run the graph while the same thread makes a session
        self._single: Graph | None = None
        single = msgspec.structs.replace(execution.on(self.provider), threads=1)
        self._make_single = functools.partial(Graph, bundle, name, single, entry, ALONE)
        shapes = functools.partial(
            _shapes, _rows_taken(self.spec.inputs, bundle.manifest), self.spec.outputs, self._max_rows
        )
        self._shapes_of: Callable[[int], tuple[list[_Taken], list[_Given]]] = functools.lru_cache(_BATCH_SIZES)(shapes)

    def check_runs_on_provider(self) -> None:
        """Refuse a provider that runs none of the graph's nodes.

        Raises:
            ProviderError: All would run on the CPU.
        """
        check_runs(self._session, self.provider, self.file)

    def run_as_is(self, **arrays: ArrayLike) -> dict[str, FloatArray] | None:
        """Run the graph on a few rows that it takes as they are; `None` where an input needs a closer look.

        Nothing is converted here and nothing explained, and all is in one function: a network's weights drive Python's
        own code out of a processor's cache, and a call of one row then waits for each function that it goes through.

        Args:
            arrays: The inputs by name, as a caller hands them in.

        Raises:
            BundleError: An output has another shape than the manifest says.
            EdgeVAEError: The provider failed.
        """
        first = arrays[self.inputs[0]]
        if type(first) is not np.ndarray or not first.ndim:
            return None
        takes, gives = self._shapes_of(len(first))
        if len(arrays) != len(takes):
            return None
        for name, shape, least, largest in takes:
            rows = arrays[name]
            if type(rows) is not np.ndarray or rows.dtype is not FLOAT32 or rows.shape != shape:
                return None
            flags = rows.flags
            if not (flags.c_contiguous and flags.aligned):
                return None
            if not least <= rows.item(rows.argmin()) <= rows.item(rows.argmax()) <= largest:
                return None
        return self._run(arrays, gives)

    def __call__(self, arrays: Arrays, out: Arrays | None = None) -> dict[str, FloatArray]:
        """Run the graph on its inputs, picked from `arrays` by name, shape `(batch, ...)` each; return its outputs.

        Args:
            arrays: The inputs, and others that are not looked at.
            out: Where to write outputs, by name: float32, contiguous, of the right shapes; the others are made.
        """
        inputs = {name: arrays[name] for name in self.inputs}
        batch = len(arrays[self.inputs[0]])
        if out is None and 0 < batch <= self._max_rows:
            return self._run(inputs, self._shapes_of(batch)[1])
        given = out or {}
        outputs = {
            name: given[name] if name in given else np.empty(shape, np.float32)
            for name, shape in self._shapes_of(batch)[1]
        }
        graph, lanes, rows = self._parts(batch)
        is_bound = self.provider == _CPU and batch > rows  # of few rows a copy takes less
        write = graph._write_in_place if is_bound else graph._write_copy  # noqa: SLF001 - one of its kind

        def write_part(start: int) -> None:
            part = slice(start, start + rows)
            write(
                {name: array[part] for name, array in inputs.items()},
                {name: array[part] for name, array in outputs.items()},
            )

        lanes.share(write_part, range(0, batch, rows))
        return outputs

    def _parts(self, batch: int) -> tuple[Graph, Lanes, int]:
        """Return what runs the parts of a batch, on which threads, and how many rows each has.

        Of more than 256 rows a thread, each thread takes parts of its own, with a session of one thread: the threads of
        one run wait for each other after each operator, and most operators are run by one of them alone.
        """
        count = self._lanes.count
        if self.provider == _CPU and count > 1 and batch > count * _MAX_ROWS_A_THREAD:
            with self._lock, contextlib.suppress(BundleError):
                self._single = self._single or self._make_single()
                parts = count * math.ceil(batch / (count * _MAX_ROWS_A_THREAD))
                return self._single, self._lanes, math.ceil(batch / parts)
            self._lanes = ALONE  # the bundle's folder has gone meanwhile: what was loaded serves as well, only slower
        return self, ALONE, self._max_rows

    def _write_copy(self, inputs: Arrays, outputs: Arrays) -> None:
        """Run the graph on a part of the rows, and copy what it makes to where the part belongs."""
        gives = [(name, array.shape) for name, array in outputs.items()]
        for name, made in self._run(inputs, gives).items():
            outputs[name][...] = made

    def _write_in_place(self, inputs: Arrays, outputs: Arrays) -> None:
        """Run the graph on a part of the rows, with its outputs made where the part belongs, by I/O binding.

        ONNX Runtime refuses to make an output of another shape there, before it writes any of it.
        """
        try:
            binding = self._session.io_binding()
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name, array in outputs.items():
                binding.bind_output(name, _CPU, 0, array.dtype, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(binding)
        except Exception:  # noqa: BLE001 - of any kind: a run says better what is wrong, an output's shape or the graph
            self._write_copy(inputs, outputs)

    def _run(self, inputs: Mapping[str, ArrayLike], gives: list[_Given]) -> dict[str, FloatArray]:
        try:
            values = self._run_session(self.outputs, inputs, None)
        except Exception as error:
            raise EdgeVAEError(f"{self.provider} failed in {self.file}: {error}") from error
        outputs = {}
        for index, (name, shape) in enumerate(gives):  # a strict zip takes 2 us longer
            value = values[index]
            if value.shape != shape:  # ONNX Runtime takes what a graph says of its outputs on trust
                raise BundleError(
                    f"{self.file} does not fit its manifest: {name} must have shape {shape}, got {value.shape}; "
                    "export the model again"
                )
            outputs[name] = value
        return outputs

    @staticmethod
    def _check(file: str, what: str, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
        actual = [(tensor.name, tensor.type, tuple(tensor.shape)) for tensor in found]
        wanted = [(tensor.name, f"tensor({_ONNX_TYPE[tensor.dtype]})", tensor.shape) for tensor in expected]
        if actual != wanted:
            raise BundleError(f"{file} does not fit its manifest: expected {what} {wanted}, got {actual}")


def _rows_taken(inputs: tuple[TensorSpec, ...], manifest: Manifest) -> list[_Taken]:
    """Return what a row of each input must be like that a graph takes as it is.

    There are none where one of them is of integers, or is an observation, which callers have in another scale.
    """
    is_scaled = manifest.preprocessing is not None and manifest.preprocessing.scale is not None
    if any(tensor.dtype != "float32" or (tensor.name == "x" and is_scaled) for tensor in inputs):
        return []
    unit = {"x": (0.0, 1.0)} if manifest.model.unit_interval else {}
    return [(tensor.name, tensor.row_shape, *unit.get(tensor.name, (-LARGEST, LARGEST))) for tensor in inputs]


def _shapes(
    rows: list[_Taken], outputs: tuple[TensorSpec, ...], max_rows: int, batch: int
) -> tuple[list[_Taken], list[_Given]]:
    """Return what a batch of a size is like: inputs that are taken as they are, none of no rows or of many; outputs.

    Args:
        rows: What a row of each input must be like.
        outputs: Of the graph.
        max_rows: In one run.
        batch: How many rows there are.
    """
    are_few = 0 < batch <= max_rows and all(batch * math.prod(shape) < MANY for _, shape, *_ in rows)
    takes = [(name, (batch, *shape), least, largest) for name, shape, least, largest in rows] if are_few else []
    return takes, [(tensor.name, (batch, *tensor.row_shape)) for tensor in outputs]


_ONNX_TYPE = {"float32": "float", "int64": "int64"}
