"""The architectures: any size of image, one device."""

from __future__ import annotations

import dataclasses

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch._subclasses.fake_tensor import FakeTensorMode

from edgevae.train import ARCHITECTURES, LATENTS, LIKELIHOODS, VAE, ConfigError, ModelConfig, objective_of


@settings(max_examples=40, deadline=None)
@given(channels=st.sampled_from([1, 3]), height=st.integers(4, 64), width=st.integers(4, 64), levels=st.integers(2, 3))
def test_the_convolutions_take_images_of_any_size(channels: int, height: int, width: int, levels: int) -> None:
    config = ModelConfig((channels, height, width), 2, 4, "conv", "categorical", levels)
    vae = VAE(config)
    x = torch.rand(2, *config.data_shape)
    z_loc, z_scale = vae.encoder(x)
    assert z_loc.shape == z_scale.shape == (2, 2)
    loc_img, probs = vae.decoder.parameters_at(z_loc)
    assert loc_img.shape == (2, config.data_dim)
    assert probs.shape == (2, config.data_dim, levels)


def test_each_pixel_of_the_convolutions_output_stands_where_it_stood_in_the_image() -> None:
    torch.manual_seed(0)
    vae = VAE(ModelConfig((1, 16, 16), 2, 4, "conv"))
    loc_img = vae.decoder(torch.randn(1, 2, requires_grad=True)).reshape(16, 16)
    (gradient,) = torch.autograd.grad(loc_img[15, 0], vae.decoder.get_parameter("fc2.bias"))
    places = gradient.reshape(64, 2, 2).abs().sum(0)
    assert places[1, 0] > 0  # the lower left corner of the small map makes the lower left of the image
    assert places[0, 1] == 0


def test_flat_images_and_images_mean_the_same() -> None:
    vae = VAE(ModelConfig((3, 9, 8), 2, 4, "conv"))
    x = torch.rand(2, 3, 9, 8)
    torch.testing.assert_close(vae.encoder(x)[0], vae.encoder(x.flatten(1))[0])


@pytest.mark.parametrize("data_shape", [(64,), (1, 3, 8), (8, 8)])
def test_the_convolutions_refuse_what_is_no_image(data_shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="architecture conv needs images"):
        ModelConfig(data_shape, architecture="conv")


@pytest.mark.parametrize("name", ["architecture", "likelihood"])
def test_an_unknown_choice_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be one of .*, got 'other'"):
        VAE(ModelConfig((1, 8, 8), **{name: "other"}))  # type: ignore[arg-type]  # the other fields have defaults


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
@pytest.mark.parametrize("latent", list(LATENTS))
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_model_and_guide_stays_on_one_device(
    architecture: str, likelihood: str, latent: str, num_classes: int
) -> None:
    # Simulated CUDA tensors: an operation that mixes devices raises, as it would on a GPU.
    upper_dims = (3,) if latent == "hierarchical" else ()
    networks = ModelConfig((1, 8, 8), 5, 16, architecture, likelihood, data_loc=0.3, data_scale=0.2)
    config = dataclasses.replace(networks, latent=latent, upper_dims=upper_dims, num_classes=num_classes)
    with FakeTensorMode(), torch.device("cuda"), pyro.validation_enabled(False), pyro.get_param_store().scope():
        vae = VAE(config)
        x = torch.rand(6, 1, 8, 8)
        y = [torch.zeros(6, dtype=torch.int64)] if num_classes else []
        guide = poutine.trace(vae.guide).get_trace(x, *y)
        enumerated = poutine.enum(objective_of(vae)[0], first_available_dim=-2)
        model = poutine.trace(poutine.replay(enumerated, guide)).get_trace(x, *y)
        model.compute_log_prob()
        assert model.nodes["obs"]["log_prob"].device.type == "cuda"
        assert model.nodes["latent"]["log_prob"].device.type == "cuda"
        assert vae.reconstruct_img(x, *y).device.type == "cuda"
