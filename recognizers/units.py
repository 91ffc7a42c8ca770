"""The unit table: which channels can be pruned, which of them are tied, and where each of them occurs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from recognizers.errors import ConfigurationError

PER_CHANNEL = nn.modules.batchnorm._BatchNorm | nn.PReLU
"""Modules that treat every channel on its own, so that slicing a channel leaves the others unchanged."""


@dataclass(frozen=True)
class Slot:
    """Where units occur in one module: the unit of each channel, or -1 for a channel that is always kept.

    Attributes:
        out_units: ``[out_channels]`` int64, or None where no output channel can be pruned. Modules that treat
            every channel on its own (batch norm, depthwise convolution, PReLU) have only this side.
        in_units: ``[in_channels]`` int64, or None where no input channel can be pruned.
    """

    out_units: np.ndarray | None = None
    in_units: np.ndarray | None = None


@dataclass(frozen=True)
class Layer:
    """A prunable layer: one module, or several whose output channels are tied by sums or channel-wise products.

    Attributes:
        name: module path of the first producer; names the layer everywhere.
        producers: module paths of all modules whose filters the units are.
        start: first unit.
        stop: one past the last unit.
    """

    name: str
    producers: tuple[str, ...]
    start: int
    stop: int

    @property
    def units(self) -> np.ndarray:
        """The units of this layer, ``[n]`` int64."""
        return np.arange(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Excluded:
    """Tied sets of channels that cannot be pruned, and why.

    Attributes:
        name: module path of the first producer.
        producers: module paths of all producers.
        sets: number of tied sets; each would be a unit.
        reason: why not.
    """

    name: str
    producers: tuple[str, ...]
    sets: int
    reason: str


@dataclass(frozen=True)
class UnitTable:
    """All prunable layers of a network, their units' positions in its modules, and what was left out."""

    layers: tuple[Layer, ...]
    slots: dict[str, Slot] = field(repr=False)
    excluded: tuple[Excluded, ...] = ()

    @property
    def n_units(self) -> int:
        """Number of units of the network."""
        return self.layers[-1].stop if self.layers else 0

    @property
    def layer_of_unit(self) -> np.ndarray:
        """Index of the layer of each unit, ``[n_units]`` int64."""
        return np.repeat(np.arange(len(self.layers)), [len(layer) for layer in self.layers])

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            KeyError: there is none.
        """
        return next(layer for layer in self.layers if layer.name == name) if name in self else _missing(name)

    def __contains__(self, name: object) -> bool:
        return any(layer.name == name for layer in self.layers)

    def kept_per_layer(self, mask: np.ndarray) -> dict[str, int]:
        """Number of kept units of each layer under ``mask`` (``[n_units]``, 1 kept)."""
        return {layer.name: int(mask[layer.start : layer.stop].sum()) for layer in self.layers}


def _missing(name: str) -> Layer:
    raise KeyError(name)


def build_unit_table(network: nn.Module, example: Tensor) -> UnitTable:
    """Find the units of a network from its dependency graph.

    The graph (Fang et al. 2023, DepGraph, by the torch-pruning library) says which channels must go together. Tied
    channels become one unit. A layer whose channels reach the network's output, or are mixed by something that
    cannot be sliced, is excluded with a reason; so is one whose sliced network turns out not to compute what the
    masked network computes (checked on ``example``).

    Args:
        network: any traceable module; left unchanged, in its own mode.
        example: an input batch, ``[N, C, H, W]``.
    """
    # Imported here because compaction and verification build on the table.
    from recognizers.verification import sound_layers  # noqa: PLC0415

    _check_forward(network, example)
    candidate, excluded = _graph_units(network, example)
    sound, faults = sound_layers(network, candidate, example)
    if faults:
        excluded = [
            *excluded,
            *(
                Excluded(layer.name, layer.producers, len(layer), faults[layer.name])
                for layer in candidate.layers
                if layer.name in faults
            ),
        ]
    return _restrict(candidate, sound, _merge_excluded(excluded))


def _check_forward(network: nn.Module, example: Tensor) -> None:
    name = type(network).__name__
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.enable_grad():
            output = network.eval()(example.clone().requires_grad_())
    except Exception as error:  # the network's own code raises whatever it likes
        raise ConfigurationError(f"{name} fails on images of shape {list(example.shape)}: {error!r}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(output, Tensor):
        raise ConfigurationError(f"{name} must return logits as one tensor, not {type(output).__name__}")
    if output.grad_fn is None:
        raise ConfigurationError(f"{name} cannot be traced: its output carries no gradient (detach, no_grad, numpy?)")


def restrict(table: UnitTable, names: set[str]) -> UnitTable:
    """The same table with only the named layers prunable."""
    return _restrict(table, names, table.excluded)


def _restrict(table: UnitTable, names: set[str], excluded: tuple[Excluded, ...]) -> UnitTable:
    renumber = np.full(table.n_units + 1, -1)  # the last entry maps -1 to -1
    layers, start = [], 0
    for layer in table.layers:
        if layer.name in names:
            renumber[layer.start : layer.stop] = np.arange(start, start + len(layer))
            layers.append(Layer(layer.name, layer.producers, start, start + len(layer)))
            start += len(layer)

    def side(units: np.ndarray | None) -> np.ndarray | None:
        renumbered = None if units is None else renumber[units]
        return None if renumbered is None or (renumbered < 0).all() else renumbered

    slots = {path: Slot(side(slot.out_units), side(slot.in_units)) for path, slot in table.slots.items()}
    slots = {path: slot for path, slot in slots.items() if slot.out_units is not None or slot.in_units is not None}
    return UnitTable(tuple(layers), slots, excluded)


def _merge_excluded(excluded: list[Excluded]) -> tuple[Excluded, ...]:
    """One entry per producers and reason: a padded shortcut can split one layer's channels into several candidates."""
    merged: dict[str, Excluded] = {}
    for entry in excluded:
        if (first := merged.get(entry.name)) is None:
            merged[entry.name] = entry
        else:
            producers = tuple(dict.fromkeys((*first.producers, *entry.producers)))
            merged[entry.name] = Excluded(entry.name, producers, first.sets + entry.sets, first.reason)
    return tuple(merged.values())


# --- from the dependency graph to units -----------------------------------------------------------------------------

Channel = tuple[str, str, int]
"""(module path, side ``out`` or ``in``, index): one channel of one side of one module."""


class _Ties:
    """Union-find over channels."""

    def __init__(self) -> None:
        self._parent: dict[Channel, Channel] = {}

    def find(self, channel: Channel) -> Channel:
        root = channel
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while (parent := self._parent[channel]) != root:
            self._parent[channel], channel = root, parent
        return root

    def tie(self, one: Channel, other: Channel) -> None:
        self._parent[self.find(one)] = self.find(other)

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._parent

    def components(self) -> Iterator[list[Channel]]:
        components: dict[Channel, list[Channel]] = defaultdict(list)
        for channel in self._parent:
            components[self.find(channel)].append(channel)
        return iter(components.values())


def _graph_units(network: nn.Module, example: Tensor) -> tuple[UnitTable, list[Excluded]]:
    """Tie channels as the dependency graph says; group units with equal producers into layers."""
    ties, faults = _Ties(), dict[Channel, str]()
    order = {path: position for position, path in enumerate(_call_order(network, example))}
    graph = _dependency_graph(network, example)
    paths = {module: path for path, module in network.named_modules()}
    producers = sorted(
        (module for module in graph.module2node if isinstance(module, nn.Conv2d | nn.Linear)),
        key=lambda module: order[paths[module]],
    )
    for module in producers:
        path, channels = paths[module], _out_channels(module)
        if is_depthwise(module) or all((path, "out", index) in ties for index in range(channels)):
            continue
        group = graph.get_pruning_group(module, _pruning_function(graph, module), list(range(channels)))
        for item in group.items:
            _tie_item(ties, faults, path, item, paths)
    for module in producers:
        _tie_groups(ties, paths[module], module)

    members: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[list[Channel]]] = defaultdict(list)
    for component in ties.components():
        sources = sorted(
            {path for path, side, _ in component if side == "out" and _is_producer(network, path)},
            key=order.__getitem__,
        )
        if not sources:
            continue
        sinks = sorted({path for path, side, _ in component if side == "in"})
        reason = next((faults[channel] for channel in component if channel in faults), "")
        if not reason and not sinks:
            reason = "no layer takes its channels: they are the network's output, or are split or reordered on the way"
        members[tuple(sources), tuple(sinks), reason].append(component)
    return _number(network, members, order)


def _number(
    network: nn.Module,
    members: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[list[Channel]]],
    order: dict[str, int],
) -> tuple[UnitTable, list[Excluded]]:
    """Number the units layer by layer in forward order and write their positions into slots."""
    layers: list[Layer] = []
    excluded: list[Excluded] = []
    sides: dict[tuple[str, str], np.ndarray] = {}
    names: set[str] = set()
    unit = 0
    for (sources, _, reason), components in sorted(members.items(), key=lambda entry: order[entry[0][0][0]]):
        name = sources[0]
        if reason:
            excluded.append(Excluded(name, sources, len(components), reason))
            continue
        # Channels of one module can fall into differently tied sets; each set is a layer with a name of its own.
        while name in names:
            name += "+"
        names.add(name)
        start = unit
        first = {
            id(component): min(index for path, side, index in component if path == sources[0] and side == "out")
            for component in components
        }
        for component in sorted(components, key=lambda component: first[id(component)]):
            for path, side, index in component:
                if (path, side) not in sides:
                    sides[path, side] = np.full(_channels(network.get_submodule(path), side), -1)
                sides[path, side][index] = unit
            unit += 1
        layers.append(Layer(name, sources, start, unit))
    slots = {path: Slot(sides.get((path, "out")), sides.get((path, "in"))) for path, _ in sides}
    return UnitTable(tuple(layers), slots), excluded


def _dependency_graph(network: nn.Module, example: Tensor) -> torch_pruning.DependencyGraph:
    training = [(module, module.training) for module in network.modules()]
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    for parameter in frozen:  # the tracer follows gradients
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(network, example_inputs=example, verbose=False)
    except Exception as error:  # the tracer raises whatever it stumbles over
        raise ConfigurationError(
            f"{type(network).__name__} cannot be traced for its channel dependencies (torch-pruning: {error!r}); "
            "data-dependent control flow and channel shuffles are known limits"
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in training:
            module.training = mode


def _pruning_function(graph: torch_pruning.DependencyGraph, module: nn.Module) -> object:
    return graph.get_pruner_of_module(module).prune_out_channels


def _tie_item(ties: _Ties, faults: dict[Channel, str], root: str, item: object, paths: dict[nn.Module, str]) -> None:
    """Tie the channels of one group member to the root's channels, or note why the root's cannot be pruned."""
    dependency, indices, roots = item.dep, item.idxs, item.root_idxs  # type: ignore[attr-defined]
    module = dependency.target.module
    if isinstance(module, nn.Parameter):
        reason = "its channels meet a bare parameter of the network"
    elif not isinstance(module, nn.Module) or module not in paths:  # an operation of the graph
        if not isinstance(module, torch_pruning.ops._OutputOp):
            return
        reason = "its channels are the network's output"
    elif isinstance(module, nn.Conv2d | nn.Linear | PER_CHANNEL):
        side = "out"
        if isinstance(module, nn.Conv2d | nn.Linear) and not is_depthwise(module):
            side = "out" if dependency.handler.__name__ == "prune_out_channels" else "in"
        elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return
        limit = _channels(module, side)
        for index, origin in zip(indices, roots, strict=True):
            if index < limit:
                ties.tie((paths[module], side, index), (root, "out", origin))
        return
    elif not any(True for _ in module.parameters()):
        return  # activations, pooling: they work channel by channel
    else:
        reason = f"{type(module).__name__} {paths[module]!r} mixes its channels"
    for origin in set(roots):
        channel = (root, "out", origin)
        ties.find(channel)
        faults.setdefault(channel, reason)


def _tie_groups(ties: _Ties, path: str, module: nn.Module) -> None:
    """In a grouped convolution the same position of every group goes together, so that the groups stay equal."""
    if not isinstance(module, nn.Conv2d) or module.groups == 1 or is_depthwise(module):
        return
    for side, channels in (("out", module.out_channels), ("in", module.in_channels)):
        size = channels // module.groups
        for index in range(size, channels):
            if (path, side, index) in ties:
                ties.tie((path, side, index), (path, side, index % size))


def _call_order(network: nn.Module, example: Tensor) -> list[str]:
    """Module paths in the order of their (first) calls, modules never called last."""
    calls: dict[str, None] = {}
    handles = [
        module.register_forward_hook(lambda *_, path=path: calls.setdefault(path))
        for path, module in network.named_modules()
    ]
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return list(dict.fromkeys([*calls, *(path for path, _ in network.named_modules())]))


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that treats every channel on its own."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def _is_producer(network: nn.Module, path: str) -> bool:
    module = network.get_submodule(path)
    return isinstance(module, nn.Conv2d | nn.Linear) and not is_depthwise(module)


def _out_channels(module: nn.Module) -> int:
    return _channels(module, "out")


def _channels(module: nn.Module, side: str) -> int:
    if isinstance(module, nn.Conv2d):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    return module.num_features
