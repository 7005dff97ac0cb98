"""What the public call adds to a bare `session.run` of the same graph."""

from __future__ import annotations

import itertools
import statistics
import time

import runtime
from benchmarks._peers import Peers, bare_session, inputs

_CALLS_A_REPEAT = {1: 200, 256: 10}


def measure_overhead(peers: Peers, batch: int, repeats: int) -> float:
    """Return microseconds: the median over single calls that take turns, of ours less the mean of those around it."""
    x, eps = inputs(batch, peers.z_dim)
    model = runtime.load(peers.bundle, provider="cpu", threads=peers.threads)
    session = bare_session(peers.bundle / "reconstruct.onnx", peers.threads)
    added: list[float] = []
    for _ in range(repeats * _CALLS_A_REPEAT[batch]):
        times = [time.perf_counter()]
        session.run(["loc_img"], {"x": x, "eps": eps})
        times.append(time.perf_counter())
        model.reconstruct(x, eps=eps)
        times.append(time.perf_counter())
        session.run(["loc_img"], {"x": x, "eps": eps})
        times.append(time.perf_counter())
        before, ours, after = (end - start for start, end in itertools.pairwise(times))
        added.append(ours - (before + after) / 2)
    return 1e6 * statistics.median(added)
