"""PCA: each layer keeps as many units as its feature maps have principal components that matter."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from agents.baselines.allocations import Allocation, meets, removal_mask
from agents.policy import register_allocation
from envs.actions import Action, DiscreteActions, Stop
from envs.objectives import Budget
from envs.pruning import Observation, PruningEnv
from recognizers.criteria import Criterion
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.principal_components import components, layer_contributions
from recognizers.recognizer import Recognizer
from recognizers.sampling import training_sample

Inputs = Literal["data", "noise"]
CONTRIBUTION = 0.99
BATCH = 64


@register_allocation("pca")
class PcaAllocation(Allocation):
    """A layer keeps the least number of units whose principal components hold a share of its feature maps' variance.

    With criterion `l1` this is PaT, PCA after training. The rule alone says how many units go: once they are gone it
    stops. Whether the result counts is up to the objective, so give a tolerance that is wide enough where the network
    is retrained afterwards. Under a budget the share is the same in all layers, and such that the target is just met.

    Args:
        criterion: which units of a layer go first.
        seed: of the images or the noise, and of what the criterion draws.
        contribution: the share, in 0..1; 0.99 by default. Not under a budget, from which it follows.
        inputs: what the feature maps are of: training images, or noise of mean 0 and variance 1.
        images: how many.
    """

    actions = "mask"

    def __init__(
        self,
        criterion: Criterion,
        seed: int = 0,
        contribution: float | None = None,
        inputs: Inputs = "data",
        images: int = 256,
    ) -> None:
        super().__init__(criterion, seed)
        if inputs not in get_args(Inputs):
            raise UnknownNameError("inputs of pca", inputs, get_args(Inputs))
        if images < 1 or not (contribution is None or 0 < contribution <= 1):
            raise ConfigurationError(
                f"pca: images must be at least 1 and contribution in 0..1, got {images} and {contribution}"
            )
        self._contribution, self._inputs, self._images = contribution, inputs, images

    def reset(self, env: PruningEnv) -> None:
        """Score the units, and decide how many go."""
        budget = env.objective if isinstance(env.objective, Budget) else None
        if budget and self._contribution is not None:
            raise ConfigurationError("pca: under a budget the contribution follows from the target: leave it out")
        env.recognizer.reset()
        recognizer = env.recognizer
        self._shares = layer_contributions(recognizer.network, recognizer.table, self._batches(recognizer))
        self._goal = self.counts(env, budget) if budget else self._removed(self._contribution or CONTRIBUTION)
        super().reset(env)

    def act(self, observation: Observation, info: dict[str, Any]) -> Action | Stop:
        """The whole mask, or the next action; a stop once the rule is satisfied."""
        if self._plan is not None and (observation["mask"] <= self._plan).all():
            return Stop.STOP
        return super().act(observation, info)

    def counts(self, env: PruningEnv, target: Budget) -> np.ndarray:
        """As many as the highest share takes that meets the target."""
        shares = np.unique(np.concatenate([[0.0], *self._shares]))
        low, high = 0, len(shares) - 1  # the target is met at low
        while high > low:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if meets(env, target, self._removed(shares[middle])) else (low, middle - 1)
        return self._removed(shares[low])

    def _mask(self, env: PruningEnv) -> np.ndarray:
        return removal_mask(self._order(env), self._goal)

    def _next(self, mask: np.ndarray, valid: np.ndarray) -> int | Stop:
        """Toward the goal; without a target only as far as actions remove no more than is to go."""
        assert isinstance(self._env.actions, DiscreteActions)
        if not isinstance(self._env.objective, Budget):
            missing = self._missing(self._goal, mask)[self._env.action_table.layer_of_action]  # [A]
            sizes = np.array([len(self._env.actions.units(action, mask)) for action in range(len(valid))])
            valid = valid * (sizes <= missing)
            if not valid.any():
                return Stop.STOP
        return self._toward(self._goal, mask, valid)

    def _removed(self, share: float) -> np.ndarray:
        """Units that each layer loses, ``[layers]`` int64."""
        return np.array([len(shares) - components(shares, share) for shares in self._shares])

    def _batches(self, recognizer: Recognizer) -> list[Tensor]:
        if self._inputs == "data":
            images, _ = training_sample(recognizer, self._images, self._generator)
        else:
            shape = self._images, *recognizer.splits.train.images.shape[1:]
            noise = torch.from_numpy(self._generator.standard_normal(shape, dtype=np.float32))
            images = noise.to(recognizer.device)
        return list(images.split(BATCH))
