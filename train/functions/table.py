"""Which of PyTorch's operators become which function of ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import exponentials, gamma, layers, masks, matrices, normal


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function take float16 and bfloat16, computed in float32, and integers, which give PyTorch's default."""

    @functools.wraps(function)
    def computed(*arguments: Any, **options: Any) -> Any:
        dtypes = [argument.dtype for argument in arguments if isinstance(argument, Tensor)]
        given = functools.reduce(torch.promote_types, dtypes)
        returned = given if given.is_floating_point else torch.get_default_dtype()
        used = torch.promote_types(returned, torch.float32)
        result = function(*(a.to(used) if isinstance(a, Tensor) else a for a in arguments), **options)
        return result.to(returned) if isinstance(result, Tensor) else result

    return computed


_aten = torch.ops.aten

_FUNCTIONS: dict[Callable[..., Any], tuple[OpOverload, ...]] = {
    exponentials.binary_cross_entropy_with_logits: (_aten.binary_cross_entropy_with_logits.default,),
    exponentials.entr: (_aten.special_entr.default,),
    exponentials.expm1: (_aten.expm1.default, _aten.special_expm1.default),
    exponentials.log1p: (_aten.log1p.default, _aten.special_log1p.default),
    exponentials.log_sigmoid: (_aten.log_sigmoid.default,),
    exponentials.logaddexp: (_aten.logaddexp.default,),
    exponentials.logaddexp2: (_aten.logaddexp2.default,),
    exponentials.logcumsumexp: (_aten.logcumsumexp.default,),
    exponentials.logit: (_aten.logit.default, _aten.special_logit.default),
    exponentials.logsumexp: (_aten.logsumexp.default, _aten.special_logsumexp.default),
    exponentials.xlog1py: (
        _aten.special_xlog1py.default,
        _aten.special_xlog1py.self_scalar,
        _aten.special_xlog1py.other_scalar,
    ),
    exponentials.xlogy: (
        _aten.xlogy.Tensor,
        _aten.xlogy.Scalar_Self,
        _aten.xlogy.Scalar_Other,
        _aten.special_xlogy.default,
        _aten.special_xlogy.self_scalar,
        _aten.special_xlogy.other_scalar,
    ),
    gamma.digamma: (_aten.digamma.default, _aten.special_digamma.default, _aten.special_psi.default),
    gamma.lgamma: (_aten.lgamma.default, _aten.special_gammaln.default),
    gamma.multigammaln: (_aten.mvlgamma.default, _aten.special_multigammaln.default),
    gamma.polygamma: (_aten.polygamma.default, _aten.special_polygamma.default),
    matrices.cholesky: (_aten.linalg_cholesky.default,),
    matrices.cholesky_ex: (_aten.linalg_cholesky_ex.default,),
    matrices.cholesky_inverse: (_aten.cholesky_inverse.default,),
    matrices.cholesky_solve: (_aten.cholesky_solve.default,),
    matrices.solve_triangular: (_aten.linalg_solve_triangular.default,),
    matrices.triangular_solve: (_aten.triangular_solve.default,),
    normal.erfc: (_aten.erfc.default, _aten.special_erfc.default),
    normal.erfcx: (_aten.special_erfcx.default,),
    normal.erfinv: (_aten.erfinv.default, _aten.special_erfinv.default),
    normal.log_ndtr: (_aten.special_log_ndtr.default,),
    normal.ndtr: (_aten.special_ndtr.default,),
    normal.ndtri: (_aten.special_ndtri.default,),
}

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **{operator: in_float32(function) for function, operators in _FUNCTIONS.items() for operator in operators},
    _aten.flip.default: layers.flip,
    _aten.index_put.default: masks.index_put,
    _aten.scaled_dot_product_attention.default: layers.attention,
    _aten.layer_norm.default: layers.layer_norm,
    _aten.group_norm.default: layers.group_norm,
    _aten.instance_norm.default: layers.instance_norm,
}
"""PyTorch's operators, and what computes them."""
