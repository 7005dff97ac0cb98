"""The report of a finished run: the page, and each of its figures."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyro
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from edgevae.train import (
    VAE,
    Dataset,
    DatasetInfo,
    TrainingConfig,
    collapse_advice,
    evaluate,
    load_dataset,
    run_config,
)
from edgevae.train.report import figures, generation, write_report
from edgevae.train.run import REPORT_FILES
from tests.train.models import METRICS, model

SIZE = 40  # observations: few, so that t-SNE takes no time


pytestmark = pytest.mark.usefixtures("coarse_figures")


class Page(HTMLParser):
    """Collects what a page loads, its tags and text, and whether its tags are closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed((folder / "report.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]
        self.tags.add(tag)
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report_of(folder: Path, vae: VAE, dataset: Dataset, labels: torch.Tensor | None = None) -> Page:
    seen = labels[:SIZE] if labels is not None and vae.config.num_classes else None
    evaluations = {"test": evaluate(vae, dataset.test[:SIZE], seen, iw_particles=3)}
    write_report(folder, vae, dataset.test[:SIZE], None if labels is None else labels[:SIZE], METRICS, evaluations)
    return Page(folder)


def test_the_page_holds_every_figure_and_loads_nothing(tmp_path: Path, digits: Dataset) -> None:
    page = report_of(tmp_path, model(), digits)
    assert {file.name for file in tmp_path.iterdir()} == set(REPORT_FILES)
    embedded = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources}
    assert embedded == {file.read_bytes() for file in tmp_path.glob("*.png")}
    assert not page.open
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_page_shows_the_numbers_and_the_configuration(tmp_path: Path, digits: Dataset) -> None:
    vae = model()
    found = evaluate(vae, digits.test[:SIZE], iw_particles=3)
    assert found.iw_bound_nats is not None
    page = report_of(tmp_path, vae, digits)
    for number in (found.elbo_nats, found.reconstruction_nats, found.kl_nats, found.iw_bound_nats):
        assert f"{number:.2f}".replace("-", "−") in page.text
    assert f"{found.active_units} of 4" in page.text
    assert "k = 3" in page.text
    assert "mlp VAE 64-12-4, bernoulli, normal latent" in page.text
    assert "hidden_dim" in page.text


def test_names_that_look_like_html_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&"
    folder.mkdir()
    digits = load_dataset("digits", labels=True)
    names = ("<script>alert(1)</script>", *(f'"{number}' for number in range(9)))
    dataset = dataclasses.replace(digits, class_names=names)
    vae = model(num_classes=10)
    assert digits.test_labels is not None
    x, y = digits.test[:SIZE], digits.test_labels[:SIZE]
    evaluations = {"<i>": evaluate(vae, x, y)}
    config = run_config(vae.config, TrainingConfig(), DatasetInfo.of(dataset))
    write_report(folder, vae, x, y, METRICS, evaluations, config, names)
    page = Page(folder)
    assert not page.open
    assert page.tags.isdisjoint({"script", "b", "i"})
    for name in ("<script>alert(1)</script>", "<b>&", "<i>", '"8'):
        assert name in page.text


def test_a_collapsed_posterior_is_a_warning_on_the_page(tmp_path: Path, digits: Dataset) -> None:
    vae = model()
    config = run_config(vae.config, TrainingConfig(epochs=40), DatasetInfo.of(digits))
    whole = dataclasses.replace(evaluate(vae, digits.test[:SIZE]), active_units=4, kl_nats=3.0)
    collapsed = dataclasses.replace(whole, active_units=0)
    advice = collapse_advice(collapsed, config.training, vae.config)
    assert advice
    for evaluation, warned in ((whole, False), (collapsed, True)):
        write_report(tmp_path, vae, digits.test[:SIZE], None, METRICS, {"test": evaluation}, config)
        page = Page(tmp_path)
        assert ("Warning" in page.text) == (advice in page.text) == warned


@pytest.mark.parametrize(
    "latent", [{"latent": "mixture", "components": 3}, {"latent": "hierarchical", "upper_dims": (2,)}]
)
def test_every_latent_has_a_report(tmp_path: Path, digits: Dataset, latent: dict[str, Any]) -> None:
    report_of(tmp_path, model(**latent), digits)
    assert (tmp_path / "samples.png").exists()
    assert (tmp_path / "kl.png").exists()


@pytest.mark.parametrize(("shape", "pictures"), [((3, 6, 5), True), ((8, 8), True), ((7,), False), ((2, 4, 4), False)])
def test_data_of_any_shape_is_drawn(tmp_path: Path, shape: tuple[int, ...], pictures: bool) -> None:
    images = torch.rand((30, *shape), generator=torch.Generator().manual_seed(0)) * 4 - 2
    assert figures.is_picture(shape) == pictures
    report_of(tmp_path, model(shape, likelihood="normal"), Dataset("rows", images, images))
    for file in REPORT_FILES:
        assert (tmp_path / file).stat().st_size > 500


def test_a_conditional_model_is_drawn_with_its_labels(tmp_path: Path) -> None:
    digits = load_dataset("digits", labels=True)
    report_of(tmp_path, model(num_classes=10), digits, digits.test_labels)
    samples = generation.sample_prior(model(num_classes=3), 5, ("ant", "bee", "cat"))
    assert samples.names == ("ant", "bee", "cat")
    assert samples.loc_img.shape == samples.drawn.shape == (3, 5, 64)


def test_a_report_is_reproducible_and_changes_nothing(tmp_path: Path, digits: Dataset) -> None:
    vae = model().train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    np.random.seed(1)
    number = np.random.rand()
    np.random.seed(1)
    style = dict(mpl.rcParams)
    pages = []
    for name in ("a", "b"):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        report_of(folder, vae, digits)
        pages.append((folder / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert torch.equal(state, torch.get_rng_state())
    assert np.random.rand() == number
    assert dict(mpl.rcParams) == style
    assert vae.training
    assert len(pyro.get_param_store()) == 0


def test_colours_stay_colours(tmp_path: Path) -> None:
    red = torch.zeros(24, 3, 8, 8)
    red[:, 0] = 1
    report_of(tmp_path, model((3, 8, 8)), Dataset("red", red, red))
    with Image.open(tmp_path / "reconstructions.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(100_000) or []}
    assert (255, 0, 0) in colours


def test_a_grid_is_row_by_row_on_white() -> None:
    values = torch.tensor([[0.0, 1.0], [0.5, -3.0]])[:, :, None, None, None].expand(2, 2, 1, 56, 60)
    grid = figures.Grid(values, group=1)
    assert grid.pixels.shape == (56 + 12 + 56, 60 + 2 + 60, 3)
    assert grid.pixels[0, 0].tolist() == [0, 0, 0]
    assert grid.pixels[-1, 0].tolist() == [128, 128, 128]
    assert grid.pixels[-1, -1].tolist() == [0, 0, 0]
    assert grid.pixels[60].min() == grid.pixels[:, 61].min() == 255
    assert grid.row_centres == [27.5, 95.5]


def test_grey_levels_go_beyond_the_unit_interval_where_the_data_does() -> None:
    assert figures.GreyLevels(torch.tensor([0.2, 0.4]))(torch.tensor(0.3)) == pytest.approx(0.3)
    assert figures.GreyLevels(torch.tensor([-2.0, 2.0]))(torch.tensor(0.0)) == pytest.approx(0.5)


def test_rows_that_are_shown_are_spread_over_the_whole_set() -> None:
    assert generation.evenly_spaced(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert generation.evenly_spaced(3, 5).tolist() == [0, 1, 2]
    labels = torch.arange(100) // 10
    assert labels[generation.evenly_spaced(100, 36)].unique().tolist() == list(range(10))


def test_a_traversal_moves_one_active_dimension_at_a_time() -> None:
    vae = model()
    z_loc = torch.randn((50, 4), generator=torch.Generator().manual_seed(2)) * torch.tensor([0.5, 0.01, 2.0, 1.0])
    found = generation.traverse(vae, z_loc, None, dimensions=8, steps=7)
    assert found.dimensions == (2, 3, 0)
    assert found.loc_img.shape == (3, 7, 64)
    z = z_loc[0].clone()
    z[3] = z_loc[:, 3].mean() - 3 * z_loc[:, 3].std(correction=0)
    with torch.no_grad():
        torch.testing.assert_close(found.loc_img[1, 0], vae.decoder(z[None])[0])
    assert generation.traverse(vae, torch.zeros(5, 4), None, 8, 7).loc_img.shape == (1, 7, 64)


def test_a_mixtures_rows_are_its_components_the_likeliest_first() -> None:
    vae = model(latent="mixture", components=3)
    latent: Any = vae.latent
    with torch.no_grad():
        latent.logits.copy_(torch.tensor([0.1, 0.7, 0.2]).log())
        latent.log_scale.fill_(-20)
        samples = generation.sample_prior(vae, 4)
        torch.testing.assert_close(samples.loc_img[0], vae.decoder(latent.loc[1].expand(4, -1)))
    assert samples.names == ("component 1, p = 0.70", "component 2, p = 0.20", "component 0, p = 0.10")


def test_the_losses_are_drawn_the_later_ones_enlarged() -> None:
    first, late = figures.loss_figure(METRICS).axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in first.lines}
    assert drawn == {
        "training, finally 30.00": [line.train_loss_nats for line in METRICS],
        "validation, finally 28.00": [38.0 - epoch for epoch in range(1, 11)],
        "test, finally 29.00": [39.0 - epoch for epoch in range(1, 11)],
    }
    assert np.asarray(late.lines[0].get_xdata()).tolist() == list(range(3, 11))
    assert len(figures.loss_figure(METRICS[:1]).axes) == 1


def test_only_changing_schedules_are_drawn() -> None:
    figure = figures.schedule_figure(METRICS)
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["learning rate"]
    assert figures.schedule_figure([dataclasses.replace(line, learning_rate=None) for line in METRICS]) is None


def test_the_bars_are_the_kl_the_largest_first(digits: Dataset) -> None:
    evaluation = dataclasses.replace(
        evaluate(model(), digits.test[:5]), kl_per_dim_nats=(0.5, -0.1, 2.0), active_units=2
    )
    (axes,) = figures.kl_figure(evaluation).axes
    assert [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)] == [2.0, 0.5, -0.1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "0", "1"]
    assert "2 of 3 units are active" in axes.get_title()


def test_the_plane_of_the_map_is_that_of_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn((5, 5), generator=generator))[0]
    values = torch.randn((200, 5), generator=generator) * torch.tensor([3.0, 2.0, 0.1, 0.1, 0.1])
    plane, parts = figures.principal_components((values @ turned).double().numpy())
    centred = values - values.mean(0)
    for column in range(2):
        assert abs(np.corrcoef(plane[:, column], centred[:, column])[0, 1]) > 0.99
    assert parts.sum() > 0.99
    assert parts[0] > parts[1]


def test_neighbours_of_the_latent_space_are_neighbours_on_the_map() -> None:
    classes = torch.arange(60) % 3
    points = torch.randn((60, 5), generator=torch.Generator().manual_seed(0)) + 20 * torch.eye(5)[classes]
    placed = figures.tsne(points.double().numpy())
    assert placed is not None
    middles = np.stack([placed[classes == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(placed[:, None] - middles, axis=2).argmin(axis=1)
    assert nearest.tolist() == classes.tolist()


@pytest.mark.parametrize("points", [torch.zeros(40, 5), torch.randn(40, 1), torch.randn(40, 2), torch.randn(3, 5)])
def test_a_map_is_drawn_where_there_is_no_space_to_map(points: torch.Tensor) -> None:
    figure = figures.latent_map_figure(points, torch.arange(len(points)) % 3)
    assert len(figure.axes) == 1
    assert len(figure.axes[0].collections) == 3


def test_classes_are_named_where_there_is_room() -> None:
    points = torch.zeros(90, 2)
    points[30:60] = 5
    points[60:] = 5.01
    (axes,) = figures.latent_map_figure(points, torch.arange(90) // 30, ("ant", "bee", "cat")).axes
    assert [text.get_text() for text in axes.texts] == ["ant", "bee"]


def test_features_are_compared_with_their_reconstructions() -> None:
    x = torch.randn((50, 20), generator=torch.Generator().manual_seed(0)) * torch.arange(20)
    figure = figures.feature_reconstructions_figure(x, x)
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert len(titles) == 2
    assert all(title.endswith("R² = 1.00") for title in titles)
    assert [title.partition(",")[0] for title in titles] == ["x[19]", "x[18]"]
    constant = figures.feature_reconstructions_figure(torch.ones(5, 1), torch.ones(5, 1))
    assert "constant" in constant.axes[0].get_title()
