"""The optimizers of a training run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from recognizers.training.config import TrainingConfig


def make_optimizers(network: nn.Module, config: TrainingConfig) -> list[Optimizer]:
    """The optimizers that share a network's parameters; each steps once per batch, at the same learning rate.

    Args:
        network: on the device where it is trained. Its parameters must stay the same objects from here on.
        config: the settings.
    """
    parameters = list(network.parameters())
    if config.optimizer == "sgd":
        return [torch.optim.SGD(parameters, **_with_momentum(config))]
    matrices = _matrices(network) if config.optimizer == "muon" else []
    taken = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in parameters if id(parameter) not in taken]
    optimizers: list[Optimizer] = [_muon(matrices, config)] if matrices else []
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=config.learning_rate, weight_decay=config.weight_decay))
    return optimizers


def _matrices(network: nn.Module) -> list[nn.Parameter]:
    """Weights that map all inputs of a layer to its outputs, whatever their number of dimensions."""
    found: dict[int, nn.Parameter] = {}  # one that layers share counts once
    for module in network.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            weight = module.get_parameter("weight")
            found[id(weight)] = weight
    return list(found.values())


def _muon(weights: list[nn.Parameter], config: TrainingConfig) -> Optimizer:
    """Muon (Jordan et al. 2024) on matrices whose rows are filters.

    PyTorch's takes two dimensions, so it gets parameters of its own that lie in the same memory.
    """
    rows = []
    for weight in weights:
        weight.data = weight.data.contiguous()  # in another layout rows would be a copy
        rows.append(nn.Parameter(weight.data.flatten(1)))
    optimizer = torch.optim.Muon(rows, **_with_momentum(config), adjust_lr_fn="original")

    def hand_over(*_: Any) -> None:
        for weight, row in zip(weights, rows, strict=True):
            row.grad = None if weight.grad is None else weight.grad.contiguous().flatten(1)

    optimizer.register_step_pre_hook(hand_over)
    return optimizer


def _with_momentum(config: TrainingConfig) -> dict[str, Any]:
    """What SGD and Muon alike are told."""
    return {"lr": config.learning_rate, **config.model_dump(include={"momentum", "nesterov", "weight_decay"})}
