"""`zeroout export` and `zeroout measure` as a user meets them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from agents.cli import main
from recognizers import zoo
from recognizers.compact_file import load_compact
from recognizers.export import load_pruned, load_torch_prune
from recognizers.files import read_tensors
from tests.agents.command_line import call, fails


def network() -> torch.nn.Module:
    return zoo.create("convnet", classes=10, in_channels=1, widths=[6, 8, 8])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path, small_flags: list[str]) -> Path:
    """The run directory of a finished `zeroout prune --finetune`; copy it before use."""
    path = tmp_path_factory.mktemp("run") / "run"
    own = ["--policy", "uniform:l1", "--out", str(path), "--json", "--finetune", "--target-macs", "0.6"]
    brief = ["recognizer.finetuning.epochs=1", "recognizer.finetuning.warmup_epochs=0"]
    assert main(["prune", *own, *small_flags[:-1], *brief]) == 0
    return path


@pytest.fixture
def run(finished: Path, home: Path) -> Path:
    shutil.copytree(finished, "run")
    return Path("run")


IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_three_formats_of_one_run_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load_compact(run / "compact.safetensors")(IMAGES)
    status, out, _ = call(capsys, "export", "run", "--to", "torch-prune", "--json")
    summary = json.loads(out)
    assert status == 0 and summary["files"] == ["run/pruned.torch-prune.safetensors"]
    assert summary["largest_difference"] < 1e-4 and summary["parameters"] < summary["parameters_before"]
    buffers = load_torch_prune(run / "pruned.torch-prune.safetensors", network()).eval()
    torch.testing.assert_close(buffers(IMAGES), expected, rtol=1e-5, atol=1e-5)
    _, out, _ = call(capsys, "export", "run/best.mask.safetensors", "--to", "compact", "--out", "small.safetensors")
    assert "remain" in out and Path("small.json").is_file()
    torch.testing.assert_close(load_pruned("small.safetensors", network())(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_onnx(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="comes with the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="comes with the extra 'onnx'")
    assert call(capsys, "export", "run", "--to", "onnx", "--json")[0] == 0
    logits = runtime.InferenceSession("run/pruned.onnx").run(["logits"], {"images": IMAGES.numpy()})[0]
    expected = load_compact(run / "compact.safetensors")(IMAGES)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)


def test_finetuned_weights_where_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "export", "run", "--to", "torch-prune", "--finetuned", "--json")[0] == 0
    actual = load_torch_prune(run / "pruned.torch-prune.safetensors", network()).eval()(IMAGES)
    torch.testing.assert_close(actual, load_compact(run / "finetuned.safetensors")(IMAGES), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(actual, load_compact(run / "compact.safetensors")(IMAGES), atol=1e-3)


def test_rounding_says_what_it_adds_and_its_mask_can_be_finetuned(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = json.loads((run / "summary.json").read_text())["kept_units"]
    _, out, _ = call(capsys, "export", "run", "--to", "mask", "--round-to", "4", "--json")
    added = json.loads(out)["added_units"]
    assert added
    tensors, _ = read_tensors(run / "rounded.mask.safetensors")
    assert {name: int(bits.sum()) for name, bits in tensors.items()} == {
        name: count + added.get(name, 0) for name, count in kept.items()
    }
    assert all(int(bits.sum()) % 4 == 0 or bits.all() for bits in tensors.values())
    brief = ["recognizer.finetuning.epochs=1", "recognizer.finetuning.warmup_epochs=0"]
    assert call(capsys, "finetune", "run/rounded.mask.safetensors", "--out", "tuned", "--json", *brief)[0] == 0
    _, out, _ = call(capsys, "export", "tuned", "--to", "compact", "--finetuned", "--out", "four.safetensors")
    actual = load_pruned("four.safetensors", network())(IMAGES)
    torch.testing.assert_close(actual, load_compact("tuned/finetuned.safetensors")(IMAGES), rtol=1e-5, atol=1e-5)


def test_errors(run: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    mask = run / "best.mask.safetensors"
    shutil.copyfile(mask, "alone.safetensors")
    assert "no run directory" in fails(capsys, "export", "alone.safetensors", "--to", "compact")
    seeded = [*flags[:2], *flags[4:], "recognizer.training.seed=1", "recognizer.training.epochs=2"]
    assert "other base weights" in fails(capsys, "export", "alone.safetensors", "--to", "compact", *seeded)
    assert "does not hold weights" in fails(
        capsys, "export", "alone.safetensors", "--to", "compact", *flags, "recognizer.arguments={widths: [6, 8, 9]}"
    )
    assert "must end in .onnx" in fails(capsys, "export", "run", "--to", "onnx", "--out", "network.bin")
    assert "exists already" in fails(capsys, "export", "run", "--to", "compact", "--out", "run/compact.safetensors")
    assert "--round-to" in fails(capsys, "export", "run", "--to", "mask")
    assert "fine-tune that" in fails(capsys, "export", "run", "--to", "compact", "--finetuned", "--round-to", "8")
    assert "onnx" in fails(capsys, "export", "run", "--to", "compact", "--include-normalization")
    assert "at least 1" in fails(capsys, "export", "run", "--to", "compact", "--round-to", "0")
    assert "unknown criterion" in fails(
        capsys, "export", "run", "--to", "compact", "--round-to", "2", "--round-by", "magic"
    )
    shutil.copyfile("run/recognizer.safetensors", "run/compact.safetensors")
    assert "not a compact network" in fails(capsys, "export", "run", "--to", "compact")
    (run / "finetuned.safetensors").unlink()
    assert "zeroout finetune" in fails(capsys, "export", "run", "--to", "compact", "--finetuned")
    mask.write_bytes(mask.read_bytes()[:100])
    assert "corrupt" in fails(capsys, "export", "run", "--to", "compact")
    mask.unlink()
    assert "holds no mask" in fails(capsys, "export", "run", "--to", "compact")
    assert not list(run.glob("pruned*"))


def test_measure_shows_original_and_pruned(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # ONNX takes long, and is tested elsewhere
    _, out, _ = call(
        capsys, "measure", "run", "--batch-sizes", "1,3", "--rounds", "3", "--warmup", "0", "--threads", "1", "--json"
    )
    measured = json.loads(out)
    summary = json.loads((run / "summary.json").read_text())
    for figure, reduction in (("parameters", "parameter_reduction"), ("macs", "macs_reduction")):
        share = measured["pruned"][figure] / measured["original"][figure]
        assert share == pytest.approx(1 - summary[reduction])
    timings = measured["timings"]
    assert [(each["runtime"], each["batch_size"]) for each in timings] == [("torch", 1), ("torch", 3)]
    assert timings[0]["threads"] == 1 and timings[0]["pruned"]["passes"] == 3


def test_measure_refuses_what_it_cannot_do(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--rounds", "0"), ("--threads", "0"), ("--batch-sizes", "1,x"), ("--batch-sizes", "0")):
        assert flag in fails(capsys, "measure", "run", flag, value)
