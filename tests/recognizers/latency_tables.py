"""Latency tables that nobody measured."""

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from recognizers.latency_table import LatencyTable, LayerLatency, channel_counts, timed_layers
from recognizers.units import UnitTable

Seconds = Callable[[int, int], float]


def made_up_table(
    network: nn.Module,
    table: UnitTable,
    example: Tensor,
    seconds: Seconds,
    *,
    architecture: str = "network",
    remainder: float = 0.0,
    outputs: Callable[[int, int], list[int]] = lambda least, most: sorted({least, most}),
) -> LatencyTable:
    """A table of ``seconds`` by kept outputs and inputs.

    Args:
        outputs: the grid of a side, from its least and its most channels.
    """
    shapes = timed_layers(network, example)
    counts = channel_counts(network, table, list(shapes))
    least = np.zeros(table.n_units, dtype=np.int8)
    least[[layer.start for layer in table.layers]] = 1
    low, high = (counts(mask).reshape(-1, 2).astype(int) for mask in (least, np.ones(table.n_units, dtype=np.int8)))
    layers = {}
    for index, (path, (weight, positions)) in enumerate(shapes.items()):
        outs, ins = (outputs(int(low[index, side]), int(high[index, side])) for side in (0, 1))
        layers[path] = LayerLatency(
            weight=weight,
            positions=positions,
            outputs=tuple(outs),
            inputs=tuple(ins),
            seconds=tuple(tuple(seconds(out, into) for into in ins) for out in outs),
        )
    return LatencyTable(
        architecture=architecture,
        image=tuple(example.shape[1:]),
        device="paper",
        threads=1,
        torch="0",
        batch_size=1,
        remainder=remainder,
        layers=layers,
    )
