"""Run an exported VAE: NumPy and ONNX Runtime, never PyTorch.

    import edgevae

    model = edgevae.load("models/mnist-mlp")
    images = model.generate(16, seed=0).reshape(-1, *model.data_shape)

`Model` has `encode`, `decode`, `reconstruct`, `generate` and `verify`, and what only a probabilistic model can say:
`elbo`, `log_likelihood`, `score`, `is_anomaly`, `posterior_predictive`, `interpolate`, `traverse`, `active_units`.
Nothing is random that was not asked for: a `seed` names a noise stream that is identical to PyTorch's CPU generator,
and the same arguments give the same numbers.

On the command line: `vae-run --help`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .bundle import Bundle
from .errors import BundleError, EdgeVAEError, InputError, InstallError, ProviderError, SignatureError
from .estimation import Score
from .execution import ProviderOptions
from .latents import Latents
from .loading import load
from .manifest import (
    MANIFEST_FILE,
    MODEL_PROPERTY,
    SCHEMA_VERSION,
    DatasetSpec,
    FileEntry,
    GraphName,
    GraphSpec,
    Manifest,
    Precision,
    PrecisionSpec,
    ReducedPrecision,
    TensorSpec,
    Tolerances,
)
from .model import Model
from .model_spec import ModelSpec
from .noise import Noise
from .posterior import Level, Posterior
from .preprocessing import Preprocessing, values_text
from .signature import PARTS, Part, Signature, graphs_of, level_names, part_of, signatures, tensor
from .trust import SIGNATURE_FILE
from .untrusted import GraphVersions, check_graph

if TYPE_CHECKING:
    from .reference import Reference
    from .verification import BATCH_SIZES, Check, Report, RunnableGraph, verify_graphs

__version__ = "0.1.0"

__all__ = [
    "BATCH_SIZES",
    "MANIFEST_FILE",
    "MODEL_PROPERTY",
    "PARTS",
    "SCHEMA_VERSION",
    "SIGNATURE_FILE",
    "Bundle",
    "BundleError",
    "Check",
    "DatasetSpec",
    "EdgeVAEError",
    "FileEntry",
    "GraphName",
    "GraphSpec",
    "GraphVersions",
    "InputError",
    "InstallError",
    "Latents",
    "Level",
    "Manifest",
    "Model",
    "ModelSpec",
    "Noise",
    "Part",
    "Posterior",
    "Precision",
    "PrecisionSpec",
    "Preprocessing",
    "ProviderError",
    "ProviderOptions",
    "ReducedPrecision",
    "Reference",
    "Report",
    "RunnableGraph",
    "Score",
    "Signature",
    "SignatureError",
    "TensorSpec",
    "Tolerances",
    "check_graph",
    "graphs_of",
    "level_names",
    "load",
    "part_of",
    "signatures",
    "tensor",
    "values_text",
    "verify_graphs",
]

_LATER = dict.fromkeys(("BATCH_SIZES", "Check", "Report", "RunnableGraph", "verify_graphs"), "verification")
_LATER["Reference"] = "reference"


def __getattr__(name: str) -> Any:
    """Load what only a verification needs when it is first asked for: a twentieth of a start."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
