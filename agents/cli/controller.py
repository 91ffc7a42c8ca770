"""``zeroout train``: train the R2D2 controller on a task."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli.arguments import add_command, add_common, add_run, add_task, resolve_with
from agents.cli.output import conclude, note, table
from recognizers.errors import ConfigurationError

if TYPE_CHECKING:
    from agents.r2d2.settings import R2D2Settings
    from agents.run_directory import RunDirectory
    from envs.tasks import TaskConfig


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        "train the R2D2 controller on a task",
        "zeroout train --task digits/convnet --out runs/digits controller.total_steps=8000\n"
        "  zeroout train --out runs/digits --resume\n"
        "  zeroout train --task digits/convnet --tune space.yaml --out runs/tuned \\\n"
        "      controller.sampling.num_env_runners=0",
    )
    parser.add_argument(
        "--controller", default="default", metavar="CONFIG", help="shipped controller settings, or a YAML file"
    )
    add_task(parser, default="")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own settings")
    parser.add_argument(
        "--tune",
        metavar="SPACE",
        help="search for settings with Ray Tune: a YAML file with `samples: 8` and `parameters:`, e.g. "
        "`learning.lr: {loguniform: [1.0e-4, 1.0e-2]}` (also choice, uniform, grid); writes best.yaml for --controller",
    )
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
        if arguments.tune:
            raise ConfigurationError("a search cannot be resumed: leave out --resume or --tune")
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
    if arguments.tune:
        return _tune(arguments, task, controller, directory, started)
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


def _tune(
    arguments: argparse.Namespace,
    task: "TaskConfig",
    controller: "R2D2Settings",
    directory: "RunDirectory",
    started: float,
) -> dict[str, Any]:
    """Search for settings in place of training with given ones."""
    from agents.run_directory import RunSettings
    from agents.tuning import load_space, search
    from agents.workbench import open_environment

    space = load_space(arguments.tune)
    note(f"{task.name}: searching {', '.join(space.parameters)} in {directory.path}", quiet=arguments.json)
    env = open_environment(task, directory, progress=not arguments.json)
    directory.write_settings(
        RunSettings(command="tune", task=env.task, seed=arguments.seed, controller=controller.model_dump())
    )
    trials = search(controller, space, directory, env, seed=arguments.seed, address=arguments.address)
    summary = directory.write_summary(
        "tune",
        {"trials": [trial.model_dump() for trial in trials], "total_seconds": time.perf_counter() - started},
    )
    rows = [
        [
            Path(trial.directory).name or "(failed)",
            "-" if trial.score is None else f"{trial.score:.4f}",
            str(trial.evaluations),
            ", ".join(f"{name}={_short(value)}" for name, value in trial.parameters.items()),
        ]
        for trial in trials
    ]
    listed = table(["trial", "return", "evaluations", "settings"], rows)
    return {**summary, "_text": f"{listed}\n\nbest settings: {directory.path / 'best.yaml'}"}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
