"""``zeroout prune --server``: the same command, done by a service."""

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from agents.cli.arguments import resolve_with
from agents.cli.output import note, results_table
from recognizers.errors import ConfigurationError, ZeroOutError

if TYPE_CHECKING:
    from agents.run_directory import RunDirectory

TOKEN_VARIABLE = "ZEROOUT_TOKEN"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Have a service prune, and fetch what comes of it."""
    try:
        from agents.client import Client
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"--server needs {error.name}: pip install 'zeroout[serve]'") from error
    from tqdm import tqdm

    from agents.run_directory import RunDirectory

    started = time.perf_counter()
    directory = RunDirectory.create(arguments.out, "prune")
    request = _request(arguments)
    with Client(arguments.server, os.environ.get(TOKEN_VARIABLE)) as client:
        if arguments.weights is not None:
            request["weights"] = client.upload(arguments.weights)
        id_ = client.submit(request)
        note(f"pruning {id_} on {arguments.server}, into {directory.path}", quiet=arguments.json)
        with tqdm(desc=arguments.policy, unit="step", disable=arguments.json) as bar:

            def show(event: Any) -> None:
                if event.kind == "step":
                    figures = event.data
                    bar.set_postfix_str(f"accuracy {figures['accuracy']:.4f}, MACs -{figures['macs_reduction']:.1%}")
                    bar.update()

            try:
                pruning = client.wait(id_, show)
            except KeyboardInterrupt:
                client.cancel(id_)
                raise
        if pruning["state"] != "finished":
            raise ZeroOutError(f"pruning {id_} {pruning['state']}: {pruning['failure'] or 'by request'}")
        _fetch(client, pruning, directory)
        if arguments.weights is not None:
            client.delete_weights(request["weights"])
    return _conclude(arguments, directory, pruning, started)


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags ask for, as the service takes it.

    Raises:
        ConfigurationError: a flag says something that only holds on this machine.
    """
    from envs.tasks import tasks
    from recognizers.settings import override

    if arguments.data is not None or arguments.download:
        raise ConfigurationError("--server prunes on data of the server: leave out --data and --download")
    task, settings = resolve_with(arguments, "policy")
    sections = task.model_dump(mode="json", include={"recovery", "objective", "actions"})
    if arguments.actions is None and not any(text.startswith("actions.kind=") for text in arguments.overrides):
        sections["actions"].pop("kind")  # left to the policy
    if arguments.task in tasks():
        foreign = [text for text in arguments.overrides if text.split(".")[0] in ("recognizer", "data", "name")]
        if foreign:
            raise ConfigurationError(f"--server takes a shipped task as it is: {foreign[0]!r} needs a task file")
        network: dict[str, Any] = {"task": arguments.task}
    else:
        if arguments.weights is None:
            raise ConfigurationError("--server needs --weights for a task of your own")
        recognizer = task.recognizer
        network = {"architecture": recognizer.architecture, "arguments": recognizer.arguments, "data": task.data.spec}
    name, colon, tail = arguments.policy.partition(":")
    policy = {"controller": tail} if name == "controller" and colon else {"policy": arguments.policy}
    settings_ = override({}, settings)
    return {
        **network,
        **policy,
        **sections,
        "settings": settings_,
        "seed": arguments.seed,
        "finetune": arguments.finetune,
    }


def _fetch(client: Any, pruning: dict[str, Any], run: "RunDirectory") -> None:
    files = {
        "mask": run.mask,
        "model": run.compact,
        "finetuned": run.finetuned,
        "weights": run.recognizer,
        "report": run.report,
    }
    for artifact in pruning["artifacts"]:
        client.download(pruning["id"], artifact, files[artifact])


def _conclude(
    arguments: argparse.Namespace, run: "RunDirectory", pruning: dict[str, Any], started: float
) -> dict[str, Any]:
    from agents.results import Result
    from agents.run_directory import RunSettings
    from agents.workbench import with_weights

    result = Result.model_validate(pruning["result"])
    task, _ = resolve_with(arguments, "policy")
    run.write_settings(
        RunSettings(command="prune", task=with_weights(task, run.recognizer), seed=arguments.seed, policy=result.policy)
    )
    figures = result.model_dump(mode="json")
    seconds = time.perf_counter() - started
    summary = run.write_summary(
        "prune",
        {**figures, "results": [figures], "best": result.policy, "total_seconds": seconds, "server": arguments.server},
    )
    return {**summary, "_text": f"{results_table([result])}\n\nmask:   {run.mask}\nreport: {run.report}"}
