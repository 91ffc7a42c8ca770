"""Cutting a network into a chain of stages, so that a pass can start behind everything that has not changed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from recognizers.evaluation import training_mode

_OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


@dataclass(frozen=True)
class Stage:
    """One link of the chain: it maps the tensor before it to the tensor behind it.

    Attributes:
        graph: from one placeholder to one output; it calls modules by their path in the network. None for a network
            that is a single stage because its inside is unknown.
        paths: of the modules that it calls, or whose tensors it reads.
        macs: multiply-accumulates of the complete network's convolutions and linear layers, for one image.
        outputs: numbers that it hands on in the complete network, for one image.
        widest: the most numbers that one of its operations reads and writes, for one image.
    """

    graph: fx.Graph | None = field(repr=False)
    paths: frozenset[str]
    macs: int
    outputs: int
    widest: int

    @property
    def first(self) -> str:
        """Path of the convolution or linear layer that a stage of a graph, if not the network's first, begins with."""
        assert self.graph is not None
        return next(str(node.target) for node in self.graph.nodes if node.op == "call_module")

    def module(self, network: nn.Module) -> nn.Module:
        """The stage as a module that calls the modules of ``network``."""
        return network if self.graph is None else fx.GraphModule(network, self.graph)


def cut(network: nn.Module, example: Tensor) -> tuple[Stage, ...]:
    """Cut a network into stages, each of which begins with a convolution or linear layer (the first: with the image).

    A cut is made where a single tensor connects what comes before with what comes after: between the layers of a
    chain, between residual blocks. A network that cannot be traced, uses a module twice, or turns out to compute
    something else when it is run by stages, becomes a single stage.

    Args:
        network: a plain network without in-place operations; left unchanged, in its own mode.
        example: an input batch, ``[N, C, H, W]``.
    """
    whole = Stage(None, frozenset(path for path, _ in network.named_modules()), 0, 0, 0)
    with training_mode(network, False), torch.no_grad():
        try:
            graph = trace(network)
            if graph is None:
                return (whole,)
            sizes = _Sizes(network, graph)
            sizes.run(example)
            stages = tuple(_stage(network, source, nodes, sizes) for source, nodes in _segments(network, graph))
            output = example
            for stage in stages:
                output = stage.module(network)(output)
        except Exception:  # tracing runs the network's own code on stand-ins, which raises whatever it likes
            return (whole,)
        return stages if torch.equal(output, network(example)) else (whole,)


def trace(network: nn.Module) -> fx.Graph | None:
    """The network's graph, without work in place; None where it cannot be run in parts.

    What it raises is up to the network, whose code is run on stand-ins.
    """
    graph = _Tracer().trace(network)
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
            if node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
        # A tensor that is overwritten could not be kept for the next pass.
        name = getattr(node.target, "__name__", node.target)
        if node.op in ("call_function", "call_method") and name.endswith("_"):
            return None
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    repeated = [network.get_submodule(str(path)) for path, count in calls.items() if count > 1]
    return None if any(True for module in repeated for _ in module.parameters()) else graph


def trains_as_it_infers(network: nn.Module) -> bool:
    """Whether a network calls the same modules, and does the same with what they compute, in training."""
    graphs = []
    for training in (False, True):
        with training_mode(network, training):
            try:
                graph = trace(network)
            except Exception:  # as in cut()
                return False
        if graph is None or any(node.op == "get_attr" for node in graph.nodes):
            return False
        graphs.append(str(graph))
    return graphs[0] == graphs[1]


class _Tracer(fx.Tracer):
    """Leaves whole what computes with sliced tensors, or does more than its ``forward`` says."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called, rather than what it consists of."""
        hooked = m._forward_hooks or m._forward_pre_hooks
        return (
            isinstance(m, nn.Conv2d | nn.Linear | BatchNorm | nn.PReLU)
            or bool(hooked)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _segments(network: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Runs of nodes, each with the node whose value it starts from. Reads of attributes belong to their users."""
    nodes = [node for node in graph.nodes if node.op not in ("output", "get_attr")]  # the placeholder comes first
    position = {node: index for index, node in enumerate(nodes)}
    last_use = [max((position.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes]
    source, first = nodes[0], 1
    for index in range(2, len(nodes)):
        alive = [node for node, last in zip(nodes[:index], last_use, strict=False) if last >= index]
        if len(alive) == 1 and is_layer(network, nodes[index]):
            yield source, nodes[first:index]
            source, first = alive[0], index
    yield source, nodes[first:]


def is_layer(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node of the network's graph calls a convolution or linear layer."""
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.Conv2d | nn.Linear)


def _stage(network: nn.Module, source: fx.Node, nodes: Sequence[fx.Node], sizes: _Sizes) -> Stage:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    copies[source] = graph.placeholder("features")
    copies[source].meta = dict(source.meta)
    paths = set()
    for node in nodes:
        for read in node.all_input_nodes:
            if read.op == "get_attr" and read not in copies:
                copies[read] = graph.node_copy(read)
                paths.add(str(read.target).rpartition(".")[0])
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "call_module":
            paths |= {
                f"{node.target}.{path}".rstrip(".")
                for path, _ in network.get_submodule(str(node.target)).named_modules()
            }
    graph.output(copies[nodes[-1]])
    return Stage(
        graph,
        frozenset(paths),
        macs=sum(sizes.macs.get(node, 0) for node in nodes),
        outputs=sizes.numbers[nodes[-1]],
        widest=max(sizes.numbers[node] + sum(sizes.numbers[read] for read in node.all_input_nodes) for node in nodes),
    )


class _Sizes(fx.Interpreter):
    """Runs a graph and notes, for one image, how many numbers each node puts out and its MACs."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.numbers: dict[fx.Node, int] = {}
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        self.numbers[n] = value[0].numel() if isinstance(value, Tensor) and value.ndim > 1 else 0
        n.meta["shape"] = value.shape if isinstance(value, Tensor) else None
        if n.op == "call_module" and isinstance(layer := self.fetch_attr(str(n.target)), nn.Conv2d | nn.Linear):
            self.macs[n] = self.numbers[n] * layer.weight[0].numel()
        return value
