"""Discrete sites of a Pyro program, summed over exactly: what `TraceEnum_ELBO` computes, a number for each row.

Values of an enumerated site lie along an axis of its own, to the left of the plates' axes. A log-density that depends
on the site has that axis too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor


class Enumeration(Messenger):
    """Gives discrete sites all values of their support at once.

    Args:
        axes: The axis of each site, negative, by name.
    """

    def __init__(self, axes: Mapping[str, int]) -> None:
        super().__init__()
        self._axes = axes

    def _pyro_sample(self, msg: Any) -> None:
        axis = self._axes.get(msg["name"])
        if axis is None or msg["value"] is not None:  # the model gets the guide's values
            return
        distribution = msg["fn"]
        support = distribution.enumerate_support(expand=bool((msg["infer"] or {}).get("expand", False)))
        event_dim = len(distribution.event_shape)
        missing = -axis - (support.ndim - event_dim)
        for _ in range(missing):
            support = support.unsqueeze(1)
        msg["value"] = support
        msg["done"] = True


def eliminate(factors: Iterable[Tensor], sites: Sequence[tuple[int, frozenset[int]]], nesting: int) -> list[Tensor]:
    """Sum discrete sites out of a product of densities, one after the other (variable elimination).

    Args:
        factors: Log-densities, aligned on the right.
        sites: The axis of each site, and the axes of the plates that it is in; all negative.
        nesting: Number of the plates' axes.

    Returns:
        Log-densities without the sites' axes; their sum is the logarithm of the sum over all values.
    """
    remaining = list(factors)
    for axis, plates in sorted(sites, key=lambda site: -len(site[1])):  # those of inner plates first
        mine = [factor for factor in remaining if has_axis(factor, axis)]
        if mine:
            remaining = [factor for factor in remaining if not has_axis(factor, axis)]
            joint = functools.reduce(torch.add, (_sum_plates(factor, plates, nesting) for factor in mine))
            remaining.append(torch.logsumexp(joint, axis, keepdim=True))
    return remaining


def _sum_plates(factor: Tensor, kept: frozenset[int], nesting: int) -> Tensor:
    """Sum over the plates that a site is not in: their entries are independent given the site."""
    inner = [axis for axis in range(-min(nesting, factor.ndim), 0) if axis not in kept and factor.shape[axis] != 1]
    return factor.sum(inner, keepdim=True) if inner else factor


def expected(factor: Tensor, weights: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return the mean of a quantity over the guide's enumerated sites.

    Args:
        factor: The quantity, aligned on the right.
        weights: Axis and log-probability of each site, in the guide's order: a later one may depend on those before.
    """
    log_weight: Tensor | None = None
    axes = {axis for axis, _ in weights if has_axis(factor, axis)}
    for axis, log_prob in reversed(weights):
        if axis in axes:
            log_weight = log_prob if log_weight is None else log_weight + log_prob
            axes |= {other for other, _ in weights if has_axis(log_prob, other)}
    if log_weight is None:
        return factor
    product = torch.where(torch.isneginf(log_weight), torch.zeros_like(factor), factor * log_weight.exp())
    return product.sum(sorted(axes), keepdim=True)


def has_axis(factor: Tensor, axis: int) -> bool:
    """Return whether a tensor has more than one entry along an axis, negative, or none at all."""
    return factor.ndim >= -axis and factor.shape[axis] != 1


"""
"""
