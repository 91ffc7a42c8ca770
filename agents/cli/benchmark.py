"""``zeroout benchmark``: tasks x policies x seeds."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli.arguments import absolute_spec, add_command, add_common
from recognizers.errors import ConfigurationError

if TYPE_CHECKING:
    from agents.benchmark import BenchmarkConfig, Row


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "benchmark",
        "run tasks x policies x seeds; one line per finished run, so that a killed benchmark resumes",
        "zeroout benchmark smoke --policy my_policy.py:MyPolicy --out runs/smoke",
    )
    parser.add_argument("config", help="shipped benchmark, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. seeds=[0,1]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME",
        help="one more policy: a name, path/to/file.py:Class or module:Class; may be given several times",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the finished runs in --out and go on; failed ones are tried again"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="runs at a time (default: one per core, or two per GPU); 0: in this process, without Ray",
    )
    parser.add_argument("--address", help="of a Ray cluster, e.g. auto; all its machines must see --out and the data")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="trained weights of the recognizer")
    parser.add_argument("--data", metavar="SPEC", help="data in place of the tasks', e.g. npz:PATH")
    add_common(parser)
    parser.set_defaults(run=run, holds_out=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark."""
    from tqdm import tqdm

    from agents.benchmark.engine import run_benchmark
    from agents.benchmark.rows import refuse_other_settings
    from agents.benchmark.table import markdown_table
    from agents.report.benchmark import write_benchmark
    from recognizers.files import append_text, write_json

    config, out = _config(arguments), arguments.out
    results = out / "results.jsonl"
    rows = {row.key: row for row in _recorded(results, resume=arguments.resume)}
    refuse_other_settings(config, rows, out / "config.json")
    keys = list(config.runs())
    done = sum(key in rows and rows[key].result is not None for key in keys)
    own = [f"recognizer.weights={arguments.weights.absolute()}"] if arguments.weights is not None else []
    own += [f"data.spec={absolute_spec(arguments.data)}"] if arguments.data is not None else []
    progress = not arguments.json
    running = run_benchmark(
        config.with_overrides(own),
        out,
        list(rows.values()),
        workers=arguments.workers,
        address=arguments.address,
        progress=progress,
    )
    write_json(out / "config.json", config.model_dump())
    with tqdm(total=len(keys), initial=done, desc="benchmark", unit="run", disable=not progress) as bar:
        for row in running:
            rows[row.key] = row
            append_text(results, row.model_dump_json() + "\n")
            if progress:
                bar.write(_line(row), file=sys.stderr)
            bar.set_postfix_str(f"{sum(row.failure is not None for row in rows.values())} failed", refresh=False)
            bar.update()
    ordered = [rows[key] for key in keys if key in rows]
    page = write_benchmark(config, ordered, out)
    table = markdown_table(config, ordered)
    failed = sum(row.failure is not None for row in ordered)
    if ordered and failed == len(ordered):
        raise ConfigurationError(f"every run failed, the first one so: {ordered[0].failure}")
    return {
        "command": "benchmark",
        "results": str(results),
        "report": str(page),
        "runs": len(ordered),
        "failed": failed,
        "_text": f"{table}\n\nreport: {page}",
    }


def _config(arguments: argparse.Namespace) -> "BenchmarkConfig":
    """The benchmark that is named, with the policies that are given beside it."""
    from agents.benchmark import BenchmarkConfig, Entry, load_benchmark
    from agents.foreign import class_name, is_foreign
    from recognizers.settings import validate

    tree = load_benchmark(arguments.config, arguments.overrides).model_dump()
    if arguments.workers is not None and arguments.workers < 0:
        raise ConfigurationError(f"--workers must be 0 or more, got {arguments.workers}")
    more = [
        Entry(policy=name, label=class_name(name) if is_foreign(name) else None).model_dump()
        for name in arguments.policy
    ]
    return validate(BenchmarkConfig, {**tree, "policies": [*tree["policies"], *more]}, "benchmark")


def _recorded(results: Path, *, resume: bool) -> "list[Row]":
    """The rows of earlier calls.

    Raises:
        ConfigurationError: there are some, and ``resume`` is not set.
    """
    from agents.benchmark import read_rows
    from envs.episodes import repair_episodes

    if results.exists():
        if not resume:
            raise ConfigurationError(f"{results} holds results already: choose another --out, or pass --resume")
        repair_episodes(results)
    return read_rows(results)


def _line(row: "Row") -> str:
    """A run in one line."""
    if row.result is None:
        return f"{row.key}: FAILED: {row.failure}"
    result = row.result
    return (
        f"{row.key}: -{result.parameter_reduction:.1%} parameters, -{result.macs_reduction:.1%} MACs, "
        f"test {result.test_accuracy:.2%} ({result.test_accuracy - result.baseline_test_accuracy:+.2%})"
    )
