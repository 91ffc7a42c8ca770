"""What a benchmark leaves behind: tables, a picture and the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.benchmark import BenchmarkConfig, Key, Row, read_rows
from agents.benchmark.rows import read_settings, results
from agents.benchmark.table import Grid, csv_table, grids, markdown_table
from agents.report import words
from agents.report.frontier import save_frontier
from agents.report.pictures import scores
from agents.report.pictures.comparison import improvement_section, ranking_section, task_section
from agents.report.pictures.parts import Section, style_key
from agents.report.rendering import render
from agents.report.standings import Standing, standings, styles
from agents.report.table import NONE
from agents.statistics import Estimate
from envs.tasks import TaskConfig
from recognizers.errors import FileError
from recognizers.files import write_text


@dataclass(frozen=True)
class TaskPart:
    """A task on the page: its goal, its pictures, its tables."""

    name: str
    goal: str
    sections: tuple[Section, ...]
    grids: tuple[Grid, ...]


def write_benchmark(config: BenchmarkConfig, rows: Sequence[Row], directory: Path) -> Path:
    """Write ``table.md``, ``results.csv``, ``accuracy.png``, ``evaluations.png`` and ``report.html``.

    Args:
        config: of the benchmark.
        rows: its finished and failed runs.
        directory: where to.

    Returns:
        The path of the page.

    Raises:
        FileError: a file cannot be written.
    """
    order = {key: number for number, key in enumerate(config.runs())}
    rows = sorted((row for row in rows if row.key in order), key=lambda row: order[row.key])
    write_text(directory / "table.md", markdown_table(config, rows) + "\n")
    write_text(directory / "results.csv", csv_table(rows))
    save_frontier(config, rows, directory / "accuracy.png")
    scores.save_scores(config, rows, directory / "evaluations.png")
    page = directory / "report.html"
    write_text(page, _page(config, rows))
    return page


def rewrite_benchmark(directory: Path) -> Path:
    """Write all that :func:`write_benchmark` writes again, from the rows in a benchmark's directory.

    Raises:
        FileError: there are no rows, or they are corrupt.
        ConfigurationError: the settings beside them are not those of this zeroout.
    """
    rows = read_rows(directory / "results.jsonl")
    if not rows:
        raise FileError(f"{directory} holds no results")
    return write_benchmark(read_settings(directory / "config.json"), rows, directory)


def _page(config: BenchmarkConfig, rows: Sequence[Row]) -> str:
    standing = standings(config, rows)
    first = config.policies[0].name
    appearance = styles(entry.name for entry in config.policies)
    sections = [ranking_section(standing), improvement_section(standing, first)]
    missing = sum(1 for _ in config.runs()) - len(rows)
    return render(
        "benchmark.html.j2",
        title=", ".join(task.name for task in config.tasks),
        conclusion=_conclusion(standing, len(config.seeds)),
        facts=_facts(config, rows, missing),
        places=[_cells(place, first, standing) for place in standing],
        swatches={label: style_key(label, style, "marker") for label, style in appearance.items()},
        first=first,
        seeds=len(config.seeds),
        unranked=any(place.rank is None for place in standing),
        sections=[section for section in sections if section is not None],
        tasks=[
            TaskPart(
                name=task.name,
                goal=_goal(config, task.name),
                sections=tuple(
                    section
                    for section in (
                        task_section(config, task, rows, appearance, number),
                        scores.section(task.name, rows, appearance, number),
                    )
                    if section is not None
                ),
                grids=tuple(grid for grid in grids(config, task, rows) if grid.lines),
            )
            for number, task in enumerate(config.tasks)
        ],
        failed=[row for row in rows if row.failure is not None],
        configuration=config.model_dump_json(indent=2),
    )


def _goal(config: BenchmarkConfig, name: str) -> str:
    entry = config.entries(config.task(name))[0]
    task: TaskConfig = config.settings(Key(name, entry.name, config.seeds[0]))
    return f"{words.goal(task.objective)} Recovery: {task.recovery.kind}."


def _facts(config: BenchmarkConfig, rows: Sequence[Row], missing: int) -> list[str]:
    done = len(results(rows))
    facts = [
        _count(len(config.policies), "policy"),
        _count(len(config.tasks), "task"),
        _count(len(config.seeds), "seed"),
    ]
    facts.append(_count(done, "finished run"))
    if failed := len(rows) - done:
        facts.append(f"{failed} failed")
    if missing:
        facts.append(f"{missing} not run yet")
    return facts


def _count(number: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number} {what if number == 1 else plural}"


def _conclusion(standing: Sequence[Standing], seeds: int) -> str:
    ranked = [place for place in standing if place.estimate is not None]
    if not ranked:
        return "No policy has all its runs, so none is ranked."
    leader = ranked[0]
    assert leader.estimate is not None
    text = f"{leader.label} leads with an interquartile mean of {_estimate(leader.estimate)}"
    if len(ranked) == 1:
        return text + "."
    second = ranked[1]
    assert second.estimate is not None and second.over_best is not None
    beaten = second.over_best
    text += f"; {second.label} follows with {_estimate(second.estimate)}. "
    if seeds == 1:
        return text + "Each policy ran once: small differences can be chance."
    if beaten.low <= 0.5 <= beaten.high:
        return text + "The runs do not tell the two apart."
    return text + f"A run of {second.label} beats one of {leader.label} with probability {beaten.value:.2f}."


def _cells(place: Standing, first: str, standing: Sequence[Standing]) -> tuple[Standing, list[str]]:
    """A line of the leaderboard: the standing, and its texts behind the name."""
    runs = f"{place.runs}/{place.planned}" + (f" ({place.failed} failed)" if place.failed else "")
    return place, [
        NONE if place.rank is None else str(place.rank),
        NONE if place.estimate is None else _estimate(place.estimate),
        NONE if place.over_first is None else _estimate(place.over_first, 2),
        NONE if place.over_best is None else _estimate(place.over_best, 2),
        runs,
        _number(place.environment_steps),
        _number(place.evaluations),
        _number(place.seconds, 1),
    ]


def _estimate(estimate: Estimate, digits: int = 3) -> str:
    interval = f" ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})" if estimate.bounded else ""
    return f"{estimate.value:.{digits}f}{interval}"


def _number(value: float, digits: int = 0) -> str:
    return NONE if np.isnan(value) else words.grouped(value, digits)
