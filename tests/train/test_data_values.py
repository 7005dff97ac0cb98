"""Own data: the range that a likelihood needs, mean and scale for one that standardises."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgevae.train import (
    LIKELIHOODS,
    VAE,
    ConfigError,
    DataConfig,
    DatasetError,
    DatasetInfo,
    Images,
    ModelConfig,
    Preprocessing,
    RunConfig,
    TrainingConfig,
    check_range,
    load_data,
    run_config,
    standardisation_of,
)
from edgevae.train.data import rows


def opened(path: Path, array: np.ndarray, scale: tuple[float, float] | None = None) -> Images:
    np.save(path, array)
    return load_data(DataConfig(data=path, scale=scale), labels=False).train


@pytest.mark.parametrize(
    ("array", "scale", "message"),
    [
        (np.array([[0.0, 1.5]] * 9), None, r"must hold floats in \[0, 1\] or uint8 .* float64 values from 0 to 1.5"),
        (np.array([[0.0, 1.5]] * 9), None, "like --scale 0,1.5, or take --likelihood normal"),
        (np.array([[-0.1, 1.0]] * 9), None, "values from -0.1 to 1"),
        (np.array([[0, 1]] * 9), None, "got int64 values from 0 to 1; say with --scale"),
        (np.array([[0, 17]] * 9), (0, 16), r"values in \[0, 16\], as --scale says, got int64 values from 0 to 17"),
        (np.array([[-1, 1]] * 9), (0, 16), "give --scale -1,1"),
        (np.array([[0, 17]] * 9, np.uint8), (0, 16), "got uint8 values from 0 to 17"),
    ],
)
def test_values_out_of_a_likelihoods_range_are_refused_with_the_ways_out(
    tmp_path: Path, array: np.ndarray, scale: tuple[float, float] | None, message: str
) -> None:
    images = opened(tmp_path / "x.npy", array, scale)
    with pytest.raises(DatasetError, match=rf"x\.npy .*{message}"):
        check_range(images, True)
    check_range(images, False)


@pytest.mark.parametrize(
    ("array", "scale"),
    [
        (np.array([[0.0, 1.0]] * 9), None),
        (np.array([[0, 255]] * 9, np.uint8), None),
        (np.array([[0, 16]] * 9), (0, 16)),
        (np.array([[0.1, 0.7]] * 9), (0.1, 0.7)),
    ],
)
def test_values_in_range_are_taken(tmp_path: Path, array: np.ndarray, scale: tuple[float, float] | None) -> None:
    check_range(opened(tmp_path / "x.npy", array, scale), True)


def test_a_value_out_of_range_is_named_by_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 6)
    table = np.full((90, 2), 0.5, np.float32)
    table[77, 1] = 1.5
    with pytest.raises(DatasetError, match=r"values from 0\.5 to 1\.5, first in row 77 \(counted from 0\)"):
        check_range(opened(tmp_path / "x.npy", table), True)
    with pytest.raises(DatasetError, match=r"as --scale says, got float32 values from 0\.5 to 1\.5, first in row 77"):
        check_range(opened(tmp_path / "x.npy", table, (0, 1)), True)


def test_tensors_are_looked_through_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 6)
    images = torch.zeros(10, 3)
    check_range(images, True)
    images[8, 1], images[1, 1] = 1.5, -0.5
    with pytest.raises(DatasetError, match=r"in \[0, 1\] .*, got values from -0.5 to 1.5, first in row 1 "):
        check_range(images, True)


@pytest.mark.parametrize("at_once", [2**22, 20])
def test_mean_and_scale_are_those_of_numpy_however_the_data_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", at_once)
    table = np.random.default_rng(0).normal([1e4, 0, -3], [1, 1e-3, 50], (101, 3)).astype(np.float32)
    images = opened(tmp_path / "x.npy", table)
    kept = images[:].numpy().astype(np.float64)
    loc, scale = standardisation_of(images, per_feature=True)
    np.testing.assert_allclose(loc, kept.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale, kept.std(0, ddof=1), rtol=1e-9)
    loc, scale = standardisation_of(images)
    assert loc == pytest.approx(kept.mean(), rel=1e-12)
    assert scale == pytest.approx(kept.std(ddof=1), rel=1e-12)


def test_a_constant_feature_has_scale_1() -> None:
    table = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])
    loc, scale = standardisation_of(table, per_feature=True)
    assert isinstance(scale, tuple)
    assert isinstance(loc, tuple)
    assert scale == (1.0, 1.0)
    assert loc == pytest.approx((0.1, 2.0))
    assert list(standardisation_of(torch.full((5, 2), 0.3))) == [pytest.approx(0.3), 1.0]
    assert standardisation_of(torch.ones(1, 2), per_feature=True) == ((1.0, 1.0), (1.0, 1.0))


def test_each_feature_is_standardised_and_comes_out_in_its_own_units() -> None:
    loc, scale = (100.0, -5.0, 0.0), (20.0, 0.01, 1.0)
    own, one = (
        ModelConfig((3,), 2, 4, likelihood="normal", data_loc=loc, data_scale=scale),
        ModelConfig((3,), 2, 4, likelihood="normal"),
    )
    torch.manual_seed(0)
    vae, plain = VAE(own), VAE(one)
    assert vae.state_dict().keys() == plain.state_dict().keys()  # what standardises is no weight
    plain.load_state_dict(vae.state_dict())
    x, z = torch.randn(7, 3), torch.randn(7, 2)
    raw = torch.tensor(loc) + torch.tensor(scale) * x
    for found, expected in zip(vae.encoder(raw), plain.encoder(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (found_loc, found_scale), (plain_loc, plain_scale) = vae.decoder.parameters_at(z), plain.decoder.parameters_at(z)
    torch.testing.assert_close(found_loc, torch.tensor(loc) + torch.tensor(scale) * plain_loc)
    torch.testing.assert_close(found_scale, torch.tensor(scale) * plain_scale)


@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        ((0.0, 1.0), 1.0, "data_loc must be one number or one for each of 3 values, got 2"),
        (0.0, (1.0,) * 4, "data_scale must be one number or one for each of 3 values, got 4"),
        (0.0, (1.0, 0.0, 1.0), "data_scale positive, got 1.0 and 0.0"),
        ((0.0, float("nan"), 0.0), 1.0, "data_loc must be finite"),
    ],
)
def test_constants_that_do_not_fit_are_refused(loc: object, scale: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig((3,), likelihood="normal", data_loc=loc, data_scale=scale)  # type: ignore[arg-type]  # ends of any kind, which is what is tested


@pytest.mark.parametrize(("loc", "scale"), [(0.25, 2.0), ((1.0, 2.5), (3.0, 4.0))])
def test_configurations_come_back_from_json(loc: object, scale: object) -> None:
    model = ModelConfig((2,), likelihood="normal", data_loc=loc, data_scale=scale)  # type: ignore[arg-type]  # likewise
    info = DatasetInfo("x", 9, 1, preprocessing=Preprocessing((-1, 1), channels_last=True), class_names=("a", "b"))
    config = run_config(model, TrainingConfig(), info)
    content = msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(config)))
    assert msgspec.convert(content, RunConfig) == config
    del content["dataset"]["preprocessing"], content["dataset"]["class_names"], content["model"]["data_loc"]
    older = msgspec.convert(content, RunConfig)
    assert older.dataset.preprocessing == Preprocessing()
    assert older.model.data_loc == 0.0


def test_every_likelihood_says_whether_it_needs_a_range() -> None:
    assert {name for name, kind in LIKELIHOODS.items() if not kind.unit_interval} == {"normal"}
