"""Weights trained elsewhere, with Pyro's own VAE example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from edgevae.export import StateDictError, load_state_dict


class PyroExampleVAE(nn.Module):
    """The module structure of Pyro's example, written out here a second time as an outsider would have it."""

    def __init__(self, z_dim: int = 6, hidden_dim: int = 9, data_dim: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.fc1 = nn.Linear(data_dim, hidden_dim)
        self.encoder.fc21 = nn.Linear(hidden_dim, z_dim)
        self.encoder.fc22 = nn.Linear(hidden_dim, z_dim)
        self.decoder = nn.Module()
        self.decoder.fc1 = nn.Linear(z_dim, hidden_dim)
        self.decoder.fc21 = nn.Linear(hidden_dim, data_dim)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(PyroExampleVAE().state_dict())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_sizes_and_weights_are_taken_from_the_file(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"vae{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, path)
    vae = load_state_dict(path)
    assert (vae.config.data_shape, vae.config.z_dim, vae.config.hidden_dim) == ((1, 4, 4), 6, 9)
    for name, tensor in state.items():
        assert torch.equal(vae.state_dict()[name], tensor)


def test_a_row_whose_size_is_not_a_square_stays_a_row_unless_a_shape_is_given(tmp_path: Path) -> None:
    path = tmp_path / "vae.pt"
    torch.save(PyroExampleVAE(data_dim=15).state_dict(), path)
    assert load_state_dict(path).config.data_shape == (15,)
    assert load_state_dict(path, (1, 3, 5)).config.data_shape == (1, 3, 5)
    with pytest.raises(StateDictError, match=r"observations of 15 values, got data_shape \(1, 4, 4\)"):
        load_state_dict(path, (1, 4, 4))


def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["encoder.fc22.bias"], state["decoder.fc1.weight"]
    state["classifier.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "vae.pt")
    with pytest.raises(
        StateDictError, match=r"missing decoder\.fc1\.weight, encoder\.fc22\.bias; not expected classifier\.weight"
    ):
        load_state_dict(tmp_path / "vae.pt")


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["decoder.fc1.weight"] = torch.zeros(9, 7)
    torch.save(state, tmp_path / "vae.pt")
    with pytest.raises(StateDictError, match=r"decoder\.fc1\.weight must have shape \(9, 6\) .* got \(9, 7\)"):
        load_state_dict(tmp_path / "vae.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["decoder.fc1.bias"] = torch.full((9,), float("nan"))
    torch.save(state, tmp_path / "vae.pt")
    with pytest.raises(StateDictError, match=r"decoder\.fc1\.bias holds NaN"):
        load_state_dict(tmp_path / "vae.pt")


def test_a_pickled_module_is_refused_and_not_executed(tmp_path: Path) -> None:
    torch.save(PyroExampleVAE(), tmp_path / "vae.pt")
    with pytest.raises(StateDictError, match="cannot be read as a state_dict"):
        load_state_dict(tmp_path / "vae.pt")


@pytest.mark.parametrize("name", ["vae.pt", "vae.safetensors"])
def test_nonsense_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(StateDictError, match="cannot be read as a state_dict"):
        load_state_dict(tmp_path / name)


def test_a_file_with_other_content_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "vae.pt")
    with pytest.raises(StateDictError, match="must hold names and dense float tensors"):
        load_state_dict(tmp_path / "vae.pt")


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, "checkpoint with a state_dict inside; save checkpoint"),
        (lambda state: {"params": state, "constraints": {}}, "is Pyro's parameter store; save the module instead"),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, "of a wrapped model"),
        (lambda state: dict(enumerate(state.values())), "must hold names and dense float tensors"),
        (lambda state: {name: tensor.int() for name, tensor in state.items()}, "dense float tensors"),
        (lambda state: {name: tensor.to(torch.complex64) for name, tensor in state.items()}, "dense float tensors"),
    ],
)
def test_files_that_hold_the_weights_in_another_form_are_refused_with_the_way_out(
    tmp_path: Path, state: dict[str, Tensor], wrap: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    torch.save(wrap(state), tmp_path / "vae.pt")
    with pytest.raises(StateDictError, match=message):
        load_state_dict(tmp_path / "vae.pt")
