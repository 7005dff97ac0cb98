"""The observations of a training: to fit with, to watch with, to test with."""

from __future__ import annotations

import dataclasses
from typing import Generic, cast

import torch
from torch import Tensor
from typing_extensions import TypeVar

from ..images import Images
from .preprocessing import Preprocessing
from .rows import Rows

ImagesT_co = TypeVar("ImagesT_co", bound=Images, default=Tensor, covariant=True)
_NOTHING = Preprocessing()
_SHARE = 0.5  # of a device's free memory, at most, for what is trained on


@dataclasses.dataclass(frozen=True)
class Dataset(Generic[ImagesT_co]):
    """Observations, float32 in [0, 1] unless the data have another range. Without a type argument they are tensors.

    Args:
        name: What the set is called in files and tables.
        train: Training images, shape `(num_train, *data_shape)`.
        test: Test images, shape `(num_test, *data_shape)`.
        train_labels: Their classes, int64 from 0, shape `(num_train,)`; `None` where they were not asked for.
        test_labels: Those of the test images, shape `(num_test,)`.
        validation: Images that are neither trained nor tested on, to steer a training with; `None` for none.
        validation_labels: Their classes.
        preprocessing: What was done to the stored data.
        class_names: The classes' names, in the order of their numbers; empty where they have none.
    """

    name: str
    train: ImagesT_co
    test: ImagesT_co
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    validation: ImagesT_co | None = None
    validation_labels: Tensor | None = None
    preprocessing: Preprocessing = _NOTHING
    class_names: tuple[str, ...] = ()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one observation, `(channels, height, width)` for images."""
        return tuple(self.train.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        every = (self.train_labels, self.test_labels, self.validation_labels)
        return max((int(labels.max()) + 1 for labels in every if labels is not None), default=0)

    def without_labels(self) -> Dataset[ImagesT_co]:
        """Return the same set without its labels, as a model that is not conditional sees it."""
        return dataclasses.replace(self, train_labels=None, test_labels=None, validation_labels=None)

    def to(self, device: torch.device) -> Dataset[ImagesT_co]:
        """Return the same set on `device`."""
        labels = (self.train_labels, self.test_labels, self.validation_labels)
        train_labels, test_labels, validation_labels = (None if part is None else part.to(device) for part in labels)
        return dataclasses.replace(
            self,
            train=_moved(self.train, device),
            test=_moved(self.test, device),
            train_labels=train_labels,
            test_labels=test_labels,
            validation=None if self.validation is None else _moved(self.validation, device),
            validation_labels=validation_labels,
        )


_T = TypeVar("_T", bound=Images)


def _moved(images: _T, device: torch.device) -> _T:
    """Images on the device; what has no room there, or is unknown here, stays, and its batches are moved one by one."""
    if isinstance(images, Rows) and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        num_bytes = images.shape.numel() * images.dtype.itemsize
        return images if num_bytes > _SHARE * free else cast("_T", images.to(device))
    return cast("_T", images.to(device)) if isinstance(images, (Tensor, Rows)) else images
