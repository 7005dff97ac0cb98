"""The errors of training.

TrainError
├── ConfigError    an option has a value that makes no model or no training
├── DatasetError   the images are not there, not readable, or another data set's
├── DeviceError    the device that was asked for is not usable
├── DivergedError  the loss is no longer a number
├── InstallError   a package that was asked for is not installed
├── LabelError     a conditional model got no labels, or another one did
├── ProcessError   processes that were to train together did not find each other, or lost one
│   └── FirstFailedError  the first of them failed, and says why
└── RunError       a run folder is missing, damaged, or in the way
"""


class TrainError(Exception):
    """Base of everything that `train` raises on purpose."""


class ConfigError(TrainError, ValueError):
    """An option has a value from which no model or training can be made."""


class DatasetError(TrainError):
    """The images are not there, not readable, or belong to another data set."""


class DeviceError(TrainError):
    """The device that was asked for is not usable here."""


class DivergedError(TrainError):
    """The loss is no longer a finite number."""


class InstallError(TrainError):
    """A package that only some trainings need is not installed."""


class LabelError(TrainError, ValueError):
    """A conditional model got no labels, or a model without labels got some."""


class RunError(TrainError):
    """A run folder is missing, damaged, or would be overwritten."""


class ProcessError(TrainError):
    """Processes that were to train together could not find each other, or one was lost."""


class FirstFailedError(ProcessError):
    """The first process failed, and says why; the others end."""
