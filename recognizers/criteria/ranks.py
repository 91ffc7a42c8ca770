"""HRank: how much a unit's feature maps hold, by their rank."""

import numpy as np
import torch
from torch import Tensor

from recognizers.criteria.registry import register_criterion
from recognizers.criteria.weights import l1
from recognizers.feature_maps import visit_maps
from recognizers.recognizer import Recognizer
from recognizers.sampling import training_sample

IMAGES, BATCH = 256, 64


@register_criterion("hrank")
def hrank(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Mean rank of a unit's feature maps over seeded training images (Lin et al. 2020, "HRank").

    Maps are those that the next layers read, behind activation and pooling; of tied units the mean is taken over all
    places where they are read. Units of equal rank, as on tiny maps, are ordered by the L1 norm of their filters.
    """
    images, _ = training_sample(recognizer, IMAGES, generator)
    layers, counts = recognizer.table.layers, np.zeros(recognizer.n_units)
    total = np.zeros(recognizer.n_units)

    def add(layer: int, maps: Tensor) -> None:
        units = layers[layer].units
        total[units] += ranks(maps).sum(0).cpu().numpy()
        counts[units] += len(maps)

    visit_maps(recognizer.network, recognizer.table, images.split(BATCH), add)
    counts = np.maximum(counts, 1)
    norms = l1(recognizer, generator)
    # Different means differ by at least 1 / count.
    scores: np.ndarray = total / counts + norms / max(norms.max(), np.finfo(np.float64).tiny) / (2 * counts)
    return scores


def ranks(maps: Tensor) -> Tensor:
    """Ranks of matrices ``[..., H, W]``, as int64 ``[...]``."""
    result: Tensor = torch.linalg.matrix_rank(maps)
    return result
