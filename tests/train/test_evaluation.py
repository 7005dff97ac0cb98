"""What a model is worth, in the numbers that papers report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.nn.module import PyroModule, PyroParam
from torch.distributions.constraints import positive

from edgevae.train import (
    VAE,
    ConfigError,
    Dataset,
    DatasetError,
    ElboSummary,
    Evaluation,
    LabelError,
    ModelConfig,
    NotFinite,
    TrainingConfig,
    collapse_advice,
    elbo_of_each,
    elbo_terms,
    evaluate,
    evaluating,
    importance_weighted_bound,
    objective_of,
)
from edgevae.train.elbo import evaluate_each
from tests.train.models import LATENTS, SMALL, spread

MODEL = ModelConfig((1, 8, 8))


class Slices:
    """Images that are no tensor."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images
        self.shape, self.device = images.shape, images.device

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: slice | torch.Tensor, /) -> torch.Tensor:
        assert isinstance(index, slice)
        return self._images[index]


@pytest.mark.parametrize("choices", LATENTS)
def test_the_elbo_is_pyros_and_falls_into_its_parts(digits: Dataset, choices: dict[str, Any]) -> None:
    vae, x = spread(dataclasses.replace(SMALL, **choices)), digits.test[:30]
    found = evaluate(vae, x, num_particles=3)
    elbo = (TraceEnum_ELBO if vae.latent.enumerated else Trace_ELBO)(num_particles=3, max_plate_nesting=1)
    total_loss: Any = elbo.loss
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        loss = total_loss(objective_of(vae)[0], vae.guide, x)
    assert found.elbo_nats == pytest.approx(-loss / 30, rel=1e-5)
    assert found.elbo_nats == pytest.approx(float(elbo_of_each(vae, x, 3).mean()), rel=1e-12)
    assert found.reconstruction_nats - found.kl_nats == pytest.approx(found.elbo_nats, rel=1e-12)
    assert found.reconstruction_nats < 0 < found.kl_nats
    assert (found.num_images, found.num_particles, found.iw_bound_nats, found.iw_particles) == (30, 3, None, 0)


def test_the_kl_of_each_dimension_is_the_closed_form_and_adds_up_to_the_whole(digits: Dataset, vae: VAE) -> None:
    found = evaluate(vae, digits.test, num_particles=200)
    with torch.no_grad():
        z_loc, z_scale = (each.double() for each in vae.encoder(digits.test))
    prior = torch.distributions.Normal(torch.zeros(5).double(), torch.ones(5).double())
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(z_loc, z_scale), prior).mean(0)
    assert found.kl_per_dim_nats == pytest.approx(kl.tolist(), rel=1e-6)
    assert sum(found.kl_per_dim_nats) == pytest.approx(found.kl_nats, rel=0.01)


def test_a_hierarchys_levels_add_up_to_the_whole_kl(digits: Dataset) -> None:
    vae, x = spread(dataclasses.replace(SMALL, latent="hierarchical", upper_dims=(3,))), digits.test[:60]
    each = evaluate_each(vae, x)
    with torch.random.fork_rng([]), evaluating(vae):
        torch.manual_seed(0)
        terms = elbo_terms(vae, x, [torch.randn(60, size) for size in (5, 3)])
        above = torch.distributions.Normal(terms.z_loc[1], terms.z_scale[1]).log_prob(terms.z[1])
        upper = (above - torch.distributions.Normal(0, 1).log_prob(terms.z[1])).sum(1).mean()
    assert each.kl_per_dim.shape == (5,)
    assert float(each.kl_per_dim.sum()) + float(upper) == pytest.approx(float(each.kl.mean()), rel=1e-5)


def test_a_mixtures_dimensions_are_compared_with_their_marginals(digits: Dataset) -> None:
    vae = spread(dataclasses.replace(SMALL, latent="mixture", components=4))
    x = digits.test[:1].expand(5000, -1, -1, -1)
    found = evaluate(vae, x, num_particles=2).kl_per_dim_nats
    latent: Any = vae.latent
    with torch.no_grad():
        z_loc, z_scale = vae.encoder(x[:1])
        grid = torch.linspace(-60, 60, 20_001, dtype=torch.float64)[:, None]
        q = torch.distributions.Normal(z_loc.double(), z_scale.double()).log_prob(grid)
        given_c = torch.distributions.Normal(latent.loc, latent.log_scale.exp()).log_prob(grid[:, None])
        p = torch.logsumexp(torch.log(latent.component_probs)[:, None] + given_c, dim=1)
        expected = (q.exp() * (q - p)).sum(0) * float(grid[1, 0] - grid[0, 0])
    assert found == pytest.approx(expected.tolist(), rel=0.05)


def test_units_are_active_where_their_mean_varies(digits: Dataset) -> None:
    vae = spread(SMALL)
    with torch.no_grad():
        vae.encoder.fc21.weight[1:3] = 0
        variance = vae.encoder(digits.test)[0].double().var(0, correction=0)
    found = evaluate_each(vae, digits.test, num_particles=2)
    torch.testing.assert_close(found.z_loc_variance, variance, rtol=1e-5, atol=1e-9)
    assert found.active_units == int((variance > 0.01).sum()) == 3
    assert evaluate(vae, digits.test[:1]).active_units == 0


def test_images_may_be_anything_that_gives_slices(digits: Dataset, vae: VAE) -> None:
    found = evaluate(vae, Slices(digits.test), num_particles=2, iw_particles=5)
    assert found == evaluate(vae, digits.test, num_particles=2, iw_particles=5)


class Gain(PyroModule):
    """A layer of one's own whose parameter is Pyro's: it is registered wherever it runs."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = PyroParam(torch.tensor(gain), constraint=positive)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain: Any = self.gain  # as it is read, a tensor
        return x * gain


@pytest.mark.parametrize("evaluated", [elbo_of_each, importance_weighted_bound])
def test_evaluation_mixes_no_parameters_that_have_one_name_in_pyros_store(
    digits: Dataset, evaluated: Callable[..., torch.Tensor]
) -> None:
    x = digits.test[:20]
    models = [spread(SMALL) for _ in range(2)]
    for vae, gain in zip(models, (1.5, 0.5), strict=True):
        vae.encoder.softplus = torch.nn.Sequential(torch.nn.Softplus(), Gain(gain))
    found = [evaluated(vae, x, num_particles=3) for vae in models]
    assert len(pyro.get_param_store()) == 0
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close([evaluated(vae, x, num_particles=3) for vae in reversed(models)], found[::-1])


def test_evaluation_changes_nothing(digits: Dataset) -> None:
    vae = spread(SMALL).train()
    weights = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    first = evaluate(vae, digits.test, iw_particles=4)
    assert torch.equal(torch.get_rng_state(), generator)
    assert vae.training
    assert len(pyro.get_param_store()) == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in vae.state_dict().items())
    torch.manual_seed(4)
    assert evaluate(vae, digits.test, iw_particles=4) == first


def test_evaluation_refuses_data_that_do_not_fit(digits: Dataset, vae: VAE) -> None:
    with pytest.raises(DatasetError, match="at least one image to evaluate on, got none"):
        evaluate(vae, digits.test[:0])
    for call in (evaluate, importance_weighted_bound):
        with pytest.raises(ConfigError, match="num_particles must be at least 1, got 0"):
            call(vae, digits.test, None, 0)
        with pytest.raises(LabelError, match="made for no labels"):
            call(vae, digits.test[:2], torch.zeros(2, dtype=torch.int64), 1)


def test_an_evaluation_with_the_bound_says_its_particles(digits: Dataset, vae: VAE) -> None:
    found = evaluate(vae, digits.test[:50], num_particles=2, iw_particles=20)
    expected = importance_weighted_bound(vae, digits.test[:50], None, 20).mean()
    assert found.iw_bound_nats == pytest.approx(float(expected), rel=1e-12)
    assert found.iw_particles == 20
    assert found == Evaluation(**dataclasses.asdict(found))


def evaluation_of(active_units: int, units: int, **choices: Any) -> Evaluation:
    numbers = {"elbo_nats": -100.0, "reconstruction_nats": -90.0, "kl_nats": 10.0, "num_images": 100}
    kl = (1.0,) * active_units + (0.0,) * (units - active_units)
    return Evaluation(**(numbers | {"num_particles": 10} | choices), kl_per_dim_nats=kl, active_units=active_units)


def test_the_mean_by_which_epochs_are_compared_is_the_plain_one_without_outliers() -> None:
    elbos = torch.linspace(-120, -80, 101, dtype=torch.float64)
    found = ElboSummary.of(elbos, torch.zeros(101, 1))
    assert found.robust_nats == found.mean_nats == pytest.approx(-100)
    assert found.median_nats == -100
    assert found.not_finite is None


@pytest.mark.parametrize("value", [-1e4, -1e30, -torch.inf, torch.inf, torch.nan])
def test_outliers_of_any_size_change_that_mean_alike_and_by_little(value: float) -> None:
    elbos = torch.linspace(-120, -80, 101, dtype=torch.float64)
    elbos[[4, 9]] = value
    found = ElboSummary.of(elbos, torch.zeros(101, 1))
    fence = -111.2 - 3 * (-90.8 + 111.2)  # of the quartiles, beside which lie both outliers
    assert found.robust_nats == pytest.approx(-100 + (2 * fence + 118.4 + 116.4) / 101, abs=0.2)
    assert abs(found.median_nats + 100) <= 0.8
    expected = None if abs(value) < torch.inf else NotFinite(2, (4, 9))
    assert found.not_finite == expected
    if expected is not None:
        assert found.mean_nats == pytest.approx(float(elbos[elbos.isfinite()].mean()))


def test_an_image_that_overflows_is_left_out_of_the_means_and_named() -> None:
    config = dataclasses.replace(SMALL, likelihood="normal", latent="normal")
    x = torch.randn(30, 1, 8, 8)
    x[[11, 20]] *= 1e30
    model = spread(config)
    found = evaluate(model, x, num_particles=2, iw_particles=3)
    assert found.not_finite == NotFinite(2, (11, 20))
    assert found.not_finite.sentence("test") == (
        "the ELBO of 2 of the test set is NaN or infinite, and left out of the means, because float32 overflows so far "
        "from the training data: rows 11, 20, counted from 0"
    )
    assert found.lowest_rows[:2] == (11, 20)
    numbers = [found.elbo_nats, found.reconstruction_nats, found.kl_nats, found.iw_bound_nats, *found.kl_per_dim_nats]
    assert all(number is not None and math.isfinite(number) for number in numbers)
    assert found.reconstruction_nats - found.kl_nats == pytest.approx(found.elbo_nats)


def test_a_collapsed_posterior_is_named_with_what_to_try() -> None:
    training = TrainingConfig(epochs=40)
    assert collapse_advice(evaluation_of(2, 10), training, MODEL) == (
        "2 of 10 latent units are active: the posterior has collapsed onto the prior for the others; try more epochs, "
        "a smaller --batch-size, --beta-warmup 20, --free-bits 0.1 (normal latent only) or a smaller --z-dims if the "
        "data need no more"
    )
    assert (collapse_advice(evaluation_of(0, 10), training, MODEL) or "").startswith(
        "0 of 10 latent units are active: the posterior has collapsed onto the prior; try more epochs, "
    )
    uninformative = collapse_advice(evaluation_of(5, 10, kl_nats=0.2), training, MODEL) or ""
    assert uninformative.startswith("5 of 10 latent units are active, and the KL is only 0.20 nats: the posterior has")


@pytest.mark.parametrize(("active", "units"), [(1, 2), (3, 10), (4, 16), (8, 50), (11, 50), (50, 50)])
def test_unneeded_units_are_not_reported_as_a_collapse(active: int, units: int) -> None:
    assert collapse_advice(evaluation_of(active, units), TrainingConfig(), MODEL) is None


def test_a_single_image_cannot_tell_a_collapse(digits: Dataset, vae: VAE) -> None:
    found = evaluate(vae, digits.test[:1])
    assert found.active_units == 0
    assert collapse_advice(found, TrainingConfig(), MODEL) is None


@pytest.mark.parametrize(
    ("choices", "left_out"),
    [
        ({"beta_warmup": 5}, "--beta-warmup"),
        ({"free_bits": 0.5}, "--free-bits"),
        ({"jit": True}, "--beta-warmup"),
        ({"jit": True}, "--free-bits"),
    ],
)
def test_advice_leaves_out_what_the_training_did_or_cannot_do(choices: dict[str, Any], left_out: str) -> None:
    collapsed = evaluation_of(0, 10)
    assert left_out in (collapse_advice(collapsed, TrainingConfig(), MODEL) or "")
    assert left_out not in (collapse_advice(collapsed, TrainingConfig(**choices), MODEL) or left_out)


def test_a_large_beta_is_advised_against() -> None:
    collapsed = evaluation_of(0, 10)
    assert "--beta 1" in (collapse_advice(collapsed, TrainingConfig(beta=4.0), MODEL) or "")
    assert "--beta 1" not in (collapse_advice(collapsed, TrainingConfig(), MODEL) or "")
