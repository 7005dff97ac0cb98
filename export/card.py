"""The model card: the bundle's README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevae import Manifest, ModelSpec, Part, PrecisionSpec, Report, part_of, values_text
from edgevae.images import can_draw

from .pictures import SAMPLES_FILE, TRAVERSAL_FILE

CARD_FILE = "README.md"

_BINARIZED = {
    "none": "",
    "threshold": ", grey values made 0 or 1 at one half",
    "stochastic": ", 0 or 1 drawn with the grey value as probability",
}


def write_card(folder: Path, manifest: Manifest, reports: Sequence[Report], data_note: str, generated: str) -> None:
    """Write the bundle's README.md.

    Args:
        folder: The bundle.
        manifest: What the bundle is.
        reports: The verifications that it passed.
        data_note: What the reference's samples and the picture's images are.
        generated: What the samples in the picture are.
    """
    model = manifest.model
    shape = " x ".join(map(str, model.data_shape))
    value_range, has_labels = _values(manifest), model.num_classes > 0
    lines = [
        f"# {manifest.name}",
        "",
        "A variational autoencoder, trained with Pyro and exported by EdgeVAE. Runs with NumPy and ONNX Runtime.",
        "",
        *(_picture_lines(data_note, generated) if can_draw(model.data_shape) else []),
        "| | |",
        "| --- | --- |",
        f"| architecture | {model.architecture}, {model.sizes} |",
        f"| observations | shape {shape}, {value_range} |",
        *([f"| preprocessing | {done}, by the runtime |"] if (done := _preprocessing(manifest)) else []),
        f"| likelihood | {model.likelihood} |",
        f"| latent | {model.latent_text} |",
        *([f"| labels | {model.num_classes} classes{_classes(manifest)}, seen by both networks |"] * has_labels),
        *_dataset_lines(manifest),
        f"| version | {manifest.version} |",
        *([f"| license | {manifest.license} |"] if manifest.license else []),
        *([f"| holds | the {part_of(manifest)} alone |"] if part_of(manifest) != "all" and manifest.graphs else []),
        *(
            f"| {name} | loses {spec.elbo_lost_nats:.3f} nats a row of the mean ELBO; networks {_kilobytes(spec)} kB |"
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


def _values(manifest: Manifest) -> str:
    if manifest.preprocessing is not None and manifest.preprocessing.scale is not None:
        return values_text(manifest.model, manifest.preprocessing)
    return f"values in {'[0, 1]' if manifest.model.unit_interval else 'any range'} (or uint8 in [0, 255])"


def _preprocessing(manifest: Manifest) -> str:
    return "" if manifest.preprocessing is None else manifest.preprocessing.text


def _classes(manifest: Manifest) -> str:
    names = () if manifest.dataset is None else manifest.dataset.class_names
    return f" ({', '.join(names)})" if names else ""


def _picture_lines(data_note: str, generated: str) -> list[str]:
    return [
        f"![test images, reconstructions, samples]({SAMPLES_FILE})",
        "",
        f"{data_note[0].upper()}{data_note[1:]}, their reconstructions below them, and then {generated}.",
        "",
        f"![traversal of the latent]({TRAVERSAL_FILE})",
        "",
        "The first image's z, one dimension a row moved from -3 to 3 standard deviations; those that vary most.",
        "",
    ]


def _kilobytes(spec: PrecisionSpec) -> str:
    return f"{sum(entry.size_bytes for entry in spec.graphs.values()) / 1000:,.0f}"


def _dataset_lines(manifest: Manifest) -> list[str]:
    dataset = manifest.dataset
    if dataset is None:
        return ["| trained on | not known: exported from a state_dict |"]
    draws = f"{dataset.num_particles} particle{'s' * (dataset.num_particles > 1)}"
    bound = ", a bound on log p(x given y)" if manifest.model.num_classes else ""
    return [
        f"| trained on | {dataset.name}, {dataset.num_train} images{_BINARIZED[dataset.binarize]} |",
        f"| test ELBO | {dataset.test_elbo_nats:.2f} nats an image{bound}, {dataset.num_test} images, {draws} |",
        *_training_lines(manifest),
    ]


def _onnx_use(manifest: Manifest) -> list[str]:
    y = f", y={min(3, manifest.model.num_classes - 1)}" if manifest.model.num_classes else ""
    scaled = manifest.preprocessing is not None and manifest.preprocessing.scale is not None
    to_raw = "images = model.manifest.preprocessing.raw(images)  # from [0, 1] to the values that encode takes"
    generate = f"images = model.generate(16, seed=0{y}).reshape(-1, *model.data_shape)"
    shape = ", ".join(map(str, manifest.model.data_shape))
    lines: dict[Part, list[str]] = {
        "all": [
            generate,
            *([to_raw] * scaled),
            f"posterior = model.encode(images{y})  # {_posterior_text(manifest.model)}",
            f"loc_img = model.reconstruct(images{y}, seed=0)  # what Pyro's reconstruct_img gives from the same seed",
            f"elbo = model.elbo(images{y}, seed=0)  # nats a row",
        ],
        "encoder": [
            f"posterior = model.encode(x{y})  # x: shape (batch, {shape}); {_posterior_text(manifest.model)}",
            'posterior.z_loc.save("latents.npz")  # for the decoder, which knows them by their latent space',
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


def _torch_use(manifest: Manifest) -> list[str]:
    files = ", ".join(f"`{entry.file}`" for entry in manifest.torch_files.values())
    return [f"This bundle is for PyTorch only: {files}. Export with `--format onnx` to run without PyTorch."]


def _posterior_text(model: ModelSpec) -> str:
    extra = {"hierarchical": ", and the upper levels", "mixture": ", component_probs"}
    return f"z_loc, z_scale{extra.get(model.latent, '')}"


def _training_lines(manifest: Manifest) -> list[str]:
    options = ", ".join(f"{name} {value}" for name, value in manifest.training.items())
    return [f"| training | {options} |"] if options else []
