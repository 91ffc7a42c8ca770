"""Least-squares problems, and their solutions by numpy."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recognizers.reconstruction.least_squares import Moments, moments


@dataclass(frozen=True)
class Problem:
    """Samples of a layer: inputs ``[N, d]``, targets ``[N, m]``, and the inputs that belong to each unit."""

    inputs: Tensor
    targets: Tensor
    groups: list[Tensor]

    @property
    def data(self) -> Moments:
        return moments(self.inputs, self.targets)

    def best(self, removed: list[int]) -> tuple[Tensor, float]:
        """Weights, 0 where units are removed, and squared error, by numpy."""
        gone = torch.cat([self.groups[unit] for unit in removed]) if removed else torch.empty(0, dtype=torch.int64)
        kept = np.setdiff1d(np.arange(self.inputs.shape[1]), gone.numpy())
        weights = torch.zeros(self.inputs.shape[1], self.targets.shape[1], dtype=torch.float64)
        solution = np.linalg.lstsq(self.inputs[:, kept].numpy(), self.targets.numpy(), rcond=None)[0]
        weights[torch.from_numpy(kept)] = torch.from_numpy(solution)
        return weights, self.error(weights)

    def error(self, weights: Tensor) -> float:
        return float((self.inputs @ weights - self.targets).square().sum())


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_problem(seed: int, units: int = 5, of_each: int = 2, outputs: int = 3, samples: int = 40) -> Problem:
    """Correlated inputs, and targets that they explain in part."""
    inputs = normal(seed, samples, units * of_each) @ normal(seed + 1, units * of_each, units * of_each)
    targets = inputs @ normal(seed + 2, units * of_each, outputs) + normal(seed + 3, samples, outputs)
    return Problem(inputs, targets, list(torch.arange(units * of_each).view(units, of_each)))
