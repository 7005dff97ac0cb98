"""MKL chooses its kernels in one thread."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

WATCHED = """
import json
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class First(TorchDispatchMode):
    calls = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if arguments and isinstance(arguments[0], torch.Tensor):
            name = f"{function.overloadpacket.__name__} {arguments[0].dtype}"
            self.calls.setdefault(name, arguments[0].numel())
        return result

with First():
    import edgevae.train.api
print(json.dumps(First.calls))
"""


@pytest.fixture(scope="module")
def first_calls() -> dict[str, int]:
    """How many numbers the first call of a function had while `train` was imported, by its name and dtype."""
    found = subprocess.run([sys.executable, "-c", WATCHED], check=True, capture_output=True, text=True)
    calls: dict[str, int] = json.loads(found.stdout)
    return calls


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["exp", "log", "log1p", "sqrt", "tanh", "erf", "erfinv", "lgamma"])
def test_whoever_imports_train_has_made_a_functions_first_call_with_one_number(
    first_calls: dict[str, int], name: str, dtype: str
) -> None:
    assert first_calls[f"{name} torch.{dtype}"] == 1
