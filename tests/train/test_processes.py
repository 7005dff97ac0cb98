"""Several processes that fit one model: together they make the single process's steps."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import torch._dynamo.utils  # DistributedDataParallel takes seconds to import it: here once, for all that are forked
from click.testing import CliRunner
from torch import Tensor, nn

from edgevae.train import (
    VAE,
    ConfigError,
    Dataset,
    DivergedError,
    EpochMetrics,
    ModelConfig,
    Observer,
    RunError,
    Trainer,
    TrainingConfig,
    evaluate_elbo,
    fit,
    load_run,
)
from edgevae.train.cli import main
from edgevae.train.errors import FirstFailedError, ProcessError
from edgevae.train.processes import SINGLE, JoinedProcesses, Processes, joined
from edgevae.train.run import RunWriter
from edgevae.train.trainer import Step

CPU = torch.device("cpu")
MODEL = ModelConfig((1, 8, 8), z_dim=3, hidden_dim=8)


PROCESSES = multiprocessing.get_context("forkserver")
"""Forks a process that has imported PyTorch and done nothing else: a fork of a process that has called `backward` for a
(fake) CUDA device cannot call it itself."""
PROCESSES.set_forkserver_preload([__name__])


def run_in_process(rank: int, call: bytes, environment: dict[str, str], join: bool, pipe: Any) -> None:
    """Call a function as one of several processes, and send what it returns or raises."""
    torch.set_num_threads(1)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    function, arguments = pickle.loads(call)  # noqa: S301 - our own
    try:
        if join:
            with joined() as processes:
                result = function(processes, *arguments)
        else:
            result = function(rank, *arguments)
    except Exception as error:  # noqa: BLE001 - the test sees it
        traceback.print_exc()
        result = error
    pipe.send_bytes(pickle.dumps(result))


def together(function: Callable[..., Any], *arguments: Any, count: int = 2, join: bool = True) -> list[Any]:
    """Call a function in processes of their own, with its `Processes` first; return what each returned or raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    size = str(count)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    call = pickle.dumps((function, arguments))
    pipes, workers = [], []
    for rank in range(count):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        worker = PROCESSES.Process(target=run_in_process, args=(rank, call, environment, join, theirs))
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    results: list[Any] = []
    for pipe, worker in zip(pipes, workers, strict=True):
        try:
            results.append(pickle.loads(pipe.recv_bytes()) if pipe.poll(180) else "no answer")  # noqa: S301 - our own
        except EOFError:
            results.append("killed")
        if results[-1] == "no answer":
            worker.kill()
        worker.join()
    return results


def without_noise() -> None:
    def zeros(shape: Any, dtype: Any, device: Any) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    torch.distributions.normal._standard_normal = zeros  # type: ignore[attr-defined]  # noqa: SLF001 - PyTorch has no public name


def step_of(
    processes: Processes, model: ModelConfig, training: TrainingConfig, x: Tensor, y: Tensor | None
) -> tuple[float, list[Tensor]]:
    """The loss and the gradients of a second step, with weights that the first has hardly moved."""
    without_noise()
    torch.set_default_dtype(torch.float64)  # convolutions of single precision round differently for parts of a batch
    torch.manual_seed(0)
    vae, x = VAE(model), x.double()
    gradients: list[Tensor] = []
    with pyro.get_param_store().scope():
        step = Step(vae, training, processes)
        own, labels = processes.shard(x), None if y is None else processes.shard(y)
        step(own, labels, batch_size=len(x))
        step.optimizer.register_step_pre_hook(
            lambda *_: gradients.extend(parameter.grad.clone() for parameter in vae.parameters())  # type: ignore[union-attr]  # after a step each has one
        )
        loss = step(own, labels, batch_size=len(x))
    return float(loss), gradients


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({}, {}),
        ({"architecture": "conv"}, {"beta": 3.0}),
        ({"num_classes": 10}, {"clip_norm": 2.0}),
        ({}, {"jit": True}),
        ({"latent": "hierarchical", "upper_dims": (2,)}, {"num_particles": 2}),
        ({"latent": "mixture", "components": 3}, {}),
        ({"likelihood": "normal"}, {}),
    ],
    ids=str,
)
def test_the_gradients_are_the_single_processs(
    digits: Dataset, model: dict[str, Any], training: dict[str, Any]
) -> None:
    x = digits.train[:25]  # parts of different sizes
    config = ModelConfig((1, 8, 8), z_dim=5, hidden_dim=12, **model)
    y = torch.arange(25) % 10 if config.num_classes else None
    assert_same_gradients(config, TrainingConfig(learning_rate=1e-9, **training), x, y)


def assert_same_gradients(model: ModelConfig, training: TrainingConfig, x: Tensor, y: Tensor | None) -> None:
    ((loss, gradients),) = together(step_of, model, training, x, y, count=1)
    for count in (2, 3):
        for found, shared in together(step_of, model, training, x, y, count=count):
            assert found == pytest.approx(loss, rel=1e-9)
            largest = max(float(gradient.abs().max()) for gradient in gradients)
            differences = [float((a - b).abs().max()) for a, b in zip(shared, gradients, strict=True)]
            assert max(differences) < 1e-9 * largest


def test_free_bits_use_the_kl_of_the_whole_batch(digits: Dataset) -> None:
    x = digits.train[:25]
    config = ModelConfig((1, 8, 8), z_dim=5, hidden_dim=12)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        with torch.no_grad():
            loc, scale = VAE(config).encoder(x.double())
    finally:
        torch.set_default_dtype(torch.float32)
    kl = (loc**2 + scale**2 - 1) / 2 - scale.log()
    free_bits = float(kl.mean(0)[0]) * 1.0001
    low, high = sorted(float(part.mean(0)[0]) for part in (kl[::2], kl[1::2]))
    assert low < free_bits < high, "the parts by themselves disagree"
    assert_same_gradients(config, TrainingConfig(learning_rate=1e-9, free_bits=free_bits), x, None)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [7, 10])
def test_the_parts_of_a_batch_do_not_overlap_and_are_all_of_it(world_size: int, size: int) -> None:
    batch = torch.randperm(100)[:size]
    parts = [JoinedProcesses(rank, world_size).shard(batch) for rank in range(world_size)]
    assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
    assert {len(part) for part in parts} <= {size // world_size, -(-size // world_size)}


def noiseless_epoch(processes: Processes, images: Tensor) -> tuple[dict[str, Tensor], float, list[Tensor]]:
    without_noise()
    trainer = Trainer(MODEL, TrainingConfig(batch_size=64), CPU, processes)
    loss = trainer.fit_epoch(images)
    return dict(trainer.vae.state_dict()), loss, list(trainer.checkpoint().named("generator.").values())


def test_an_epoch_without_noise_is_that_of_a_single_process(digits: Dataset) -> None:
    ((expected, loss, _),) = together(noiseless_epoch, digits.train, count=1)
    for weights, found, generators in together(noiseless_epoch, digits.train):
        assert found == pytest.approx(loss, rel=1e-6)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
        assert len(generators) == 2
        assert not torch.equal(*generators), "each process has noise of its own"


def elbo_after(processes: Processes, dataset: Dataset) -> tuple[float, float, list[float], dict[str, Tensor]]:
    trainer = Trainer(MODEL, TrainingConfig(batch_size=96, learning_rate=1e-2), CPU, processes)
    losses = [trainer.fit_epoch(dataset.train) for _ in range(6)]
    return (
        evaluate_elbo(trainer.vae, dataset.test, 10),
        evaluate_elbo(trainer.vae, dataset.train, 10),
        losses,
        dict(trainer.vae.state_dict()),
    )


def test_the_elbo_is_the_single_processs_within_the_noise(digits: Dataset) -> None:
    ((test, train, losses, _),) = together(elbo_after, digits, count=1)
    (first, second) = together(elbo_after, digits)
    assert first[:3] == second[:3]
    assert all(torch.equal(tensor, second[3][name]) for name, tensor in first[3].items())
    assert first[0] == pytest.approx(test, abs=0.15)
    assert first[1] == pytest.approx(train, abs=0.15)
    assert first[2] == pytest.approx(losses, abs=0.3)
    assert losses[0] - losses[-1] > 10  # the noise is small beside what was learnt


class Told(Observer):
    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, loss: Tensor) -> None:
        assert loss.ndim == 0
        self.steps += 1


def fitted(
    processes: Processes, dataset: Dataset, out: Path, training: TrainingConfig, stop_after: int = 0, **options: Any
) -> tuple[tuple[EpochMetrics, ...], int, dict[str, Tensor]]:
    told, asked = Told(), 0
    if not processes.is_first:
        for name in ("save_checkpoint", "save_epoch", "save_evaluations"):
            setattr(RunWriter, name, lambda *_, **__: pytest.fail("only the first process writes"))

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return processes.rank == processes.world_size - 1 and 0 < stop_after <= asked

    run = fit(
        dataset,
        out,
        MODEL,
        training,
        processes=processes,
        observers=[told],
        should_stop=should_stop,
        report=False,
        **options,
    )
    return run.metrics, told.steps, run.vae.state_dict()


def test_the_first_process_alone_writes_and_decides_for_all(tmp_path: Path, digits: Dataset) -> None:
    dataset = Dataset("digits", digits.train[:300], digits.test, validation=digits.train[300:400])
    training = TrainingConfig(epochs=30, batch_size=100, learning_rate=0.3, patience=2, schedule="plateau")
    (first, steps, weights), (second, told, others) = together(fitted, dataset, tmp_path / "run", training)
    assert first == second
    assert len(first) < 30, "the patience ended it"
    assert (steps, told) == (3 * len(first), 0)
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    assert load_run(tmp_path / "run").evaluations


@pytest.mark.parametrize("count", [2, 3])
def test_a_run_that_one_process_stopped_is_resumed_bit_for_bit(tmp_path: Path, digits: Dataset, count: int) -> None:
    training = TrainingConfig(epochs=3, batch_size=300, binarize="stochastic", clip_norm=20)
    together(fitted, digits, tmp_path / "whole", training, count=count)
    before = 0
    for stop_after in (2, 5):
        stopped = together(resumed, digits, tmp_path / "run", training, stop_after, count=count)
        assert {(line[-1].step, line[-1].complete) for line, *_ in stopped} == {(before + stop_after + 1, False)}
        before += stop_after + 1
    together(resumed, digits, tmp_path / "run", training, count=count)
    for file in ("checkpoint.safetensors", "weights.safetensors", "test_elbos.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def resumed(processes: Processes, *arguments: Any) -> Any:
    return fitted(processes, *arguments, resume=True)


def test_a_run_is_resumed_with_its_own_number_of_processes(tmp_path: Path, digits: Dataset) -> None:
    training = TrainingConfig(epochs=1, batch_size=300)
    together(fitted, digits, tmp_path / "run", training)
    with pytest.raises(
        RunError, match=r"begun with 2 processes, got 1; go on with .* --nproc-per-node 2 -m train --re"
    ):
        fitted(SINGLE, digits, tmp_path / "run", training, resume=True)
    fitted(SINGLE, digits, tmp_path / "other", training)
    for error in together(resumed, digits, tmp_path / "other", training):
        assert isinstance(error, RunError)
        assert "begun with 1 process, got 2" in str(error)


def diverging(processes: Processes, images: Tensor) -> None:
    trainer = Trainer(MODEL, TrainingConfig(batch_size=64), CPU, processes)

    def spoil(_loss: Tensor) -> None:
        if trainer.steps == 3 and not processes.is_first:
            with torch.no_grad():
                next(trainer.vae.parameters()).fill_(torch.nan)

    trainer.fit_epoch(images, spoil)


def test_a_loss_that_diverges_in_one_process_is_seen_by_all_at_the_same_step(digits: Dataset) -> None:
    errors = together(diverging, digits.train)
    assert [type(error) for error in errors] == [DivergedError, DivergedError]
    assert str(errors[0]) == str(errors[1])
    assert "became nan at step 4" in str(errors[0])


def batches(processes: Processes, num_images: int, batch_size: int) -> list[int]:
    return processes.batches(num_images, batch_size)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4] * 358 + [5]), (2, [2] * 717 + [3]), (1436, [1437])])
def test_a_last_batch_too_small_for_the_processes_joins_the_one_before(batch_size: int, sizes: list[int]) -> None:
    assert together(batches, 1437, batch_size) == [sizes, sizes]


def test_batches_that_leave_a_process_without_images_are_refused_before_anything_is_written(
    tmp_path: Path, digits: Dataset
) -> None:
    message = "1437 images in batches of 1 are too few for 2 processes; choose a larger batch_size"
    for error in together(fitted, digits, tmp_path / "run", TrainingConfig(batch_size=1)):
        assert isinstance(error, ConfigError)
        assert message in str(error)
    assert not (tmp_path / "run").exists()


class Unused(nn.Module):
    """A network with weights that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 1)
        self.unused = nn.Linear(2, 2)


def unused_weights(processes: Processes) -> tuple[list[Tensor], bool]:
    torch.manual_seed(0)
    network = Unused()

    def loss_of(x: Tensor) -> Tensor:
        loss: Tensor = network.used(x).square().sum()
        return loss

    loss = processes.summing_gradients(network, loss_of)
    x = torch.arange(12.0).reshape(4, 3) / 10
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = None
        processes.backward(loss(processes.shard(x)))
    gradients = [parameter.grad for parameter in network.used.parameters() if parameter.grad is not None]
    return gradients, any(bool(each.grad.any()) for each in network.unused.parameters() if each.grad is not None)


def test_a_network_may_have_weights_that_it_does_not_use() -> None:
    expected, _ = unused_weights(SINGLE)
    for found, moved in together(unused_weights):
        torch.testing.assert_close(found, expected)
        assert not moved


def buffers_after(processes: Processes) -> Tensor:
    layer = nn.BatchNorm1d(2)
    network = nn.Sequential(nn.Linear(3, 2), layer)
    x = torch.arange(24.0).reshape(8, 3) + processes.rank
    loss = processes.summing_gradients(network, lambda rows: network(rows).square().sum())
    for _ in range(2):
        processes.backward(loss(x))
    network.eval()
    loss(x)
    assert layer.running_mean is not None
    return layer.running_mean


def test_buffers_of_layers_are_those_of_the_first_process() -> None:
    first, second = together(buffers_after)
    assert torch.equal(first, second)
    assert float(first.abs().max()) > 0


def agreeing(processes: Processes) -> list[Any]:
    mine = processes.rank == 1
    before = [processes.any_before(flag) for flag in (mine, False, mine, False)]
    return [
        before,
        processes.any(mine),
        processes.any(False),
        processes.from_first(lambda: ("from", processes.rank)),
        processes.first_then_others(lambda: processes.rank),
        [int(each) for each in processes.gather(torch.tensor(processes.rank))],
        processes.mean(torch.full((2 + processes.rank, 1), float(processes.rank))).tolist(),
    ]


def test_processes_agree_on_flags_and_values() -> None:
    first, second = together(agreeing)
    assert first[:4] == second[:4] == [[False, True, False, True], True, False, ("from", 0)]
    assert (first[4], second[4]) == (0, 1)
    assert first[5:] == second[5:] == [[0, 1], [pytest.approx(3 / 5)]]
    assert agreeing(SINGLE) == [[False] * 4, False, False, ("from", 0), 0, [0], [0.0]]
    assert SINGLE.any_before(True)


def failing(processes: Processes) -> None:
    def fail() -> None:
        raise RunError("the disk is full")

    processes.from_first(fail)


def test_where_the_first_process_fails_the_others_end() -> None:
    first, second = together(failing)
    assert isinstance(first, RunError)
    assert isinstance(second, FirstFailedError)


def dying(processes: Processes, images: Tensor, dies: int) -> None:
    trainer = Trainer(MODEL, TrainingConfig(batch_size=64), CPU, processes)

    def die(_loss: Tensor) -> None:
        if trainer.steps == 3 and processes.rank == dies:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.fit_epoch(images, die)


@pytest.mark.parametrize("dies", [0, 1])
def test_where_a_process_is_killed_the_others_end_with_one_clear_line(digits: Dataset, dies: int) -> None:
    results = together(dying, digits.train, dies)
    assert results[dies] == "killed"
    error = results[1 - dies]
    assert isinstance(error, ProcessError)
    assert str(error) == (
        "another of the 2 processes was killed or failed, and so this one ends; start all of them again with --resume, "
        "or let torchrun do so with --max-restarts 3"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE is 2 and MASTER_ADDR is not set; start .* with torchrun, or uns",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number as torchrun sets it, got 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "localhost"}, "RANK must be a number .* got '-1'"),
    ],
)
def test_an_incomplete_torchrun_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match=message), joined():
        pass


def test_a_single_process_is_alone_with_and_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as processes:
        assert (type(processes), processes.rank, processes.world_size) == (Processes, 0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as processes:
        assert type(processes) is Processes


def commanded(rank: int, out: Path, *options: str) -> tuple[int, str]:
    command = ["--dataset", "digits", "--z-dim", "3", "--hidden-dim", "8", "--epochs", "2", "--no-report"]
    result = CliRunner().invoke(main, [*command, "--out", str(out), *options])
    return result.exit_code, result.output


def test_on_the_command_line_the_first_process_speaks_for_all(tmp_path: Path) -> None:
    (exit_code, said), other = together(commanded, tmp_path / "run", join=False)
    assert exit_code == 0, said
    assert "processes 2, each with its part of every batch" in said
    assert said.count("epoch 2/2") == 1
    assert other == (0, "")
    (exit_code, said), other = together(commanded, tmp_path / "run", join=False)
    assert (exit_code, other) == (2, (2, ""))
    assert "already holds a run" in said
    results = together(commanded, tmp_path / "other", "--batch-size", "1", join=False)
    assert [code for code, _ in results] == [2, 2]
    too_few = "1437 images in batches of 1 are too few for 2 processes"
    assert f"Error: {too_few}" in results[0][1]
    assert f"Error: process 1 of 2: {too_few}" in results[1][1]
