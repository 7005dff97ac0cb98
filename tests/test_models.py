"""The bundles that come with the project."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch

import edgevae
from edgevae.train import VAE, ModelConfig, load_dataset

MODELS = Path(__file__).parent.parent / "models"
BUNDLES = sorted(path.name for path in MODELS.iterdir())


def test_the_models_of_the_readme_are_there() -> None:
    mnist = {f"mnist-{name}" for name in ("mlp", "conv", "conditional", "hierarchical", "mixture")}
    assert set(BUNDLES) == {"digits-mlp", "fashion-normal"} | mnist
    size = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert size < 40e6


@pytest.mark.parametrize("name", BUNDLES)
def test_every_bundle_loads_and_verifies(name: str) -> None:
    model = edgevae.load(MODELS / name, provider="cpu")
    report = model.verify()
    assert report.passed, str(report)
    assert model.manifest.name == name
    dataset = model.manifest.dataset
    assert dataset is not None
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    assert f"{dataset.test_elbo_nats:.2f}" in card
    assert f"epochs {model.manifest.training['epochs']}, " in card
    assert dict(dataset.elbo_quantiles)[0.5] == pytest.approx(dataset.test_elbo_nats, rel=0.2)
    shown = re.search(r"```\n(onnx: .*?)```", card, re.DOTALL)
    assert shown is not None
    on_card, found = checks(shown[1]), checks(str(report))
    assert on_card.keys() == found.keys(), "the card shows what vae-run verify shows"
    for output, (tolerance, worst) in found.items():
        if on_card[output][1] == worst:  # the tolerance is that of the worst value, which may differ between processors
            assert on_card[output][0] == tolerance, output


def checks(report: str) -> dict[tuple[str, str], tuple[str, str]]:
    """The tolerance and the place of the worst value in the table of a verification, by graph and output."""
    _, header, *lines = report.splitlines()
    starts = [header.index(title) for title in ("graph", "output", "max_abs_diff", "tolerance", "worst at")]
    rows = [[line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    return {(graph, output): (tolerance, worst) for graph, output, _, tolerance, worst in rows}


@pytest.mark.parametrize("name", BUNDLES)
def test_the_code_of_every_card_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODELS)
    code = re.findall(r"```python\n(.*?)```", (MODELS / name / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 1
    found: dict[str, Any] = {}
    exec(code[0], found)  # noqa: S102 - our own
    assert found["loc_img"].shape[0] == found["elbo"].shape[0] == 16
    assert np.isfinite(found["elbo"]).all()


def test_the_bundles_of_the_model_space_do_what_only_they_can() -> None:
    conditional = edgevae.load(MODELS / "mnist-conditional", provider="cpu")
    assert conditional.num_classes == 10
    z = np.zeros((10, conditional.z_dim), np.float32)
    classes = conditional.decode(z, y=np.arange(10))
    assert np.abs(classes[:, None] - classes[None]).max(-1)[~np.eye(10, dtype=bool)].min() > 0.5  # ten different images
    mixture = edgevae.load(MODELS / "mnist-mixture", provider="cpu")
    assert mixture.component_probs.shape == (10,)
    found = mixture.encode(mixture.generate(50, seed=0, component=6)).component_probs
    assert found is not None
    assert (found.argmax(1) == 6).mean() > 0.7
    hierarchical = edgevae.load(MODELS / "mnist-hierarchical", provider="cpu")
    assert [level.z_loc.shape for level in hierarchical.encode(classes).levels] == [(10, 32), (10, 16)]
    assert edgevae.load(MODELS / "mnist-conv").manifest.model.architecture == "conv"
    assert edgevae.load(MODELS / "fashion-normal").manifest.model.likelihood == "normal"


def test_mnist_is_as_good_as_pyros_example() -> None:
    dataset = edgevae.load(MODELS / "mnist-mlp").manifest.dataset
    assert dataset is not None
    assert (dataset.name, dataset.num_train, dataset.num_test) == ("mnist", 60000, 10000)
    assert dataset.test_elbo_nats >= -101.4


@pytest.mark.skipif("EDGEVAE_DATA" not in os.environ, reason="EDGEVAE_DATA names no folder with mnist/")
def test_reconstructions_of_all_mnist_test_images_are_pyros(tmp_path: Path) -> None:
    """The weights in the graphs, put back into PyTorch, give the same images from the same seed."""
    import onnx

    graph = onnx.load(MODELS / "mnist-mlp" / "reconstruct.onnx").graph
    weights = {}
    for value in graph.initializer:
        array = torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
        names = value.name.split("+")  # two heads in one product
        if value.name.startswith("-"):  # a sign that went into the weights
            weights[value.name[1:]] = -array
        else:
            weights.update(zip(names, array.chunk(len(names)), strict=True))
    vae = VAE(ModelConfig((1, 28, 28)))
    vae.load_state_dict({name: weights[name] for name, _ in vae.named_parameters()})

    x = load_dataset("mnist", Path(os.environ["EDGEVAE_DATA"], "mnist")).test
    model = edgevae.load(MODELS / "mnist-mlp", provider="cpu")
    with torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(0)
        expected = vae.reconstruct_img(x).numpy()
    found = model.reconstruct(x.numpy(), seed=0)
    assert found.shape == (10000, 784)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
