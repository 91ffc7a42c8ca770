"""Errors that say what is wrong, where, and what to do. The command line prints them as one line."""

import difflib
from collections.abc import Iterable


class ZeroOutError(Exception):
    """Base of every error that zeroout raises on bad input."""


class ConfigurationError(ZeroOutError):
    """A configuration or an argument is not usable."""


class UnknownNameError(ConfigurationError):
    """A name is not registered; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name = kind, name
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class DataError(ZeroOutError):
    """A data set is missing or malformed."""


class WeightsError(ZeroOutError):
    """Weights are missing, corrupt, or do not fit the architecture."""


class MaskError(ZeroOutError):
    """A mask is corrupt, of another network, or would empty a layer."""


class FileError(ZeroOutError):
    """A file cannot be read or written."""
