"""PCA at initialisation: an untrained network becomes as wide as its maps of noise have principal components."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from recognizers.compaction import compact
from recognizers.dependency import build_unit_table
from recognizers.preparation.config import PcaInit
from recognizers.principal_components import components, layer_contributions

_BATCH = 64


def narrowed_network(network: nn.Module, image_shape: Sequence[int], settings: PcaInit, seed: int) -> nn.Module:
    """A narrower copy of an untrained network.

    Each layer keeps the first k units, where k is the least number of principal components of its feature maps that
    reach the wanted share of the variance. Filters that were drawn at random are as good as each other: which ones stay
    does not matter.

    Args:
        network: as it was initialised; left unchanged.
        image_shape: channels, height and width.
        settings: the share, and how much noise to look at.
        seed: of the noise.
    """
    noise = torch.randn(settings.images, *image_shape, generator=torch.Generator().manual_seed(seed))
    table = build_unit_table(network, noise[:2])
    mask = np.zeros(table.n_units, dtype=np.int8)
    shares = layer_contributions(network, table, noise.split(_BATCH))
    for layer, cumulative in zip(table.layers, shares, strict=True):
        mask[layer.start : layer.start + components(cumulative, settings.contribution)] = 1
    return compact(network, table, mask)
