"""Errors that say what is wrong, where, and what to do. The command line prints them as one line."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol


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


class _Listed(Protocol):
    """An error of pydantic's, or of what builds on it."""

    def errors(self) -> Sequence[Any]: ...


def first_fault(error: _Listed) -> str:
    """The first thing that pydantic refuses: where it is and what is wrong."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def in_one_line(error: BaseException, longest: int | None = None) -> str:
    """An error's text without line breaks, cut to ``longest`` characters."""
    return " ".join(str(error).split())[:longest]
