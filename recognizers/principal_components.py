"""Principal components of feature maps: how many directions a layer's channels really use."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.feature_maps import visit_maps
from recognizers.units import UnitTable


def cumulative_contributions(covariance: np.ndarray) -> np.ndarray:
    """Share of the variance that the first 1, 2, ... principal components hold, ``[n]``; all 1 where nothing varies.

    Args:
        covariance: ``[n, n]``, up to a factor.
    """
    variances = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)
    cumulative = np.cumsum(variances)
    if cumulative[-1] <= 0:
        return np.ones(len(variances))
    cumulative /= cumulative[-1]
    return cumulative


def components(cumulative: np.ndarray, contribution: float) -> int:
    """The least number of principal components that together hold a share of the variance.

    Args:
        cumulative: of :func:`cumulative_contributions`.
        contribution: the share, in 0..1.
    """
    return min(int(np.searchsorted(cumulative, contribution - 1e-12)) + 1, len(cumulative))


def layer_contributions(network: nn.Module, table: UnitTable, batches: Iterable[Tensor]) -> list[np.ndarray]:
    """Cumulative contributions of the principal components of each layer's feature maps, ``[n]`` each.

    Every position of every map (see :func:`recognizers.feature_maps.visit_maps`) is a sample of the layer's units. Of a
    layer whose maps cannot be seen, all units are needed.

    Args:
        network: it runs in evaluation mode and is left as it was.
        table: its units.
        batches: images as the network takes them, ``[N, C, H, W]``; for PCA at initialisation noise of that shape.
    """
    sums: dict[int, tuple[int, Tensor, Tensor]] = {}

    def add(layer: int, maps: Tensor) -> None:
        samples = maps.movedim(1, -1).flatten(0, -2).double()  # [M * H * W, n]
        moments = len(samples), samples.sum(0), samples.T @ samples
        if layer in sums:
            count, total, products = sums[layer]
            moments = count + moments[0], total + moments[1], products + moments[2]
        sums[layer] = moments

    visit_maps(network, table, batches, add)
    result = []
    for index, layer in enumerate(table.layers):
        if index not in sums:
            result.append(np.eye(len(layer))[-1])
            continue
        count, total, products = sums[index]
        covariance = products - torch.outer(total, total) / count
        # What rounding leaves of channels that never vary is no variance.
        covariance[covariance.abs() <= 1e-12 * float(products.diagonal().max())] = 0.0
        result.append(cumulative_contributions(covariance.cpu().numpy()))
    return result
