import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.report import save_overview, write_report
from agents.results import Curve, Finetuned, Result
from recognizers.errors import FileError

TOLERANCE = {"kind": "tolerance", "drop": 0.015, "count": "parameters"}
BUDGET = {"kind": "budget", "macs": 0.5, "parameters": None}
SECTIONS = ["conclusion", "summary", "paths", "layers", "learning", "training", "seconds", "next", "files"]
SIX = {
    "r2d2": 0.79,
    "lookahead": 0.75,
    "uniform:l1": 0.49,
    "global:reap": 0.52,
    "random": 0.35,
    "my_module:a-policy-with-a-name-that-does-not-want-to-end": 0.61,
}


def result(policy: str, reduction: float, layers: int = 3, **changes: Any) -> Result:
    units = {f"stage.{index}.conv": 16 for index in range(layers)}
    curve = np.linspace(0, reduction, 12)
    accuracy = 0.98 - 0.01 * np.linspace(0, 1, 12) ** 2
    fields: dict[str, Any] = {
        "task": "digits/convnet",
        "policy": policy,
        "seed": 0,
        "recovery": {"kind": "bn"},
        "objective": TOLERANCE,
        "baseline_validation_accuracy": 0.98,
        "baseline_selection_accuracy": 0.985,
        "baseline_test_accuracy": 0.986,
        "validation_accuracy": accuracy[-1],
        "selection_accuracy": 0.972,
        "test_accuracy": 0.958,
        "parameter_reduction": reduction,
        "macs_reduction": 0.5,
        "episode_return": reduction,
        "kept_units": {layer: 1 + index % 16 for index, layer in enumerate(units)},
        "units": units,
        "environment_steps": 8000,
        "evaluations": 9000,
        "seconds": {"policy": 30.0, "zero_out": 1.0, "recover": 12.0, "measure": 6.0, "choose": 0.5},
        "curve": Curve(accuracy=accuracy.tolist(), parameter_reduction=curve.tolist(), macs_reduction=curve.tolist()),
    }
    return Result(**(fields | changes))


def learning(steps: int = 30) -> str:
    rows: list[dict[str, float]] = []
    for index in range(steps):
        row = {
            "environment_steps": 50 * index,
            "episode_return_mean": 0.3 + 0.01 * index,
            "best_score": 0.4 + 0.01 * index,
            "epsilon_max": 0.4 / (index + 1),
            "mean_q": 0.1 * index,
        }
        if index:  # the first iteration has not learned yet
            row["loss"] = 1 / index
        if index % 5 == 4:
            row |= {"evaluation_return": 0.35 + 0.01 * index, "evaluation_accuracy": 0.97}
        rows.append(row)
    return "".join(json.dumps(row) + "\n" for row in rows)


def training() -> str:
    return "".join(
        json.dumps(
            {"epoch": epoch, "loss": 1 / epoch, "train_accuracy": 0.9, "held_out_accuracy": 0.8, "learning_rate": 0.1}
        )
        + "\n"
        for epoch in range(1, 9)
    )


def write_run(directory: Path, results: list[Result], **files: str) -> Path:
    directory.mkdir(exist_ok=True)
    summary = {
        "command": "quickstart",
        "task": results[0].task,
        "results": [entry.model_dump(mode="json") for entry in results],
        "best": results[0].policy,
        "total_seconds": 1234.5,
        "created": "2026-03-01T12:30:00+00:00",
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "config.yaml").write_text("task: digits/convnet\nnote: '<script>alert(1)</script>'\n")
    for name, text in files.items():
        (directory / f"{name}.jsonl").write_text(text)
    return directory


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "full"
    write_run(
        directory,
        [result(policy, reduction) for policy, reduction in SIX.items()],
        learning=learning(),
        training=training(),
    )
    (directory / "best.mask.safetensors").write_bytes(b"0" * 2048)
    (directory / "odd: name#1.txt").write_text("")
    (directory / "checkpoints").mkdir()
    (directory / "tensorboard").mkdir()
    write_report(directory)
    return directory


class Page(HTMLParser):
    """The elements of a page; refuses tags that do not nest."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str, tag: str | None = None) -> Iterator[str]:
        return (found[name] for kind, found in self.elements if name in found and tag in {None, kind})

    def sections(self) -> list[str]:
        return list(self.attributes("id", "section"))

    def conclusion(self) -> str:
        start = self.source.index('<p class="conclusion">') + len('<p class="conclusion">')
        return self.source[start : self.source.index("</p>", start)].replace("\N{NO-BREAK SPACE}", " ")


def page_of(directory: Path) -> Page:
    return Page(write_report(directory))


def test_all_sections_are_there_in_order(full: Path) -> None:
    assert Page(full / "report.html").sections() == [*SECTIONS, "configuration"]


def test_nothing_is_loaded_from_elsewhere(full: Path) -> None:
    page = Page(full / "report.html")
    assert "http" not in page.source
    assert not list(page.attributes("src"))
    assert not {"script", "link", "iframe", "img", "object", "base"} & {tag for tag, _ in page.elements}
    assert "@import" not in page.source
    assert all(part.startswith("#") for part in page.source.split("url(")[1:])
    assert all(link.startswith(("./", "#")) for link in page.attributes("href"))


def test_ids_are_unique_and_references_resolve(full: Path) -> None:
    page = Page(full / "report.html")
    ids = list(page.attributes("id"))
    assert len(ids) == len(set(ids))
    references = {part[1 : part.index(")")] for part in page.source.split("url(")[1:]}
    references |= {link[1:] for link in page.attributes("href") if link.startswith("#")}
    assert references and references <= set(ids)


def test_colours_follow_the_scheme(full: Path) -> None:
    page = Page(full / "report.html")
    assert "@media screen and (prefers-color-scheme: dark)" in page.source
    drawn = page.source[page.source.index("</style>") :]
    assert "var(--series-0)" in drawn
    assert "#0b64b8" not in drawn


def test_every_policy_is_in_the_table_and_the_baseline_is_first(full: Path) -> None:
    text = Page(full / "report.html").text
    table = text[text.index("complete network") : text.index("Accuracy along the episode")]
    assert all(policy in table for policy in SIX)
    assert table.index("r2d2") < table.index("lookahead") < table.index("random")


def test_files_are_linked_relatively_and_quoted(full: Path) -> None:
    links = set(Page(full / "report.html").attributes("href", "a"))
    assert {"./best.mask.safetensors", "./checkpoints/", "./odd%3A%20name%231.txt"} <= links
    assert "./report.html" not in links


def test_commands_for_the_next_step(full: Path) -> None:
    text = Page(full / "report.html").text
    for command in ("zeroout validate", "zeroout finetune", "tensorboard --logdir"):
        assert f"{command} {full}" in text


def test_tensorboard_is_offered_where_it_has_something_to_show(full: Path, tmp_path: Path) -> None:
    (full / "tensorboard").rename(tmp_path / "elsewhere")
    try:
        assert "tensorboard --logdir" not in Page(write_report(full)).text
    finally:
        (tmp_path / "elsewhere").rename(full / "tensorboard")
        write_report(full)


def test_configuration_is_escaped(full: Path) -> None:
    page = Page(full / "report.html")
    assert "<script" not in page.source
    assert "<script>alert(1)</script>" in page.text


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    name = '<b onclick="x">&$\\frac$ "q"</b>'
    page = page_of(write_run(tmp_path, [result(name, 0.5), result("r2d2", 0.4)], learning=learning()))
    assert "b" not in {tag for tag, _ in page.elements}
    assert name in page.text


def test_conclusion_when_the_controller_wins(full: Path) -> None:
    assert Page(full / "report.html").conclusion() == (
        "The R2D2 controller (r2d2) comes first: it removes 79.0 % of the parameters within 1.5 points of the "
        "baseline accuracy, 4.0 points ahead of lookahead (75.0 %)."
    )


@pytest.mark.parametrize(
    ("reductions", "ending"),
    [
        ({"r2d2": 0.6, "lookahead": 0.884}, "28.4 points ahead of the R2D2 controller r2d2 (60.0 %)."),
        (
            {"r2d2": 0.2, "lookahead": 0.884, "random": 0.3},
            "58.4 points ahead of random (30.0 %); the R2D2 controller r2d2 is in place 3 of 3 (20.0 %).",
        ),
        ({"random": 0.88401, "lookahead": 0.88402}, "level with random (88.4 %)."),
    ],
)
def test_conclusion_when_a_baseline_wins(tmp_path: Path, reductions: dict[str, float], ending: str) -> None:
    conclusion = page_of(write_run(tmp_path, [result(*item) for item in reductions.items()])).conclusion()
    assert conclusion == (
        "A baseline policy comes first: lookahead removes 88.4 % of the parameters within 1.5 points of the baseline "
        f"accuracy, {ending}"
    )


def test_conclusion_under_a_budget(tmp_path: Path) -> None:
    results = [
        result("r2d2", 0.4, objective=BUDGET, validation_accuracy=0.95),
        result("random", 0.6, objective=BUDGET, validation_accuracy=0.9),
        result("halfway", 0.3, objective=BUDGET, validation_accuracy=0.97, macs_reduction=0.3),
    ]
    page = page_of(write_run(tmp_path, results, learning=learning()))
    assert page.conclusion() == (
        "The R2D2 controller (r2d2) comes first: it keeps 95.00 % accuracy with 50 % of the MACs removed, "
        "5.00 points ahead of random (90.00 %)."
    )
    assert "misses the objective" in page.text


def test_missing_the_objective_is_said(tmp_path: Path) -> None:
    missed = result("r2d2", 0.9, validation_accuracy=0.9)
    assert page_of(write_run(tmp_path, [missed])).conclusion() == "r2d2 missed the objective."
    conclusion = page_of(write_run(tmp_path, [missed, result("random", 0.3)])).conclusion()
    assert conclusion.endswith("; no other policy met the objective; the R2D2 controller r2d2 missed the objective.")


def test_a_worse_test_accuracy_is_said(tmp_path: Path) -> None:
    assert "2.80 points below the baseline (98.60 %); that is outside the tolerance" in page_of(
        write_run(tmp_path, [result("r2d2", 0.5)])
    ).text.replace("\N{NO-BREAK SPACE}", " ")


def test_one_policy_without_histories(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, [result("uniform:l1", 0.5)]))
    assert page.sections() == [name for name in SECTIONS if name not in {"learning", "training"}] + ["configuration"]
    assert page.conclusion().startswith("uniform:l1 removes 50.0 %")


def test_fine_tuning_is_shown(tmp_path: Path) -> None:
    tuned = Finetuned(epochs=20, validation_accuracy=0.98, selection_accuracy=0.98, test_accuracy=0.9745, seconds=33.0)
    results = [result("r2d2", 0.5, finetuned=tuned), result("random", 0.4)]
    page = page_of(write_run(tmp_path, results, finetuning=training()))
    assert "finetuning" in page.sections()
    assert "After fine-tuning" in page.text
    assert "97.45" in page.text
    assert "zeroout finetune" not in page.text


def test_the_same_policy_with_several_seeds(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path, [result("r2d2", 0.5), result("r2d2", 0.6, seed=1)])).text
    assert "r2d2 (seed 0)" in text
    assert "r2d2 (seed 1)" in text


@pytest.mark.parametrize("end", ['{"environment_steps": 9', "\n\n", '{"environment_steps": 99}', "nul"])
def test_a_truncated_learning_curve_is_shown(tmp_path: Path, end: str) -> None:
    assert "learning" in page_of(write_run(tmp_path, [result("r2d2", 0.5)], learning=learning() + end)).sections()


@pytest.mark.parametrize("text", ["", '{"environment_steps": 5', '{"environment_steps": 5, "best_score": null}\n'])
def test_nothing_learned_yet(tmp_path: Path, text: str) -> None:
    assert "learning" not in page_of(write_run(tmp_path, [result("r2d2", 0.5)], learning=text)).sections()


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    rows = [{"environment_steps": step, "best_score": -math.inf, "loss": math.nan} for step in range(4)]
    rows.append({"environment_steps": 4, "best_score": 0.5, "loss": math.nan})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert "learning" in page_of(write_run(tmp_path, [result("r2d2", 0.5)], learning=text)).sections()


def test_many_layers_and_policies(tmp_path: Path) -> None:
    for count in (2, 12):
        results = [result(f"policy-{index}", 0.3 + 0.01 * index, layers=120) for index in range(count)]
        page = page_of(write_run(tmp_path, results))
        assert "stage.119.conv" in page.text
        assert len(page.source) < 1_500_000


def test_a_long_episode_stays_small(tmp_path: Path) -> None:
    line = np.linspace(0, 0.9, 20_000).tolist()
    curve = Curve(accuracy=line, parameter_reduction=line, macs_reduction=line)
    assert len(page_of(write_run(tmp_path, [result("r2d2", 0.9, curve=curve)])).source) < 300_000


@pytest.mark.parametrize("missing", ["summary.json", "config.yaml"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write_run(tmp_path, [result("r2d2", 0.5)])
    (tmp_path / missing).unlink()
    with pytest.raises(FileError, match=missing):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results": []}, "results"),
        ({"best": "nobody"}, "nobody"),
        ({"task": "other"}, "of task 'digits/convnet', not 'other'"),
        ({"total_seconds": "soon"}, "total_seconds"),
        ({"created": None}, "created"),
    ],
)
def test_a_malformed_summary_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_run(tmp_path, [result("r2d2", 0.5)]) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileError, match=message):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"kind": "unheard-of"}}, "unknown objective 'unheard-of'"),
        ({"curve": Curve(accuracy=(), parameter_reduction=(), macs_reduction=())}, "curve"),
        ({"curve": Curve(accuracy=(1, 1), parameter_reduction=(0,), macs_reduction=(0, 0))}, "unequal lengths"),
        ({"kept_units": {"other": 3}}, "different layers"),
    ],
)
def test_a_malformed_result_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        write_report(write_run(tmp_path, [result("r2d2", 0.5, **change)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n" + learning(), "line 1: not JSON"),
        ("[1]\n", "line 1: not a JSON object"),
        ('{"environment_steps": 1}\n{"loss": "low"}\n', "line 2: loss is 'low'"),
    ],
)
def test_a_corrupt_history_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        write_report(write_run(tmp_path, [result("r2d2", 0.5)], learning=text))


@pytest.mark.parametrize("history", [{"learning": learning()}, {}])
def test_overview(tmp_path: Path, history: dict[str, str]) -> None:
    write_run(tmp_path, [result(policy, reduction) for policy, reduction in SIX.items()], **history)
    path = save_overview(tmp_path)
    head = path.read_bytes()[:24]
    assert path.name == "overview.png"
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(head[start : start + 4]) for start in (16, 20)] == [1400, 520]
    assert not list(tmp_path.glob(".*"))


def test_the_home_directory_stays_clean(tmp_path: Path) -> None:
    home, run = tmp_path / "home", write_run(tmp_path / "run", [result("r2d2", 0.5)])
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "XDG_"))}
    code = f"from pathlib import Path; from agents.report import write_report; write_report(Path({str(run)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"HOME": str(home)}, timeout=120)
    assert not [path for path in home.rglob("*") if "matplotlib" in path.name]
