"""The command line as a user meets it: good input, bad input, what it prints and leaves behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agents.cli import main
from recognizers.compact_file import load_compact
from recognizers.files import read_tensors
from tests.agents.command_line import call, fails

COMMANDS = [
    "quickstart",
    "recognizer",
    "train",
    "prune",
    "benchmark",
    "finetune",
    "export",
    "measure",
    "validate",
    "report",
    "serve",
]


@pytest.fixture
def pruned(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> Path:
    """The run directory of a finished `zeroout prune`."""
    status, _, _ = call(capsys, "prune", "--policy", "uniform:l1", "--out", "run", "--json", *flags)
    assert status == 0
    return Path("run").absolute()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "example:" in out and f"zeroout {command}" in out.split("example:")[1]


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys; from agents.cli.main import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prune_leaves_a_complete_run_directory(pruned: Path, home: Path) -> None:
    names = {path.name for path in pruned.iterdir()}
    expected = {"config.yaml", "recognizer.safetensors", "episodes.jsonl", "best.mask.safetensors"}
    assert expected | {"compact.safetensors", "summary.json", "report.html"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert not list(home.iterdir())
    summary = json.loads((pruned / "summary.json").read_text())
    for key in (
        "task",
        "policy",
        "seed",
        "baseline_validation_accuracy",
        "baseline_test_accuracy",
        "validation_accuracy",
        "test_accuracy",
        "parameter_reduction",
        "macs_reduction",
        "kept_units",
        "seconds",
        "environment_steps",
    ):
        assert key in summary
    network = load_compact(pruned / "compact.safetensors")
    kept = {"features.conv1": network.get_submodule("features.conv1").out_channels}  # type: ignore[union-attr]
    assert kept.items() <= summary["kept_units"].items()


def test_json_is_one_line(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "prune", "--policy", "random", "--out", "run", "--json", *flags)
    assert status == 0 and out.count("\n") == 1
    assert json.loads(out)["policy"] == "random"


def test_text_is_a_table(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "prune", "--policy", "global:l1", "--out", "run", "--finetune", *flags)
    assert "global:l1" in out and "report:" in out
    assert Path("run/finetuned.safetensors").is_file()


def test_a_policys_own_settings(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    own = ["policy.evaluations=30"]
    _, out, _ = call(capsys, "prune", "--policy", "search:random", "--out", "run", "--json", *flags, *own)
    summary = json.loads(out)
    assert 30 < summary["environment_steps"] <= 30 + 12
    assert "sharpness" in fails(capsys, "prune", "--policy", "random", "--out", "o", *flags, "policy.sharpness=1")


def test_budget_meets_its_target(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(
        capsys, "prune", "--policy", "uniform:l1", "--target-macs", "0.5", "--out", "run", "--json", *flags[:-1]
    )
    summary = json.loads(out)
    assert summary["objective"]["kind"] == "budget"
    assert 0.5 <= summary["macs_reduction"] < 0.6


def test_validate_accepts_the_run_and_refuses_a_changed_one(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "validate", str(pruned))
    assert status == 0 and "1 episodes" in out
    path = pruned / "episodes.jsonl"
    episode = json.loads(path.read_text())
    episode["accuracies"][0] += 0.01
    path.write_text(json.dumps(episode) + "\n")
    assert "step 0" in fails(capsys, "validate", str(pruned))
    path.write_text(path.read_text()[:-40])
    assert "truncated or corrupt" in fails(capsys, "validate", str(pruned))


def test_report_is_written_again(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pruned / "report.html").unlink()
    status, _, _ = call(capsys, "report", str(pruned))
    assert status == 0 and (pruned / "report.html").is_file()


def test_finetune_takes_task_and_weights_from_the_run(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = str(pruned / "best.mask.safetensors")
    epochs = ["recognizer.finetuning.epochs=2", "recognizer.finetuning.warmup_epochs=0"]
    status, out, _ = call(capsys, "finetune", mask, "--out", "tuned", "--json", *epochs)
    assert status == 0
    summary = json.loads(out)
    assert summary["epochs"] == 2 and 0 < summary["test_accuracy"] <= 1
    assert read_tensors("tuned/finetuned.safetensors")[1]["format"] == "zeroout-compact"


def test_recognizer_commands(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "recognizer", "info", "--json", *flags)
    info = json.loads(out)
    assert status == 0 and info["units"] == 22 and info["excluded"][0]["name"] == "linear"
    status, out, _ = call(capsys, "recognizer", "evaluate", "--json", *flags)
    evaluated = json.loads(out)
    assert status == 0 and evaluated["parameters"] == info["parameters"]
    short = ["recognizer.training.epochs=2", "recognizer.training.warmup_epochs=0"]
    own = [flag for flag in flags if not flag.startswith("recognizer.training.")]
    own = [own[0], own[1], *own[4:]]  # without --weights
    status, out, _ = call(capsys, "recognizer", "train", "--out", "trained", "--json", *own, *short)
    assert status == 0
    weights = json.loads(out)["weights"]
    status, out, _ = call(capsys, "recognizer", "evaluate", "--json", *flags, f"recognizer.weights={weights}")
    assert status == 0 and json.loads(out)["test_accuracy"] == json.loads(out)["test_accuracy"]


# --- bad input ---


def test_unknown_names_offer_the_nearest(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'digits/convnet'" in fails(capsys, "prune", "--task", "digits/convnt", "--policy", "random")
    assert "did you mean 'random'" in fails(capsys, "prune", "--policy", "randon", *flags)
    assert "did you mean 'images'" in fails(capsys, "prune", "--policy", "random", *flags, "recovery.imags=3")
    assert "did you mean 'finetune'" in fails(capsys, "prune", "--policy", "random", *flags, "--recovery", "finetun")
    assert "'digits'" in fails(capsys, "prune", "--policy", "random", *flags, "--data", "digit")
    assert not Path("runs").exists()


def test_missing_data_says_how_to_get_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "prune", "--task", "cifar10/resnet20", "--policy", "random", "--out", "run")
    assert "cifar10" in line and "--download" in line


def test_missing_and_foreign_files(pruned: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    no_weights = [flag if not flag.endswith("small.safetensors") else "nowhere.safetensors" for flag in flags]
    assert "no such file" in fails(capsys, "prune", "--policy", "random", "--out", "other", *no_weights)
    mask = str(pruned / "best.mask.safetensors")
    assert "does not hold weights" in fails(
        capsys, "prune", "--policy", "random", "--out", "another", *flags, f"recognizer.weights={mask}"
    )
    assert "not a run directory" in fails(capsys, "validate", "nowhere")
    assert "no such file" in fails(capsys, "report", "nowhere")
    assert "no R2D2 checkpoint" in fails(capsys, "prune", "--policy", f"r2d2:{pruned}", "--out", "more", *flags)


def test_mask_of_other_weights_is_refused(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pruned / "best.mask.safetensors"
    other = ["recognizer.weights=null", "recognizer.training.seed=9"]
    (pruned / "recognizer.safetensors").unlink()
    assert "other base weights" in fails(capsys, "finetune", str(path), "--out", "tuned", *other)


def test_truncated_mask_is_refused(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pruned / "best.mask.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "truncated or corrupt" in fails(capsys, "finetune", str(path), "--out", "tuned")


def test_a_run_directory_is_not_overwritten(pruned: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = (pruned / "summary.json").read_text()
    assert "holds a run already" in fails(capsys, "prune", "--policy", "random", "--out", "run", *flags)
    assert (pruned / "summary.json").read_text() == before


def test_only_a_training_run_is_resumed(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not of `train`" in fails(capsys, "train", "--out", str(pruned), "--resume")
    assert "no such file" in fails(capsys, "train", "--out", "nowhere", "--resume")
    assert "--task" in fails(capsys, "train", "--out", "nowhere")


def test_out_of_reach_target(home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "prune", "--policy", "random", "--target-macs", "0.000001", "--out", "run", *flags[:-1])
    assert "out of reach" in line


def test_debug_shows_the_traceback(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "prune", "--task", "nothing", "--policy", "random", "--debug")
    assert status == 2 and "Traceback" in err


def test_full_disk_leaves_nothing_half_written(
    home: Path, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left" in fails(capsys, "prune", "--policy", "random", "--out", "run", *flags)
    leftovers = [path for path in Path("run").rglob("*") if path.suffix in {".tmp", ".safetensors", ".html"}]
    assert not leftovers
