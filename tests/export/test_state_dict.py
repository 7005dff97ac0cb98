"""Weights of Pyro's own VAE example, trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgevae.export import REFERENCE_NAMES, StateDictError, read_weights, reference_vae
from edgevae.train import VAE


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


def vae_of(folder: Path, state: object, data_shape: tuple[int, ...] | None = None) -> VAE:
    """Return the VAE of a state_dict that goes through a file."""
    torch.save(state, folder / "vae.pt")
    return reference_vae(read_weights(folder / "vae.pt", REFERENCE_NAMES), data_shape)


def test_the_reference_names_are_those_of_the_example(state: dict[str, Tensor]) -> None:
    assert state.keys() == REFERENCE_NAMES


def test_sizes_and_weights_are_taken_from_the_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    vae = vae_of(tmp_path, state)
    assert (vae.config.data_shape, vae.config.z_dim, vae.config.hidden_dim) == ((1, 4, 4), 6, 9)
    for name, tensor in state.items():
        assert torch.equal(vae.state_dict()[name], tensor)


def test_a_row_whose_size_is_not_a_square_stays_a_row_unless_a_shape_is_given(tmp_path: Path) -> None:
    state = PyroExampleVAE(data_dim=15).state_dict()
    assert vae_of(tmp_path, state).config.data_shape == (15,)
    assert vae_of(tmp_path, state, (1, 3, 5)).config.data_shape == (1, 3, 5)
    with pytest.raises(StateDictError, match=r"observations of 15 values, got shape \(1, 4, 4\)"):
        vae_of(tmp_path, state, (1, 4, 4))


def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["encoder.fc22.bias"], state["decoder.fc1.weight"]
    state["classifier.weight"] = torch.zeros(1)
    with pytest.raises(
        StateDictError, match=r"missing decoder\.fc1\.weight, encoder\.fc22\.bias; not expected classifier\.weight$"
    ):
        vae_of(tmp_path, state)


def test_of_hundreds_of_wrong_names_the_first_are_listed_and_the_rest_are_counted(tmp_path: Path) -> None:
    state = {f"layers.{number:03}.weight": torch.zeros(1) for number in range(300)}
    with pytest.raises(
        StateDictError,
        match=r"missing decoder\.fc1\.bias, decoder\.fc1\.weight, decoder\.fc21\.bias and 7 more; "
        r"not expected layers\.000\.weight, layers\.001\.weight, layers\.002\.weight and 297 more$",
    ) as error:
        vae_of(tmp_path, state)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("decoder.fc1.weight", torch.zeros(9, 7), r"decoder\.fc1\.weight must have shape \(9, 6\) .* got \(9, 7\)"),
        ("encoder.fc1.weight", torch.zeros(9), r"encoder\.fc1\.weight .* must be matrices"),
        ("encoder.fc21.weight", torch.zeros(0, 9), r"encoder\.fc21\.weight must be matrices"),
        (
            "decoder.fc1.bias",
            torch.zeros(9, dtype=torch.int64),
            r"decoder\.fc1\.bias must hold floats, got torch\.int64",
        ),
        ("decoder.fc1.bias", torch.full((9,), float("nan")), r"decoder\.fc1\.bias holds NaN"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, state: dict[str, Tensor], name: str, tensor: Tensor, message: str
) -> None:
    with pytest.raises(StateDictError, match=message):
        vae_of(tmp_path, {**state, name: tensor})
