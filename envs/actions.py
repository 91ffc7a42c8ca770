"""Actions: which units one discrete action removes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from recognizers.criteria import criterion
from recognizers.errors import ConfigurationError
from recognizers.recognizer import Recognizer

Kind = Literal["unit", "block", "layer"]


class ActionsConfig(BaseModel):
    """The action space."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind = Field(
        "block",
        description="unit: one unit; block: a fixed block of units of one layer; "
        "layer: the least important remaining chunk of one layer",
    )
    per_layer: int = Field(16, ge=2, description="blocks, or chunks, that a layer is divided into (at most its units)")
    criterion: str = Field("l1", description="orders the units of a layer before it is divided into blocks or chunks")


@dataclass(frozen=True)
class ActionTable:
    """What a policy may know of the actions beforehand.

    Attributes:
        layer_of_action: index of the layer each action acts on, ``[A]`` int64.
        action_of_unit: the one action that can remove each unit, ``[U]`` int64.
        features: ``[A, 5]`` float32: depth of the layer and position in the layer (0 first, 1 last), share of the
            parameters and of the MACs that the action alone removes, and its share of the layer's units.
    """

    layer_of_action: np.ndarray
    action_of_unit: np.ndarray
    features: np.ndarray


class Actions(ABC):
    """Maps actions to units for one recognizer.

    Attributes:
        table: what is known of the actions beforehand.
    """

    table: ActionTable

    def __len__(self) -> int:
        return len(self.table.layer_of_action)

    @abstractmethod
    def units(self, action: int, mask: np.ndarray) -> np.ndarray:
        """The units, least important first, that ``action`` removes under ``mask`` (``[U]``); ``[k]`` int64."""

    @abstractmethod
    def reach(self) -> np.ndarray:
        """The smallest mask that every sequence of valid actions can be continued to, ``[U]`` int8."""

    @abstractmethod
    def valid(self, mask: np.ndarray) -> np.ndarray:
        """Which actions are valid under ``mask`` (``[U]``): they remove something and leave their layer a unit.

        Returns:
            ``[A]`` int8, 1 valid.
        """


class BlockActions(Actions):
    """Every action removes its own fixed block of units of one layer; a block of one is the kind ``unit``."""

    def __init__(self, recognizer: Recognizer, blocks: list[np.ndarray]) -> None:
        self._blocks = blocks
        self._layer_of_unit = recognizer.table.layer_of_unit
        layer_of_action = np.array([self._layer_of_unit[block[0]] for block in blocks])
        action_of_unit = np.empty(recognizer.n_units, dtype=np.int64)
        for action, block in enumerate(blocks):
            action_of_unit[block] = action
        self.table = ActionTable(layer_of_action, action_of_unit, _features(recognizer, layer_of_action, blocks))

    def reach(self) -> np.ndarray:
        """The largest block of every layer: whichever comes last must stay."""
        mask = np.zeros(len(self.table.action_of_unit), dtype=np.int8)
        for layer in np.unique(self.table.layer_of_action):
            mask[
                max((self._blocks[action] for action in np.flatnonzero(self.table.layer_of_action == layer)), key=len)
            ] = 1
        return mask

    def units(self, action: int, mask: np.ndarray) -> np.ndarray:
        """The kept units of the block."""
        block = self._blocks[action]
        kept: np.ndarray = block[mask[block] != 0]
        return kept

    def valid(self, mask: np.ndarray) -> np.ndarray:
        """Blocks with kept units that are not all that is left of their layer."""
        kept = mask != 0
        in_block = np.bincount(self.table.action_of_unit[kept], minlength=len(self))
        in_layer = np.bincount(self._layer_of_unit[kept], minlength=int(self._layer_of_unit[-1]) + 1)
        valid: np.ndarray = (in_block > 0) & (in_block < in_layer[self.table.layer_of_action])
        return valid.astype(np.int8)


class LayerActions(Actions):
    """Every action removes the least important remaining chunk of its layer: the policy chooses the allocation."""

    def __init__(self, recognizer: Recognizer, ranked: list[np.ndarray], per_layer: int) -> None:
        self._ranked = ranked
        self._chunk = [max(1, round(len(units) / per_layer)) for units in ranked]
        layers = np.arange(len(ranked))
        self.table = ActionTable(
            layers,
            recognizer.table.layer_of_unit,
            _features(recognizer, layers, [units[:chunk] for units, chunk in zip(ranked, self._chunk, strict=True)]),
        )

    def reach(self) -> np.ndarray:
        """One unit of every layer."""
        mask = np.zeros(len(self.table.action_of_unit), dtype=np.int8)
        mask[[ranked[-1] for ranked in self._ranked]] = 1
        return mask

    def units(self, action: int, mask: np.ndarray) -> np.ndarray:
        """The next chunk of the layer's order; one unit always stays."""
        ranked = self._ranked[action]
        kept: np.ndarray = ranked[mask[ranked] != 0]
        return kept[: min(self._chunk[action], len(kept) - 1)]

    def valid(self, mask: np.ndarray) -> np.ndarray:
        """Layers with more than one kept unit."""
        return np.array([mask[ranked].sum() > 1 for ranked in self._ranked], dtype=np.int8)


def build_actions(recognizer: Recognizer, config: ActionsConfig) -> Actions:
    """The actions that the settings describe. The order within layers is that of the base weights, drawn once.

    Raises:
        ConfigurationError: the recognizer has nothing to prune.
    """
    table = recognizer.table
    if not table.layers:
        raise ConfigurationError(
            f"{recognizer.architecture} has no prunable layer; `zeroout recognizer info` says why each is left out"
        )
    if config.kind == "unit":
        return BlockActions(recognizer, [np.array([unit]) for unit in range(table.n_units)])
    scores = criterion(config.criterion)(recognizer, np.random.default_rng(0))
    ranked = [layer.units[np.argsort(scores[layer.start : layer.stop], kind="stable")] for layer in table.layers]
    if config.kind == "layer":
        return LayerActions(recognizer, ranked, config.per_layer)
    blocks = [block for units in ranked for block in np.array_split(units, min(config.per_layer, len(units)))]
    return BlockActions(recognizer, blocks)


def _features(recognizer: Recognizer, layer_of_action: np.ndarray, removed: list[np.ndarray]) -> np.ndarray:
    """Static features of the actions, see :class:`ActionTable`."""
    layers = recognizer.table.layers
    features = np.empty((len(removed), 5), dtype=np.float32)
    first = {layer: int(np.flatnonzero(layer_of_action == layer)[0]) for layer in range(len(layers))}
    siblings = np.bincount(layer_of_action, minlength=len(layers))
    for action, (layer, units) in enumerate(zip(layer_of_action, removed, strict=True)):
        mask = np.ones(recognizer.n_units, dtype=np.int8)
        mask[units] = 0
        features[action] = (
            layer / max(len(layers) - 1, 1),
            (action - first[layer]) / max(siblings[layer] - 1, 1),
            *recognizer.costs.reductions(mask),
            len(units) / len(layers[layer]),
        )
    return features
