"""The page."""

from dataclasses import dataclass
from pathlib import Path

from agents.report import words
from agents.report.files import commands, listing
from agents.report.pictures import layers, learning, paths, polylines, seconds, training
from agents.report.pictures.parts import Section, policy_keys
from agents.report.rendering import render
from agents.report.run import Entry, Run, read_run
from agents.report.table import summary_table
from recognizers.files import write_text


@dataclass(frozen=True)
class Figure:
    """A headline number."""

    value: str
    label: str


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a run directory: one page that needs no other file and no network.

    Args:
        directory: with ``summary.json`` and ``config.yaml``, and what else the run left.

    Returns:
        The path of the page.

    Raises:
        FileError: an input is missing or malformed, or the page cannot be written.
    """
    run = read_run(directory)
    page = render(
        "report.html.j2",
        run=run,
        objective=words.goal(run.objective),
        conclusion=words.conclusion(run),
        notes=_notes(run),
        figures=_figures(run.entries[0]),
        took=words.duration(run.summary.total_seconds),
        created=run.summary.created.strftime("%Y-%m-%d %H:%M"),
        recoveries=_recoveries(run),
        table=summary_table(run),
        swatches=policy_keys(run, "marker"),
        sections=_sections(run),
        time=seconds.section(run),
        files=listing(directory),
        commands=commands(run),
    )
    path = directory / "report.html"
    write_text(path, page)
    return path


def _sections(run: Run) -> list[Section]:
    candidates = [
        paths.section(run),
        layers.section(run),
        polylines.section(run),
        learning.section(run) if learning.learned(run) else None,
        training.section(run.training, "training"),
        training.section(run.finetuning, "finetuning"),
    ]
    return [section for section in candidates if section is not None]


def _figures(first: Entry) -> list[Figure]:
    result = first.result
    figures = [
        Figure(words.percent(result.parameter_reduction), "parameters removed"),
        Figure(words.percent(result.macs_reduction), "MACs removed"),
        *(
            []
            if result.latency_reduction is None
            else [Figure(words.percent(result.latency_reduction), words.removed("latency"))]
        ),
        Figure(words.percent(result.test_accuracy, 2), "test accuracy"),
        Figure(words.signed(result.test_accuracy - result.baseline_test_accuracy), "points, test against baseline"),
    ]
    if result.finetuned is not None:
        figures.append(Figure(words.percent(result.finetuned.test_accuracy, 2), "test accuracy, fine-tuned"))
    return figures


def _notes(run: Run) -> list[str]:
    notes = [words.on_the_test_set(run, run.entries[0])]
    if run.entries[0].result.policy != run.summary.best:
        notes.append(f"The mask that this run kept as the best is that of {run.summary.best}.")
    if len(run.entries) > 1:
        notes.append("Each policy ran once; small differences can be chance.")
    return notes


def _recoveries(run: Run) -> str:
    kinds = dict.fromkeys(str(entry.result.recovery.get("kind", "none")) for entry in run.entries)
    return ", ".join(kinds)
