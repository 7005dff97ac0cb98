"""Checks of ONNX graphs from an untrusted source.

An ONNX graph is a program. `check_graph` reads its bytes before ONNX Runtime does. It refuses a graph that is not
deterministic, may not terminate, has numbers that are not finite, or needs other files. Then ONNX Runtime infers the
sizes of all values, computing only shapes, and a graph that needs too much memory is refused.
"""

from .graph import GraphVersions, check_graph

__all__ = ["GraphVersions", "check_graph"]
