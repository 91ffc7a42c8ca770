"""What the layers that read pruned units see in the original network: the basis of criteria and of cheap fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from recognizers.evaluation import Precision, autocast
from recognizers.execution.stages import Stage
from recognizers.reconstruction.layer import Part, affine, has_bias, input_units, layer_at, parts
from recognizers.reconstruction.least_squares import Fit, Moments, fit_affine, moments
from recognizers.reconstruction.samples import positions, sampled_inputs, sampled_outputs
from recognizers.reconstruction.sites import Site, find_sites
from recognizers.reconstruction.walk import check_traced, run_node
from recognizers.units import UnitTable


@dataclass(frozen=True)
class Consumer:
    """A layer (or one group of a grouped convolution) that reads units which can be pruned.

    Attributes:
        path: of the module.
        norm: path of the batch norm behind it, or None.
        part: its inputs and outputs.
        units: the unit of each input, ``[d]`` int64, -1 where it cannot be pruned.
        weights: the affine map that it computes, the offset last, ``[d + 1, m]`` float64.
        data: moments of its inputs (and a constant) and of its outputs behind the batch norm, ``d + 1`` inputs.
        offset: whether the map can have any offset.
        ridge: for :attr:`solution`.
    """

    path: str
    norm: str | None
    part: Part
    units: Tensor
    weights: Tensor
    data: Moments
    offset: bool
    ridge: float

    @cached_property
    def solution(self) -> Fit:
        """The fit with all inputs, whose weights are the original ones but for the ridge."""
        return fit_affine(self.data, ridge=self.ridge, prior=self.weights, offset=self.offset)

    def inputs_of(self, unit: int) -> Tensor:
        """Indices of the inputs that belong to a unit, ``[q]`` int64."""
        return (self.units == unit).nonzero().flatten()


@torch.no_grad()
def consumers(
    network: nn.Module,
    table: UnitTable,
    stages: Sequence[Stage],
    batches: Sequence[Tensor],
    *,
    per_image: int,
    ridge: float,
    precision: Precision,
) -> list[Consumer]:
    """The consumers of a network in forward order, with moments over calibration images.

    Args:
        network: the original one, in evaluation mode.
        table: its units.
        stages: its stages.
        batches: calibration images, as the network takes them.
        per_image: positions of a feature map that are looked at in each image.
        ridge: relative to the mean second moment.
        precision: of forward passes.
    """
    check_traced(network, stages)
    result: list[Consumer] = []
    tensors = list(batches)
    for stage in stages:
        graph = stage.graph
        assert graph is not None
        sites = {site.node: site for site in find_sites(stage, network)}
        summed: dict[tuple[str, int], Moments] = {}
        generator = torch.Generator().manual_seed(0)
        for position, batch in enumerate(tensors):
            values: dict[fx.Node, Tensor] = {}
            for node in graph.nodes:
                if node.op == "placeholder":
                    values[node] = batch
                elif node.op != "output":
                    with autocast(precision, batch.device):
                        values[node] = run_node(node, network, values)
            for site in sites.values():
                for number, data in _moments(site, network, table, values, per_image, generator):
                    key = (site.path, number)
                    summed[key] = summed[key] + data if key in summed else data
            output = graph.output_node().args[0]
            assert isinstance(output, fx.Node)
            tensors[position] = values[output]
        for site in sites.values():
            layer, norm = layer_at(network, site.path, site.norm)
            for number, part in enumerate(parts(layer)):
                if (site.path, number) in summed:
                    units = input_units(layer, table.slots[site.path].in_units)[part.inputs]
                    result.append(
                        Consumer(
                            *(site.path, site.norm, part, units, affine(layer, norm, part)),
                            *(summed[site.path, number], has_bias(layer, norm), ridge),
                        )
                    )
    return result


def _moments(
    site: Site,
    network: nn.Module,
    table: UnitTable,
    values: dict[fx.Node, Tensor],
    per_image: int,
    generator: torch.Generator,
) -> list[tuple[int, Moments]]:
    """Moments of the parts of a site over one batch, where it reads units."""
    slot = table.slots.get(site.path)
    if slot is None or slot.in_units is None:
        return []
    layer, norm = layer_at(network, site.path, site.norm)
    source = site.node.args[0]
    assert isinstance(source, fx.Node)
    places = positions(values[site.node].shape, per_image, generator)
    read = sampled_inputs(layer, values[source], places)
    inputs = torch.cat([read, read.new_ones(len(read), 1)], 1)
    own = site.node if norm is None else next(iter(site.node.users))
    outputs = sampled_outputs(values[own], places)
    last = torch.tensor([inputs.shape[1] - 1])
    return [
        (number, moments(inputs[:, torch.cat([part.inputs, last])], outputs[:, part.outputs]))
        for number, part in enumerate(parts(layer))
    ]
