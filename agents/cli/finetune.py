"""``zeroout finetune``: fine-tune a pruned network from its mask."""

import argparse
from pathlib import Path
from typing import Any

from agents.cli.arguments import add_command, add_common, add_run, add_task, task_overrides
from agents.cli.output import note, table
from recognizers.errors import ConfigurationError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "finetune",
        "fine-tune a pruned network from its mask",
        "zeroout finetune runs/quickstart/best.mask.safetensors --out runs/tuned recognizer.finetuning.epochs=20",
    )
    parser.add_argument("mask", type=Path, help="mask file; its run directory, if any, gives task and weights")
    add_task(parser, default="")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    add_run(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune."""
    from agents.run_directory import RunDirectory, RunSettings
    from agents.workbench import finetune_outcome, open_environment, task_of
    from envs.tasks import load_task
    from recognizers.masks import load_mask

    overrides = [f"recognizer.finetuning.seed={arguments.seed}", *task_overrides(arguments)]
    source = RunDirectory(arguments.mask.parent)
    if arguments.task:
        task = load_task(arguments.task, overrides)
    elif source.config.is_file():
        task = task_of(source, overrides)
    else:
        raise ConfigurationError(f"{arguments.mask} lies in no run directory: name its task with --task")
    directory = RunDirectory.create(arguments.out, "finetune", resume=arguments.resume)
    note(f"{task.name}: fine-tuning {arguments.mask} in {directory.path}", quiet=arguments.json)
    env = open_environment(task, directory, progress=not arguments.json)
    recognizer = env.recognizer
    mask, metadata = load_mask(arguments.mask, recognizer.table, recognizer.base_sha256)
    directory.write_settings(
        RunSettings(command="finetune", task=env.task, seed=arguments.seed, mask=str(arguments.mask))
    )
    recognizer.load_mask(mask)
    before = {split: recognizer.accuracy(split) for split in ("reward", "selection")}
    finetuned = finetune_outcome(directory, env, progress=not arguments.json, resume=arguments.resume)
    summary = directory.write_summary(
        "finetune",
        {
            "task": task.name,
            "policy": metadata.policy,
            "mask": str(arguments.mask),
            "parameter_reduction": recognizer.parameter_reduction,
            "macs_reduction": recognizer.macs_reduction,
            "baseline_test_accuracy": recognizer.baseline_accuracy("test"),
            "validation_accuracy_before": before["reward"],
            "selection_accuracy_before": before["selection"],
            **finetuned.model_dump(),
        },
    )
    text = table(
        ["split", "before %", "after %"],
        [
            ["validation", f"{100 * before['reward']:.2f}", f"{100 * finetuned.validation_accuracy:.2f}"],
            ["selection", f"{100 * before['selection']:.2f}", f"{100 * finetuned.selection_accuracy:.2f}"],
            ["test", "-", f"{100 * finetuned.test_accuracy:.2f}"],
        ],
    )
    return {**summary, "_text": f"{text}\n\nfine-tuned compact network: {directory.finetuned}"}
