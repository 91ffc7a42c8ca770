"""``zeroout finetune``: fine-tune a pruned network from its mask."""

import argparse
import time
from typing import Any

from agents.cli.arguments import add_command, add_common, add_run, add_source, task_overrides
from agents.cli.output import note, table

SCHEDULE = {
    "epochs": (int, "passes over the training images"),
    "batch_size": (int, "images per step"),
    "optimizer": (str, "sgd, adamw or muon"),
    "learning_rate": (float, "peak step size"),
    "schedule": (str, "of the learning rate: cosine, constant or step"),
    "milestones": (str, "step: epochs that divide the learning rate by 10, e.g. 30,60"),
    "warmup_epochs": (float, "epochs in which the learning rate rises to its peak"),
    "momentum": (float, "share of the previous update kept"),
    "weight_decay": (float, "L2 penalty"),
    "label_smoothing": (float, "share of the target spread over all classes"),
    "distillation": (float, "share of the loss that is the divergence from the unpruned network's outputs"),
    "temperature": (float, "that softens both outputs for distillation"),
    "hints": (float, "weight of the differences of feature maps from the unpruned network's"),
    "precision": (str, "auto, float32 or bfloat16"),
    "padding": (int, "augment by crops from a frame of so many zero pixels"),
    "mixup": (float, "augment by mixing pairs of images, shares drawn from Beta(X, X)"),
}
SWITCHES = {"nesterov": "Nesterov's form of momentum", "flip": "augment by left-right flips"}
"""Settings of the task's section ``recognizer.finetuning``, each with a flag of its own."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "finetune",
        "fine-tune a pruned network from its mask",
        "zeroout finetune runs/quickstart --out runs/tuned --epochs 20 --learning-rate 0.02 --distillation 0.5",
    )
    add_source(parser)
    group = parser.add_argument_group("schedule", "by default as the task says, in its section recognizer.finetuning")
    for name, (kind, meaning) in SCHEDULE.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=meaning)
    for name, meaning in SWITCHES.items():
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=meaning)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    add_run(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune."""
    from agents.report.finetuning import write_finetuning_report
    from agents.run_directory import RunDirectory, RunSettings
    from agents.sources import Source
    from agents.workbench import finetune_outcome, open_environment
    from recognizers.masks import load_mask, save_mask

    started = time.perf_counter()
    source = Source.at(arguments.source)
    task = source.task(arguments.task, [*schedule_overrides(arguments), *task_overrides(arguments)])
    directory = RunDirectory.create(arguments.out, "finetune", resume=arguments.resume)
    note(f"{task.name}: fine-tuning {source.mask} in {directory.path}", quiet=arguments.json)
    env = open_environment(task, directory, progress=not arguments.json)
    recognizer = env.recognizer
    mask, metadata = load_mask(source.mask, recognizer.table, recognizer.base_sha256)
    directory.write_settings(RunSettings(command="finetune", task=env.task, seed=arguments.seed, mask=str(source.mask)))
    # The run is complete with it: what it left can be exported and measured without the run that the mask is from.
    save_mask(directory.mask, recognizer.table, mask, metadata)
    recognizer.load_mask(mask)
    before = {split: recognizer.accuracy(split) for split in ("reward", "selection")}
    finetuned = finetune_outcome(directory, env, progress=not arguments.json, resume=arguments.resume)
    summary = directory.write_summary(
        "finetune",
        {
            "task": task.name,
            "policy": metadata.policy,
            "mask": str(source.mask),
            "parameter_reduction": recognizer.parameter_reduction,
            "macs_reduction": recognizer.macs_reduction,
            "baseline_test_accuracy": recognizer.baseline_accuracy("test"),
            "validation_accuracy_before": before["reward"],
            "selection_accuracy_before": before["selection"],
            **finetuned.model_dump(),
            "total_seconds": time.perf_counter() - started,
        },
    )
    report = write_finetuning_report(directory.path)
    text = table(
        ["split", "before %", "after %"],
        [
            ["validation", f"{100 * before['reward']:.2f}", f"{100 * finetuned.validation_accuracy:.2f}"],
            ["selection", f"{100 * before['selection']:.2f}", f"{100 * finetuned.selection_accuracy:.2f}"],
            ["test", "-", f"{100 * finetuned.test_accuracy:.2f}"],
        ],
    )
    return {**summary, "_text": f"{text}\n\nfine-tuned compact network: {directory.finetuned}\nreport: {report}"}


def schedule_overrides(arguments: argparse.Namespace) -> list[str]:
    """The flags of the schedule as dotted overrides of the task."""
    given = {name: getattr(arguments, name) for name in [*SCHEDULE, *SWITCHES]}
    if given["milestones"] is not None:
        given["milestones"] = f"[{given['milestones']}]"
    settings = {"seed": arguments.seed, **{name: value for name, value in given.items() if value is not None}}
    return [f"recognizer.finetuning.{name}={_yaml(value)}" for name, value in settings.items()]


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
