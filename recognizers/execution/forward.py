"""Lending modules another forward pass for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def lent_forward(modules: Sequence[Module], forward: Callable[[Module, Tensor], Tensor]) -> Iterator[None]:
    """Within, calls of each of ``modules`` go to ``forward``, with the module and its input."""
    for module in modules:
        module.forward = partial(forward, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
