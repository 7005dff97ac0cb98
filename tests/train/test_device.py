"""What a device is good for, before a fit begins on it."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from train import DeviceError, ModelConfig, Trainer, TrainingConfig
from train._device import times_as_long_in_bf16


def test_bfloat16_is_refused_where_it_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train._device.times_as_long_in_bf16", lambda: 1.94)
    with pytest.raises(DeviceError, match=r"products take this CPU 1\.9 times as long in it as in fp32; leave --prec"):
        Trainer(ModelConfig((1, 8, 8)), TrainingConfig(precision="bf16"), torch.device("cpu"))


def test_products_in_bfloat16_are_timed_beside_those_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.mm

    def slower(first: Tensor, second: Tensor) -> Tensor:
        if first.dtype == torch.bfloat16:
            time.sleep(0.1)
        return product(first, second)

    assert times_as_long_in_bf16() > 0
    monkeypatch.setattr(torch, "mm", slower)
    assert times_as_long_in_bf16() > 5
