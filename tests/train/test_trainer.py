"""Training: what it computes, and what it must leave alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import

from edgevae.train import (
    VAE,
    ConfigError,
    Dataset,
    DatasetError,
    DeviceError,
    DivergedError,
    LabelError,
    ModelConfig,
    Trainer,
    TrainingConfig,
    evaluate_elbo,
    load_dataset,
    objective_of,
)
from edgevae.train.trainer import Step

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


def test_a_training_leaves_the_processs_globals_as_they_were(digits: Dataset) -> None:
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
def test_labels_that_would_look_like_none_are_refused(
    digits: Dataset, labels: torch.Tensor | None, message: str
) -> None:
    conditional = dataclasses.replace(MODEL, num_classes=10)
    with pytest.raises(LabelError, match=message):
        Trainer(conditional, TrainingConfig(), CPU).fit_epoch(digits.train[:12], labels=labels)
    with pytest.raises(LabelError, match=message):
        evaluate_elbo(VAE(conditional), digits.train[:12], labels=labels)


def test_labels_are_looked_at_in_every_epoch(digits: Dataset) -> None:
    each = Trainer(dataclasses.replace(MODEL, num_classes=10), TrainingConfig(), CPU)
    each.fit_epoch(digits.train[:12], labels=torch.arange(12) % 10)
    with pytest.raises(LabelError, match="labels must be from 0 to 9, got 0 to 11"):
        each.fit_epoch(digits.train[:12], labels=torch.arange(12))


def test_images_out_of_the_likelihoods_range_are_refused(digits: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"must be in \[0, 1\] for likelihood bernoulli, got values from 0 to 255"):
        trainer().fit_epoch(digits.train * 255)


@pytest.mark.parametrize("latent", ["normal", "mixture"])
def test_a_model_that_forgets_to_event_is_caught_where_batch_and_feature_sizes_agree(
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


def test_the_first_step_is_validated_by_pyro_and_the_others_are_not(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_loss_that_is_no_number_ends_the_training(digits: Dataset) -> None:
    with pytest.raises(DivergedError, match=r"the loss became .* at step \d+, learning rate 1e\+06; .* a lower"):
        trainer(learning_rate=1e6).fit_epoch(digits.train)


def test_one_loss_in_the_middle_of_an_epoch_that_is_no_number_is_an_error(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_bfloat16_is_refused_where_the_processor_has_no_quick_instructions_for_it(
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
