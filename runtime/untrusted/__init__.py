"""What a graph from a stranger may be.

An ONNX graph is a program. `check_graph` reads its bytes before ONNX Runtime does, and refuses what is no deterministic
computation on finite numbers in one file; then it has ONNX Runtime infer the sizes of all values, with nothing computed
but shapes, and refuses a graph that would need too much memory.
"""

from .graph import GraphVersions, check_graph

__all__ = ["GraphVersions", "check_graph"]
