"""Stages for recalibration, without gradients: what follows a convolution overwrites its result."""

import torch
from torch import Tensor, fx, nn

from recognizers.execution.convolution import FusedConvolution
from recognizers.execution.fusion import (
    Version,
    called_modules,
    fused_convolution,
    is_fusible,
    is_norm,
    is_relu,
    only_user,
    other_summand,
    pair_images,
    read_attributes,
    replace_pools,
    without_identities,
)
from recognizers.execution.pairing import Layout
from recognizers.execution.wide_norm import normalise_in_place


def in_place(
    graph: fx.Graph, network: nn.Module, version: Version, dtype: torch.dtype, layout: Layout | None = None
) -> fx.GraphModule:
    """A stage that computes what its graph says, with fewer tensors: a pass over memory in cache is a fast one.

    Args:
        graph: of the stage; left unchanged. Its nodes know their ``shape``.
        network: that the graph's paths belong to.
        version: of its modules.
        dtype: for the convolutions to compute in.
        layout: see :func:`recognizers.execution.fusion.fuse`.
    """
    result = without_identities(graph, network)
    modules = replace_pools(result, called_modules(result, network), layout)
    for node in [node for node in result.nodes if is_fusible(modules, node)]:
        width = node.all_input_nodes[0].meta["shape"][-1] if layout else None
        modules[str(node.target)] = fused_convolution(network, (str(node.target),), version, dtype, width=width)
    if layout:
        pair_images(result, modules, layout)
    for node in list(result.nodes):
        if not is_norm(modules, node):
            continue
        norm, (before,) = modules[str(node.target)], node.all_input_nodes
        if (
            isinstance(norm, nn.BatchNorm2d)
            and isinstance(modules.get(str(before.target)), FusedConvolution)
            and only_user(before)
        ):
            modules[str(node.target)] = _InPlaceNorm(norm)
        written = node
        if (follower := only_user(written)) and (other := other_summand(follower, written)):
            follower.target, follower.args = _add_to, (written, other, follower.args[0] is written)
            written = follower
        if (follower := only_user(written)) and is_relu(modules, follower):
            follower.op, follower.target, follower.args, follower.kwargs = "call_function", rectify, (written,), {}
    return fx.GraphModule({**modules, **read_attributes(result, network)}, result)


class _InPlaceNorm(nn.Module):
    """A batch norm that writes into its input."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self._norm = (norm,)  # in a tuple, so that it is not registered as a submodule

    def forward(self, features: Tensor) -> Tensor:
        (norm,) = self._norm
        return normalise_in_place(norm, features)


def _add_to(features: Tensor, other: Tensor, comes_first: bool) -> Tensor:
    """Their sum, of equal shapes; in the memory of ``features`` where the sum would have its type and layout."""
    if features.dtype == torch.result_type(features, other) and features.stride() == other.stride():
        return features.add_(other)
    return features + other if comes_first else other + features  # the first decides on the layout


def rectify(features: Tensor) -> Tensor:
    """ReLU, in place. In bfloat16 a NaN may become 0: the statistics of the norm before it hold it in any case."""
    if features.dtype == torch.bfloat16:
        # As integers: negative numbers are negative there, too. PyTorch's way through float32 takes five times as long.
        features.view(torch.int16).clamp_min_(0)
        return features
    return features.relu_()
