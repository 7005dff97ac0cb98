"""A bundle's graphs as ONNX Runtime sessions: made when first used, checked against the manifest, run on batches."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import BundleError, EdgeVAEError, InputError, ProviderError
from .manifest import MODEL_PROPERTY, FileEntry, GraphName, Manifest, Precision, part_of
from .providers import CPU, Execution, check_runs, create_session, has_own_threads
from .untrusted import check_graph

FloatArray = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

MAX_ROWS = 4096
"""Rows in one run, so that the memory for activations does not grow with the batch."""
MAX_ROWS_A_THREAD = 256
"""Likewise on the CPU: keeps activations in L2."""

_ONNX_TYPE = {"float32": "float", "int64": "int64"}
_WITH_NETWORKS: tuple[GraphName, ...] = ("reconstruct", "encoder", "decoder")
"""The first of these that a bundle has shows whether a provider works."""


class Workers:
    """Threads that run the parts of a large batch side by side, the caller's own among them.

    Args:
        count: How many threads work on a call; 1 for the caller's alone.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, "edgevae") if count > 1 else None

    def run(self, work: Callable[[int], None], parts: Sequence[int]) -> None:
        """Call `work` with each part, in any order.

        After an error in a part, no other part is begun; the error is raised when none is running any more.
        """
        left = deque(parts)

        def work_off() -> None:
            try:
                while left:
                    try:
                        part = left.popleft()
                    except IndexError:  # another thread took the last one
                        return
                    work(part)
            except BaseException:
                left.clear()
                raise

        helpers: list[Future[None]] = []
        if self._pool is not None:
            # The caller works alone if the pool is closed, the interpreter is ending, or no thread can start.
            with contextlib.suppress(RuntimeError):
                while len(helpers) < min(self.count, len(parts)) - 1:
                    helpers.append(self._pool.submit(work_off))
        try:
            work_off()
        finally:
            left.clear()
            helpers = [helper for helper in helpers if not helper.cancel()]
            wait(helpers)
        for helper in helpers:
            helper.result()

    def close(self) -> None:
        """End the threads when they have finished; in later calls the caller works alone."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)


class Graph:
    """A session of one graph, checked against the manifest.

    Args:
        bundle: The bundle.
        name: Which of its graphs.
        execution: Where to run it.
        entry: Its file.
        workers: Threads for the parts of a large batch.

    Raises:
        BundleError: The graph's file is missing, changed, cannot be loaded, or is not what the manifest says.
        ProviderError: The provider does not work here.
    """

    def __init__(
        self, bundle: Bundle, name: GraphName, execution: Execution, entry: FileEntry, workers: Workers
    ) -> None:
        self.spec = bundle.manifest.graphs[name]
        self.file = entry.file
        content = bundle.read(entry)
        versions, stated = check_graph(content, self.file), (self.spec.ir_version, self.spec.opset)
        if versions != stated:
            raise BundleError(
                f"{self.file} does not fit its manifest: expected IR version and opset {stated}, got {tuple(versions)}"
            )
        self._session, self.provider = create_session(content, self.file, execution)
        self._check_session(bundle.manifest)
        self.inputs = [tensor.name for tensor in self.spec.inputs]
        self.outputs = [tensor.name for tensor in self.spec.outputs]
        self._row_shapes = [(tensor.name, tensor.row_shape) for tensor in self.spec.outputs]
        on_cpu = self.provider == CPU
        self._max_rows = min(MAX_ROWS, MAX_ROWS_A_THREAD * execution.threads) if on_cpu else MAX_ROWS
        self._workers = workers if on_cpu and workers.count > 1 and has_own_threads(self._session, execution) else None
        self._lock = threading.Lock()
        self._single_session: Any = None
        single = msgspec.structs.replace(execution.on(self.provider), threads=1)
        self._make_single_session: Callable[[], Any] = lambda: create_session(bundle.read(entry), entry.file, single)[0]

    def _check_session(self, manifest: Manifest) -> None:
        """Refuse a graph whose inputs, outputs or choices of the model are not the manifest's."""
        try:
            for what, found, expected in (
                ("inputs", self._session.get_inputs(), self.spec.inputs),
                ("outputs", self._session.get_outputs(), self.spec.outputs),
            ):
                actual = [(tensor.name, tensor.type, tuple(tensor.shape)) for tensor in found]
                wanted = [(tensor.name, f"tensor({_ONNX_TYPE[tensor.dtype]})", tensor.shape) for tensor in expected]
                if actual != wanted:
                    raise BundleError(f"{self.file} does not fit its manifest: expected {what} {wanted}, got {actual}")
            choices = self._session.get_modelmeta().custom_metadata_map.get(MODEL_PROPERTY)
        except UnicodeDecodeError as error:  # ONNX Runtime takes names of any bytes
            raise BundleError(
                f"{self.file} is damaged: a name in it is no text, {error}; copy the whole bundle again"
            ) from error
        if choices != manifest.model.encode():
            raise BundleError(
                f"{self.file} does not fit its manifest: it was made for {choices}, not for {manifest.model}"
            )

    def check_runs_on_provider(self) -> None:
        """Refuse a provider that runs none of the graph's nodes.

        Raises:
            ProviderError: All would run on the CPU.
        """
        check_runs(self._session, self.provider, self.file)

    def __call__(self, arrays: Arrays, out: Arrays | None = None) -> dict[str, FloatArray]:
        """Run the graph.

        Args:
            arrays: The inputs by name, shape `(batch, ...)` each, float32 or int64, contiguous; others are ignored.
            out: Buffers for outputs, by name: float32, contiguous, of the right shapes; the others are allocated.

        Returns:
            The outputs by name, float32, shape `(batch, ...)` each.

        Raises:
            BundleError: An output has another shape than the manifest says.
            EdgeVAEError: The provider failed.
        """
        inputs = arrays if len(arrays) == len(self.inputs) else {name: arrays[name] for name in self.inputs}
        batch = len(inputs[self.inputs[0]])
        if out is None and 0 < batch <= self._max_rows:
            return self._run(self._session, inputs, batch)
        given = out or {}
        outputs = {
            name: given[name] if name in given else np.empty((batch, *row_shape), np.float32)
            for name, row_shape in self._row_shapes
        }
        self._run_in_parts(inputs, outputs, batch)
        return outputs

    def _run_in_parts(self, inputs: Arrays, outputs: Arrays, batch: int) -> None:
        """Run a large batch in parts, and write each part's outputs where they belong.

        From `MAX_ROWS_A_THREAD` rows a thread on, each thread runs parts of its own in a session of one thread: threads
        that share a run wait for each other after each operator.
        """
        session, workers, rows = self._session, None, self._max_rows
        if self._workers is not None and batch > self._workers.count * MAX_ROWS_A_THREAD:
            session = self._single_threaded()
            workers = self._workers
            if workers is not None:
                parts = workers.count * math.ceil(batch / (workers.count * MAX_ROWS_A_THREAD))
                rows = math.ceil(batch / parts)
        write = self._write_in_place if self.provider == CPU and batch > rows else self._write_copy

        def run_part(start: int) -> None:
            part = slice(start, start + rows)
            write(
                session,
                {name: array[part] for name, array in inputs.items()},
                {name: array[part] for name, array in outputs.items()},
            )

        starts = range(0, batch, rows)
        if workers is None:
            for start in starts:
                run_part(start)
        else:
            workers.run(run_part, starts)

    def _single_threaded(self) -> Any:
        """Return a session of one thread, made when it is first needed.

        Where the bundle's folder has gone or changed since, that is this graph's own session, with all of its threads.
        """
        with self._lock:
            if self._single_session is None and self._workers is not None:
                try:
                    self._single_session = self._make_single_session()
                except BundleError:
                    self._workers = None
            return self._session if self._single_session is None else self._single_session

    def _write_copy(self, session: Any, inputs: Arrays, outputs: Arrays) -> None:
        """Run some rows, and copy the outputs into `outputs`."""
        batch = len(inputs[self.inputs[0]])
        for name, values in self._run(session, inputs, batch).items():
            outputs[name][...] = values

    def _write_in_place(self, session: Any, inputs: Arrays, outputs: Arrays) -> None:
        """Run some rows with `outputs` bound as the session's buffers, which saves a copy."""
        try:
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name, array in outputs.items():
                binding.bind_output(name, CPU, 0, array.dtype, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding)
        except Exception:  # noqa: BLE001 - of any class; an output's shape may be wrong, which a plain run says better
            self._write_copy(session, inputs, outputs)

    def _run(self, session: Any, inputs: Arrays, batch: int) -> dict[str, FloatArray]:
        try:
            values = session.run(self.outputs, inputs)
        except Exception as error:
            raise EdgeVAEError(f"{self.provider} failed in {self.file}: {error}") from error
        outputs = {}
        for index, (name, row_shape) in enumerate(self._row_shapes):
            value = outputs[name] = values[index]
            if value.shape != (batch, *row_shape):  # ONNX Runtime does not check the shapes that a graph declares
                raise BundleError(
                    f"{self.file} does not fit its manifest: {name} must have shape {(batch, *row_shape)}, "
                    f"got {value.shape}; export the model again"
                )
        return outputs


class Graphs(Mapping[GraphName, Graph]):
    """A bundle's graphs by name; a session is made when its graph is first used.

    All files are read and checked at once, so that a changed one is seen when the model is loaded. One session is made
    at once too: it shows whether the provider works.

    Args:
        bundle: The bundle.
        execution: Where to run.
        precision: In which precision the networks run, `fp32` or one that the bundle has.

    Raises:
        BundleError: A file is missing or changed, or cannot be loaded.
        InputError: The bundle has no such precision.
        ProviderError: The provider does not work here.
    """

    def __init__(self, bundle: Bundle, execution: Execution, precision: Precision = "fp32") -> None:
        self.bundle = bundle
        self.precision: Precision = precision
        self._files = files_of(bundle.manifest, precision)
        self._asked = self._execution = execution
        self._workers = Workers(execution.threads)
        self._lock = threading.Lock()
        self._loaded: dict[GraphName, Graph] = {}
        self._is_closed = self._is_forked = False
        _living.add(self)
        self.provider = self._first().provider
        self._execution = execution.on(self.provider)  # `auto` chooses once, for all graphs
        for name, entry in self._files.items():
            if name not in self._loaded:
                bundle.check(entry)

    def _first(self) -> Graph:
        """Make the first session, on a provider that runs some of it."""
        name = next(name for name in _WITH_NETWORKS if name in self.bundle.manifest.graphs)
        try:
            self[name].check_runs_on_provider()
        except ProviderError:
            if self._asked.providers is not None:
                raise
            self._loaded.clear()
            self._execution = self._asked.on(CPU)
        return self[name]

    def __getitem__(self, name: GraphName) -> Graph:
        """Return a graph, ready to run.

        Raises:
            BundleError: The bundle holds a part of the model only, without this graph.
            EdgeVAEError: The model was closed, or this process was forked from the one that loaded it.
        """
        found = self._loaded.get(name)
        return self._load(name) if found is None else found

    def _load(self, name: GraphName) -> Graph:
        if self._is_forked:
            raise EdgeVAEError(
                "this model was loaded before this process was forked, and its threads are not here; "
                "load it in the process that uses it, or start processes with the method 'spawn'"
            )
        with self._lock:
            self._check_open()
            if name not in self.bundle.manifest.graphs:
                raise BundleError(
                    f"{self.bundle.path} holds only the model's {part_of(self.bundle.manifest)}, and this needs its "
                    f"graph {name}; take a bundle that was exported with --graphs all"
                )
            if name not in self._loaded:
                self._loaded[name] = Graph(self.bundle, name, self._execution, self._files[name], self._workers)
                self._check_open()
            return self._loaded[name]

    def _check_open(self) -> None:
        if self._is_closed:  # perhaps while a session was made
            self._loaded.clear()
            raise EdgeVAEError("this model was closed; load it again")

    def __contains__(self, name: object) -> bool:
        return name in self.bundle.manifest.graphs

    def __iter__(self) -> Iterator[GraphName]:
        return iter(self.bundle.manifest.graphs)

    def __len__(self) -> int:
        return len(self.bundle.manifest.graphs)

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def close(self) -> None:
        """Release all sessions; those that are running finish first."""
        self._is_closed = True
        self._workers.close()
        self._loaded.clear()

    def abandon(self) -> None:
        """Leak the sessions in a forked process: ending one would wait for threads that the fork did not copy."""
        import ctypes

        self._is_forked = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loaded))
        self._loaded = {}

    def __reduce__(self) -> tuple[type[Graphs], tuple[Bundle, Execution, Precision]]:
        if self._asked.session_options is not None:
            raise EdgeVAEError(
                "a model that was loaded with session_options does not pickle, because these do not; "
                "load it in the process that uses it"
            )
        return Graphs, (self.bundle, self._asked, self.precision)


_living: weakref.WeakSet[Graphs] = weakref.WeakSet()


def _abandon_all() -> None:
    for graphs in list(_living):
        graphs.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def files_of(manifest: Manifest, precision: Precision) -> dict[GraphName, FileEntry]:
    """Return the file of each graph, those of the networks in a precision.

    Raises:
        InputError: The bundle has no such precision.
    """
    files = {name: graph.file for name, graph in manifest.graphs.items()}
    if not isinstance(precision, str):
        raise InputError(f"precision must be fp32, fp16 or int8, got {type(precision).__name__}")
    if precision == "fp32":
        return files
    if precision not in manifest.precisions:
        there = ", ".join(("fp32", *manifest.precisions))
        raise InputError(
            f"precision must be one that the bundle has, {there}, got {precision!r}; "
            f"export it with vae-export --precision {precision}"
        )
    return {**files, **manifest.precisions[precision].graphs}
