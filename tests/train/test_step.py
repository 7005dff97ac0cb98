"""One step of the fit: Pyro's own, in fewer operations, and nothing waits for the device."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from edgevae.train import LIKELIHOODS, VAE, Dataset, ModelConfig, Precision, TrainingConfig
from edgevae.train.objective import DeviceELBO, ScaleLatent
from edgevae.train.trainer import Step, rows_on

CHOICES: list[dict[str, Any]] = [
    *({"likelihood": name} for name in LIKELIHOODS),
    {"latent": "hierarchical", "upper_dims": (2,)},
    {"latent": "mixture", "components": 3},
]


def small(**choices: Any) -> VAE:
    return VAE(ModelConfig((1, 8, 8), z_dim=4, hidden_dim=12, **choices))


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize(("beta", "num_particles"), [(1.0, 1), (3.0, 2)])
def test_fifty_steps_have_the_losses_of_pyros(
    digits: Dataset, choices: dict[str, Any], beta: float, num_particles: int
) -> None:
    images = digits.train[:1250].split(25)
    latent = ScaleLatent(beta)
    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        vae = small(**choices).eval()  # Pyro's example: the likelihood takes the parameters
        model: Any = vae.model
        elbo: Any = Trace_ELBO(num_particles)
        if vae.latent.enumerated:
            model, elbo = config_enumerate(model), TraceEnum_ELBO(num_particles, max_plate_nesting=1)
        svi = SVI(latent(model), latent(vae.guide), Adam({"lr": 1e-2}), elbo)
        expected = torch.tensor([svi.step(x) for x in images])
    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        step = Step(small(**choices), TrainingConfig(learning_rate=1e-2, beta=beta, num_particles=num_particles))
        losses = torch.stack([step(x) for x in images])
    assert len(losses) == 50
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


class Watching(Messenger):
    """Notes in which dtypes the sites are that densities are taken of, but for a mixture's component."""

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        super().__init__()
        self._dtypes = dtypes

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["value"].is_floating_point():
            self._dtypes |= {msg["value"].dtype, msg["fn"].mean.dtype, msg["fn"].log_prob(msg["value"]).dtype}


@pytest.mark.parametrize("choices", [*CHOICES, {"architecture": "conv"}], ids=str)
def test_steps_in_bfloat16_have_networks_in_it_densities_in_float32_and_nearly_the_same_losses(
    digits: Dataset, choices: dict[str, Any]
) -> None:
    losses: list[Tensor] = []
    dtypes: set[torch.dtype] = set()
    scored: set[torch.dtype] = set()
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        with pyro.get_param_store().scope(), torch.random.fork_rng([]):
            torch.manual_seed(0)
            vae = small(**choices)
            step = Step(vae, TrainingConfig(learning_rate=1e-2, precision=precision))
            vae.encoder.fc21.register_forward_hook(lambda _module, _given, found: dtypes.add(found.dtype))
            with Watching(scored):
                step(digits.train[:25])
            losses.append(torch.stack([step(x) for x in digits.train[:500].split(25)]))
            assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert dtypes == {torch.float32, torch.bfloat16}
    assert scored == {torch.float32}
    assert {each.dtype for each in losses} == {torch.float32}
    assert not torch.equal(losses[1], losses[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Pyro's compiled ELBO stands on it
def test_a_step_registers_parameters_with_pyro_where_they_are_looked_for(digits: Dataset, jit: bool) -> None:
    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        Step(small(), TrainingConfig(jit=jit))(digits.train[:25])
        registered = {name.partition("$$$")[0] for name in pyro.get_param_store()}
    assert registered == ({"encoder", "decoder"} if jit else set())


class Naming(Messenger):
    """Notes the names of the sites."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        self.names.add(msg["name"])


@pytest.mark.parametrize("choices", [{}, {"latent": "hierarchical", "upper_dims": (2,)}], ids=str)
def test_a_step_draws_no_indices_as_the_model_and_the_guide_do(digits: Dataset, choices: dict[str, Any]) -> None:
    vae, x = small(**choices), digits.train[:25]
    for statements in (vae.model, vae.guide):
        with pyro.get_param_store().scope(), Naming() as of_pyro:
            statements(x)
        assert "data" in of_pyro.names
    with Naming() as of_step:
        Step(vae, TrainingConfig())(x)
    assert {"latent", "obs"} <= of_step.names
    assert "data" not in of_step.names


def test_a_step_makes_no_probabilities_where_it_scores_logits(monkeypatch: pytest.MonkeyPatch, digits: Dataset) -> None:
    def refuse(*_args: Any) -> None:
        raise AssertionError

    step = Step(small(), TrainingConfig())
    monkeypatch.setattr(LIKELIHOODS["bernoulli"], "parameters_of", refuse)
    assert float(step(digits.train[:25])) > 0


def test_a_guide_that_cannot_be_differentiated_through_has_pyros_gradient() -> None:
    logit = torch.zeros(3, requires_grad=True)

    def guide() -> None:
        pyro.sample("c", dist.Bernoulli(logits=logit).to_event(1))

    def model() -> None:
        pyro.sample("c", dist.Bernoulli(torch.tensor([0.1, 0.5, 0.8])).to_event(1))

    gradients: list[Tensor] = []
    for elbo in (Trace_ELBO(4), DeviceELBO(4)):
        total_loss: Any = elbo.differentiable_loss
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            gradients += torch.autograd.grad(total_loss(model, guide), logit)
    assert float(gradients[0].abs().min()) > 0
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("choices", [*CHOICES[:-1], {"architecture": "conv"}], ids=str)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_step_on_a_gpu_mixes_no_devices_and_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any], num_classes: int
) -> None:
    # Simulated CUDA tensors have no values: to ask one for its own, which would wait for a GPU, is an error.
    with FakeTensorMode(), torch.device("cuda"), pyro.validation_enabled(False), pyro.get_param_store().scope():
        vae = small(num_classes=num_classes, **choices)

        def backward(_loss: Tensor) -> None:  # PyTorch's own engine asks for a true device
            for parameter in vae.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        step = Step(vae, TrainingConfig(num_particles=2))
        step.validated = True  # the first step reads values, to validate them
        y = torch.zeros(6, dtype=torch.int64) if num_classes else None
        loss = step(torch.rand(6, 1, 8, 8), y)
        assert loss.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            float(loss)


@pytest.mark.parametrize("labels", [None, torch.arange(7)])
def test_rows_come_with_their_labels_and_on_the_device(labels: Tensor | None) -> None:
    images, indices = torch.arange(7.0).reshape(7, 1), torch.tensor([3, 1, 6])
    x, y = rows_on(torch.device("cpu"), images, labels, indices)
    assert x.flatten().tolist() == [3, 1, 6]
    assert y is None if labels is None else y is not None and y.tolist() == [3, 1, 6]
    x, y = rows_on(torch.device("meta"), images, labels, indices)
    assert x.device.type == "meta"
    assert y is None or y.device.type == "meta"
