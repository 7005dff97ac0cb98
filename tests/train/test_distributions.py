"""The normal densities of the fit, held against PyTorch's."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from edgevae.train.distributions import Gaussian, diagonal_normal, standard_normal

Shapes = tuple[tuple[int, ...], ...]


def derivatives(log_prob: Tensor, given: tuple[Tensor, ...]) -> list[Tensor]:
    """The log-probability, and the first and second derivatives of it, its elements weighted differently."""
    weights = torch.linspace(0.5, 2, log_prob.numel(), dtype=log_prob.dtype).reshape(log_prob.shape)
    first = torch.autograd.grad((weights * log_prob).sum(), given, create_graph=True)
    second = torch.autograd.grad(torch.stack([each.square().sum() for each in first]).sum(), given)
    return [log_prob, *first, *second]


@pytest.mark.parametrize("shapes", [((4, 3),) * 3, ((2, 4, 3), (3,), (4, 1)), ((3,), (2, 4, 3), ())], ids=str)
def test_a_gaussian_has_pytorchs_log_probability_and_derivatives(shapes: Shapes) -> None:
    generator = torch.Generator().manual_seed(0)
    value, loc, raw = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    value, loc, scale = (each.requires_grad_() for each in (value, loc, raw.exp()))
    found, expected = (
        derivatives(normal(loc, scale, validate_args=True).log_prob(value), (value, loc, scale))
        for normal in (Gaussian, dist.Normal)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_gaussian_gives_the_gradient_of_one_parameter_alone() -> None:
    loc = torch.zeros(3, requires_grad=True)
    Gaussian(loc, torch.ones(3)).log_prob(torch.ones(3)).sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones(3))


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (3,)])
def test_a_standard_normal_has_pytorchs_log_probability_and_derivatives(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    pytorchs = torch.distributions.Normal(torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64))
    found = derivatives(standard_normal((4, 3), value).log_prob(value), (value,))
    expected = derivatives(pytorchs.log_prob(value).sum(-1), (value,))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "normal",
    [diagonal_normal(torch.zeros(3), torch.ones(3)), standard_normal((3,), torch.zeros(3))],
    ids=["any", "N(0, I)"],
)
def test_validation_refuses_a_value_that_is_no_number(normal: TorchDistribution) -> None:
    with pyro.validation_enabled(True):
        with pytest.raises(ValueError, match="within the support"):
            normal.expand((2,)).log_prob(torch.tensor([0.0, float("nan"), 0.0]))
        assert normal.expand((2,)).log_prob(torch.zeros(3)).shape == (2,)
