"""The benchmarks themselves, on a tiny network: that they compare like with like, and what they write."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from recognizers.errors import FileError
from recognizers.files import write_text
from tests.benchmarks.__main__ import main
from tests.benchmarks.cases import KEY, Case, Sources
from tests.benchmarks.episode import MACS_REDUCTION, plan_episode, play
from tests.benchmarks.machine import describe, matmul_peak, peak_memory
from tests.benchmarks.naive import NaiveLoop
from tests.benchmarks.pictures import running_median
from tests.benchmarks.probing import time_probe
from tests.benchmarks.profiling import profile_case
from tests.benchmarks.sources import find_sources
from tests.benchmarks.stepping import images_per_step, verify_steps
from tests.benchmarks.tables import read_rows, replace_rows

SMALL = ["recognizer.arguments={widths: [6, 8, 8]}", "recognizer.training.epochs=4", "actions.per_layer=4"]
RECOVERIES = ["none", "bn", "finetune(1)"]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    return find_sources("digits/convnet", data=None, weights_dir=folder, overrides=SMALL, folder=folder)


@pytest.fixture
def case(sources: Sources, request: pytest.FixtureRequest) -> Case:
    return Case("digits/convnet", getattr(request, "param", "bn"), "float32", sources)


def test_the_plan_ends_where_the_macs_are_gone(case: Case) -> None:
    env = case.environment()
    plan = plan_episode(env, seed=3)
    env.reset(seed=3)
    for index, action in enumerate(plan.actions):
        before = env.recognizer.mask
        _, _, terminated, _, info = env.step(action)
        assert (env.recognizer.mask == plan.masks[index + 1]).all()
        assert (plan.removed(index) == np.flatnonzero(before != env.recognizer.mask)).all()
        assert env.recognizer.cost.macs == plan.macs[index + 1]
        assert (info["macs_reduction"] >= MACS_REDUCTION or terminated) == (index == len(plan) - 1)
    assert plan_episode(env, seed=3).actions == plan.actions
    assert plan_episode(env, seed=3, max_steps=2).actions == plan.actions[:2]


@pytest.mark.parametrize("case", RECOVERIES, indirect=True)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_naive_loop_measures_what_the_environment_measures(case: Case, memory_format: torch.memory_format) -> None:
    env = case.environment()
    plan = plan_episode(env, seed=1, max_steps=5)
    naive = NaiveLoop(env.recognizer, memory_format=memory_format)
    naive.warm_up()
    steps = list(play(env, naive, plan, seed=1, naive_every=2))
    assert [step.number for step in steps if step.naive is not None] == [1, 3, 5]
    assert len({step.accuracy for step in steps}) > 1
    for step in steps:
        assert (step.naive is None) == (step.agreement is None)
        if step.agreement is not None:
            assert step.agreement.accuracy_difference == 0
            assert step.agreement.different_predictions == 0
            assert step.agreement.logit_difference < 1e-3


def test_the_naive_loop_computes_in_the_default_layout(case: Case) -> None:
    naive = NaiveLoop(case.environment().recognizer)
    seen = []
    for module in naive.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.is_contiguous()))
    images = torch.rand(4, 1, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        naive.network(images)
    assert seen and all(seen)


def test_verification_looks_at_every_step(case: Case) -> None:
    row, steps = verify_steps(case, seed=0, max_steps=3)
    assert row["steps"] == len(steps) == 3
    assert row["different_predictions"] == 0 and row["max_accuracy_difference"] == 0
    assert all(step["different_predictions"] == 0 for step in steps)


@pytest.mark.parametrize("case", RECOVERIES[:2], indirect=True)
def test_probes_and_steps_give_equal_figures(case: Case) -> None:
    row = time_probe(case, seed=0, sample=5)
    assert row["unequal"] == 0
    assert row["actions"] == 12 and row["actions_stepped"] == 5


def test_a_profile_has_its_three_tables(case: Case) -> None:
    page = profile_case(case, seed=0, max_steps=2)
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## Phases",
        "## Operators (torch.profiler, self CPU time)",
        "## Python functions (cProfile, own time)",
    ]
    assert "| `aten::" in page and "| measure | 2 |" in page and "**" in page


def test_images_per_step_count_recalibration_and_training(sources: Sources) -> None:
    expected = {"none": 100, "bn": 100 + 60, "finetune(1)": 100 + 60 + 3 * 60}
    for recovery, images in expected.items():
        env = Case("digits/convnet", recovery, "float32", sources).environment()
        assert images_per_step(env.recognizer.recovery, reward=100, train=60) == images


def test_missing_weights_are_random_ones(tmp_path: Path) -> None:
    overrides = [*SMALL, "recognizer.train_on_demand=false"]
    sources = find_sources("digits/convnet", data=None, weights_dir=tmp_path, overrides=overrides, folder=tmp_path)
    assert (sources.data, sources.weights) == ("digits", "random")
    assert 0 < Case("digits/convnet", "none", "float32", sources).environment().baseline_accuracy < 0.5


def test_a_missing_folder_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such folder of weights"):
        find_sources("digits/convnet", data=None, weights_dir=tmp_path / "no", overrides=SMALL, folder=tmp_path)


def test_rows_of_a_case_replace_its_old_ones(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"

    def rows(task: str, *values: float | None) -> list[dict[str, str | int | float | None]]:
        return [{"task": task, "recovery": "bn", "precision": "auto", "value": value} for value in values]

    replace_rows(table, KEY, rows("a", 1, 2))
    replace_rows(table, KEY, rows("b", 3))
    replace_rows(table, KEY, [{**row, "more": "x"} for row in rows("a", None)])
    assert read_rows(table) == [
        {"task": "a", "recovery": "bn", "precision": "auto", "value": "", "more": "x"},
        {"task": "b", "recovery": "bn", "precision": "auto", "value": "3", "more": ""},
    ]


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    write_text(table, "task,recovery,precision\na,bn\n")
    with pytest.raises(FileError, match="cells"):
        replace_rows(table, KEY, [{"task": "a", "recovery": "bn", "precision": "auto"}])


def test_running_medians_keep_the_length() -> None:
    assert running_median(np.array([5.0, 1.0, 3.0, 9.0]), 3).tolist() == [3.0, 3.0, 3.0, 6.0]


def test_the_machine_is_described() -> None:
    assert describe()["processor"] and describe()["threads"] == torch.get_num_threads()
    assert matmul_peak(torch.float32, torch.device("cpu"), size=64, repeats=1) > 0
    assert peak_memory() > 10


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "python -m tests.benchmarks" in capsys.readouterr().out.split("examples:")[1]


def test_an_unknown_task_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--task", "digits/convent", "--out", str(tmp_path)]) == 2
    assert "did you mean 'digits/convnet'" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_command_writes_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--task", "digits/convnet", "--recovery", "bn", "--precision", "float32", "--max-steps", "4"]
    paths = ["--out", str(tmp_path / "out"), "--weights-dir", str(tmp_path)]
    assert main(["--steps", *flags, *paths, "--repeats", "1", *SMALL]) == 0
    (steps,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (steps["task"], steps["recovery"], steps["precision"]) == ("digits/convnet", "bn", "float32")
    assert steps["steps"] == 4 and steps["naive_steps_run"] == 2
    assert steps["ratio"] == pytest.approx(steps["naive_s"] / steps["zeroout_s"], rel=1e-4)
    assert (steps["data"], steps["weights"], steps["different_predictions"]) == ("digits", "trained", 0)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"steps.csv", "per_step.csv", "step-costs.svg", "ratios.svg"}
    assert [float(row["ratio"]) for row in read_rows(out / "steps.csv")] == [steps["ratio"]]
    assert [bool(row["naive_s"]) for row in read_rows(out / "per_step.csv")] == [True, False, False, True]
    for name in ("step-costs.svg", "ratios.svg"):
        assert ElementTree.parse(out / name).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("mode", "written"),
    [
        ("--probe", {"probe.csv"}),
        ("--verify", {"verify.csv", "verify_per_step.csv"}),
        ("--profile", {"profile-digits-convnet-finetune-1-float32.md"}),
    ],
)
def test_each_mode_writes_its_own_files(
    mode: str, written: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.benchmarks.__main__.in_own_process", lambda case, measure: measure(case))
    flags = ["--task", "digits/convnet", "--recovery", "finetune(1)", "--precision", "float32", "--max-steps", "2"]
    paths = ["--out", str(tmp_path / "out"), "--weights-dir", str(tmp_path)]
    assert main([mode, *flags, *paths, "--sample", "2", *SMALL]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    assert bool(capsys.readouterr().out) == (mode != "--profile")
