"""A model's sessions: among threads and processes, on batches large and small, from load to close."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from edgevae import Bundle, BundleError, EdgeVAEError, InputError, Model, Noise, Reference, load
from edgevae import session as _session
from edgevae.providers import Execution, create_session
from edgevae.session import MAX_ROWS_A_THREAD, Graphs, Workers
from edgevae.train import Dataset
from tests.conftest import REPOSITORY
from tests.fuzz.bundle import with_right_hash
from tests.runtime.hostile.case import graph
from tests.runtime.hostile.operators import through

NUM_THREADS, NUM_CALLS = 16, 500
ROWS = 2 * MAX_ROWS_A_THREAD + 188
"""Three runs with one thread, the last of fewer rows."""


def opened(path: Path, threads: int) -> Graphs:
    return Graphs(Bundle(path), Execution.of("cpu", threads, None, None))


@pytest.fixture
def single(bundle: Path) -> Model:
    return load(bundle, provider="cpu", threads=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each run whose outputs ONNX Runtime allocated, as they come."""
    rows: list[int] = []
    run = onnxruntime.InferenceSession.run

    def counting(session: Any, outputs: list[str], inputs: dict[str, Any], *options: Any) -> Any:
        rows.extend(len(array) for array in list(inputs.values())[:1])  # the checks of a graph run without inputs
        return run(session, outputs, inputs, *options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counting)
    return rows


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each input of a run that wrote into the result, as they come."""
    rows: list[int] = []
    bind = onnxruntime.IOBinding.bind_cpu_input

    def counting(binding: Any, name: str, array: Any) -> Any:
        rows.append(len(array))
        return bind(binding, name, array)

    monkeypatch.setattr(onnxruntime.IOBinding, "bind_cpu_input", counting)
    return rows


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The file and the threads of each session that is made to run, as they come."""
    made: list[tuple[str, int]] = []

    def counting(content: bytes, file: str, execution: Execution) -> Any:
        made.append((file, execution.threads))
        return create_session(content, file, execution)

    monkeypatch.setattr(_session, "create_session", counting)
    return made


def test_sixteen_threads_get_what_one_gets(model: Model, digits: Dataset) -> None:
    x = digits.test[:8].numpy()
    seeds = range(NUM_THREADS * NUM_CALLS)
    expected = [model.reconstruct(x, seed=seed) for seed in seeds]

    def work(thread: int) -> bool:
        mine = range(thread, len(seeds), NUM_THREADS)
        return all(np.array_equal(model.reconstruct(x, seed=seed), expected[seed]) for seed in mine)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        assert all(pool.map(work, range(NUM_THREADS)))


def test_threads_that_use_a_graph_for_the_first_time_share_its_session(
    bundle: Path, sessions: list[tuple[str, int]]
) -> None:
    model = load(bundle, provider="cpu", threads=2)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = list(pool.map(lambda seed: model.generate(2, seed), [3] * 64))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert sessions == [("reconstruct.onnx", 2), ("decoder.onnx", 2)]


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


def test_a_noise_object_continues_across_calls(model: Model, digits: Dataset) -> None:
    x = digits.test[:8].numpy()
    stream, expected = Noise(3), Noise(3)
    for _ in range(2):
        eps = expected.standard_normal((8, 5))
        np.testing.assert_array_equal(model.reconstruct(x, seed=stream), model.reconstruct(x, eps=eps))
    np.testing.assert_array_equal(model.generate(4, stream), model.decode(expected.standard_normal((4, 5))))


def test_warming_up_runs_every_graph(bundle: Path, sessions: list[tuple[str, int]]) -> None:
    model = load(bundle, provider="cpu", threads=1)
    model.warm_up([1, 32])
    assert sorted(file for file, _ in sessions) == sorted(spec.file.file for spec in model.manifest.graphs.values())
    with pytest.raises(InputError, match="batch_sizes must be at least 1 each, got 0"):
        model.warm_up([0])


def test_a_graph_that_changes_after_loading_is_refused_when_it_is_used(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    model = load(copy, provider="cpu")
    (copy / "decoder.onnx").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match=r"decoder\.onnx was changed after export"):
        model.generate(1, seed=0)


@pytest.mark.parametrize("name", [b"edgevae.model", b"z_scale"])
def test_a_name_that_is_not_a_string_is_refused(bundle: Path, tmp_path: Path, name: bytes) -> None:
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

model = edgevae.load(sys.argv[1], provider="cpu", threads=4)
model.generate(1000, seed=0)
child = os.fork()
if child == 0:
    if sys.argv[2] == "forgotten":
        del model
    elif sys.argv[2] == "closed":
        model.close()
    own = edgevae.load(sys.argv[1], provider="cpu", threads=2)
    sys.exit(len(own.generate(3, seed=0)))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["closed", "forgotten", "kept"])
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

    def interrupted(*arguments: Any) -> Any:
        model.close()
        return create_session(*arguments)

    monkeypatch.setattr(_session, "create_session", interrupted)
    for _ in range(2):
        with pytest.raises(EdgeVAEError, match="this model was closed"):
            model.generate(1, seed=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-conditional", "mnist-hierarchical", "mnist-mixture"])
def test_every_output_of_every_graph_is_written_in_place_with_the_numbers_of_its_parts(
    name: str, threads: int, runs: list[int]
) -> None:
    path = REPOSITORY / "models" / name
    graphs, one = opened(path, threads), opened(path, 1)
    reference = Reference.of(Bundle(path))
    rows = ROWS if threads == 1 else MAX_ROWS_A_THREAD * threads + 1
    for graph_name, run in graphs.items():
        inputs = {name: np.resize(reference[name], (rows, *reference[name].shape[1:])) for name in run.inputs}
        expected = [
            one[graph_name]({name: array[start : start + MAX_ROWS_A_THREAD] for name, array in inputs.items()})
            for start in range(0, rows, MAX_ROWS_A_THREAD)
        ]
        runs.clear()
        whole = run(inputs)
        assert runs == []
        assert list(whole) == run.outputs
        for output, values in whole.items():
            np.testing.assert_array_equal(values, np.concatenate([part[output] for part in expected]))


@pytest.mark.parametrize(
    ("threads", "rows", "expected"),
    [
        (1, MAX_ROWS_A_THREAD, []),
        (1, MAX_ROWS_A_THREAD + 1, [256, 1]),
        (1, ROWS, [256, 256, 188]),
        (2, 2 * MAX_ROWS_A_THREAD, []),
        (2, 2 * MAX_ROWS_A_THREAD + 1, [129, 129, 129, 126]),
        (2, 4 * MAX_ROWS_A_THREAD, [256] * 4),
        (3, 3 * MAX_ROWS_A_THREAD, []),
        (3, 4 * MAX_ROWS_A_THREAD, [171, 171, 171, 171, 171, 169]),
    ],
)
def test_parts_are_even_and_as_many_for_each_thread(
    bundle: Path, parts: list[int], threads: int, rows: int, expected: list[int]
) -> None:
    load(bundle, provider="cpu", threads=threads).decode(np.zeros((rows, 5), np.float32))
    assert sorted(parts, reverse=True) == expected


def test_rows_that_are_too_few_for_each_of_many_threads_run_one_part_after_another(
    bundle: Path, parts: list[int]
) -> None:
    load(bundle, provider="cpu", threads=64).decode(np.zeros((16 * MAX_ROWS_A_THREAD + 1, 5), np.float32))
    assert parts == [4096, 1]


def test_a_model_whose_folder_has_gone_still_takes_many_rows(bundle: Path, tmp_path: Path) -> None:
    z = np.random.RandomState(0).standard_normal((2 * MAX_ROWS_A_THREAD + 1, 5)).astype(np.float32)
    expected = load(bundle, provider="cpu", threads=2).decode(z)
    model = load(shutil.copytree(bundle, tmp_path / "gone"), provider="cpu", threads=2)
    model.warm_up()
    before = set(threading.enumerate())
    shutil.rmtree(tmp_path / "gone")
    for _ in range(2):
        np.testing.assert_allclose(model.decode(z), expected, atol=1e-6)
    assert not set(threading.enumerate()) - before


def test_parts_run_side_by_side_with_one_thread_each(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, sessions: list[tuple[str, int]]
) -> None:
    model = load(bundle, provider="cpu", threads=2)
    run, together = onnxruntime.InferenceSession.run_with_iobinding, threading.Barrier(2)

    def meeting(session: Any, binding: Any) -> None:
        together.wait(30)
        run(session, binding)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", meeting)
    model.decode(np.zeros((2 * MAX_ROWS_A_THREAD + 2, 5), np.float32))
    assert sessions == [("reconstruct.onnx", 2), ("decoder.onnx", 2), ("decoder.onnx", 1)]


def test_few_rows_start_no_thread_and_no_second_session(bundle: Path, sessions: list[tuple[str, int]]) -> None:
    before = set(threading.enumerate())
    load(bundle, provider="cpu", threads=2).warm_up([1, MAX_ROWS_A_THREAD, 2 * MAX_ROWS_A_THREAD])
    assert not set(threading.enumerate()) - before
    assert {threads for _, threads in sessions} == {2}


def test_with_a_callers_own_session_options_parts_run_in_that_session(
    bundle: Path, parts: list[int], sessions: list[tuple[str, int]]
) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    before = set(threading.enumerate())
    model = load(bundle, provider="cpu", session_options=options)
    model.decode(np.zeros((10_000, 5), np.float32))
    assert sum(parts) == 10_000
    assert [file for file, _ in sessions] == ["reconstruct.onnx", "decoder.onnx"]
    assert not set(threading.enumerate()) - before


_LATE = """
import atexit, sys
import numpy as np
import edgevae

model = edgevae.load(sys.argv[1], provider="cpu", threads=2)
z = np.zeros((1000, 5), np.float32)
if sys.argv[2] == "begun":
    model.decode(z)
atexit.register(lambda: print(model.decode(z).shape))
"""


@pytest.mark.parametrize("when", ["begun", "not begun"])
def test_many_rows_at_interpreter_shutdown_run_in_the_callers_thread(bundle: Path, when: str) -> None:
    command = [sys.executable, "-c", _LATE, str(bundle), when]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("(1000, 64)\n", "")


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_the_threads_of_a_model_end_with_it(bundle: Path, end: str) -> None:
    before = set(threading.enumerate())
    model = load(bundle, provider="cpu", threads=2)
    model.decode(np.zeros((2 * MAX_ROWS_A_THREAD + 1, 5), np.float32))
    (started,) = set(threading.enumerate()) - before
    if end == "closed":
        model.close()
    else:
        del model
    started.join(30)
    assert not started.is_alive()


def test_a_result_written_into_a_slice_leaves_the_rest_of_the_array_alone(single: Model, runs: list[int]) -> None:
    z = np.random.RandomState(0).standard_normal((ROWS, 5))
    expected = single.decode(z)
    held = np.full((ROWS + 2, 64), 7, np.float32)
    out = held[1:-1]
    assert single.decode(z, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert (held[[0, -1]] == 7).all()
    assert runs == []


def test_what_another_provider_makes_is_copied_from_one_run_after_another(bundle: Path, runs: list[int]) -> None:
    encoder = opened(bundle, 1)["encoder"]
    x = np.random.RandomState(0).uniform(size=(ROWS, 64)).astype(np.float32)
    one = encoder({"x": x})
    encoder.provider = "cuda"
    copied = encoder({"x": x}, {})
    for name, values in copied.items():
        np.testing.assert_allclose(values, one[name], rtol=1e-5, atol=1e-6)
    assert runs == [256, 256, 188]


@pytest.mark.parametrize("rows", [MAX_ROWS_A_THREAD, ROWS])
def test_a_result_of_another_shape_is_refused_before_any_of_it_is_written(
    bundle: Path, tmp_path: Path, rows: int
) -> None:
    twice = through(helper.make_node("Concat", ["given", "given"], ["made"], axis=0))
    path = graph("twice", twice, "", "decoder.onnx").build(bundle, tmp_path)
    model = load(path, provider="cpu", threads=1)
    out = np.full((rows + 2 * MAX_ROWS_A_THREAD, 64), 7, np.float32)
    message = r"decoder\.onnx does not fit its manifest: loc_img must have shape \(256, 64\), got \(512, 64\)"
    with pytest.raises(BundleError, match=message):
        model.decode(np.zeros((rows, 5), np.float32), out=out[:rows])
    assert (out == 7).all()


def test_an_error_in_one_part_names_provider_and_file(
    single: Model, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = np.zeros((ROWS, 5), np.float32)
    expected = single.decode(z)

    def out_of_memory(*_args: object) -> None:
        raise RuntimeError("out of memory")

    two = load(bundle, provider="cpu", threads=2)
    two.decode(z)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", out_of_memory)
    np.testing.assert_array_equal(single.decode(z), expected)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", out_of_memory)
    for model in (single, two):
        with pytest.raises(EdgeVAEError, match=r"^cpu failed in decoder\.onnx: out of memory$"):
            model.decode(z)


@pytest.mark.parametrize("who", ["the caller", "a helper"])
def test_an_error_in_one_part_is_raised_after_all_parts_have_ended(who: str) -> None:
    workers, together, done = Workers(2), threading.Barrier(2), []
    caller = threading.get_ident()

    def work(part: int) -> None:
        if part < 2:
            together.wait(30)
        if part < 2 and (threading.get_ident() == caller) == (who == "the caller"):
            raise ValueError("broken")
        done.append(part)

    with pytest.raises(ValueError, match="broken"):
        workers.run(work, range(1000))
    count = len(done)
    workers.run(done.append, range(3))
    assert len(done) == count + 3
    workers.close()


def test_workers_run_each_part_once_even_when_closed() -> None:
    workers = Workers(3)
    for _ in range(2):
        done: list[int] = []
        workers.run(done.append, range(100))
        assert sorted(done) == list(range(100))
        workers.close()


def test_where_the_system_has_no_more_threads_the_caller_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    workers, done = Workers(4), list[int]()
    monkeypatch.setattr(threading.Thread, "start", refused)
    workers.run(done.append, range(10))
    assert done == list(range(10))
    monkeypatch.undo()
    workers.run(done.append, range(10))
    assert len(done) == 20


def test_a_call_does_not_wait_for_threads_that_are_busy_with_another() -> None:
    workers, busy, free = Workers(2), threading.Barrier(3), threading.Event()

    def block(_part: int) -> None:
        busy.wait(30)
        free.wait(30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(workers.run, block, range(2))
        busy.wait(30)
        done: list[int] = []
        workers.run(done.append, range(5))
        assert done == list(range(5))
        free.set()
        first.result(30)
    workers.close()
