"""`manifest.json`: what a bundle says about itself, written by the exporter and read by the runtime through this."""

import hashlib
import itertools
from typing import Annotated, Literal

import msgspec

from ._errors import BundleError
from ._model_spec import ModelSpec, Record, Size
from ._preprocessing import PreprocessingSpec

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_FILE = "manifest.json"
MODEL_PROPERTY = "edgevae.model"
"""Where each ONNX graph carries the model's choices, so that a manifest cannot contradict them."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z.!+]+$")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Tolerance = Annotated[float, msgspec.Meta(ge=0)]
GraphName = Literal["encoder", "decoder", "reconstruct", "elbo", "observation", "prior"]
ReducedPrecision = Literal["fp16", "int8"]
Precision = Literal["fp32", "fp16", "int8"]


class FileEntry(Record, frozen=True, kw_only=True):
    """A file of the bundle: its name in the folder, and what its content must be."""

    file: FileName
    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]

    @classmethod
    def of(cls, file: str, content: bytes) -> "FileEntry":
        """Return the entry of a file with this name and content."""
        return cls(file=file, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


class TensorSpec(Record, frozen=True, kw_only=True):
    """An input or output of a graph; the first axis is `batch`."""

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[Literal["batch"] | Size, ...]

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
        elbo_lost_nats: By how much the mean ELBO of the reference's samples is lower than in float32, nats a row.
        limit_nats: How much it was allowed to be, here and on any device.
    """

    graphs: dict[GraphName, FileEntry]
    elbo_lost_nats: float
    limit_nats: Tolerance


class Tolerances(Record, frozen=True, kw_only=True):
    """How far this bundle may be from Pyro: `|actual - expected| <= atol + rtol * |expected|` for each value.

    Args:
        atol: Absolute part, for the outputs of the graphs; for the terms of the ELBO, of each value that they sum.
        rtol: Relative part, for the outputs of the graphs.
        kl_nats: Limit of KL(q_pyro ‖ q_onnx) of each row, in nats.
        elbo_nats: Limit of the ELBO's drift on each row, in nats.
    """

    atol: Tolerance = 1e-5
    rtol: Tolerance = 1e-5
    kl_nats: Tolerance = 1e-6
    elbo_nats: Tolerance = 1e-2


class DatasetSpec(Record, frozen=True, kw_only=True):
    """What the model was trained on.

    Args:
        name: The data set.
        num_train: Number of training images.
        num_test: Number of test images.
        test_elbo_nats: Mean ELBO of the whole test set, nats an image.
        num_particles: Draws of z an image that the ELBO is estimated from.
        binarize: What was made of grey values before the model saw them: `none`, `threshold` (0 or 1 at one half) or
            `stochastic` (0 or 1, the grey value being the probability of 1).
        elbo_quantiles: How the ELBO of single test images is distributed, in nats: pairs of a probability and the value
            below which that part of the images lies, both ascending; empty where it is not known.
        class_names: Names of the classes that a conditional model sees, in the order of their numbers; empty where they
            have none.
    """

    name: str
    num_train: Size
    num_test: Size
    test_elbo_nats: float
    num_particles: Size
    binarize: Literal["none", "threshold", "stochastic"]
    elbo_quantiles: tuple[tuple[Probability, float], ...] = ()
    class_names: tuple[str, ...] = ()

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
        license: The model's license, an SPDX expression like `Apache-2.0`; empty where none was stated.
        model: Choices and sizes.
        latent_space_id: Names the latent space: the same for all graphs and bundles of the same weights.
        graphs: The ONNX graphs by name; those of the encoder or of the decoder alone in a bundle of that part, none in
            a bundle for PyTorch only.
        precisions: The networks' graphs in lower precisions, by its name; empty where only float32 was asked for.
        torch_files: Programs for PyTorch by name (`encoder.ts`, `decoder.pt2`, ...); this runtime does not read them.
        reference: What Pyro itself computed, for verification on the device.
        tolerances: How far the bundle may be from it.
        preprocessing: What is done to values before a graph gets them; `None` where there is nothing to tell.
        dataset: What the model was trained on; `None` where the exporter was not told.
        training: How it was trained, by the names of the options; empty where the exporter was not told.
        producers: Versions of the packages that made the bundle.
    """

    schema_version: Literal[1]
    name: str
    version: Version
    license: str
    model: ModelSpec
    latent_space_id: Sha256
    graphs: dict[GraphName, GraphSpec]
    precisions: dict[ReducedPrecision, PrecisionSpec] = msgspec.field(default_factory=dict)
    torch_files: dict[str, FileEntry]
    reference: FileEntry
    tolerances: Tolerances
    preprocessing: PreprocessingSpec | None = None
    dataset: DatasetSpec | None
    training: dict[str, bool | int | float | str]
    producers: dict[str, str]

    def __post_init__(self) -> None:
        names = self.dataset.class_names if self.dataset is not None else ()
        if names and len(names) != self.model.num_classes:
            raise ValueError(f"class_names must name {self.model.num_classes} classes, got {len(names)}")

    def encode(self) -> bytes:
        """Return the manifest as indented JSON; without preprocessing and class names where there are none."""
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
            version = msgspec.json.decode(content, type=_Version).schema_version
            if version != SCHEMA_VERSION:
                raise BundleError(
                    f"{MANIFEST_FILE} has schema version {version}, this runtime reads {SCHEMA_VERSION}; "
                    f"{'install a newer edgevae' if version > SCHEMA_VERSION else 'export the model again'}"
                )
            return msgspec.json.decode(content, type=Manifest)
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
        ) as error:
            raise BundleError(f"{MANIFEST_FILE} is not a valid manifest: {error}; export the model again") from error


class _Version(msgspec.Struct):
    schema_version: int
