"""Providers: the one asked for or an error that says why not; the doctor; the default number of threads."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import edgevae
from edgevae import EdgeVAEError, InputError, InstallError, ProviderError, load
from edgevae import doctor as _doctor
from edgevae import providers as _providers
from edgevae import session as _session
from edgevae.doctor import diagnose
from edgevae.providers import usable_cpus

HAS_CUDA_WHEEL = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
HAS_CUDA_DEVICE = _providers.cuda_device_count() > 0


class OnTheCPU(onnxruntime.InferenceSession):  # type: ignore[misc]  # ONNX Runtime has no types
    """A session on the CPU, whatever it was asked for: as ONNX Runtime's own, when it cannot load a provider."""

    def __init__(self, graph: bytes, options: object, **_choices: object) -> None:
        super().__init__(graph, options, providers=["CPUExecutionProvider"])


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    _providers.import_onnxruntime.cache_clear()
    yield
    _providers.import_onnxruntime.cache_clear()


@pytest.mark.skipif(not HAS_CUDA_WHEEL, reason="needs the wheel onnxruntime-gpu")
@pytest.mark.skipif(HAS_CUDA_DEVICE, reason="needs a machine without a CUDA device")
def test_cuda_without_a_device_is_an_error_and_silent_on_the_terminal(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProviderError, match="there is no CUDA device, or NVIDIA's driver is not installed; or choose"):
        load(bundle, provider="cuda")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not HAS_CUDA_WHEEL, reason="needs the wheel onnxruntime-gpu")
@pytest.mark.skipif(HAS_CUDA_DEVICE, reason="needs a machine without a CUDA device")
def test_cuda_that_is_listed_but_cannot_be_loaded_is_an_error_and_silent_on_the_terminal(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # As on a machine with a driver but without the CUDA libraries: ONNX Runtime tries, fails, and takes the CPU.
    monkeypatch.setattr(_providers, "cuda_device_count", lambda: 1)
    with pytest.raises(ProviderError, match=r"lists CUDA but could not load it.*onnxruntime-gpu\[cuda,cudnn\]"):
        load(bundle, provider="cuda")
    assert load(bundle, provider="auto").provider == "cpu"
    assert capfd.readouterr() == ("", "")


def test_cuda_with_the_cpu_wheel_is_an_error_that_names_the_packages(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        ProviderError, match=r"built without CUDA, it has cpu; pip uninstall onnxruntime, then pip install .*gpu"
    ):
        load(bundle, provider="cuda")


@pytest.mark.skipif(HAS_CUDA_DEVICE, reason="needs a machine without a CUDA device")
def test_auto_takes_the_cpu_where_cuda_does_not_work_and_says_so(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert load(bundle).provider == "cpu"
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_CUDA_WHEEL and HAS_CUDA_DEVICE), reason="needs onnxruntime-gpu and a CUDA device")
def test_cuda_is_taken_where_it_works_and_gives_pyros_numbers(bundle: Path) -> None:
    for provider in ("auto", "cuda"):
        model = load(bundle, provider=provider)
        assert model.provider == "cuda"
        assert model.verify().passed


def test_a_session_that_fell_back_to_another_provider_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar(OnTheCPU):
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(_providers, "obstacle_of", lambda _onnxruntime, _name: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Liar)
    with pytest.raises(ProviderError, match="could not load it"):
        load(bundle, provider="cuda")
    with pytest.raises(ProviderError, match=r"'xnnpack' does not work here: .*lists Xnnpack but could not load it"):
        load(bundle, providers=["XnnpackExecutionProvider", "CPUExecutionProvider"])


class Assigned:
    """What ONNX Runtime says of a part of a graph."""

    def __init__(self, ep_name: str) -> None:
        self.ep_name = ep_name


@pytest.mark.parametrize(("runs_on", "refused"), [("CPUExecutionProvider", True), ("XnnpackExecutionProvider", False)])
def test_a_provider_that_runs_none_of_the_nodes_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, runs_on: str, refused: bool
) -> None:
    class Elsewhere(OnTheCPU):
        def get_providers(self) -> list[str]:
            return ["XnnpackExecutionProvider", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Assigned]:
            return [Assigned("CPUExecutionProvider"), Assigned(runs_on)]

    monkeypatch.setattr(_providers, "obstacle_of", lambda _onnxruntime, _name: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Elsewhere)
    if refused:
        with pytest.raises(
            ProviderError, match=r"'xnnpack' runs nothing of reconstruct\.onnx: .*choose provider='cpu'"
        ):
            load(bundle, provider="xnnpack")
    else:
        assert load(bundle, provider="xnnpack").provider == "xnnpack"


@pytest.mark.parametrize(
    ("provider", "remedy"),
    [
        ("openvino", "built without OpenVINO, it has .*cpu; pip uninstall onnxruntime, .*onnxruntime-openvino"),
        ("coreml", "built without CoreML, .*it comes with onnxruntime on macOS"),
        ("xnnpack", "built without Xnnpack, .*it needs a build of ONNX Runtime that has it"),
    ],
)
def test_any_provider_can_be_named_and_one_that_is_not_there_says_what_to_install(
    bundle: Path, provider: str, remedy: str
) -> None:
    with pytest.raises(ProviderError, match=f"provider '{provider}' does not work here: .*{remedy}; or choose"):
        load(bundle, provider=provider)


def test_a_providers_own_complaint_is_passed_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(OnTheCPU):
        def __init__(self, graph: bytes, options: object, providers: list[str], **_choices: object) -> None:
            if providers[0] != "CPUExecutionProvider":
                raise RuntimeError("device_type FOO is not supported")
            super().__init__(graph, options)

    monkeypatch.setattr(_providers, "obstacle_of", lambda _onnxruntime, _name: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Strict)
    with pytest.raises(ProviderError, match=r"'openvino' does not work here: .*says: device_type FOO is not supported"):
        load(bundle, providers=[("OpenVINOExecutionProvider", {"device_type": "FOO"})])


def test_threads_stop_waiting_for_work_when_a_call_is_over(bundle: Path) -> None:
    model = load(bundle, provider="cpu", threads=2)
    x = np.random.default_rng(0).random((1024, 64), np.float32)
    model.reconstruct(x)
    start = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - start < 0.02


def test_providers_and_options_in_onnx_runtimes_own_words_are_used(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 3
    given: list[dict[str, object]] = []
    used: list[int] = []

    class Watched(OnTheCPU):
        def __init__(self, graph: bytes, options: object, **choices: object) -> None:
            given.append(choices)
            super().__init__(graph, options)
            if "provider_options" in choices:
                used.append(self.get_session_options().intra_op_num_threads)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Watched)
    model = load(bundle, providers=[("CPUExecutionProvider", {"use_arena": "0"})], session_options=options)
    assert model.provider == "cpu"
    assert used == [3]
    with_options = [choices for choices in given if "provider_options" in choices]
    asked = {"providers": ["CPUExecutionProvider"], "provider_options": [{"use_arena": "0"}], "enable_fallback": 0}
    assert with_options == [asked]


def test_a_model_with_session_options_says_why_it_does_not_pickle(bundle: Path) -> None:
    model = load(bundle, provider="cpu", session_options=onnxruntime.SessionOptions())
    with pytest.raises(EdgeVAEError, match="loaded with session_options does not pickle"):
        pickle.dumps(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"provider": "cpu", "providers": ["CPUExecutionProvider"]}, "provider 'cpu' and providers were both given"),
        ({"providers": []}, "providers must be a list of at least one of ONNX Runtime's names, got .."),
        ({"providers": "CPUExecutionProvider"}, "providers must be a list"),
        ({"providers": ["cpu"]}, "providers must be ONNX Runtime's, .*; got 'cpu'"),
        ({"session_options": {}}, "must be an onnxruntime.SessionOptions, got dict"),
        ({"session_options": onnxruntime.SessionOptions(), "threads": 1}, "set session_options.intra_op_num_threads"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(bundle: Path, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(bundle, **arguments)


def test_a_missing_onnx_runtime_is_an_error_that_names_the_packages(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InstallError, match=r"not installed; pip install 'edgevae\[cpu\]' \(package onnxruntime\)"):
        load(bundle)


def test_an_onnx_runtime_that_cannot_be_loaded_is_an_error_with_the_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libstdc++.so.6: version not found')")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InstallError, match=r"installed but cannot be loaded: libstdc\+\+"):
        load(bundle)


def test_two_wheels_at_once_are_a_warning_that_names_them(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wheel in ("onnxruntime-1.20.0", "onnxruntime_gpu-1.20.0", "onnxruntime_extensions-0.13.0"):
        (tmp_path / f"{wheel}.dist-info").mkdir()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    with pytest.warns(RuntimeWarning, match="onnxruntime and onnxruntime-gpu are both installed and overwrite"):
        load(bundle, provider="cpu")


def test_auto_chooses_once_for_all_graphs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda(OnTheCPU):
        """A session that says it has CUDA."""

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr(_providers, "obstacle_of", lambda _onnxruntime, _name: None)
    monkeypatch.setattr(_providers, "check_runs", lambda *_arguments: None)
    monkeypatch.setattr(_session, "check_runs", lambda *_arguments: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Cuda)
    model = load(bundle)
    assert model.provider == "cuda"
    monkeypatch.setattr(_providers, "obstacle_of", lambda _onnxruntime, _name: "its memory is full")
    with pytest.raises(ProviderError, match="its memory is full"):
        model.generate(1, seed=0)


def test_auto_takes_the_cpu_where_cuda_would_run_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(OnTheCPU):
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def nothing_runs(_session: object, provider: str, file: str) -> None:
        if provider == "cuda":
            raise ProviderError(f"provider 'cuda' runs nothing of {file}")

    monkeypatch.setattr(_providers, "obstacle_of", lambda _onnxruntime, _name: None)
    monkeypatch.setattr(_session, "check_runs", nothing_runs)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Idle)
    assert load(bundle).provider == "cpu"
    with pytest.raises(ProviderError, match="runs nothing"):
        load(bundle, provider="cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"provider": ["CPUExecutionProvider"]}, "provider must be a name like cpu or cuda, got list"),
        ({"precision": ["fp16"]}, "precision must be fp32, fp16 or int8, got list"),
        ({"providers": 5}, "providers must be a list of at least one"),
        ({"providers": [None]}, "providers must be names, or pairs of a name and a dict"),
        ({"providers": [("CPUExecutionProvider",)]}, "providers must be names, or pairs"),
        ({"providers": [("CPUExecutionProvider", None)]}, "providers must be names, or pairs"),
        ({"providers": [(["CPUExecutionProvider"], {})]}, "providers must be ONNX Runtime's"),
        ({"path": 5}, "path must be that of a bundle's folder, got int"),
    ],
)
def test_invalid_arguments_of_load_are_refused_by_name(bundle: Path, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        load(**{"path": bundle, **arguments})


# The doctor


def not_installed(package: str) -> str:
    raise importlib.metadata.PackageNotFoundError(package)


def test_the_doctor_tests_each_provider() -> None:
    found = diagnose()
    checks = {check.name: check for check in found.providers}
    assert checks["cpu"].works
    assert checks["cpu"].obstacle == ""
    if _providers.cuda_device_count() == 0:
        assert not checks["cuda"].works
        assert checks["cuda"].obstacle
        assert "does not work here" not in checks["cuda"].obstacle
    assert found.problems == ()
    assert found.versions["numpy"] == np.__version__
    assert onnxruntime.__version__ in found.wheels.values()
    assert 1 <= found.threads <= found.cpus


def test_the_probe_is_a_valid_graph_whose_answer_tells_right_from_wrong() -> None:
    graph = onnx.load_from_string(_doctor.PROBE)
    onnx.checker.check_model(graph, full_check=True)
    (expected,) = ReferenceEvaluator(graph).run(None, {"x": _doctor.PROBE_INPUT})
    np.testing.assert_array_equal(expected, [[0, 2]])


def test_a_provider_with_wrong_numbers_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(onnxruntime.InferenceSession):  # type: ignore[misc]  # ONNX Runtime has no types
        def run(self, *_arguments: object) -> list[object]:
            return [np.array([[0, 1.5]], np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    found = diagnose()
    (cpu,) = [check for check in found.providers if check.name == "cpu"]
    assert not cpu.works
    assert cpu.obstacle == "it computes wrong numbers: [[0.0, 1.5]]"
    assert found.problems == ("cpu: it computes wrong numbers: [[0.0, 1.5]]",)


def test_a_provider_that_fails_while_it_runs_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(onnxruntime.InferenceSession):  # type: ignore[misc]  # ONNX Runtime has no types
        def run(self, *_arguments: object) -> list[object]:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Failing)
    assert {check.obstacle for check in diagnose().providers if check.name == "cpu"} == {"it fails: out of memory"}


def test_without_onnx_runtime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    found = diagnose()
    assert found.providers == ()
    assert found.versions == {"edgevae": edgevae.__version__}
    assert found.wheels == {}
    assert found.problems[0].startswith("ONNX Runtime is not installed; pip install 'edgevae[cpu]'")
    assert found.problems[1] == "pictures need Pillow; pip install pillow"


def test_wheels_that_overwrite_each_other_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.0", "pillow": "11"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or not_installed(name))
    found = diagnose()
    assert found.wheels == {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.0"}
    (problem,) = found.problems
    assert problem.startswith("onnxruntime and onnxruntime-gpu overwrite each other; pip uninstall onnxruntime onnx")


# The default number of threads


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cpus(folder: Path, own: str) -> int:
    write(folder / "own", own)
    return usable_cpus(str(folder / "cgroup"), str(folder / "own"))


@pytest.mark.usefixtures("eight_cpus")
def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert usable_cpus(str(tmp_path), str(tmp_path / "missing")) == 8


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 8), ("nonsense", 8), ("5 0", 8)],
)
def test_a_quota_of_version_2_limits_it(tmp_path: Path, limit: str, expected: int) -> None:
    write(tmp_path / "cgroup" / "app" / "cpu.max", limit)
    assert cpus(tmp_path, "0::/app\n") == expected


@pytest.mark.usefixtures("eight_cpus")
def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / "cpu.max", "max 100000")
    write(tmp_path / "cgroup" / "pod" / "cpu.max", "300000 100000")
    write(tmp_path / "cgroup" / "pod" / "app" / "cpu.max", "600000 100000")
    assert cpus(tmp_path, "0::/pod/app\n") == 3


@pytest.mark.usefixtures("eight_cpus")
def test_a_quota_of_version_1_limits_it(tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / "cpu" / "app" / "cpu.cfs_quota_us", "400000\n")
    write(tmp_path / "cgroup" / "cpu" / "app" / "cpu.cfs_period_us", "100000\n")
    assert cpus(tmp_path, "5:memory:/app\n4:cpu,cpuacct:/app\n") == 4
    write(tmp_path / "cgroup" / "cpu" / "app" / "cpu.cfs_quota_us", "-1\n")
    assert cpus(tmp_path, "4:cpu,cpuacct:/app\n") == 8
