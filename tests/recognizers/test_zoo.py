"""The zoo builds what it says, under the state-dict keys that published weights use."""

import pytest
import torch
from torch import nn

from recognizers import zoo
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.zoo.resnet import PaddedShortcut

PARAMETERS = {  # for 3 channels and 10 classes
    "convnet": 57_130,
    "resnet20": 269_722,  # 0.27 M in He et al. 2016, table 6
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "serial_resnet20": 502_026,
    "serial_resnet32": 889_770,
    "serial_resnet44": 1_277_514,
    "serial_resnet56": 1_665_258,
    "serial_resnet18": 19_660_746,
    "serial_resnet34": 39_867_786,
    "vgg16_bn": 14_728_266,
}


@pytest.mark.parametrize("name", zoo.available())
def test_every_architecture_maps_images_to_logits_and_backpropagates(name: str) -> None:
    network = zoo.create(name, classes=7, in_channels=1)
    logits = network(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", zoo.available())
def test_parameter_counts(name: str) -> None:
    network = zoo.create(name, classes=10, in_channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", zoo.available())
def test_every_architecture_is_traceable(name: str) -> None:
    network = zoo.create(name, classes=10, in_channels=3).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize("name", zoo.available())
def test_every_activation_is_a_module_of_its_own(name: str) -> None:
    network = zoo.create(name, classes=10, in_channels=3).eval()
    calls: dict[str, int] = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *_, path=path: calls.update({path: calls.get(path, 0) + 1}))
    network(torch.randn(1, 3, 32, 32))
    assert calls and set(calls.values()) == {1}


def test_cifar_resnet_has_the_published_keys() -> None:
    keys = set(zoo.create("resnet20", classes=10, in_channels=3).state_dict())
    norms = {f"bn{n}.{key}" for n in (1, 2) for key in ("weight", "bias", "running_mean", "running_var")}
    norms |= {f"bn{n}.num_batches_tracked" for n in (1, 2)}
    block = norms | {"conv1.weight", "conv2.weight"}
    blocks = {f"layer{stage}.{position}.{key}" for stage in (1, 2, 3) for position in range(3) for key in block}
    stem = {"conv1.weight"} | {key for key in norms if key.startswith("bn1")}
    assert keys == blocks | stem | {"linear.weight", "linear.bias"}


def test_projection_shortcuts_and_stem_of_resnet18() -> None:
    network = zoo.create("resnet18", classes=10, in_channels=3)
    keys = network.state_dict().keys()
    assert network.get_submodule("conv1").stride == (1, 1)
    assert {"layer2.0.shortcut.0.weight", "layer4.0.shortcut.1.running_mean"} <= keys
    assert not any(key.startswith(("layer1.0.shortcut", "layer2.1.shortcut")) for key in keys)


def test_vgg_features_are_numbered_as_in_torchvision() -> None:
    own = zoo.create("vgg16_bn", classes=10, in_channels=3).state_dict()
    with torch.device("meta"):
        other = zoo.create("torchvision:vgg16_bn", classes=10, in_channels=3).state_dict()
    shapes = {key: value.shape for key, value in own.items() if key.startswith("features.")}
    assert shapes == {key: value.shape for key, value in other.items() if key.startswith("features.")}
    assert own["classifier.weight"].shape == (10, 512)


def test_convnet_takes_widths() -> None:
    network = zoo.create("convnet", classes=10, in_channels=1, widths=(8, 12))
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [8, 12]
    for size in (4, 8, 28):
        assert network(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_padded_shortcut_is_option_a() -> None:
    features = torch.randn(2, 16, 7, 7, requires_grad=True)
    out = PaddedShortcut(16, 32, stride=2)(features)
    assert out.shape == (2, 32, 4, 4)
    torch.testing.assert_close(out[:, 8:24], features[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_same_seed_same_weights() -> None:
    def build() -> torch.Tensor:
        torch.manual_seed(3)
        return nn.utils.parameters_to_vector(zoo.create("resnet20", classes=10, in_channels=3).parameters())

    assert torch.equal(build(), build())


@pytest.mark.parametrize("name", ["mobilenet_v2", "torchvision:resnet18", "googlenet", "inception_v3", "densenet121"])
def test_torchvision_models_by_name(name: str) -> None:
    with torch.device("meta"):
        network = zoo.create(name, classes=5, in_channels=1)
        logits = network(torch.empty(2, 1, 96, 96))  # in training mode, where auxiliary heads would return tuples
    assert logits.shape == (2, 5)


def test_replaced_input_convolution_keeps_its_geometry() -> None:
    with torch.device("meta"):
        one = zoo.create("torchvision:resnet18", classes=5, in_channels=1).get_submodule("conv1")
        three = zoo.create("torchvision:resnet18", classes=5, in_channels=3).get_submodule("conv1")
    assert isinstance(one, nn.Conv2d) and isinstance(three, nn.Conv2d)
    assert one.weight.shape == (64, 1, 7, 7) and one.bias is None
    assert (one.stride, one.padding) == (three.stride, three.padding)


def test_own_name_shadows_torchvision() -> None:
    assert isinstance(zoo.create("resnet18", classes=10, in_channels=3).get_submodule("linear"), nn.Linear)
    assert "resnet18" in zoo.torchvision_models()


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="resnet56"):
        zoo.create("resnet65", classes=10, in_channels=3)
    with pytest.raises(UnknownNameError, match="torchvision:resnet18"):
        zoo.create("torchvision:resnet_18", classes=10, in_channels=3)
    with pytest.raises(UnknownNameError):  # a detector, not a classifier
        zoo.create("fasterrcnn_resnet50_fpn", classes=10, in_channels=3)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet20", {"widths": (1, 2)}),
        ("torchvision:resnet18", {"widths": (1, 2)}),
        ("convnet", {"widths": ()}),
        ("convnet", {"widths": (4, 0)}),
        ("convnet", {"classes": 0}),
        ("convnet", {"in_channels": 0}),
    ],
)
def test_unusable_arguments_are_refused(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        zoo.create(name, **{"classes": 10, "in_channels": 3, **arguments})


def test_registering_and_taken_names() -> None:
    with pytest.raises(ConfigurationError, match="registered already"):
        zoo.register_architecture("convnet")(lambda **_: nn.Identity())
    with pytest.raises(ConfigurationError, match="taken"):
        zoo.register_architecture("torchvision:mine")(lambda **_: nn.Identity())
