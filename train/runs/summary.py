"""A run, as far as its small files tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..config import ModelConfig
from ..run import CHECKPOINT_FILE, TEST_ELBOS_FILE

State = Literal["finished", "interrupted", "unfinished", "damaged"]


class EpochLine(msgspec.Struct, frozen=True):
    """What is shown of a line of `metrics.jsonl`; older lines lack some of it."""

    epoch: int
    train_loss_nats: float | None = None
    test_elbo_nats: float | None = None
    validation_elbo_nats: float | None = None
    num_particles: int | None = None
    epoch_seconds: float = 0.0
    complete: bool = True


class Evaluated(msgspec.Struct, frozen=True):
    """What is shown of one set's part of `evaluation.json`."""

    elbo_nats: float | None = None
    reconstruction_nats: float | None = None
    kl_nats: float | None = None
    active_units: int | None = None
    num_particles: int | None = None
    iw_bound_nats: float | None = None
    iw_particles: int = 0


class Evaluations(msgspec.Struct, frozen=True):
    """`evaluation.json`, as far as it is shown."""

    test: Evaluated = Evaluated()
    validation: Evaluated = Evaluated()


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run, as far as its small files tell.

    Args:
        path: The run's folder.
        date: Of the last epoch's metrics, or of the folder where there are none; local time.
        size_bytes: Of all files in the folder.
        fault: What is damaged, with the file's name; `None` where nothing is.
        dataset: The data set's name; empty where `config.json` cannot be read, as are the other fields then.
        model: The model's choices.
        epochs: Passes over the data that were asked for.
        options: `config.json` as it is, completed by defaults, by section and name.
        lines: One an epoch, in order.
        evaluations: Those of the finished run.
    """

    path: Path
    date: datetime
    size_bytes: int
    fault: str | None
    dataset: str = ""
    model: ModelConfig | None = None
    epochs: int | None = None
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    lines: tuple[EpochLine, ...] = ()
    evaluations: Evaluations | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name or self.path.resolve().name

    @property
    def last(self) -> EpochLine | None:
        """The last epoch, `None` before the first has ended."""
        return self.lines[-1] if self.lines else None

    @property
    def state(self) -> State:
        """Whether the training came to its end.

        `interrupted` was ended early, with a checkpoint of that moment; `unfinished` is still going, or was killed.
        """
        if self.fault:
            return "damaged"
        if self.last is None:
            return "unfinished"
        if not self.last.complete:
            return "interrupted"
        if self.evaluations is not None or (self.path / TEST_ELBOS_FILE).is_file():
            return "finished"
        # The first runs had no evaluation at their end, and no checkpoint beside the weights.
        first = self.last.epoch >= (self.epochs or 0) and not (self.path / CHECKPOINT_FILE).exists()
        return "finished" if first else "unfinished"

    @property
    def test_elbo_nats(self) -> float | None:
        """The final evaluation's test ELBO, or else that of the epoch that the weights are of; nats an observation."""
        return self._evaluated[0]

    @property
    def num_particles(self) -> int | None:
        """Draws of z an observation that `test_elbo_nats` is estimated from."""
        return self._evaluated[1]

    @property
    def validation_elbo_nats(self) -> float | None:
        """As `test_elbo_nats`, of the validation set; `None` where there is none."""
        if self.evaluations and self.evaluations.validation.elbo_nats is not None:
            return self.evaluations.validation.elbo_nats
        return self._kept.validation_elbo_nats if self._kept else None

    @property
    def _evaluated(self) -> tuple[float | None, int | None]:
        if self.evaluations and self.evaluations.test.elbo_nats is not None:
            return self.evaluations.test.elbo_nats, self.evaluations.test.num_particles
        return (self._kept.test_elbo_nats, self._kept.num_particles) if self._kept else (None, None)

    @property
    def _kept(self) -> EpochLine | None:
        """The epoch whose weights the run has: the best by validation ELBO, or without validation the last."""
        if self.last is None or self.last.validation_elbo_nats is None:
            return self.last
        whole = [line for line in self.lines if line.complete] or self.lines
        return max(
            whole, key=lambda line: -math.inf if line.validation_elbo_nats is None else line.validation_elbo_nats
        )
