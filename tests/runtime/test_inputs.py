"""What callers hand in, and what they are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from edgevae import InputError, Manifest, Model, Score, load
from edgevae.inputs import LARGE_SIZE, Observations, all_within
from tests.conftest import REPOSITORY

MANIFEST = REPOSITORY / "models" / "digits-mlp" / "manifest.json"
SHAPES = r"x must have shape \(batch, 64\) or \(batch, 1, 8, 8\) or \(batch, 8, 8\), got "


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(64), SHAPES + r"\(64,\); add a batch axis with x\[None\]"),
        (np.zeros((1, 8, 8), np.uint8)[0], SHAPES + r"\(8, 8\); add a batch axis"),
        (np.zeros((8, 8, 1)), SHAPES + r"\(8, 8, 1\); add a batch axis"),
        (np.zeros((2, 63)), SHAPES + r"\(2, 63\)$"),
        (np.zeros((2, 8, 8, 3)), SHAPES + r"\(2, 8, 8, 3\); these are colour images and the model's are grey"),
        (np.zeros((2, 3, 8, 8)), SHAPES + r"\(2, 3, 8, 8\); these are colour images and the model's are grey"),
        (np.zeros((2, 1, 9, 8)), SHAPES + r"\(2, 1, 9, 8\); resize the images to 8 high and 8 wide"),
        (np.float32(0), SHAPES + r"\(\)"),
        (
            np.zeros((2, 64), np.int64),
            r"got dtype int64; integers may mean either: pass pixels of 0 to 255 as np.asarray\(x, np.uint8\)",
        ),
        ([[0, 255] * 32], r"floats in \[0, 1\], or uint8 pixels in \[0, 255\], got dtype int64; integers may mean"),
        (np.zeros((2, 64), complex), "got dtype complex128"),
        (np.full((2, 64), "a"), "got dtype <U1"),
        (np.full((2, 64), None), "array of numbers"),
        ([[0.0] * 64, [0.0] * 63], "array of numbers"),
        (torch.zeros(2, 64, requires_grad=True), "array of numbers, got Tensor"),
        (torch.zeros(2, 64, dtype=torch.bfloat16), "array of numbers, got Tensor"),
        (np.ma.masked_array(np.zeros((2, 64)), mask=True), "must not be a masked array"),
        ([np.ma.masked_array(np.zeros(64), mask=True)], "x must not hold masked arrays"),
        (
            np.full((2, 64), 255.0),
            r"in \[0, 1\], got values from 255 to 255, .* row 0; divide pixels of 0 to 255",
        ),
        (
            np.full((2, 64), 1.0000001, np.float32),
            r"to 1.0000001, .* rounding errors: np.clip\(x, 0, 1\)",
        ),
        (
            np.full((2, 64), -0.1),
            r"values from -0.1 to -0.1, .*; values in \[-1, 1\] .* \(x \+ 1\) / 2",
        ),
        (np.full((2, 64), -3.0), r"in \[0, 1\], got values from -3 to -3, .*; scale them as the training data were"),
        (np.full((2, 64), np.inf), r"in \[0, 1\], got values from inf"),
        (np.full((2, 64), 1e300), r"in \[0, 1\], got values from inf"),
        (np.array([[0.0] * 64, [0.0] * 63 + [2.0]]), r"got values from 0 to 2, the first outside in row 1"),
        (np.array([[0.0] * 64, [0.0] * 63 + [np.nan]]), "NaN in row 1; drop the row, or fill in what is missing"),
        ("images/a.png", r"got text, 'images/a.png'; read the file first, .* edgevae.images.read_image"),
        (Path("a.npy"), r"got a path, 'a.npy'; read the file first, with np.load"),
        (Image.new("RGB", (8, 8)), r"x must be an image of mode L, got mode RGB; image.convert\('L'\)"),
        (
            Image.new("L", (9, 8)),
            r"8 wide and 8 high, got 9 wide and 8 high; image.resize\(\(8, 8\)\)",
        ),
    ],
)
def test_observations_that_do_not_fit_are_refused(model: Model, x: Any, message: str) -> None:
    for call in (model.encode, model.reconstruct):
        with pytest.raises(InputError, match=message):
            call(x)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros(5), r"z must have shape \(batch, 5\), got \(5,\); add a batch axis with z\[None\]"),
        (np.zeros((2, 6)), r"z must have shape \(batch, 5\), got \(2, 6\)"),
        (np.zeros((2, 5), bool), "z must be numbers, got dtype bool"),
        ("z.npz", "z must be an array of numbers, got text, 'z.npz'; read the file first, with edgevae.Latents.load"),
        (np.array([[0.0] * 5, [np.nan] * 5]), "z must be finite, got NaN or infinity in row 1"),
        (np.full((2, 5), 1e300), "z must be finite"),
    ],
)
def test_latents_that_do_not_fit_are_refused(model: Model, z: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.decode(z)


def test_unambiguous_inputs_are_accepted(model: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8)
    expected = model.encode(pixels).z_loc
    images: Any = [Image.fromarray(image) for image in pixels]
    bit_images: Any = [Image.fromarray(image > 127) for image in pixels]
    np.testing.assert_array_equal(model.encode(images).z_loc, expected)
    np.testing.assert_array_equal(model.encode(images[0]).z_loc, model.encode(pixels[:1]).z_loc)
    np.testing.assert_array_equal(model.encode(pixels[..., None]).z_loc, expected)
    bits = pixels > 127
    np.testing.assert_array_equal(model.encode(bits).z_loc, model.encode(bits.astype(np.float32)).z_loc)
    np.testing.assert_array_equal(model.encode(bit_images).z_loc, model.encode(bits).z_loc)
    half = (pixels / 255).astype(np.float16)
    np.testing.assert_array_equal(model.encode(half).z_loc, model.encode(half.astype(np.float32)).z_loc)
    np.testing.assert_array_equal(model.decode([[0, 1, 2, 3, 4]]), model.decode([[0.0, 1.0, 2.0, 3.0, 4.0]]))


def test_a_posterior_in_place_of_latents_says_which_attribute_to_pass(model: Model) -> None:
    with pytest.raises(InputError, match=r"z must be .*, got a Posterior; take its z_loc, or sample\(seed=0\)"):
        model.decode(model.encode(np.zeros((1, 64))))  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.0, 1.0], r"y must be integers, got dtype float64; y.astype\(np.int64\) makes integers of them"),
        ([[0], [1]], r"y must be one integer or have shape \(2,\), got \(2, 1\); drop the last axis with y\[:, 0\]"),
        (np.eye(10)[:2], r"y must be .* got \(2, 10\); one-hot labels become integers with y.argmax\(1\)"),
        ([0, 10], "y must be from 0 to 9, got 0 to 10"),
        (None, "y is needed: this model sees labels, integers from 0 to 9"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y: Any, message: str) -> None:
    with (
        load(REPOSITORY / "models" / "mnist-conditional", provider="cpu", threads=1) as model,
        pytest.raises(InputError, match=message),
    ):
        model.encode(np.zeros((2, 784)), y=y)


def test_a_missing_seed_says_what_a_seed_is(model: Model) -> None:
    x = np.zeros((1, 64))
    calls: list[Callable[[], object]] = [
        lambda: model.generate(1),
        lambda: model.posterior_predictive(x, 1),
        lambda: model.elbo(x),
        lambda: model.log_likelihood(x),
    ]
    for call in calls:
        with pytest.raises(InputError, match="a seed is needed, an integer like seed=0"):
            call()


def test_colour_models_say_where_channels_belong() -> None:
    spec = msgspec.structs.replace(Manifest.decode(MANIFEST.read_bytes()).model, data_shape=(3, 8, 8))
    observations = Observations(spec, None)
    cases: list[tuple[Any, str]] = [
        (np.zeros((2, 8, 8, 3)), r"the channels come first: np.moveaxis\(x, -1, 1\)"),
        (np.zeros((2, 8, 8)), "these are grey images and the model's have 3 channels: repeat the channel"),
        (Image.new("L", (8, 8)), r"mode RGB, got mode L; image.convert\('RGB'\)"),
    ]
    for x, remedy in cases:
        with pytest.raises(InputError, match=remedy):
            observations.scaled(x)
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    image: Any = Image.fromarray(pixels)
    found = observations.scaled(image)
    np.testing.assert_array_equal(found, observations.scaled(np.moveaxis(pixels, -1, 0)[None]))


def test_results_become_json(model: Model) -> None:
    x = np.random.default_rng(0).random((2, 64))
    posterior, score = model.encode(x), model.score(x)
    found = json.loads(json.dumps(posterior.to_dict()))
    assert found["latent_space_id"] == model.latent_space_id
    np.testing.assert_array_equal(np.array(found["z_scale"], np.float32), posterior.z_scale)
    assert (found["upper"], found["component_probs"]) == ([], None)
    assert json.loads(json.dumps(posterior.sample(seed=0).to_dict())).keys() == {"z", "latent_space_id"}
    assert json.loads(json.dumps(score.to_dict())) == {
        name: getattr(score, name).tolist() for name in ("elbo", "reconstruction", "kl")
    }
    assert Score(*[np.array([np.nan])] * 3).to_dict() == {"elbo": [None], "reconstruction": [None], "kl": [None]}


def test_noise_must_fit_the_batch(model: Model) -> None:
    x = np.zeros((3, 64), np.float32)
    with pytest.raises(InputError, match=r"eps must have shape \(3, 5\), got \(2, 5\)"):
        model.reconstruct(x, eps=np.zeros((2, 5)))
    with pytest.raises(InputError, match="seed and eps were both given"):
        model.reconstruct(x, seed=0, eps=np.zeros((3, 5)))


def test_lists_of_numbers_are_arrays_too(model: Model) -> None:
    np.testing.assert_array_equal(model.encode([[0.5] * 64]).z_loc, model.encode(np.full((1, 64), 0.5)).z_loc)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 1e-45, np.nextafter(np.float32(1), np.float32(0))])
def test_the_ends_of_the_unit_interval_belong_to_it(model: Model, value: float) -> None:
    assert model.observations(np.full((2, 64), value, np.float32))[0].shape == (2, 64)


@pytest.mark.parametrize("value", [-1e-45, np.nextafter(np.float32(1), np.float32(2)), -np.inf, np.nan, -np.nan])
def test_the_least_step_out_of_the_unit_interval_is_refused(model: Model, value: float) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, 63] = value
    with pytest.raises(InputError, match=r"x must (be in \[0, 1\]|not hold NaN, got NaN in row 1)"):
        model.observations(x)


def test_checked_observations_are_what_the_graphs_take(model: Model) -> None:
    x, y = model.observations(np.full((3, 1, 8, 8), 255, np.uint8))
    assert x.dtype == np.float32
    assert (x.shape, x.max()) == ((3, 64), 1)
    assert y is None
    whole = np.zeros((3, 64), np.float32)
    assert np.shares_memory(model.observations(whole)[0], whole)


@pytest.mark.parametrize("rows", [7, 3000])
def test_a_result_may_be_written_over_its_own_input(model: Model, rows: int) -> None:
    random = np.random.default_rng(0)
    memory = random.random((rows + 1, 64), np.float32)
    expected = model.reconstruct(memory[:-1].copy(), seed=1)
    np.testing.assert_array_equal(model.reconstruct(memory[:-1], seed=1, out=memory[1:]), expected)
    np.testing.assert_array_equal(memory[1:], expected)
    memory = random.standard_normal((rows, 69)).astype(np.float32).reshape(-1)
    z, out = memory[: rows * 5].reshape(rows, 5), memory[rows * 3 : rows * 67].reshape(rows, 64)
    expected = model.decode(z.copy())
    np.testing.assert_array_equal(model.decode(z, out=out), expected)


def test_unaligned_input_is_copied_and_unaligned_output_refused(model: Model) -> None:
    memory = np.zeros(3 * 64 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(3, 64)
    assert not memory.flags.aligned
    assert model.observations(memory)[0].flags.aligned
    with pytest.raises(InputError, match=r"out must be float32 .* aligned and writable, got .*, not aligned"):
        model.reconstruct(np.zeros((3, 64)), out=memory)


def test_a_masked_array_is_refused_as_output(model: Model) -> None:
    out = np.ma.masked_array(np.zeros((2, 64), np.float32), mask=True, hard_mask=True)
    with pytest.raises(InputError, match=r"out must not be a masked array; give the array under it, out\.data"):
        model.decode(np.zeros((2, 5)), out=out)


@pytest.mark.parametrize("count", [2**62, 2**64, 2**200])
def test_impossibly_large_counts_are_refused(model: Model, count: int) -> None:
    x = np.zeros((2, 64), np.float32)
    calls: dict[str, Callable[[], object]] = {
        "n": lambda: model.generate(count, seed=0),
        "num_samples": lambda: model.posterior_predictive(x, count, seed=0),
        "steps": lambda: model.interpolate(x, x, count),
        "batch_sizes": lambda: model.warm_up([count]),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"{name} must be at most"):
            call()
    assert len(list(model.reconstruct_batches(x, count))) == 1


def test_batch_sizes_must_be_a_list(model: Model) -> None:
    with pytest.raises(InputError, match="batch_sizes must be a list of integers, got int"):
        model.warm_up(5)  # type: ignore[arg-type]  # that is the point


ODD_BITS = [0x80000000, 0x7FC00000, 0xFFC00000, 0x7F800000, 0xFF800000, 0x3F800000]
BITS = st.sampled_from(ODD_BITS) | st.integers(0, 2**32 - 1)


@given(bits=st.lists(BITS, min_size=1, max_size=40), low=st.sampled_from([0.0, -1.0]))
@example(bits=[0x80000000, 0x40A00000], low=0.0)  # -0 and 5: as integers, -0 is the larger one
def test_all_numbers_are_within_their_range_whatever_their_bits(bits: list[int], low: float) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    expected = bool(((values >= low) & (values <= 1)).all())
    assert all_within(values, low, 1.0) == expected
    assert all_within(np.resize(values, LARGE_SIZE), low, 1.0) == expected
