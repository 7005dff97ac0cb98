"""A whole training as a library call."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgevae.train import (
    CollapseWarning,
    ConfigError,
    DataConfig,
    Dataset,
    DatasetError,
    DivergedError,
    EpochMetrics,
    Images,
    LabelError,
    ModelConfig,
    NotFinite,
    Observer,
    Rows,
    Run,
    RunError,
    TrainingConfig,
    binarize_once,
    check_training,
    elbo_of_each,
    evaluate,
    fit,
    load_data,
    load_dataset,
    load_run,
    model_for,
)
from edgevae.train.runs import read_runs


def fit_small(
    folder: Path, dataset: Dataset, training: TrainingConfig, architecture: str = "mlp", **choices: object
) -> Run:
    model = model_for(dataset, training, architecture=architecture, z_dim=3, hidden_dim=8)
    return fit(dataset, folder, model, training, **{"report": False, **choices})  # type: ignore[arg-type]  # by their names


def after(steps: int) -> Callable[[], bool]:
    """Stop after a number of steps."""
    calls = itertools.count(1)
    return lambda: next(calls) >= steps


def with_validation(digits: Dataset) -> Dataset:
    return Dataset("digits", digits.train[:900], digits.test, validation=digits.train[900:1100])


def assert_same_weights(first: Run, second: Run) -> None:
    expected = second.vae.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.vae.state_dict().items())


def test_binarized_training_reports_and_keeps_binarized_test_images(tmp_path: Path, digits: Dataset) -> None:
    run = fit_small(tmp_path / "run", digits, TrainingConfig(epochs=1, binarize="stochastic"))
    assert set(run.samples.unique().tolist()) == {0.0, 1.0}
    expected = elbo_of_each(run.vae, binarize_once(digits.test, "stochastic"), 10).mean()
    assert run.test_elbo[0] == pytest.approx(float(expected), rel=1e-6)
    assert run.test_elbo[1] == 10
    grey = elbo_of_each(run.vae, digits.test, 10).mean()
    assert run.test_elbo[0] != pytest.approx(float(grey), rel=1e-4)


@pytest.mark.usefixtures("coarse_figures")
@pytest.mark.parametrize("shape", [(3, 8, 8), (64,), (8, 8), (2, 8, 8)])
def test_data_of_any_shape_is_fitted_and_drawn(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = torch.rand((50, *shape), generator=torch.Generator().manual_seed(0))
    fit_small(tmp_path / "run", Dataset("rows", images, images), TrainingConfig(epochs=1), report=True)
    assert all((tmp_path / "run" / file).exists() for file in ("report.html", "loss.png", "reconstructions.png"))


def test_colours_stay_colours(tmp_path: Path) -> None:
    red = torch.zeros(50, 3, 8, 8)
    red[:, 0] = 1
    fit_small(tmp_path / "run", Dataset("red", red, red), TrainingConfig(epochs=1), "conv", report=True)
    with Image.open(tmp_path / "run" / "reconstructions.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1_000_000) or []}
    assert (255, 0, 0) in colours


@pytest.mark.parametrize("stops", [[1], [6], [4, 9], [2, 6, 5]])
@pytest.mark.parametrize("checkpoint_every", [0, 4])
def test_a_resumed_run_ends_with_the_same_files_as_one_that_was_never_stopped(
    tmp_path: Path, digits: Dataset, stops: list[int], checkpoint_every: int
) -> None:
    training = TrainingConfig(epochs=3, batch_size=300, schedule="cosine", binarize="stochastic")
    whole = fit_small(tmp_path / "whole", digits, training)
    for steps in stops:
        stopped = fit_small(
            tmp_path / "run",
            digits,
            training,
            resume=True,
            should_stop=after(steps),
            checkpoint_every=checkpoint_every,
        )
    assert not stopped.evaluations
    run = fit_small(tmp_path / "run", digits, training, resume=True)
    assert_same_weights(run, whole)
    assert [(line.epoch, line.train_loss_nats, line.test_elbo_nats, line.step) for line in run.metrics] == [
        (line.epoch, line.train_loss_nats, line.test_elbo_nats, line.step) for line in whole.metrics
    ]
    for file in ("checkpoint.safetensors", "evaluation.json", "test_elbos.safetensors", "config.json"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_finished_run_can_be_given_more_epochs(tmp_path: Path, digits: Dataset) -> None:
    whole = fit_small(tmp_path / "whole", digits, TrainingConfig(epochs=3))
    fit_small(tmp_path / "run", digits, TrainingConfig(epochs=2))
    run = fit_small(tmp_path / "run", digits, TrainingConfig(epochs=3), resume=True)
    assert_same_weights(run, whole)
    assert run.config.training.epochs == 3


def test_a_run_that_was_resumed_at_its_end_stays_as_it_is(tmp_path: Path, digits: Dataset) -> None:
    first = fit_small(tmp_path / "run", digits, TrainingConfig(epochs=1))
    again = fit_small(tmp_path / "run", digits, TrainingConfig(epochs=1), resume=True)
    assert_same_weights(first, again)
    assert again.metrics == first.metrics
    assert again.evaluations == first.evaluations


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (TrainingConfig(epochs=2, seed=1), "was begun with seed 0, got 1"),
        (TrainingConfig(epochs=2, batch_size=8), "was begun with batch_size 256, got 8"),
    ],
)
def test_a_run_is_resumed_with_its_own_options_only(
    tmp_path: Path, digits: Dataset, training: TrainingConfig, message: str
) -> None:
    fit_small(tmp_path / "run", digits, TrainingConfig(epochs=1))
    with pytest.raises(RunError, match=message):
        fit_small(tmp_path / "run", digits, training, resume=True)
    with pytest.raises(RunError, match="already holds a run; go on with it by --resume"):
        fit_small(tmp_path / "run", digits, training)


def test_a_resumed_cosine_schedule_keeps_its_end(tmp_path: Path, digits: Dataset) -> None:
    fit_small(tmp_path / "run", digits, TrainingConfig(epochs=1, schedule="cosine"))
    with pytest.raises(RunError, match="was begun with epochs 1, got 2"):
        fit_small(tmp_path / "run", digits, TrainingConfig(epochs=2, schedule="cosine"), resume=True)


def test_the_weights_of_a_run_with_validation_are_its_best_epochs(tmp_path: Path, digits: Dataset) -> None:
    dataset = with_validation(digits)
    training = TrainingConfig(epochs=40, batch_size=20, learning_rate=0.1, patience=2)
    run = fit_small(tmp_path / "run", dataset, training)
    elbos = [line.validation_elbo_robust_nats or 0.0 for line in run.metrics]
    best = elbos.index(max(elbos))
    assert best == len(elbos) - 3, "it ends when its patience does"
    assert len(elbos) < 40
    assert dataset.validation is not None
    expected = run.metrics[best].validation_elbo_nats
    assert evaluate(run.vae, dataset.validation).elbo_nats == pytest.approx(expected, rel=1e-6)
    assert set(run.evaluations) == {"train", "validation", "test"}


# Outliers


def table(rows: int = 300) -> torch.Tensor:
    """Rows whose four columns depend on one number."""
    hidden = torch.randn(rows, 1, generator=torch.Generator().manual_seed(3))
    return torch.cat([hidden, -hidden, hidden.square(), hidden.sin()], dim=1) * torch.tensor([1.0, 10.0, 0.1, 1000.0])


def with_outliers(numbers: dict[int, float]) -> Dataset:
    """A table whose test and validation rows are larger at some places."""
    held_out = table()[200:]
    for row, factor in numbers.items():
        held_out[row] *= factor
    return Dataset("table", table()[:200], held_out, validation=held_out.clone())


def fit_table(folder: Path, dataset: Dataset, training: TrainingConfig, **choices: Any) -> Run:
    model = model_for(dataset, training, likelihood="normal", z_dim=2, hidden_dim=8)
    return fit(dataset, folder, model, training, **{"report": False, **choices})


TO_BE_STOPPED = TrainingConfig(epochs=60, batch_size=20, learning_rate=0.1, patience=3)


@pytest.mark.usefixtures("coarse_figures")
def test_outliers_in_the_evaluation_data_do_not_end_a_training_and_are_named(tmp_path: Path) -> None:
    run = fit_table(tmp_path / "run", with_outliers({7: 1e12, 60: 1e30}), TO_BE_STOPPED, report=True)
    for line in run.metrics:
        assert line.not_finite["test"].rows[-1] == line.not_finite["validation"].rows[-1] == 60
        assert line.test_elbo_median_nats is not None
        assert line.test_elbo_median_nats > -100
    json.loads((tmp_path / "run" / "evaluation.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    for name in ("test", "validation"):
        assert run.evaluations[name].lowest_rows[:2] in {(7, 60), (60, 7)}
        assert run.evaluations[name].not_finite == run.metrics[-1].not_finite[name]
        assert all(math.isfinite(kl) for kl in run.evaluations[name].kl_per_dim_nats)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "of the test set is NaN or infinite, and left out of the means" in page
    assert "Median ELBO" in page
    assert "The lowest ELBOs of the test set are those of rows " in page


def test_the_best_epoch_is_the_same_with_an_outlier_whatever_its_size(tmp_path: Path) -> None:
    plain = fit_table(tmp_path / "plain", with_outliers({}), TO_BE_STOPPED)
    assert 5 < len(plain.metrics) < 60
    for factor in (30.0, 1e4, 1e12, 1e30):
        run = fit_table(tmp_path / f"{factor:g}", with_outliers({3: factor}), TO_BE_STOPPED)
        assert len(run.metrics) == len(plain.metrics), factor
        assert_same_weights(run, plain)


def test_the_rows_of_a_file_are_named_by_their_numbers_in_it(tmp_path: Path) -> None:
    rows = table()
    rows[:100:9] *= 1e30  # some of them are test rows in any split; others are trained on below
    kept = load_data(DataConfig(data=saved(tmp_path / "rows.npy", rows), test_fraction=0.5), labels=False)
    assert isinstance(kept.test, Rows)
    every = kept.test.numbers(torch.arange(len(kept.test))).tolist()
    expected = [number for number in every if number < 100 and number % 9 == 0]
    dataset = Dataset[Images]("rows", table()[100:], kept.test)
    model = model_for(dataset, TrainingConfig(epochs=1), likelihood="normal", z_dim=2, hidden_dim=8)
    run = fit(dataset, tmp_path / "run", model, TrainingConfig(epochs=1), report=False)
    assert 0 < len(expected) <= 10
    assert run.metrics[0].not_finite["test"] == NotFinite(len(expected), tuple(expected))


def saved(path: Path, rows: torch.Tensor) -> Path:
    np.save(path, rows.numpy())
    return path


def test_a_model_that_overflows_for_a_quarter_of_the_rows_has_diverged(tmp_path: Path) -> None:
    dataset = with_outliers(dict.fromkeys(range(26), 1e30))
    with pytest.raises(
        DivergedError, match=r"the ELBO of 26 of 100 test rows, at least a quarter, was NaN or infinite"
    ):
        fit_table(tmp_path / "run", dataset, TrainingConfig(epochs=1))


def test_the_run_keeps_the_test_rows_with_the_lowest_elbo(tmp_path: Path) -> None:
    dataset = with_outliers({7: 1e12, 60: 30.0})
    run = fit_table(tmp_path / "run", dataset, TrainingConfig(epochs=2))
    assert run.outliers is not None
    assert run.test_elbos is not None
    assert torch.equal(run.outliers[:2], dataset.test[[7, 60]])
    assert torch.equal(run.outliers, dataset.test[run.test_elbos.nan_to_num(nan=-torch.inf).argsort()[:16]])


def test_a_training_stopped_in_its_last_evaluation_makes_it_when_resumed(tmp_path: Path, digits: Dataset) -> None:
    bounded: list[tuple[int, int]] = []

    class Bounds(Observer):
        def on_bound(self, done: int, total: int) -> None:
            bounded.append((done, total))

    training, folder = TrainingConfig(epochs=1, batch_size=512), tmp_path / "run"
    steps = 3
    asked = itertools.count(1)
    run = fit_small(folder, digits, training, should_stop=lambda: next(asked) > steps + 1, iw_particles=50)
    assert not run.evaluations
    run = fit_small(folder, digits, training, resume=True, iw_particles=5, observers=[Bounds()])
    assert run.evaluations["test"].iw_particles == 5
    assert bounded[-1] == (360, 360)


def test_an_interrupted_run_says_the_elbo_of_the_weights_that_it_has(tmp_path: Path, digits: Dataset) -> None:
    training = TrainingConfig(epochs=3, batch_size=256, learning_rate=0.3)
    asked = itertools.count(1)
    run = fit_small(tmp_path / "run", with_validation(digits), training, should_stop=lambda: next(asked) >= 11)
    assert not run.evaluations
    best = max(run.metrics, key=lambda line: line.validation_elbo_robust_nats or 0)
    assert best is not run.metrics[-1], "the test needs a training that gets worse"
    assert run.test_elbo == (best.test_elbo_nats, 1)
    (summary,) = read_runs(tmp_path / "run")
    assert summary.test_elbo[0] == best.test_elbo_nats
    assert summary.validation_elbo_nats == best.validation_elbo_nats


def test_the_evaluation_of_a_large_training_set_takes_its_first_images_and_says_so(
    tmp_path: Path, digits: Dataset
) -> None:
    dataset = Dataset("digits", digits.train.repeat(8, 1, 1, 1), digits.test)
    found = fit_small(tmp_path / "run", dataset, TrainingConfig(epochs=1, binarize="threshold")).evaluations
    assert {name: (each.num_images, each.num_in_set) for name, each in found.items()} == {
        "test": (360, 0),
        "train": (10_000, 8 * 1437),
    }
    assert {each.binarize for each in found.values()} == {"threshold"}


def test_a_plateau_lowers_the_learning_rate(tmp_path: Path, digits: Dataset) -> None:
    training = TrainingConfig(epochs=12, batch_size=20, learning_rate=0.1, schedule="plateau", plateau_epochs=1)
    run = fit_small(tmp_path / "run", with_validation(digits), training)
    rates = [line.learning_rate or 0.0 for line in run.metrics]
    assert rates[0] == 0.1
    assert rates[-1] < 0.1
    assert all(later in (rate, rate / 2) for rate, later in itertools.pairwise(rates))


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({}, {"patience": 5}, "patience 5 needs a validation ELBO; set validation images aside"),
        ({}, {"schedule": "plateau"}, "schedule plateau needs a validation ELBO"),
        ({"latent": "mixture"}, {"jit": True}, "jit does not go with latent mixture"),
        ({"latent": "mixture"}, {"free_bits": 0.1}, "free_bits go with latent normal"),
        ({"latent": "hierarchical", "upper_dims": (2,)}, {"free_bits": 0.1}, "free_bits go with latent normal"),
    ],
)
def test_the_check_refuses_what_training_refuses(
    tmp_path: Path, digits: Dataset, model: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    config = ModelConfig((1, 8, 8), z_dim=3, hidden_dim=8, **model)
    for function in (check_training, fit):
        with pytest.raises(ConfigError, match=message):
            function(digits, tmp_path / "run", config, TrainingConfig(**training))
    assert not (tmp_path / "run").exists()


def test_the_check_looks_at_the_data_and_at_the_run_that_is_there(tmp_path: Path, digits: Dataset) -> None:
    model, training, out = ModelConfig((1, 8, 8), z_dim=3, hidden_dim=8), TrainingConfig(epochs=1), tmp_path / "run"
    with pytest.raises(DatasetError, match=r"images must be in \[0, 1\]"):
        check_training(Dataset("grey", 255 * digits.train, digits.test), out, model, training)
    with pytest.raises(LabelError, match="made for labels y"):
        check_training(digits, out, ModelConfig((1, 8, 8), z_dim=3, hidden_dim=8, num_classes=10), training)
    check_training(digits, out, model, training)
    assert not out.exists()
    before = fit(digits, out, model, training, report=False)
    with pytest.raises(RunError, match="already holds a run"):
        check_training(digits, out, model, training)
    with pytest.raises(RunError, match="was begun with seed 0, got 1"):
        check_training(digits, out, model, TrainingConfig(epochs=2, seed=1), resume=True)
    check_training(digits, out, model, TrainingConfig(epochs=2), resume=True)
    check_training(digits, out, model, training, overwrite=True)
    assert_same_weights(load_run(out), before)


def test_a_collapsed_posterior_gives_a_warning(tmp_path: Path, digits: Dataset) -> None:
    model = ModelConfig((1, 8, 8), z_dim=10, hidden_dim=8)
    with pytest.warns(CollapseWarning, match=r"^0 of 10 latent units are active.* try ") as warned:
        fit(digits, tmp_path / "run", model, TrainingConfig(epochs=1, beta=50), report=False)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_a_posterior_that_has_not_collapsed_gives_no_warning(tmp_path: Path, digits: Dataset) -> None:
    model, training = ModelConfig((1, 8, 8), z_dim=3), TrainingConfig(epochs=10, batch_size=32, free_bits=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        run = fit(digits, tmp_path / "run", model, training, report=False)
    assert run.evaluations["test"].active_units == 3


def test_observers_are_told_the_beginning_the_steps_the_epochs_and_the_end(tmp_path: Path, digits: Dataset) -> None:
    told: list[object] = []

    class Watch(Observer):
        def on_begin(self, folder: Path, vae: object, dataset: object, metrics: object) -> None:
            told.append(("begin", folder.name, metrics))

        def on_step(self, loss: torch.Tensor) -> None:
            told.append("step")

        def on_epoch(self, metrics: EpochMetrics) -> None:
            told.append(metrics.epoch)

        def on_end(self) -> None:
            told.append("end")

    fit_small(tmp_path / "run", digits, TrainingConfig(epochs=2, batch_size=1000), observers=[Watch()])
    assert told == [("begin", "run", ()), "step", "step", 1, "step", "step", 2, "end"]


def test_labels_that_the_model_does_not_see_change_nothing(tmp_path: Path, digits: Dataset) -> None:
    labelled = load_dataset("digits", labels=True)
    seen, unseen = (
        fit_small(tmp_path / str(i), each, TrainingConfig(epochs=1)) for i, each in enumerate((labelled, digits))
    )
    assert_same_weights(seen, unseen)
    assert seen.labels is None
    conditional = model_for(labelled, TrainingConfig(epochs=1), conditional=True, z_dim=3, hidden_dim=8)
    assert fit(labelled, tmp_path / "c", conditional, TrainingConfig(epochs=1), report=False).labels is not None
    with pytest.raises(LabelError, match="needs labels, and digits was loaded without any"):
        model_for(digits, TrainingConfig(), conditional=True)


def test_the_evaluation_has_the_parts_of_the_elbo_and_the_importance_weighted_bound(
    tmp_path: Path, digits: Dataset
) -> None:
    fit_small(tmp_path / "run", digits, TrainingConfig(epochs=1), iw_particles=20)
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    test = load_run(tmp_path / "run").evaluations["test"]
    assert test.elbo_nats == pytest.approx(test.reconstruction_nats - test.kl_nats)
    assert content["test"]["iw_particles"] == test.iw_particles == 20
    assert test.iw_bound_nats is not None
    assert test.iw_bound_nats > test.elbo_nats
