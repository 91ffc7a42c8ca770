"""Benchmarks whose entries prepare the recognizer in their own ways."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.benchmark import BenchmarkConfig, Row
from agents.benchmark.engine import plan, run_benchmark
from agents.benchmark.table import figures
from agents.object_store import pack, unpack
from recognizers.config import WEIGHTS_VARIABLE
from recognizers.preparation import Provenance

REPLACE = "recognizer.preparation={kind: replace, criterion: l1, rate: 0.3, training: {epochs: 2}}"
CONFIG = BenchmarkConfig.model_validate(
    {
        "tasks": [
            {
                "task": "digits/convnet",
                "overrides": [
                    "recognizer.arguments={widths: [6, 8, 8]}",
                    "recognizer.training.epochs=3",
                    "recognizer.finetuning.epochs=2",
                    "recovery.kind=none",
                    "objective={kind: budget, macs: 0.6}",
                    "actions.kind=mask",
                ],
            }
        ],
        "seeds": [0],
        "policies": [
            {"policy": "uniform:l1", "label": "plain"},
            {"policy": "uniform:l1", "label": "top", "task_overrides": [REPLACE]},
            {"policy": "global:l1", "label": "top, global", "task_overrides": [REPLACE]},
            {
                "policy": "uniform:l1",
                "label": "best",
                "task_overrides": [REPLACE.replace("rate", "variant: best, rate")],
            },
            {
                "policy": "global:snip",
                "label": "snip",
                "task_overrides": ["recognizer.start=untrained"],
                "finetune": True,
            },
            {
                "policy": "pca:l1",
                "label": "pca",
                "task_overrides": ["recognizer.preparation={kind: pca-init, contribution: 0.9}"],
            },
        ],
    }
)


@pytest.fixture(scope="module", autouse=True)
def no_weights_folder() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(WEIGHTS_VARIABLE, raising=False)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def rows(out: Path) -> list[Row]:
    return list(run_benchmark(CONFIG, out, []))


def test_each_preparation_is_done_once_from_one_trained_network(rows: list[Row], out: Path) -> None:
    assert [row.failure for row in rows] == [None] * 6
    result = {row.label: row.result for row in rows}
    epochs = [
        len(path.read_text().splitlines()) if path.exists() else 0
        for path in sorted(folder / "training.jsonl" for folder in (out / "bases").iterdir())
    ]
    # Untrained; trained, plain and narrowed; retrained, top and best.
    assert sorted(epochs) == [0, 2, 2, 3, 3]
    assert result["top"].baseline_test_accuracy == result["top, global"].baseline_test_accuracy
    assert len({result[name].baseline_test_accuracy for name in ("plain", "top", "best", "snip", "pca")}) >= 4
    assert result["snip"].finetuned.test_accuracy > result["snip"].baseline_test_accuracy


def test_reductions_are_those_of_the_unprepared_network(rows: list[Row]) -> None:
    result = {row.label: row.result for row in rows}
    for name in ("plain", "top", "best", "snip"):
        assert result[name].original_macs_reduction == result[name].macs_reduction
    assert result["pca"].original_macs_reduction > result["pca"].macs_reduction
    assert figures(result["pca"])["macs_reduction"] == 100 * result["pca"].original_macs_reduction
    old = result["pca"].model_copy(update={"original_macs_reduction": None, "original_parameter_reduction": None})
    assert figures(old)["macs_reduction"] == 100 * old.macs_reduction


def test_a_prepared_base_is_sent_to_other_processes_as_it_is(out: Path) -> None:
    job = plan(CONFIG, out, [])[5]
    recognizer = job.base.open(progress=False)
    received = unpack(pack(recognizer))
    assert (
        received.provenance == recognizer.baseline.provenance == Provenance(preparation=job.task.recognizer.preparation)
    )
    assert received.sha256 == recognizer.base_sha256
    assert received.costs.baseline == recognizer.costs.baseline
    assert received.original_cost == recognizer.baseline.original_cost
    assert received.network.features.conv1.out_channels == len(recognizer.base_state["features.conv1.weight"])
