"""From a traced program to an ONNX graph, by PyTorch's exporter. It knows nothing of VAEs.

Operators that it has no form for, or an inaccurate one, become ours (`functions`).
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.export import ExportedProgram

from .errors import TraceError
from .functions import decompose
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
        TraceError: An operator has no ONNX form, or a matrix is too large for ours. The message names it, and the line
            of the user's program.
    """
    program = decompose(traced)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints progress
            exported = torch.onnx.export(
                program,
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
