"""The learning rate over a training, and when a training ends: pure functions."""

from __future__ import annotations

import pytest

from edgevae.train import ConfigError, TrainingConfig
from edgevae.train.schedule import best_epoch, beta_at, halvings_after, is_finished, learning_rate_at


def test_a_constant_rate_stays() -> None:
    config = TrainingConfig(learning_rate=0.01, epochs=10)
    assert [learning_rate_at(config, progress) for progress in (0.01, 5, 10)] == [0.01] * 3


def test_a_warm_up_reaches_the_rate_in_a_straight_line_and_a_cosine_ends_at_nothing() -> None:
    config = TrainingConfig(learning_rate=0.01, epochs=12, schedule="cosine", lr_warmup=2)
    assert learning_rate_at(config, 0.5) == pytest.approx(0.0025)
    assert learning_rate_at(config, 2) == pytest.approx(0.01)
    assert learning_rate_at(config, 7) == pytest.approx(0.005)  # half of the way down
    assert learning_rate_at(config, 12) == pytest.approx(0)


def test_a_plateau_halves_the_rate_each_time_that_nothing_becomes_better() -> None:
    config = TrainingConfig(schedule="plateau", plateau_epochs=2)
    assert [halvings_after(config, [-9.0, -8.0, -8.5, *more]) for more in ([], [-8.1], [-8.2, -7.0], [-9.0] * 3)] == [
        0,
        1,
        1,
        2,
    ]
    assert halvings_after(TrainingConfig(), [-1.0] * 50) == 0
    assert learning_rate_at(config, 3, halvings=2) == pytest.approx(0.00025)


def test_a_training_ends_when_its_patience_does() -> None:
    config = TrainingConfig(patience=2)
    assert not is_finished(config, [])
    assert not is_finished(config, [-3.0, -2.0, -2.5])
    assert is_finished(config, [-3.0, -2.0, -2.5, -2.0])  # as good as before is not better
    assert not is_finished(TrainingConfig(), [-1.0] * 99)


def test_the_warm_up_rises_in_equal_steps_and_starts_above_zero() -> None:
    assert [beta_at(epoch, 2.0, 4) for epoch in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert beta_at(1, 2.0, 0) == 2.0


def test_the_best_epoch_is_the_first_of_equals() -> None:
    assert best_epoch([]) == 0
    assert best_epoch([-3.0, -1.0, -2.0, -1.0]) == 2


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
def test_schedules_that_make_no_training_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**options)  # type: ignore[arg-type]  # wrong on purpose
