"""Own data, from files to a bundle that is served from raw input: the numbers are Pyro's on the prepared data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import edgevae
from edgevae import Model, Preprocessing
from edgevae.cli import main
from edgevae.export import FORMATS, Source, export_bundle
from edgevae.train import (
    VAE,
    DataConfig,
    ModelConfig,
    Trainer,
    TrainingConfig,
    check_range,
    elbo_terms,
    load_data,
    standardisation_of,
)


@dataclasses.dataclass(frozen=True)
class Served:
    """A model that was fitted to own data, as Pyro has it and as the runtime does.

    Args:
        vae: Pyro's.
        model: The runtime's.
        path: The bundle.
        x: All test rows, as Pyro's sees them.
        y: Their labels.
    """

    vae: VAE
    model: Model
    path: Path
    x: Tensor
    y: Tensor | None


def serve(out: Path, data: DataConfig, *, labels: bool = False, likelihood: str = "bernoulli") -> Served:
    """Fit a small model for an epoch, export it, load it."""
    dataset = load_data(data, labels=labels)
    config = ModelConfig(dataset.data_shape, 3, 12, likelihood=likelihood, num_classes=dataset.num_classes)
    check_range(dataset.train, likelihood != "normal")
    if likelihood == "normal":
        loc, scale = standardisation_of(dataset.train, per_feature=len(dataset.data_shape) == 1)
        config = dataclasses.replace(config, data_loc=loc, data_scale=scale)
    trainer = Trainer(config, TrainingConfig(batch_size=20, learning_rate=1e-2), torch.device("cpu"))
    trainer.fit_epoch(dataset.train, labels=dataset.train_labels)
    x, y = dataset.test[:], dataset.test_labels
    spec = edgevae.DatasetSpec(
        name=dataset.name,
        num_train=len(dataset.train),
        num_test=len(dataset.test),
        test_elbo_nats=-1.0,
        num_particles=1,
        binarize="none",
        class_names=dataset.class_names,
    )
    done = None if dataset.preprocessing == edgevae.Preprocessing() else dataset.preprocessing
    formats = FORMATS if likelihood == "normal" else FORMATS[:1]  # constants of the graphs are kept in each format
    export_bundle(Source("own", trainer.vae.eval(), x, "test rows", spec, y, preprocessing=done), out, formats)
    return Served(trainer.vae, edgevae.load(out, provider="cpu"), out, x, y)


def check(served: Served, raw: NDArray[Any]) -> None:
    """Hold what the runtime makes of raw test rows against what Pyro makes of the prepared ones."""
    x, y = served.x, served.y
    labels = None if y is None else y.numpy()
    np.testing.assert_array_equal(served.model.observations(raw, labels)[0], x.flatten(1).numpy())
    with torch.no_grad(), torch.random.fork_rng([]):
        z_loc, z_scale = served.vae.encoder(x, y)
        pyro.set_rng_seed(3)
        loc_img = served.vae.reconstruct_img(x, y)
        torch.manual_seed(4)
        terms = elbo_terms(served.vae, x, [torch.randn(len(x), 3)], y)
    posterior = served.model.encode(raw, y=labels)
    np.testing.assert_allclose(posterior.z_loc, z_loc.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.z_scale, z_scale.numpy(), rtol=1e-5, atol=1e-5)
    units = loc_img.abs().amax(0).clamp(min=1).numpy()  # of a table, those of its columns
    found = served.model.reconstruct(raw, y=labels, seed=3) / units
    np.testing.assert_allclose(found, loc_img.numpy() / units, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(served.model.elbo(raw, seed=4, y=labels), terms.elbo.numpy(), rtol=1e-4, atol=1e-3)
    assert served.model.verify().passed


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_colour_images_in_class_folders_are_resized_by_the_runtime_too(tmp_path: Path) -> None:
    for name, hue in (("cat", 60), ("dog", 160)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        random = np.random.default_rng(hue)
        for number in range(15):
            pixels = (hue + random.integers(-50, 50, (9 + number % 3, 12, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    config = DataConfig(data=tmp_path / "pets", test_data=tmp_path / "pets", resize=(8, 6))
    served = serve(tmp_path / "bundle", config, labels=True)
    assert served.model.data_shape == (3, 8, 6)
    for row, folder in ((0, "cat"), (15, "dog")):
        run("encode", served.path, tmp_path / "pets" / folder, "--y", row // 15, "--out", tmp_path / "z.npz")
        with np.load(tmp_path / "z.npz") as written, torch.no_grad():
            assert served.y is not None
            part = slice(row, row + 15)
            expected = served.vae.encoder(served.x[part], served.y[part])[0]
            np.testing.assert_allclose(written["z_loc"], expected.numpy(), rtol=1e-5, atol=1e-5)
    info = run("info", served.path)
    assert "image files are resized to 8 high, 6 wide" in info
    assert "y, integers from 0 to 1: cat, dog" in info
    for y in ("dog", "1"):
        run("generate", served.path, "-n", 3, "--y", y, "--out", tmp_path / f"{y}.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "dog.npy"), np.load(tmp_path / "1.npy"))
    card = (served.path / "README.md").read_text(encoding="utf-8")
    assert "2 classes (cat, dog), inputs of both networks" in card
    assert "image files are resized to 8 high, 6 wide, by the runtime" in card


def test_a_table_is_standardised_by_column_inside_of_the_graphs(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal([0, 0, -3, 7], [3e4, 1e-3, 4, 0], (100, 4))
    np.save(tmp_path / "x.npy", table)
    np.save(tmp_path / "t.npy", table[:30])
    config = DataConfig(data=tmp_path / "x.npy", test_data=tmp_path / "t.npy")
    served = serve(tmp_path / "bundle", config, likelihood="normal")
    check(served, table[:30])
    assert served.model.manifest.preprocessing == Preprocessing(divide_uint8=False)
    off = np.abs(served.model.generate(2000, seed=0).mean(0) - table.mean(0))
    assert (off < [2e4, 1e-3, 3, 1]).all()  # in the table's own units
    np.save(tmp_path / "i.npy", table.round().astype(np.int64)[:5])
    run("reconstruct", served.path, tmp_path / "i.npy", "--out", tmp_path / "r.npy")  # integers are numbers too
    expected = served.model.reconstruct(table.round()[:5])
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), expected)


def test_an_npz_with_labels_and_a_scale_is_served_as_it_is(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).integers(0, 17, (90, 5, 4, 3)), np.arange(90) % 3
    np.savez(tmp_path / "x.npz", x=x, y=y)
    np.savez(tmp_path / "t.npz", x=x[:40], y=y[:40])
    config = DataConfig(data=tmp_path / "x.npz", test_data=tmp_path / "t.npz", scale=(0, 16))
    served = serve(tmp_path / "bundle", config, labels=True)
    raws: list[NDArray[Any]] = [x[:40], x[:40].astype(np.uint8), x[:40].astype(np.float64), np.moveaxis(x[:40], -1, 1)]
    for raw in raws:
        check(served, raw)
    run("encode", served.path, tmp_path / "t.npz", "--out", tmp_path / "z.npz")
    run("encode", served.path, served.path / "reference.npz", "--out", tmp_path / "r.npz")
    with np.load(tmp_path / "z.npz") as own, np.load(tmp_path / "r.npz") as reference:
        np.testing.assert_allclose(own["z_loc"], served.model.encode(x[:40], y=y[:40]).z_loc, atol=1e-6)
        with np.load(served.path / "reference.npz") as arrays:  # its values are prepared already
            np.testing.assert_allclose(reference["z_loc"], arrays["z_loc"], rtol=1e-4, atol=1e-4)
    assert "values from 0 to 16 become 0 to 1" in run("info", served.path)
    assert "preprocessing.raw(images)" in (served.path / "README.md").read_text(encoding="utf-8")


def test_pictures_and_image_files_go_with_the_scale_of_an_array(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8))
    np.save(tmp_path / "x.npy", x / 10 - 3)
    served = serve(tmp_path / "bundle", DataConfig(data=tmp_path / "x.npy", scale=(-3, 22.5)))
    Image.fromarray(x[0].astype(np.uint8)).save(tmp_path / "a.png")
    run("encode", served.path, tmp_path / "a.png", "--out", tmp_path / "z.npy")
    expected = served.model.encode(x[:1] / 10 - 3).z_loc
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, rtol=1e-4, atol=1e-5)
    run("reconstruct", served.path, tmp_path / "x.npy", "--out", tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as image:
        np.testing.assert_array_equal(np.asarray(image)[7:63:7, 7:63:7], x[0])
    run("bench", served.path, "--batch-size", 1, "--seconds", 0.01)
