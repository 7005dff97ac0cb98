"""The latents, held against the equations, and against Pyro where it has its own way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor, nn

from edgevae.train import LATENTS, VAE, ConfigError, Dataset, LabelError, ModelConfig, elbo_terms, objective_of
from edgevae.train.elbo import draw_prior

CHOICES: dict[str, dict[str, Any]] = {
    "normal": {},
    "hierarchical": {"latent": "hierarchical", "upper_dims": (4, 2)},
    "mixture": {"latent": "mixture", "components": 3},
}


@pytest.fixture(autouse=True)
def _own_globals() -> Iterator[None]:
    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def model_of(**choices: Any) -> VAE:
    """An untrained model, its weights spread so that every part shows."""
    vae = VAE(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=16, **choices)).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vae.requires_grad_(False)


def loss(elbo: Any, model: Callable[..., Tensor], vae: VAE, *arguments: Tensor) -> float:
    return float(elbo.loss(model, vae.guide, *arguments))


def normal_log_prob(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


@pytest.mark.parametrize("latent", list(CHOICES))
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_terms_are_those_of_the_objective_of_the_same_noise(
    digits: Dataset, latent: str, num_particles: int
) -> None:
    vae, x = model_of(**CHOICES[latent]), digits.test[:20]
    model, elbo = objective_of(vae, num_particles)
    torch.manual_seed(3)
    found = loss(elbo, model, vae, x)
    torch.manual_seed(3)
    total = 0.0
    for _ in range(num_particles):
        terms = elbo_terms(vae, x, [torch.randn(20, size) for size in vae.config.z_dims])
        total += float(terms.elbo.sum())
    assert total / num_particles == pytest.approx(-found, rel=1e-5)


def test_a_hierarchys_densities_are_those_of_the_equations(digits: Dataset) -> None:
    vae, x = model_of(latent="hierarchical", upper_dims=(4,)), digits.test[:20]
    eps = [torch.randn(20, 5), torch.randn(20, 4)]
    z_loc, z_scale = vae.encoder(x)
    z_1 = z_loc + z_scale * eps[0]
    upward, downward = vae.latent.get_submodule("upward.0"), vae.latent.get_submodule("downward.0")
    z_2 = upward(z_1)[0] + upward(z_1)[1] * eps[1]
    log_pz = normal_log_prob(z_2, torch.zeros(4), torch.ones(4)) + normal_log_prob(z_1, *downward(z_2))
    log_qz_x = normal_log_prob(z_1, z_loc, z_scale) + normal_log_prob(z_2, *upward(z_1))
    terms = elbo_terms(vae, x, eps)
    torch.testing.assert_close(terms.log_pz, log_pz)
    torch.testing.assert_close(terms.log_qz_x, log_qz_x)


class Copy(nn.Module):
    """A level that is the one beside it, and a little noise."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, torch.full_like(z, 0.3)


def test_the_closed_form_of_the_kl_is_wrong_for_a_hierarchy_and_is_not_the_objective(digits: Dataset) -> None:
    vae, x = model_of(latent="hierarchical", upper_dims=(5,)), digits.test[:20]
    vae.latent.upward, vae.latent.downward = nn.ModuleList([Copy()]), nn.ModuleList([Copy()])
    model, elbo = objective_of(vae)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro only warns
        right, other = (
            sum(loss(each, model, vae, x) for _ in range(200)) / 200 for each in (elbo, TraceMeanField_ELBO())
        )
    # With two copies, log q(z_2|z_1) and log p(z_1|z_2) are the same number, and what is left is of one level each.
    z_loc, z_scale = vae.encoder(x)
    z_1 = z_loc + z_scale * torch.randn(200, 20, 5)
    z_2 = z_1 + 0.3 * torch.randn(200, 20, 5)
    x_flat, loc_img = x.flatten(1), vae.decoder(z_1.flatten(0, 1)).unflatten(0, (200, 20))
    log_px_z = (x_flat * loc_img.log() + (1 - x_flat) * torch.log1p(-loc_img)).sum(-1)
    kl = normal_log_prob(z_1, z_loc, z_scale) - normal_log_prob(z_2, torch.zeros(5), torch.ones(5))
    expected = float((kl - log_px_z).mean(0).sum())
    assert right == pytest.approx(expected, rel=0.01)
    assert other > 1.2 * expected


def test_the_objective_of_a_mixture_is_the_exact_sum_over_its_components(digits: Dataset) -> None:
    vae, x = model_of(latent="mixture", components=3), digits.test[:20]
    model, elbo = objective_of(vae)
    assert type(elbo) is TraceEnum_ELBO
    torch.manual_seed(3)
    found = loss(elbo, model, vae, x)
    torch.manual_seed(3)
    guide = poutine.trace(vae.guide).get_trace(x)
    guide.compute_log_prob()
    joint = []
    for component in range(3):
        given = poutine.condition(vae.model, data={"component": torch.full((20,), component)})
        trace = poutine.trace(poutine.replay(given, guide)).get_trace(x)
        trace.compute_log_prob()
        joint.append(torch.stack([trace.nodes[name]["log_prob"] for name in ("component", "latent", "obs")]).sum(0))
    expected = torch.logsumexp(torch.stack(joint), 0) - guide.nodes["latent"]["log_prob"]
    assert found == pytest.approx(-float(expected.sum()), rel=1e-5)

    with warnings.catch_warnings():  # neither enumerated nor in the guide: Pyro warns, and gives another number
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        wrong = loss(Trace_ELBO(), vae.model, vae, x)
    assert wrong != pytest.approx(found, rel=1e-3)


def component_probs_of(vae: VAE, z_loc: Tensor, z_scale: Tensor) -> Tensor:
    """q(c|x), which the guide of a mixture says in evaluation mode."""
    with pyro.plate("data", len(z_loc)):
        trace = poutine.trace(vae.latent.sample_posterior).get_trace(z_loc, z_scale)
    probs: Any = trace.nodes["component_probs"]["value"]
    return torch.as_tensor(probs)


def test_component_probs_are_pyros_marginals_where_the_posterior_is_a_point(digits: Dataset) -> None:
    vae, x = model_of(latent="mixture", components=3), digits.test[:20]
    z, _ = vae.encoder(x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.Delta(z).to_event(1))

    marginals = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(config_enumerate(vae.model), guide, x)
    found = component_probs_of(vae, z, torch.full_like(z, 1e-30))
    torch.testing.assert_close(found, marginals["component"].probs)


def test_component_probs_weigh_the_whole_posterior() -> None:
    vae = model_of(latent="mixture", components=3)
    z_loc, z_scale = torch.randn(4, 5), torch.rand(4, 5) + 0.5
    draws = z_loc + z_scale * torch.randn(200_000, 1, 5)
    loc, scale = vae.latent.get_parameter("loc"), vae.latent.get_parameter("log_scale").exp()
    expected = torch.stack([normal_log_prob(draws, loc[c], scale[c]).mean(0) for c in range(3)], dim=1)
    probs = torch.softmax(expected + vae.latent.component_probs.log(), dim=1)
    torch.testing.assert_close(component_probs_of(vae, z_loc, z_scale), probs, atol=5e-3, rtol=0)


def test_a_hierarchys_prior_is_drawn_from_the_top_as_pyro_does() -> None:
    vae = model_of(latent="hierarchical", upper_dims=(4, 2))
    torch.manual_seed(5)
    with pyro.plate("data", 7):
        drawn = vae.latent.sample_prior(torch.zeros(7, 1))
    torch.manual_seed(5)
    eps = [torch.randn(7, size) for size in (2, 4, 5)]
    torch.testing.assert_close(draw_prior(vae.latent, eps[::-1]), drawn)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("latent", list(CHOICES))
def test_particle_and_enumeration_axes_reach_the_networks_as_one_batch(
    digits: Dataset, architecture: str, latent: str
) -> None:
    vae = model_of(architecture=architecture, num_classes=10, **CHOICES[latent])
    x, y = digits.test[:6], torch.arange(6)
    z = torch.randn(3, 6, 5)
    with pyro.plate("particles", 3, dim=-2):
        loc_img = poutine.condition(vae.model, data={"latent": z})(x, y)
    torch.testing.assert_close(loc_img, torch.stack([vae.decoder(particle, y) for particle in z]))
    trace = poutine.trace(poutine.enum(config_enumerate(vae.model), first_available_dim=-2)).get_trace(x, y)
    assert trace.nodes["_RETURN"]["value"].shape[-2:] == (6, 64)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_both_networks_of_a_conditional_model_see_the_labels(digits: Dataset, architecture: str) -> None:
    vae, x = model_of(architecture=architecture, num_classes=10), digits.test[:6]
    z = torch.randn(6, 5)
    three, four = torch.full((6,), 3), torch.full((6,), 4)
    assert (vae.encoder(x, three)[0] - vae.encoder(x, four)[0]).abs().min() > 0
    assert (vae.decoder(z, three) - vae.decoder(z, four)).abs().amax(1).min() > 0
    mixed = torch.tensor([3, 3, 3, 4, 4, 4])
    torch.testing.assert_close(vae.decoder(z, mixed), torch.cat([vae.decoder(z, three)[:3], vae.decoder(z, four)[3:]]))


def test_missing_and_unwanted_labels_are_refused(digits: Dataset) -> None:
    x, y = digits.test[:6], torch.arange(6)
    with pytest.raises(LabelError, match=r"made for labels y, shape \(batch,\), of 10 classes, got none"):
        model_of(num_classes=10).guide(x)
    with pytest.raises(LabelError, match="made for no labels, got y"):
        model_of().decoder(torch.zeros(6, 5), y)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"latent": "hierarchical"},
            "a hierarchical latent has two or more sizes .* got latent hierarchical with z_dims 5",
        ),
        ({"upper_dims": (2,)}, "got latent normal with z_dims 5,2"),
        ({"latent": "hierarchical", "upper_dims": (0,)}, "got latent hierarchical with z_dims 5,0"),
        ({"latent": "mixture", "components": 1}, "components must be at least 2, got 1"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"latent": "flow"}, f"latent must be one of {', '.join(LATENTS)}, got 'flow'"),
    ],
)
def test_invalid_latents_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VAE(ModelConfig((1, 8, 8), z_dim=5, **choices))
