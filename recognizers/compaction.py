"""The compact network: the execution of pruning. Filters that are zeroed out are physically gone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator

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


def tensor_indices(module: nn.Module, name: str, kept: Kept) -> Kept:
    """Kept indices of the first two dimensions of the parameter or buffer ``name`` of ``module``."""
    out_kept, in_kept = kept
    if name == "weight" and isinstance(module, nn.Conv2d) and module.groups > 1 and in_kept is not None:
        # Groups stay equal (the same positions are kept in each), so the first group stands for all.
        in_kept = in_kept[in_kept < module.in_channels // module.groups]
    if name == "weight" and isinstance(module, nn.Conv2d | nn.Linear):
        return out_kept, in_kept
    return (None if name == "num_batches_tracked" else out_kept), None


def slice_tensor(tensor: Tensor, indices: Kept) -> Tensor:
    """``tensor`` with only the given indices of its first two dimensions: a copy, or itself where all are kept."""
    for dimension, index in enumerate(indices):
        if index is not None and len(index) != tensor.shape[dimension]:
            tensor = tensor.index_select(dimension, index.to(tensor.device))
    return tensor


def positions(kept: Tensor | None, among: Tensor | None) -> Tensor | None:
    """Where the sorted indices ``kept`` stand in the sorted indices ``among`` (None: all), which contain them."""
    return kept if kept is None or among is None else torch.searchsorted(among, kept)


class CompactNetwork:
    """A sliced copy of a complete network that follows the mask.

    Removing units slices what is there already, so recovered values stay and the work shrinks with the network; units
    come back with the complete network's values.

    Args:
        network: the complete network, a plain one; it is read, never changed.
        table: its units.
        share: share the parameters that are not sliced with the complete network; for a compact network whose
            parameters nobody changes in place.

    Attributes:
        module: the compact network.
        versions: by module path, how often the module's tensors were replaced or, says :meth:`touch`, changed.
    """

    def __init__(self, network: nn.Module, table: UnitTable, *, share: bool = False) -> None:
        self._complete, self._table, self._share = network, table, share
        shared = {id(parameter): parameter for parameter in network.parameters()} if share else {}
        self.module: nn.Module = copy.deepcopy(network, shared)  # type: ignore[arg-type]  # annotated too narrowly
        self.versions = Counter[str]()
        self._slots = table.slots
        self._layer_of_unit = np.append(table.layer_of_unit, -1)  # the last entry maps -1 to -1
        self._modules_of_layer: list[set[str]] = [set() for _ in table.layers]
        for path, slot in self._slots.items():
            for units in (slot.out_units, slot.in_units):
                for layer in set() if units is None else set(self._layer_of_unit[units].tolist()) - {-1}:
                    self._modules_of_layer[layer].add(path)
        self._kept: dict[str, Kept] = dict.fromkeys(self._slots, (None, None))
        self._mask = np.ones(table.n_units, dtype=np.int8)

    @property
    def mask(self) -> np.ndarray:
        """A copy of the mask that the network is sliced by, ``[n_units]`` int8."""
        return self._mask.copy()

    def follow(self, mask: np.ndarray) -> set[str]:
        """Slice as ``mask`` (``[n_units]``, 1 kept) says.

        Returns:
            Paths of the modules that took over values of the complete network, as units came back.
        """
        changed = np.unique(self._layer_of_unit[:-1][mask != self._mask])
        paths = set().union(*(self._modules_of_layer[layer] for layer in changed))
        shrinks = bool((mask <= self._mask).all())
        self._mask = mask.copy()
        for path in paths:
            before, self._kept[path] = self._kept[path], kept_channels(self._slots[path], mask)
            if shrinks:
                self._narrow(path, before)
            else:
                self._load(path, self._complete)
        self.touch(paths)
        return set() if shrinks else paths

    def reload(self) -> None:
        """Take over all values of the complete network, under the mask as it is."""
        self.load(self.paths(), self._complete)

    def load(self, paths: Iterable[str], source: nn.Module) -> None:
        """Take over the values that modules have in a network like the complete one, under the mask as it is."""
        paths = list(paths)
        for path in paths:
            self._load(path, source)
        self.touch(paths)

    def values(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers."""
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def restore(self, mask: np.ndarray, values: dict[str, Tensor]) -> None:
        """Take over ``values`` that this network had under ``mask``."""
        self.follow(mask)
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(values[name])
        self.touch(self.paths())

    def scatter(self, network: nn.Module) -> None:
        """Write the values into a network like the complete one; where units are removed it keeps its own."""
        with torch.no_grad():
            for path, module in self._complete.named_modules():
                target_module, kept = network.get_submodule(path), self._kept.get(path, (None, None))
                for name, value in _tensors(self.module.get_submodule(path)):
                    rows, columns = tensor_indices(module, name, kept)
                    target = getattr(target_module, name)
                    if rows is None and columns is None:
                        target.copy_(value)
                    elif columns is None:
                        target[rows] = value
                    elif rows is None:
                        target[:, columns] = value
                    else:
                        target[rows[:, None], columns] = value

    def touch(self, paths: Iterable[str]) -> None:
        """Take note that tensors of these modules have changed."""
        self.versions.update(paths)

    def paths(self) -> list[str]:
        """Paths of all modules."""
        return [path for path, _ in self.module.named_modules()]

    def _narrow(self, path: str, before: Kept) -> None:
        complete, compact = self._complete.get_submodule(path), self.module.get_submodule(path)
        for name, tensor in _tensors(compact):
            old, new = tensor_indices(complete, name, before), tensor_indices(complete, name, self._kept[path])
            indices = (positions(new[0], old[0]), positions(new[1], old[1]))
            self._put(compact, name, slice_tensor(tensor.detach(), indices))
        count_channels(compact, depthwise=is_depthwise(complete))

    def _load(self, path: str, source: nn.Module) -> None:
        complete, compact = source.get_submodule(path), self.module.get_submodule(path)
        kept = self._kept.get(path, (None, None))
        for name, tensor in _tensors(complete):
            sliced = slice_tensor(tensor.detach(), tensor_indices(complete, name, kept))
            shared = self._share and isinstance(tensor, nn.Parameter)
            same = sliced.data_ptr() == tensor.data_ptr()
            self._put(compact, name, sliced.clone() if same and not shared else sliced)
        if path in self._slots:
            count_channels(compact, depthwise=is_depthwise(complete))

    def _put(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        if name in module._buffers:
            module._buffers[name] = tensor  # setattr() looks at far more than this
        elif self._share:  # the parameter object may be the complete network's
            module.register_parameter(name, nn.Parameter(tensor, module.get_parameter(name).requires_grad))
        else:
            parameter = module.get_parameter(name)
            parameter.data = tensor
            parameter.grad = None


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


def make_plain(network: nn.Module) -> nn.Module:
    """Rid a network, in place, of its ZeroOut layers and of work in place; the same network is returned."""
    for module in network.modules():
        if "zero_out" in module._modules:
            del module._modules["zero_out"]
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is mask_input]:
                del module._forward_pre_hooks[key]
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return network


def compact(network: nn.Module, table: UnitTable, mask: np.ndarray) -> nn.Module:
    """The compact network of a complete one under ``mask`` (``[n_units]``, 1 kept): a plain module of its own."""
    sliced = CompactNetwork(make_plain(copy.deepcopy(network)), table)
    sliced.follow(mask)
    return sliced.module


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module itself."""
    yield from list(module.named_parameters(recurse=False))
    yield from list(module.named_buffers(recurse=False))
