"""``zeroout prune``: run one policy on a task."""

import argparse
import time
from typing import Any

from agents.cli.arguments import add_command, add_common, add_run, add_task, resolve_with
from agents.cli.output import conclude, note


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "prune",
        "run one policy on a task: a mask, the compact network, a report",
        "zeroout prune --task cifar10/resnet56 --policy global:l1 --target-macs 0.5 \\\n"
        "      --weights resnet56.safetensors --data npz:cifar10.npz --out runs/resnet56",
    )
    parser.add_argument(
        "--policy",
        required=True,
        help="random, uniform:l1, global:snip, pca:l1, lookahead, search:evolution, r2d2:RUN_DIRECTORY; a wrong name "
        "lists all. Its own settings are given as policy.KEY=VALUE, e.g. policy.candidates=8",
    )
    parser.add_argument("--finetune", action="store_true", help="fine-tune the result as the task says")
    parser.add_argument(
        "--server",
        metavar="URL",
        help="have a `zeroout serve` do it and fetch the result; its token, where needed, is read from ZEROOUT_TOKEN. "
        "The policy may be controller:NAME, one that it serves",
    )
    add_task(parser)
    add_run(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the policy."""
    if arguments.server is not None:
        from agents.cli import remote

        return remote.run(arguments)
    from agents.policy import make_policy, suited
    from agents.run_directory import RunDirectory, RunSettings
    from agents.running import run_policy
    from agents.workbench import finetune_outcome, open_environment, save_outcome, save_plans
    from recognizers.settings import override

    started = time.perf_counter()
    task, settings = resolve_with(arguments, "policy")
    policy = make_policy(arguments.policy, seed=arguments.seed, **override({}, settings))
    if arguments.actions is None:
        task = suited(task, policy)
    directory = RunDirectory.create(arguments.out, "prune")
    note(f"{task.name}: {arguments.policy}, recovery {task.recovery.kind}, in {directory.path}", quiet=arguments.json)
    env = open_environment(task, directory, progress=not arguments.json)
    directory.write_settings(RunSettings(command="prune", task=env.task, seed=arguments.seed, policy=arguments.policy))
    done = run_policy(env, policy, arguments.policy, seed=arguments.seed, progress=not arguments.json)
    directory.add_episodes(done.episodes)
    result = done.result
    save_outcome(directory, env, result)
    save_plans(directory, policy)
    if arguments.finetune:
        result = result.model_copy(update={"finetuned": finetune_outcome(directory, env, progress=not arguments.json)})
    return conclude(directory, "prune", result, started)
