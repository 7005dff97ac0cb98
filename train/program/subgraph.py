"""Parts of a traced program: from some of its tensors to others."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from ..errors import ProgramError
from ..tracing import line_of_node

_SIZE = torch.ops.aten.sym_size.int
SIZE = "size"
"""The method by which parts of a program take a size: TorchScript makes constants of operators' sizes."""

_CHECKS = (torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten._assert_scalar.default)  # noqa: SLF001 - names of operators
_SAME_IF_SAME_SHAPE = (
    torch.ops.aten.expand.default,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.alias.default,
)
_FILLED: dict[Any, float | None] = {
    torch.ops.aten.new_zeros.default: 0.0,
    torch.ops.aten.new_ones.default: 1.0,
    torch.ops.aten.new_full.default: None,
    torch.ops.aten.zeros_like.default: 0.0,
    torch.ops.aten.ones_like.default: 1.0,
    torch.ops.aten.full_like.default: None,
}
"""Operators that take a tensor for its dtype or size, and what they fill in; `None`: their last argument."""

_SIZED_METHODS = ("expand", "new_full", "new_ones", "new_zeros", "repeat", "reshape", "view")
_SIZED = (torch.ops.aten.new_zeros.default, torch.ops.aten.new_ones.default, torch.ops.aten.new_full.default)


def as_functions(traced: ExportedProgram) -> fx.GraphModule:
    """Return a traced program without what changes tensors in place, and without operators that do nothing.

    A tensor that passes through those has one node then, so that `subgraph` finds every way through it.

    Raises:
        ProgramError: A line picks the entries that a mask names: how many there are depends on the data.
    """
    module: fx.GraphModule = traced.run_decompositions({}).module()
    for node in list(module.graph.nodes):
        if node.op == "call_module" or node.target in _CHECKS:
            module.graph.erase_node(node)
        elif (source := _same(node)) is not None:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
        elif node.target in _FILLED:
            _fill_by_size(module.graph, node)
        elif node.target is torch.ops.aten.index_put.default:
            _choose_by_mask(module.graph, node)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if _mask_of(node) is not None and node.target is torch.ops.aten.index.Tensor:
            raise ProgramError(
                f"{line_of_node(node) or 'the program'} picks entries by a mask, and how many there are depends on the "
                "data. Keep all entries: choose by torch.where(mask, a, b), and leave entries out of a density by "
                "dist.Bernoulli(p).mask(mask).to_event(1)"
            )
    return module


def _mask_of(node: fx.Node) -> fx.Node | None:
    """Return the mask by which a node indexes its first argument, or `None`."""
    indices: Any = node.args[1] if len(node.args) > 1 else None
    if not isinstance(indices, (list, tuple)) or len(indices) != 1 or not isinstance(indices[0], fx.Node):
        return None
    value = indices[0].meta.get("val")
    return indices[0] if isinstance(value, Tensor) and value.dtype == torch.bool else None


def _choose_by_mask(graph: fx.Graph, node: fx.Node) -> None:
    """Write `x[mask] = y[mask]` as a choice at each place, without the list of the places."""
    into: Any = node.args[0]
    picked: Any = node.args[2]
    mask = _mask_of(node)
    if mask is None or len(node.args) > 3 or _target(picked) is not torch.ops.aten.index.Tensor:
        return
    other, source = _mask_of(picked), picked.args[0]
    if other is None or (other is not mask and (other.target, other.args) != (mask.target, mask.args)):
        return
    if not _sizes(mask.meta["val"]) == _sizes(into.meta["val"]) == _sizes(source.meta["val"]):
        return
    with graph.inserting_before(node):
        chosen = graph.call_function(torch.ops.aten.where.self, (mask, source, into))
    chosen.meta.update(node.meta)
    node.replace_all_uses_with(chosen)
    graph.erase_node(node)


def _fill_by_size(graph: fx.Graph, node: fx.Node) -> None:
    """Make a constant tensor by its size alone: the tensor whose dtype it takes need not be there then."""
    value: Tensor = node.meta["val"]
    like: Any = node.args[0]
    given: Any = node.args[1] if node.target in _SIZED else None
    with graph.inserting_before(node):
        sizes = list(given or value.shape)
        for axis, size in enumerate(sizes):
            if isinstance(size, torch.SymInt):  # the size of the tensor
                sizes[axis] = graph.call_function(_SIZE, (like, axis))
                sizes[axis].meta["val"] = size
        fill = node.args[-1] if _FILLED[node.target] is None else _FILLED[node.target]
        filled = graph.call_function(torch.ops.aten.full.default, (sizes, fill), {"dtype": value.dtype})
    filled.meta.update(node.meta)
    node.replace_all_uses_with(filled)
    graph.erase_node(node)


def _same(node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor a node repeats, or `None`."""
    source: Any = None
    arguments: Any = node.args
    if node.target in _SAME_IF_SAME_SHAPE:
        source = arguments[0]
    elif node.target is torch.ops.aten.copy.default:
        source = arguments[1]
    elif node.target is operator.getitem and _target(arguments[0]) is torch.ops.aten.broadcast_tensors.default:
        source = arguments[0].args[0][arguments[1]]
    if not isinstance(source, fx.Node):
        return None
    value, other = node.meta.get("val"), source.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return None
    return source if value.dtype == other.dtype and _sizes(value) == _sizes(other) else None


def _target(node: object) -> object:
    return node.target if isinstance(node, fx.Node) else None


def _sizes(tensor: Tensor) -> list[object]:
    """The sizes as they are written, without asking whether two symbols are equal."""
    return [size.node.expr if isinstance(size, torch.SymInt) else size for size in tensor.shape]


def subgraph(
    program: fx.GraphModule, given: Mapping[str, fx.Node], wanted: Mapping[str, fx.Node]
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return the part of a program that computes some tensors from others.

    Args:
        program: From `as_functions`.
        given: Tensors that the part may take as inputs, by name: inputs of the program, or what it computes. The first
            axis of each is the batch.
        wanted: What it returns, by name.

    Returns:
        The part, whose inputs are those of `given` that `wanted` depends on; and their names, in order.
    """
    reached = _reached(set(given.values()), wanted.values())
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs: list[str] = []
    for name, node in given.items():
        if node in reached and node not in copies:
            copies[node] = graph.placeholder(f"input_{len(inputs)}")
            inputs.append(name)
    if not copies and any(node.target is _SIZE for node in reached):  # constants, repeated for each row
        name, node = next(iter(given.items()))
        copies[node] = graph.placeholder("input_0")
        inputs.append(name)
    rows = graph.call_method(SIZE, (next(iter(copies.values())), 0)) if copies else None
    batch = _sizes(next(iter(copies)).meta["val"])[0] if copies else None
    for node in program.graph.nodes:
        if node in reached and node not in copies:
            if node.target is not _SIZE:
                copies[node] = _with_method(graph.node_copy(node, copies.__getitem__))
            elif rows is not None and node.meta["val"].node.expr == batch:
                copies[node] = rows
            else:
                tensor, axis = node.args
                copies[node] = graph.call_method(SIZE, (copies[tensor], axis))
    graph.output(tuple(copies[node] for node in wanted.values()))
    graph.eliminate_dead_code()
    return fx.GraphModule(program, graph), tuple(inputs)


def _with_method(node: fx.Node) -> fx.Node:
    """Call the method or function of an operator that takes sizes: TorchScript makes constants of operators' sizes."""
    takes_sizes = any(isinstance(argument, (list, tuple)) and argument for argument in node.args)
    if node.op == "call_function" and isinstance(node.target, OpOverload) and takes_sizes:
        name = node.target._opname  # noqa: SLF001 - there is no public name
        if name in _SIZED_METHODS:
            node.op, node.target = "call_method", name
        elif name == "full":
            node.target = torch.full
    return node


def _reached(stops: Collection[fx.Node], wanted: Collection[fx.Node]) -> set[fx.Node]:
    """Return what `wanted` depends on, up to `stops`. The batch size depends on nothing: each input has it."""
    reached: set[fx.Node] = set()
    left = list(wanted)
    while left:
        node = left.pop()
        if node not in reached:
            reached.add(node)
            if node not in stops and node.target is not _SIZE:
                left += node.all_input_nodes
    return reached
