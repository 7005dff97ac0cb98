"""`vae-run score`: how unusual observations are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from edgevae import Model, Noise, load
from edgevae.cli import main
from edgevae.train import Dataset

MODELS = Path(__file__).parents[2] / "models"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_score_counts_the_unusual_and_writes_a_row_each(digits: Dataset, tmp_path: Path) -> None:
    bundle = MODELS / "digits-mlp"
    noise = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", np.concatenate([digits.test[:5].numpy(), noise]))
    for out in ("s.csv", "s.npz", "s.json"):
        result = run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        assert result.output.startswith("3 of 8 observations lie below -")
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    assert rows[0] == ["elbo", "reconstruction", "kl", "unusual"]
    assert [row[3] for row in rows[1:]] == ["False"] * 5 + ["True"] * 3
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_allclose(written["elbo"], [float(row[0]) for row in rows[1:]])
        np.testing.assert_array_equal(written["elbo"], load(bundle).score(np.load(tmp_path / "x.npy")).elbo)
    assert json.loads((tmp_path / "s.json").read_text())["unusual"] == [False] * 5 + [True] * 3
    assert run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / "s.txt").exit_code == 2
    assert run("score", bundle, tmp_path / "x.npy", "--rate", 2).exit_code == 2


def test_score_calls_nothing_unusual_where_test_images_are_not_known(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 64), np.uint8))
    result = run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / "s.csv")
    assert result.exit_code == 0, result.output
    assert "how test images are distributed is not known here" in result.output
    assert (tmp_path / "s.csv").read_text().startswith("elbo,reconstruction,kl\n")
    refused = run("score", bundle, tmp_path / "x.npy", "--rate", 0.01)
    assert refused.exit_code == 2
    assert "holds no distribution of test images" in refused.output


def test_many_rows_are_scored_with_one_stream_of_noise(bundle: Path, model: Model, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((1500, 64), np.float32)
    np.save(tmp_path / "x.npy", x)
    assert run("score", bundle, tmp_path / "x.npy", "--seed", 5, "--out", tmp_path / "s.npz").exit_code == 0
    stream = Noise(5)
    expected = np.concatenate([model.score(part, stream).elbo for part in (x[:1024], x[1024:])])
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_array_equal(written["elbo"], expected)
