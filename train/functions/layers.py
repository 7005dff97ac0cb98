"""Layers of networks that PyTorch's exporter writes for some shapes only, or that lose accuracy in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def attention(  # noqa: PLR0917 - aten's arguments
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - a traced program has none
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query keyᵀ scale + mask) value (Vaswani et al., "Attention is all you need", 2017, equation 1).

    The exporter writes it for four axes only. A query with all keys masked gives zeros, as in PyTorch.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores.softmax(-1) @ value
    scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    unmasked = (scores > -math.inf).any(-1, keepdim=True)
    return torch.where(unmasked, scores, 0).softmax(-1) * unmasked @ value


def _standardised(x: Tensor, eps: float) -> Tensor:
    """Return (x - mean) / √(variance + eps) over the last axis.

    In float32 the mean of equal values differs from them by rounding, which a small eps magnifies. Taking the mean of
    the differences away again leaves 0. ONNX Runtime's own norms compute the variance as a difference of squares, which
    loses more. A sum, unlike ONNX's mean, gives the same bits for a row in every batch (`AlignedSum`).
    """
    share = 1 / x.shape[-1]
    x = x - x.sum(-1, keepdim=True) * share
    x = x - x.sum(-1, keepdim=True) * share
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) * share + eps)


def layer_norm(  # noqa: PLR0917 - aten's arguments
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001 - a graph has no cuDNN
) -> Tensor:
    """Standardise the last axes (Ba et al., "Layer normalization", 2016)."""
    axes = len(normalized_shape)
    x = _standardised(x.flatten(-axes), eps).unflatten(-1, tuple(normalized_shape))
    return _affine(x, weight, bias, 0)


def group_norm(  # noqa: PLR0917 - aten's arguments
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001 - a graph has no cuDNN
) -> Tensor:
    """Standardise groups of channels (Wu & He, "Group normalization", 2018)."""
    groups = x.unflatten(1, (num_groups, -1)).flatten(2)
    x = _standardised(groups, eps).unflatten(2, (-1, *x.shape[2:])).flatten(1, 2)
    return _affine(x, weight, bias, x.ndim - 2)


def instance_norm(  # noqa: PLR0917 - aten's arguments
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Standardise each channel (Ulyanov et al., "Instance normalization", 2016)."""
    if use_input_stats:
        return group_norm(x, x.shape[1], weight, bias, eps)
    return torch.batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)


def flip(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Reverse axes. The exporter writes a slice of negative step, of which a stranger's graph may hold none."""
    for dim in dims:
        x = x.index_select(dim, x.shape[dim] - 1 - torch.arange(x.shape[dim], device=x.device))
    return x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int) -> Tensor:
    """Multiply and add; weight and bias have `axes` fewer axes on the right."""
    if weight is not None:
        x = x * weight[(..., *[None] * axes)]
    return x if bias is None else x + bias[(..., *[None] * axes)]
