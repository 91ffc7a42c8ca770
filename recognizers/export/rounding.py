"""Channel counts in multiples, as processors like them."""

import numpy as np

from recognizers.units import UnitTable


def round_up(table: UnitTable, mask: np.ndarray, multiple: int, scores: np.ndarray) -> np.ndarray:
    """Give units back until every pruned layer has a multiple of so many output channels, or all that it had.

    Of each layer the removed units of the highest scores come back, and no more than are needed. Tied channels and the
    groups of a convolution come back together.

    Args:
        table: of the network.
        mask: ``[n_units]``, 1 kept.
        multiple: at least 1.
        scores: ``[n_units]``, comparable within a layer, the higher the more important.

    Returns:
        A mask that keeps what ``mask`` keeps, and more.
    """
    rounded = mask.copy()
    producers = [table.slots[path].out_units for layer in table.layers for path in layer.producers]
    before = -1
    # A unit that comes back for one module can break the count of another that it is tied to.
    while before != (before := int(rounded.sum())):
        for units in producers:
            assert units is not None
            while (
                len(removed := units[(units >= 0) & (rounded[units] == 0)]) and (len(units) - len(removed)) % multiple
            ):
                rounded[removed[scores[removed].argmax()]] = 1
    return rounded
