"""Stages for passes without gradients: sums and ReLUs overwrite what a batch norm has just written."""

import torch
from torch import Tensor, fx, nn

from recognizers.execution.fusion import called_modules, is_norm, is_relu, only_user, other_summand


def in_place(graph: fx.Graph, network: nn.Module) -> fx.GraphModule:
    """A stage that computes what its graph says, with fewer tensors: a pass over memory in cache is a fast one.

    Args:
        graph: of the stage; left unchanged. Its nodes know their ``shape``.
        network: that the graph's paths belong to.
    """
    result = fx.Graph()
    result.output(result.graph_copy(graph, {}))
    modules = called_modules(result, network)
    for node in list(result.nodes):
        if not is_norm(modules, node):
            continue
        written = node
        if (follower := only_user(written)) and (other := other_summand(follower, written)):
            follower.target, follower.args = _add_to, (written, other)
            written = follower
        if (follower := only_user(written)) and is_relu(modules, follower):
            follower.op, follower.target, follower.args, follower.kwargs = "call_function", _rectify, (written,), {}
    return fx.GraphModule(network, result)


def _add_to(features: Tensor, other: Tensor) -> Tensor:
    """Their sum, of equal shapes; in the memory of the first where that has the sum's type."""
    return features.add_(other) if features.dtype == torch.result_type(features, other) else features + other


def _rectify(features: Tensor) -> Tensor:
    """ReLU, in place of its argument."""
    # Of a single channel relu() returns other strides, by which the next convolution chooses how to compute.
    return features.relu_() if features.shape[1] > 1 else features.relu()
