"""What the public call adds to a bare `session.run` of its own session, beside what a run of nothing takes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import edgevae
from benchmarks.peers import Peers, inputs

_CALLS_A_BLOCK = {1: 50, 256: 5}
_BLOCKS_A_REPEAT = 4
_IR_VERSION, _OPSET = 8, 17


class Overhead(TypedDict):
    """Medians, in microseconds a call.

    Args:
        added: Of ours, less the bare run beside it.
        empty: Of a run of a graph that hands one number on: what Python and ONNX Runtime take on this machine.
    """

    added: float
    empty: float


def measure_overhead(peers: Peers, batch: int, repeats: int) -> dict[str, Overhead]:
    """Return what the call adds where it is made again and again, `warm`, and `in turn` with another session's run.

    The session is the model's own: two of one graph differ by more than what the call adds, by where in memory their
    weights happen to lie. In turn, Python's own code is as far from the processor for the one as for the other.
    """
    x, eps = inputs(batch, peers.z_dim)
    model = edgevae.load(peers.bundle, provider="cpu", threads=peers.threads)
    session = model._graphs["reconstruct"]._session  # noqa: SLF001 - it has no public name
    nothing, number = _empty_session(), np.zeros(1, np.float32)
    calls: tuple[Callable[[], object], ...] = (
        lambda: session.run(["loc_img"], {"x": x, "eps": eps}),
        lambda: nothing.run(["y"], {"x": number}),
        lambda: model.reconstruct(x, eps=eps),
    )
    blocks = repeats * _BLOCKS_A_REPEAT
    block = _CALLS_A_BLOCK[batch]
    return {"warm": _overhead(calls, blocks, block), "in turn": _overhead(calls, blocks * block, 1)}


def _overhead(calls: Sequence[Callable[[], object]], turns: int, calls_a_turn: int) -> Overhead:
    """Time the bare run, the empty one and ours in turns."""
    seconds: list[list[float]] = []
    for _ in range(turns):
        times = [time.perf_counter()]
        for call in calls:
            for _ in range(calls_a_turn):
                call()
            times.append(time.perf_counter())
        seconds.append([(end - start) / calls_a_turn for start, end in itertools.pairwise(times)])
    added = statistics.median(ours - bare for bare, _, ours in seconds)
    return {"added": 1e6 * added, "empty": 1e6 * statistics.median(empty for _, empty, _ in seconds)}


def _empty_session() -> Any:
    """Return a session of a graph that does nothing."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
