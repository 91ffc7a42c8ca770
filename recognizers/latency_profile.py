"""Making a latency table: every layer is timed at a grid of channel counts."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from tqdm import tqdm

from recognizers.compaction import CompactNetwork, make_plain
from recognizers.costs import CostModel
from recognizers.device import device_name
from recognizers.errors import ConfigurationError
from recognizers.execution.stages import is_layer, trace
from recognizers.latency import alternate, cpu_threads, torch_run
from recognizers.latency_table import (
    LatencyCheck,
    LatencyModel,
    LatencyTable,
    LayerLatency,
    channel_counts,
    timed_layers,
)
from recognizers.units import UnitTable

_NOTHING = "nothing"


@dataclass(frozen=True)
class ProfileSettings:
    """How a table is measured.

    Attributes:
        points: channel counts of each side of a layer, from one unit to all.
        rounds: timed passes of each.
        warmup: passes before.
        threads: CPU threads; None: as PyTorch has them.
        checks: randomly pruned networks that are timed as a whole.
    """

    points: int = 5
    rounds: int = 30
    warmup: int = 5
    threads: int | None = None
    checks: int = 8


def profile(
    network: nn.Module,
    table: UnitTable,
    inputs: Tensor,
    architecture: str,
    settings: ProfileSettings,
    *,
    progress: bool = False,
) -> LatencyTable:
    """Measure a latency table.

    A layer is timed with the operations that follow it in the order of execution, up to the next layer: batch norm,
    activation, pooling, sum. Each is run by itself, on what the pruned network hands to it, time and again. So what
    it costs to come from one layer to the next, and what the caches then no longer hold, is not in it. The difference
    between the dense network's pass and the sum of its layers is the table's remainder, which pruning does not change.
    How well the sums predict is in the table's checks.

    Args:
        network: the dense network.
        table: its units.
        inputs: a batch as the network takes it, ``[N, C, H, W]``, where it is to be timed.
        architecture: name of the network.
        settings: how.
        progress: show a progress bar.

    Raises:
        ConfigurationError: the network cannot be traced, so its layers cannot be timed one by one.
    """
    parts = _Parts(network, table, inputs, architecture)
    with cpu_threads(settings.threads) as threads:
        layers = {
            path: parts.time(path, settings)
            for path in tqdm(parts.paths, desc="latency", unit="layer", disable=not progress)
        }
        latencies = LatencyTable(
            architecture=architecture,
            image=tuple(inputs.shape[1:]),
            device=device_name(inputs.device),
            threads=threads,
            torch=torch.__version__,
            batch_size=len(inputs),
            remainder=0.0,
            layers=layers,
        )
        return _checked(latencies, parts, settings)


class _Parts:
    """A network cut into its layers, each with what follows it."""

    def __init__(self, network: nn.Module, table: UnitTable, inputs: Tensor, architecture: str) -> None:
        self.network = make_plain(copy.deepcopy(network)).to(inputs.device).eval()
        self.table, self.inputs, self.architecture = table, inputs, architecture
        self.shapes = timed_layers(self.network, inputs)
        # It slices in place, so that what is split off below follows the mask, too.
        self._compact = CompactNetwork(self.network, table)
        try:
            graph = trace(self._compact.module)
        except Exception as error:  # tracing runs the network's own code on stand-ins, which raises whatever it likes
            raise ConfigurationError(f"{architecture} cannot be cut into its layers: {error}") from error
        if graph is None:
            raise ConfigurationError(f"{architecture} cannot be cut into its layers: it uses one twice, or in place")
        part, parts = -1, dict[fx.Node, int]()
        self.paths: list[str] = []
        for node in graph.nodes:
            if is_layer(self.network, node):
                part += 1
                self.paths.append(str(node.target))
            parts[node] = max(part, 0)  # what comes before the first layer goes with it
        whole = fx.GraphModule(self._compact.module, graph)
        self._split = split_module(whole, self._compact.module, lambda node: parts[node])  # type: ignore[no-untyped-call]
        self._counts = channel_counts(self.network, table, self.paths)
        self._layer_of_unit = table.layer_of_unit

    def pruned(self, shares: np.ndarray) -> nn.Module:
        """The network whose layers keep these shares, ``[layers]``, of their units; the same object each time."""
        self._compact.follow(self.mask(shares))
        return self._compact.module

    def mask(self, shares: np.ndarray) -> np.ndarray:
        """The mask whose layers keep the first units, these shares, ``[layers]``, of them, and at least one."""
        mask = np.zeros(self.table.n_units, dtype=np.int8)
        for layer, share in zip(self.table.layers, shares, strict=True):
            mask[layer.start : layer.start + max(1, round(share * len(layer)))] = 1
        return mask

    def time(self, path: str, settings: ProfileSettings) -> LayerLatency:
        """Time a layer. All that it does not touch keeps the share of units that its inputs keep.

        Where a unit is both on its output and on its input side, both keep the same share, and the grid has one axis.
        """
        outputs, inputs = self._sides(path)
        tied = bool(outputs & inputs)
        steps = np.linspace(0, 1, settings.points)
        grid: dict[tuple[int, int], tuple[nn.Module, tuple[Tensor, ...]]] = {}
        for out, into in itertools.product(steps if outputs else [1.0], [1.0] if tied or not inputs else steps):
            shares = np.full(len(self.table.layers), into)
            shares[list(outputs)] = out
            key = self._kept(path, self.mask(shares))
            key = (key[0], self.shapes[path][0][1]) if tied else key
            if key not in grid:
                grid[key] = self._part(path, shares)
        runs = {str(key): torch_run(part, *given) for key, (part, given) in grid.items()}
        runs[_NOTHING] = torch_run(_identity(), self.inputs)  # what the call itself takes
        timed = alternate(runs, rounds=settings.rounds, warmup=settings.warmup)
        kept_outputs, kept_inputs = (tuple(sorted({key[side] for key in grid})) for side in (0, 1))
        weight, positions = self.shapes[path]
        return LayerLatency(
            weight=weight,
            positions=positions,
            outputs=kept_outputs,
            inputs=kept_inputs,
            seconds=tuple(
                tuple(max(timed[str((out, into))].median - timed[_NOTHING].median, 0.0) for into in kept_inputs)
                for out in kept_outputs
            ),
        )

    def _sides(self, path: str) -> tuple[set[int], set[int]]:
        """The prunable layers whose units a module puts out, and those that it reads."""
        slot = self.table.slots.get(path)

        def layers(units: np.ndarray | None) -> set[int]:
            return set() if units is None else set(self._layer_of_unit[units[units >= 0]].tolist())

        return (set(), set()) if slot is None else (layers(slot.out_units), layers(slot.in_units))

    def _kept(self, path: str, mask: np.ndarray) -> tuple[int, int]:
        """Output and input channels that a module keeps."""
        index = 2 * self.paths.index(path)
        outputs, inputs = self._counts(mask)[index : index + 2]
        return int(outputs), int(inputs)

    def _part(self, path: str, shares: np.ndarray) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """A layer of the pruned network with what follows it, and what the network hands to it."""
        self.pruned(shares)
        part = self._split.get_submodule(f"submod_{self.paths.index(path)}")
        given: list[tuple[Tensor, ...]] = []

        def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            given.append(inputs)
            raise _Reached

        handle = part.register_forward_pre_hook(stop)
        try:
            with torch.inference_mode():
                self._split(self.inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
        return copy.deepcopy(part), given[0]


class _Reached(Exception):
    """A pass has come to the layer that it was for."""


def _checked(latencies: LatencyTable, parts: _Parts, settings: ProfileSettings) -> LatencyTable:
    """The table with its remainder and its checks."""
    generator, layers = np.random.default_rng(0), len(parts.table.layers)
    drawn = [np.ones(layers), *(generator.uniform(0.1, 1.0, size=layers) for _ in range(settings.checks))]
    networks = {str(index): copy.deepcopy(parts.pruned(shares)) for index, shares in enumerate(drawn)}
    timed = alternate(
        {name: torch_run(network, parts.inputs) for name, network in networks.items()},
        rounds=settings.rounds,
        warmup=settings.warmup,
    )
    measured = [timed[name].median for name in networks]
    masks = [parts.mask(shares) for shares in drawn]
    model = LatencyModel(latencies, parts.network, parts.table, parts.inputs, parts.architecture)
    remainder = measured[0] - model.baseline
    costs = CostModel(parts.network, parts.table, parts.inputs)
    checks = tuple(
        LatencyCheck(macs=1 - costs.reductions(mask).macs, measured=seconds, predicted=model(mask) + remainder)
        for mask, seconds in zip(masks, measured, strict=True)
    )
    return latencies.model_copy(update={"remainder": remainder, "checks": checks})


def _identity() -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.placeholder("inputs"))
    return fx.GraphModule({}, graph)
