"""The errors of the runtime."""


def printable(text: str) -> str:
    """Return text of a stranger in one line that no terminal obeys: what cannot be printed becomes its escape."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


class EdgeVAEError(Exception):
    """Base of everything that the runtime raises on purpose."""


class BundleError(EdgeVAEError):
    """A bundle is missing, damaged, changed, newer than this runtime, or does not fit its manifest."""


class SignatureError(BundleError):
    """A bundle is not signed, was signed with another key than the one that was asked for, or was altered later."""


class InputError(EdgeVAEError, ValueError):
    """An argument of a call has the wrong shape, type or values."""


class InstallError(EdgeVAEError, ImportError):
    """A package that is needed is not installed."""


class ProviderError(EdgeVAEError, RuntimeError):
    """The execution provider that was asked for does not work here."""
