"""Stages for training: images in pairs, and ReLUs of integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from recognizers.execution.fusion import (
    called_modules,
    common_width,
    is_fusible,
    is_hooked,
    is_norm,
    is_relu,
    is_sum_of_maps,
    only_user,
    pair_images,
    without_identities,
)
from recognizers.execution.in_place import rectify
from recognizers.execution.pairing import Layout, PairedConvolution, PairedPool
from recognizers.execution.pooling import is_plain_pool


def trained(graph: fx.Graph, network: nn.Module, layout: Layout) -> fx.GraphModule:
    """A stage that computes what its graph says, with gradients, in less time.

    Args:
        graph: of the stage; left unchanged. Its nodes know their ``shape``, which the images must have. It reads no
            tensors but by calling modules.
        network: that the graph's paths belong to; its modules are called.
        layout: see :func:`recognizers.execution.fusion.fuse`.
    """
    result = without_identities(graph, network)
    modules = called_modules(result, network)
    called: dict[str, list[fx.Node]] = {}
    for node in result.nodes:
        if node.op == "call_module":
            called.setdefault(str(node.target), []).extend(node.all_input_nodes)
    fusible = {str(node.target) for node in result.nodes if is_fusible(modules, node)}
    in_place = [node for node in result.nodes if is_relu(modules, node) and _is_disposable(modules, node)]
    for path, reads in called.items():
        module, width = modules[path], common_width(reads)
        if path in fusible and isinstance(module, nn.Conv2d) and width is not None:
            modules[path] = PairedConvolution(module, width)
        elif is_plain_pool(module) and not is_hooked(module):
            modules[path] = PairedPool(module, width)
    pair_images(result, modules, layout)
    for node in in_place:
        node.op, node.target, node.kwargs = "call_function", rectified, {}
    return fx.GraphModule(modules, result)


def rectified(features: Tensor) -> Tensor:
    """ReLU with gradients, in place."""
    if features.dtype == torch.bfloat16 and features.device.type == "cpu":
        return _Rectify.apply(features)  # type: ignore[no-any-return,no-untyped-call]
    return features.relu_()


class _Rectify(torch.autograd.Function):
    """Of bfloat16 as of integers: see :func:`recognizers.execution.in_place.rectify`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.mark_dirty(features)
        result = rectify(features)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result: Tensor = ctx.saved_tensors[0]
        kept = result.view(torch.int16).clamp_max(1)  # 1 where the ReLU did nothing, else 0
        kept *= gradient.view(torch.int16)
        return kept.view(torch.bfloat16)


def _is_disposable(modules: dict[str, nn.Module], relu: fx.Node) -> bool:
    """Whether a ReLU may overwrite what it reads: the result of a norm or a sum, which not even gradients need."""
    (read,) = relu.all_input_nodes
    return only_user(read) is relu and (is_norm(modules, read) or is_sum_of_maps(read))
