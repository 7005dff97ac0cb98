"""The public names of `edgevae.export`."""

from . import requirements as _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from edgevae.train.conversion import DEFAULT_OPSET

from .bundle_writer import FORMATS, Format, export_bundle, latent_space_id
from .card import renew_card
from .errors import ExportError, GraphError, PrecisionError, StateDictError, VerificationError
from .precision import LIMITS_NATS
from .reference import make_reference
from .sign import SigningKey
from .source import Source
from .state_dict import load_state_dict
from .wheel import build_wheel

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
    "renew_card",
]
