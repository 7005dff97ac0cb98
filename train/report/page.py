"""A run on one page, as HTML that needs no other file."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..evaluation import Evaluation
from ..vae import VAE
from .layout import STYLE

if TYPE_CHECKING:
    from ..run import EpochMetrics, RunConfig

REPORT_FILE = "report.html"
_SHAPES = {"data_shape", "resize"}

_BINARIZED = {
    "none": "Grey values are scored as they are.",
    "threshold": "Grey values were made 0 or 1 at one half.",
    "stochastic": "Grey values were made 0 or 1 at random, with the grey value as probability, once and for all.",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """What the page says of a picture.

    Args:
        file: Its name in the folder.
        title: The heading above it.
        caption: The line below it.
    """

    file: str
    title: str
    caption: str


def page_of(
    name: str,
    vae: VAE,
    metrics: Sequence[EpochMetrics],
    evaluations: Mapping[str, Evaluation],
    pictures: Sequence[tuple[Picture, bytes]],
    *,
    config: RunConfig | None,
) -> str:
    """Return the page.

    Args:
        name: What the run is called.
        vae: The model.
        metrics: One entry an epoch.
        evaluations: By the name of the set.
        pictures: Each with its PNG.
        config: What was trained, how, and on what.
    """
    trained_on = "" if config is None else f", trained on {config.dataset.name}"
    body = [
        f"<header><h1>{escape(name)}</h1><p>{escape(_described(vae) + trained_on)}</p></header>",
        _figures_of_merit(vae, metrics, evaluations),
        _section("Evaluation", _evaluation_table(evaluations), _how_evaluated(evaluations, config, _one(vae))),
        *(_section(picture.title, _image(picture, png), picture.caption) for picture, png in pictures),
        _section("Configuration", _configuration(vae, config), ""),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: training report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _described(vae: VAE) -> str:
    config = vae.config
    sizes = "–".join(map(str, (config.data_dim, config.hidden_dim, *config.z_dims)))
    latent = f"mixture of {config.components}" if config.latent == "mixture" else f"{config.latent} latent"
    classes = f", conditional on {config.num_classes} classes" if config.num_classes else ""
    return f"{config.architecture} VAE {sizes}, {config.likelihood} likelihood, {latent}{classes}"


def _figures_of_merit(vae: VAE, metrics: Sequence[EpochMetrics], evaluations: Mapping[str, Evaluation]) -> str:
    """The few numbers that a person looks for first."""
    shown = evaluations.get("test")
    last = metrics[-1]
    unit = f"nats {_one(vae)}"
    found = [("Test ELBO", _nats(last.test_elbo_nats if shown is None else shown.elbo_nats), unit)]
    if shown is not None:
        if shown.iw_bound_nats is not None:
            found.append((f"log p(x), k = {shown.iw_particles:,}", _nats(shown.iw_bound_nats), unit))
        found.append(("Active units", f"{shown.active_units}", f"of {vae.config.z_dim}"))
    found.append(("Epochs", f"{last.epoch}", f"{_duration(sum(line.epoch_seconds for line in metrics))} of steps"))
    found.append(("Parameters", f"{sum(each.numel() for each in vae.parameters()):,}", "weights and biases"))
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd><strong>{escape(value)}</strong> <small>{escape(unit)}</small></dd></div>"
        for name, value, unit in found
    )
    return f'<dl class="merits">{cards}</dl>'


def _evaluation_table(evaluations: Mapping[str, Evaluation]) -> str:
    if not evaluations:
        return "<p>The run was not evaluated: it did not come to its end.</p>"
    bounded = any(each.iw_bound_nats is not None for each in evaluations.values())
    head = ["Set", "Images", "ELBO", "Reconstruction", "KL", *["Importance-weighted"] * bounded, "Active units"]
    rows = []
    for name, each in evaluations.items():
        first = f"the first {each.num_images:,} of {each.num_in_set:,}"
        count = first if each.num_in_set > each.num_images else f"{each.num_images:,}"
        cells = [name, count, *map(_nats, (each.elbo_nats, each.reconstruction_nats, each.kl_nats))]
        if bounded:
            cells.append("–" if each.iw_bound_nats is None else _nats(each.iw_bound_nats))
        cells.append(f"{each.active_units}" + (f" of {len(each.kl_per_dim_nats)}" if each.kl_per_dim_nats else ""))
        rows.append(cells)
    return _table(rows, head)


def _one(vae: VAE) -> str:
    """What one observation is called."""
    return "an image" if len(vae.config.data_shape) == 3 else "a row"


def _how_evaluated(evaluations: Mapping[str, Evaluation], config: RunConfig | None, one: str) -> str:
    if not evaluations:
        return ""
    some = next(iter(evaluations.values()))
    draws = "one draw" if some.num_particles == 1 else f"{some.num_particles} draws"
    said = [f"Nats {one}, higher is better but for the KL. ELBO = reconstruction − KL, from {draws} of z {one}."]
    said += [
        f"The importance-weighted bound is that of Burda et al. (2016) with k = {each.iw_particles:,}."
        for each in [next((each for each in evaluations.values() if each.iw_particles), some)]
        if each.iw_particles
    ]
    said.append("A unit is active where its posterior mean has a variance above 0.01 over the images.")
    if config is not None and len(config.model.data_shape) == 3:
        said.append(_BINARIZED[config.training.binarize])
    return " ".join(said)


def _configuration(vae: VAE, config: RunConfig | None) -> str:
    sections: dict[str, Any] = (
        {"model": dataclasses.asdict(vae.config)} if config is None else dataclasses.asdict(config)
    )
    tables = [
        f"<div><h3>{escape(name.capitalize())}</h3>{_table(list(map(_row, content.items())))}</div>"
        for name, content in sections.items()
        if isinstance(content, dict)
    ]
    return f'<div class="columns">{"".join(tables)}</div>'


def _row(option: tuple[str, object]) -> tuple[str, str]:
    name, value = option
    return name, _plain(value, " × " if name in _SHAPES else ", ")


def _section(title: str, content: str, caption: str) -> str:
    below = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section><h2>{escape(title)}</h2>{content}{below}</section>"


def _image(picture: Picture, png: bytes) -> str:
    source = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{source}"></figure>'


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table whose first column names the rows."""
    top = f"<thead><tr>{''.join(f'<th scope=col>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    lines = "".join(
        f"<tr><th scope=row>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in others)}</tr>"
        for first, *others in rows
    )
    return f'<div class="scroll"><table>{top}<tbody>{lines}</tbody></table></div>'


def _nats(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _plain(value: object, between: str = ", ") -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_row((key, each))[1]}" for key, each in value.items() if each) or "–"
    if isinstance(value, (tuple, list)):
        return between.join(map(_plain, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
