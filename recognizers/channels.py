"""How many channels of each module are kept, as a function of the mask."""

from collections.abc import Sequence

import numpy as np


class ChannelCounts:
    """Counts kept channels of many modules' sides at once.

    Args:
        sides: the unit of each channel of a side, -1 for one that is always kept; or the number of channels of a side
            none of which can go.
    """

    def __init__(self, sides: Sequence[np.ndarray | int]) -> None:
        prunable = [np.empty(0, np.int64) if isinstance(side, int) else side[side >= 0] for side in sides]
        self._units = np.concatenate([np.empty(0, np.int64), *prunable])
        self._owners = np.repeat(np.arange(len(sides)), [len(units) for units in prunable])
        self._fixed = np.array([side if isinstance(side, int) else int((side < 0).sum()) for side in sides], np.float64)

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Kept channels of each side under ``mask`` (``[n_units]``, 1 kept), ``[sides]`` float64."""
        counts: np.ndarray = self._fixed + np.bincount(
            self._owners, weights=mask[self._units], minlength=len(self._fixed)
        )
        return counts
