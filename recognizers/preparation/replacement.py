"""Filter replacement: the least important filters of each layer become copies of the most important ones.

What has a low rank is thought to be lost capacity; a copy starts from a good place, and retraining makes use of it.
Units that are tied (by a residual sum, say) are copied as a whole, in all layers that produce them.
"""

import copy
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.preparation.config import FilterReplacement, Variant
from recognizers.units import UnitTable


def replaced_network(
    network: nn.Module, table: UnitTable, scores: np.ndarray, settings: FilterReplacement
) -> nn.Module:
    """A copy of a network whose least important units are copies of others, not retrained yet.

    Plain copies (``top``, ``best``) leave the layers that read them as they are: the weights that read the replaced
    unit read the copy from now on, and the outputs change. With ``split`` the weights that read the original are halved
    and given to both, so the kept units contribute what they did; the replaced units' own contribution is gone, and
    with it the weights that read them. The network then computes what it would compute with the replaced units zeroed
    out. An original and its copy have equal gradients then, so that training moves them alike.

    Args:
        network: a plain network; left unchanged.
        table: its units.
        scores: of the units, ``[n_units]``, higher is more important.
        settings: how many, and by what.
    """
    result = copy.deepcopy(network)
    sources, targets = choose(table, scores, settings.rate, settings.variant)
    copy_units(result, table, sources, targets)
    if settings.variant == "split":
        split_readers(result, table, sources, targets)
    return result


def choose(table: UnitTable, scores: np.ndarray, rate: float, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Which unit is copied, and which becomes its copy.

    Args:
        table: the units.
        scores: ``[n_units]``, higher is more important; of equals the earlier unit counts as less important.
        rate: ``floor(rate * n)`` units of each layer are replaced, the least important ones, at most half of them.
        variant: the k-th least important unit becomes a copy of the k-th most important one; with ``best``, of the most
            important one.

    Returns:
        Sources and targets, ``[k]`` int64 each.
    """
    sources, targets = [], []
    for units in _alike(table):
        order = units[np.argsort(scores[units], kind="stable")]
        count = int(rate * len(units) + 1e-9)  # 0.29 * 100 is a little less than 29
        targets.append(order[:count])
        best = order[::-1]
        sources.append(np.repeat(best[:1], count) if variant == "best" else best[:count])
    empty = np.empty(0, dtype=np.int64)
    return np.concatenate([empty, *sources]), np.concatenate([empty, *targets])


@torch.no_grad()
def copy_units(network: nn.Module, table: UnitTable, sources: np.ndarray, targets: np.ndarray) -> None:
    """Overwrite units in place: weights, biases, and entries of batch norms, depthwise convolutions and PReLUs."""
    for path, slot in table.slots.items():
        if slot.out_units is None:
            continue
        rows, others = _channels(slot.out_units, targets), _channels(slot.out_units, sources)
        for name, tensor in network.get_submodule(path).state_dict(keep_vars=True).items():
            if name != "num_batches_tracked":
                tensor[rows] = tensor[others]


@torch.no_grad()
def split_readers(network: nn.Module, table: UnitTable, sources: np.ndarray, targets: np.ndarray) -> None:
    """Give half of the weights that read each source to its target, in place; each source has one target.

    What the targets' readers had is overwritten.
    """
    seen = set[int]()
    for path, slot in table.slots.items():
        module = network.get_submodule(path)
        if slot.in_units is None or not isinstance(module, nn.Conv2d | nn.Linear) or id(module.weight) in seen:
            continue
        seen.add(id(module.weight))  # layers may share their weights
        width = module.weight.shape[1]
        originals, copies = _channels(slot.in_units, sources), _channels(slot.in_units, targets)
        # In a grouped convolution the same positions of every group belong to a unit: the first group stands for all.
        half = module.weight[:, originals[originals < width]] / 2
        module.weight[:, originals[originals < width]] = half
        module.weight[:, copies[copies < width]] = half


def _channels(units_of_channels: np.ndarray, units: np.ndarray) -> Tensor:
    """The channels of some units, ``[k]`` int64, unit after unit, those of one unit in ascending order."""
    channels = [np.flatnonzero(units_of_channels == unit) for unit in units]
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *channels]))


def _alike(table: UnitTable) -> list[np.ndarray]:
    """The units layer by layer, ``[n]`` int64 each; apart where some occur more often in a module than others."""
    sides = [side for slot in table.slots.values() for side in (slot.out_units, slot.in_units) if side is not None]
    counts = [np.bincount(side[side >= 0], minlength=table.n_units) for side in sides]  # [n_units] each
    result = []
    for layer in table.layers:
        kinds: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for unit in layer.units.tolist():
            kinds[tuple(int(count[unit]) for count in counts)].append(unit)
        result += [np.array(units) for units in kinds.values()]
    return result
