"""Sites of reconstruction: the layers whose weights are fitted, and what their output is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from recognizers.execution.fusion import is_hooked, is_relu, only_user, other_summand
from recognizers.execution.stages import Stage
from recognizers.units import is_depthwise


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer in the graph of a stage.

    Attributes:
        path: of the module.
        node: its call.
        norm: path of the batch norm behind it; None where there is none.
        other: what is added to it; None where nothing is.
        target: the node whose value in the original network the layer aims at: its own output, that of its batch
            norm, or the sum.
        relu: whether nothing but a ReLU reads the target.
    """

    path: str
    node: fx.Node
    norm: str | None
    other: fx.Node | None
    target: fx.Node
    relu: bool


def find_sites(stage: Stage, network: nn.Module) -> list[Site]:
    """The sites of a stage, in forward order.

    Depthwise convolutions are none, nor are those that pad with anything but zeros, linear layers that read more than
    one place of a map, and layers with a ``forward`` or hooks of their own.
    """
    assert stage.graph is not None
    modules = {
        str(node.target): network.get_submodule(str(node.target))
        for node in stage.graph.nodes
        if node.op == "call_module"
    }
    sites = []
    for node in stage.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d | nn.Linear) or not _is_known(module, node) or len(node.args) != 1:
            continue
        target, norm, other = node, None, None
        follower = only_user(node)
        if follower is not None and follower.op == "call_module" and _is_norm(modules[str(follower.target)]):
            target, norm = follower, str(follower.target)
            follower = only_user(follower)
        if follower is not None and (summand := other_summand(follower, target)) is not None:
            other, target = summand, follower
            follower = only_user(follower)
        relu = follower is not None and is_relu(modules, follower)
        sites.append(Site(str(node.target), node, norm, other, target, relu))
    return _without_cycles(sites, modules)


def execution_order(graph: fx.Graph, sites: Sequence[Site]) -> list[fx.Node]:
    """The nodes of a stage, each behind what it reads, and sites behind what is added to them."""
    waits = {site.node: [site.other] if site.other is not None else [] for site in sites}
    order: dict[fx.Node, None] = {}
    pending = list(reversed(graph.nodes))
    while pending:
        node = pending.pop()
        missing = [read for read in (*node.all_input_nodes, *waits.get(node, ())) if read not in order]
        if node in order:
            continue
        if missing:
            pending += [node, *missing]
        else:
            order[node] = None
    return list(order)


def _is_known(module: nn.Conv2d | nn.Linear, node: fx.Node) -> bool:
    if is_hooked(module):
        return False
    if type(module) is nn.Linear:
        return len(node.meta["shape"]) == 2
    return type(module) is nn.Conv2d and not is_depthwise(module) and module.padding_mode == "zeros"


def _is_norm(module: nn.Module) -> bool:
    return type(module) is nn.BatchNorm2d and module.running_mean is not None and not is_hooked(module)


def _without_cycles(sites: list[Site], modules: dict[str, nn.Module]) -> list[Site]:
    """Where two sites meet in a sum, the one with more weights makes up for the other's error."""
    size = {site.path: sum(parameter.numel() for parameter in modules[site.path].parameters()) for site in sites}
    result = []
    for site in sites:
        rivals = [rival for rival in sites if rival.target is site.target and rival is not site]
        if any((size[rival.path], rival.path) > (size[site.path], site.path) for rival in rivals):
            own = site.node if site.norm is None else only_user(site.node)
            assert own is not None
            result.append(Site(site.path, site.node, site.norm, None, own, relu=False))
        else:
            result.append(site)
    return result
