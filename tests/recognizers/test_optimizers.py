"""Optimizers: which parameters each gets, and that Muon moves convolutions as matrices."""

import copy

import pytest
import torch
from torch import nn

from recognizers.training import TrainingConfig
from recognizers.training.optimizers import make_optimizers

MUON = TrainingConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.1, momentum=0.8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Flatten(),
        nn.Linear(6 * 4, 5),
    )


def step(module: nn.Module, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    inputs = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    module.zero_grad()
    module(inputs).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_filters_as_rows_of_a_matrix(memory_format: torch.memory_format) -> None:
    module = network().to(memory_format=memory_format)  # type: ignore[call-overload]
    twin = copy.deepcopy(module)
    optimizers = make_optimizers(module, MUON)
    weights = [twin[0].weight, twin[4].weight]
    rows = [nn.Parameter(weight.detach().contiguous().flatten(1).clone()) for weight in weights]
    muon = torch.optim.Muon(rows, lr=0.01, weight_decay=0.1, momentum=0.8)
    rest = [parameter for parameter in twin.parameters() if all(parameter is not weight for weight in weights)]
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1)
    for seed in range(3):
        step(module, optimizers, seed)
        twin.zero_grad()
        twin(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        for row, weight in zip(rows, weights, strict=True):
            assert weight.grad is not None
            row.grad = weight.grad.reshape(row.shape)
        muon.step()
        adamw.step()
        with torch.no_grad():
            for row, weight in zip(rows, weights, strict=True):
                weight.copy_(row.view(weight.shape))
    for (name, own), (_, other) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(own, other, msg=name)
    assert not torch.equal(module[0].weight, network()[0].weight)


def test_muon_leaves_depthwise_filters_norms_and_biases_to_adamw() -> None:
    module = network()
    muon, adamw = make_optimizers(module, MUON)
    assert [tuple(row.shape) for row in muon.param_groups[0]["params"]] == [(6, 27), (5, 24)]
    left = [module[1].weight, module[1].bias, module[2].weight, module[2].bias, module[4].bias]
    assert [id(parameter) for parameter in adamw.param_groups[0]["params"]] == [id(parameter) for parameter in left]


def test_a_layer_used_twice_is_moved_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    (muon,) = make_optimizers(nn.Sequential(shared, nn.Tanh(), shared), MUON)
    assert len(muon.param_groups[0]["params"]) == 1


def test_muon_without_matrices_is_adamw() -> None:
    (adamw,) = make_optimizers(nn.BatchNorm1d(3), MUON)
    assert isinstance(adamw, torch.optim.AdamW)


def test_a_layer_without_gradient_stays() -> None:
    module = network()
    module[4].weight.requires_grad_(False)
    before = module[4].weight.clone()
    step(module, make_optimizers(module, MUON), 0)
    assert torch.equal(module[4].weight, before)
