"""Sums of lgamma that cancel.

Densities of counts and of heavy tails hold sums such as lgamma(t + v) - lgamma(t) - lgamma(v + 1). For large t, each
term is rounded to a unit that may be larger than the sum. Here the terms that belong together are found in a traced
program, by symbolic differences of their arguments, and become functions of `gamma` that do not cancel. An expression
that a program writes twice counts as two different ones.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from .gamma import lgamma_difference, log_beta, log_binomial
from .table import in_float32

_aten = torch.ops.aten
LGAMMAS = frozenset({_aten.lgamma.default, _aten.special_gammaln.default})
"""PyTorch's names for lgamma."""
_COPIES = {_aten.alias.default, _aten.clone.default, _aten.detach.default, _aten.expand.default}
_SIGNS = {
    _aten.add.Tensor: (1, 1),
    _aten.sub.Tensor: (1, -1),
    _aten.rsub.Scalar: (-1, 1),
    _aten.neg.default: (-1,),
}
"""Of the arguments of a sum."""


def join_lgammas(program: ExportedProgram) -> None:
    """Replace, in place, sums of lgamma that cancel.

    Args:
        program: Without operators that work in place, as `run_decompositions` returns it. The new nodes call Python
            functions, which the next `run_decompositions` traces.
    """
    graph = program.graph
    inner: set[Node] = set()
    for root in reversed(list(graph.nodes)):
        if root not in inner and _is_sum(root):
            terms = list(_terms(root, 1, inner))
            with graph.inserting_before(root):
                joined = _joined(graph, terms)
                if joined == terms:
                    continue
                total = _sum_of(graph, joined)
            root.replace_all_uses_with(total)
            program.graph_signature.replace_all_uses(root.name, total.name)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


# Terms


@dataclasses.dataclass(frozen=True)
class _Term:
    """A term of a sum: 1 or -1 times a node or a number."""

    sign: int
    value: Any

    @functools.cached_property
    def argument(self) -> Node | None:
        """What lgamma is taken of, if the term is one."""
        return _argument(self.value)


def _argument(value: Any) -> Node | None:
    is_lgamma = isinstance(value, Node) and value.target in LGAMMAS
    return cast(Node, value.args[0]) if is_lgamma else None


def _is_sum(value: Any) -> bool:
    return isinstance(value, Node) and value.target in _SIGNS and len(value.args) <= 2 and not value.kwargs


def _terms(node: Node, sign: int, inner: set[Node]) -> Iterator[_Term]:
    """Yield the terms of a sum. Sums inside it that nothing else reads are added to `inner`."""
    signs: tuple[int, ...] = _SIGNS[cast(OpOverload, node.target)]
    for value, factor in zip(node.args, signs, strict=True):
        if isinstance(value, Node) and _is_sum(value) and len(value.users) == 1:
            inner.add(value)
            yield from _terms(value, sign * factor, inner)
        else:
            yield _Term(sign * factor, value)


def _joined(graph: Graph, terms: list[_Term]) -> list[_Term]:
    """Return the terms, with one in place of each group that cancels."""
    for rule, size in ((_row, 2), (_triple, 3), (_pair, 2)):
        for group in itertools.permutations(terms, size):
            if (node := rule(graph, *group)) is not None:
                rest = [term for term in terms if all(term is not joined for joined in group)]
                return _joined(graph, [*rest, _Term(group[0].sign, node)])
    return terms


def _sum_of(graph: Graph, terms: list[_Term]) -> Node:
    # the first argument of an operator must be a node
    first, *others = sorted(terms, key=lambda term: (not isinstance(term.value, Node), -term.sign))
    total = first.value if first.sign > 0 else graph.call_function(_aten.neg.default, (first.value,))
    for term in others:
        operator = _aten.add.Tensor if term.sign > 0 else _aten.sub.Tensor
        total = graph.call_function(operator, (total, term.value))
    return total


# Rules: each returns a node in place of its terms, with the sign of the first, if they belong together.


def _row(graph: Graph, whole: _Term, parts: _Term) -> Node | None:
    """lgamma(sum(c)) - sum(lgamma(c)), and the same of c + 1 with lgamma(sum(c) + 1)."""
    if whole.argument is None or whole.sign == parts.sign or not _is_row_sum(parts.value):
        return None
    part = _argument(parts.value.args[0])
    total, each = _linear(whole.argument), _linear(part)
    if part is None or len(total.nodes) != 1 or len(each.nodes) != 1 or total.constant != each.constant:
        return None
    ((row_sum, one),), ((row, another),) = total.nodes.items(), each.nodes.items()
    same = _is_row_sum(row_sum) and _original(row_sum.args[0]) is row and row_sum.args[1] == parts.value.args[1]
    if not same or (one, another) != (1, 1) or total.constant not in {0, 1}:
        return None
    function = _beta_of_row if total.constant == 0 else _binomial_of_row
    return graph.call_function(function, (part, *parts.value.args[1:]))


def _triple(graph: Graph, whole: _Term, a: _Term, b: _Term) -> Node | None:
    """lgamma(a + b) - lgamma(a) - lgamma(b), and lgamma(a + b - 1) - lgamma(a) - lgamma(b)."""
    if whole.argument is None or a.argument is None or b.argument is None or not -whole.sign == a.sign == b.sign:
        return None
    gap = _linear(whole.argument) - _linear(a.argument) - _linear(b.argument)
    if gap.nodes or gap.constant not in {0, -1}:
        return None
    function = _binomial if gap.constant else _beta
    return graph.call_function(function, (whole.argument, a.argument, b.argument))


def _pair(graph: Graph, more: _Term, less: _Term) -> Node | None:
    """lgamma(x + n) - lgamma(x), where n is a number or a single node."""
    if more.argument is None or less.argument is None or more.sign == less.sign:
        return None
    gap = _linear(more.argument) - _linear(less.argument)
    if not gap.nodes:
        n: Any = gap.constant
    elif list(gap.nodes.values()) == [1] and gap.constant == 0:
        (n,) = gap.nodes
    else:
        return None
    return graph.call_function(_difference, (more.argument, less.argument, n))


@in_float32
def _beta(whole: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _like(-log_beta(a, b), whole)


@in_float32
def _binomial(whole: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _like(log_binomial(a, b), whole)


@in_float32
def _difference(whole: Tensor, x: Tensor, n: Tensor | float) -> Tensor:
    return _like(lgamma_difference(x, n), whole)


@in_float32
def _beta_of_row(row: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """Value by value: lgamma(s + c) - lgamma(s) - lgamma(c), where s is the sum of the values before."""
    row = row.movedim(dim[0], -1)
    total = -log_beta(row.cumsum(-1)[..., :-1], row[..., 1:]).sum(-1, keepdim=True)
    return total.movedim(-1, dim[0]) if keepdim else total.squeeze(-1)


@in_float32
def _binomial_of_row(row: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """Likewise with c + 1 and s + 1, for a row of c + 1."""
    row = row.movedim(dim[0], -1)
    before = (row - 1).cumsum(-1)[..., :-1]
    total = log_binomial(before + 1, row[..., 1:]).sum(-1, keepdim=True)
    return total.movedim(-1, dim[0]) if keepdim else total.squeeze(-1)


def _like(value: Tensor, whole: Tensor) -> Tensor:
    """The argument that was left out may have had more rows than the others."""
    return value.expand(torch.broadcast_shapes(value.shape, whole.shape))


# Arguments, symbolically


@dataclasses.dataclass(frozen=True)
class _Linear:
    """A linear combination of nodes, and a constant."""

    nodes: dict[Node, float]
    constant: float

    def __add__(self, other: _Linear) -> _Linear:
        nodes = {node: self.nodes.get(node, 0) + other.nodes.get(node, 0) for node in {**self.nodes, **other.nodes}}
        return _Linear({node: factor for node, factor in nodes.items() if factor}, self.constant + other.constant)

    def __sub__(self, other: _Linear) -> _Linear:
        return self + other.times(-1)

    def times(self, factor: float) -> _Linear:
        return _Linear({node: factor * value for node, value in self.nodes.items()}, factor * self.constant)


def _linear(value: Any) -> _Linear:
    """The value as a linear combination, as far as sums and products with numbers go."""
    if not isinstance(value, Node):
        return _Linear({}, value)
    node = _original(value)
    if _is_sum(node):
        inner: set[Node] = set()
        return functools.reduce(
            _Linear.__add__, (_linear(term.value).times(term.sign) for term in _terms(node, 1, inner))
        )
    if node.target in {_aten.mul.Tensor, _aten.div.Tensor} and not isinstance(node.args[1], Node):
        return _linear(node.args[0]).times(node.args[1] if node.target == _aten.mul.Tensor else 1 / node.args[1])
    return _Linear({node: 1}, 0)


def _is_row_sum(value: Any) -> bool:
    """Whether a node is a sum over one axis."""
    if not isinstance(value, Node) or value.target != _aten.sum.dim_IntList:
        return False
    axes: Any = value.args[1]
    return len(axes) == 1


def _original(node: Any) -> Any:
    """Return the node that a copy or an expansion has its values from."""
    while isinstance(node, Node) and node.target in _COPIES:
        node = node.args[0]
    return node
