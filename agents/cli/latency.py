"""``zeroout recognizer latency``: a table that objectives count latency by."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli.arguments import add_command, add_common, add_task, resolve_task
from agents.cli.output import note, table
from recognizers.errors import ConfigurationError

if TYPE_CHECKING:
    from recognizers.latency_table import LatencyTable

LEAST = {"batch_size": 1, "points": 2, "rounds": 1, "warmup": 0, "threads": 1, "checks": 0}


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        actions,
        "latency",
        "time the layers at a grid of channel counts and write the table that objectives count latency by",
        "zeroout recognizer latency --task digits/convnet --batch-size 64 --out latency.json\n"
        "  zeroout prune --task digits/convnet --policy lookahead recognizer.latency_table=latency.json "
        "objective.count=latency",
    )
    add_task(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="table to write: *.json")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per pass (default: 1)")
    parser.add_argument(
        "--points", type=int, default=5, metavar="N", help="channel counts of each side of a layer (default: 5)"
    )
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="timed passes of each (default: 30)")
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="passes before that (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as the task has it)")
    parser.add_argument(
        "--checks", type=int, default=8, metavar="N", help="pruned networks timed as a whole beside it (default: 8)"
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and write. No trained weights are needed; given ones say how narrow a prepared network is."""
    import torch

    from recognizers.config import prepare, starting_point
    from recognizers.dependency import build_unit_table
    from recognizers.evaluation import to_inputs
    from recognizers.latency_profile import ProfileSettings, profile
    from recognizers.latency_table import write_latency_table

    _check(arguments)
    task = resolve_task(arguments)
    weights = task.recognizer.weights
    parts = prepare(task.recognizer, task.data)
    network, _ = starting_point(task.recognizer, parts, Path(weights) if weights else None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = parts.splits.train.images
    images = train[torch.arange(arguments.batch_size) % len(train)].to(device)  # latency does not depend on the content
    inputs = to_inputs(images, parts.normalization, "float32")
    network = network.to(device)
    settings = ProfileSettings(
        arguments.points,
        arguments.rounds,
        arguments.warmup,
        arguments.threads or task.recognizer.threads,
        arguments.checks,
    )
    note(f"{task.name}: timing {task.recognizer.architecture} on {device}", quiet=arguments.json)
    latencies = profile(
        network,
        build_unit_table(network, inputs[:2]),
        inputs,
        task.recognizer.architecture,
        settings,
        progress=not arguments.json,
    )
    write_latency_table(arguments.out, latencies)
    return {
        "command": "recognizer latency",
        "task": task.name,
        "file": str(arguments.out),
        "sha256": latencies.sha256,
        "seconds": latencies.checks[0].measured,
        **latencies.model_dump(exclude={"layers"}, mode="json"),
        "_text": _text(latencies, arguments.out),
    }


def _check(arguments: argparse.Namespace) -> None:
    for name, least in LEAST.items():
        if (value := getattr(arguments, name)) is not None and value < least:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if arguments.out.suffix != ".json" or arguments.out.exists():
        reason = "exists already" if arguments.out.exists() else "must end in .json"
        raise ConfigurationError(f"--out {arguments.out} {reason}")


def _text(latencies: "LatencyTable", out: Path) -> str:
    rows = [
        [
            "complete" if index == 0 else f"random {index}",
            f"{100 * check.macs:.1f}",
            f"{1e3 * check.measured:.3f}",
            f"{1e3 * check.predicted:.3f}",
            f"{100 * check.error:+.1f}",
        ]
        for index, check in enumerate(latencies.checks)
    ]
    checks = table(["network", "MACs left %", "measured, ms", "by the table, ms", "error %"], rows)
    return (
        f"{checks}\n\n{len(latencies.layers)} layers on {latencies.device}, threads: {latencies.threads}, batch "
        f"{latencies.batch_size}; {1e3 * latencies.remainder:+.3f} ms are outside of the layers\n"
        f"table: {out}"
    )
