"""Graph rewrites: the same function, and the reason why."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxscript import ir

from export._rewrites import rewrite_graph

SIGMOID = helper.make_model(
    helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
    ),
    opset_imports=[helper.make_opsetid("", 20)],
    ir_version=10,
)


@pytest.fixture(scope="module")
def exact() -> onnxruntime.InferenceSession:
    model = ir.to_proto(rewrite_graph(ir.from_proto(SIGMOID)))
    assert [node.op_type for node in model.graph.node if node.op_type == "Sigmoid"] == []
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, x: NDArray[np.float32]) -> NDArray[np.float32]:
    (y,) = session.run(None, {"x": x})
    return y


def test_the_exact_sigmoid_is_torchs_to_a_relative_millionth(exact: onnxruntime.InferenceSession) -> None:
    x = np.linspace(-87, 100, 200_001, dtype=np.float32)
    expected = torch.sigmoid(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(exact, x), expected, rtol=1e-6, atol=0)


def test_the_exact_sigmoid_has_its_limits(exact: onnxruntime.InferenceSession) -> None:
    x = np.array([-np.inf, -200, 0, 200, np.inf], np.float32)
    np.testing.assert_array_equal(run(exact, x), np.array([0, 0, 0.5, 1, 1], np.float32))
    assert np.isnan(run(exact, np.array([np.nan], np.float32))).all()
