"""``zeroout measure``: what pruning saves, side by side."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents.cli.arguments import add_command, add_common, add_source, task_overrides
from agents.cli.output import note, table
from recognizers.errors import ConfigurationError

if TYPE_CHECKING:
    from recognizers.export.measuring import NetworkSize, Timing


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "measure",
        "parameters, MACs, file size and latency of the original and the pruned network",
        "zeroout measure runs/digits --batch-sizes 1,64 --threads 1",
    )
    add_source(parser)
    parser.add_argument("--batch-sizes", default="1,8,64", metavar="N,N", help="images per pass (default: 1,8,64)")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="timed passes of each (default: 50)")
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="passes before that (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as the task has it)")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    from dataclasses import asdict

    from agents.sources import Source
    from recognizers.export.measuring import measure_sizes, measure_timings

    batch_sizes = _batch_sizes(arguments.batch_sizes)
    for name, least in (("rounds", 1), ("warmup", 0), ("threads", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise ConfigurationError(f"--{name} must be at least {least}, got {value}")
    source = Source.at(arguments.source)
    task = source.task(arguments.task, task_overrides(arguments))
    note(f"{task.name}: measuring {source.mask}", quiet=arguments.json)
    opened = source.open(task, progress=not arguments.json)
    pruned = opened.pruned()
    original, compact = measure_sizes(pruned)
    timings = measure_timings(
        pruned,
        device=opened.recognizer.device,
        batch_sizes=batch_sizes,
        rounds=arguments.rounds,
        warmup=arguments.warmup,
        threads=arguments.threads,
    )
    return {
        "command": "measure",
        "task": task.name,
        "mask": str(source.mask),
        "rounds": arguments.rounds,
        "warmup": arguments.warmup,
        "original": asdict(original),
        "pruned": asdict(compact),
        "timings": [{**asdict(timing), "speedup": timing.speedup} for timing in timings],
        "_text": f"{_sizes_table(original, compact)}\n\n{_timings_table(timings)}\n\n"
        f"median (and 95th percentile) of {arguments.rounds} passes each, in turn, after {arguments.warmup} to warm up",
    }


def _batch_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"--batch-sizes are numbers like 1,8,64, got {text!r}") from error
    if min(sizes) < 1:
        raise ConfigurationError(f"--batch-sizes must be at least 1, got {text!r}")
    return sizes


def _sizes_table(original: "NetworkSize", pruned: "NetworkSize") -> str:
    rows = [
        [name, f"{before:,}", f"{after:,}", f"{after / before:.3f}"]
        for name, before, after in (
            ("parameters", original.parameters, pruned.parameters),
            ("MACs", original.macs, pruned.macs),
            ("safetensors, bytes", original.file_bytes, pruned.file_bytes),
        )
    ]
    return table(["size", "original", "pruned", "ratio"], rows)


def _timings_table(timings: "Sequence[Timing]") -> str:
    rows = []
    for timing in timings:
        times = [f"{1e3 * each.median:.3f} ({1e3 * each.p95:.3f})" for each in (timing.original, timing.pruned)]
        where = f"{timing.runtime}, {timing.device}, threads: {timing.threads}"
        rows.append([where, str(timing.batch_size), *times, f"{timing.speedup:.2f}"])
    return table(["latency, ms", "batch", "original", "pruned", "speed-up"], rows)
