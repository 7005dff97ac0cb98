"""The model card: a bundle's README.md, `samples.png` and `traversal.png`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from edgevae import Bundle, Manifest, ModelSpec, Part, PrecisionSpec, Reference, Report, load, part_of, values_text
from edgevae.images import can_draw, save_grid

from .errors import ExportError
from .precision import left_in_float32
from .torch_formats import TORCH_SUFFIXES, TorchGraph, verify_torch

CARD_FILE, SAMPLES_FILE, TRAVERSAL_FILE = "README.md", "samples.png", "traversal.png"

_COLUMNS = 12
_MAX_TRAVERSED = 8  # dimensions in traversal.png
_SPAN = 3.0  # standard deviations of a dimension over the samples, to either side of its mean
_SEED = 0
_ACTIVE_VARIANCE = 0.01  # as in `Model.active_units`
_VISIBLE = 0.25  # a unit is drawn if its largest change is at least this share of the strongest unit's
_TRAINED_ELSEWHERE = "| trained on | not known: trained elsewhere |"
_BINARIZED = {
    "none": "",
    "threshold": ", binarized at one half",
    "stochastic": ", binarized: 1 with the grey value as probability",
}

FloatArray = NDArray[np.float32]


class Decoder(Protocol):
    """The methods that the pictures need. A loaded bundle has them, and a model that is exported."""

    @property
    def component_probs(self) -> FloatArray:
        """p(c) of a mixture's components, shape `(components,)`; empty for other latents."""

    def decode(self, z: Any, *, y: Any = None) -> FloatArray:
        """Return the observations' means for latents, shape `(count, data_dim)`."""

    def generate(self, n: int, seed: int, *, y: Any = None, component: Any = None) -> FloatArray:
        """Return the means for `n` draws of the prior, shape `(n, data_dim)`."""


def write_site_card(folder: Path, manifest: Manifest, reports: Sequence[Report], *, samples_note: str) -> None:
    """Write the README.md of a program's bundle: its arguments, its sites, how to use it, and what was verified.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        reports: The verifications that it passed.
        samples_note: What it was verified with.
    """
    program = manifest.model.program
    if program is None or manifest.dataset is None:
        raise AssertionError
    takes = ", ".join(argument.name for argument in program.arguments)
    rows = [
        f"| {site.name} | {site.role} | {site.distribution} | {_size(site.shape)} | {', '.join(site.parameters)} |"
        for site in program.sites
    ]
    arguments = [f"- `{each.name}`: {each.dtype}, rows of {_size(each.shape)}" for each in program.arguments]
    seeds = f"A seed gives other samples than Pyro's: {program.why_other_samples}."
    code = [
        "import edgevae  # pip install 'edgevae[cpu]'",
        "",
        f'model = edgevae.load_program("{manifest.name}")  # the path of this folder',
        f"q = model.encode({takes})  # parameters of each site of the guide, like q[site].loc",
        "latents = q.sample(seed=0)",
        f"scores = model.score({takes})  # nats a row; model.is_anomaly says which rows are unusual",
    ]
    text = [
        f"# {manifest.name}",
        "",
        "A Pyro program, exported by EdgeVAE. Runs with NumPy and ONNX Runtime.",
        "",
        "## Arguments",
        "",
        *arguments,
        "",
        "## Sites",
        "",
        "| site | role | distribution | row | parameters |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Mean ELBO {manifest.dataset.test_elbo_nats:.2f} nats a row, of {manifest.dataset.num_test:,} {samples_note}.",
        "A seed gives the samples that it gives in Pyro." if not program.why_other_samples else seeds,
        "",
        *(
            f"In {name}, networks of {_kilobytes(spec)} kB lose {spec.elbo_lost_nats:.3f} nats a row of the mean ELBO"
            f"{_left(spec)}.\n"
            for name, spec in manifest.precisions.items()
        ),
        "## Use",
        "",
        *(["```python", *code, "```"] if manifest.graphs else _torch_use(manifest)),
        "",
        "## Verified against Pyro",
        "",
        *(f"```\n{report}\n```\n" for report in reports),
    ]
    (folder / CARD_FILE).write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def write_card(
    folder: Path,
    manifest: Manifest,
    reports: Sequence[Report],
    reference: Reference,
    decoder: Decoder,
    *,
    samples_note: str,
    collapse_advice: str = "",
) -> None:
    """Write a bundle's README.md, and its pictures where observations are images.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        reports: The verifications that it passed.
        reference: Samples, their latents and their reconstructions.
        decoder: Decodes latents for the pictures.
        samples_note: What the samples are, like `test images of mnist`.
        collapse_advice: A warning of posterior collapse, or empty.
    """
    model, active = manifest.model, _active_units(reference)
    pictures = []
    if can_draw(model.data_shape):
        note = f"{samples_note[0].upper()}{samples_note[1:]}, their reconstructions, and samples of the prior."
        _draw_samples(folder, model, reference, decoder)
        pictures.append(("originals, reconstructions, samples", SAMPLES_FILE, note))
        traversed = _draw_traversal(folder, model, reference, decoder, active)
        note = (
            f"The first image, with one active unit of its latent a row moved from -{_SPAN:g} to {_SPAN:g} standard "
            f"deviations: the {traversed} of {len(active)} active units that change it most."
        )
        pictures += [("traversal of the latent", TRAVERSAL_FILE, note)] * (traversed > 0)
    shape = " x ".join(map(str, model.data_shape))
    names = () if manifest.dataset is None else manifest.dataset.class_names
    classes = f" ({', '.join(names)})" if names else ""
    lines = [
        f"# {manifest.name}",
        "",
        "A variational autoencoder, trained with Pyro and exported by EdgeVAE. Runs with NumPy and ONNX Runtime.",
        "",
        *(line for title, file, note in pictures for line in (f"![{title}]({file})", "", note, "")),
        *([f"**Warning:** {collapse_advice}.", ""] if collapse_advice else []),
        "| | |",
        "| --- | --- |",
        f"| architecture | {model.architecture}, {model.sizes} |",
        f"| observations | shape {shape}, {_values(manifest)} |",
        *([f"| preprocessing | {done}, by the runtime |"] if (done := _preprocessing(manifest)) else []),
        f"| likelihood | {model.likelihood} |",
        f"| latent | {model.latent_text} |",
        f"| active units | {len(active)} of {model.z_dim}, measured on {_num_samples(reference)} samples |",
        *([f"| labels | {model.num_classes} classes{classes}, inputs of both networks |"] * (model.num_classes > 0)),
        *_dataset_lines(manifest),
        f"| version | {manifest.version} |",
        *([f"| license | {manifest.license} |"] if manifest.license else []),
        *([f"| holds | the {part_of(manifest)} alone |"] if part_of(manifest) != "all" and manifest.graphs else []),
        *(
            f"| {name} | loses {spec.elbo_lost_nats:.3f} nats a row of the mean ELBO; networks "
            f"{_kilobytes(spec)} kB{_left(spec)} |"
            for name, spec in manifest.precisions.items()
        ),
        f"| latent space | `{manifest.latent_space_id[:16]}` |",
        f"| made with | {', '.join(f'{name} {version}' for name, version in manifest.producers.items())} |",
        "",
        "## Use",
        "",
        *(_onnx_use(manifest) if manifest.graphs else _torch_use(manifest)),
        "",
        "## Verified against Pyro",
        "",
        *(line for report in reports for line in ("```", str(report), "```", "")),
    ]
    (folder / CARD_FILE).write_text("\n".join(lines), encoding="utf-8")


def renew_card(folder: Path) -> None:
    """Write the README.md and the pictures of a bundle again, from its own graphs and reference.

    Manifest, graphs and reference stay as they are, and a signature stays valid.

    Args:
        folder: A bundle of the whole model with ONNX graphs.

    Raises:
        BundleError: There is no bundle, or it is damaged.
        ExportError: It holds a part of the model only, or no ONNX graphs.
    """
    bundle = Bundle(folder)
    manifest = bundle.manifest
    if not manifest.graphs or part_of(manifest) != "all":
        raise ExportError(f"{folder} must hold the ONNX graphs of the whole model, from which its card is made")
    if manifest.model.program is not None:
        raise ExportError(f"{folder} holds a program that is used by its sites, whose card is written at export alone")
    reference = Reference.decode(bundle.read(manifest.reference))
    samples_note = f"test images of {manifest.dataset.name}" if manifest.dataset else "samples of the reference"
    reports = []
    for format_name, suffix in TORCH_SUFFIXES.items():
        if f"encoder{suffix}" in manifest.torch_files:
            reports.append(verify_torch(bundle, format_name, manifest.graphs, {"elbo": _elbo_graph(bundle)}))
    for precision in manifest.precisions:
        with load(folder, provider="cpu", precision=precision) as reduced:
            reports.append(reduced.verify())
    with load(folder, provider="cpu") as model:
        write_card(folder, manifest, [model.verify(), *reports], reference, model, samples_note=samples_note)


def _elbo_graph(bundle: Bundle) -> TorchGraph:
    """Return a bundle's `elbo.onnx`, which computes the ELBO of its files for PyTorch."""
    spec = bundle.manifest.graphs["elbo"]
    session = onnxruntime.InferenceSession(bundle.read(spec.file), providers=["CPUExecutionProvider"])

    def terms(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = {entry.name: tensor.numpy() for entry, tensor in zip(spec.inputs, tensors, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, inputs))

    return TorchGraph(spec, terms)


def _num_samples(reference: Reference) -> int:
    return int((reference.case == "sample").sum())


def _active_units(reference: Reference) -> NDArray[np.int64]:
    """Return the active units: Var_x(E_q(z|x)[z]) > 0.01 over the samples (Burda et al., 2016, arXiv:1509.00519)."""
    z_loc = reference["z_loc"][reference.case == "sample"]
    return np.flatnonzero(z_loc.astype(np.float64).var(axis=0) > _ACTIVE_VARIANCE)


def _draw_samples(folder: Path, model: ModelSpec, reference: Reference, decoder: Decoder) -> None:
    rows = np.flatnonzero(reference.case == "sample")
    first = rows[:_COLUMNS]
    sets = {
        "originals": reference["x"][first],
        "reconstructions": reference["loc_img"][first],
        **_prior_samples(model, decoder),
    }
    save_grid(folder / SAMPLES_FILE, _grey(model, reference["x"][rows], sets), model.data_shape, _COLUMNS)


def _prior_samples(model: ModelSpec, decoder: Decoder) -> dict[str, FloatArray]:
    """Return samples of the prior: of each class, or each component with the likeliest first, or two rows."""
    if model.num_classes:
        y = np.repeat(np.arange(model.num_classes), _COLUMNS)
        names, samples = [f"class {c}" for c in range(model.num_classes)], decoder.generate(len(y), _SEED, y=y)
    elif model.num_components:
        components = np.argsort(-decoder.component_probs, kind="stable")
        names = [f"component {c}" for c in components]
        samples = decoder.generate(len(components) * _COLUMNS, _SEED, component=np.repeat(components, _COLUMNS))
    else:
        return {"samples": decoder.generate(2 * _COLUMNS, _SEED)}
    return dict(zip(names, np.split(samples, len(names)), strict=True))


def _draw_traversal(
    folder: Path, model: ModelSpec, reference: Reference, decoder: Decoder, active: NDArray[np.int64]
) -> int:
    """Draw the first sample with one active unit a row moved; return how many units were drawn.

    Units with little effect compared with the strongest are left out. Without any active unit there is no picture.
    """
    rows = np.flatnonzero(reference.case == "sample")
    z_loc = reference["z_loc"][rows]
    y = np.repeat(reference["y"][rows[:1]], _COLUMNS) if "y" in reference.arrays else None
    decoded = {}
    for unit in active:
        z = np.repeat(z_loc[:1], _COLUMNS, axis=0)
        z[:, unit] = z_loc[:, unit].mean() + np.linspace(-_SPAN, _SPAN, _COLUMNS) * z_loc[:, unit].std()
        decoded[f"z[{unit}]"] = decoder.decode(z, y=y)
    shown = _grey(model, reference["x"][rows], decoded)
    if not shown:
        (folder / TRAVERSAL_FILE).unlink(missing_ok=True)
        return 0
    changes = {name: float(np.ptp(images.clip(0, 1), axis=0).max()) for name, images in shown.items()}
    visible = [name for name, change in changes.items() if change >= _VISIBLE * max(changes.values())]
    most = sorted(visible, key=lambda name: -float(shown[name].var(axis=0).sum()))[:_MAX_TRAVERSED]
    save_grid(folder / TRAVERSAL_FILE, {name: shown[name] for name in most}, model.data_shape, _COLUMNS)
    return len(most)


def _grey(model: ModelSpec, samples: FloatArray, sets: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Bring values to [0, 1], one scale for all: the samples' range, of each column where observations are rows."""
    if model.unit_interval:
        return dict(sets)
    axis = 0 if len(model.data_shape) == 1 else None
    low, high = samples.min(axis), samples.max(axis)
    span = np.where(high > low, high - low, np.float32(1))
    return {name: (values - low) / span for name, values in sets.items()}


def _values(manifest: Manifest) -> str:
    if manifest.preprocessing is not None and manifest.preprocessing.scale is not None:
        return values_text(manifest.model, manifest.preprocessing)
    return f"values in {'[0, 1]' if manifest.model.unit_interval else 'any range'} (or uint8 in [0, 255])"


def _preprocessing(manifest: Manifest) -> str:
    return "" if manifest.preprocessing is None else manifest.preprocessing.text


def _left(spec: PrecisionSpec) -> str:
    """Say which networks stay in float32."""
    left = left_in_float32(spec)
    return f"; {' and '.join(left)} in float32, with nothing to quantize" if left else ""


def _kilobytes(spec: PrecisionSpec) -> str:
    return f"{sum(entry.size_bytes for entry in spec.graphs.values()) / 1000:,.0f}"


def _dataset_lines(manifest: Manifest) -> list[str]:
    dataset = manifest.dataset
    if dataset is None:
        return [_TRAINED_ELSEWHERE]
    draws = f"{dataset.num_particles} particle{'s' * (dataset.num_particles > 1)}"
    bound = ", a bound on log p(x given y)" if manifest.model.num_classes else ""
    tested = f"{dataset.num_test} images{'' if dataset.num_train else f' of {dataset.name}'}"
    options = ", ".join(f"{name} {value}" for name, value in manifest.training.items())
    return [
        f"| trained on | {dataset.name}, {dataset.num_train} images{_BINARIZED[dataset.binarize]} |"
        if dataset.num_train
        else _TRAINED_ELSEWHERE,
        f"| test ELBO | {dataset.test_elbo_nats:.2f} nats an image{bound}, {tested}, {draws} |",
        *([f"| training | {options} |"] if options else []),
    ]


def _onnx_use(manifest: Manifest) -> Iterable[str]:
    y = f", y={min(3, manifest.model.num_classes - 1)}" if manifest.model.num_classes else ""
    scaled = manifest.preprocessing is not None and manifest.preprocessing.scale is not None
    to_raw = "images = model.manifest.preprocessing.raw(images)  # from [0, 1] to the values that encode takes"
    generate = f"images = model.generate(16, seed=0{y}).reshape(-1, *model.data_shape)"
    shape = ", ".join(map(str, manifest.model.data_shape))
    upper = {"hierarchical": ", and the upper levels", "mixture": ", component_probs"}.get(manifest.model.latent, "")
    lines: dict[Part, list[str]] = {
        "all": [
            generate,
            *([to_raw] * scaled),
            f"posterior = model.encode(images{y})  # z_loc, z_scale{upper}",
            f"loc_img = model.reconstruct(images{y}, seed=0)  # what Pyro's reconstruct_img gives from the same seed",
            f"elbo = model.elbo(images{y}, seed=0)  # nats a row",
        ],
        "encoder": [
            f"posterior = model.encode(x{y})  # x: shape (batch, {shape}); z_loc, z_scale{upper}",
            'posterior.z_loc.save("latents.npz")  # for the decoder, which checks that it has the same latent space',
        ],
        "decoder": [
            generate,
            f'loc_img = model.decode(edgevae.Latents.load("latents.npz"){y})  # what the encoder of this model saved',
        ],
    }
    return [
        "```python",
        "import edgevae  # pip install 'edgevae[cpu]'",
        "",
        f'model = edgevae.load("{manifest.name}")  # the path of this folder',
        *lines[part_of(manifest)],
        "```",
    ]


def _torch_use(manifest: Manifest) -> Iterable[str]:
    files = ", ".join(f"`{entry.file}`" for entry in manifest.torch_files.values())
    return [f"This bundle is for PyTorch only: {files}. Export with `--format onnx` to run without PyTorch."]
