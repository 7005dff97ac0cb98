"""Providers: the one asked for, or an error that says what stands in its way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest

from runtime import InstallError, ProviderError, _providers, load
from runtime._providers import ProviderChoice

HAS_CUDA_WHEEL = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
HAS_CUDA_DEVICE = _providers._cuda_device_count() > 0


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
    monkeypatch.setattr(_providers, "_cuda_device_count", lambda: 1)
    with pytest.raises(ProviderError, match=r"lists CUDA but could not load it.*onnxruntime-gpu\[cuda,cudnn\]"):
        load(bundle, provider="cuda")
    assert load(bundle, provider="auto").provider == "cpu"
    assert capfd.readouterr() == ("", "")


def test_cuda_with_the_cpu_wheel_is_an_error_that_names_the_packages(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"built without CUDA; pip uninstall onnxruntime, then pip install .*gpu"):
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
    provider: ProviderChoice
    for provider in ("auto", "cuda"):
        model = load(bundle, provider=provider)
        assert model.provider == "cuda"
        assert model.verify().passed


def test_a_session_that_took_another_provider_is_not_believed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar(onnxruntime.InferenceSession):  # type: ignore[misc]  # ONNX Runtime has no types
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(_providers, "_cuda_obstacle", lambda _onnxruntime: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Liar)
    with pytest.raises(ProviderError, match="could not load it"):
        load(bundle, provider="cuda")


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
