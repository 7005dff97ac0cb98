"""Bundles of a part of the model: the encoder alone, the decoder alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevae import BundleError, InputError, Latents, Model, Reference, load
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, Dataset, ModelConfig


@pytest.fixture(scope="module")
def halves(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    folder = tmp_path_factory.mktemp("halves")
    export_bundle(source, folder / "encoder", ["onnx", "torchscript"], part="encoder")
    export_bundle(source, folder / "decoder", part="decoder")
    return load(folder / "encoder", provider="cpu"), load(folder / "decoder", provider="cpu")


def files(model: Model) -> set[str]:
    return {path.name for path in model._bundle.path.iterdir()}


def test_an_encoder_and_a_decoder_apart_do_what_the_whole_does(
    halves: tuple[Model, Model], model: Model, digits: Dataset, tmp_path: Path
) -> None:
    encoder, decoder = halves
    x = digits.test[:20].numpy()
    z = encoder.encode(x).sample(seed=3)
    z.save(tmp_path / "latents.npz")
    sent = Latents.load(tmp_path / "latents.npz")
    np.testing.assert_array_equal(decoder.decode(sent), model.reconstruct(x, seed=3))
    np.testing.assert_array_equal(decoder.generate(5, seed=0), model.generate(5, seed=0))
    np.testing.assert_array_equal(encoder.active_units(x), model.active_units(x))
    assert encoder.latent_space_id == decoder.latent_space_id == model.latent_space_id


def test_each_part_holds_its_own_files_and_reference_and_verifies(halves: tuple[Model, Model]) -> None:
    encoder, decoder = halves
    shared = {"manifest.json", "reference.npz", "README.md", "samples.png", "traversal.png"}
    assert files(encoder) == shared | {"encoder.onnx", "encoder.ts"}
    assert files(decoder) == shared | {"decoder.onnx"}
    arrays = [Reference.decode(part._bundle.read(part.manifest.reference)).arrays.keys() for part in halves]
    assert arrays == [{"x", "z_loc", "z_scale"}, {"z", "loc_img"}]
    reports = [part.verify() for part in halves]
    assert all(report.passed for report in reports)
    assert [[check.output for check in report.checks] for report in reports] == [
        ["z_loc", "z_scale", "KL(q_pyro ‖ q_onnx) nats"],
        ["loc_img"],
    ]
    assert "the encoder alone" in (encoder._bundle.path / "README.md").read_text(encoding="utf-8")


def test_what_a_part_cannot_do_is_an_error_that_says_why(halves: tuple[Model, Model], digits: Dataset) -> None:
    encoder, decoder = halves
    x = digits.test[:2].numpy()
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: encoder.decode(np.zeros((1, 5))), "encoder, and this needs its graph decoder"),
        (lambda: encoder.generate(1, seed=0), "encoder, and this needs its graph decoder"),
        (lambda: encoder.reconstruct(x), "encoder, and this needs its graph reconstruct"),
        (lambda: encoder.score(x), "encoder, and this needs its graph decoder"),
        (lambda: decoder.encode(x), "decoder, and this needs its graph encoder"),
        (lambda: decoder.reconstruct(x), "decoder, and this needs its graph reconstruct"),
        (lambda: decoder.interpolate(x, x, 3), "decoder, and this needs its graph encoder"),
        (lambda: decoder.posterior_predictive(x, 1, seed=0), "decoder, and this needs its graph encoder"),
    ]
    for call, message in calls:
        with pytest.raises(BundleError, match=f"holds only the model's {message}; take a bundle .* --graphs all"):
            call()


@pytest.mark.parametrize("latent", ["hierarchical", "mixture"])
def test_a_decoder_alone_brings_its_prior(latent: str, digits: Dataset, tmp_path: Path) -> None:
    choices = {"upper_dims": (2,)} if latent == "hierarchical" else {"components": 3}
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        vae = VAE(ModelConfig((1, 8, 8), 3, 8, latent=latent, **choices)).eval()
    source = Source("small", vae, digits.test, "test images of digits", None)
    for part in ("all", "decoder"):
        export_bundle(source, tmp_path / part, part=part)
    whole, decoder = (load(tmp_path / part, provider="cpu") for part in ("all", "decoder"))
    assert set(decoder.manifest.graphs) == {"decoder", "prior"}
    assert decoder.verify().passed
    np.testing.assert_array_equal(decoder.generate(7, seed=2), whole.generate(7, seed=2))


def test_latents_keep_their_space_in_files(model: Model, digits: Dataset, tmp_path: Path) -> None:
    z = model.encode(digits.test[:3].numpy()).z_loc
    z.save(tmp_path / "z.latents")
    found = Latents.load(tmp_path / "z.latents")
    assert found.latent_space_id == z.latent_space_id == model.latent_space_id
    np.testing.assert_array_equal(found, z)
    Latents.of(np.asarray(z), "another").save(tmp_path / "z.latents")
    with pytest.raises(InputError, match=f"z is of latent space another, this model's is {model.latent_space_id[:16]}"):
        model.decode(Latents.load(tmp_path / "z.latents"))


def test_files_that_hold_no_latents_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"must be an \.npz file with an array z or z_loc"):
        Latents.load(tmp_path / "x.npz")
    np.save(tmp_path / "z.npy", np.zeros((1, 5)))
    with pytest.raises(InputError, match=r"must be an \.npz file with an array z or z_loc"):
        Latents.load(tmp_path / "z.npy")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        Latents.load(tmp_path / "broken.npz")
