"""What a loaded model is, and how long it lives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from . import inputs as _inputs
from .errors import InputError
from .graphs import Graphs
from .manifest import Manifest, Precision
from .observations import Observations
from .prior import prior_probs

_Model = TypeVar("_Model", bound="Loaded")
FloatArray = NDArray[np.float32]


class Loaded:
    """The part of `Model` that knows what it is.

    Args:
        graphs: Those of its bundle.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._bundle = graphs.bundle
        self._graphs = graphs
        self._spec = graphs.bundle.manifest.model
        self._observations = Observations(self._spec, graphs.bundle.manifest.preprocessing)

    def __reduce__(self) -> tuple[type[Loaded], tuple[Graphs]]:
        return type(self), (self._graphs,)

    def __repr__(self) -> str:
        sizes = f"data_shape={self.data_shape} z_dim={self.z_dim}"
        return f"<{type(self).__name__} {self.manifest.name!r} {sizes} on {self.provider}>"

    @property
    def manifest(self) -> Manifest:
        """All that the bundle says about itself."""
        return self._bundle.manifest

    @property
    def latent_space_id(self) -> str:
        """Names the latent space: the same for all bundles of the same weights; latents carry it."""
        return self.manifest.latent_space_id

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one observation, `(channels, height, width)` for images."""
        return self._spec.data_shape

    @property
    def z_dim(self) -> int:
        """Number of dimensions of z, which `decode` takes."""
        return self._spec.z_dim

    @property
    def num_classes(self) -> int:
        """Number of labels of a conditional model; 0 for any other."""
        return self._spec.num_classes

    @property
    def component_probs(self) -> FloatArray:
        """p(c) of a mixture's components, float32, shape `(components,)`; empty for the other latents."""
        return prior_probs(self._spec, self._graphs["prior"]) if self._spec.num_components else np.empty(0, np.float32)

    @property
    def provider(self) -> str:
        """Where the model runs: `cpu`, `cuda`, or another of ONNX Runtime's providers."""
        return self._graphs.provider

    @property
    def precision(self) -> Precision:
        """In which precision the networks run."""
        return self._graphs.precision

    def close(self) -> None:
        """Let go of the sessions and their memory; calls raise `EdgeVAEError` then. A `with` block ends so."""
        self._graphs.close()

    def __enter__(self: _Model) -> _Model:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Run each graph once with each batch size, so that the first real call is not the slow one.

        On the CPU the first call of more than 256 rows a thread makes a second session of its graph.

        Args:
            batch_sizes: At least 1 each.

        Raises:
            InputError: A batch size is no positive integer, or too large for any machine.
        """
        if not isinstance(batch_sizes, Iterable):
            raise InputError(f"batch_sizes must be a list of integers, got {type(batch_sizes).__name__}")
        for size in batch_sizes:
            rows = _inputs.count("batch_sizes", size, _inputs.MOST)
            if rows == 0:
                raise InputError("batch_sizes must be at least 1 each, got 0")
            for graph in self._graphs.values():
                graph({part.name: np.zeros((rows, *part.row_shape), part.dtype) for part in graph.spec.inputs})
