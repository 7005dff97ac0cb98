"""The public names of `edgevae.export`."""

from . import requirements as _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from edgevae.train.conversion import DEFAULT_OPSET
from edgevae.train.program import ProgramReport, check_program

from .bundle_writer import FORMATS, Format, export_bundle, export_program
from .card import renew_card
from .errors import ExportError, GraphError, PrecisionError, StateDictError, VerificationError
from .exportable import latent_space_id
from .precision import LIMITS_NATS
from .program_sites import SiteProgram
from .program_vae import ProgramVAE
from .reference import make_reference
from .sign import SigningKey
from .source import Source, source_of_program
from .state_dict import REFERENCE_NAMES, reference_vae
from .weights import Weights, read_weights
from .wheel import build_wheel

__all__ = [
    "DEFAULT_OPSET",
    "FORMATS",
    "LIMITS_NATS",
    "REFERENCE_NAMES",
    "ExportError",
    "Format",
    "GraphError",
    "PrecisionError",
    "ProgramReport",
    "ProgramVAE",
    "SigningKey",
    "SiteProgram",
    "Source",
    "StateDictError",
    "VerificationError",
    "Weights",
    "build_wheel",
    "check_program",
    "export_bundle",
    "export_program",
    "latent_space_id",
    "make_reference",
    "read_weights",
    "reference_vae",
    "renew_card",
    "source_of_program",
]
