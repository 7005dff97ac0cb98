"""The errors of the runtime.

EdgeVAEError
├── BundleError    a bundle is missing, damaged, changed, newer than this runtime, or does not fit its manifest
│   └── SignatureError  a bundle is not signed, was altered after that, or was signed with another key
├── InputError     an argument of a call has the wrong shape, type or values
├── InstallError   a package that is needed is not installed
└── ProviderError  the execution provider that was asked for does not work here
"""


class EdgeVAEError(Exception):
    """Base of everything that the runtime raises on purpose."""


class BundleError(EdgeVAEError):
    """A bundle is missing, damaged, changed, newer than this runtime, or does not fit its manifest."""


class SignatureError(BundleError):
    """A bundle is not signed with the key that was asked for: not at all, altered after that, or with another key."""


class InputError(EdgeVAEError, ValueError):
    """An argument of a call has the wrong shape, type or values."""


class InstallError(EdgeVAEError, ImportError):
    """A package that is needed is not installed."""


class ProviderError(EdgeVAEError, RuntimeError):
    """The execution provider that was asked for does not work here."""
