"""The quickstart from end to end, on a task and a budget that take seconds."""

import json
from pathlib import Path

import pytest

from agents.cli import main
from recognizers.compact_file import load_compact

TINY = [
    "controller.network.lstm_size=8",
    "controller.network.encoder_size=8",
    "controller.replay.warmup=40",
    "controller.learning.batch_size=4",
    "controller.sampling.num_env_runners=0",
    "controller.total_steps=300",
    "controller.evaluation_interval=150",
    "recognizer.finetuning.epochs=2",
    "recognizer.finetuning.warmup_epochs=0",
]


def test_quickstart_compares_all_policies_and_validates(
    home: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quickstart", "--out", "run", "--json", *flags, *TINY]) == 0
    summary = json.loads(capsys.readouterr().out)
    results = {result["policy"]: result for result in summary["results"]}
    assert set(results) == {"random", "uniform:l1", "global:l1", "lookahead", "r2d2"}
    assert (
        len({json.dumps([r["recovery"], r["objective"], r["baseline_test_accuracy"]]) for r in results.values()}) == 1
    )
    assert results["r2d2"]["environment_steps"] >= 300
    best = results[summary["best"]]
    assert best["finetuned"]["epochs"] == 2
    reductions = [result["parameter_reduction"] for result in results.values()]
    assert best["parameter_reduction"] == max(reductions)

    run = Path("run")
    page = (run / "report.html").read_text()
    assert all(policy in page for policy in results)
    assert (run / "overview.png").is_file() and list((run / "tensorboard").glob("events.*"))
    assert len(list((run / "masks").iterdir())) == 5
    tuned, plain = load_compact(run / "finetuned.safetensors"), load_compact(run / "compact.safetensors")
    assert [p.shape for p in tuned.parameters()] == [p.shape for p in plain.parameters()]

    assert main(["validate", "run", "--json"]) == 0
    validated = json.loads(capsys.readouterr().out)
    assert validated["masks"] == 6 and validated["steps"] > 300
    left = [path for path in home.rglob("*") if path.is_file() and path.parts[-2:] != (".ray", "auth_token")]
    assert not left
