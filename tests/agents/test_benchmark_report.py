"""What a benchmark leaves behind: standings, page, files; and the guide, as it stands."""

import csv
import itertools
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from agents.benchmark import BenchmarkConfig, Row, read_rows
from agents.benchmark.rows import score
from agents.cli import main
from agents.cli.main import parse
from agents.report.benchmark import write_benchmark
from agents.report.frontier import save_frontier
from agents.report.palette import assign
from agents.report.pictures.scores import save_scores
from agents.report.standings import standings
from agents.results import Curve, Result
from agents.statistics import interquartile_mean, probability_of_improvement
from recognizers.config import WEIGHTS_VARIABLE
from recognizers.files import write_text

TOLERANCE = {"kind": "tolerance", "drop": 0.015, "count": "parameters"}
BUDGET = {"kind": "budget", "macs": 0.5, "parameters": None}
ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "benchmark_a_policy.md"
CONFIG = BenchmarkConfig.model_validate(
    {
        "tasks": [
            {"task": "digits/convnet"},
            {"task": "digits/convnet", "label": "half <b>", "overrides": ["objective={kind: budget, macs: 0.5}"]},
        ],
        "seeds": [0, 1, 2],
        "policies": [{"policy": name} for name in ("uniform:l1", "random", "lookahead", "global:l1")],
    }
)


def row(task: str, label: str, seed: int, reached: float, **changes: object) -> Row:
    budget = task != "digits/convnet"
    removed = 0.5 if budget else reached
    fields: dict[str, object] = {
        "task": "digits/convnet",
        "policy": label,
        "seed": seed,
        "recovery": {"kind": "bn"},
        "objective": BUDGET if budget else TOLERANCE,
        "baseline_validation_accuracy": 0.98,
        "baseline_selection_accuracy": 0.98,
        "baseline_test_accuracy": 0.98,
        "validation_accuracy": 0.975,
        "selection_accuracy": 0.97,
        "test_accuracy": 0.98 * reached if budget else 0.96,
        "parameter_reduction": removed,
        "macs_reduction": 0.5,
        "episode_return": reached,
        "kept_units": {"conv": 4},
        "units": {"conv": 16},
        "environment_steps": 10,
        "evaluations": 20,
        "seconds": {"policy": 1.0},
        "curve": Curve(accuracy=(0.98, 0.975), parameter_reduction=(0.0, removed), macs_reduction=(0.0, 0.5)),
    }
    return Row(task=task, label=label, seed=seed, result=Result.model_validate(fields | changes))


@pytest.fixture
def rows() -> list[Row]:
    generator = np.random.default_rng(0)
    worth = {"uniform:l1": 0.4, "random": 0.3, "lookahead": 0.6, "global:l1": 0.5}
    return [row(key.task, key.label, key.seed, worth[key.label] + 0.1 * generator.random()) for key in CONFIG.runs()]


def test_standings_are_those_of_the_statistics(rows: list[Row]) -> None:
    places = standings(CONFIG, rows)
    assert [(place.rank, place.label) for place in places] == [
        (1, "lookahead"),
        (2, "global:l1"),
        (3, "uniform:l1"),
        (4, "random"),
    ]

    def scores(label: str) -> list[np.ndarray]:
        return [
            np.array([score(row.result) for row in rows if row.result and row.label == label and row.task == task.name])
            for task in CONFIG.tasks
        ]

    for place in places:
        assert place.estimate is not None
        assert place.estimate.value == interquartile_mean(scores(place.label))
        assert place.estimate.low <= place.estimate.value <= place.estimate.high
        for estimate, other in ((place.over_first, "uniform:l1"), (place.over_best, "lookahead")):
            if place.label == other:
                assert estimate is None
            else:
                assert estimate is not None
                assert estimate.value == probability_of_improvement(scores(place.label), scores(other))


def test_policies_with_missing_or_failed_runs_have_no_rank(rows: list[Row]) -> None:
    failed = Row(task="digits/convnet", label="lookahead", seed=0, failure="died")
    changed = [failed if row.key == failed.key else row for row in rows if row.label != "random"]
    places = {place.label: place for place in standings(CONFIG, changed)}
    assert places["lookahead"].rank is None and places["lookahead"].failed == 1 and places["lookahead"].runs == 5
    assert places["random"].rank is None and places["random"].runs == 0
    assert places["global:l1"].rank == 1


def test_policies_with_another_goal_have_no_rank(rows: list[Row]) -> None:
    other = row("half <b>", "lookahead", 0, 0.9, objective=BUDGET | {"macs": 0.25})
    changed = [other if row.key == other.key else row for row in rows]
    assert {place.label: place.rank for place in standings(CONFIG, changed)}["lookahead"] is None


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag in {"link", "script", "img", "iframe"}:
            self.loaded.append(tag)
        if tag not in {"meta", "br", "path", "rect", "use", "image"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_all(rows: list[Row], tmp_path: Path) -> None:
    failed = Row(task="digits/convnet", label="random", seed=2, failure="ValueError: <script>")
    page = write_benchmark(CONFIG, [failed if row.key == failed.key else row for row in rows], tmp_path).read_text()
    parsed = _Page()
    parsed.feed(page)
    assert not parsed.loaded and not parsed.open
    assert len(set(parsed.ids)) == len(parsed.ids)
    sections = {
        "conclusion",
        "leaderboard",
        "ranking",
        "improvement",
        "task-0",
        "task-1",
        "table-0",
        "table-1",
        "failed",
    }
    assert sections <= set(parsed.ids)
    assert "<script>" not in page and "&lt;script&gt;" in page and "half <b>" not in page
    assert "lookahead leads with an interquartile mean of" in page
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
    assert "random on digits/convnet, seed 2: ValueError" in (tmp_path / "table.md").read_text()


def test_figures_of_single_runs_stand_without_intervals(rows: list[Row], tmp_path: Path) -> None:
    once = CONFIG.model_copy(update={"seeds": (0,)})
    pages = []
    for config in (once, CONFIG):
        pages.append(write_benchmark(config, rows, tmp_path).read_text())
        assert "nan" not in pages[-1]
    assert "a figure has no interval" in pages[0] and "a figure has no interval" not in pages[1]
    assert not re.search(r"\d \(\d\.\d+ to \d\.\d+\)|intervals", pages[0]) and re.search(r"\d \(\d\.\d+ to", pages[1])


def test_no_two_policies_look_alike() -> None:
    styles = assign([str(number) for number in range(40)], None)
    assert len(set(styles.values())) == 40
    for first, second in itertools.combinations(list(styles.values())[:15], 2):
        assert first.colour != second.colour or (first.hollow, first.dashes) != (second.hollow, second.dashes)


@pytest.mark.parametrize("kept", [1, 0])
def test_a_page_of_hardly_anything(rows: list[Row], tmp_path: Path, kept: int) -> None:
    failed = [Row(task=row.task, label=row.label, seed=row.seed, failure="died") for row in rows[kept:]]
    page = write_benchmark(CONFIG, [*rows[:kept], *failed], tmp_path).read_text()
    assert "No policy has all its runs" in page and "nan" not in page


@pytest.fixture
def guided(home: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with the guide's policy and configuration, as they stand, and a trained network."""
    python, shell, yaml = (
        re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL) for language in ("python", "sh", "yaml")
    )
    write_text("my_policy.py", python[0])
    write_text("mine.yaml", yaml[0])
    write_text("commands.txt", shell[0])
    shutil.copy(weights, tmp_path / "convnet.safetensors")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))


def test_the_guides_policy_is_benchmarked_and_valid(guided: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in Path("my_policy.py").read_text().splitlines() if line.strip()]) <= 20
    small = (
        "tasks=[{task: digits/convnet, overrides: ['recognizer.arguments={widths: [6, 8, 8]}', actions.per_layer=4]}]"
    )
    assert main(["benchmark", "mine.yaml", "--out", "out", "--workers", "0", "--json", small, "seeds=[0, 1]"]) == 0
    by = {row.key[1:]: row.result for row in read_rows(Path("out/results.jsonl"))}
    assert len(by) == 6 and all(by.values())
    for seed in (0, 1):
        sampler, search = by["sampler", seed], by["search:random", seed]
        assert sampler is not None and search is not None
        assert sampler.evaluations > sampler.environment_steps
        assert search.environment_steps >= sampler.evaluations
    assert main(["validate", "out", "--json"]) == 0
    page = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    assert main(["report", "out"]) == 0
    assert Path("out/report.html").read_text() == page


def test_the_guides_commands_are_understood(guided: None) -> None:
    for line in Path("commands.txt").read_text().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "zeroout"
        parse(arguments)


def test_committed_smoke_results_are_complete() -> None:
    rows = read_rows(ROOT / "configs" / "benchmarks" / "results" / "smoke" / "results.jsonl")
    assert len(rows) == 21 and all(row.result and row.chosen for row in rows)


def sized(label: str, macs: float) -> dict[str, object]:
    return {"task": "digits/convnet", "label": label, "overrides": [f"objective={{kind: budget, macs: {macs}}}"]}


def test_what_evaluations_bought_is_drawn_where_it_was_recorded(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "evaluations.png"
    save_scores(CONFIG, rows, path)
    assert not path.exists()
    heights = []
    for tasks in ({"digits/convnet"}, {task.name for task in CONFIG.tasks}):
        recorded = [
            row(each.task, each.label, each.seed, 0.4, scores=((0, 0.0), (5, 0.3)) if each.task in tasks else None)
            for each in rows
        ]
        save_scores(CONFIG, recorded, path)
        heights.append(imread(path).shape[0])
    assert heights[0] < 0.6 * heights[1]  # one panel against two


def test_budgets_of_one_network_share_a_panel(tmp_path: Path) -> None:
    policies = [{"policy": "random"}, {"policy": "uniform:l1"}]
    tasks = [sized("half", 0.5), sized("quarter", 0.25), {"task": "digits/convnet"}]
    config = BenchmarkConfig.model_validate({"tasks": tasks, "seeds": [0], "policies": policies})
    few = [row(key.task, key.label, key.seed, 0.4) for key in config.runs()]
    path = tmp_path / "accuracy.png"
    save_frontier(config, few, path)
    together = imread(path)
    apart = BenchmarkConfig.model_validate({"tasks": tasks[:2], "seeds": [0], "policies": policies})
    save_frontier(apart, [each for each in few if each.task != "digits/convnet"], path)
    alone = imread(path)
    assert alone.shape[0] < 0.6 * together.shape[0]  # one panel against two
