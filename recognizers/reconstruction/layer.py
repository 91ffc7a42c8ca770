"""A layer together with its batch norm, as the affine map that is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.reconstruction.least_squares import Moments

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Part:
    """Outputs of a layer that read the same inputs: all of them, or those of one group of a grouped convolution.

    Attributes:
        inputs: indices of the columns among those of :func:`~recognizers.reconstruction.samples.sampled_inputs`.
        outputs: indices of the output channels.
    """

    inputs: Tensor
    outputs: Tensor


def layer_at(network: nn.Module, path: str, norm: str | None) -> tuple[Layer, nn.BatchNorm2d | None]:
    """The layer at a path of a network, and the batch norm at another path, if one is given."""
    layer = network.get_submodule(path)
    behind = None if norm is None else network.get_submodule(norm)
    assert isinstance(layer, Layer)
    assert behind is None or isinstance(behind, nn.BatchNorm2d)
    return layer, behind


def take_values(module: nn.Module, source: nn.Module) -> None:
    """Give a module, in place, the values of one like it; those of submodules stay."""
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        tensor.data.copy_(getattr(source, name))


def parts(layer: Layer) -> list[Part]:
    """The parts of a layer."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    columns = layer.weight[0].numel()
    outputs = layer.weight.shape[0] // groups
    return [
        Part(torch.arange(columns) + group * columns, torch.arange(outputs) + group * outputs)
        for group in range(groups)
    ]


def input_units(layer: Layer, units: np.ndarray | None) -> Tensor:
    """The unit of each column of sampled inputs, ``[columns]`` int64, -1 where it cannot be pruned.

    Args:
        layer: that reads them.
        units: of its input channels, ``[in_channels]``; None where none can be pruned.
    """
    places = layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    known = torch.full((channels,), -1) if units is None else torch.from_numpy(units)
    return known.repeat_interleave(places)


def has_bias(layer: Layer, norm: nn.BatchNorm2d | None) -> bool:
    """Whether the affine map can have any offset."""
    return norm is not None or layer.bias is not None


def affine(layer: Layer, norm: nn.BatchNorm2d | None, part: Part) -> Tensor:
    """Weights of a part, the batch norm folded in, and the offset in the last row: ``[d + 1, m]`` float64."""
    weights = layer.weight.detach()[part.outputs].flatten(1).double().T  # [d, m]
    offset = weights.new_zeros(weights.shape[1]) if layer.bias is None else layer.bias.detach()[part.outputs].double()
    if norm is not None:
        scale, mean = _scale(norm)[part.outputs], _mean(norm)[part.outputs]
        shift = 0.0 if norm.bias is None else norm.bias.detach()[part.outputs].double()
        weights, offset = weights * scale, (offset - mean) * scale + shift
    return torch.cat([weights, offset[None]])


@torch.no_grad()
def write(
    layer: Layer, norm: nn.BatchNorm2d | None, part: Part, outputs: Tensor, weights: Tensor, data: Moments
) -> None:
    """Make some outputs of a part compute an affine map.

    A batch norm keeps its scale relative to the filters, takes the statistics that the new filters have on the
    samples, and an affine map that makes up for them. So it computes the same in training mode, and recalibration
    changes nothing but for the sampling.

    Args:
        layer: to be changed in place.
        norm: behind it, likewise.
        part: of the layer.
        outputs: which of the part's outputs, ``[k]`` int64.
        weights: of the map, the offset last, ``[d + 1, k]`` float64.
        data: moments of the samples, ``[d + 1]`` inputs.
    """
    rows = part.outputs[outputs]
    filters, offset = weights[:-1], weights[-1]
    bias = torch.zeros_like(offset) if layer.bias is None else layer.bias[rows].double()
    if norm is None:
        if layer.bias is not None:
            layer.bias[rows] = offset.to(layer.bias.dtype)
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = _scale(norm)[rows]
        alive = scale.abs() > 1e-6 * _scale(norm).abs().max()
        old = layer.weight[rows].flatten(1).double().T
        filters = torch.where(alive, filters / torch.where(alive, scale, 1.0), old)
        if norm.weight is None or norm.bias is None:
            norm.running_mean[rows] = (bias - torch.where(alive, offset / scale, 0.0)).to(norm.running_mean.dtype)
        else:
            sums = data.gram[-1, :-1] / data.samples  # means of the inputs
            mean = sums @ filters
            variance = ((filters * (data.gram[:-1, :-1] @ filters)).sum(0) / data.samples - mean**2).clamp(min=0)
            norm.running_mean[rows] = (mean + bias).to(norm.running_mean.dtype)
            norm.running_var[rows] = variance.to(norm.running_var.dtype)
            norm.weight[rows] = (scale * (variance + norm.eps).sqrt()).to(norm.weight.dtype)
            norm.bias[rows] = (offset + mean * scale).to(norm.bias.dtype)
    layer.weight[rows] = filters.T.reshape(-1, *layer.weight.shape[1:]).to(layer.weight.dtype)


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach().double()


def _mean(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean.double()
