"""The pictures of a report, one by one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from edgevae.train import Dataset
from edgevae.train.evaluation import evaluate
from edgevae.train.report import curves as _curves
from edgevae.train.report import features as _features
from edgevae.train.report import generation as _generation
from edgevae.train.report import latent as _latent
from edgevae.train.report.tiles import Shades, Tiles
from tests.train.models import METRICS, model


def test_tiles_stand_row_by_row_on_white() -> None:
    values = torch.tensor([[0.0, 1.0], [0.5, -3.0]])[:, :, None, None, None].expand(2, 2, 1, 56, 60)
    tiles = Tiles(values, group=1)
    assert tiles.pixels.shape == (56 + 12 + 56, 60 + 2 + 60, 3)
    assert tiles.pixels[0, 0].tolist() == [0, 0, 0]
    assert tiles.pixels[-1, 0].tolist() == [128, 128, 128]
    assert tiles.pixels[-1, -1].tolist() == [0, 0, 0]
    assert tiles.pixels[60].min() == tiles.pixels[:, 61].min() == 255
    assert tiles.row_centres == [27.5, 95.5]


def test_shades_go_beyond_the_unit_interval_where_the_data_does() -> None:
    assert Shades(torch.tensor([0.2, 0.4]))(torch.tensor(0.3)) == pytest.approx(0.3)
    assert Shades(torch.tensor([-2.0, 2.0]))(torch.tensor(0.0)) == pytest.approx(0.5)


def test_rows_that_are_shown_come_from_the_whole_set() -> None:
    assert _generation.spread_out(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert _generation.spread_out(3, 5).tolist() == [0, 1, 2]
    labels = torch.arange(100) // 10
    assert labels[_generation.spread_out(100, 36)].unique().tolist() == list(range(10))


def test_a_traversal_moves_one_active_dimension_at_a_time() -> None:
    vae = model()
    z_loc = torch.randn((50, 4), generator=torch.Generator().manual_seed(2)) * torch.tensor([0.5, 0.01, 2.0, 1.0])
    found = _generation.traversed(vae, z_loc, None, dimensions=8, steps=7)
    assert found.dimensions == (2, 3, 0)
    assert found.loc_img.shape == (3, 7, 64)
    z = z_loc[0].clone()
    z[3] = z_loc[:, 3].mean() - 3 * z_loc[:, 3].std(correction=0)
    with torch.no_grad():
        torch.testing.assert_close(found.loc_img[1, 0], vae.decoder(z[None])[0])
    assert _generation.traversed(vae, torch.zeros(5, 4), None, 8, 7).loc_img.shape == (1, 7, 64)


def test_a_mixtures_rows_are_its_components_the_likeliest_first() -> None:
    vae = model(latent="mixture", components=3)
    latent: Any = vae.latent
    with torch.no_grad():
        latent.logits.copy_(torch.tensor([0.1, 0.7, 0.2]).log())
        latent.log_scale.fill_(-20)
        samples = _generation.sampled(vae, 4)
        torch.testing.assert_close(samples.loc_img[0], vae.decoder(latent.loc[1].expand(4, -1)))
    assert samples.names == ("component 1, p = 0.70", "component 2, p = 0.20", "component 0, p = 0.10")


def test_the_losses_are_drawn_the_later_ones_enlarged() -> None:
    first, late = _curves.loss_figure(METRICS).axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in first.lines}
    assert drawn == {
        "training, at last 30.00": [line.train_loss_nats for line in METRICS],
        "validation, at last 28.00": [38.0 - epoch for epoch in range(1, 11)],
        "test, at last 29.00": [39.0 - epoch for epoch in range(1, 11)],
    }
    assert np.asarray(late.lines[0].get_xdata()).tolist() == list(range(3, 11))
    assert len(_curves.loss_figure(METRICS[:1]).axes) == 1


def test_only_what_changed_is_drawn_of_the_steering() -> None:
    figure = _curves.steering_figure(METRICS)
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["learning rate"]
    assert _curves.steering_figure([dataclasses.replace(line, learning_rate=None) for line in METRICS]) is None


def test_the_bars_are_the_kl_the_largest_first(digits: Dataset) -> None:
    evaluation = dataclasses.replace(
        evaluate(model(), digits.test[:5]), kl_per_dim_nats=(0.5, -0.1, 2.0), active_units=2
    )
    (axes,) = _latent.kl_figure(evaluation).axes
    assert [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)] == [2.0, 0.5, -0.1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "0", "1"]
    assert "2 of 3 units are active" in axes.get_title()


def test_the_plane_of_the_map_is_that_of_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn((5, 5), generator=generator))[0]
    values = torch.randn((200, 5), generator=generator) * torch.tensor([3.0, 2.0, 0.1, 0.1, 0.1])
    plane, parts = _latent._principal_components((values @ turned).double().numpy())
    centred = values - values.mean(0)
    for column in range(2):
        assert abs(np.corrcoef(plane[:, column], centred[:, column])[0, 1]) > 0.99
    assert parts.sum() > 0.99
    assert parts[0] > parts[1]


def test_neighbours_of_the_latent_space_are_neighbours_on_the_map() -> None:
    classes = torch.arange(60) % 3
    points = torch.randn((60, 5), generator=torch.Generator().manual_seed(0)) + 20 * torch.eye(5)[classes]
    placed = _latent._neighbours(points.double().numpy())
    assert placed is not None
    middles = np.stack([placed[classes == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(placed[:, None] - middles, axis=2).argmin(axis=1)
    assert nearest.tolist() == classes.tolist()


@pytest.mark.parametrize("points", [torch.zeros(40, 5), torch.randn(40, 1), torch.randn(40, 2), torch.randn(3, 5)])
def test_a_map_is_drawn_where_there_is_no_space_to_map(points: torch.Tensor) -> None:
    figure = _latent.map_figure(points, torch.arange(len(points)) % 3)
    assert len(figure.axes) == 1
    assert len(figure.axes[0].collections) == 3


def test_classes_are_named_where_there_is_room() -> None:
    points = torch.zeros(90, 2)
    points[30:60] = 5
    points[60:] = 5.01
    (axes,) = _latent.map_figure(points, torch.arange(90) // 30, ("ant", "bee", "cat")).axes
    assert [text.get_text() for text in axes.texts] == ["ant", "bee"]


def test_features_are_held_against_their_reconstructions() -> None:
    x = torch.randn((50, 20), generator=torch.Generator().manual_seed(0)) * torch.arange(20)
    figure = _features.reconstructions_figure(x, x)
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert len(titles) == 9
    assert all(title.endswith("R² = 1.00") for title in titles)
    assert "x[0]" not in " ".join(titles)
    constant = _features.reconstructions_figure(torch.ones(5, 1), torch.ones(5, 1))
    assert "constant" in constant.axes[0].get_title()
