"""The model card: README.md, samples.png and traversal.png."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgevae import DatasetSpec, Report, load
from edgevae.export import FORMATS, ExportError, Source, export_bundle, renew_card
from edgevae.images import save_grid
from edgevae.train import VAE, Dataset, ModelConfig, load_dataset

SAMPLES, TRAVERSAL, CARD = "samples.png", "traversal.png", "README.md"
DATASET = DatasetSpec(
    name="digits", num_train=1437, num_test=360, test_elbo_nats=-25.125, num_particles=10, binarize="none"
)


@pytest.fixture(scope="module")
def labelled() -> Dataset:
    return load_dataset("digits", labels=True)


def pixels(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as image:
        return np.asarray(image, np.int64)


def small(labelled: Dataset, **choices: Any) -> Source:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        vae = VAE(ModelConfig((1, 8, 8), 5, 16, **choices)).eval()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    labels = labelled.test_labels if vae.config.num_classes else None
    # With an outlier of its own, the first images are the samples.
    outlier_labels = None if labels is None else labels[-1:]
    source = Source("small", vae, labelled.test, "test images of digits", DATASET, labels)
    return dataclasses.replace(source, outliers=labelled.test[-1:], outlier_labels=outlier_labels)


CHOICES: dict[str, dict[str, Any]] = {
    "normal": {},
    "conditional": {"num_classes": 10},
    "hierarchical": {"latent": "hierarchical", "upper_dims": (2,)},
    "mixture": {"latent": "mixture", "components": 3},
    "conditional mixture": {"num_classes": 10, "latent": "mixture", "components": 3},
    "any range": {"likelihood": "normal"},
}
ALONE, SLOW = ("conditional", "mixture"), pytest.mark.slow
Exported = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(labelled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gives the bundle of a choice, which is not to be changed."""

    @functools.cache
    def export(name: str) -> Path:
        out = tmp_path_factory.mktemp("models") / "small"
        export_bundle(small(labelled, **CHOICES[name]), out)
        return out

    return export


def test_the_card_says_how_good_the_model_is_and_how_many_units_are_active(
    exported: Exported, labelled: Dataset
) -> None:
    bundle = exported("normal")
    card = (bundle / CARD).read_text(encoding="utf-8")
    assert "| test ELBO | -25.12 nats an image, 360 images, 10 particles |" in card
    with load(bundle, provider="cpu") as model:
        assert model.manifest.dataset == DATASET
        active = int(model.active_units(labelled.test[:238].numpy()).sum())
    assert f"| active units | {active} of 5, measured on 238 samples |" in card
    assert "Warning" not in card


def test_the_card_shows_the_verifications_as_they_are_reported(bundle: Path, reports: tuple[Report, ...]) -> None:
    card = (bundle / CARD).read_text(encoding="utf-8")
    assert [report.format for report in reports] == list(FORMATS)
    assert all(str(report) in card for report in reports)
    with load(bundle, provider="cpu") as model:
        assert str(model.verify()) in card


def test_the_card_shows_the_advice_for_a_collapsed_posterior(source: Source, tmp_path: Path) -> None:
    advice = "1 of 5 latent units are active; try --beta-warmup 20"
    export_bundle(dataclasses.replace(source, collapse_advice=advice), tmp_path / "small", ["torchscript"])
    assert f"**Warning:** {advice}." in (tmp_path / "small" / CARD).read_text(encoding="utf-8")


def test_samples_stand_below_originals_and_their_reconstructions(
    exported: Exported, labelled: Dataset, tmp_path: Path
) -> None:
    bundle = exported("normal")
    x = labelled.test[:12].flatten(1).numpy()
    with load(bundle, provider="cpu") as model:
        sets = {
            "originals": x,
            "reconstructions": model.reconstruct(labelled.test[:238].numpy(), seed=0)[:12],
            "samples": model.generate(24, seed=0),
        }
    found = pixels(bundle / SAMPLES)
    save_grid(tmp_path / "expected.png", sets, (1, 8, 8), columns=12)
    expected = pixels(tmp_path / "expected.png")
    assert found.shape == expected.shape
    rows = slice(None, 70)  # the originals; the noise of the reconstructions is the reference's
    np.testing.assert_array_equal(found[rows], expected[rows])
    np.testing.assert_allclose(found[-130:], expected[-130:], atol=1)


# Labels and components together are in the default run.
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if name in ALONE else []) for name in CHOICES])
def test_a_card_can_be_made_again_from_the_bundle_alone(exported: Exported, tmp_path: Path, name: str) -> None:
    out = Path(shutil.copytree(exported(name), tmp_path / "small"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    pictures = {file: pixels(out / file) for file in (SAMPLES, TRAVERSAL)}
    for file in (CARD, SAMPLES, TRAVERSAL):
        (out / file).unlink()
    renew_card(out)
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {file for file in after if before.get(file) != after[file]} <= {SAMPLES, TRAVERSAL}
    for file, found in pictures.items():
        np.testing.assert_allclose(pixels(out / file), found, atol=1, err_msg=file)  # the graphs round differently


def test_a_card_is_not_made_from_a_part_of_the_model(source: Source, tmp_path: Path) -> None:
    for name, options in {"decoder": {"part": "decoder"}, "torch": {"formats": ["torchscript"]}}.items():
        export_bundle(source, tmp_path / name, **options)  # type: ignore[arg-type]  # a dict of both kinds
        with pytest.raises(ExportError, match="must hold the ONNX graphs of the whole model"):
            renew_card(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "rows", "label"),
    [
        pytest.param("conditional", 10, "class", marks=SLOW),
        pytest.param("mixture", 3, "component", marks=SLOW),
        ("conditional mixture", 10, "class"),
    ],
)
def test_classes_and_components_have_a_labelled_row_each(
    exported: Exported, tmp_path: Path, name: str, rows: int, label: str
) -> None:
    blank = np.zeros((12, 64), np.float32)
    sets = dict.fromkeys(["originals", "reconstructions", *(f"{label} {row}" for row in range(rows))], blank)
    save_grid(tmp_path / "blank.png", sets, (1, 8, 8), columns=12)
    assert pixels(exported(name) / SAMPLES).shape == pixels(tmp_path / "blank.png").shape


def test_a_traversal_moves_one_active_unit_a_row_the_one_with_most_effect_first(
    labelled: Dataset, tmp_path: Path
) -> None:
    source = small(labelled)
    vae = source.vae
    assert isinstance(vae, VAE)
    with torch.no_grad():
        vae.encoder.get_parameter("fc21.weight").mul_(10)
        vae.encoder.get_parameter("fc21.weight")[1] = 0  # the mean of this unit does not vary
        z_loc, _ = vae.encoder(labelled.test[:238].flatten(1))
        spread = z_loc.std(0, correction=0)
        into_decoder = vae.decoder.get_parameter("fc1.weight")
        for unit, effect in {0: 0.0, 2: 2.0, 3: 1.5, 4: 3.0}.items():
            into_decoder[:, unit] = effect / spread[unit] * torch.linspace(-1, 1, 16)
        moved = {}
        for unit in (2, 3, 4):  # unit 0 has no effect
            z = z_loc[:1].repeat(12, 1)
            z[:, unit] = z_loc[:, unit].mean() + torch.linspace(-3, 3, 12) * spread[unit]
            moved[f"z[{unit}]"] = vae.decoder(z).numpy()
    export_bundle(source, tmp_path / "small", ["torchscript"])
    order = sorted(moved, key=lambda name: float(moved[name].var(axis=0).sum()), reverse=True)
    save_grid(tmp_path / "expected.png", {name: moved[name] for name in order}, (1, 8, 8), columns=12)
    np.testing.assert_allclose(pixels(tmp_path / "small" / TRAVERSAL), pixels(tmp_path / "expected.png"), atol=1)
    card = (tmp_path / "small" / CARD).read_text(encoding="utf-8")
    assert "| active units | 4 of 5," in card
    assert "the 3 of 4 active units that change it most" in card


def test_a_collapsed_model_has_no_traversal(labelled: Dataset, tmp_path: Path) -> None:
    source = small(labelled)
    assert isinstance(source.vae, VAE)
    with torch.no_grad():
        source.vae.encoder.get_parameter("fc21.weight").zero_()
    export_bundle(source, tmp_path / "small", ["torchscript"])
    card = (tmp_path / "small" / CARD).read_text(encoding="utf-8")
    assert "| active units | 0 of 5," in card
    assert "traversal" not in card
    assert not (tmp_path / "small" / TRAVERSAL).exists()


def test_data_in_any_range_is_drawn_from_its_smallest_to_its_largest_value(
    exported: Exported, labelled: Dataset, tmp_path: Path
) -> None:
    vae = VAE(ModelConfig((1, 8, 8), 5, 16, likelihood="normal", data_loc=100.0, data_scale=20.0)).eval()
    samples = 80 + 40 * labelled.test
    export_bundle(Source("small", vae, samples, "test images of digits", None), tmp_path / "small", ["torchscript"])
    originals = slice(None, 70)
    found, plain = (pixels(bundle / SAMPLES)[originals] for bundle in (tmp_path / "small", exported("normal")))
    np.testing.assert_allclose(found, plain, atol=1)  # black is black, as where the data is in [0, 1]


def test_a_grid_of_named_sets_has_labels_and_gaps(tmp_path: Path) -> None:
    white = np.ones((3, 56 * 56), np.float32)
    save_grid(tmp_path / "plain.png", white, (1, 56, 56), columns=2)
    save_grid(tmp_path / "sets.png", {"a": white, "long name": white[:1]}, (1, 56, 56), columns=2)
    plain, sets = pixels(tmp_path / "plain.png"), pixels(tmp_path / "sets.png")
    label = sets.shape[1] - plain.shape[1]
    assert label > 20
    np.testing.assert_array_equal(sets[: plain.shape[0], label:], plain)
    assert sets.shape[0] == plain.shape[0] + 8 + 57  # a gap, and a row
    labels = sets[:, :label]
    assert (labels[:57] != 96).any()
    assert (labels[plain.shape[0] + 8 :] != 96).any()
    assert (labels[57 : plain.shape[0]] == 96).all(), "the second row of a set has no label"
