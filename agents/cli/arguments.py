"""Flags that several commands share, and what they mean for a task's settings."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from recognizers.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from envs.tasks import TaskConfig


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """A subcommand whose ``--help`` ends with an example."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags of every command."""
    parser.add_argument("--json", action="store_true", help="print the summary as one line of JSON, and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Flags of commands that write a run directory."""
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/COMMAND-DATE-TIME)")
    parser.set_defaults(holds_out=True)


def add_task(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Flags that choose a task and override its settings."""
    parser.add_argument(
        "--task", default=default, required=default is None, help="name of a shipped task, or a YAML file"
    )
    parser.add_argument("--weights", type=Path, metavar="PATH", help="trained weights of the recognizer")
    parser.add_argument(
        "--data", metavar="SPEC", help="data: digits, fashion_mnist, cifar10, cifar100, imagefolder:PATH or npz:PATH"
    )
    parser.add_argument("--download", action="store_true", help="download a missing data set")
    parser.add_argument(
        "--recovery",
        metavar="KIND",
        help="after each selection: none, bn, finetune, finetune(K) for K mini-batches, reconstruct or unify",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--target-macs", type=float, metavar="X", help="budget objective: share of the MACs that remains, e.g. 0.5"
    )
    target.add_argument(
        "--tolerance", type=float, metavar="X", help="tolerance objective: accuracy that may be lost, e.g. 0.015"
    )
    parser.add_argument("--actions", metavar="KIND", help="what an action removes: unit, block, layer or mask")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any setting, dotted, e.g. actions.per_layer=8"
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """What commands start from that go on with a mask, and the flags that choose another task for it."""
    parser.add_argument(
        "source", type=Path, metavar="RUN|MASK", help="run directory, or mask file; its run gives task and weights"
    )
    add_task(parser, default="")


def task_overrides(arguments: argparse.Namespace) -> list[str]:
    """The flags of :func:`add_task` as dotted overrides; explicit ``key=value`` come last and win."""
    overrides = []
    if arguments.weights is not None:
        overrides.append(f"recognizer.weights={arguments.weights.absolute()}")
    if arguments.data is not None:
        overrides.append(f"data.spec={absolute_spec(arguments.data)}")
    if arguments.download:
        overrides.append("data.download=true")
    if arguments.recovery is not None:
        overrides += recovery_overrides(arguments.recovery)
    if arguments.target_macs is not None:
        overrides += ["objective.kind=budget", f"objective.macs={arguments.target_macs}"]
    if arguments.tolerance is not None:
        overrides += ["objective.kind=tolerance", f"objective.drop={arguments.tolerance}"]
    if arguments.actions is not None:
        overrides.append(f"actions.kind={arguments.actions}")
    return [*overrides, *arguments.overrides]


def resolve_task(arguments: argparse.Namespace) -> "TaskConfig":
    """The task that the flags describe."""
    from envs.tasks import load_task

    return load_task(arguments.task, task_overrides(arguments))


def resolve_with(arguments: argparse.Namespace, section: str) -> tuple["TaskConfig", list[str]]:
    """The task that the flags describe, and the overrides under ``section``, which belong to something else."""
    from envs.tasks import load_task

    prefix, overrides = f"{section}.", task_overrides(arguments)
    own = [text.removeprefix(prefix) for text in overrides if text.startswith(prefix)]
    return load_task(arguments.task, [text for text in overrides if not text.startswith(prefix)]), own


def absolute_spec(spec: str) -> str:
    """A data specification that means the same in another working directory."""
    kind, colon, path = spec.partition(":")
    return f"{kind}:{Path(path).expanduser().absolute()}" if colon else spec


def recovery_overrides(text: str) -> list[str]:
    """``none``, ``bn``, ``finetune`` or ``finetune(K)`` as dotted overrides.

    Raises:
        UnknownNameError: no such recovery.
        ConfigurationError: parentheses behind a recovery that takes no steps.
    """
    from recognizers.recovery import RECOVERIES

    match = re.fullmatch(r"(\w+)(?:\((\d+)\))?", text.strip())
    kind, steps = match.groups() if match else (text, None)
    if kind not in RECOVERIES:
        raise UnknownNameError("recovery", kind, RECOVERIES)
    if steps is not None and kind != "finetune":
        raise ConfigurationError(f"recovery {kind!r} takes no number of steps, got {text!r}")
    return [f"recovery.kind={kind}", *([f"recovery.steps={steps}"] if steps else [])]
