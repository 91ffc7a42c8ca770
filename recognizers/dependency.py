"""From a network's dependency graph to its unit table."""

import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from recognizers.errors import ConfigurationError
from recognizers.evaluation import training_mode
from recognizers.units import Excluded, Layer, Slot, UnitTable, is_depthwise
from recognizers.verification import sound_layers

PER_CHANNEL = nn.modules.batchnorm._BatchNorm | nn.PReLU
"""Modules that treat every channel on its own, so that slicing a channel leaves the others unchanged."""


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
    return candidate.restricted(sound, _merge_excluded(excluded))


def _check_forward(network: nn.Module, example: Tensor) -> None:
    name = type(network).__name__
    try:
        with torch.enable_grad(), training_mode(network, False):
            output = network(example.clone().requires_grad_())
    except Exception as error:  # the network's own code raises whatever it likes
        raise ConfigurationError(f"{name} fails on images of shape {list(example.shape)}: {error!r}") from error
    if not isinstance(output, Tensor):
        raise ConfigurationError(f"{name} must return logits as one tensor, not {type(output).__name__}")
    if output.grad_fn is None:
        raise ConfigurationError(f"{name} cannot be traced: its output carries no gradient (detach, no_grad, numpy?)")


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
        path, channels = paths[module], _channels(module, "out")
        if is_depthwise(module) or all((path, "out", index) in ties for index in range(channels)):
            continue
        group = graph.get_pruning_group(
            module, graph.get_pruner_of_module(module).prune_out_channels, list(range(channels))
        )
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
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    for parameter in frozen:  # the tracer follows gradients
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), training_mode(network, False), warnings.catch_warnings():
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
    try:
        with torch.no_grad(), training_mode(network, False):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys([*calls, *(path for path, _ in network.named_modules())]))


def _is_producer(network: nn.Module, path: str) -> bool:
    module = network.get_submodule(path)
    return isinstance(module, nn.Conv2d | nn.Linear) and not is_depthwise(module)


def _channels(module: nn.Module, side: str) -> int:
    if isinstance(module, nn.Conv2d):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    return module.num_features
