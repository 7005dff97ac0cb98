"""What a model's end leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_SLACK_BYTES = 20e6
_OPENED_BY_SIXTEEN = """
import ctypes, sys, threading
from concurrent.futures import ThreadPoolExecutor
import edgevae
from tests.held import memory_bytes

together = threading.Barrier(16)

def use(_thread):
    together.wait()
    model = edgevae.load(sys.argv[1], provider="cpu", threads=1)
    model.warm_up([1])
    together.wait()
    if sys.argv[2] == "closed":
        model.close()

with ThreadPoolExecutor(16) as pool:
    list(pool.map(use, range(16)))
    held, in_use = memory_bytes()
    ctypes.CDLL(None).malloc_trim(0)
    print(held - memory_bytes()[0], in_use)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts what a process holds in Linux's /proc")
@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_models_that_sixteen_threads_let_go_give_their_memory_back_to_the_system(end: str) -> None:
    command = [sys.executable, "-c", _OPENED_BY_SIXTEEN, str(REPOSITORY / "models" / "mnist-mlp"), end]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    kept, in_use = map(int, done.stdout.split())
    assert kept < _SLACK_BYTES
    assert in_use < 100e6
