"""The errors and warnings of training.

TrainError
├── ConfigError    an option is out of range, or options do not go together
├── DatasetError   images are missing, unreadable, or of another data set
├── DeviceError    the requested device is not usable
├── DivergedError  the loss became NaN or infinite
├── InstallError   an optional package is not installed
├── LabelError     a conditional model got no labels, or another model got some
├── ProcessError   processes that train together did not connect, or one was lost
│   └── FirstFailedError  process 0 failed; its message says why
├── ProgramError   a Pyro program cannot be run on given noise, or its rows depend on each other
├── RunError       a run folder is missing, damaged, or already there
└── TraceError     a network cannot be traced, and so not exported

CollapseWarning    the posterior has collapsed onto the prior
"""


class TrainError(Exception):
    """Base of all errors that `edgevae.train` raises on purpose."""


class ConfigError(TrainError, ValueError):
    """An option is out of range, or options do not go together."""


class DatasetError(TrainError):
    """Images are missing, unreadable, or of another data set."""


class DeviceError(TrainError):
    """The requested device is not usable."""


class DivergedError(TrainError):
    """The loss became NaN or infinite."""


class InstallError(TrainError):
    """An optional package is not installed."""


class LabelError(TrainError, ValueError):
    """A conditional model got no labels, or another model got some."""


class ProgramError(TrainError):
    """A Pyro program cannot be run on given noise, or its rows depend on each other."""


class RunError(TrainError):
    """A run folder is missing, damaged, or already there."""


class ProcessError(TrainError):
    """Processes that train together did not connect, or one was lost."""


class FirstFailedError(ProcessError):
    """Process 0 failed; its message says why."""


class TraceError(TrainError):
    """A network cannot be traced for any batch size, and so not exported."""


class CollapseWarning(UserWarning):
    """The posterior of some latent units has collapsed onto the prior: they carry no information about x."""
