"""`zeroout finetune` as a user meets it: its schedule, its resume, its page."""

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.cli import main
from agents.cli.finetune import SCHEDULE, SWITCHES
from agents.run_directory import RunDirectory
from recognizers.training import RetrainingConfig
from tests.agents.command_line import call, fails


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, small_flags: list[str]) -> Path:
    """The run directory of a finished `zeroout prune`."""
    path = tmp_path_factory.mktemp("run") / "run"
    assert main(["prune", "--policy", "uniform:l1", "--out", str(path), "--json", *small_flags]) == 0
    return path


SHORT = ["--epochs", "3", "--warmup-epochs", "0.5", "--precision", "float32"]


def test_every_setting_has_a_flag() -> None:
    assert {*SCHEDULE, *SWITCHES} == RetrainingConfig.model_fields.keys() - {"seed"}


def test_flags_reach_the_settings_and_explicit_settings_win(
    pruned: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--schedule", "step", "--milestones", "1,2", "--learning-rate", "0.03", "--label-smoothing", "0.1"]
    flags += ["--distillation", "0.5", "--temperature", "2", "--no-nesterov", "--flip", "--seed", "4"]
    flags += ["--optimizer", "adamw", "--hints", "2", "--mixup", "0.3"]
    own = "recognizer.finetuning.padding=0"
    assert call(capsys, "finetune", str(pruned), "--out", "o", "--json", *SHORT, *flags, "--padding", "3", own)[0] == 0
    settings = RunDirectory(Path("o")).read_settings().task.recognizer.finetuning
    expected = RetrainingConfig(
        epochs=3,
        warmup_epochs=0.5,
        precision="float32",
        schedule="step",
        milestones=(1, 2),
        learning_rate=0.03,
        label_smoothing=0.1,
        optimizer="adamw",
        distillation=0.5,
        temperature=2,
        hints=2,
        mixup=0.3,
        nesterov=False,
        flip=True,
        padding=0,
        seed=4,
    )
    assert settings == expected


def test_it_leaves_events_and_a_page(pruned: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "finetune", str(pruned), "--out", "tuned", *SHORT)
    assert "report: tuned/report.html" in out
    lines = [json.loads(line) for line in Path("tuned/finetuning.jsonl").read_text().splitlines()]
    events = EventAccumulator("tuned/tensorboard")
    events.Reload()
    scalars = events.Scalars("finetuning/loss")
    assert [event.step for event in scalars] == [line["epoch"] for line in lines] == [1, 2, 3]
    assert [event.value for event in scalars] == pytest.approx([line["loss"] for line in lines])
    page = Path("tuned/report.html")
    text = page.read_text()
    assert "zeroout finetune" in text and "Accuracy per epoch" in text and "digits/convnet" in text
    page.unlink()
    assert call(capsys, "report", "tuned")[0] == 0
    assert page.read_text() == text
    summary = json.loads(Path("tuned/summary.json").read_text())
    del summary["epochs"]
    Path("tuned/summary.json").write_text(json.dumps(summary))
    assert "epochs" in fails(capsys, "report", "tuned")


def test_resuming_equals_going_through(
    pruned: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["finetune", str(pruned), "--json", *SHORT]
    whole = json.loads(call(capsys, *arguments, "--out", "whole")[1])
    added: list[None] = []
    add_line = RunDirectory.add_line

    def killed(self: RunDirectory, *line: object) -> None:
        add_line(self, *line)  # type: ignore[arg-type]
        added.append(None)
        if len(added) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "add_line", killed)
        assert call(capsys, *arguments, "--out", "parts")[0] == 130
    assert "--resume" in fails(capsys, *arguments, "--out", "parts")
    changed = [*arguments, "--out", "parts", "--resume", "--learning-rate", "0.5"]
    assert "learning_rate" in fails(capsys, *changed)
    parts = json.loads(call(capsys, *arguments, "--out", "parts", "--resume")[1])
    for figure in ("test_accuracy", "selection_accuracy", "validation_accuracy", "epochs"):
        assert parts[figure] == whole[figure]
    figures = [
        [
            (line["epoch"], line["loss"])
            for line in map(json.loads, Path(run, "finetuning.jsonl").read_text().splitlines())
        ]
        for run in ("whole", "parts")
    ]
    assert figures[0] == figures[1]


def test_errors(pruned: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "schedule" in fails(capsys, "finetune", str(pruned), "--out", "o", "--schedule", "sine")
    assert "milestones" in fails(capsys, "finetune", str(pruned), "--out", "o", "--milestones", "3")
    shutil.copyfile(pruned / "best.mask.safetensors", "alone.safetensors")
    assert "no run directory" in fails(capsys, "finetune", "alone.safetensors", "--out", "o")
    assert not Path("o").exists()
