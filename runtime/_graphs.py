"""The graphs of one loaded model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping

from ._bundle import Bundle
from ._errors import EdgeVAEError
from ._graph import Graph
from ._manifest import GraphName
from ._providers import ProviderChoice


class Graphs(Mapping[GraphName, Graph]):
    """A bundle's graphs by name; a session is made when its graph is first used.

    All files are read and checked at once, so that a changed one is seen when the model is loaded. One session is made
    at once too: it shows whether the provider works.

    Args:
        bundle: The bundle.
        provider: Where to run.
        threads: Threads inside one operator.

    Raises:
        BundleError: A file is missing or changed, or cannot be loaded.
        ProviderError: The provider does not work here.
    """

    def __init__(self, bundle: Bundle, provider: ProviderChoice, threads: int) -> None:
        self.bundle = bundle
        self._choice = provider
        self._threads = threads
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._loaded: dict[GraphName, Graph] = {}
        self._closed = False
        for graph in bundle.manifest.graphs.values():
            bundle.read(graph.file)
        self.provider = self["reconstruct"].provider

    def __getitem__(self, name: GraphName) -> Graph:
        """Return a graph, ready to run.

        Raises:
            EdgeVAEError: The model was closed, or this process was forked from the one that loaded it.
            KeyError: The bundle has no such graph.
        """
        if self._closed:
            raise EdgeVAEError("this model was closed; load it again")
        if os.getpid() != self._process:
            raise EdgeVAEError(
                "this model was loaded before this process was forked, and its threads are not here; "
                "load it in the process that uses it, or start processes with the method 'spawn'"
            )
        found = self._loaded.get(name)
        if found is None:
            if name not in self.bundle.manifest.graphs:
                raise KeyError(name)
            with self._lock:
                found = self._loaded.get(name) or Graph(self.bundle, name, self._choice, self._threads)
                self._loaded[name] = found
        return found

    def __iter__(self) -> Iterator[GraphName]:
        return iter(self.bundle.manifest.graphs)

    def __len__(self) -> int:
        return len(self.bundle.manifest.graphs)

    def close(self) -> None:
        """Let go of all sessions; those that are running come to their end."""
        self._closed = True
        self._loaded.clear()

    def __reduce__(self) -> tuple[type[Graphs], tuple[Bundle, ProviderChoice, int]]:
        return Graphs, (self.bundle, self._choice, self._threads)
