"""Prepared and untrained recognizers on the command line, from training to fine-tuning."""

import json
from pathlib import Path

import pytest
import torch

from agents.cli import main
from recognizers.blueprint import Blueprint
from recognizers.compact_file import load_compact
from recognizers.config import WEIGHTS_VARIABLE, save_weights
from recognizers.files import read_tensors
from recognizers.preparation import PcaInit, Provenance
from recognizers.preparation.narrowing import narrowed_network
from tests.agents.command_line import fails

SMALL = [
    "--task",
    "digits/convnet",
    "recognizer.arguments={widths: [6, 8, 8]}",
    "recognizer.training={epochs: 3, precision: float32}",
    "recognizer.finetuning={epochs: 2, precision: float32}",
    "actions.per_layer=4",
]
NARROW = "recognizer.preparation={kind: pca-init, contribution: 0.9}"
REPLACE = "recognizer.preparation={kind: replace, criterion: l1, rate: 0.3, training: {epochs: 2}}"


@pytest.fixture(autouse=True)
def no_weights_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    status = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def test_narrowed_trained_pruned_and_fine_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "recognizer", "train", *SMALL, NARROW, "--out", "narrow")
    weights = ["--weights", "narrow/recognizer.safetensors"]
    evaluated = run(capsys, "recognizer", "evaluate", *SMALL, *weights)
    assert evaluated["parameters"] < evaluated["original_parameters"]
    assert evaluated["macs"] < evaluated["original_macs"]
    info = run(capsys, "recognizer", "info", *SMALL, *weights)
    assert info["parameters"] == evaluated["parameters"] and info["units"] < 22
    half = ["--policy", "uniform:l1", "--target-macs", "0.5"]
    pruned = run(capsys, "prune", *SMALL, *weights, *half, "--out", "half")
    assert pruned["original_macs_reduction"] > pruned["macs_reduction"] >= 0.5
    tuned = run(capsys, "finetune", "half/best.mask.safetensors", "--out", "tuned")
    assert tuned["macs_reduction"] == pruned["macs_reduction"]
    removed = (
        1
        - sum(value.numel() for value in load_compact("tuned/finetuned.safetensors").parameters())
        / (evaluated["original_parameters"])
    )
    assert removed == pytest.approx(pruned["original_parameter_reduction"])
    assert main(["recognizer", "evaluate", *SMALL, *weights]) == 0
    assert f"(unprepared: {evaluated['original_parameters']:,} and" in capsys.readouterr().out


def test_training_ends_with_the_replacement(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "recognizer", "train", *SMALL, REPLACE, "--out", "replaced")
    lines = [json.loads(line) for line in Path("replaced/training.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    before, known = read_tensors("replaced/recognizer.safetensors")
    # Nothing is left to be done with either form of the settings.
    for number, settings in enumerate(([REPLACE], [])):
        weights = ["--weights", "replaced/recognizer.safetensors"]
        run(capsys, "prune", *SMALL, *weights, *settings, "--policy", "uniform:l1", "--out", str(number))
        after, said = read_tensors(f"{number}/recognizer.safetensors")
        assert said == known and all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert not Path(f"{number}/training.jsonl").exists()


def test_untrained_pruned_then_trained(capsys: pytest.CaptureFixture[str]) -> None:
    untrained = [*SMALL, "recognizer.start=untrained", "--recovery", "none"]
    arguments = ["--policy", "global:snip", "--target-macs", "0.5", "--finetune", "--out", "snip"]
    pruned = run(capsys, "prune", *untrained, *arguments)
    assert pruned["macs_reduction"] >= 0.5
    assert pruned["finetuned"]["test_accuracy"] > pruned["test_accuracy"]
    again = run(capsys, "finetune", "snip/best.mask.safetensors", "--out", "again")
    assert again["test_accuracy"] == pruned["finetuned"]["test_accuracy"]
    assert "nobody has trained" in fails(capsys, "recognizer", "train", *untrained, "--out", "trained")
    weights = ["--weights", "snip/recognizer.safetensors"]
    assert "holds untrained weights" in fails(capsys, "prune", *SMALL, *weights, "--policy", "random", "--out", "x")


def test_a_narrowed_residual_network_is_converted_as_narrow_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    blueprint, narrow = Blueprint("resnet20", 10, 1), PcaInit(contribution=0.8, images=8)
    torch.manual_seed(0)
    network = narrowed_network(blueprint.create(), (1, 8, 8), narrow, seed=0)
    save_weights(Path("narrow.safetensors"), network.state_dict(), blueprint, Provenance(preparation=narrow))
    resnet = ["--task", "digits/convnet", "recognizer.arguments={}", "--weights", "narrow.safetensors"]
    convert = ["recognizer", "convert", *resnet, "recognizer.architecture=resnet20"]
    converted = run(capsys, *convert, "--to", "skip", "--out", "skip.safetensors")
    assert converted["parameters_before"] == sum(value.numel() for value in network.parameters())
    skip = [*resnet[:2], "recognizer.architecture=resnet20", "recognizer.arguments={skip_convolutions: true}"]
    evaluated = run(capsys, "recognizer", "evaluate", *skip, "--weights", "skip.safetensors")
    assert evaluated["parameters"] == converted["parameters"] < evaluated["original_parameters"]
    assert "pruned" in fails(capsys, *convert, "--to", "serial", "--out", "serial.safetensors")
