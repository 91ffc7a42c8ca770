"""Stages for recalibration, without gradients: sums and ReLUs overwrite what a batch norm has just written."""

import torch
from torch import Tensor, fx, nn

from recognizers.execution.fusion import (
    Version,
    called_modules,
    fused_convolution,
    is_fusible,
    is_norm,
    is_relu,
    only_user,
    other_summand,
    read_attributes,
)


def in_place(graph: fx.Graph, network: nn.Module, version: Version, dtype: torch.dtype) -> fx.GraphModule:
    """A stage that computes what its graph says, with fewer tensors: a pass over memory in cache is a fast one.

    Args:
        graph: of the stage; left unchanged. Its nodes know their ``shape``.
        network: that the graph's paths belong to.
        version: of its modules.
        dtype: for the convolutions to compute in.
    """
    result = fx.Graph()
    result.output(result.graph_copy(graph, {}))
    modules = called_modules(result, network)
    for node in list(result.nodes):
        if is_fusible(modules, node):
            modules[str(node.target)] = fused_convolution(network, (str(node.target),), version, dtype)
        if not is_norm(modules, node):
            continue
        written = node
        if (follower := only_user(written)) and (other := other_summand(follower, written)):
            follower.target, follower.args = _add_to, (written, other, follower.args[0] is written)
            written = follower
        if (follower := only_user(written)) and is_relu(modules, follower):
            follower.op, follower.target, follower.args, follower.kwargs = "call_function", _rectify, (written,), {}
    return fx.GraphModule({**modules, **read_attributes(result, network)}, result)


def _add_to(features: Tensor, other: Tensor, comes_first: bool) -> Tensor:
    """Their sum, of equal shapes; in the memory of ``features`` where the sum would have its type and layout."""
    if features.dtype == torch.result_type(features, other) and features.stride() == other.stride():
        return features.add_(other)
    return features + other if comes_first else other + features  # the first decides on the layout


def _rectify(features: Tensor) -> Tensor:
    return features.relu_()
