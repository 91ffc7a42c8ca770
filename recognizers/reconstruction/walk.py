"""The walk along a network that fits layer after layer, each to what the ones before it have become."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from recognizers.compaction import CompactNetwork
from recognizers.errors import ConfigurationError
from recognizers.evaluation import Precision, autocast
from recognizers.execution.passes import Boundaries
from recognizers.execution.stages import Stage
from recognizers.reconstruction.layer import (
    Layer,
    affine,
    has_bias,
    input_units,
    layer_at,
    parts,
    take_values,
    write,
)
from recognizers.reconstruction.least_squares import Moments, fit_affine, moments, rectify
from recognizers.reconstruction.recipe import Recipe
from recognizers.reconstruction.samples import positions, sampled_inputs, sampled_outputs
from recognizers.reconstruction.sites import Site, execution_order, find_sites
from recognizers.units import UnitTable

Values = list[dict[fx.Node, Tensor]]
"""The values of nodes, batch by batch."""


class Walk(Boundaries):
    """Fits the layers of a pruned network, stage by stage, and keeps tensors between stages.

    It runs the complete network, in which removed units are read by nobody, beside the original one.

    Args:
        network: the original network, in evaluation mode; left unchanged.
        table: its units.
        stages: its stages.
        batches: calibration images, as the network takes them.
        recipe: of form ``asymmetric`` or ``symmetric``.
        precision: of forward passes; sums are in float32 and float64.
        kept: boundaries to keep.
    """

    def __init__(
        self,
        network: nn.Module,
        table: UnitTable,
        stages: Sequence[Stage],
        batches: Sequence[Tensor],
        recipe: Recipe,
        precision: Precision,
        kept: frozenset[int],
    ) -> None:
        super().__init__(kept)
        check_traced(network, stages)
        self._original, self._working, self._table = network, copy.deepcopy(network), table
        self._stages, self._batches, self._recipe, self._precision = stages, list(batches), recipe, precision
        self._sites = [{site.node: site for site in find_sites(stage, network)} for stage in stages]
        self._orders = [
            execution_order(graph, list(sites.values()))
            for stage, sites in zip(stages, self._sites, strict=True)
            if (graph := stage.graph) is not None
        ]

    def advance(
        self,
        keys: Sequence[bytes],
        mask: np.ndarray,
        start: int,
        stop: int,
        *,
        compact: CompactNetwork,
        keep: bool,
        pin: bool = False,
    ) -> dict[str, float]:
        """Fit the stages from one boundary to another, and hand the values to the compact network.

        Args:
            keys: the names of the stages' outputs.
            mask: ``[n_units]``, 1 kept.
            start: see :meth:`start`.
            stop: where to end.
            compact: sliced as the mask says.
            keep: as in :class:`~recognizers.execution.passes.StagedPass`.
            pin: likewise.

        Returns:
            The condition number of each fitted layer.
        """
        conditions: dict[str, float] = {}
        tensors = self._values[start][1] if start else [*self._batches, *self._batches]
        if start == stop:
            return conditions
        fresh = self._fresh(start, stop, keep=keep, pin=pin)
        for index in range(start, stop):
            count = len(self._batches)
            pruned, original = self._stage(index, mask, tensors[:count], tensors[count:], conditions)
            compact.load(self._stages[index].paths, self._working)
            tensors = [*pruned, *original]
            if index + 1 in fresh:
                self._values[index + 1] = (keys[index], tensors)
        return conditions

    def _stage(
        self, index: int, mask: np.ndarray, pruned: list[Tensor], original: list[Tensor], conditions: dict[str, float]
    ) -> tuple[list[Tensor], list[Tensor]]:
        stage, sites = self._stages[index], self._sites[index]
        self._take_base(stage.paths, mask)
        graph = stage.graph
        assert graph is not None
        (source,) = graph.find_nodes(op="placeholder")
        output = graph.output_node().args[0]
        assert isinstance(output, fx.Node)
        clean = all(before is after for before, after in zip(pruned, original, strict=True))
        # Until something is pruned both networks are the same.
        if clean and not any(self._lost(path, mask) for path in stage.paths):
            run = stage.module(self._original)
            with autocast(self._precision, original[0].device):
                results = [run(batch) for batch in original]
            return results, results
        before: Values = [{source: batch} for batch in original]
        after: Values = [{source: batch} for batch in pruned]
        order = [node for node in self._orders[index] if node.op not in ("placeholder", "output")]
        with autocast(self._precision, original[0].device):
            for node in order:
                for values in before:
                    values[node] = run_node(node, self._original, values)
            for node in order:
                if (site := sites.get(node)) is not None:
                    self._fit(site, mask, before, after, conditions)
                for values in after:
                    values[node] = run_node(node, self._working, values)
        return [values[output] for values in after], [values[output] for values in before]

    def _take_base(self, paths: frozenset[str], mask: np.ndarray) -> None:
        """Base values for the modules of a stage, with weights of 0 for removed inputs."""
        for path in paths:
            module = self._working.get_submodule(path)
            take_values(module, self._original.get_submodule(path))
            slot = self._table.slots.get(path)
            if isinstance(module, nn.Conv2d | nn.Linear) and slot is not None and slot.in_units is not None:
                gone = removed(input_units(module, slot.in_units), mask)
                for part in parts(module):
                    module.weight.data[part.outputs] *= ~gone[part.inputs].view(module.weight[0].shape)

    def _lost(self, path: str, mask: np.ndarray) -> bool:
        slot = self._table.slots.get(path)
        return any(
            units is not None and not mask[units[units >= 0]].all()
            for units in ((slot.in_units, slot.out_units) if slot else ())
        )

    @torch.no_grad()
    def _fit(self, site: Site, mask: np.ndarray, before: Values, after: Values, conditions: dict[str, float]) -> None:
        recipe = self._recipe
        layer, norm = layer_at(self._working, site.path, site.norm)
        base, base_norm = layer_at(self._original, site.path, site.norm)
        slot = self._table.slots.get(site.path)
        units = input_units(layer, None if slot is None else slot.in_units)
        gone = removed(units, mask)
        symmetric = recipe.form == "symmetric"
        if not gone.any() and (symmetric or recipe.refit is None):
            return
        out_units = None if slot is None else slot.out_units
        units_of_outputs = torch.full((len(layer.weight),), -1) if out_units is None else torch.from_numpy(out_units)
        kept_outputs = ~removed(units_of_outputs, mask)
        with torch.autocast(before[0][site.node].device.type, enabled=False):
            inputs, targets, added = self._samples(site, layer, before, after)
            offset = has_bias(layer, norm)
            for part in parts(layer):
                outputs = kept_outputs[part.outputs].nonzero().flatten()
                if not len(outputs):
                    continue
                lost = gone[part.inputs]
                columns = torch.cat([part.inputs[~lost], torch.tensor([inputs.shape[1] - 1])])
                used = inputs[:, columns]
                rows = part.outputs[outputs]
                old = affine(base, base_norm, part)[:, outputs]
                wanted = (
                    targets[:, rows]
                    if not symmetric
                    else inputs[:, torch.cat([part.inputs, columns[-1:]])] @ old.to(inputs.dtype)
                )
                weights, data, condition = self._solve(
                    used,
                    wanted,
                    None if added is None else added[:, rows],
                    prior=None if lost.any() else old,
                    offset=offset,
                    rectified=site.relu and not lost.any() and not symmetric,
                )
                conditions[site.path] = max(condition, conditions.get(site.path, 0.0))
                expanded, everything = expand(weights, data, ~lost)
                write(layer, norm, part, outputs, expanded, everything)

    def _solve(
        self,
        inputs: Tensor,
        targets: Tensor,
        added: Tensor | None,
        *,
        prior: Tensor | None,
        offset: bool,
        rectified: bool,
    ) -> tuple[Tensor, Moments, float]:
        """Weights ``[d + 1, m]`` of kept inputs, whose last is constant, with the moments and condition number."""
        data = moments(inputs, targets)
        ridge = self._recipe.ridge if prior is None else self._recipe.refit or 0.0
        solved = fit_affine(data, ridge=ridge, prior=prior, offset=offset)
        used = torch.arange(len(solved.weights))
        weights = rectify(
            solved,
            inputs[:, used],
            targets,
            added=added,
            prior=None if prior is None else prior[used],
            gram=data.gram[used][:, used],
            iterations=self._recipe.rectified if rectified else 0,
        )
        if not offset:
            weights = torch.cat([weights, weights.new_zeros(1, weights.shape[1])])
        return weights, data, solved.condition

    def _samples(self, site: Site, layer: Layer, before: Values, after: Values) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs ``[N, d + 1]``, the last 1; targets ``[N, m]``; what is added to both, ``[N, m]``, or None."""
        generator = torch.Generator().manual_seed(0)
        source = site.node.args[0]
        assert isinstance(source, fx.Node)
        inputs, targets, added = [], [], []
        for original, pruned in zip(before, after, strict=True):
            places = positions(original[site.node].shape, self._recipe.positions, generator)
            read = sampled_inputs(layer, pruned[source], places)
            inputs.append(torch.cat([read, read.new_ones(len(read), 1)], 1))
            target = sampled_outputs(original[site.target], places)
            if site.other is not None:
                added.append(sampled_outputs(pruned[site.other], places))
                target = target - added[-1]
            targets.append(target)
        return torch.cat(inputs), torch.cat(targets), torch.cat(added) if added else None


def removed(units: Tensor, mask: np.ndarray) -> Tensor:
    """Which of ``units`` (-1: none) ``mask`` has removed, bool."""
    return torch.from_numpy(np.append(mask, 1) == 0)[units]


def expand(weights: Tensor, data: Moments, kept: Tensor) -> tuple[Tensor, Moments]:
    """Weights and moments of some inputs and a constant as those of all inputs; the others count for nothing.

    Args:
        weights: ``[k + 1, m]``.
        data: of ``k + 1`` inputs.
        kept: which inputs they are, ``[d]`` bool with ``k`` true.
    """
    index = torch.cat([kept.nonzero().flatten(), torch.tensor([len(kept)])])
    full = weights.new_zeros(len(kept) + 1, weights.shape[1])
    full[index] = weights
    gram = data.gram.new_zeros(len(kept) + 1, len(kept) + 1)
    gram[index[:, None], index] = data.gram
    return full, Moments(gram, data.cross, data.energy, data.samples)


def check_traced(network: nn.Module, stages: Sequence[Stage]) -> None:
    """Refuse a network whose inside is unknown.

    Raises:
        ConfigurationError: it could not be traced.
    """
    if any(stage.graph is None for stage in stages):
        raise ConfigurationError(
            f"{type(network).__name__} cannot be reconstructed: torch.fx cannot trace it, or it uses a layer twice"
        )


def run_node(node: fx.Node, network: nn.Module, values: dict[fx.Node, Tensor]) -> Any:
    """The value of a node, given those of the nodes that it reads."""
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        return network.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(network)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
