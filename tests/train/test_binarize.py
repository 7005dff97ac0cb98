"""Grey values made 0 or 1."""

from __future__ import annotations

import pytest
import torch

from edgevae.train import ConfigError, Dataset, ModelConfig, Trainer, TrainingConfig, binarize, binarize_once
from edgevae.train.trainer import Step

GREY = torch.tensor([0.0, 0.2, 0.5, 0.51, 1.0])


def test_none_leaves_the_values_and_threshold_cuts_at_one_half() -> None:
    assert binarize(GREY, "none") is GREY
    assert binarize(GREY, "threshold").tolist() == [0, 0, 0, 1, 1]


def test_stochastic_draws_with_the_grey_value_as_probability_and_anew_each_time() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        first, second = (binarize(GREY.expand(20_000, 5), "stochastic") for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.mean(0), GREY, atol=0.02, rtol=0)


def test_test_sets_are_drawn_once_and_the_generator_stays() -> None:
    before = torch.get_rng_state()
    x = GREY.expand(100, 5)
    assert torch.equal(binarize_once(x, "stochastic"), binarize_once(x, "stochastic"))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_sees_binary_images_that_change_with_the_epoch(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    config = TrainingConfig(binarize="stochastic", batch_size=2000)
    trainer = Trainer(ModelConfig((1, 8, 8), 3, 8), config, torch.device("cpu"))

    def step(_self: Step, x: torch.Tensor, *_others: object) -> torch.Tensor:
        seen.append(x)
        return torch.tensor(1.0)

    monkeypatch.setattr(Step, "__call__", step)
    for _ in range(2):
        trainer.fit_epoch(digits.train)
    assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in seen)
    assert not torch.equal(seen[0].sum(0), seen[1].sum(0))


def test_other_ways_are_refused() -> None:
    with pytest.raises(ConfigError, match="binarize must be one of none, threshold, stochastic, got 'otsu'"):
        TrainingConfig(binarize="otsu")  # type: ignore[arg-type]  # that is the point
