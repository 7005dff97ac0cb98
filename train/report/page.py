"""Writes the report of a run: the figures as PNG, and `report.html`, one page that holds them all."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from torch import Tensor

from ..config import TrainingConfig
from ..data import Images
from ..evaluation import Evaluation, collapse_advice
from ..run import write_whole
from ..trainable import Trainable
from ..vae import VAE
from . import figures, generation

if TYPE_CHECKING:
    from ..run import EpochMetrics, RunConfig

_MAX_SHOWN = 2000
_RECONSTRUCTED = 36
_TRAVERSED, _STEPS = 8, 13
_FEATURE_SAMPLES = 300  # a class or component

_LOSS_CAPTION = (
    "Means over each set; dotted, the medians, which outliers do not change. The training loss is the mean over "
    "the steps of its epoch, with the KL weighted by beta."
)
_KL_CAPTIONS = {
    "normal": "KL(q(z_d|x) ‖ p(z_d)) in closed form; the bars add up to the whole KL.",
    "hierarchical": "log q(z_d|x) − log p(z_d|z_2) of the first level; the levels above add the rest of the whole KL.",
    "mixture": "KL against the marginal of p(z) in each dimension; the bars do not add up to the whole KL.",
}
_BINARIZED = {
    "none": "Grey values are scored as they are.",
    "threshold": "Grey values were set to 0 or 1 at a threshold of one half.",
    "stochastic": "Grey values were drawn once as 0 or 1, with the grey value as probability.",
}
_SHAPES = {"data_shape", "resize"}  # options that read 1 × 28 × 28

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(  # noqa: PLR0917 - the parts of a run
    folder: Path,
    vae: Trainable,
    images: Images,
    labels: Tensor | None,
    metrics: Sequence[EpochMetrics],
    evaluations: Mapping[str, Evaluation],
    config: RunConfig | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a run's figures as PNG and `report.html`, a page that contains them and needs no other file.

    Noise has fixed seeds; the model, Pyro's parameter store and the random generators are left as they were.
    Each file is written whole or not at all.

    Args:
        folder: The run's folder; must exist.
        vae: The model. Of a Pyro program of a user's own there are no samples and traversals, reconstructions where an
            observed site has a mean of the data's size, and the latent where it is one normal site.
        images: Test images, shape `(num_images, *data_shape)`, at least one; up to 2,000 of them are used. Data of
            another shape than `(height, width)` or `(1 or 3, height, width)` are shown as features.
        labels: Classes, shape `(num_images,)`. A conditional model needs them; otherwise they only set colours.
        metrics: One entry an epoch, in order; at least one.
        evaluations: By the name of the set; the KL shown is that of `test`, or otherwise of the first.
        config: The run's configuration, for the page.
        class_names: Names of the classes, by number.

    Raises:
        RunError: A file cannot be written.
    """
    sections = []
    with figures.styled():
        for section, figure in _sections(vae, images, labels, metrics, evaluations, class_names=class_names):
            png = figures.png_of(figure)
            write_whole(folder / section.file, png)
            sections.append({"title": section.title, "caption": section.caption, "png": base64.b64encode(png).decode()})
    page = _templates.get_template("report.html.jinja").render(
        name=folder.name,
        description=_description(vae, config),
        advice=_advice(vae, evaluations, config),
        headline=_headline(vae, metrics, evaluations),
        evaluation=_evaluation_table(evaluations),
        evaluation_caption=_evaluation_caption(evaluations, config, _one(vae)),
        sections=sections,
        configuration=_configuration(vae, config),
    )
    write_whole(folder / "report.html", page.encode())


# The figures, each with title and caption.


@dataclasses.dataclass(frozen=True)
class _Section:
    file: str
    title: str
    caption: str


def _sections(
    vae: Trainable,
    images: Images,
    labels: Tensor | None,
    metrics: Sequence[EpochMetrics],
    evaluations: Mapping[str, Evaluation],
    *,
    class_names: Sequence[str],
) -> Iterator[tuple[_Section, Figure]]:
    yield _Section("loss.png", "Loss", _LOSS_CAPTION), figures.loss_figure(metrics)
    if (schedule := figures.schedule_figure(metrics)) is not None:
        yield _Section("schedule.png", "Schedule", "Learning rate and beta, where they changed."), schedule
    x, y = generation.some_of(vae, images, labels, _MAX_SHOWN)
    is_picture = figures.is_picture(vae.config.data_shape)
    if vae.has_means:
        yield _image_reconstructions(vae, x, y) if is_picture else _feature_reconstructions(vae, x, y)
    if vae.num_units:
        z_loc, _ = generation.encode(vae, x, y)
        if isinstance(vae, VAE):
            traversals = generation.traverse(vae, z_loc, y, _TRAVERSED, _STEPS)
            sections = _image_sections if is_picture else _feature_sections
            yield from sections(vae, x, traversals, class_names)
        classes = None
        if labels is not None:
            classes = labels[generation.evenly_spaced(len(images), _MAX_SHOWN).to(labels.device)].cpu()
        yield (
            _Section("latent_map.png", "Latent space", f"Means of q(z|x) of {len(x):,} test observations."),
            figures.latent_map_figure(z_loc, classes, class_names),
        )
    name = "test" if "test" in evaluations else next(iter(evaluations), None)
    if name is not None and evaluations[name].kl_per_dim_nats:
        latent = vae.config.latent if isinstance(vae, VAE) else "normal"
        caption = f"{_KL_CAPTIONS[latent]} Mean over the {name} set."
        yield _Section("kl.png", "KL by dimension", caption), figures.kl_figure(evaluations[name])


def _image_reconstructions(vae: Trainable, x: Tensor, y: Tensor | None) -> tuple[_Section, Figure]:
    some, some_y = generation.some_of(vae, x, y, _RECONSTRUCTED)
    return (
        _Section("reconstructions.png", "Reconstructions", "Means of p(x|z), z drawn from q(z|x)."),
        figures.image_reconstructions_figure(some, generation.reconstruct(vae, some, some_y), figures.GreyLevels(x)),
    )


def _feature_reconstructions(vae: Trainable, x: Tensor, y: Tensor | None) -> tuple[_Section, Figure]:
    return (
        _Section("reconstructions.png", "Reconstructions", "Features of the largest variance; z drawn from q(z|x)."),
        figures.feature_reconstructions_figure(x, generation.reconstruct(vae, x, y)),
    )


def _image_sections(
    vae: VAE, x: Tensor, traversals: generation.Traversals, class_names: Sequence[str]
) -> Iterator[tuple[_Section, Figure]]:
    shape, levels = vae.config.data_shape, figures.GreyLevels(x)
    samples = generation.sample_prior(vae, figures.GRID_COLUMNS, class_names)
    yield (
        _Section("samples.png", "Samples", "Means of p(x|z), z drawn from the prior."),
        figures.image_samples_figure(samples, shape, levels),
    )
    yield (
        _Section("traversals.png", "Traversals", f"The active units that change the image most, up to {_TRAVERSED}."),
        figures.image_traversals_figure(traversals, shape, levels),
    )


def _feature_sections(
    vae: VAE, x: Tensor, traversals: generation.Traversals, class_names: Sequence[str]
) -> Iterator[tuple[_Section, Figure]]:
    yield (
        _Section("samples.png", "Samples", "Test data, and draws from p(x|z) with z drawn from the prior."),
        figures.feature_samples_figure(x, generation.sample_prior(vae, _FEATURE_SAMPLES, class_names)),
    )
    caption = (
        f"One dimension of z moved, the others those of the first test row; the active units that change the features "
        f"most, up to {_TRAVERSED}."
    )
    yield _Section("traversals.png", "Traversals", caption), figures.feature_traversals_figure(x, traversals)


# The text and numbers of the page.


def _one(vae: Trainable) -> str:
    """Return the name of one observation."""
    return "an image" if figures.is_picture(vae.config.data_shape) else "a row"


def _description(vae: Trainable, config: RunConfig | None) -> str:
    return vae.summary + ("" if config is None else f", trained on {config.dataset.name}")


def _advice(vae: Trainable, evaluations: Mapping[str, Evaluation], config: RunConfig | None) -> str | None:
    if "test" not in evaluations:
        return None
    return collapse_advice(evaluations["test"], TrainingConfig() if config is None else config.training, vae.config)


def _headline(
    vae: Trainable, metrics: Sequence[EpochMetrics], evaluations: Mapping[str, Evaluation]
) -> list[tuple[str, str, str]]:
    """Return the main results: name, value, unit."""
    test, last, unit = evaluations.get("test"), metrics[-1], f"nats {_one(vae)}"
    found = [("Test ELBO", _nats(last.test_elbo_nats if test is None else test.elbo_nats), unit)]
    if test is not None:
        if test.iw_bound_nats is not None:
            found.append((f"log p(x), k = {test.iw_particles:,}", _nats(test.iw_bound_nats), unit))
        if vae.num_units:
            found.append(("Active units", f"{test.active_units}", f"of {vae.num_units}"))
    seconds = sum(line.epoch_seconds for line in metrics)
    found.append(("Epochs", f"{last.epoch}", f"{_duration(seconds)} of steps"))
    found.append(("Parameters", f"{sum(each.numel() for each in vae.fitted()):,}", "weights and biases"))
    return found


def _evaluation_table(evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """Return the rows of the table, the header first; none without evaluations."""
    if not evaluations:
        return []
    bounded = any(each.iw_bound_nats is not None for each in evaluations.values())
    bound = ["Importance-weighted"] * bounded
    header = ["Set", "Size", "ELBO", "Median ELBO", "Reconstruction", "KL", *bound, "Active units"]
    rows = [header]
    for name, each in evaluations.items():
        size = f"{each.num_images:,}"
        if each.num_in_set > each.num_images:
            size = f"the first {size} of {each.num_in_set:,}"
        median = "–" if each.elbo_median_nats is None else _nats(each.elbo_median_nats)
        cells = [name, size, _nats(each.elbo_nats), median, _nats(each.reconstruction_nats), _nats(each.kl_nats)]
        if bounded:
            cells.append("–" if each.iw_bound_nats is None else _nats(each.iw_bound_nats))
        cells.append(f"{each.active_units} of {len(each.kl_per_dim_nats)}" if each.kl_per_dim_nats else "–")
        rows.append(cells)
    return rows


def _evaluation_caption(evaluations: Mapping[str, Evaluation], config: RunConfig | None, one: str) -> str:
    if not evaluations:
        return ""
    num_particles = next(iter(evaluations.values())).num_particles
    draws = "one draw" if num_particles == 1 else f"{num_particles} draws"
    said = [f"In nats {one}; higher is better, except for the KL. ELBO = reconstruction − KL, from {draws} of z {one}."]
    iw_particles = max(each.iw_particles for each in evaluations.values())
    if iw_particles:
        said.append(f"The importance-weighted bound is that of Burda et al. (2016) with k = {iw_particles:,}.")
    said.append("A unit is active if the variance of its posterior mean over the set exceeds 0.01.")
    for name, each in evaluations.items():
        if each.not_finite is not None:
            sentence = each.not_finite.sentence(name)
            said.append(f"{sentence[0].upper()}{sentence[1:]}.")
    if "test" in evaluations and evaluations["test"].lowest_rows:
        rows = ", ".join(map(str, evaluations["test"].lowest_rows))
        said.append(f"The lowest ELBOs of the test set are those of rows {rows}, counted from 0.")
    if config is not None and figures.is_picture(config.model.data_shape):
        said.append(_BINARIZED[config.training.binarize])
    return " ".join(said)


def _configuration(vae: Trainable, config: RunConfig | None) -> dict[str, dict[str, str]]:
    """Return the options as text, by section and name."""
    content: dict[str, Any] = (
        {"model": dataclasses.asdict(vae.config)} if config is None else dataclasses.asdict(config)
    )
    return {
        section: {name: _text(name, value) for name, value in options.items()}
        for section, options in content.items()
        if isinstance(options, dict)
    }


def _text(name: str, value: object) -> str:
    """Return an option's value as the table shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(key, each)}" for key, each in value.items() if each) or "–"
    if isinstance(value, (tuple, list)):
        return (" × " if name in _SHAPES else ", ").join(_text(name, each) for each in value) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _nats(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
