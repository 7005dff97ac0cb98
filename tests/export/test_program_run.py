"""Runs of Pyro programs of a user's own become bundles by plain `vae-export RUN`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import edgevae
from edgevae.export.cli import main as vae_export
from edgevae.train import Dataset, ProgramModel, Run, TrainingConfig, fit, program_for

FILE = Path(__file__).parent.parent / "train" / "own_programs.py"


def exported(digits: Dataset, name: str, folder: Path) -> Run:
    """Train a program and export its run to the folder `bundle`."""
    some = dataclasses.replace(digits, train_labels=torch.arange(1437) % 10, test_labels=torch.arange(360) % 10)
    training = TrainingConfig(epochs=2, batch_size=100, learning_rate=1e-2)
    config = program_for(some, training, f"{FILE}:{name}")
    run = fit(some, folder / "run", config, training, export_check=False, report=False)
    result = CliRunner().invoke(vae_export, [str(folder / "run"), "--out", str(folder / "bundle")])
    assert result.exit_code == 0, result.output
    assert "verified with test images of digits" in result.output
    return run


def pyros_elbo(run: Run, elbo: Any, *arguments: torch.Tensor) -> float:
    assert isinstance(run.model, ProgramModel)
    with run.model.parameters_in_use(), torch.no_grad():
        pyro.set_rng_seed(3)
        return -float(elbo.loss(*run.model.functions, *arguments))


@pytest.mark.parametrize("name", ["Labelled", pytest.param("plain_functions", marks=pytest.mark.slow)])
def test_a_run_of_one_latent_becomes_a_bundle_with_the_runs_weights_and_threshold(
    digits: Dataset, tmp_path: Path, name: str
) -> None:
    run = exported(digits, name, tmp_path)
    model = edgevae.load(tmp_path / "bundle")
    x, y = run.samples[:50], None if run.labels is None else run.labels[:50]
    given = (x,) if y is None else (x, y)
    elbo = model.elbo(x.numpy(), y=None if y is None else y.numpy(), seed=3)
    assert float(elbo.sum()) == pytest.approx(pyros_elbo(run, Trace_ELBO(), *given), abs=1e-2)
    dataset = model.manifest.dataset
    assert dataset is not None
    assert (dataset.name, dataset.num_train, dataset.num_test) == ("digits", 1437, 360)
    assert dataset.test_elbo_nats == run.evaluations["test"].elbo_nats
    assert run.test_elbos is not None
    assert model.threshold(0.05) == pytest.approx(np.quantile(run.test_elbos.numpy(), 0.05), abs=1e-3)
    assert model.manifest.training["epochs"] == 2
    assert "own_programs.py" not in (tmp_path / "bundle" / "manifest.json").read_text()


@pytest.mark.slow
def test_a_run_of_other_sites_becomes_a_bundle_by_its_sites(digits: Dataset, tmp_path: Path) -> None:
    run = exported(digits, "SummedClass", tmp_path)
    model = edgevae.load_program(tmp_path / "bundle")
    x = run.samples[:50]
    expected = pyros_elbo(run, TraceEnum_ELBO(max_plate_nesting=1), x)
    assert float(model.elbo(x.numpy(), seed=3).sum()) == pytest.approx(expected, abs=1e-2)
    latents = model.encode(x.numpy()).sample(seed=0)
    assert set(np.unique(latents["c"])) <= {0.0, 1.0, 2.0}
    dataset = model.manifest.dataset
    assert dataset is not None
    assert dataset.elbo_quantiles
    assert dataset.test_elbo_nats == run.evaluations["test"].elbo_nats
