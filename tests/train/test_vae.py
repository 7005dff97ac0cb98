"""The model, held against the equations and against Pyro's VAE example."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgevae.train import VAE, Dataset, Decoder, Encoder, ModelConfig


@pytest.fixture(autouse=True)
def _own_parameter_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        yield


def distribution(node: Any) -> Any:
    return node["fn"]


def value(trace: Any, site: str) -> Tensor:
    found = trace.nodes[site]["value"]
    assert isinstance(found, Tensor)
    return found


def test_the_parameters_have_the_names_and_shapes_of_pyros_example() -> None:
    vae = VAE(ModelConfig((1, 28, 28)))
    assert {name: tuple(parameter.shape) for name, parameter in vae.named_parameters()} == {
        "encoder.fc1.weight": (400, 784),
        "encoder.fc1.bias": (400,),
        "encoder.fc21.weight": (50, 400),
        "encoder.fc21.bias": (50,),
        "encoder.fc22.weight": (50, 400),
        "encoder.fc22.bias": (50,),
        "decoder.fc1.weight": (400, 50),
        "decoder.fc1.bias": (400,),
        "decoder.fc21.weight": (784, 400),
        "decoder.fc21.bias": (784,),
    }


def test_the_networks_compute_the_references_equations() -> None:
    encoder, decoder = Encoder(3, 7, (11,)), Decoder(3, 7, (11,))
    x, z = torch.rand(4, 11), torch.randn(4, 3)

    def hidden(layer: nn.Linear, value: Tensor) -> Tensor:
        return torch.log1p(torch.exp(value @ layer.weight.T + layer.bias))

    z_loc, z_scale = encoder(x)
    h = hidden(encoder.fc1, x)
    torch.testing.assert_close(z_loc, h @ encoder.fc21.weight.T + encoder.fc21.bias)
    torch.testing.assert_close(z_scale, torch.exp(h @ encoder.fc22.weight.T + encoder.fc22.bias))
    logits = hidden(decoder.fc1, z) @ decoder.fc21.weight.T + decoder.fc21.bias
    torch.testing.assert_close(decoder(z), 1 / (1 + torch.exp(-logits)))


def test_model_and_guide_have_the_sites_of_the_pattern(vae: VAE, digits: Dataset) -> None:
    x = digits.train[:6]
    model = poutine.trace(vae.model).get_trace(x)
    guide = poutine.trace(vae.guide).get_trace(x)
    assert [name for name in model.stochastic_nodes if name != "data"] == ["latent"]
    assert model.observation_nodes == ["obs"]
    assert [name for name in guide.stochastic_nodes if name != "data"] == ["latent"]
    model.compute_log_prob()
    for site in ("latent", "obs"):
        node = model.nodes[site]
        assert node["log_prob"].shape == (6,)  # one term an image: .to_event(1)
        assert distribution(node).event_dim == 1
        assert [frame.name for frame in node["cond_indep_stack"]] == ["data"]
    assert isinstance(distribution(model.nodes["obs"]).base_dist, dist.Bernoulli)
    assert {"encoder$$$fc1.weight", "encoder$$$fc22.bias"} <= set(guide.param_nodes)
    assert {"decoder$$$fc1.weight", "decoder$$$fc21.bias"} <= set(model.param_nodes)


def test_the_log_probabilities_are_those_of_the_equations(vae: VAE, digits: Dataset) -> None:
    x = digits.train[:6]
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x)
    model.compute_log_prob()
    guide.compute_log_prob()
    z = value(guide, "latent")
    z_loc, z_scale = vae.encoder(x)
    loc_img, flat = vae.decoder(z), x.flatten(1)
    log_pz = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1)
    log_qz_x = (-0.5 * ((z - z_loc) / z_scale) ** 2 - z_scale.log() - 0.5 * math.log(2 * math.pi)).sum(1)
    log_px_z = (flat * loc_img.log() + (1 - flat) * (1 - loc_img).log()).sum(1)
    torch.testing.assert_close(model.nodes["latent"]["log_prob"], log_pz)
    torch.testing.assert_close(guide.nodes["latent"]["log_prob"], log_qz_x)
    torch.testing.assert_close(model.nodes["obs"]["log_prob"], log_px_z, rtol=1e-4, atol=1e-4)


def test_reconstruct_img_decodes_a_draw_of_the_guide(vae: VAE, digits: Dataset) -> None:
    x = digits.test[:6]
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        found = vae.reconstruct_img(x)
        torch.manual_seed(5)
        z_loc, z_scale = vae.encoder(x)
        expected = vae.decoder(z_loc + z_scale * torch.randn(6, 5))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("data_shape", [(1, 5, 7), (3, 4, 4), (13,)])
def test_sizes_come_from_the_data(data_shape: tuple[int, ...]) -> None:
    vae = VAE(ModelConfig(data_shape, z_dim=2, hidden_dim=3))
    x = torch.rand(4, *data_shape)
    assert vae.reconstruct_img(x).shape == (4, math.prod(data_shape))
    assert value(poutine.trace(vae.model).get_trace(x), "obs").shape == (4, math.prod(data_shape))


def test_images_of_another_size_are_refused_and_not_reshaped(vae: VAE) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vae.encoder(torch.rand(2, 1, 16, 8))  # 2 x 128 values could be read as 4 x 64


def test_training_scores_logits_and_evaluation_the_parameters_that_a_bundle_has() -> None:
    vae = VAE(ModelConfig((1,), z_dim=1, hidden_dim=2))
    with pyro.get_param_store().scope(), torch.no_grad():
        vae.decoder.fc21.bias.fill_(-60)  # type: ignore[union-attr,operator]  # it is a layer of the reference
        for training, expected in ((True, -60.0), (False, -15.94)):
            trace = poutine.trace(vae.train(training).model).get_trace(torch.ones(1, 1))
            trace.compute_log_prob()
            assert float(trace.nodes["obs"]["log_prob"]) == pytest.approx(expected, rel=0.05)


def test_model_and_guide_stay_on_one_device() -> None:
    # Simulated CUDA tensors: an operation that mixes devices raises, as it would on a GPU.
    with FakeTensorMode(), torch.device("cuda"), pyro.validation_enabled(False):  # validation reads values
        vae = VAE(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=16))
        x = torch.rand(6, 1, 8, 8)
        guide = poutine.trace(vae.guide).get_trace(x)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x)
        reconstruction = vae.reconstruct_img(x)
    assert reconstruction.device.type == "cuda"
    for trace in (guide, model):
        for name in ("latent", "obs"):
            if name in trace.nodes:
                assert value(trace, name).device.type == "cuda"
