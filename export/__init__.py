"""Turn a trained VAE into a verified bundle.

    from pathlib import Path
    from export import Source, export_bundle
    from train import load_run

    run = load_run(Path("runs/digits-mlp"))
    source = Source("digits", run.vae, run.samples, "test images of digits", dataset=None)
    for report in export_bundle(source, Path("models/digits"), ["onnx", "torchscript"]):
        print(report)

On the command line: `vae-export --help`.
"""

from export import _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from export._bundle_writer import FORMATS, Format, export_bundle, latent_space_id
from export._errors import ExportError, GraphError, PrecisionError, StateDictError, VerificationError
from export._onnx_format import DEFAULT_OPSET
from export._precision import LIMITS_NATS
from export._preprocessing import preprocessing_spec
from export._reference import make_reference
from export._sign import SigningKey
from export._source import Source
from export._state_dict import load_state_dict
from export._wheel import build_wheel

__all__ = [
    "DEFAULT_OPSET",
    "FORMATS",
    "LIMITS_NATS",
    "ExportError",
    "Format",
    "GraphError",
    "PrecisionError",
    "SigningKey",
    "Source",
    "StateDictError",
    "VerificationError",
    "build_wheel",
    "export_bundle",
    "latent_space_id",
    "load_state_dict",
    "make_reference",
    "preprocessing_spec",
]
