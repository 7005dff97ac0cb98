"""Stochastic variational inference: `Trainer` makes epochs, `Step` makes one step of Adam on the ELBO."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping

import pyro
import torch
from torch import Tensor

from .config import AnyModelConfig, ModelConfig, TrainingConfig
from .data import Images, binarize, binarize_once, check_range
from .device import check_bf16, choose_mkl_kernels, float32_products, forked_rng
from .elbo import device_of
from .errors import ConfigError, DatasetError, DivergedError, RunError
from .models import make_model
from .networks import check_label_values
from .objective import ScaleLatent
from .processes import SINGLE, Processes
from .run import WEIGHTS, Checkpoint
from .tracing import line_of_error
from .trainable import Trainable
from .vae import VAE

_MOMENTS, _GENERATORS, _WORLD_SIZE = "optimizer.", "generator.", "processes"
_LOSS_SUM, _EPOCH_GENERATOR = "position.total", "position.begun"
_LOSSES_AT_ONCE = 100  # checked together on a GPU, because reading a loss waits for it


class Trainer:
    """Fits one model, and leaves the global state of Pyro and PyTorch as it was.

    Pyro has one parameter store in a process, in which a second model with the same parameter names would not be
    trained; PyTorch has one random generator for each device. Each call of a trainer uses a store and a generator state
    of its own. So several trainings in one process do not affect each other, even interleaved. Threads share the global
    state: do not train in several at once.

    Args:
        model_config: The model: a VAE's sizes, or a program's place. Its weights are drawn on the CPU, so that a seed
            means the same on any device.
        training_config: Seed, batch size, learning rate, objective.
        device: Where the weights live.
        processes: The processes that fit the model together. Each makes the same calls with the same images, takes its
            part of each batch, and has noise of its own.
        example: Some observations and their labels, on the CPU, to run a Pyro program with; a VAE needs none.

    Raises:
        ConfigError: Model and training do not go together, or several processes are to fit a program.
        DeviceError: The device has no fast instructions for the training's precision.

    Attributes:
        model: The model.
        halvings: How often the learning rate has been halved.
    """

    def __init__(
        self,
        model_config: AnyModelConfig,
        training_config: TrainingConfig,
        device: torch.device,
        processes: Processes = SINGLE,
        example: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        if processes.world_size > 1 and not isinstance(model_config, ModelConfig):
            raise ConfigError(
                f"{processes.world_size} processes fit a VAE of edgevae together, not a Pyro program; start one process"
            )
        if training_config.precision == "bf16":
            check_bf16(device)
        choose_mkl_kernels()
        self.config = training_config
        self.halvings = 0
        self._device, self._processes = device, processes
        with forked_rng(device):
            torch.manual_seed(training_config.seed)
            self.model = make_model(model_config, example).to(device)
            self._generators = _Generators(device, processes, training_config.seed)
        self._step = Step(self.model, training_config, processes)
        self._position = _Position(device, processes)
        self._checked = False

    @property
    def vae(self) -> VAE:
        """The model, where it is a VAE."""
        if not isinstance(self.model, VAE):
            raise TypeError(f"{self.model.summary} is no VAE of edgevae; take model in place of vae")
        return self.model

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self._position.epoch

    @property
    def steps(self) -> int:
        """Steps made, those of earlier epochs included."""
        return self._position.steps

    @property
    def in_epoch(self) -> bool:
        """Whether an epoch was begun and not completed; the next `fit_epoch` completes it."""
        return self._position.seen > 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return self._step.learning_rate

    @property
    def beta(self) -> float:
        """The latent's weight in the last step."""
        return self._step.latent.beta

    def fit_epoch(
        self,
        images: Images,
        on_step: Callable[[Tensor], None] = lambda _loss: None,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        labels: Tensor | None = None,
    ) -> float:
        """Pass once over `images` in a new random order, one step of Adam on the ELBO a batch.

        If the previous call was stopped within its epoch, this one completes that epoch. A step does not wait for the
        device, except with a mixture or `jit`, where Pyro's own ELBO does.

        Args:
            images: Shape `(num_images, ...)`, float32, in [0, 1] unless the likelihood takes any range; on the
                trainer's device, or on the CPU if they do not fit there.
            on_step: Called after each step with the batch's loss, in nats an image, a scalar on the device; reading its
                value waits for the device.
            should_stop: Called after each step; `True` ends the call there. All processes must get the same answer.
            labels: Integers, shape `(num_images,)`, where the images are; for a conditional model.

        Returns:
            The mean loss of the epoch's images seen so far, in nats an image: `-elbo`, its latent part weighted by
            `beta`.

        Raises:
            ConfigError: A batch would leave a process without images.
            DatasetError: The images are out of range, on another device, or not those that the epoch began with.
            DivergedError: A step's loss was NaN or infinite.
            LabelError: The labels do not fit the model.
        """
        self.check(images, labels)
        config, position, losses = self.config, self._position, _FiniteLosses(self._device)
        self._step.latent.beta = config.beta_at(position.epoch + 1)
        with self._isolated():
            order = position.order_of(len(images)).to(images.device)
            batches = order.split(self._processes.batches(len(images), config.batch_size))
            for batch in batches[position.seen // config.batch_size :]:
                x, y = rows_on(self._device, images, labels, self._processes.shard(batch))
                progress = position.epoch + (position.seen + len(batch)) / len(images)
                rate = config.learning_rate_at(progress, self.halvings)
                with _batch_norm_errors():
                    loss = self._step(binarize(x, config.binarize), y, rate, len(batch))
                position.advance(loss, len(batch))
                losses.add(loss, position.steps, rate)
                on_step(loss / len(batch))
                if should_stop():
                    break
            losses.check()
        mean = position.mean_loss()
        if position.seen == len(images):
            position.end_epoch()
        return mean

    def check(self, images: Images, labels: Tensor | None = None) -> None:
        """Raise the errors that `fit_epoch` raises before its first step, for the same arguments.

        The values of the images are checked once, by the first call.
        """
        check_label_values(labels, len(images), self.model.config.num_classes)
        if images.device.type not in {self._device.type, "cpu"}:
            raise DatasetError(f"images must be on {self._device} or on the CPU, got {images.device}")
        self._processes.batches(len(images), self.config.batch_size)
        if not self._checked:
            check_range(images, self.model.unit_interval)
            x, y = rows_on(self._device, images, labels, torch.arange(len(images))[:2].to(images.device))
            self._step.latent.beta = self.config.beta_at(self.epoch + 1)
            self.model.check_rows(binarize_once(x, self.config.binarize), y, self._step.loss)
            self._checked = True

    def checkpoint(self) -> Checkpoint:
        """Return the state of the training in all processes, for `restore`; not within a call of `fit_epoch`."""
        position = self._position.state()
        tensors = dict(position.tensors)
        for prefix, part in (
            (WEIGHTS, self.model.state_dict()),
            (_MOMENTS, self._step.moments()),
            (_GENERATORS, self._generators.state()),
        ):
            tensors |= {prefix + name: tensor for name, tensor in part.items()}
        notes = {**position.notes, "halvings": self.halvings, _WORLD_SIZE: self._processes.world_size}
        return Checkpoint(tensors, notes)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same configuration; on the CPU bit for bit.

        Raises:
            RunError: The checkpoint is of another model, another kind of device, or another number of processes.
        """
        try:
            self._generators.restore(checkpoint.named(_GENERATORS), int(checkpoint.notes[_WORLD_SIZE]))
            self.model.load_state_dict(checkpoint.named(WEIGHTS))
            self._step.restore(checkpoint.named(_MOMENTS))
            self._position.restore(checkpoint)
            self.halvings = int(checkpoint.notes["halvings"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"the checkpoint does not fit this training: {error}") from error

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        """Use this trainer's parameter store and generator state in the body, and keep their changes."""
        with (
            pyro.get_param_store().scope(self.model.param_state),
            self._generators.entered(),
            float32_products(self.config.tf32),
            warnings.catch_warnings(),
        ):
            # JitTrace_ELBO uses torch.jit, which PyTorch has deprecated without a replacement in Pyro.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
            # Pyro warns of a loss that is NaN; here it is an error.
            warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)
            yield


@contextlib.contextmanager
def _batch_norm_errors() -> Iterator[None]:
    """Say what a batch norm needs, in place of PyTorch's error."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        line = line_of_error(error) or "a network"
        raise ConfigError(
            f"{line} normalises by the statistics of a batch, which need at least 2 rows a process; give a larger "
            "batch_size (--batch-size), or take nn.LayerNorm or nn.GroupNorm"
        ) from error


class Step:
    """One step of Adam on the ELBO of a model, as `pyro.infer.SVI.step` makes it but without waiting for the device.

    It differs from `SVI.step` in three ways, which change the numbers by rounding only. One fused optimizer updates all
    parameters, where Pyro makes one for each. The loss stays on the device as a tensor. Pyro validates only the first
    step, which is enough to find wrong shapes.

    Args:
        model: The model; its parameters are changed in place.
        config: Learning rate, objective and the gradient's largest norm.
        processes: The processes that make the step together, each with its part of the batch.

    Raises:
        ConfigError: Model and objective do not go together.

    Attributes:
        loss: The loss of a batch, in nats, summed over it.
        latent: Its `beta` is the latent's weight in the next step.
        optimizer: Adam.
        validated: Whether the first step was made, which Pyro validates.
    """

    def __init__(self, model: Trainable, config: TrainingConfig, processes: Processes = SINGLE) -> None:
        self.latent = ScaleLatent(config.beta, model.is_latent)
        self.loss = model.loss_of(config, self.latent, processes.mean)
        if config.precision == "bf16":
            self.loss = torch.autocast(device_of(model).type, torch.bfloat16)(self.loss)
        self._differentiable_loss, self._processes = processes.summing_gradients(model, self.loss), processes
        self._clip_norm = config.clip_norm
        self.optimizer = torch.optim.Adam(model.fitted(), lr=config.learning_rate, fused=True)
        self.validated = False

    def __call__(
        self, x: Tensor, y: Tensor | None = None, learning_rate: float | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Make one step; return its loss in nats, summed over the batch, a scalar on the device.

        Args:
            x: Observations, shape `(batch, ...)`; this process's part of the batch.
            y: Labels, shape `(batch,)`, for a conditional model.
            learning_rate: Of this step and later ones; by default unchanged.
            batch_size: Number of observations of all processes together; by default that of `x`.
        """
        batch = (x,) if y is None else (x, y)
        with pyro.validation_enabled(not self.validated):
            loss = self._processes.backward(self._differentiable_loss(*batch))
        self.validated = True
        (group,) = self.optimizer.param_groups
        if learning_rate is not None:
            group["lr"] = learning_rate
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(group["params"], self._clip_norm * (batch_size or len(x)))
        self.optimizer.step()
        for parameter in group["params"]:  # zero_grad does the same, with an overhead for profilers
            parameter.grad = None
        return loss

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's state, by name."""
        state = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": tensor for index, each in state.items() for name, tensor in each.items()}

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Set the optimizer's state to what `moments` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for path, tensor in moments.items():
            index, name = path.split(".")
            state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def rows_on(
    device: torch.device, images: Images, labels: Tensor | None, indices: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return rows and their labels on `device`; from the CPU to a CUDA device through pinned memory, without waiting.

    Args:
        device: Where the rows are wanted.
        images: Shape `(num_images, ...)`, on `device` or on the CPU.
        labels: Shape `(num_images,)`, where the images are.
        indices: Shape `(rows,)`, where the images are.
    """
    return _moved(images[indices], device), None if labels is None else _moved(labels[indices], device)


def _moved(batch: Tensor, device: torch.device) -> Tensor:
    if batch.device.type == device.type:
        return batch
    return (batch.pin_memory() if device.type == "cuda" else batch).to(device, non_blocking=True)


class _Position:
    """How far a training has got: epochs, steps, and the order of the current epoch's images.

    Args:
        device: Where the losses are summed.
        processes: All take the same order of images, drawn by process 0.

    Attributes:
        epoch: Completed epochs.
        steps: Steps made, those of earlier epochs included.
        seen: Images used in the current epoch so far; 0 between epochs.
    """

    def __init__(self, device: torch.device, processes: Processes) -> None:
        self.epoch = self.steps = self.seen = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._epoch_generator = torch.empty(0, dtype=torch.uint8)  # state of the CPU's generator when the epoch began
        self._order: Tensor | None = None
        self._processes = processes

    def order_of(self, num_images: int) -> Tensor:
        """Return the images' indices in this epoch's order, drawn from the CPU's generator when the epoch begins.

        Raises:
            DatasetError: The epoch was begun with another number of images.
        """
        if self._order is None:
            self._order = self._processes.from_first(lambda: self._draw_order(num_images))
        if len(self._order) != num_images:
            raise DatasetError(f"this epoch began with {len(self._order)} images, got {num_images}; give the same")
        return self._order

    def _draw_order(self, num_images: int) -> Tensor:
        if self.seen == 0:
            self._epoch_generator = torch.get_rng_state()
            return torch.randperm(num_images)
        now = torch.get_rng_state()  # resumed within the epoch: draw its order again
        torch.set_rng_state(self._epoch_generator)
        order = torch.randperm(num_images)
        torch.set_rng_state(now)
        return order

    def advance(self, loss: Tensor, num_images: int) -> None:
        """Count a step on `num_images`, with their summed loss."""
        self._loss_sum = self._loss_sum + loss
        self.seen += num_images
        self.steps += 1

    def mean_loss(self) -> float:
        """Return the mean loss of the images seen in this epoch; it waits for the device."""
        return float(self._loss_sum) / self.seen

    def end_epoch(self) -> None:
        self.epoch += 1
        self.seen = 0
        self._loss_sum = torch.zeros_like(self._loss_sum)
        self._order = None

    def state(self) -> Checkpoint:
        tensors = {_LOSS_SUM: self._loss_sum, _EPOCH_GENERATOR: self._epoch_generator}
        return Checkpoint(tensors, {"epoch": self.epoch, "steps": self.steps, "seen": self.seen})

    def restore(self, state: Checkpoint) -> None:
        self.epoch, self.steps, self.seen = (int(state.notes[name]) for name in ("epoch", "steps", "seen"))
        self._loss_sum = state.tensors[_LOSS_SUM].to(self._loss_sum.device)
        self._epoch_generator = state.tensors[_EPOCH_GENERATOR]
        self._order = None


class _Generators:
    """The states of PyTorch's generators between a training's steps: the CPU's, and that of a CUDA device.

    Process 0 begins with the current states, the others with seeds of their own.

    Args:
        device: Where the training is.
        processes: The processes that train together.
        seed: The seed of the training.
    """

    def __init__(self, device: torch.device, processes: Processes, seed: int) -> None:
        self._device, self._processes = device, processes
        if not processes.is_first:
            torch.manual_seed(processes.noise_seed(seed))
        self._states = self._current()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Use these generators in the body, and keep their states after it unless it fails."""
        with forked_rng(self._device):
            torch.set_rng_state(self._states[0])
            if self._device.type == "cuda":
                torch.cuda.set_rng_state(self._states[1], self._device)
            yield
            self._states = self._current()

    def state(self) -> dict[str, Tensor]:
        """Return the states of all processes' generators, numbered by rank; collective."""
        gathered = zip(*(self._processes.gather(state) for state in self._states), strict=True)
        return {str(number): state for number, state in enumerate(state for own in gathered for state in own)}

    def restore(self, states: Mapping[str, Tensor], world_size: int) -> None:
        """Restore what `state` returned in `world_size` processes.

        Raises:
            RunError: The states are from another number of processes, or from another kind of device.
        """
        here = self._processes.world_size
        if world_size != here:
            raise RunError(
                f"the run was begun with {world_size} process{'es' * (world_size > 1)}, got {here}; go on with as "
                f"many: torchrun --nproc-per-node {world_size} -m train --resume"
            )
        own = len(self._states)
        if len(states) != own * here:
            raise RunError(
                f"the checkpoint was made on another kind of device than {self._device}; resume it on that one"
            )
        first = own * self._processes.rank
        self._states = [states[str(number)] for number in range(first, first + own)]

    def _current(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states


class _FiniteLosses:
    """Checks that losses are finite: on the CPU after each step, on a GPU after each 100, so that no step waits for it.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._at_once = 1 if device.type == "cpu" else _LOSSES_AT_ONCE
        self._losses: list[Tensor] = []
        self._steps: list[tuple[int, float]] = []

    def add(self, loss: Tensor, step: int, learning_rate: float) -> None:
        """Add a step's loss.

        Raises:
            DivergedError: This loss, or one since the last check, is NaN or infinite.
        """
        self._losses.append(loss)
        self._steps.append((step, learning_rate))
        if len(self._losses) == self._at_once:
            self.check()

    def check(self) -> None:
        """Check the losses since the last check.

        Raises:
            DivergedError: One is NaN or infinite; the message names the first.
        """
        if not self._losses:
            return
        losses = torch.stack(self._losses).tolist()
        for loss, (step, learning_rate) in zip(losses, self._steps, strict=True):
            if not -torch.inf < loss < torch.inf:
                raise DivergedError(
                    f"the loss became {loss} at step {step}, learning rate {learning_rate:g}; the last checkpoint, if "
                    "there is one, is from before it. Begin another run with a lower learning rate (--learning-rate), "
                    "a slower start (--lr-warmup 5) or a bounded gradient (--clip-norm 100)"
                )
        self._losses.clear()
        self._steps.clear()
