"""A model among threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgevae import BundleError, EdgeVAEError, InputError, Model, Noise, load
from edgevae import graphs as _graphs
from edgevae.graph import Graph
from edgevae.train import Dataset
from tests.conftest import REPOSITORY
from tests.fuzz.bundle import with_right_hash

NUM_THREADS, NUM_CALLS = 16, 500


def test_sixteen_threads_get_what_one_gets(model: Model, digits: Dataset) -> None:
    x = digits.test[:8].numpy()
    seeds = range(NUM_THREADS * NUM_CALLS)
    expected = [model.reconstruct(x, seed=seed) for seed in seeds]

    def work(thread: int) -> bool:
        mine = range(thread, len(seeds), NUM_THREADS)
        return all(np.array_equal(model.reconstruct(x, seed=seed), expected[seed]) for seed in mine)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        assert all(pool.map(work, range(NUM_THREADS)))


def test_threads_that_use_a_graph_for_the_first_time_share_its_session(bundle: Path) -> None:
    model = load(bundle, provider="cpu")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = list(pool.map(lambda seed: model.generate(2, seed), [3] * 64))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert set(model._graphs._loaded) == {"reconstruct", "decoder"}


@pytest.mark.parametrize(("version", "num_calls"), [("1.31.1", 0), ("1.99.0.dev20270101", 2), ("2.0rc1", 2)])
def test_an_unknown_onnxruntime_is_run_by_its_public_name_alone(
    bundle: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, version: str, num_calls: int
) -> None:
    x = digits.test[:3].numpy()
    expected = load(bundle, provider="cpu").reconstruct(x, seed=0)
    calls: list[list[str]] = []
    public = onnxruntime.InferenceSession.run

    def run(session: Any, output_names: list[str], *args: Any) -> Any:
        calls.append(output_names)
        return public(session, output_names, *args)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    monkeypatch.setattr(onnxruntime, "__version__", version)
    model = load(bundle, provider="cpu")
    for _ in range(2):
        np.testing.assert_array_equal(model.reconstruct(x, seed=0), expected)
    assert calls == [["loc_img"]] * num_calls


def test_a_closed_model_says_so(bundle: Path) -> None:
    with load(bundle, provider="cpu") as model:
        assert model.generate(1, seed=0).shape == (1, 64)
    with pytest.raises(EdgeVAEError, match="this model was closed; load it again"):
        model.generate(1, seed=0)
    assert model.manifest.name == "small"
    model.close()


def test_a_model_pickles_as_the_path_of_its_bundle(
    bundle: Path, model: Model, digits: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(bundle.parent)
    content = pickle.dumps(load(bundle.name, provider="cpu", threads=1))
    assert len(content) < 2000
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(content)  # noqa: S301 - our own
    x = digits.test[:3].numpy()
    np.testing.assert_allclose(copy.reconstruct(x, seed=1), model.reconstruct(x, seed=1), atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_load_the_model_itself(model: Model, bundle: Path) -> None:
    model.generate(1, seed=0)
    context = multiprocessing.get_context("fork")
    messages = context.Queue()

    def child() -> None:
        try:
            model.generate(1, seed=0)
            messages.put("it ran")
        except EdgeVAEError as error:
            messages.put(str(error))

    process = context.Process(target=child)
    process.start()
    found = messages.get(timeout=60)
    process.join(timeout=60)
    assert "loaded before this process was forked" in found
    assert "load it in the process that uses it" in found


def test_a_noise_goes_on_where_the_last_call_left_it(model: Model, digits: Dataset) -> None:
    x = digits.test[:8].numpy()
    stream, expected = Noise(3), Noise(3)
    for _ in range(2):
        eps = expected.standard_normal((8, 5))
        np.testing.assert_array_equal(model.reconstruct(x, seed=stream), model.reconstruct(x, eps=eps))
    np.testing.assert_array_equal(model.generate(4, stream), model.decode(expected.standard_normal((4, 5))))


def test_warming_up_runs_every_graph(bundle: Path) -> None:
    model = load(bundle, provider="cpu")
    model.warm_up([1, 32])
    assert set(model._graphs._loaded) == set(model.manifest.graphs)
    with pytest.raises(InputError, match="batch_sizes must be at least 1 each, got 0"):
        model.warm_up([0])


def test_a_graph_that_changes_after_loading_is_refused_when_it_is_used(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    model = load(copy, provider="cpu")
    (copy / "decoder.onnx").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match=r"decoder\.onnx was changed after export"):
        model.generate(1, seed=0)


@pytest.mark.parametrize("name", [b"edgevae.model", b"z_scale"])
def test_a_name_that_is_no_text_is_refused(bundle: Path, tmp_path: Path, name: bytes) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    content = (bundle / "encoder.onnx").read_bytes().replace(name, name[:-1] + b"\x97")
    (damaged / "encoder.onnx").write_bytes(content)
    manifest = (bundle / "manifest.json").read_bytes()
    (damaged / "manifest.json").write_bytes(with_right_hash(manifest, "encoder.onnx", content))
    with pytest.raises(BundleError), load(damaged, provider="cpu") as model:
        model.encode(np.zeros((2, 64)))


_FORKED = """
import os, sys, threading
import edgevae

model = edgevae.load(sys.argv[1], provider="cpu", threads=2)
model.generate(1000, seed=0)
if sys.argv[2] == "locked":
    model._graphs._lock.acquire()
child = os.fork()
if child == 0:
    if sys.argv[2] == "forgotten":
        del model
    else:
        model.close()
    model = edgevae.load(sys.argv[1], provider="cpu", threads=2)
    sys.exit(len(model.generate(3, seed=0)))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["closed", "forgotten", "locked"])
def test_a_forked_process_can_let_the_model_go_and_load_its_own(bundle: Path, how: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FORKED, str(bundle), how]
    # Without what keeps ONNX Runtime's thread that reports from beginning: the runtime has to.
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "3\n"


_IN_SHARED_THREADS = """
import os, sys
import onnxruntime

onnxruntime.set_global_thread_pool_sizes(2, 1)
import edgevae

def threads():
    return len(os.listdir("/proc/self/task"))

options = onnxruntime.SessionOptions()
options.use_per_session_threads = False
first = edgevae.load(sys.argv[1], session_options=options)
before = threads()
model = edgevae.load(sys.argv[1], provider="cpu", threads=4)
model.generate(2000, seed=0)
print(model.verify().passed, threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in Linux's /proc")
@pytest.mark.skipif(not hasattr(onnxruntime, "set_global_thread_pool_sizes"), reason="needs a newer ONNX Runtime")
def test_where_the_application_shares_threads_among_sessions_a_model_uses_them_too(bundle: Path) -> None:
    command = [sys.executable, "-c", _IN_SHARED_THREADS, str(bundle)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("True 0\n", "")


def test_a_model_that_is_closed_while_a_session_is_made_is_closed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(bundle, provider="cpu")

    def interrupted(*arguments: Any) -> Graph:
        made = Graph(*arguments)
        model.close()  # as a signal's handler may, in the thread that holds the lock
        return made

    monkeypatch.setattr(_graphs, "Graph", interrupted)
    with pytest.raises(EdgeVAEError, match="this model was closed"):
        model.generate(1, seed=0)
    assert model._graphs._loaded == {}
