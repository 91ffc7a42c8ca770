"""Prediction leaves the network as found and measures what it says."""

import itertools

import pytest
import torch
from torch import nn

from recognizers import zoo
from recognizers.data import Normalization
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.evaluation import (
    accuracy,
    autocast,
    cross_entropy,
    predict,
    resolve_precision,
    to_inputs,
    training_mode,
)

NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return zoo.create("resnet20", classes=10, in_channels=3)


def test_predict_equals_a_plain_forward_pass(network: nn.Module, images: torch.Tensor) -> None:
    logits = predict(network, images, NORMALIZATION, batch_size=4, precision="float32")
    with torch.no_grad():
        expected = network.eval()(NORMALIZATION.normalize(images))
    assert logits.dtype == torch.float32 and logits.shape == (10, 10)
    torch.testing.assert_close(logits, expected)


def test_predict_takes_images_that_are_normalised_already(network: nn.Module, images: torch.Tensor) -> None:
    torch.testing.assert_close(
        predict(network, NORMALIZATION.normalize(images), None, precision="float32"),
        predict(network, images, NORMALIZATION, precision="float32"),
    )


def test_predict_in_bfloat16_is_close(network: nn.Module, images: torch.Tensor) -> None:
    exact = predict(network, images, NORMALIZATION, precision="float32")
    rounded = predict(network, images, NORMALIZATION, precision="bfloat16")
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.1)


def test_predict_restores_the_mode_of_each_module_and_changes_no_statistics(
    network: nn.Module, images: torch.Tensor
) -> None:
    network.train()
    frozen = network.get_submodule("layer1.0.bn1").eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    predict(network, images, NORMALIZATION)
    assert [module for module in network.modules() if not module.training] == [frozen]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_modes_are_restored_after_an_error(network: nn.Module) -> None:
    network.train()
    with pytest.raises(RuntimeError, match="boom"), training_mode(network, False):
        assert not network.training
        raise RuntimeError("boom")
    assert all(module.training for module in network.modules())


def test_predict_works_without_parameters(images: torch.Tensor) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert predict(network, images, NORMALIZATION, precision="float32").shape == (10, 3)


def test_predict_refuses_an_empty_batch_size(network: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(ConfigurationError, match="batch_size"):
        predict(network, images, NORMALIZATION, batch_size=0)


def test_accuracy_and_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    assert accuracy(logits, labels) == 0.75
    expected = -torch.log_softmax(logits, 1)[torch.arange(4), labels].mean()
    assert cross_entropy(logits, labels) == pytest.approx(float(expected))


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("float32", "cpu") == torch.float32
    assert resolve_precision("bfloat16", "cpu") == torch.bfloat16
    for amx, avx, amd in itertools.product((True, False), repeat=3):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr("recognizers.evaluation.is_amd_processor", lambda amd=amd: amd)
        assert resolve_precision("auto", "cpu") == (torch.bfloat16 if amx or (avx and amd) else torch.float32)
    for capability, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert resolve_precision("auto", "cuda:0") == expected
    assert resolve_precision("auto", "mps") == torch.float32
    with pytest.raises(UnknownNameError, match="float32"):
        resolve_precision("float23", "cpu")  # type: ignore[arg-type]


def test_autocast_computes_in_the_precision() -> None:
    matrix = torch.ones(2, 2)
    with autocast("bfloat16", "cpu"):
        assert (matrix @ matrix).dtype == torch.bfloat16
    with autocast("float32", "cpu"):
        assert (matrix @ matrix).dtype == torch.float32


def test_inputs_are_channels_last_on_the_cpu(images: torch.Tensor) -> None:
    inputs = to_inputs(images, NORMALIZATION, "float32")
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(inputs, NORMALIZATION.normalize(images))
