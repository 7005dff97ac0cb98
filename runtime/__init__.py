"""Run an exported VAE: NumPy and ONNX Runtime, never PyTorch.

    import edgevae

    model = edgevae.load("models/mnist-mlp")
    images = model.generate(16, seed=0).reshape(-1, *model.data_shape)

`Model` has `encode`, `decode`, `reconstruct`, `generate` and `verify`; `elbo`, `log_likelihood`, `score`, `is_anomaly`
and `posterior_predictive`; `interpolate`, `traverse` and `active_units`. The same arguments give the same numbers: a
`seed` names a noise stream that is identical to PyTorch's CPU generator.

On the command line: `vae-run --help`.
"""

from __future__ import annotations

from .bundle import SIGNATURE_FILE, Bundle
from .errors import BundleError, EdgeVAEError, InputError, InstallError, ProviderError, SignatureError
from .manifest import (
    MANIFEST_FILE,
    MODEL_PROPERTY,
    PARTS,
    SCHEMA_VERSION,
    DatasetSpec,
    FileEntry,
    GraphName,
    GraphSpec,
    Manifest,
    Part,
    Precision,
    PrecisionSpec,
    ReducedPrecision,
    Signature,
    TensorSpec,
    Tolerances,
    graphs_of,
    level_names,
    part_of,
    signatures,
    tensor,
)
from .model import Model, load
from .model_spec import ModelSpec
from .noise import Noise
from .posterior import Latents, Level, Posterior
from .preprocessing import Preprocessing, values_text
from .program import Guide, Parameters, Program, load_program
from .program_spec import ArgumentSpec, DrawSpec, ProgramSpec, SiteSpec
from .providers import ProviderOptions
from .scores import Score
from .untrusted import GraphVersions, check_graph
from .verify import BATCH_SIZES, Check, Reference, Report, RunnableGraph, verify_graphs

__version__ = "0.1.0"

__all__ = [
    "BATCH_SIZES",
    "MANIFEST_FILE",
    "MODEL_PROPERTY",
    "PARTS",
    "SCHEMA_VERSION",
    "SIGNATURE_FILE",
    "ArgumentSpec",
    "Bundle",
    "BundleError",
    "Check",
    "DatasetSpec",
    "DrawSpec",
    "EdgeVAEError",
    "FileEntry",
    "GraphName",
    "GraphSpec",
    "GraphVersions",
    "Guide",
    "InputError",
    "InstallError",
    "Latents",
    "Level",
    "Manifest",
    "Model",
    "ModelSpec",
    "Noise",
    "Parameters",
    "Part",
    "Posterior",
    "Precision",
    "PrecisionSpec",
    "Preprocessing",
    "Program",
    "ProgramSpec",
    "ProviderError",
    "ProviderOptions",
    "ReducedPrecision",
    "Reference",
    "Report",
    "RunnableGraph",
    "Score",
    "Signature",
    "SignatureError",
    "SiteSpec",
    "TensorSpec",
    "Tolerances",
    "check_graph",
    "graphs_of",
    "level_names",
    "load",
    "load_program",
    "part_of",
    "signatures",
    "tensor",
    "values_text",
    "verify_graphs",
]
