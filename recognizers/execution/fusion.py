"""Inference with convolution, batch norm, sum and ReLU in one pass over memory."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_SUMS = (operator.add, torch.add)
_RELUS = (functional.relu, torch.relu, "relu")


class FusedConvolution(nn.Module):
    """A convolution with what follows it: batch norm folded into its weights, a sum with another tensor, ReLU.

    On CPUs oneDNN does the sum and the ReLU while the convolution's result is still in the cache. Weights are folded
    in float32 and rounded once.

    Args:
        convolution: whose tensors are read again when they changed.
        norm: the batch norm behind it, likewise.
        relu: whether a ReLU ends it.
        version: changes whenever a tensor of either module does.
        dtype: to compute in.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: nn.BatchNorm2d | None,
        *,
        relu: bool,
        version: Callable[[], object],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        # In tuples, so that they are not registered as submodules and parameters of this module.
        self._read = (convolution, norm)
        self._weights: tuple[Tensor, Tensor | None] = (convolution.weight, convolution.bias)
        self._relu, self._current, self._dtype = relu, version, dtype
        self._folded: object = None

    def forward(self, features: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolve ``features``, ``[N, C, H, W]``; add ``other``, shaped like the result."""
        features = features.to(self._dtype)
        if self._folded != (version := self._current()):
            self._weights, self._folded = self._fold(features, sums=other is not None), version
        convolution, _ = self._read
        geometry: Any = (convolution.padding, convolution.stride, convolution.dilation)
        if _runs_on_onednn(features):
            convolve = torch.ops.mkldnn._convolution_pointwise
            weights = (*self._weights, *geometry, convolution.groups)
            relu = "relu" if self._relu else None
            result: Tensor = (
                convolve(features, *weights, relu or "none", [], None)
                if other is None
                else convolve.binary(features, other.to(self._dtype), *weights, "add", 1.0, relu, [], None)
            )
            return result
        padding, stride, dilation = geometry
        result = functional.conv2d(features, *self._weights, stride, padding, dilation, convolution.groups)
        result = result if other is None else result + other.to(self._dtype)
        return result.relu_() if self._relu else result

    @torch.no_grad()
    def _fold(self, features: Tensor, *, sums: bool) -> tuple[Tensor, Tensor | None]:
        convolution, norm = self._read
        weight, bias = convolution.weight, convolution.bias
        if norm is not None:
            weight, bias = folded(convolution, norm)
        weight = weight.detach().to(self._dtype).contiguous(memory_format=torch.channels_last)
        onednn = _runs_on_onednn(features)
        if bias is not None and (sums or not onednn):  # only oneDNN's plain convolution takes a bias in float32
            bias = bias.to(self._dtype)
        if onednn:
            sizes: Any = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, list(features.shape))
        return weight, bias


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals a convolution with a batch norm in evaluation mode behind it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else norm.bias + shift * scale
    return convolution.weight * scale[:, None, None, None], bias


def fuse(
    graph: fx.Graph, network: nn.Module, version: Callable[[tuple[str, ...]], object], dtype: torch.dtype
) -> fx.GraphModule:
    """A stage for inference: its convolutions take over the batch norms, sums and ReLUs behind them.

    Args:
        graph: of the stage; left unchanged. Its nodes know their ``shape``.
        network: that the graph's paths belong to, in evaluation mode.
        version: from module paths to a value that changes whenever one of their tensors does.
        dtype: for the convolutions to compute in.
    """
    result = fx.Graph()
    result.output(result.graph_copy(graph, {}))
    modules = called_modules(result, network)
    attributes = {str(node.target): _attribute(network, node.target) for node in result.nodes if node.op == "get_attr"}
    for node in list(result.nodes):
        convolution = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(convolution) is not nn.Conv2d or not _is_fusible(convolution):
            continue
        fused, norm, other, relu = [node], None, None, False
        paths: tuple[str, ...] = (str(node.target),)
        if (follower := only_user(node)) and is_norm(modules, follower):
            fused, paths = [*fused, follower], (*paths, str(follower.target))
            norm = modules[str(follower.target)]
        if (follower := only_user(fused[-1])) and (other := other_summand(follower, fused[-1])):
            fused.append(follower)
        if (follower := only_user(fused[-1])) and is_relu(modules, follower):
            fused, relu = [*fused, follower], True
        name = f"fused_{node.name}"
        modules[name] = FusedConvolution(
            convolution,
            norm,  # type: ignore[arg-type]  # is_norm
            relu=relu,
            version=lambda paths=paths: version(paths),  # type: ignore[misc]
            dtype=dtype,
        )
        with result.inserting_after(fused[-1]):
            replacement = result.call_module(name, (node.args[0], other) if other else (node.args[0],))
            replacement.meta = dict(fused[-1].meta)
        fused[-1].replace_all_uses_with(replacement)
        for replaced in reversed(fused):
            result.erase_node(replaced)
    return fx.GraphModule({**modules, **attributes}, result)


def called_modules(graph: fx.Graph, network: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``network`` that a graph calls, by their paths."""
    return {
        str(node.target): network.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
    }


def _runs_on_onednn(features: Tensor) -> bool:
    onednn = torch.backends.mkldnn
    if features.device.type != "cpu" or not (onednn.is_available() and onednn.enabled):
        return False
    # Without vectors of 512 bits its fused operations refuse bfloat16; PyTorch's own are slow there, but work.
    return features.dtype == torch.float32 or (features.dtype == torch.bfloat16 and _onednn_takes_bfloat16())


@functools.cache
def _onednn_takes_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _attribute(network: nn.Module, target: object) -> Any:
    path, _, name = str(target).rpartition(".")
    return getattr(network.get_submodule(path), name)


def _is_fusible(convolution: nn.Conv2d) -> bool:
    return (
        convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str) and not is_hooked(convolution)
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
