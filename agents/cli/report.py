"""``zeroout report``: write the page of a run, or of a benchmark, again."""

import argparse
from pathlib import Path
from typing import Any

from agents.cli.arguments import add_command, add_common


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands, "report", "write report.html of a run or a benchmark (again)", "zeroout report runs/quickstart"
    )
    parser.add_argument("directory", type=Path, help="run directory, or a benchmark's directory")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the report."""
    from agents.report import write_report
    from agents.report.benchmark import rewrite_benchmark
    from agents.report.finetuning import write_finetuning_report
    from agents.run_directory import RunDirectory

    directory: Path = arguments.directory
    files = RunDirectory(directory)
    if (directory / "results.jsonl").is_file():
        page = rewrite_benchmark(directory)
    elif files.finetuning.is_file() and not files.episodes.is_file():
        page = write_finetuning_report(directory)
    else:
        page = write_report(directory)
    return {"command": "report", "report": str(page), "_text": f"report: {page}"}
