"""Writes the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation import Evaluation
from ..data import Images
from ..run import write_whole
from ..vae import VAE
from . import features as _features
from . import generation as _generation
from . import pictures as _pictures
from .curves import loss_figure, steering_figure
from .drawing import png_of, styled
from .latent import kl_figure, map_figure
from .page import REPORT_FILE, Picture, page_of
from .tiles import Shades, is_picture

if TYPE_CHECKING:
    from ..run import EpochMetrics, RunConfig

LOSS, STEERING, RECONSTRUCTIONS, SAMPLES = "loss.png", "steering.png", "reconstructions.png", "samples.png"
TRAVERSALS, LATENT_MAP, KL = "traversals.png", "latent_map.png", "kl.png"
PICTURES = (LOSS, STEERING, RECONSTRUCTIONS, SAMPLES, TRAVERSALS, LATENT_MAP, KL)

_NUM_RECONSTRUCTED = 36
_NUM_MAPPED = 2000
_NUM_TRAVERSED = 8
_STEPS = 13
_NUM_FEATURE_SAMPLES = 300  # a row


def write_report(  # noqa: PLR0917 - a run's parts, in the order of their making
    folder: Path,
    vae: VAE,
    images: Images,
    labels: Tensor | None,
    metrics: Sequence[EpochMetrics],
    evaluations: Mapping[str, Evaluation],
    config: RunConfig | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a run's pictures, as PNG, and `report.html`, one page that holds them all and needs no other file.

    Noise is that of fixed seeds; the model, Pyro's parameter store and the random generators are left as they were.
    Each file is written whole or not at all.

    Args:
        folder: The run's; must be there.
        vae: The model.
        images: Test images, shape `(num_images, *data_shape)`, at least one, of which up to 2,000 are looked at. Data
            that are no images, of a shape other than `(height, width)` or `(1 or 3, height, width)`, are drawn as
            features.
        labels: Their classes, shape `(num_images,)`. A conditional model needs them; for any other they are colours.
        metrics: One entry an epoch, in order; at least one.
        evaluations: By the name of the set, such as `test`; the KL is drawn of `test`, or of the first one.
        config: What was trained, how, and on what, for the page.
        class_names: Names of the classes, by number.

    Raises:
        RunError: A file cannot be written.
    """
    pictures = []
    with styled():
        for picture, figure in _drawn(_Model(vae, images, labels, class_names), metrics, evaluations):
            png = png_of(figure)
            write_whole(folder / picture.file, png)
            pictures.append((picture, png))
    page = page_of(folder.name, vae, metrics, evaluations, pictures, config=config)
    write_whole(folder / REPORT_FILE, page.encode())


class _Model:
    """A model and the test rows that are shown of it, on its device: up to 2,000, evenly spaced.

    Attributes:
        x: The rows, shape `(count, *data_shape)`.
        y: Their labels, where the model sees labels.
        classes: Their labels, where there are labels.
        z_loc: Means of q(z|x), shape `(count, z_dim)`, on the CPU.
    """

    def __init__(self, vae: VAE, images: Images, labels: Tensor | None, class_names: Sequence[str]) -> None:
        self.vae, self.class_names = vae, class_names
        self.x, self.y = _generation.some_of(vae, images, labels, _NUM_MAPPED)
        rows = _generation.spread_out(len(images), _NUM_MAPPED)
        self.classes = None if labels is None else labels[rows.to(labels.device)].cpu()
        self.z_loc, _ = _generation.encoded(vae, self.x, self.y)


def _drawn(
    model: _Model, metrics: Sequence[EpochMetrics], evaluations: Mapping[str, Evaluation]
) -> Iterator[tuple[Picture, Figure]]:
    """Draw one picture after the other."""
    yield Picture(LOSS, "Loss", _LOSS_MEANS), loss_figure(metrics)
    if (steering := steering_figure(metrics)) is not None:
        yield Picture(STEERING, "Steering", "What changed with the epochs."), steering
    yield from _of_images(model) if is_picture(model.vae.config.data_shape) else _of_features(model)
    yield (
        Picture(LATENT_MAP, "Latent space", f"Means of q(z|x) of {len(model.x):,} test observations."),
        map_figure(model.z_loc, model.classes, model.class_names),
    )
    name = "test" if "test" in evaluations else next(iter(evaluations), None)
    if name is not None and evaluations[name].kl_per_dim_nats:
        meaning = f"{_KL_MEANS[model.vae.config.latent]} Images: {name}."
        yield Picture(KL, "KL a dimension", meaning), kl_figure(evaluations[name])


_LOSS_MEANS = "Means over the images of each set. The training's is that of its epoch's steps, its KL weighted by beta."

_KL_MEANS = {
    "normal": "KL(q(z_d|x) ‖ p(z_d)) in closed form; the bars add up to the whole KL.",
    "hierarchical": "log q(z_d|x) − log p(z_d|z_2), of z's own level; the levels above add their part to the whole KL.",
    "mixture": "KL against the marginal of p(z) in this dimension; the bars do not add up to the whole KL.",
}


def _of_images(model: _Model) -> Iterator[tuple[Picture, Figure]]:
    vae, shape, shades = model.vae, model.vae.config.data_shape, Shades(model.x)
    x, y = _generation.some_of(vae, model.x, model.y, _NUM_RECONSTRUCTED)
    yield (
        Picture(RECONSTRUCTIONS, "Reconstructions", "Means of p(x|z), z drawn from q(z|x)."),
        _pictures.reconstructions_figure(x, _generation.reconstructed(vae, x, y), shades),
    )
    yield (
        Picture(SAMPLES, "Samples", "Means of p(x|z), z drawn from the prior."),
        _pictures.samples_figure(_generation.sampled(vae, _pictures.COLUMNS, model.class_names), shape, shades),
    )
    yield (
        Picture(TRAVERSALS, "Traversals", "The dimensions whose posterior means vary most, up to eight."),
        _pictures.traversals_figure(_traversed(model), shape, shades),
    )


def _of_features(model: _Model) -> Iterator[tuple[Picture, Figure]]:
    loc_img = _generation.reconstructed(model.vae, model.x, model.y)
    yield (
        Picture(RECONSTRUCTIONS, "Reconstructions", "The features of the largest variance; z drawn from q(z|x)."),
        _features.reconstructions_figure(model.x, loc_img),
    )
    yield (
        Picture(SAMPLES, "Samples", "Test data, and draws of p(x|z) with z of the prior."),
        _features.samples_figure(model.x, _generation.sampled(model.vae, _NUM_FEATURE_SAMPLES, model.class_names)),
    )
    yield (
        Picture(TRAVERSALS, "Traversals", "One dimension of z moved, the others those of the first test row."),
        _features.traversals_figure(model.x, _traversed(model)),
    )


def _traversed(model: _Model) -> _generation.Traversals:
    return _generation.traversed(model.vae, model.z_loc, model.y, _NUM_TRAVERSED, _STEPS)
