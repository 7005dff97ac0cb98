"""From a traced program to an ONNX graph, by PyTorch's exporter. It knows nothing of VAEs.

The exporter's own forms of a few operators are replaced: those that it cannot write for every shape, and those that
lose accuracy in ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from .errors import TraceError
from .tracing import first_line, line_of_node

if TYPE_CHECKING:
    from onnxscript import ir

DEFAULT_OPSET = 20


def convert(
    traced: ExportedProgram, opset: int, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> ir.Model:
    """Return a traced program as an ONNX graph, as PyTorch's exporter writes it.

    Args:
        traced: The program.
        opset: ONNX opset version to ask for; the graph states which one it has.
        inputs: Names of the graph's inputs, in order; by default the exporter's.
        outputs: Names of its outputs, in order.

    Raises:
        TraceError: An operator has no ONNX form. The message names it, and the line of the user's program.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints progress
            exported = torch.onnx.export(
                traced.run_decompositions(_FORMS),
                dynamo=True,
                external_data=False,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many unrelated classes
        raise _explained(error, opset) from error
    if exported is None:
        raise TraceError(f"the network cannot be written in ONNX opset {opset}: torch.onnx.export returned nothing")
    return exported.model


def _explained(error: BaseException, opset: int) -> TraceError:
    """Say which operator failed, where it comes from and what to do."""
    node, cause = _failed_node(error), error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = None if node is None else line_of_node(node)
    operator = "an operator" if node is None else re.sub(r"\.default$", "", str(node.target))
    said = first_line(cause)
    why = "has no ONNX form" if "No ONNX function found" in said else f"cannot be written in ONNX opset {opset}: {said}"
    return TraceError(f"{line or 'the network'} uses {operator}, which {why}. Write it with other operators of PyTorch")


def _failed_node(error: BaseException) -> fx.Node | None:
    """Return the node that the exporter was translating: its errors name it, but do not hold it."""
    node = None
    each = error.__traceback__
    while each is not None:
        node = next((value for value in each.tb_frame.f_locals.values() if isinstance(value, fx.Node)), node)
        each = each.tb_next
    return node if error.__cause__ is None else _failed_node(error.__cause__) or node


def _attention(  # noqa: PLR0917 - aten's arguments
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


def _layer_norm(  # noqa: PLR0917 - aten's arguments
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001
) -> Tensor:
    """Standardise the last axes (Ba et al., "Layer normalization", 2016)."""
    axes = len(normalized_shape)
    x = _standardised(x.flatten(-axes), eps).unflatten(-1, tuple(normalized_shape))
    return _affine(x, weight, bias, 0)


def _group_norm(  # noqa: PLR0917 - aten's arguments
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001
) -> Tensor:
    """Standardise groups of channels (Wu & He, "Group normalization", 2018)."""
    groups = x.unflatten(1, (num_groups, -1)).flatten(2)
    x = _standardised(groups, eps).unflatten(2, (-1, *x.shape[2:])).flatten(1, 2)
    return _affine(x, weight, bias, x.ndim - 2)


def _instance_norm(  # noqa: PLR0917 - aten's arguments
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
        return _group_norm(x, x.shape[1], weight, bias, eps)
    return torch.batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int) -> Tensor:
    """Multiply and add; weight and bias have `axes` fewer axes on the right."""
    if weight is not None:
        x = x * weight[(..., *[None] * axes)]
    return x if bias is None else x + bias[(..., *[None] * axes)]


_FORMS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    torch.ops.aten.layer_norm.default: _layer_norm,
    torch.ops.aten.group_norm.default: _group_norm,
    torch.ops.aten.instance_norm.default: _instance_norm,
}
"""What is written in place of PyTorch's operators."""
