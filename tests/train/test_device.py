"""MKL chooses its kernels in one thread."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

WATCHED = """
import json, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from edgevae.train import VAE, ModelConfig, Trainer, TrainingConfig, evaluate_elbo

class First(TorchDispatchMode):
    calls = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if arguments and isinstance(arguments[0], torch.Tensor):
            name = f"{function.overloadpacket.__name__} {arguments[0].dtype}"
            self.calls.setdefault(name, arguments[0].numel())
        return result

model, images = ModelConfig((1, 8, 8), z_dim=2, hidden_dim=4), torch.rand(500, 1, 8, 8)
with First():
    if sys.argv[1] == "evaluation":
        evaluate_elbo(VAE(model), images)
    else:
        Trainer(model, TrainingConfig(), torch.device("cpu")).fit_epoch(images)
print(json.dumps(First.calls))
"""


@pytest.mark.parametrize("what", ["evaluation", "training"])
def test_the_first_call_of_each_of_mkls_functions_has_one_number(what: str) -> None:
    found = subprocess.run([sys.executable, "-c", WATCHED, what], check=True, capture_output=True, text=True)
    calls: dict[str, int] = json.loads(found.stdout)
    for name in ("exp", "log", "log1p", "sqrt", "tanh", "erf", "erfinv", "lgamma"):
        for dtype in ("float32", "float64"):
            assert calls[f"{name} torch.{dtype}"] == 1
