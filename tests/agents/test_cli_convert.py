"""`zeroout recognizer convert` on a small residual network: what it writes is what the other commands take."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from recognizers.blueprint import Blueprint
from recognizers.config import load_weights, save_weights
from recognizers.files import read_tensors
from recognizers.zoo import serial
from recognizers.zoo.resnet import ResNet
from recognizers.zoo.serial import SerialResNet, serialise
from tests.agents.command_line import call

RESNET = "recognizer.architecture=resnet20"
FORMS = {
    "serial": ["recognizer.architecture=serial_resnet20"],
    "skip": [RESNET, "recognizer.arguments={skip_convolutions: true}"],
}


def flags(weights: Path | str, settings: Sequence[str]) -> list[str]:
    return ["--task", "digits/convnet", "--weights", str(weights), "recognizer.arguments={}", *settings]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-20 for digits, random, with batch norms that do something."""
    blueprint = Blueprint("resnet20", 10, 1)
    torch.manual_seed(0)
    network = blueprint.create()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "resnet20.safetensors"
    save_weights(path, network.state_dict(), blueprint)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_converted_weights_measure_as_the_original(
    form: str, home: Path, resnet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = flags(resnet, [RESNET])
    status, out, _ = call(
        capsys, "recognizer", "convert", "--to", form, "--out", "new.safetensors", "--json", *original
    )
    assert status == 0 and out.count("\n") == 1
    converted = json.loads(out)
    assert converted["largest_difference"] <= 1e-4 * converted["largest_logit"]
    _, metadata = read_tensors("new.safetensors")
    load_weights(Blueprint.from_metadata(metadata, "new").create(), Path("new.safetensors"), form)

    measured = []
    for own in (original, flags("new.safetensors", FORMS[form])):
        status, out, _ = call(capsys, "recognizer", "evaluate", "--json", *own)
        assert status == 0
        measured.append(json.loads(out))
    before, after = measured
    for split in ("validation", "selection", "test"):
        assert after[f"{split}_accuracy"] == before[f"{split}_accuracy"]
    assert (before["parameters"], before["macs"]) == (converted["parameters_before"], converted["macs_before"])
    assert (after["parameters"], after["macs"]) == (converted["parameters"], converted["macs"])
    assert after["macs"] > before["macs"]


def test_text_is_a_table(home: Path, resnet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(
        capsys, "recognizer", "convert", "--to", "skip", "--out", "new.safetensors", *flags(resnet, [RESNET])
    )
    assert "resnet20 skip_convolutions=true" in out and "ratio" in out and "new.safetensors" in out


def refused(capsys: pytest.CaptureFixture[str], out: str, settings: Sequence[str]) -> str:
    """The one line that a conversion to a serial network fails with."""
    status, _, err = call(capsys, "recognizer", "convert", "--to", "serial", "--out", out, *settings)
    assert status == 2 and "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_what_cannot_be_converted_is_refused(
    home: Path, resnet: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = flags(resnet, [RESNET])
    assert "must end in .safetensors" in refused(capsys, "new.pt", good)
    Path("there.safetensors").touch()
    assert "exists already" in refused(capsys, "there.safetensors", good)
    convnet = flags(weights, ["recognizer.arguments={widths: [6, 8, 8]}"])
    assert "convnet is none of them" in refused(capsys, "new.safetensors", convnet)


def test_nothing_is_written_where_logits_differ(
    home: Path, resnet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(network: ResNet) -> SerialResNet:
        result = serialise(network)
        nn.init.zeros_(result.linear.bias)
        return result

    monkeypatch.setattr(serial, "serialise", forgetful)
    assert "computes other logits than resnet20" in refused(capsys, "new.safetensors", flags(resnet, [RESNET]))
    assert not Path("new.safetensors").exists()
