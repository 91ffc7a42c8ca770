"""``zeroout benchmark``: policies x seeds on a task."""

import argparse
from pathlib import Path
from typing import Any

from agents.cli.arguments import absolute_spec, add_command, add_common
from agents.cli.output import note
from recognizers.errors import ConfigurationError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "benchmark",
        "run policies x seeds on a task; one line per finished run, so that a killed benchmark resumes",
        "zeroout benchmark digits-tolerance --out runs/digits-tolerance --resume",
    )
    parser.add_argument("config", help="shipped benchmark, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. seeds=[0,1]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs in --out and go on")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="trained weights of the recognizer")
    parser.add_argument("--data", metavar="SPEC", help="data in place of the task's, e.g. npz:PATH")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark."""
    from agents.benchmark import load_benchmark, markdown_table, read_rows, run_benchmark
    from agents.report.frontier import save_frontier
    from recognizers.files import write_json, write_text

    config, out = load_benchmark(arguments.config, arguments.overrides), arguments.out
    own = [f"recognizer.weights={arguments.weights.absolute()}"] if arguments.weights is not None else []
    own += [f"data.spec={absolute_spec(arguments.data)}"] if arguments.data is not None else []
    config = config.model_copy(update={"overrides": (*config.overrides, *own)})
    results = out / "results.jsonl"
    if results.exists() and not arguments.resume:
        raise ConfigurationError(f"{results} holds results already: choose another --out, or pass --resume")
    rows = read_rows(results)
    write_json(out / "config.json", load_benchmark(arguments.config, arguments.overrides).model_dump())
    total = len(config.seeds) * len(config.policies)
    for row in run_benchmark(config, out, rows, progress=not arguments.json):
        rows.append(row)
        write_text(results, "".join(row.model_dump_json() + "\n" for row in rows))
        result = row.result
        note(
            f"{len(rows)}/{total}  seed {row.seed}  {row.label}: -{result.parameter_reduction:.1%} parameters, "
            f"-{result.macs_reduction:.1%} MACs, test {result.test_accuracy:.2%}",
            quiet=arguments.json,
        )
    table = markdown_table(config, rows)
    write_text(out / "table.md", table + "\n")
    save_frontier(config, rows, out / "accuracy.png")
    return {"command": "benchmark", "results": str(results), "runs": len(rows), "_text": table}
