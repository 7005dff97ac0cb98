"""How large a graph's values become is known for networks of all kinds, before any is computed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from edgevae import check_graph


class Network(nn.Module):
    """A function of a batch of 1 x 8 x 8, with layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.function(x, *self.layers)
        return output


NETWORKS = {
    "shaped by the batch's size": Network(
        lambda x, up: up(x.view(x.shape[0], 4, 4, 4)).reshape(x.size(0), -1), nn.ConvTranspose2d(4, 2, 4, 2, 1)
    ),
    "zeros of the batch's size": Network(lambda x: torch.cat([x.flatten(1), torch.zeros(x.shape[0], 3)], 1)),
    "weights repeated for each row": Network(
        lambda x, table: table.weight[None].expand(x.shape[0], -1, -1).flatten(1) + x.flatten(1)[:, :1],
        nn.Embedding(4, 4),
    ),
    "enlarged": Network(
        lambda x, conv: conv(functional.interpolate(x, scale_factor=2.0)).mean((2, 3)), nn.Conv2d(1, 4, 3)
    ),
    "attentive": Network(
        lambda x, layer: layer(x[:, 0]).flatten(1), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_kinds_pass(name: str) -> None:
    x = torch.rand(3, 1, 8, 8)
    traced = torch.export.export(NETWORKS[name].eval(), (x,), dynamic_shapes=({0: Dim("batch")},))
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        program = torch.onnx.export(
            traced, dynamo=True, external_data=False, opset_version=20, optimize=False, verbose=False
        )
    assert program is not None
    versions = check_graph(program.model_proto.SerializeToString(), "network.onnx")
    assert versions.opset == 20
