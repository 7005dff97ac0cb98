"""Training: its steps and epochs, checkpoints, and what it must leave alone."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.util import is_validation_enabled
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from edgevae.train import (
    LIKELIHOODS,
    VAE,
    ConfigError,
    Dataset,
    DatasetError,
    DeviceError,
    DivergedError,
    LabelError,
    ModelConfig,
    Precision,
    RunError,
    Trainer,
    TrainingConfig,
    evaluate_elbo,
    load_dataset,
    objective_of,
)
from edgevae.train.objective import DeviceELBO, ScaleLatent
from edgevae.train.run import Checkpoint, write_whole
from edgevae.train.trainer import Step, rows_on

MODEL = ModelConfig((1, 8, 8), z_dim=4, hidden_dim=12)
CPU = torch.device("cpu")


def trainer(seed: int = 0, jit: bool = False, learning_rate: float = 1e-2) -> Trainer:
    return Trainer(MODEL, TrainingConfig(seed=seed, jit=jit, batch_size=100, learning_rate=learning_rate), CPU)


def weights(vae: VAE) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]).clone()


def test_the_same_seed_gives_the_same_weights_bit_for_bit(digits: Dataset) -> None:
    first, second, other = trainer(1), trainer(1), trainer(2)
    for each in (first, second, other):
        each.fit_epoch(digits.train)
    assert torch.equal(weights(first.vae), weights(second.vae))
    assert not torch.equal(weights(first.vae), weights(other.vae))


def test_an_epoch_is_pyros_own_loop(digits: Dataset) -> None:
    ours = trainer(3)
    loss = ours.fit_epoch(digits.train)

    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        pyro.set_rng_seed(3)
        vae = VAE(MODEL)
        svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
        order = torch.randperm(len(digits.train))
        losses = [svi.step(digits.train[indices]) for indices in order.split(100)]
    assert loss == pytest.approx(sum(losses) / len(digits.train), rel=1e-6)
    torch.testing.assert_close(weights(ours.vae), weights(vae), atol=1e-5, rtol=1e-4)


def test_two_trainings_in_one_process_do_not_touch_each_other(digits: Dataset) -> None:
    alone = trainer(1)
    losses_alone = [alone.fit_epoch(digits.train) for _ in range(3)]

    first, second = trainer(1), trainer(2)
    start = weights(second.vae)
    losses = []
    for _ in range(3):
        losses.append(first.fit_epoch(digits.train))
        second.fit_epoch(digits.train)
    assert losses == losses_alone
    assert torch.equal(weights(first.vae), weights(alone.vae))
    assert not torch.equal(weights(second.vae), start)


def test_training_leaves_the_globals_of_the_process_alone(digits: Dataset) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    each = trainer()
    each.fit_epoch(digits.train)
    evaluate_elbo(each.vae, digits.test)
    assert torch.equal(before, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0


def test_evaluation_leaves_weights_and_training_bit_identical(digits: Dataset) -> None:
    evaluated, plain = trainer(4), trainer(4)
    for _ in range(2):
        evaluated.fit_epoch(digits.train)
        before = weights(evaluated.vae)
        evaluate_elbo(evaluated.vae, digits.test)
        assert torch.equal(weights(evaluated.vae), before)
        plain.fit_epoch(digits.train)
    assert torch.equal(weights(evaluated.vae), weights(plain.vae))


def test_evaluation_is_the_same_each_time_and_of_all_images(digits: Dataset) -> None:
    vae = trainer().vae
    elbo = evaluate_elbo(vae, digits.test)
    assert evaluate_elbo(vae, digits.test) == elbo
    assert elbo == pytest.approx(evaluate_elbo(vae, digits.test, num_particles=20), abs=0.3)
    assert evaluate_elbo(vae, digits.test[:100]) != elbo


def test_training_raises_the_elbo(digits: Dataset) -> None:
    each = trainer()
    before = evaluate_elbo(each.vae, digits.test)
    losses = [each.fit_epoch(digits.train) for _ in range(8)]
    after = evaluate_elbo(each.vae, digits.test)
    assert losses[-1] < losses[0] - 5
    assert after > before + 10
    assert -losses[-1] == pytest.approx(after, abs=2.0)


def test_the_compiled_elbo_gives_the_same_losses_the_smaller_last_batch_included(digits: Dataset) -> None:
    # 1437 images in batches of 100: the last one has 37, and must not be scored with the size of the others.
    plain, compiled = trainer(5), trainer(5, jit=True)
    plain_losses: list[torch.Tensor] = []
    compiled_losses: list[torch.Tensor] = []
    for _ in range(2):
        plain.fit_epoch(digits.train, plain_losses.append)
    for _ in range(2):
        compiled.fit_epoch(digits.train, compiled_losses.append)
    assert len(plain_losses) == 30
    # Compiling draws once more than running does, so the noise differs; the level of the losses must not.
    for epoch in range(2):
        last = 15 * epoch + 14
        assert float(compiled_losses[last]) == pytest.approx(float(plain_losses[last]), rel=0.1)
    assert sum(map(float, compiled_losses)) == pytest.approx(sum(map(float, plain_losses)), rel=0.02)


@pytest.mark.parametrize("choices", [{"latent": "hierarchical", "upper_dims": (2,)}, {"num_classes": 10}])
def test_the_compiled_elbo_serves_hierarchies_and_labels_a_last_batch_of_one_included(choices: dict[str, Any]) -> None:
    digits = load_dataset("digits", labels=True)
    labels = digits.train_labels[:241] if digits.train_labels is not None and "num_classes" in choices else None
    model = dataclasses.replace(MODEL, **choices)
    losses = [
        [each.fit_epoch(digits.train[:241], labels=labels) for _ in range(3)][-1]
        for jit in (False, True)
        for each in [Trainer(model, TrainingConfig(jit=jit, batch_size=120, learning_rate=1e-2), CPU)]
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_mixture_is_not_compiled() -> None:
    # JitTraceEnum_ELBO fails on a batch of one.
    with pytest.raises(ConfigError, match="jit does not go with latent mixture, which is enumerated; drop one"):
        Trainer(dataclasses.replace(MODEL, latent="mixture"), TrainingConfig(jit=True), CPU)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "made for labels y, .* of 10 classes, got none"),
        (torch.zeros(5, dtype=torch.int64), r"labels must be int64 of shape \(12,\), got torch.int64 of \(5,\)"),
        (torch.zeros(12), r"labels must be int64 of shape \(12,\), got torch.float32"),
        (torch.zeros((12, 1), dtype=torch.int64), r"got torch.int64 of \(12, 1\)"),
        (torch.full((12,), 10), "labels must be from 0 to 9, got 10 to 10"),
        (torch.full((12,), -1), "labels must be from 0 to 9, got -1 to -1"),
    ],
)
def test_labels_that_do_not_fit_the_model_are_refused(
    digits: Dataset, labels: torch.Tensor | None, message: str
) -> None:
    conditional = dataclasses.replace(MODEL, num_classes=10)
    with pytest.raises(LabelError, match=message):
        Trainer(conditional, TrainingConfig(), CPU).fit_epoch(digits.train[:12], labels=labels)
    with pytest.raises(LabelError, match=message):
        evaluate_elbo(VAE(conditional), digits.train[:12], labels=labels)


def test_labels_are_checked_in_every_epoch(digits: Dataset) -> None:
    each = Trainer(dataclasses.replace(MODEL, num_classes=10), TrainingConfig(), CPU)
    each.fit_epoch(digits.train[:12], labels=torch.arange(12) % 10)
    with pytest.raises(LabelError, match="labels must be from 0 to 9, got 0 to 11"):
        each.fit_epoch(digits.train[:12], labels=torch.arange(12))


def test_images_out_of_the_likelihoods_range_are_refused(digits: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"must be in \[0, 1\] for this likelihood, got values from 0 to 255"):
        trainer().fit_epoch(digits.train * 255)


@pytest.mark.parametrize("latent", ["normal", "mixture"])
def test_a_model_without_to_event_is_caught_if_batch_and_feature_sizes_agree(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, latent: str
) -> None:
    # 64 images of 64 pixels: every shape broadcasts, and the loss would be a number.
    def forgetful(self: VAE, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        with self.latent.plate("data", len(x)):
            z = self.latent.sample_prior(x)
            pyro.sample("obs", dist.Bernoulli(self.decoder(z), validate_args=False), obs=x.flatten(1))

    monkeypatch.setattr(VAE, "sample_joint", forgetful)
    each = Trainer(dataclasses.replace(MODEL, latent=latent), TrainingConfig(batch_size=64), CPU)
    with pytest.raises(ValueError, match=r"Shape mismatch inside plate|one number a row"):
        each.fit_epoch(digits.train[:128])


def test_only_the_first_step_is_validated_by_pyro(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    sample_joint = VAE.sample_joint

    def watched(vae: VAE, *arguments: Any) -> Any:
        if vae.training:
            seen.append(is_validation_enabled())
        return sample_joint(vae, *arguments)

    monkeypatch.setattr(VAE, "sample_joint", watched)
    trainer().fit_epoch(digits.train[:300])
    assert seen == [True, False, False]


def test_pyros_validation_sees_shapes_left_of_the_batch() -> None:
    def model(size: int) -> None:
        with pyro.plate("data", size):
            pyro.sample("obs", dist.Bernoulli(torch.full((size, size), 0.5)), obs=torch.ones(size, size))

    total_loss: Any = objective_of(VAE(MODEL))[1].loss
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="invalid log_prob shape"):
        total_loss(model, lambda _size: None, 64)


def test_steps_are_reported_and_can_be_stopped(digits: Dataset) -> None:
    losses: list[torch.Tensor] = []
    mean = trainer().fit_epoch(digits.train, losses.append, lambda: len(losses) == 3)
    assert len(losses) == 3
    assert mean == pytest.approx(float(sum(losses)) / 3)


def test_a_nan_loss_ends_the_training(digits: Dataset) -> None:
    with pytest.raises(DivergedError, match=r"the loss became .* at step \d+, learning rate 1e\+06; .* a lower"):
        trainer(learning_rate=1e6).fit_epoch(digits.train)


def test_a_single_nan_loss_within_an_epoch_is_an_error(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, float("inf"), *[1.0] * 13])
    monkeypatch.setattr(Step, "__call__", lambda *_: torch.tensor(next(losses)))
    with pytest.raises(DivergedError, match=r"the loss became inf at step 2, learning rate 0\.01"):
        trainer().fit_epoch(digits.train)


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_the_trainings_choice_and_then_the_processs_again(digits: Dataset, tf32: bool) -> None:
    def allowed() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before, seen = allowed(), []
    each = Trainer(MODEL, TrainingConfig(batch_size=1000, tf32=tf32), CPU)
    each.fit_epoch(digits.train, lambda _loss: seen.append(allowed()))
    assert seen == [(tf32, tf32)] * 2
    assert allowed() == before


@pytest.mark.parametrize(
    ("known", "refused"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bfloat16_is_refused_on_processors_without_instructions_for_it(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, known: dict[str, object], refused: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    config = TrainingConfig(batch_size=1000, precision="bf16")
    if refused:
        with pytest.raises(DeviceError, match="this CPU has no fast bfloat16 instructions"):
            Trainer(MODEL, config, CPU)
        return
    quick, plain = Trainer(MODEL, config, CPU), Trainer(MODEL, TrainingConfig(batch_size=1000), CPU)
    losses = [each.fit_epoch(digits.train) for each in (quick, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] != losses[1]
    assert not torch.is_autocast_enabled("cpu")


def test_images_on_another_device_are_refused(digits: Dataset) -> None:
    with pytest.raises(DatasetError, match="images must be on cpu or on the CPU, got meta"):
        trainer().fit_epoch(digits.train.to("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_from_the_hosts_memory_as_from_its_own(digits: Dataset) -> None:
    device = torch.device("cuda", 0)
    losses = [
        Trainer(MODEL, TrainingConfig(batch_size=100), device).fit_epoch(images)
        for images in (digits.train, digits.train.to(device))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_to_the_same_elbo_as_the_cpu(digits: Dataset) -> None:
    device = torch.device("cuda", 0)
    on_gpu = Trainer(MODEL, TrainingConfig(seed=0, batch_size=100, learning_rate=1e-2), device)
    on_cpu = trainer()
    images = digits.to(device)
    assert torch.equal(weights(on_gpu.vae).cpu(), weights(on_cpu.vae))
    for _ in range(8):
        on_gpu.fit_epoch(images.train)
        on_cpu.fit_epoch(digits.train)
    assert evaluate_elbo(on_gpu.vae, images.test) == pytest.approx(evaluate_elbo(on_cpu.vae, digits.test), abs=1.0)


# One step


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
def test_a_step_registers_parameters_with_pyro(digits: Dataset, jit: bool) -> None:
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
def test_a_step_draws_no_subsample_indices(digits: Dataset, choices: dict[str, Any]) -> None:
    vae, x = small(**choices), digits.train[:25]
    for statements in (vae.model, vae.guide):
        with pyro.get_param_store().scope(), Naming() as of_pyro:
            statements(x)
        assert "data" in of_pyro.names
    with Naming() as of_step:
        Step(vae, TrainingConfig())(x)
    assert {"latent", "obs"} <= of_step.names
    assert "data" not in of_step.names


def test_a_step_that_scores_logits_computes_no_probabilities(monkeypatch: pytest.MonkeyPatch, digits: Dataset) -> None:
    def refuse(*_args: Any) -> None:
        raise AssertionError

    step = Step(small(), TrainingConfig())
    monkeypatch.setattr(LIKELIHOODS["bernoulli"], "distribution", refuse)
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


# Checkpoints


TRAININGS = [
    TrainingConfig(batch_size=100),
    TrainingConfig(batch_size=100, binarize="stochastic", schedule="cosine", epochs=3, lr_warmup=1, clip_norm=50),
    TrainingConfig(batch_size=100, beta=2, beta_warmup=3, free_bits=0.1, num_particles=2),
]


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.checkpoint().tensors)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("steps", [0, 1, 7, 15, 20])
def test_training_resumes_from_a_checkpoint_bit_for_bit(
    digits: Dataset, tmp_path: Path, training: TrainingConfig, steps: int
) -> None:
    whole = Trainer(MODEL, training, CPU)
    losses = [whole.fit_epoch(digits.train) for _ in range(3)]

    first = Trainer(MODEL, training, CPU)
    while first.steps < steps:
        first.fit_epoch(digits.train, should_stop=lambda: first.steps == steps)
    first.checkpoint().write(tmp_path / "checkpoint")
    second = Trainer(MODEL, training, CPU)
    second.restore(Checkpoint.read(tmp_path / "checkpoint"))
    assert (second.steps, second.epoch) == (first.steps, first.epoch)
    last = [second.fit_epoch(digits.train) for _ in range(3 - first.epoch)]

    assert last == losses[first.epoch :]
    assert second.steps == whole.steps
    expected = state(whole)
    assert state(second).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(second).items())


def test_pausing_changes_nothing(digits: Dataset) -> None:
    whole, paused = (Trainer(MODEL, TrainingConfig(batch_size=100), CPU) for _ in range(2))
    loss = whole.fit_epoch(digits.train)
    calls = itertools.count(1)
    while paused.epoch == 0:
        last = paused.fit_epoch(digits.train, should_stop=lambda: next(calls) % 4 == 0)
    assert last == loss
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(paused).items())


def test_an_epoch_ends_with_the_images_that_it_began_with(digits: Dataset) -> None:
    trainer = Trainer(MODEL, TrainingConfig(batch_size=100), CPU)
    trainer.fit_epoch(digits.train, should_stop=lambda: True)
    with pytest.raises(DatasetError, match="began with 1437 images, got 500"):
        trainer.fit_epoch(digits.train[:500])


def test_a_checkpoint_of_another_model_is_refused(digits: Dataset) -> None:
    other = Trainer(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=12), TrainingConfig(), CPU)
    with pytest.raises(RunError, match="does not fit this training"):
        Trainer(MODEL, TrainingConfig(), CPU).restore(other.checkpoint())


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x10" + bytes(7) + b"{}" + bytes(14)])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read"):
        Checkpoint.read(tmp_path / "checkpoint")


def test_on_a_full_disk_the_old_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    Checkpoint({"a": torch.ones(3)}, {"epoch": 1}).write(path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"No space left on device; what it held before is still there.*--resume"):
        Checkpoint({"a": torch.zeros(3)}, {"epoch": 2}).write(path)
    assert Checkpoint.read(path).notes == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="could not be written"):
        write_whole(tmp_path / "taken", b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


# The schedule of the learning rate, and when a training ends


def test_a_constant_rate_stays() -> None:
    config = TrainingConfig(learning_rate=0.01, epochs=10)
    assert [config.learning_rate_at(progress) for progress in (0.01, 5, 10)] == [0.01] * 3


def test_a_warm_up_is_linear_and_a_cosine_ends_at_zero() -> None:
    config = TrainingConfig(learning_rate=0.01, epochs=12, schedule="cosine", lr_warmup=2)
    assert config.learning_rate_at(0.5) == pytest.approx(0.0025)
    assert config.learning_rate_at(2) == pytest.approx(0.01)
    assert config.learning_rate_at(7) == pytest.approx(0.005)  # half of the way down
    assert config.learning_rate_at(12) == pytest.approx(0)


def test_a_plateau_halves_the_rate_after_each_patience_without_improvement() -> None:
    config = TrainingConfig(schedule="plateau", plateau_epochs=2)
    assert [config.halvings_after([-9.0, -8.0, -8.5, *more]) for more in ([], [-8.1], [-8.2, -7.0], [-9.0] * 3)] == [
        0,
        1,
        1,
        2,
    ]
    assert TrainingConfig().halvings_after([-1.0] * 50) == 0
    assert config.learning_rate_at(3, halvings=2) == pytest.approx(0.00025)


def test_training_ends_when_its_patience_runs_out() -> None:
    config = TrainingConfig(patience=2)
    assert not config.is_finished([])
    assert not config.is_finished([-3.0, -2.0, -2.5])
    assert config.is_finished([-3.0, -2.0, -2.5, -2.0])  # as good as before is not better
    assert not TrainingConfig().is_finished([-1.0] * 99)


def test_the_warm_up_rises_in_equal_steps_and_starts_above_zero() -> None:
    config = TrainingConfig(beta=2.0, beta_warmup=4)
    assert [config.beta_at(epoch) for epoch in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert TrainingConfig(beta=2.0).beta_at(1) == 2.0


def test_patience_counts_from_the_first_of_equal_epochs() -> None:
    elbos = [-3.0, -1.0, -2.0, -1.0]
    assert TrainingConfig(patience=2).is_finished(elbos)
    assert not TrainingConfig(patience=3).is_finished(elbos)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule must be one of constant, cosine, plateau, got 'linear'"),
        ({"lr_warmup": -1}, "lr_warmup must be at least 0, got -1"),
        ({"plateau_epochs": 0}, "plateau_epochs must be at least 1, got 0"),
        ({"clip_norm": float("nan")}, "clip_norm must be a number of at least 0, got nan"),
        ({"free_bits": 0.1, "jit": True}, "jit and free_bits do not go together"),
    ],
)
def test_invalid_schedules_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**options)  # type: ignore[arg-type]  # wrong on purpose


# MKL


WATCHED = """
import json, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from edgevae.train import VAE, ModelConfig, Trainer, TrainingConfig, evaluate_elbo

class First(TorchDispatchMode):
    calls = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if arguments and isinstance(arguments[0], torch.Tensor):
            name = f"{function.overloadpacket.__name__} {arguments[0].dtype}"
            self.calls.setdefault(name, arguments[0].numel())
        return result

model, images = ModelConfig((1, 8, 8), z_dim=2, hidden_dim=4), torch.rand(500, 1, 8, 8)
with First():
    if sys.argv[1] == "evaluation":
        evaluate_elbo(VAE(model), images)
    else:
        Trainer(model, TrainingConfig(), torch.device("cpu")).fit_epoch(images)
print(json.dumps(First.calls))
"""


@pytest.mark.parametrize("what", [pytest.param("evaluation", marks=pytest.mark.slow), "training"])
def test_the_first_call_of_each_mkl_function_is_deterministic(what: str) -> None:
    found = subprocess.run([sys.executable, "-c", WATCHED, what], check=True, capture_output=True, text=True)
    calls: dict[str, int] = json.loads(found.stdout)
    for name in ("exp", "log", "log1p", "sqrt", "tanh", "erf", "erfinv", "lgamma"):
        for dtype in ("float32", "float64"):
            assert calls[f"{name} torch.{dtype}"] == 1
