"""What a finished run shows."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyro
import pytest
import torch
from PIL import Image

from edgevae.train import VAE, Dataset, load_dataset
from edgevae.train.evaluation import evaluate
from edgevae.train.report import REPORT_FILES, write_report
from edgevae.train.report import drawing as _drawing
from edgevae.train.report import features as _features
from edgevae.train.report import generation as _generation
from edgevae.train.report import latent as _latent
from edgevae.train.report import write as _write
from edgevae.train.report.tiles import is_picture
from tests.train.models import METRICS, model


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to draw, and coarsely."""
    monkeypatch.setattr(_write, "_NUM_MAPPED", 40)
    monkeypatch.setattr(_write, "_NUM_RECONSTRUCTED", 12)
    monkeypatch.setattr(_features, "_SHOWN", 2)
    monkeypatch.setattr(_drawing, "_DPI", 30)
    monkeypatch.setattr(_latent, "_FEWEST", 1000)


class Resources(HTMLParser):
    """Collects what a page loads, its text, and whether its tags are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report_of(folder: Path, vae: VAE, dataset: Dataset, labels: torch.Tensor | None = None) -> Resources:
    seen = labels if vae.config.num_classes else None
    evaluations = {"test": evaluate(vae, dataset.test, seen, iw_particles=3)}
    write_report(folder, vae, dataset.test, labels, METRICS, evaluations)
    return Resources((folder / "report.html").read_text())


def test_the_page_holds_every_picture_and_loads_nothing(tmp_path: Path, digits: Dataset) -> None:
    page = report_of(tmp_path, model(), digits)
    assert {file.name for file in tmp_path.iterdir()} == set(REPORT_FILES)
    embedded = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources}
    assert embedded == {file.read_bytes() for file in tmp_path.glob("*.png")}
    assert not page.open
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_page_says_the_numbers_and_the_configuration(tmp_path: Path, digits: Dataset) -> None:
    vae = model()
    found = evaluate(vae, digits.test, iw_particles=3)
    assert found.iw_bound_nats is not None
    page = report_of(tmp_path, vae, digits)
    for number in (found.elbo_nats, found.reconstruction_nats, found.kl_nats, found.iw_bound_nats):
        assert f"{number:.2f}".replace("-", "−") in page.text
    assert f"{found.active_units} of 4" in page.text
    assert "k = 3" in page.text
    assert "mlp VAE 64–12–4, bernoulli likelihood, normal latent" in page.text
    assert "hidden_dim" in page.text


def test_names_are_escaped(tmp_path: Path, digits: Dataset) -> None:
    folder = tmp_path / "<b>&"
    folder.mkdir()
    vae = model()
    write_report(folder, vae, digits.test, None, METRICS, {"<i>": evaluate(vae, digits.test)})
    page = Resources((folder / "report.html").read_text())
    assert not page.open
    assert "<b>&" in page.text
    assert "<i>" in page.text


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
    assert is_picture(shape) == pictures
    report_of(tmp_path, model(shape, likelihood="normal"), Dataset("rows", images, images))
    for file in REPORT_FILES:
        assert (tmp_path / file).stat().st_size > 500


def test_a_conditional_model_is_drawn_with_its_labels(tmp_path: Path) -> None:
    digits = load_dataset("digits", labels=True)
    report_of(tmp_path, model(num_classes=10), digits, digits.test_labels)
    samples = _generation.sampled(model(num_classes=3), 5, ("ant", "bee", "cat"))
    assert samples.names == ("ant", "bee", "cat")
    assert samples.loc_img.shape == samples.drawn.shape == (3, 5, 64)


def test_a_report_is_the_same_each_time_and_touches_nothing(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_latent, "_FEWEST", 10)
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
