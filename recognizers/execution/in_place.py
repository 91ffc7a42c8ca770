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
            follower.target, follower.args = _add_to, (written, other, follower.args[0] is written)
            written = follower
        if (follower := only_user(written)) and is_relu(modules, follower):
            follower.op, follower.target, follower.args, follower.kwargs = "call_function", _rectify, (written,), {}
    return fx.GraphModule(network, result)


def _add_to(features: Tensor, other: Tensor, comes_first: bool) -> Tensor:
    """Their sum, of equal shapes; in the memory of ``features`` where the sum would have its type and layout."""
    same = features.dtype == torch.result_type(features, other) and features.stride() == other.stride()
    if same and _keeps_layout(features):
        return features.add_(other)
    return features + other if comes_first else other + features  # the first decides on the layout


def _rectify(features: Tensor) -> Tensor:
    """ReLU; in place where the result would have the same layout."""
    return features.relu_() if _keeps_layout(features) else features.relu()


def _keeps_layout(features: Tensor) -> bool:
    """Whether what is computed from it element by element has its strides, by which convolutions choose how to compute.

    Of a single channel, or a single pixel, both layouts are the same memory. PyTorch then goes over to its default one.
    """
    return not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
