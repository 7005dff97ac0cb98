"""Checks that refuse ONNX graphs which would not give the same numbers everywhere."""

from __future__ import annotations

import onnx

from edgevae import BundleError, check_graph

from .errors import GraphError


def lint_onnx(name: str, model: onnx.ModelProto) -> None:
    """Refuse an ONNX graph that the runtime would refuse, or whose batch size is fixed.

    Raises:
        GraphError: `edgevae.check_graph` refuses the graph, or a batch axis is fixed; the message says why.
    """
    try:
        check_graph(model.SerializeToString(), name)
    except BundleError as error:
        raise GraphError(str(error)) from error
    for value in [*model.graph.input, *model.graph.output]:
        batch = value.type.tensor_type.shape.dim[0] if value.type.tensor_type.shape.dim else None
        if batch is None or not batch.dim_param:
            size = "no axis" if batch is None else batch.dim_value
            raise GraphError(f"{name}: the batch axis of {value.name} is frozen at {size}; it must be dynamic")
