"""Real tables with heavy tails, from training to a verified bundle: two of ADBench (Han et al., 2022)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgevae import load
from edgevae.export import export_bundle
from edgevae.export.source import source_of_run
from edgevae.train import DataConfig, TrainingConfig, fit, load_data, model_for

DATA = Path(os.environ.get("EDGEVAE_DATA", "none"), "adbench")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="EDGEVAE_DATA names no folder with adbench/")
@pytest.mark.parametrize("name", ["27_PageBlocks", "32_shuttle"])
def test_a_table_with_outliers_is_trained_exported_and_verified(name: str, tmp_path: Path) -> None:
    with np.load(DATA / f"{name}.npz") as table:
        np.save(tmp_path / "x.npy", table["x"])
    dataset = load_data(DataConfig(data=tmp_path / "x.npy", validation_fraction=0.1), labels=False)
    training = TrainingConfig(epochs=10, clip_norm=100, patience=5)
    model = model_for(dataset, training, likelihood="normal", z_dim=8)
    run = fit(dataset, tmp_path / "run", model, training, report=False)
    assert run.evaluations["test"].elbo_median_nats is not None
    assert run.evaluations["test"].elbo_median_nats > -60
    (report,) = export_bundle(source_of_run(tmp_path / "run", name), tmp_path / "bundle")
    assert report.passed
    bundle = load(tmp_path / "bundle", provider="cpu")
    assert run.outliers is not None
    assert bundle.is_anomaly(run.outliers.numpy(), rate=0.1).all()
