"""A loaded bundle, compared with Pyro."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevae import InputError, Model, load
from edgevae.train import VAE, Dataset

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def x(digits: Dataset) -> torch.Tensor:
    return digits.test[:40]


def test_encode_gives_the_encoders_parameters(model: Model, vae: VAE, x: torch.Tensor) -> None:
    with torch.no_grad():
        z_loc, z_scale = vae.encoder(x)
    posterior = model.encode(x.numpy())
    np.testing.assert_allclose(posterior.z_loc, z_loc, atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(posterior.z_scale, z_scale, atol=TOLERANCE, rtol=TOLERANCE)


def test_decode_gives_the_decoders_probabilities(model: Model, vae: VAE) -> None:
    z = torch.randn((33, 5), generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        expected = vae.decoder(z)
    np.testing.assert_allclose(model.decode(z.numpy()), expected, atol=TOLERANCE)


@given(batch=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_reconstruct_with_a_seed_is_pyros_reconstruct_img(
    model: Model, vae: VAE, digits: Dataset, batch: int, seed: int
) -> None:
    x = digits.test[:batch]
    with torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(seed)
        expected = vae.reconstruct_img(x)
    np.testing.assert_allclose(model.reconstruct(x.numpy(), seed=seed), expected, atol=TOLERANCE)


@given(n=st.integers(1, 40), seed=st.integers(0, 2**64 - 1))
def test_generate_decodes_torchs_noise_of_the_same_seed(model: Model, vae: VAE, n: int, seed: int) -> None:
    with torch.no_grad():
        expected = vae.decoder(torch.randn((n, 5), generator=torch.Generator().manual_seed(seed)))
    np.testing.assert_allclose(model.generate(n, seed), expected, atol=TOLERANCE)


def test_reconstruct_without_noise_decodes_the_mean(model: Model, x: torch.Tensor) -> None:
    expected = model.decode(model.encode(x.numpy()).z_loc)
    np.testing.assert_allclose(model.reconstruct(x.numpy()), expected, atol=1e-6)


def test_reconstruct_takes_explicit_noise(model: Model, x: torch.Tensor) -> None:
    eps = np.random.default_rng(0).standard_normal((40, 5))
    posterior = model.encode(x.numpy())
    expected = model.decode(posterior.sample(eps=eps))
    np.testing.assert_allclose(model.reconstruct(x.numpy(), eps=eps), expected, atol=1e-6)


def test_posterior_sample_of_a_seed_is_the_reparameterized_noise(model: Model, x: torch.Tensor) -> None:
    posterior = model.encode(x.numpy())
    eps = torch.randn((40, 5), generator=torch.Generator().manual_seed(9)).numpy()
    np.testing.assert_allclose(posterior.sample(seed=9), posterior.z_loc + posterior.z_scale * eps, atol=1e-5)


def test_posterior_sample_needs_its_noise_named(model: Model, x: torch.Tensor) -> None:
    posterior = model.encode(x.numpy())
    with pytest.raises(InputError, match="needs seed"):
        posterior.sample()
    with pytest.raises(InputError, match="both given"):
        posterior.sample(seed=0, eps=np.zeros((40, 5)))


@pytest.mark.parametrize("shape", [(40, 64), (40, 1, 8, 8), (40, 8, 8)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_shapes_of_images_mean_the_same(
    model: Model, x: torch.Tensor, shape: tuple[int, ...], dtype: type[np.floating]
) -> None:
    expected = model.reconstruct(x.numpy())
    np.testing.assert_array_equal(model.reconstruct(x.numpy().reshape(shape).astype(dtype)), expected)


def test_uint8_pixels_are_divided_by_255(model: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    expected = model.encode(pixels.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(model.encode(pixels).z_loc, expected.z_loc)


@pytest.mark.parametrize("layout", ["fortran", "reversed", "strided", "read-only", "big-endian"])
def test_memory_layout_does_not_matter(model: Model, x: torch.Tensor, layout: str) -> None:
    plain = x.numpy().reshape(40, 64).copy()
    laid_out = {
        "fortran": np.asfortranarray(plain),
        "reversed": plain[::-1].copy()[::-1],
        "strided": np.repeat(plain, 2, axis=1)[:, ::2],
        "read-only": plain,
        "big-endian": plain.astype(">f4"),
    }[layout]
    laid_out.setflags(write=False)
    np.testing.assert_array_equal(model.encode(laid_out).z_loc, model.encode(plain).z_loc)


def test_an_empty_batch_gives_an_empty_result(model: Model) -> None:
    empty = np.empty((0, 1, 8, 8), np.float32)
    posterior = model.encode(empty)
    assert posterior.z_loc.shape == posterior.z_scale.shape == (0, 5)
    assert posterior.sample(seed=0).shape == (0, 5)
    assert model.decode(np.empty((0, 5), np.float32)).shape == (0, 64)
    assert model.reconstruct(empty, seed=0).shape == (0, 64)
    assert model.generate(0, seed=0).shape == (0, 64)


def test_latents_of_one_model_are_refused_by_anothers_decoder(model: Model, bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace(model.manifest.latent_space_id, "0" * 64))
    posterior = load(other, provider="cpu").encode(np.zeros((2, 64)))
    for z in (posterior.sample(seed=0), posterior.z_loc, 0.5 * posterior.z_loc, posterior.z_loc[:1]):
        with pytest.raises(InputError, match=f"latent space {'0' * 16}, this model's is"):
            model.decode(z)
    assert model.decode(np.asarray(posterior.z_loc)).shape == (2, 64)
    assert model.decode(model.encode(np.zeros((2, 64))).sample(seed=0)).shape == (2, 64)


def test_the_same_call_gives_the_same_numbers(model: Model, x: torch.Tensor) -> None:
    np.testing.assert_array_equal(model.reconstruct(x.numpy(), seed=4), model.reconstruct(x.numpy(), seed=4))
    np.testing.assert_array_equal(model.generate(7, seed=4), model.generate(7, seed=4))


@pytest.mark.parametrize("n", [-1, 1.0, True])
def test_generate_refuses_an_invalid_count(model: Model, n: object) -> None:
    with pytest.raises(InputError, match="n must"):
        model.generate(n, seed=0)  # type: ignore[arg-type]  # that is the point


def test_load_refuses_choices_that_do_not_exist(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"provider must be auto, cpu, cuda, or another of .*openvino.*, got 'gpu'"):
        load(bundle, provider="gpu")
    with pytest.raises(InputError, match="threads must be from 1 to 1024, got 0"):
        load(bundle, threads=0)
    with pytest.raises(InputError, match="threads must be from 1 to 1024"):
        load(bundle, threads=2**40)


def test_the_number_of_threads_does_not_change_the_numbers(bundle: Path, x: torch.Tensor) -> None:
    one, two = (load(bundle, provider="cpu", threads=threads).reconstruct(x.numpy()) for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_batch_that_is_split_inside_gives_what_its_parts_give(model: Model) -> None:
    x = np.random.default_rng(0).random((9000, 64), np.float32)
    whole, parts = model.encode(x), [model.encode(x[rows : rows + 3000]) for rows in (0, 3000, 6000)]
    np.testing.assert_allclose(whole.z_loc, np.concatenate([part.z_loc for part in parts]), atol=1e-6)
    np.testing.assert_allclose(whole.z_scale, np.concatenate([part.z_scale for part in parts]), atol=1e-6)


def test_a_model_says_what_it_is(model: Model) -> None:
    assert model.data_shape == (1, 8, 8)
    assert model.z_dim == 5
    assert model.provider == "cpu"
    assert "small" in repr(model)


@pytest.mark.parametrize("rows", [0, 1, 7, 2500])
def test_a_result_is_written_where_the_caller_wants_it(model: Model, rows: int) -> None:
    x, z = np.full((rows, 64), 0.5, np.float32), np.ones((rows, 5), np.float32)
    out = np.full((rows, 64), np.nan, np.float32)
    assert model.reconstruct(x, seed=1, out=out) is out
    np.testing.assert_array_equal(out, model.reconstruct(x, seed=1))
    assert model.decode(z, out=out) is out
    np.testing.assert_array_equal(out, model.decode(z))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ([[0.0] * 64] * 2, "out must be a NumPy array, got list"),
        (np.empty((2, 64)), r"out must be float32 of shape \(2, 64\).* got float64 of shape \(2, 64\)"),
        (np.empty((3, 64), np.float32), r"got float32 of shape \(3, 64\)"),
        (np.empty((2, 128), np.float32)[:, ::2], "not contiguous"),
        (np.broadcast_to(np.float32(0), (2, 64)), "not contiguous, read-only"),
    ],
)
def test_an_output_array_that_does_not_fit_is_refused(model: Model, out: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.reconstruct(np.zeros((2, 64), np.float32), out=out)


# Paths and traversals through the latent space


def test_a_path_leads_from_one_reconstruction_to_the_other(model: Model, digits: Dataset) -> None:
    x_a, x_b = digits.test[:3].numpy(), digits.test[3:6].numpy()
    path = model.interpolate(x_a, x_b, 5)
    assert path.shape == (3, 5, 64)
    np.testing.assert_allclose(path[:, 0], model.reconstruct(x_a), atol=1e-6)
    np.testing.assert_allclose(path[:, -1], model.reconstruct(x_b), atol=1e-6)
    middle = 0.5 * (np.asarray(model.encode(x_a).z_loc) + np.asarray(model.encode(x_b).z_loc))
    np.testing.assert_allclose(path[:, 2], model.decode(middle), atol=1e-5)


def test_a_traversal_sets_one_dimension(model: Model, digits: Dataset) -> None:
    x = digits.test[:3].numpy()
    found = model.traverse(x, 2, [-3, 0, 3])
    assert found.shape == (3, 3, 64)
    z = np.array(model.encode(x).z_loc)
    z[:, 2] = 3
    np.testing.assert_allclose(found[:, 2], model.decode(z), atol=1e-6)


def test_active_units_are_those_whose_mean_varies(model: Model, digits: Dataset) -> None:
    x = digits.test.numpy()
    expected = np.asarray(model.encode(x).z_loc).var(0) > 0.01
    np.testing.assert_array_equal(model.active_units(x), expected)
    assert expected.any()
    assert not model.active_units(np.repeat(x[:1], 5, axis=0)).any()


def test_invalid_paths_and_traversals_are_refused(model: Model, digits: Dataset) -> None:
    x = digits.test[:3].numpy()
    with pytest.raises(InputError, match="steps must be at least 2, got 1"):
        model.interpolate(x, x, 1)
    with pytest.raises(InputError, match="x_a and x_b must have the same number of rows, got 3 and 2"):
        model.interpolate(x, x[:2], 4)
    with pytest.raises(InputError, match="dim must be from 0 to 4, got 5"):
        model.traverse(x, 5, [0.0])
    with pytest.raises(InputError, match=r"span must have shape \(length,\), got \(\)"):
        model.traverse(x, 0, 1.0)
    with pytest.raises(InputError, match="span must be finite"):
        model.traverse(x, 0, [np.nan])
    with pytest.raises(InputError, match="at least 2 rows, whose means can vary, got 1"):
        model.active_units(x[:1])


def test_empty_paths_and_traversals_have_the_right_shape(model: Model) -> None:
    none = np.zeros((0, 64), np.float32)
    assert model.interpolate(none, none, 3).shape == (0, 3, 64)
    assert model.traverse(none, 0, [-1.0, 1.0]).shape == (0, 2, 64)
    assert model.traverse(np.zeros((2, 64)), 0, np.zeros(0)).shape == (2, 0, 64)
