"""What a training did to its data, as a manifest says it."""

from __future__ import annotations

import dataclasses

from edgevae import PreprocessingSpec
from edgevae.train import Preprocessing


def preprocessing_spec(preprocessing: Preprocessing) -> PreprocessingSpec | None:
    """Return what the runtime is to do to values, as `train` did; `None` where that is nothing but uint8 by 255."""
    if preprocessing == Preprocessing():
        return None
    return PreprocessingSpec(**dataclasses.asdict(preprocessing))
