"""Actions: which units one action removes."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field

from recognizers.criteria import criterion
from recognizers.errors import ConfigurationError
from recognizers.recognizer import Recognizer

Kind = Literal["unit", "block", "layer", "mask"]

Action = int | np.integer[Any] | np.ndarray
"""An index, or for kind ``mask`` a vector of bits."""


class Stop(Enum):
    """What a policy gives in place of an action to end its episode where it is."""

    STOP = "stop"


class ActionsConfig(BaseModel):
    """The action space."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind = Field(
        "block",
        description="unit: one unit; block: a fixed block of units of one layer; "
        "layer: the least important remaining chunk of one layer; mask: any units at once, as a vector of bits",
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
    """Maps actions to units for one recognizer."""

    @property
    @abstractmethod
    def space(self) -> spaces.Space[Any]:
        """Of the actions."""

    @property
    @abstractmethod
    def domain(self) -> str:
        """What an action is, for messages."""

    @abstractmethod
    def units(self, action: Action, mask: np.ndarray) -> np.ndarray:
        """The units, least important first, that ``action`` removes under ``mask`` (``[U]``); ``[k]`` int64."""

    @abstractmethod
    def fault(self, action: Action, mask: np.ndarray) -> str | None:
        """Why an action of the space is not valid under ``mask`` (``[U]``); None where it is."""

    @abstractmethod
    def record(self, action: Action) -> int | str:
        """An action as JSON holds it."""

    @abstractmethod
    def recall(self, record: int | str) -> Action:
        """The action of a record.

        Raises:
            ValueError: it is none of these actions.
        """

    @abstractmethod
    def reach(self) -> np.ndarray:
        """The smallest mask that every sequence of valid actions can be continued to, ``[U]`` int8."""

    @abstractmethod
    def valid(self, mask: np.ndarray) -> np.ndarray:
        """Which actions are valid under ``mask`` (``[U]``): they remove something and leave their layer a unit.

        Returns:
            ``[A]`` int8, 1 valid; for kind ``mask`` the units that may be removed, ``[U]``.
        """


class DiscreteActions(Actions):
    """Actions that are indices.

    Attributes:
        table: what is known of the actions beforehand.
    """

    table: ActionTable
    _layer_names: list[str]

    def __len__(self) -> int:
        return len(self.table.layer_of_action)

    @property
    def space(self) -> spaces.Discrete[np.int64]:
        """One index per action."""
        return spaces.Discrete(len(self))

    @property
    def domain(self) -> str:
        """An index."""
        return f"an integer in 0..{len(self) - 1}"

    def fault(self, action: Action, mask: np.ndarray) -> str | None:
        """Its units are gone, or are all that is left of their layer."""
        if self.valid(mask)[action]:
            return None
        return (
            "its units are gone already or are the last of layer "
            f"{self._layer_names[self.table.layer_of_action[action]]!r}; choose among info['action_mask']"
        )

    def record(self, action: Action) -> int:
        """The index."""
        return int(action)  # type: ignore[arg-type]  # a number here

    def recall(self, record: int | str) -> int:
        """The index."""
        if not isinstance(record, int):
            raise ValueError(f"{record!r} is no index of an action")
        return record


class MaskActions(Actions):
    """An action says of each unit whether it stays, all at once: a vector of bits, 1 stays.

    Bits of units that are gone already count for nothing.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self._table = recognizer.table
        self._size = recognizer.n_units

    @property
    def space(self) -> spaces.MultiBinary:
        """One bit per unit."""
        return spaces.MultiBinary(self._size)

    @property
    def domain(self) -> str:
        """A vector."""
        return f"a vector of {self._size} bits (int8)"

    def reach(self) -> np.ndarray:
        """One unit of every layer."""
        mask = np.zeros(self._size, dtype=np.int8)
        mask[[layer.start for layer in self._table.layers]] = 1
        return mask

    def units(self, action: Action, mask: np.ndarray) -> np.ndarray:
        """The kept units whose bits are 0."""
        return np.flatnonzero((mask != 0) & (np.asarray(action) == 0))

    def valid(self, mask: np.ndarray) -> np.ndarray:
        """The kept units of layers that have more than one."""
        valid: np.ndarray = mask != 0
        for layer in self._table.layers:
            valid[layer.start : layer.stop] &= mask[layer.start : layer.stop].sum() > 1
        return valid.astype(np.int8)

    def fault(self, action: Action, mask: np.ndarray) -> str | None:
        """It removes nothing, or all that is left of a layer."""
        after = mask.copy()
        after[self.units(action, mask)] = 0
        if (after == mask).all():
            return "it removes nothing: the bits of some kept units must be 0"
        empty = [layer.name for layer in self._table.layers if not after[layer.start : layer.stop].any()]
        return f"it would leave no unit of layer {empty[0]!r}" if empty else None

    def record(self, action: Action) -> str:
        """The bits in hexadecimal digits."""
        return np.packbits(np.asarray(action, dtype=np.uint8)).tobytes().hex()

    def recall(self, record: int | str) -> np.ndarray:
        """The bits."""
        if not isinstance(record, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * ((self._size + 7) // 8)}}}", record):
            raise ValueError(f"{record!r} is no mask of {self._size} units")
        bits: np.ndarray = np.unpackbits(np.frombuffer(bytes.fromhex(record), dtype=np.uint8))
        return bits[: self._size].astype(np.int8)


class BlockActions(DiscreteActions):
    """Every action removes its own fixed block of units of one layer; a block of one is the kind ``unit``."""

    def __init__(self, recognizer: Recognizer, blocks: list[np.ndarray]) -> None:
        self._blocks = blocks
        self._layer_names = [layer.name for layer in recognizer.table.layers]
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

    def units(self, action: Action, mask: np.ndarray) -> np.ndarray:
        """The kept units of the block."""
        block = self._blocks[int(action)]
        kept: np.ndarray = block[mask[block] != 0]
        return kept

    def valid(self, mask: np.ndarray) -> np.ndarray:
        """Blocks with kept units that are not all that is left of their layer."""
        kept = mask != 0
        in_block = np.bincount(self.table.action_of_unit[kept], minlength=len(self))
        in_layer = np.bincount(self._layer_of_unit[kept], minlength=int(self._layer_of_unit[-1]) + 1)
        valid: np.ndarray = (in_block > 0) & (in_block < in_layer[self.table.layer_of_action])
        return valid.astype(np.int8)


class LayerActions(DiscreteActions):
    """Every action removes the least important remaining chunk of its layer: the policy chooses the allocation."""

    def __init__(self, recognizer: Recognizer, ranked: list[np.ndarray], per_layer: int) -> None:
        self._ranked, self._layer_names = ranked, [layer.name for layer in recognizer.table.layers]
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

    def units(self, action: Action, mask: np.ndarray) -> np.ndarray:
        """The next chunk of the layer's order; one unit always stays."""
        ranked = self._ranked[int(action)]
        kept: np.ndarray = ranked[mask[ranked] != 0]
        return kept[: min(self._chunk[int(action)], len(kept) - 1)]

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
    if config.kind == "mask":
        return MaskActions(recognizer)
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
            *recognizer.costs.reductions(mask)[:2],
            len(units) / len(layers[layer]),
        )
    return features
