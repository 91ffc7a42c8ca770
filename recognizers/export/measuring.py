"""Sizes and latencies of a pruned network beside those of the original one."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from recognizers.costs import count_cost
from recognizers.evaluation import to_inputs
from recognizers.export.onnx_file import onnx_runner, to_onnx
from recognizers.export.pruned import PrunedNetwork
from recognizers.latency import Latency, alternate, cpu_threads, torch_run


@dataclass(frozen=True)
class NetworkSize:
    """Size of a network.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates of convolutions and linear layers for one image.
        file_bytes: of its state dict as safetensors.
    """

    parameters: int
    macs: int
    file_bytes: int


@dataclass(frozen=True)
class Timing:
    """Latencies under the same conditions.

    Attributes:
        runtime: ``torch`` or ``onnxruntime``.
        device: ``cpu`` or ``cuda``.
        threads: of the runtime on the CPU.
        batch_size: images per pass.
        original: of the complete network.
        pruned: of the compact network.
    """

    runtime: str
    device: str
    threads: int
    batch_size: int
    original: Latency
    pruned: Latency

    @property
    def speedup(self) -> float:
        """How many times as fast the pruned network is, by medians."""
        return self.original.median / self.pruned.median


def measure_sizes(pruned: PrunedNetwork) -> tuple[NetworkSize, NetworkSize]:
    """Sizes of the original and of the pruned network."""
    example = pruned.normalization.normalize(pruned.images[:1])
    original, compact = (
        NetworkSize(cost.parameters, cost.macs, len(safetensors.torch.save(network.state_dict())))
        for network, cost in ((each, count_cost(each, example)) for each in (pruned.complete, pruned.compact))
    )
    return original, compact


def measure_timings(
    pruned: PrunedNetwork,
    *,
    device: torch.device,
    batch_sizes: Sequence[int],
    rounds: int,
    warmup: int,
    threads: int | None = None,
) -> list[Timing]:
    """Latencies of the original and the pruned network, in float32: in PyTorch, and in ONNX Runtime where installed.

    Args:
        pruned: the networks.
        device: where PyTorch computes; ONNX Runtime computes on the CPU.
        batch_sizes: images per pass.
        rounds: timed passes of each network.
        warmup: passes before.
        threads: CPU threads; by default PyTorch's.
    """
    with cpu_threads(threads) as used:
        timings = [_torch_timing(pruned, _images(pruned, size), device, used, rounds, warmup) for size in batch_sizes]
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
            timings += _onnx_timings(pruned, batch_sizes, used, rounds, warmup)
    return timings


def _torch_timing(
    pruned: PrunedNetwork, images: Tensor, device: torch.device, threads: int, rounds: int, warmup: int
) -> Timing:
    inputs = to_inputs(images.to(device), pruned.normalization, "float32")
    networks = {"original": pruned.complete.to(device), "pruned": pruned.compact.to(device)}
    try:
        latencies = alternate(
            {name: torch_run(network, inputs) for name, network in networks.items()}, rounds=rounds, warmup=warmup
        )
    finally:
        for network in networks.values():
            network.cpu()
    return Timing("torch", device.type, threads, len(images), **latencies)


def _onnx_timings(
    pruned: PrunedNetwork, batch_sizes: Sequence[int], threads: int, rounds: int, warmup: int
) -> list[Timing]:
    example = pruned.normalization.normalize(pruned.images[:2])
    runners = {
        name: onnx_runner(to_onnx(network, example, {}), threads)
        for name, network in (("original", pruned.complete), ("pruned", pruned.compact))
    }
    timings = []
    for size in batch_sizes:
        inputs = pruned.normalization.normalize(_images(pruned, size))
        runs = {name: lambda runner=runner, inputs=inputs: runner(inputs) for name, runner in runners.items()}
        timings.append(Timing("onnxruntime", "cpu", threads, size, **alternate(runs, rounds=rounds, warmup=warmup)))
    return timings


def _images(pruned: PrunedNetwork, count: int) -> Tensor:
    """So many images, uint8 ``[N, C, H, W]``, some of them several times; latency does not depend on their content."""
    return pruned.images[torch.arange(count) % len(pruned.images)]
