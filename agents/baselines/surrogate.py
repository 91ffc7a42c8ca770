"""A model of accuracy, learned from the masks that a search has measured."""

import numpy as np

RIDGE = 0.06
"""Weight of the prior (a unit costs nothing) against the evidence of an average unit."""


class AccuracyModel:
    """Loss of accuracy as a sum over the removed units: ridge regression.

    Units that were never removed are taken to cost nothing, so a search tries them.

    Args:
        n_units: number of units, ``U``.
    """

    def __init__(self, n_units: int) -> None:
        self._gram, self._moment = np.zeros((n_units, n_units)), np.zeros(n_units)
        self._losses = np.zeros(n_units)
        self._states = self._fitted = 0

    def add(self, masks: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> None:
        """Take in measured masks ``[T, U]``, their losses of accuracy ``[T]`` and weights ``[T]``.

        The model is fitted anew whenever it has a tenth more states than before.
        """
        removed = 1.0 - masks
        weighted = removed * weights[:, None]
        self._gram += removed.T @ weighted
        self._moment += weighted.T @ losses
        self._states += len(masks)
        if self._states >= 1.1 * self._fitted:
            self._fitted = self._states
            ridge = RIDGE * max(np.diagonal(self._gram).mean(), np.finfo(np.float64).tiny)
            self._losses = np.linalg.solve(self._gram + ridge * np.eye(len(self._moment)), self._moment)

    def loss(self, mask: np.ndarray) -> float:
        """The loss of accuracy that is expected of a mask, ``[U]``."""
        return float(self._losses[mask == 0].sum())
