"""A small trained network on digits, and networks whose mistakes cannot hide."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from recognizers.baseline import Baseline
from recognizers.compaction import compact
from recognizers.data import Normalization, Splits, load_dataset, split
from recognizers.recognizer import Recognizer
from recognizers.recovery import Recovery
from recognizers.training import TrainingConfig, train
from recognizers.units import UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask
from recognizers.zoo import create

torch.set_num_threads(1)

RandomMask = Callable[..., np.ndarray]
Enliven = Callable[..., nn.Module]
MaskedAndCompact = Callable[[nn.Module, UnitTable, np.ndarray], tuple[nn.Module, nn.Module]]
MakeRecognizer = Callable[..., Recognizer]


@pytest.fixture(scope="session")
def random_mask() -> RandomMask:
    """Draw a mask: of every layer a random number of units goes, at least one stays."""

    def draw(table: UnitTable, seed: int) -> np.ndarray:
        generator = np.random.default_rng(seed)
        mask = np.ones(table.n_units, dtype=np.int8)
        for layer in table.layers:
            removed = int(generator.integers(0, len(layer)))
            mask[generator.choice(layer.units, size=removed, replace=False)] = 0
        return mask

    return draw


@pytest.fixture(scope="session")
def enliven() -> Enliven:
    """Make outputs of order 1 that depend on every channel.

    Batch norms get random scales and shifts, statistics of random images, and a disturbance on top; the output is
    scaled to unit standard deviation.
    """

    @torch.no_grad()
    def change(network: nn.Module, images: torch.Tensor, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            if norm.affine:
                norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
                norm.bias.copy_(0.3 * torch.randn(norm.bias.shape, generator=generator))
        network.eval()
        for norm in norms:
            norm.train()
        network(images)
        network.eval()
        for norm in norms:
            shape = norm.running_mean.shape
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn(shape, generator=generator)
            norm.running_var *= 0.7 + 0.6 * torch.rand(shape, generator=generator)
        last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        scale = network(images).std(dim=0).mean()
        last.weight /= scale
        return network

    return change


@pytest.fixture(scope="session")
def masked_and_compact() -> MaskedAndCompact:
    """The dense network with ZeroOut layers under a mask, and the compact one; both apart from the original."""

    def both(network: nn.Module, table: UnitTable, mask: np.ndarray) -> tuple[nn.Module, nn.Module]:
        masked = copy.deepcopy(network).eval()
        insert_zero_outs(masked, table)
        set_mask(masked, mask)
        return masked, compact(network, table, mask).eval()

    return both


@pytest.fixture(scope="session")
def digits() -> tuple[Splits, Normalization]:
    splits = split(load_dataset("digits"), held_out=0.4, selection_share=0.5, seed=0)
    return splits, Normalization.of(splits.train.images)


@pytest.fixture(scope="session")
def trained(digits: tuple[Splits, Normalization]) -> nn.Module:
    """A convnet of widths 6, 8, 8 that is right on most digits. Copy it before use."""
    splits, normalization = digits
    torch.manual_seed(0)
    network = create("convnet", classes=10, in_channels=1, widths=[6, 8, 8])
    train(network, splits, normalization, TrainingConfig(epochs=4, learning_rate=0.1, precision="float32"))
    return network.eval()


@pytest.fixture(scope="session")
def make_recognizer(digits: tuple[Splits, Normalization], trained: nn.Module) -> MakeRecognizer:
    """A recognizer around a copy of the trained convnet, or around another network."""

    def make(recovery: Recovery | None = None, network: nn.Module | None = None, **arguments: object) -> Recognizer:
        baseline = Baseline(
            copy.deepcopy(trained if network is None else network),
            *digits,
            device=torch.device("cpu"),
            **{"batch_size": 1024, **arguments},
        )
        return Recognizer(baseline, recovery=recovery)

    return make
