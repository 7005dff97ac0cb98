"""The graphs of one loaded model."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping, MutableMapping

from .bundle import Bundle
from .errors import BundleError, EdgeVAEError, InputError, ProviderError
from .execution import Execution
from .graph import Graph
from .lanes import Lanes
from .manifest import FileEntry, GraphName, Manifest, Precision
from .memory import give_memory_back
from .signature import part_of

_HEAVY: tuple[GraphName, ...] = ("reconstruct", "encoder", "decoder")
"""Graphs with the networks in them: the first one that a bundle has shows whether a provider works."""


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
        self._is_forked = False
        self._lock = threading.RLock()  # a signal's handler may close the model while the same thread makes a session
        self._loaded: dict[GraphName, Graph] = {}
        self._lanes = Lanes(execution.threads)
        self._let_go = weakref.finalize(self, _let_go, self._loaded, self._lanes)
        self._let_go.atexit = False  # the system takes all of it then
        _living[id(self)] = self
        self.provider = self._first().provider
        self._execution = execution.on(self.provider)  # `auto` chooses once, for all graphs
        for name, entry in self._files.items():
            if name not in self._loaded:
                bundle.check(entry)

    def _first(self) -> Graph:
        """Make the first session, on a provider that runs some of it."""
        name = next(name for name in _HEAVY if name in self.bundle.manifest.graphs)
        try:
            self[name].check_runs_on_provider()
        except ProviderError:
            if self._asked.providers is not None:
                raise
            self._loaded.clear()
            self._execution = self._asked.on("cpu")
        return self[name]

    def __getitem__(self, name: GraphName) -> Graph:
        """Return a graph, ready to run.

        Raises:
            BundleError: The bundle holds a part of the model only, without this graph.
            EdgeVAEError: The model was closed, or this process was forked from the one that loaded it.
        """
        found = self._loaded.get(name)
        return self._made(name) if found is None else found

    def _made(self, name: GraphName) -> Graph:
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
                graph = Graph(self.bundle, name, self._execution, self._files[name], self._lanes)
                self._check_open()
                self._loaded[name] = graph
            return self._loaded[name]

    def _check_open(self) -> None:
        if not self._let_go.alive:
            raise EdgeVAEError("this model was closed; load it again")

    def __contains__(self, name: object) -> bool:
        return name in self.bundle.manifest.graphs

    def __iter__(self) -> Iterator[GraphName]:
        return iter(self.bundle.manifest.graphs)

    def __len__(self) -> int:
        return len(self.bundle.manifest.graphs)

    def close(self) -> None:
        """Let go of all sessions, as happens to forgotten ones too; those that are running come to their end."""
        with self._lock:
            self._let_go()

    def leave_to_parent(self) -> None:
        """In a forked process, keep the sessions for ever: what ends one waits for its threads, which are not here."""
        import ctypes

        self._is_forked = True
        self._lock = threading.RLock()  # another thread may have held it
        self._let_go.detach()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loaded))
        self._loaded = {}

    def __reduce__(self) -> tuple[type[Graphs], tuple[Bundle, Execution, Precision]]:
        if self._asked.session_options is not None:
            raise EdgeVAEError(
                "a model that was loaded with session_options does not pickle, because these do not; "
                "load it in the process that uses it"
            )
        return Graphs, (self.bundle, self._asked, self.precision)


_living: weakref.WeakValueDictionary[int, Graphs] = weakref.WeakValueDictionary()


def _leave_all_to_parent() -> None:
    for graphs in list(_living.values()):
        graphs.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)


def _let_go(loaded: MutableMapping[GraphName, Graph], lanes: Lanes) -> None:
    lanes.close()
    loaded.clear()
    give_memory_back()


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
