"""``zeroout quickstart``: the whole way once, on real images, in minutes."""

import argparse
from typing import Any

from agents.cli.arguments import add_command, add_common, add_run, add_task, resolve_with
from agents.cli.output import note, results_table


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "quickstart",
        "train a small CNN and an R2D2 controller that prunes it, compare with the controls, fine-tune the best",
        "zeroout quickstart --out runs/first --seed 1 controller.total_steps=3000",
    )
    add_task(parser, default="digits/convnet")
    add_run(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Go the whole way."""
    from agents.controller import load_controller
    from agents.quickstart import quickstart
    from agents.run_directory import RunDirectory

    quiet = arguments.json
    task, own = resolve_with(arguments, "controller")
    controller = load_controller("quickstart", own)
    directory = RunDirectory.create(arguments.out, "quickstart")
    done = quickstart(
        task,
        controller,
        directory,
        seed=arguments.seed,
        progress=not quiet,
        say=lambda text: note(text, quiet=quiet),
    )
    best = done.best
    text = (
        f"\n{results_table(done.results)}\n\n"
        f"best: {best.policy}, -{best.parameter_reduction:.1%} parameters, "
        f"-{best.macs_reduction:.1%} MACs ({done.summary['total_seconds']:.0f} s in all)\n"
        f"mask:   {directory.mask}\nreport: {directory.report}"
    )
    return {**done.summary, "_text": text}
