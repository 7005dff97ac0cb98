"""The public names of `edgevae.export`."""

from . import _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from ._bundle_writer import FORMATS, Format, export_bundle, latent_space_id
from ._errors import ExportError, GraphError, PrecisionError, StateDictError, VerificationError
from ._onnx_format import DEFAULT_OPSET
from ._precision import LIMITS_NATS
from ._preprocessing import preprocessing_spec
from ._reference import make_reference
from ._sign import SigningKey
from ._source import Source
from ._state_dict import load_state_dict
from ._wheel import build_wheel

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
