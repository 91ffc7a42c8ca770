"""The ZeroOut layer: the semantics of pruning."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.units import UnitTable


class ZeroOut(nn.Module):
    """Multiply channels by their mask bit.

    A ZeroOut sits where a layer's output, after batch norm, activation, pooling, sums and concatenations, enters
    one of its consumers. There a zero is exactly what slicing the channel off would give, for every architecture:
    a batch norm or a sigmoid between the layer and its consumer could turn an earlier zero into something else.

    Args:
        units: unit of each input channel, shape ``[C]``; -1 where the channel cannot be pruned.
        channel_dimension: 1 for convolutions (``[N, C, H, W]``), -1 for linear layers (``[..., C]``).
    """

    mask: Tensor

    def __init__(self, units: np.ndarray, channel_dimension: int) -> None:
        super().__init__()
        self.channel_dimension = channel_dimension
        self.units = torch.from_numpy(np.where(units < 0, 0, units))
        self.prunable = torch.from_numpy(units >= 0)
        # Not persistent: the state dict stays that of the plain network.
        self.register_buffer("mask", torch.ones(len(units)), persistent=False)

    def set_mask(self, mask: Tensor) -> None:
        """Take over the bits of this layer's channels from the network's mask, shape ``[n_units]``."""
        bits = torch.where(self.prunable, mask[self.units].to(self.mask.dtype), 1.0)
        self.mask.copy_(bits)

    def forward(self, x: Tensor) -> Tensor:
        """Zero the masked channels of ``x``; the shape stays."""
        if self.channel_dimension == 1:
            return x * self.mask[:, None, None]  # [N, C, H, W] * [C, 1, 1]
        return x * self.mask  # [..., C] * [C]

    def extra_repr(self) -> str:
        """Channels and how many of them can be pruned."""
        return f"channels={len(self.units)}, prunable={int(self.prunable.sum())}"


def insert_zero_outs(network: nn.Module, table: UnitTable) -> None:
    """Give every consumer of prunable units a ZeroOut on its input, as submodule ``zero_out``.

    The network's state dict and its forward code stay as they are.
    """
    for path, slot in table.slots.items():
        if slot.in_units is None:
            continue
        consumer = network.get_submodule(path)
        zero_out = ZeroOut(slot.in_units, channel_dimension=1 if isinstance(consumer, nn.Conv2d) else -1)
        consumer.add_module("zero_out", zero_out.to(consumer.weight.device))  # type: ignore[arg-type]
        consumer.register_forward_pre_hook(mask_input)


def mask_input(consumer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The hook that a ZeroOut is called by."""
    zero_out: ZeroOut = consumer.zero_out  # type: ignore[assignment]
    return (zero_out(inputs[0]), *inputs[1:])


def zero_outs(network: nn.Module) -> Iterator[ZeroOut]:
    """The ZeroOut layers of a network."""
    return (module for module in network.modules() if isinstance(module, ZeroOut))


def set_mask(network: nn.Module, mask: np.ndarray) -> None:
    """Put a mask, shape ``[n_units]``, into all ZeroOut layers of ``network``."""
    bits = torch.from_numpy(np.ascontiguousarray(mask))
    for zero_out in zero_outs(network):
        zero_out.set_mask(bits)
