"""Benchmarks in this process: settings, runs, rows, failures, resume, tables."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.benchmark import BenchmarkConfig, Key, Row, load_benchmark, read_rows
from agents.benchmark.engine import plan, run_benchmark
from agents.benchmark.rows import score
from agents.benchmark.table import csv_table, markdown_table
from agents.cli import main
from agents.limits import TimeLimitExceeded, time_limit
from agents.policy import make_policy
from agents.statistics import interval
from envs.episodes import play
from envs.objectives import Tolerance
from envs.pruning import PruningEnv
from recognizers.config import WEIGHTS_VARIABLE
from recognizers.errors import ConfigurationError, FileError, UnknownNameError
from recognizers.files import read_json, write_json, write_text
from tests.agents.tiny_controller import TINY
from tests.waiting import wait_until

SMALL = """
    overrides:
      - "recognizer.arguments={widths: [6, 8, 8]}"
      - recognizer.training.epochs=4
      - recovery.images=64
      - actions.per_layer=4
"""
CONFIG = f"""
tasks:
  - task: digits/convnet{SMALL}      - objective.drop=0.2
seeds: [0, 1]
policies:
  - {{policy: random}}
  - {{policy: "uniform:l1"}}
  - {{policy: "search:random", equal_evaluations_to: random, label: search}}
"""
TWO_TASKS = f"""
tasks:
  - task: digits/convnet
    label: tolerance{SMALL}      - objective.drop=0.2
  - task: digits/convnet
    label: half{SMALL}      - "objective={{kind: budget, macs: 0.5}}"
seeds: [0]
policies:
  - {{policy: "global:l1"}}
  - {{policy: "pro:l1", tasks: [half]}}
  - {{policy: "global:l1", label: no recovery, task_overrides: [recovery.kind=none], finetune: true, tasks: [half]}}
"""
MINE = """
class Mine:
    def __init__(self, seed):
        pass

    def reset(self, env):
        pass

    def act(self, observation, info):
        {body}
"""


@pytest.fixture(autouse=True)
def trained(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained, but where a test asks for it."""
    shutil.copy(weights, tmp_path / "convnet.safetensors")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))


@pytest.fixture
def config(home: Path) -> str:
    write_text("small.yaml", CONFIG)
    return "small.yaml"


def runs(name: str, out: str = "out", finished: list[Row] | None = None) -> list[Row]:
    return list(run_benchmark(load_benchmark(name), Path(out), finished or []))


def timeless(row: Row) -> dict[str, object]:
    return row.model_dump(exclude={"result": {"seconds": True, "finetuned": {"seconds"}}})


def test_every_policy_runs_with_every_seed(config: str) -> None:
    rows = runs(config)
    assert [row.key for row in rows] == [
        Key("digits/convnet", label, seed) for seed in (0, 1) for label in ("random", "uniform:l1", "search")
    ]
    by = {(row.label, row.seed): row.result for row in rows}
    for seed in (0, 1):
        random, search = by["random", seed], by["search", seed]
        assert random is not None and search is not None
        own = len(rows[3 * seed + 2].own.rewards) if rows[3 * seed + 2].own else len(rows[3 * seed + 2].chosen.rewards)  # type: ignore[union-attr]
        assert search.environment_steps == random.environment_steps + own
        assert random.baseline_test_accuracy == search.baseline_test_accuracy
    assert by["random", 0].baseline_validation_accuracy != by["random", 1].baseline_validation_accuracy  # type: ignore[union-attr]


def test_equal_seeds_give_equal_rows(config: str) -> None:
    assert list(map(timeless, runs(config))) == list(map(timeless, runs(config, "other")))


def test_resume_repeats_nothing_and_gives_equal_rows(config: str) -> None:
    whole = runs(config)
    rest = runs(config, "out", whole[:4])
    assert list(map(timeless, rest)) == list(map(timeless, whole[4:]))


def test_tasks_have_policies_of_their_own_and_share_base_networks(home: Path) -> None:
    write_text("two.yaml", TWO_TASKS)
    rows = {(row.task, row.label): row for row in runs("two.yaml")}
    expected = [("tolerance", "global:l1"), ("half", "global:l1"), ("half", "pro:l1"), ("half", "no recovery")]
    assert list(rows) == expected
    assert len(list(Path("out/bases").iterdir())) == 1
    results = {key: row.result for key, row in rows.items() if row.result}
    assert len(results) == 4
    assert {result.task for result in results.values()} == {"digits/convnet"}
    assert results["half", "no recovery"].recovery == {"kind": "none"}
    assert rows["half", "pro:l1"].actions == "mask"
    finetuned = results["half", "no recovery"].finetuned
    assert finetuned is not None
    assert (
        score(results["half", "no recovery"])
        == finetuned.test_accuracy / results["half", "no recovery"].baseline_test_accuracy
    )
    half, tolerance = results["half", "global:l1"], results["tolerance", "global:l1"]
    assert score(half) == half.test_accuracy / half.baseline_test_accuracy
    assert score(tolerance) == tolerance.parameter_reduction


def test_entries_with_another_recognizer_have_a_base_of_their_own(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE)
    text = CONFIG.replace("policy: random", "policy: random, task_overrides: [recognizer.training.epochs=2]")
    write_text("own.yaml", text.replace("[0, 1]", "[0]"))
    by = {row.label: row.result for row in runs("own.yaml")}
    assert by["random"].baseline_test_accuracy != by["search"].baseline_test_accuracy  # type: ignore[union-attr]
    assert len(list(Path("out/bases").iterdir())) == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return 99", "InvalidActionError: action 99 is not an integer in 0..11"),
        ("return 'three'", "InvalidActionError: action 'three' is not"),
        ("return 0.5", "InvalidActionError: action 0.5 is not"),
        ("return 1 // 0", r"ZeroDivisionError: .* \(mine.py, line 10\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("while True: pass", r"not finished within 0.5 seconds \(time_limit\) \(mine.py, line 10\)"),
    ],
)
def test_a_policy_that_breaks_the_contract_loses_no_other_run(config: str, body: str, reason: str) -> None:
    write_text("mine.py", MINE.format(body=body))
    text = CONFIG.replace("[0, 1]", "[0]").replace('"uniform:l1"', '"mine.py:Mine", label: mine')
    write_text("bad.yaml", text + "time_limit: 0.5\n")
    rows = {row.label: row for row in runs("bad.yaml")}
    failure = rows["mine"].failure
    assert failure is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(failure)
    assert "Traceback" in Path("out/runs/digits-convnet/mine/seed-0/failure.txt").read_text()
    assert rows["random"].result is not None and rows["search"].result is not None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mine.py:Other", "mine.py has no class Other"),
        ("mine.py:Deaf", "Deaf has no method act"),
        ("bad.py:X", "name 'oh' is not"),
    ],
)
def test_a_file_that_holds_no_policy_is_a_failed_run(config: str, name: str, reason: str) -> None:
    write_text("mine.py", "class Deaf:\n    def reset(self, env):\n        pass\n")
    write_text("bad.py", "oh.no\n")
    write_text("bad.yaml", CONFIG.replace("[0, 1]", "[0]").replace('"uniform:l1"', f'"{name}"'))
    failed = [row for row in runs("bad.yaml") if row.failure]
    assert len(failed) == 1 and reason in str(failed[0].failure)


def test_those_who_wait_for_a_failed_run_fail_too(config: str) -> None:
    write_text("mine.py", MINE.format(body="return 99"))
    write_text(
        "bad.yaml", CONFIG.replace("[0, 1]", "[0]").replace("policy: random", 'policy: "mine.py:Mine", label: random')
    )
    rows = {row.label: row for row in runs("bad.yaml")}
    assert rows["search"].failure == "waits for random on digits/convnet, seed 0, which failed"
    assert rows["uniform:l1"].result is not None


def test_a_base_network_that_cannot_be_built_fails_its_runs_alone(config: str) -> None:
    text = CONFIG.replace("policy: random", "policy: random, task_overrides: [recognizer.weights=missing.safetensors]")
    write_text("bad.yaml", text.replace(", equal_evaluations_to: random", "").replace("[0, 1]", "[0]"))
    rows = {row.label: row for row in runs("bad.yaml")}
    assert str(rows["random"].failure).startswith("the base network: no such file: missing.safetensors")
    assert rows["search"].result is not None


def test_global_generators_of_a_policy_are_seeded(config: str) -> None:
    body = "import random; return random.choice([int(a) for a in info['action_mask'].nonzero()[0]])"
    write_text("mine.py", MINE.format(body=body))
    write_text("own.yaml", CONFIG.replace('"uniform:l1"', '"mine.py:Mine"'))
    first, second = ([timeless(row) for row in runs("own.yaml", out)] for out in ("a", "b"))
    assert first == second


def test_the_command_resumes_and_tries_failed_runs_again(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_text("mine.py", MINE.format(body="return 99"))
    flags = ["benchmark", config, "--out", "out", "seeds=[0]", "--workers", "0", "--policy", "mine.py:Mine"]
    assert main([*flags, "--json"]) == 0
    assert main([*flags, "--json"]) == 2
    before = Path("out/results.jsonl").read_text()
    write_text("mine.py", MINE.format(body="return int(info['action_mask'].argmax())"))
    write_text("out/results.jsonl", before + '{"label": "cut off')
    capsys.readouterr()
    assert main([*flags, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("| policy | runs |") and "| search | 1 |" in out and "| Mine | 1 |" in out
    assert "Mine on digits/convnet, seed 0: -" in err and "search on" not in err
    after = Path("out/results.jsonl").read_text()
    assert after.startswith(before) and after.count("\n") == before.count("\n") + 1
    assert [row.label for row in read_rows(Path("out/results.jsonl"))] == ["random", "uniform:l1", "search", "Mine"]
    assert not Path("out/runs/digits-convnet/Mine/seed-0/failure.txt").exists()


def test_a_killed_benchmark_resumes_without_repeating_finished_runs(config: str) -> None:
    code = "import sys; from agents.cli import main; sys.exit(main())"
    flags = ["benchmark", config, "--out", "out", "--workers", "0", "--json"]
    command = [sys.executable, "-c", code, *flags]
    results = Path("out/results.jsonl")
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: results.exists() and results.read_text().count("\n") >= 2, "two runs end", 120)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    before = results.read_text()
    first = before[: before.rfind("\n") + 1]
    assert first.count("\n") >= 2
    done = subprocess.run([*command, "--resume"], check=True, capture_output=True, text=True)
    after = results.read_text()
    assert json.loads(done.stdout)["runs"] == 6
    assert after.startswith(first) and after.count("\n") == 6
    assert len({row.key for row in read_rows(results)}) == 6


def test_a_command_whose_runs_all_fail_says_so(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["benchmark", config, "--out", "out", "--workers", "0", "--json", "--weights", "missing.safetensors"]
    assert main(flags) == 2
    assert "every run failed, the first one so: the base network: no such file" in capsys.readouterr().err


def test_resume_refuses_other_settings(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["benchmark", config, "--out", "out", "seeds=[0]", "--workers", "0", "--json"]
    assert main(flags) == 0
    assert main([*flags, "--resume", "--policy", "lookahead"]) == 0  # more policies are no other ones
    write_text(config, CONFIG.replace("drop=0.2", "drop=0.1"))
    capsys.readouterr()
    assert main([*flags, "--resume"]) == 2
    assert "digits/convnet has other settings now" in capsys.readouterr().err
    write_json("out/config.json", {"task": "digits/convnet", **read_json("out/config.json")})
    assert main([*flags, "--resume"]) == 2
    assert "writes it anew" in capsys.readouterr().err


def test_rows_of_older_benchmarks_are_read() -> None:
    for name in ("digits-tolerance", "reconstruction"):
        path = Path(__file__).parents[2] / "configs" / "benchmarks" / "results" / name / "results.jsonl"
        config = load_benchmark(name)
        rows = read_rows(path)
        assert rows and {row.key for row in rows} <= set(config.runs())
        assert all(0 <= score(row.result) < 1.01 for row in rows if row.result)


def test_a_corrupt_line_is_named(home: Path) -> None:
    write_text("results.jsonl", '{"label": 3}\n')
    with pytest.raises(FileError, match="line 1 is no result"):
        read_rows(Path("results.jsonl"))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("label: search", "label: random", "two policies"),
        ("label: search", "label: uniform l1", "share a directory"),
        ("equal_evaluations_to: random", "equal_evaluations_to: r2d2", "earlier policy"),
        ("policy: random", "policy: random, tasks: [other]", "no task is called 'other'"),
        ("policy: random", "policy: random, tasks: []", "does not run on all its tasks"),
        ("seeds: [0, 1]", "seeds: []", "at least 1"),
    ],
)
def test_contradictions_are_refused(home: Path, before: str, after: str, message: str) -> None:
    write_text("bad.yaml", CONFIG.replace(before, after))
    with pytest.raises(ConfigurationError, match=message):
        load_benchmark("bad.yaml")


def test_common_overrides_come_before_those_of_a_task() -> None:
    common = ["objective.drop=0.02", "actions.per_layer=4"]
    tasks = [
        {"task": "digits/convnet", "label": "mine", "overrides": ["objective.drop=0.1"]},
        {"task": "digits/convnet"},
    ]
    rest = {"seeds": [0], "policies": [{"policy": "random"}]}
    config = BenchmarkConfig.model_validate({"overrides": common, "tasks": tasks, **rest})
    assert config.task("mine").overrides == (*common, "objective.drop=0.1")
    assert config.task("digits/convnet").overrides == tuple(common)
    assert BenchmarkConfig.model_validate(config.model_dump(mode="json")) == config
    drops = [config.settings(key).objective for key in config.runs()]
    assert [objective.drop for objective in drops if isinstance(objective, Tolerance)] == [0.1, 0.02]


@pytest.mark.parametrize("common", ["objective.drop=0.02", 3, None])
def test_common_overrides_that_are_no_list_are_refused(common: object) -> None:
    with pytest.raises(ValidationError, match="list of dotted key=value"):
        BenchmarkConfig.model_validate(
            {
                "overrides": common,
                "tasks": [{"task": "digits/convnet"}],
                "seeds": [0],
                "policies": [{"policy": "random"}],
            }
        )


def test_an_unknown_policy_is_refused_before_anything_runs(config: str) -> None:
    write_text("bad.yaml", CONFIG.replace("uniform:l1", "unifrom:l1"))
    with pytest.raises(UnknownNameError, match="uniform:l1"):
        runs("bad.yaml")
    write_text("bad.yaml", CONFIG.replace("uniform:l1", "missing.py:Policy"))
    with pytest.raises(FileError, match="no such file"):
        runs("bad.yaml")
    write_text("bad.yaml", CONFIG + "  - {policy: r2d2, overrides: [network.lstm=64]}\n")
    with pytest.raises(ConfigurationError, match=r"network\.lstm"):
        runs("bad.yaml")
    assert not Path("out").exists()


def test_controllers_with_runners_or_learners_of_their_own_take_the_whole_machine(home: Path) -> None:
    more = """policies:
  - {policy: r2d2, label: runners}
  - {policy: r2d2, label: learners, controller: one_process, overrides: [learners.num_learners=1]}
  - {policy: r2d2, label: alone, controller: one_process}"""
    write_text("controllers.yaml", CONFIG.replace("policies:", more))
    jobs = plan(load_benchmark("controllers.yaml"), Path("out"), [])
    assert {job.key.label for job in jobs if job.spreads} == {"runners", "learners"}


CARRIED = f"""
tasks:
  - task: digits/convnet
    label: small{SMALL}      - objective.drop=0.2
  - task: digits/convnet
    label: coarse{SMALL.replace("per_layer=4", "per_layer=2")}      - objective.drop=0.2
seeds: [0]
policies:
  - policy: r2d2
    controller: one_process
    tasks: [small]
    overrides: {json.dumps([*TINY, "network.action_embedding=false", "total_steps=120"])}
  - {{policy: r2d2, label: carried, tasks: [coarse], trained_by: {{policy: r2d2, task: small}}}}
"""


def test_a_controller_is_carried_to_another_task(home: Path) -> None:
    write_text("carried.yaml", CARRIED)
    trained, carried = runs("carried.yaml")
    assert trained.result is not None and carried.result is not None and carried.chosen is not None
    assert trained.result.evaluations >= 120 > carried.result.evaluations == carried.result.environment_steps
    env = PruningEnv(load_benchmark("carried.yaml").settings(carried.key))
    policy = make_policy("r2d2:out/runs/small/r2d2/seed-0")
    policy.reset(env)
    assert play(env, policy.act, seed=0, policy="r2d2").actions == (carried.own or carried.chosen).actions


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("{policy: r2d2, label: carried,", "{policy: random, label: carried,", "is for r2d2 alone"),
        ("policy: r2d2, task: small", "policy: random, task: small", "earlier policy that trains a controller"),
        ("task: small}", "task: large}", "r2d2 does not train on a task called 'large'"),
        ("label: carried, tasks: [coarse]", "label: carried", "tasks that come after small"),
        ("label: carried,", "label: carried, equal_evaluations_to: r2d2,", "is for r2d2 alone"),
    ],
)
def test_what_cannot_be_carried_is_refused(home: Path, before: str, after: str, message: str) -> None:
    assert before in CARRIED
    write_text("bad.yaml", CARRIED.replace(before, after))
    with pytest.raises(ConfigurationError, match=message):
        load_benchmark("bad.yaml")


@pytest.mark.parametrize("network", [[], ["network.head=flat", "network.action_embedding=false"]])
def test_a_controller_with_embeddings_is_not_carried_to_other_actions(home: Path, network: list[str]) -> None:
    content = CARRIED.replace('"network.action_embedding=false", ', "".join(f'"{each}", ' for each in network))
    write_text("bad.yaml", content)
    with pytest.raises(ConfigurationError, match="carried: r2d2 knows the actions of small alone"):
        plan(load_benchmark("bad.yaml"), Path("out"), [])
    write_text("same.yaml", content.replace("per_layer: 2", "per_layer: 4").replace("per_layer=2", "per_layer=4"))
    assert len(plan(load_benchmark("same.yaml"), Path("out"), [])) == 2


def test_tables_have_a_line_per_policy_and_paired_differences(config: str) -> None:
    loaded, rows = load_benchmark(config), runs(config)
    lines = markdown_table(loaded, rows).splitlines()
    assert len(lines) == (2 + 3) + 1 + (2 + 2)
    by = {row.key[1:]: 100 * row.result.parameter_reduction for row in rows if row.result}
    mean, half = interval([by["random", seed] - by["uniform:l1", seed] for seed in (0, 1)])
    assert lines[-2].startswith(f"| uniform:l1 | 2 | {mean:,.1f} ± {half:,.1f} |")
    failed = Row(task="digits/convnet", label="search", seed=1, failure="a, b")
    assert markdown_table(loaded, [*rows[:-1], failed]).endswith("* search on digits/convnet, seed 1: a, b")
    table = list(csv.DictReader(io.StringIO(csv_table([*rows[:-1], failed]))))
    assert len(table) == 6
    assert table[3]["failure"] == "a, b" and table[3]["score"] == ""
    assert float(table[0]["parameter_reduction"]) == by["random", 0]


def test_a_row_is_either_a_result_or_a_failure() -> None:
    with pytest.raises(ValueError, match="either"):
        Row(task="a", label="b", seed=0)


@pytest.fixture
def alarm() -> Iterator[list[float]]:
    """A timer of someone else, as test runners have one; the times at which it rang."""
    rang: list[float] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield rang
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def test_a_time_limit_gives_back_the_timer_it_found(alarm: list[float]) -> None:
    began = time.monotonic()
    with pytest.raises(TimeLimitExceeded), time_limit(0.1):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(5)
    assert 0.09 < time.monotonic() - began < 0.25 and not alarm
    with time_limit(5):
        pass
    while time.monotonic() < began + 0.5:
        time.sleep(0.01)
    assert len(alarm) == 1 and 0.28 < alarm[0] - began < 0.45


def test_seeds_are_validated_like_everything_else() -> None:
    with pytest.raises(ValueError, match="time_limit"):
        BenchmarkConfig.model_validate(
            {"tasks": [{"task": "a"}], "seeds": [0], "policies": [{"policy": "random"}], "time_limit": 0}
        )
