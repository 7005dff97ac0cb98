"""The learning rate over a training, and when a training ends: pure functions."""

from __future__ import annotations

import pytest

from edgevae.train import ConfigError, TrainingConfig


def test_a_constant_rate_stays() -> None:
    config = TrainingConfig(learning_rate=0.01, epochs=10)
    assert [config.learning_rate_at(progress) for progress in (0.01, 5, 10)] == [0.01] * 3


def test_a_warm_up_reaches_the_rate_in_a_straight_line_and_a_cosine_ends_at_nothing() -> None:
    config = TrainingConfig(learning_rate=0.01, epochs=12, schedule="cosine", lr_warmup=2)
    assert config.learning_rate_at(0.5) == pytest.approx(0.0025)
    assert config.learning_rate_at(2) == pytest.approx(0.01)
    assert config.learning_rate_at(7) == pytest.approx(0.005)  # half of the way down
    assert config.learning_rate_at(12) == pytest.approx(0)


def test_a_plateau_halves_the_rate_each_time_that_nothing_becomes_better() -> None:
    config = TrainingConfig(schedule="plateau", plateau_epochs=2)
    assert [config.halvings_after([-9.0, -8.0, -8.5, *more]) for more in ([], [-8.1], [-8.2, -7.0], [-9.0] * 3)] == [
        0,
        1,
        1,
        2,
    ]
    assert TrainingConfig().halvings_after([-1.0] * 50) == 0
    assert config.learning_rate_at(3, halvings=2) == pytest.approx(0.00025)


def test_a_training_ends_when_its_patience_does() -> None:
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
def test_schedules_that_make_no_training_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**options)  # type: ignore[arg-type]  # wrong on purpose
