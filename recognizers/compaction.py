"""The compact network: the execution of pruning. Filters that are zeroed out are physically gone."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.units import Slot, UnitTable, is_depthwise
from recognizers.zero_out import mask_input

Kept = tuple[Tensor | None, Tensor | None]
"""Indices of the kept output and input channels of a module; None where all are kept."""


def kept_channels(slot: Slot, mask: np.ndarray) -> Kept:
    """Indices of the channels of a slot that ``mask`` (``[n_units]``, 1 kept) keeps."""

    def side(units: np.ndarray | None) -> Tensor | None:
        if units is None:
            return None
        return torch.from_numpy(np.flatnonzero((units < 0) | (mask[units] != 0)))

    return side(slot.out_units), side(slot.in_units)


def tensor_indices(module: nn.Module, name: str, kept: Kept) -> tuple[Tensor | None, Tensor | None]:
    """Kept indices of the first two dimensions of the parameter or buffer ``name`` of ``module``."""
    out_kept, in_kept = kept
    if name == "weight" and isinstance(module, nn.Conv2d) and module.groups > 1 and in_kept is not None:
        # Groups stay equal (the same positions are kept in each), so the first group stands for all.
        in_kept = in_kept[in_kept < module.in_channels // module.groups]
    if name == "weight" and isinstance(module, nn.Conv2d | nn.Linear):
        return out_kept, in_kept
    return (None if name == "num_batches_tracked" else out_kept), None


def slice_tensor(tensor: Tensor, indices: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """A copy of ``tensor`` with only the given indices of its first two dimensions."""
    rows, columns = indices
    sliced = tensor if rows is None else tensor.index_select(0, rows.to(tensor.device))
    sliced = sliced if columns is None else sliced.index_select(1, columns.to(tensor.device))
    return sliced.clone() if sliced is tensor else sliced


class CompactNetwork:
    """A sliced copy of a dense network that follows the mask.

    The dense network holds the truth; :meth:`follow` slices it, :meth:`scatter` writes back what training or
    recalibration of the compact network changed.

    Args:
        network: the dense network; it is copied, without its values being shared.
        table: its units.
    """

    def __init__(self, network: nn.Module, table: UnitTable) -> None:
        self._dense, self._table = network, table
        self.module = copy.deepcopy(network)
        strip_zero_outs(self.module)
        self._slots = table.slots
        self._layer_of_unit = np.append(table.layer_of_unit, -1)  # the last entry maps -1 to -1
        self._modules_of_layer: list[set[str]] = [set() for _ in table.layers]
        for path, slot in self._slots.items():
            for units in (slot.out_units, slot.in_units):
                for layer in set() if units is None else set(self._layer_of_unit[units].tolist()) - {-1}:
                    self._modules_of_layer[layer].add(path)
        self._kept: dict[str, Kept] = dict.fromkeys(self._slots, (None, None))
        self._mask = np.ones(table.n_units, dtype=np.int8)

    def follow(self, mask: np.ndarray, *, reload: bool = False) -> None:
        """Slice the dense network as ``mask`` says.

        Args:
            mask: ``[n_units]``, 1 kept.
            reload: take over all dense values, not only those of modules whose kept channels changed. Needed when
                the dense network changed by anything but :meth:`scatter`.
        """
        changed = np.unique(self._layer_of_unit[:-1][mask != self._mask])
        paths = set().union(*(self._modules_of_layer[layer] for layer in changed))
        for path in paths:
            self._kept[path] = kept_channels(self._slots[path], mask)
        self._mask = mask.copy()
        for path, module in self._dense.named_modules():
            if reload or path in paths:
                self._load(path, module)

    def scatter(self, *, statistics_only: bool = False) -> None:
        """Write the compact network's values back into the dense network; removed units keep theirs.

        Args:
            statistics_only: only the buffers (batch-norm statistics).
        """
        with torch.no_grad():
            for path, dense in self._dense.named_modules():
                compact, kept = self._compact(path), self._kept.get(path, (None, None))
                if compact is None:
                    continue
                values: dict[str, Tensor] = {} if statistics_only else {**dict(compact.named_parameters(recurse=False))}
                values |= dict(compact.named_buffers(recurse=False))
                for name, value in values.items():
                    rows, columns = tensor_indices(dense, name, kept)
                    target = getattr(dense, name)
                    if rows is None and columns is None:
                        target.copy_(value)
                    elif columns is None:
                        target[rows] = value
                    elif rows is None:
                        target[:, columns] = value
                    else:
                        target[rows[:, None], columns] = value

    def _compact(self, path: str) -> nn.Module | None:
        try:
            return self.module.get_submodule(path)
        except AttributeError:  # a ZeroOut of the dense network
            return None

    def _load(self, path: str, dense: nn.Module) -> None:
        compact, kept = self._compact(path), self._kept.get(path, (None, None))
        if compact is None:
            return
        for name, parameter in dense.named_parameters(recurse=False):
            getattr(compact, name).data = slice_tensor(parameter.data, tensor_indices(dense, name, kept))
            getattr(compact, name).grad = None
        for name, buffer in dense.named_buffers(recurse=False):
            setattr(compact, name, slice_tensor(buffer, tensor_indices(dense, name, kept)))
        if path in self._slots:
            count_channels(compact, depthwise=is_depthwise(dense))


def count_channels(module: nn.Module, *, depthwise: bool) -> None:
    """Make the channel counts of a module those of its tensors, so that it prints, saves and computes as what it is.

    Args:
        module: any.
        depthwise: whether it was a depthwise convolution before it was sliced.
    """
    if isinstance(module, nn.Conv2d):
        module.out_channels = module.weight.shape[0]
        if depthwise:
            module.groups = module.out_channels
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        channels = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if channels is None else len(channels)


def strip_zero_outs(network: nn.Module) -> None:
    """Remove the ZeroOut layers of a network, which becomes a plain one."""
    for module in network.modules():
        if "zero_out" in module._modules:
            del module._modules["zero_out"]
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is mask_input]:
                del module._forward_pre_hooks[key]


def compact(network: nn.Module, table: UnitTable, mask: np.ndarray) -> nn.Module:
    """The compact network of a dense one under ``mask`` (``[n_units]``, 1 kept): a plain module of its own."""
    sliced = CompactNetwork(network, table)
    sliced.follow(mask, reload=True)
    return sliced.module
