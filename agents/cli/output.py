"""What commands print and write at their end: a summary, for people or as JSON."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.results import Result
    from agents.run_directory import RunDirectory


def print_summary(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a command's summary: one line of JSON, or the texts under its key ``_text``."""
    content = {key: value for key, value in summary.items() if key != "_text"}
    sys.stdout.write(json.dumps(content) if as_json else str(summary["_text"]))
    sys.stdout.write("\n")


def conclude(directory: "RunDirectory", command: str, result: "Result", started: float) -> dict[str, Any]:
    """Write summary and report of a run with a single result.

    Args:
        directory: where.
        command: that ran.
        result: its figures stand at the top of the summary.
        started: ``time.perf_counter()`` at the command's start.

    Returns:
        The summary, with the text to print.
    """
    from agents.report import write_report

    figures = result.model_dump()
    summary = directory.write_summary(
        command,
        {**figures, "results": [figures], "best": result.policy, "total_seconds": time.perf_counter() - started},
    )
    write_report(directory.path)
    text = f"{results_table([result])}\n\nmask:   {directory.mask}\nreport: {directory.report}"
    return {**summary, "_text": text}


def note(text: str, *, quiet: bool) -> None:
    """Say on standard error what a command is about to do."""
    if not quiet:
        sys.stderr.write(f"{text}\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain text table: first column left-aligned, the others right-aligned."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def results_table(results: Sequence["Result"]) -> str:
    """Results side by side; percentages, accuracies with their splits."""
    first = results[0]
    latency = first.latency_reduction is not None
    rows = [
        [
            "(baseline)",
            "-",
            "-",
            *(["-"] if latency else []),
            _percent(first.baseline_validation_accuracy),
            _percent(first.baseline_selection_accuracy),
            _percent(first.baseline_test_accuracy),
            "",
            "-",
            "-",
            "-",
        ]
    ]
    for result in results:
        finetuned = result.finetuned
        rows.append(
            [
                result.policy,
                _percent(result.parameter_reduction),
                _percent(result.macs_reduction),
                *([_percent(result.latency_reduction or 0.0)] if latency else []),
                _percent(result.validation_accuracy),
                _percent(result.selection_accuracy),
                _percent(result.test_accuracy),
                _percent(finetuned.test_accuracy) if finetuned else "",
                f"{result.environment_steps:,}",
                f"{result.evaluations:,}",
                f"{result.seconds['policy']:.1f}",
            ]
        )
    header = [
        "policy",
        "params -%",
        "MACs -%",
        *(["latency -%"] if latency else []),
        "val %",
        "select %",
        "test %",
        "tuned %",
        "steps",
        "evals",
        "seconds",
    ]
    return table(header, rows)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
