"""`manifest.json`, which describes a bundle; and the inputs and outputs that each of its graphs must have."""

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec

from .errors import BundleError, printable
from .model_spec import ModelSpec
from .preprocessing import Preprocessing
from .program_spec import ProgramSpec
from .record import MAX_VALUES, Record, Size, Text

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 2**20
MODEL_PROPERTY = "edgevae.model"
"""Property of each ONNX graph that holds the model's choices, so that the manifest can be checked against them."""

# Patterns end with \Z, because $ also matches before a line end.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z.!+]+\Z", max_length=100)]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z", max_length=200)]
RowCount = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
FileSize = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""Bytes of a file; no protobuf, and so no ONNX graph, may have more."""
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Tolerance = Annotated[float, msgspec.Meta(ge=0)]
GraphName = Literal["encoder", "decoder", "reconstruct", "elbo", "observation", "prior", "sample"]
ReducedPrecision = Literal["fp16", "int8"]
Precision = Literal["fp32", "fp16", "int8"]
Part = Literal["all", "encoder", "decoder"]
"""Part of a model that a bundle holds."""
PARTS: tuple[Part, ...] = get_args(Part)

_GRAPHS_OF: dict[Part, tuple[GraphName, ...]] = {
    "all": get_args(GraphName),
    "encoder": ("encoder",),
    "decoder": ("decoder", "prior"),
}
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SHOWN = 500


class FileEntry(Record, frozen=True, kw_only=True):
    """A file of the bundle: its name in the folder, and what its content must be."""

    file: FileName
    sha256: Sha256
    size_bytes: FileSize

    @classmethod
    def of(cls, file: str, content: bytes) -> "FileEntry":
        """Return the entry of a file with this name and content."""
        return cls(file=file, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


class TensorSpec(Record, frozen=True, kw_only=True):
    """An input or output of a graph; the first axis is `batch`."""

    name: Text
    dtype: Literal["float32", "int64"]
    shape: Annotated[tuple[Literal["batch"] | Size, ...], msgspec.Meta(min_length=1, max_length=64)]

    def __post_init__(self) -> None:
        if self.shape[0] != "batch" or "batch" in self.shape[1:] or math.prod(self.row_shape) > MAX_VALUES:
            raise ValueError(
                f"the shape of {self.name} must be batch, and then sizes with at most {MAX_VALUES} values, "
                f"got {self.shape}"
            )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(int(size) for size in self.shape[1:])


class GraphSpec(Record, frozen=True, kw_only=True):
    """An ONNX graph: its file, what goes in and out, and the format's versions."""

    file: FileEntry
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: Size
    ir_version: Size


class PrecisionSpec(Record, frozen=True, kw_only=True):
    """Graphs of the networks in a lower precision, beside those in float32.

    Args:
        graphs: Their files, by the graph's name.
        elbo_lost_nats: How much lower the mean ELBO of the reference's samples is than in float32, nats per row.
        limit_nats: The largest loss that is allowed, at export and on any device.
    """

    graphs: dict[GraphName, FileEntry]
    elbo_lost_nats: float
    limit_nats: Tolerance


class Tolerances(Record, frozen=True, kw_only=True):
    """How far this bundle may be from Pyro: `|actual - expected| <= atol * unit + rtol * |expected|` for each value.

    A value that float32 determines less exactly, as of an outlier, may be off by four times its own rounding, see
    `Reference`.

    Args:
        atol: Absolute part, for the outputs of the graphs. Its unit is 1; for the terms of the ELBO, the number of
            values that they sum; for values in the data's units, the largest of the column if that is above 1.
        rtol: Relative part, for the outputs of the graphs.
        kl_nats: Limit of KL(q_pyro ‖ q_onnx) of each row, in nats.
        elbo_nats: Limit of the ELBO's drift on each row, in nats, beside a millionth of the ELBO.
    """

    atol: Tolerance = 1e-5
    rtol: Tolerance = 1e-5
    kl_nats: Tolerance = 1e-6
    elbo_nats: Tolerance = 1e-2


class DatasetSpec(Record, frozen=True, kw_only=True):
    """What the model was trained on and tested with.

    Args:
        name: The data set.
        num_train: Number of training images; 0 where they are not known: weights from elsewhere, which were only tested
            with the data set.
        num_test: Number of test images.
        test_elbo_nats: Mean ELBO of the whole test set, nats per image.
        num_particles: Draws of z per image with which the ELBO is estimated.
        binarize: How grey values were made 0 or 1: `none`, `threshold` (at one half), or `stochastic` (the grey value
            is the probability of 1).
        elbo_quantiles: Quantiles of the ELBO of single test images: pairs of a probability and an ELBO in nats, both
            ascending; empty if they are not known.
        class_names: Names of a conditional model's classes, in the order of their numbers; empty if they have none.
    """

    name: Text
    num_train: RowCount
    num_test: Size
    test_elbo_nats: float
    num_particles: Size
    binarize: Literal["none", "threshold", "stochastic"]
    elbo_quantiles: tuple[tuple[Probability, float], ...] = ()
    class_names: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        if list(self.elbo_quantiles) != sorted(self.elbo_quantiles) or any(
            lower[1] > upper[1] for lower, upper in itertools.pairwise(self.elbo_quantiles)
        ):
            raise ValueError("elbo_quantiles must ascend")


class Manifest(Record, frozen=True, kw_only=True):
    """The whole of `manifest.json`.

    Args:
        schema_version: Version of this schema, 1.
        name: The model's name.
        version: The model's version, as Python packages count, like `1.0.0`.
        license: The model's license, an SPDX expression like `Apache-2.0`; empty if none was stated.
        model: Choices and sizes.
        latent_space_id: Names the latent space: the same for all graphs and bundles of the same weights.
        graphs: The ONNX graphs by name; a bundle of one part holds only those of that part, a bundle for PyTorch none.
        precisions: The networks' graphs in lower precisions, by the precision's name.
        torch_files: Programs for PyTorch by name (`encoder.ts`, `decoder.pt2`, ...); this runtime does not read them.
        reference: Pyro's own numbers, for verification on the device.
        tolerances: How far the bundle's numbers may be from them.
        preprocessing: What is done to values before a graph gets them, if anything.
        dataset: What the model was trained on and tested with; `None` if the exporter was not told.
        training: How it was trained, by the names of the options; empty if the exporter was not told.
        producers: Versions of the packages that made the bundle.
    """

    schema_version: Literal[1]
    name: Text
    version: Version
    license: Text
    model: ModelSpec
    latent_space_id: Sha256
    graphs: dict[GraphName, GraphSpec]
    precisions: dict[ReducedPrecision, PrecisionSpec] = msgspec.field(default_factory=dict)
    torch_files: dict[Text, FileEntry]
    reference: FileEntry
    tolerances: Tolerances
    preprocessing: Preprocessing | None = None
    dataset: DatasetSpec | None
    training: dict[Text, bool | int | float | str]
    producers: dict[Text, Text]

    def __post_init__(self) -> None:
        names = self.dataset.class_names if self.dataset is not None else ()
        if names and len(names) != self.model.num_classes:
            raise ValueError(f"class_names must name {self.model.num_classes} classes, got {len(names)}")

    def encode(self) -> bytes:
        """Return the manifest as indented JSON, without preprocessing or class names if there are none."""
        content = msgspec.to_builtins(self)
        if self.preprocessing is None:
            del content["preprocessing"]
        if self.dataset is not None and not self.dataset.class_names:
            del content["dataset"]["class_names"]
        return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"

    @staticmethod
    def decode(content: bytes) -> "Manifest":
        """Read a manifest.

        Raises:
            BundleError: It is not JSON, of another schema version, or does not fit the schema.
        """
        try:
            written = msgspec.json.decode(content, type=_Version)
            if (version := written.schema_version) != SCHEMA_VERSION:
                raise BundleError(
                    f"{MANIFEST_FILE} has schema version {version}, this runtime reads {SCHEMA_VERSION}; "
                    f"{written.remedy}"
                )
            manifest = msgspec.json.decode(content, type=Manifest)
            # A colon outside of strings follows each name: more colons than decoded names are duplicates.
            if _STRING.sub(b"", content).count(b":") != _count_names(msgspec.json.decode(content)):
                raise BundleError(f"{MANIFEST_FILE} says something twice, under the same name; export the model again")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            said = printable(str(error)[:_SHOWN])
            raise BundleError(f"{MANIFEST_FILE} is not a valid manifest: {said}; export the model again") from error
        return manifest


def _count_names(value: Any) -> int:
    """Return the number of names in decoded JSON, at all depths."""
    if isinstance(value, dict):
        return len(value) + sum(map(_count_names, value.values()))
    return sum(map(_count_names, value)) if isinstance(value, list) else 0


class _Version(msgspec.Struct):
    """The part of a manifest that every schema version has: the versions of the schema and of edgevae."""

    schema_version: int
    producers: Any = None

    @property
    def remedy(self) -> str:
        if self.schema_version < SCHEMA_VERSION:
            return "export the model again"
        wrote = self.producers.get("edgevae") if isinstance(self.producers, dict) else None
        known = isinstance(wrote, str) and re.fullmatch(r"[0-9A-Za-z.!+]{1,100}", wrote)
        return "install a newer edgevae" + (f": {wrote}, which wrote it, or later" if known else "")


class Signature(msgspec.Struct, frozen=True):
    """The inputs and the outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def level_names(name: str, num_levels: int) -> tuple[str, ...]:
    """Return the names of a quantity that each level has: `eps`, `eps_2`, `eps_3`, ..."""
    return tuple(name if level == 0 else f"{name}_{level + 1}" for level in range(num_levels))


def signatures(model: ModelSpec, parameters: Sequence[TensorSpec]) -> dict[GraphName, Signature]:
    """Return the signature of each graph that a model has.

    A hierarchy's quantities above z are numbered from 2. Its encoder takes the noise of all levels but the highest,
    because each level depends on a draw of the one below. Latents that are a standard normal have no graph `prior`.

    Args:
        model: Choices and sizes.
        parameters: The likelihood's parameters, `loc_img` first.
    """
    x, z = tensor("x", model.data_dim), tensor("z", model.z_dim)
    y = (tensor("y", dtype="int64"),) if model.num_classes else ()
    levels = len(model.z_dims)
    eps = _levels("eps", model)
    locs, scales = _levels("z_loc", model), _levels("z_scale", model)
    posterior = tuple(part for level in zip(locs, scales, strict=True) for part in level)
    if model.latent == "mixture":
        posterior += (tensor("component_probs", model.num_components),)
    terms = (tensor("log_px_z"), tensor("log_pz"), tensor("log_qz_x"))
    parameters = tuple(parameters)
    found: dict[GraphName, Signature] = {
        "encoder": Signature((x, *y, *eps[: levels - 1]), posterior),
        "decoder": Signature((z, *y), parameters),
        "reconstruct": Signature((x, *y, eps[0]), parameters[:1]),
        "elbo": Signature((x, z, locs[0], scales[0], *parameters, *eps[1:]), terms),
    }
    if model.has_draws:
        eps_obs = tensor("eps_obs", model.data_dim)
        found["observation"] = Signature((*parameters, eps_obs), (tensor("obs", model.data_dim),))
    z_prior = (tensor("z_prior", model.z_dim),)
    if model.latent in ("hierarchical", "program"):
        found["prior"] = Signature(eps, z_prior)
    if model.latent == "mixture":
        prior_probs = tensor("prior_probs", model.num_components)
        found["prior"] = Signature((tensor("component", dtype="int64"), eps[0]), (*z_prior, prior_probs))
    return found


def graphs_of(part: Part, graphs: Sequence[GraphName]) -> list[GraphName]:
    """Return those of a model's graphs that belong to a part of it."""
    return [name for name in graphs if name in _GRAPHS_OF[part]]


def part_of(manifest: Manifest) -> Part:
    """Return which part of its model a bundle holds."""
    return next((part for part in PARTS[1:] if set(manifest.graphs) <= set(_GRAPHS_OF[part])), "all")


def check_signatures(manifest: Manifest) -> None:
    """Refuse a manifest whose graphs are not those of the model that it describes, or of one of its parts.

    Raises:
        BundleError: A graph is missing or too much, or has an input or output of another name or size.
    """
    contradiction = "the manifest contradicts itself: {}; export the model again"
    if manifest.model.program is not None:
        _check_program(manifest, manifest.model.program, contradiction)
        return
    part = part_of(manifest)
    loc_img = tensor("loc_img", manifest.model.data_dim)
    parameters = manifest.graphs["decoder"].outputs if "decoder" in manifest.graphs else (loc_img,)
    if parameters[:1] != (loc_img,):
        raise BundleError(
            contradiction.format(f"the first output of decoder is no loc_img of {manifest.model.data_dim}")
        )
    expected = signatures(manifest.model, parameters)
    if set(manifest.graphs) != set(graphs_of(part, list(expected))):
        raise BundleError(
            contradiction.format(f"its graphs are {', '.join(manifest.graphs)}, the model's {', '.join(expected)}")
        )
    others = signatures(manifest.model, ()).values()
    known = [spec.name for signature in others for spec in (*signature.inputs, *signature.outputs)]
    names = [spec.name for spec in parameters]
    if len(set(names)) < len(names) or set(names[1:]).intersection(known):
        raise BundleError(contradiction.format(f"the outputs of decoder, {_text(parameters)}, need names of their own"))
    for precision, reduced in manifest.precisions.items():
        if not reduced.graphs or not set(reduced.graphs) <= set(manifest.graphs) or part != "all":
            raise BundleError(contradiction.format(f"{precision} has {', '.join(reduced.graphs) or 'no graphs'}"))
    for name, graph in manifest.graphs.items():
        for what, found, wanted in (
            ("inputs", graph.inputs, expected[name].inputs),
            ("outputs", graph.outputs, expected[name].outputs),
        ):
            if found != wanted:
                raise BundleError(
                    contradiction.format(f"the {what} of {name} are {_text(found)}, the model's are {_text(wanted)}")
                )


def _check_program(manifest: Manifest, program: ProgramSpec, contradiction: str) -> None:
    """Refuse a program's graphs that take or give what the program does not have."""
    shapes, arguments = program.tensors(), {argument.name: argument.dtype for argument in program.arguments}
    if missing := [name for name in ("encoder", "elbo") if name not in manifest.graphs]:
        raise BundleError(contradiction.format(f"it has no graph {' and '.join(missing)}"))
    for precision, reduced in manifest.precisions.items():
        if not reduced.graphs or not set(reduced.graphs) <= set(manifest.graphs):
            raise BundleError(contradiction.format(f"{precision} has {', '.join(reduced.graphs) or 'no graphs'}"))
    for name, graph in manifest.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            dtype = arguments.get(spec.name, "float32") if spec in graph.inputs else "float32"
            if (spec.dtype, spec.row_shape) != (dtype, shapes.get(spec.name)):
                raise BundleError(contradiction.format(f"{name} has {_text([spec])}, which the program does not have"))
        names = [spec.name for spec in graph.outputs]
        if not graph.inputs or not names or len(set(names)) < len(names):
            raise BundleError(
                contradiction.format(f"{name} must take something, and give outputs with names of their own")
            )


def tensor(name: str, *sizes: int, dtype: Literal["float32", "int64"] = "float32") -> TensorSpec:
    """Return the tensor of a name with rows of these sizes."""
    return TensorSpec(name=name, dtype=dtype, shape=("batch", *sizes))


def _levels(name: str, model: ModelSpec) -> tuple[TensorSpec, ...]:
    names = level_names(name, len(model.z_dims))
    return tuple(tensor(name, size) for name, size in zip(names, model.z_dims, strict=True))


def _text(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.shape[1:]}" for tensor in tensors)
