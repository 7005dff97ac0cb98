"""What the public call adds to a bare `session.run` of the same graph, beside what a run of nothing takes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import runtime
from benchmarks._peers import Peers, bare_session, inputs

_CALLS_A_REPEAT = {1: 200, 256: 10}
_IR_VERSION, _OPSET = 8, 17


class Overhead(TypedDict):
    """Medians over single calls, in microseconds.

    Args:
        added: Of ours, less the bare run before it.
        empty: Of a run of a graph that hands one number on: what Python and ONNX Runtime take on this machine.
    """

    added: float
    empty: float


def measure_overhead(peers: Peers, batch: int, repeats: int) -> Overhead:
    """Time single calls that take turns."""
    x, eps = inputs(batch, peers.z_dim)
    model = runtime.load(peers.bundle, provider="cpu", threads=peers.threads)
    session = bare_session(peers.bundle / "reconstruct.onnx", peers.threads)
    nothing, number = _empty_session(), np.zeros(1, np.float32)
    # Each of the three always comes after the same one, with its weights as far from the processor as the other's.
    calls: tuple[Callable[[], object], ...] = (
        lambda: session.run(["loc_img"], {"x": x, "eps": eps}),
        lambda: nothing.run(["y"], {"x": number}),
        lambda: model.reconstruct(x, eps=eps),
    )
    seconds: list[list[float]] = []
    for _ in range(repeats * _CALLS_A_REPEAT[batch]):
        times = [time.perf_counter()]
        for call in calls:
            call()
            times.append(time.perf_counter())
        seconds.append([end - start for start, end in itertools.pairwise(times)])
    added = statistics.median(ours - bare for bare, _, ours in seconds)
    return {"added": 1e6 * added, "empty": 1e6 * statistics.median(empty for _, empty, _ in seconds)}


def _empty_session() -> Any:
    """Return a session of a graph that does nothing."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
