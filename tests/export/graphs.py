"""Small graphs, and what rewrites make of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from edgevae import ModelSpec
from edgevae.export.rewrites import rewrite_graph

Arrays = Mapping[str, NDArray[np.float32]]
SPEC = ModelSpec(
    architecture="mlp",
    likelihood="bernoulli",
    latent="normal",
    data_shape=(1, 8, 8),
    z_dims=(3,),
    hidden_dim=16,
    num_classes=0,
    num_components=0,
    unit_interval=True,
)


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, ...]], outputs: list[str], **weights: NDArray[np.generic]
) -> onnx.ModelProto:
    """A graph with a dynamic batch axis; `inputs` gives the shapes of their rows."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *row]) for name, row in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def rewritten(model: onnx.ModelProto, *, optimize: bool = True) -> onnx.ModelProto:
    return ir.to_proto(rewrite_graph(ir.from_proto(model), optimize=optimize))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


def run(model: onnx.ModelProto, inputs: Arrays) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(None, dict(inputs))
    return outputs


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
