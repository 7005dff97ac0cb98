"""What a machine is said to be able to run."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import edgevae
from edgevae import doctor as _doctor
from edgevae import providers as _providers
from edgevae.doctor import diagnose


def not_installed(package: str) -> str:
    raise importlib.metadata.PackageNotFoundError(package)


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    _providers.import_onnxruntime.cache_clear()
    yield
    _providers.import_onnxruntime.cache_clear()


def test_the_cpu_works_and_cuda_is_tried_not_believed() -> None:
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
