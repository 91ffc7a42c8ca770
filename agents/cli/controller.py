"""``zeroout train``: train the R2D2 controller on a task."""

import argparse
import time
from typing import Any

from agents.cli.arguments import add_command, add_common, add_run, add_task, resolve_with
from agents.cli.output import conclude, note
from recognizers.errors import ConfigurationError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        "train the R2D2 controller on a task",
        "zeroout train --task digits/convnet --out runs/digits controller.total_steps=8000\n"
        "  zeroout train --out runs/digits --resume",
    )
    parser.add_argument(
        "--controller", default="default", metavar="CONFIG", help="shipped controller settings, or a YAML file"
    )
    add_task(parser, default="")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own settings")
    parser.add_argument("--address", help="Ray cluster to train on (auto, or HOST:PORT); default: this machine")
    add_run(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on training."""
    from agents.controller import load_controller, train_controller
    from agents.r2d2.settings import R2D2Settings
    from agents.run_directory import RunDirectory, RunSettings
    from agents.workbench import open_environment, save_outcome
    from recognizers.settings import validate

    started = time.perf_counter()
    quiet, seed = arguments.json, arguments.seed
    directory = RunDirectory.create(arguments.out, "train", resume=arguments.resume)
    if arguments.resume:
        if arguments.overrides or arguments.task:
            raise ConfigurationError("--resume goes on with the settings of the run: leave out --task and overrides")
        settings = directory.read_settings()
        if settings.command != "train":
            raise ConfigurationError(f"{directory.path} holds a run of `zeroout {settings.command}`, not of `train`")
        task, seed = settings.task, settings.seed
        controller = validate(R2D2Settings, settings.controller or {}, str(directory.config))
    elif not arguments.task:
        raise ConfigurationError("name the task to train on with --task")
    else:
        task, own = resolve_with(arguments, "controller")
        controller = load_controller(arguments.controller, own)
    note(f"{task.name}: training R2D2 in {directory.path}", quiet=quiet)
    env = open_environment(task, directory, progress=not quiet)
    directory.write_settings(
        RunSettings(command="train", task=env.task, seed=seed, policy="r2d2", controller=controller.model_dump())
    )
    done = train_controller(
        controller,
        directory,
        env,
        seed=seed,
        resume=arguments.resume,
        progress=not quiet,
        address=arguments.address,
    )
    save_outcome(directory, env, done.result)
    return conclude(directory, "train", done.result, started)
