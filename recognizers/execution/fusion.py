"""Stages for inference: convolution, batch norm, sum and ReLU in one pass over memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from recognizers.execution.convolution import FusedConvolution
from recognizers.execution.pairing import (
    Layout,
    PairedConvolution,
    PairedPool,
    before_conversions,
    gains_by_pairs,
    is_map,
    pair_where,
    takes_pairs,
)
from recognizers.execution.pooling import MaximumPool, is_plain_pool

Version = Callable[[tuple[str, ...]], object]
"""From module paths to a value that changes whenever one of their tensors does."""

_SUMS = (operator.add, torch.add)
_RELUS = (functional.relu, torch.relu, "relu")
_CONVOLUTIONS = (FusedConvolution, PairedConvolution)


def fuse(
    graph: fx.Graph, network: nn.Module, version: Version, dtype: torch.dtype, layout: Layout | None = None
) -> fx.GraphModule:
    """A stage for inference: its convolutions take over the batch norms, sums and ReLUs behind them.

    Max poolings take the fast way where there is one. The stage takes a second argument, ``disposable``: whether it may
    overwrite the features that it is given (by default it does not).

    Args:
        graph: of the stage; left unchanged. Its nodes know their ``shape``.
        network: that the graph's paths belong to, in evaluation mode.
        version: of its modules.
        dtype: for the convolutions to compute in.
        layout: that the stage before hands on, then that of this one, where images may be paired (see
            :mod:`recognizers.execution.pairing`); all must have the size that the graph tells.
    """
    result = without_identities(graph, network)
    modules = replace_pools(result, called_modules(result, network), layout)
    attributes = read_attributes(result, network)
    for node in list(result.nodes):
        if not is_fusible(modules, node):
            continue
        fused, other, relu = [node], None, False
        paths: tuple[str, ...] = (str(node.target),)
        if (follower := only_user(node)) and is_norm(modules, follower):
            fused, paths = [*fused, follower], (*paths, str(follower.target))
        if (follower := only_user(fused[-1])) and (other := other_summand(follower, fused[-1])):
            fused.append(follower)
        if (follower := only_user(fused[-1])) and is_relu(modules, follower):
            fused, relu = [*fused, follower], True
        name = f"fused_{node.name}"
        width = node.all_input_nodes[0].meta["shape"][-1] if layout else None
        modules[name] = fused_convolution(network, paths, version, dtype, relu=relu, width=width)
        with result.inserting_after(fused[-1]):
            replacement = result.call_module(name, (node.args[0], other) if other else (node.args[0],))
            replacement.meta = dict(fused[-1].meta)
        fused[-1].replace_all_uses_with(replacement)
        for replaced in reversed(fused):
            result.erase_node(replaced)
    if layout:
        pair_images(result, modules, layout)
    _tell_disposable(result, modules)
    return fx.GraphModule({**modules, **attributes}, result)


def _tell_disposable(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Tell each fused convolution that adds a tensor whether nobody reads that tensor afterwards."""
    features = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(features):
        disposable = graph.placeholder("disposable", default_value=False)
    position = {node: index for index, node in enumerate(graph.nodes)}
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        # What a conversion hands on may lie in the memory of what it was given.
        for read in () if before_conversions(node) is not node else node.all_input_nodes:
            readers.setdefault(before_conversions(read), []).append(node)

    def is_fused(node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(modules.get(str(node.target)), FusedConvolution)

    for node in filter(is_fused, graph.nodes):
        convolved, *others = map(before_conversions, node.all_input_nodes)
        if convolved in others or len(others) != 1:
            continue
        (other,) = others
        # The results of fused convolutions lie in memory of their own; those of other operations might be views.
        free = all(
            reader is node or (is_fused(reader) and position[reader] < position[node]) for reader in readers[other]
        )
        if free and (other is features or is_fused(other)):
            node.args = (*node.args, disposable if other is features else True)


def pair_images(graph: fx.Graph, modules: dict[str, nn.Module], layout: Layout) -> None:
    """Pair the images for the convolutions of a graph that gain by it; see :func:`pair_where`.

    Args:
        graph: of a stage.
        modules: that it calls.
        layout: of what the stage is given; afterwards, of what it hands on.
    """

    def called(node: fx.Node) -> nn.Module | None:
        return modules.get(str(node.target)) if node.op == "call_module" else None

    def gains(node: fx.Node) -> bool:
        module, reads = called(node), node.all_input_nodes
        return isinstance(module, _CONVOLUTIONS) and gains_by_pairs(module.convolution, reads[0].meta["shape"][2:])

    def keeps(node: fx.Node) -> bool:
        module, reads = called(node), node.all_input_nodes
        if isinstance(module, _CONVOLUTIONS):
            return takes_pairs(module.convolution, reads[0].meta["shape"][2:])
        if isinstance(module, MaximumPool | PairedPool):
            return module.takes_pairs
        return is_norm(modules, node) or is_relu(modules, node) or is_sum_of_maps(node) or _joins_channels(node)

    pair_where(graph, gains, keeps, layout)


def is_sum_of_maps(node: fx.Node) -> bool:
    """Whether a node adds maps of the same shape."""
    shapes = {read.meta.get("shape") for read in (node, *node.all_input_nodes)}
    return node.op == "call_function" and node.target in _SUMS and is_map(node) and len(shapes) == 1


def _joins_channels(node: fx.Node) -> bool:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return node.target is torch.cat and bool(dim == 1) and is_map(node)


def fused_convolution(
    network: nn.Module,
    paths: tuple[str, ...],
    version: Version,
    dtype: torch.dtype,
    *,
    relu: bool = False,
    width: int | None,
) -> FusedConvolution:
    """The convolution at the first of ``paths``, with the batch norm at the second, if there is one."""
    convolution, *norms = (network.get_submodule(path) for path in paths)
    assert isinstance(convolution, nn.Conv2d)
    norm = next((norm for norm in norms if isinstance(norm, nn.BatchNorm2d)), None)
    return FusedConvolution(convolution, norm, relu=relu, version=lambda: version(paths), dtype=dtype, width=width)


def without_identities(graph: fx.Graph, network: nn.Module) -> fx.Graph:
    """A copy of a graph in which the shortcuts and the like that do nothing are not called."""
    result = fx.Graph()
    result.output(result.graph_copy(graph, {}))
    modules = called_modules(result, network)
    for node in list(result.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(module) is nn.Identity and not is_hooked(module):
            node.replace_all_uses_with(node.all_input_nodes[0])
            result.erase_node(node)
    return result


def called_modules(graph: fx.Graph, network: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``network`` that a graph calls, by their paths."""
    return {
        str(node.target): network.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
    }


def replace_pools(graph: fx.Graph, modules: dict[str, nn.Module], layout: Layout | None) -> dict[str, nn.Module]:
    """The ``modules`` that a graph calls, by their paths, with plain max poolings as :class:`MaximumPool`."""
    replaced = dict(modules)
    for path, module in modules.items():
        if is_plain_pool(module) and not is_hooked(module):
            reads = [read for node in graph.nodes if str(node.target) == path for read in node.all_input_nodes]
            rectified = all(is_relu(modules, read) for read in reads)
            replaced[path] = MaximumPool(module, rectified=rectified, width=common_width(reads) if layout else None)
    return replaced


def common_width(nodes: Iterable[fx.Node]) -> int | None:
    """That of the maps that are the values of ``nodes``, if it is one."""
    widths = {node.meta["shape"][-1] for node in nodes}
    return widths.pop() if len(widths) == 1 else None


def read_attributes(graph: fx.Graph, network: nn.Module) -> dict[str, Any]:
    """The tensors of ``network`` that a graph reads, by their paths."""
    targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return {target: operator.attrgetter(target)(network) for target in sorted(targets)}


def is_fusible(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Whether a node is a convolution that :class:`FusedConvolution` knows, and nothing else."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not is_hooked(module)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether a module does more than its ``forward`` says."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that reads ``node``, if there is just one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_norm(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Whether a node is a batch norm with running statistics, and nothing else."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return type(module) is nn.BatchNorm2d and module.running_mean is not None and not is_hooked(module)


def is_relu(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Whether a node is a ReLU and nothing else."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and not is_hooked(module)
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def other_summand(node: fx.Node, summand: fx.Node) -> fx.Node | None:
    """What a node adds to ``summand``, where that has the same shape."""
    if node.op != "call_function" or node.target not in _SUMS or len(node.args) != 2 or node.kwargs:
        return None
    others = [read for read in node.args if read is not summand]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    return others[0] if others[0].meta.get("shape") == node.meta.get("shape") == summand.meta.get("shape") else None
