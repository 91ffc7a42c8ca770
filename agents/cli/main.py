"""Entry point: parses the command line, runs a command, turns errors into one line."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from agents.cli import (
    benchmark,
    controller,
    export,
    finetune,
    measure,
    prune,
    quickstart,
    recognizer,
    report,
    serve,
    validate,
)
from agents.cli.output import print_summary
from agents.holding import held
from recognizers.errors import ZeroOutError, in_one_line

Command = Callable[[argparse.Namespace], dict[str, Any]]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="zeroout",
        description="Prune convolutional networks by reinforcement learning, and by every rule worth comparing with.",
        epilog="example:\n  zeroout quickstart\n  zeroout prune --task digits/convnet --policy lookahead\n\n"
        "`zeroout COMMAND --help` says more, with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        quickstart,
        recognizer,
        controller,
        prune,
        benchmark,
        finetune,
        export,
        measure,
        validate,
        report,
        serve,
    ):
        module.add_parser(commands)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; ``key=value`` overrides may stand anywhere in it."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes only the first run of positional arguments for a list of them, and hands back the later ones.
    foreign = [text for text in rest if text.startswith("-") or "=" not in text]
    if foreign or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(foreign or rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 2 for bad input, as the parser itself has it; 130 after an interrupt.
    """
    parsed = parse(arguments)
    run: Command = parsed.run
    try:
        with held(parsed.out) if _holds(parsed) else nullcontext():
            summary = run(parsed)
    except ZeroOutError as error:
        if parsed.debug:
            traceback.print_exc()
        sys.stderr.write(f"zeroout: error: {in_one_line(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("zeroout: interrupted; what was finished is in the run directory\n")
        return 130
    print_summary(summary, as_json=parsed.json)
    return 0


def _holds(parsed: argparse.Namespace) -> bool:
    """Whether no other process may write to the command's directory meanwhile; one of the default name is its own."""
    return getattr(parsed, "holds_out", False) and parsed.out is not None
