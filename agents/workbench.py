"""What the commands share: an environment that belongs to a run directory, and saving what came of a run."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from agents.baselines.pro import ProAllocation
from agents.epoch_log import epoch_log
from agents.finetuning import finetune
from agents.policy import Policy
from agents.results import Finetuned, Result
from agents.run_directory import RunDirectory
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, make_recognizer
from recognizers.compact_file import save_compact
from recognizers.config import save_weights
from recognizers.evaluation import Precision
from recognizers.files import write_json
from recognizers.latency_table import read_latency_table, write_latency_table
from recognizers.masks import MaskMetadata, save_mask
from recognizers.recognizer import Recognizer
from recognizers.settings import validate


def open_environment(task: TaskConfig, run: RunDirectory, *, progress: bool) -> PruningEnv:
    """An environment whose base weights lie in the run directory, trained on demand where the task allows it.

    The environment's task names those weights, a copy of its latency table, where it has one, and the precision that
    it computes in, so that it can be built again anywhere that sees the directory.
    """
    task = keep_latency_table(task, run.latency_table)
    recognizer = open_recognizer(task, run, progress=progress)
    task = with_precision(with_weights(task, run.recognizer), recognizer.baseline.resolved_precision)
    return PruningEnv(task, recognizer=recognizer)


def open_recognizer(task: TaskConfig, run: RunDirectory, *, progress: bool) -> Recognizer:
    """A recognizer whose base weights lie in the run directory, trained on demand where the task allows it."""
    if run.recognizer.is_file():
        task = with_weights(task, run.recognizer)
    recognizer = make_recognizer(
        task, progress=progress, on_epoch=lambda record: run.add_line(run.training, asdict(record))
    )
    if not run.recognizer.is_file():
        baseline = recognizer.baseline
        save_weights(run.recognizer, baseline.state, baseline.blueprint, baseline.provenance)
    return recognizer


def task_of(run: RunDirectory, overrides: Iterable[str] = ()) -> TaskConfig:
    """The task of an existing run, on the base weights and with the latency table in its directory."""
    tree = run.read_settings().task.model_dump(mode="json")
    task = with_latency_table(validate(TaskConfig, tree, str(run.config), overrides), run.latency_table)
    return with_weights(task, run.recognizer) if run.recognizer.is_file() else task


def with_weights(task: TaskConfig, path: Path) -> TaskConfig:
    """The same task on the weights in ``path``."""
    return task.model_copy(update={"recognizer": task.recognizer.model_copy(update={"weights": str(path.absolute())})})


def with_precision(task: TaskConfig, precision: Precision) -> TaskConfig:
    """The same task in a precision, where it leaves that to the device."""
    if task.recognizer.precision != "auto":
        return task
    return task.model_copy(update={"recognizer": task.recognizer.model_copy(update={"precision": precision})})


def with_latency_table(task: TaskConfig, path: Path) -> TaskConfig:
    """The same task with its latency table in ``path``, where it has one and the file exists."""
    if task.recognizer.latency_table is None or not path.is_file():
        return task
    recognizer = task.recognizer.model_copy(update={"latency_table": str(path.absolute())})
    return task.model_copy(update={"recognizer": recognizer})


def keep_latency_table(task: TaskConfig, path: Path) -> TaskConfig:
    """The same task with its latency table, where it has one, in ``path``; it is copied there first.

    Raises:
        FileError: the table cannot be read.
        ConfigurationError: it is no latency table.
    """
    if task.recognizer.latency_table is not None and not path.is_file():
        write_latency_table(path, read_latency_table(task.recognizer.latency_table))
    return with_latency_table(task, path)


def save_outcome(run: RunDirectory, env: PruningEnv, result: Result, *, name: str | None = None) -> None:
    """Write mask and compact network of the recognizer's current state.

    Args:
        run: where.
        env: whose recognizer is in the result's state.
        result: for the mask's metadata.
        name: of the mask among those of several policies; the run's best one by default, with its compact network.
    """
    recognizer = env.recognizer
    metadata = MaskMetadata(
        architecture=recognizer.architecture,
        task=result.task,
        base_sha256=recognizer.base_sha256,
        policy=result.policy,
        seed=result.seed,
        baseline_validation_accuracy=result.baseline_validation_accuracy,
        validation_accuracy=result.validation_accuracy,
        parameter_reduction=result.parameter_reduction,
        macs_reduction=result.macs_reduction,
    )
    if name is None:
        save_mask(run.mask, recognizer.table, recognizer.mask, metadata)
        save_compact(run.compact, recognizer.compact(), recognizer.blueprint)
    else:
        # A policy's name may hold colons and slashes.
        file = re.sub(r"[^\w.-]+", "_", name)
        save_mask(run.masks / f"{file}.mask.safetensors", recognizer.table, recognizer.mask, metadata)


def save_plans(run: RunDirectory, policy: Policy) -> None:
    """Write what PRO has measured; nothing for other policies."""
    if isinstance(policy, ProAllocation):
        write_json(run.polylines, [plan.model_dump() for plan in policy.plans])


def finetune_outcome(run: RunDirectory, env: PruningEnv, *, progress: bool, resume: bool = False) -> Finetuned:
    """Fine-tune the recognizer's current compact network as its task says, and save the network."""
    with epoch_log(run, "finetuning") as on_epoch:
        network, finetuned = finetune(
            env.recognizer,
            env.task.recognizer.finetuning,
            progress=progress,
            checkpoint=run.path / "finetuning.checkpoint",
            resume=resume,
            on_epoch=on_epoch,
        )
    save_compact(run.finetuned, network, env.recognizer.blueprint)
    return finetuned
