"""What is known of each unit before anything is pruned, in numbers that mean the same in any network."""

from weakref import WeakKeyDictionary

import numpy as np

from recognizers.baseline import Baseline
from recognizers.criteria import criterion
from recognizers.recognizer import Recognizer

UNIT_FEATURES = ("norm", "batch_norm", "rank", "error", "parameters", "macs")
"""Columns: L1 norm of the filter, batch-norm scale and rank of the feature map, each in standard deviations from the
layer's mean (at most 3); logarithm of the relative error after the layer's units up to this one were removed and all
others reconstructed (0: at most 1e-6, 1: all is lost); its own share of the network's parameters and of its MACs, times
the number of units."""

_STANDARDISED = {"norm": "l1", "batch_norm": "bn", "rank": "hrank"}
_LEAST_ERROR = 1e-6
_WIDEST = 3.0

_known: WeakKeyDictionary[Baseline, np.ndarray] = WeakKeyDictionary()


def unit_features(recognizer: Recognizer) -> np.ndarray:
    """The features of all units of the complete network, ``[n_units, 6]`` float32, see :data:`UNIT_FEATURES`.

    They are computed once per baseline, from weights and training images. The recognizer's state stays.
    """
    baseline = recognizer.baseline
    if baseline not in _known:
        state = recognizer.snapshot()
        try:
            recognizer.reset()
            _known[baseline] = _compute(recognizer)
        finally:
            recognizer.restore(state)
    return _known[baseline]


def unit_feature_bounds(n_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest values of the features of each unit, ``[n_units, 6]`` float32 each."""
    low = np.array([-_WIDEST, -_WIDEST, -_WIDEST, 0.0, 0.0, 0.0], dtype=np.float32)
    high = np.array([_WIDEST, _WIDEST, _WIDEST, 1.0, n_units, n_units], dtype=np.float32)
    return np.tile(low, (n_units, 1)), np.tile(high, (n_units, 1))


def kept_shares(recognizer: Recognizer, mask: np.ndarray) -> np.ndarray:
    """Kept share of each unit's layer under ``mask`` (``[n_units]``), ``[n_units]`` float32."""
    shares = np.empty(len(mask), dtype=np.float32)
    for layer in recognizer.table.layers:
        shares[layer.start : layer.stop] = mask[layer.start : layer.stop].mean()
    return shares


def _compute(recognizer: Recognizer) -> np.ndarray:
    def scores(name: str) -> np.ndarray:
        return criterion(name)(recognizer, np.random.default_rng(0))

    features = np.empty((recognizer.n_units, len(UNIT_FEATURES)), dtype=np.float32)
    for column, name in enumerate(_STANDARDISED.values()):
        features[:, column] = _standardised(scores(name), recognizer)
    error = np.clip(scores("reap"), _LEAST_ERROR, 1.0)
    features[:, 3] = 1.0 - np.log(error) / np.log(_LEAST_ERROR)
    for unit in range(recognizer.n_units):
        mask = np.ones(recognizer.n_units, dtype=np.int8)
        mask[unit] = 0
        features[unit, 4:] = recognizer.costs.reductions(mask)[:2]
    features[:, 4:] *= recognizer.n_units
    return features


def _standardised(scores: np.ndarray, recognizer: Recognizer) -> np.ndarray:
    """Standard deviations from the mean of the layer, within bounds; 0 where all units are alike."""
    result = np.zeros_like(scores)
    for layer in recognizer.table.layers:
        part = scores[layer.start : layer.stop]
        spread = part.std()
        if spread > 1e-9 * max(abs(part.mean()), np.finfo(np.float64).tiny):
            result[layer.start : layer.stop] = np.clip((part - part.mean()) / spread, -_WIDEST, _WIDEST)
    return result
