"""One run of a benchmark, in whatever process: it ends in a row, come what may."""

import os
import random
import shutil
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agents import limits
from agents.benchmark.config import Entry, Key
from agents.benchmark.rows import Row
from agents.limits import TimeLimitExceeded, attempt
from agents.policy import make_policy, suited
from agents.results import Result
from agents.run_directory import RunDirectory, RunSettings
from agents.running import Run, run_policy
from agents.workbench import finetune_outcome, open_recognizer, save_outcome, save_plans, with_precision, with_weights
from envs.episodes import write_episodes
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, make_recognizer
from recognizers.baseline import Baseline
from recognizers.device import device_name
from recognizers.errors import ZeroOutError, in_one_line
from recognizers.recognizer import Recognizer

if TYPE_CHECKING:
    from agents.r2d2.settings import R2D2Settings


@dataclass(frozen=True)
class Base:
    """A base network that several runs share.

    Attributes:
        task: of one of the runs; says how to train it.
        directory: where its weights lie, or will.
        source: the trained base whose filters a preparation replaces; None where weights come from elsewhere.
    """

    task: TaskConfig
    directory: Path
    source: "Base | None" = None

    def open(self, *, progress: bool) -> Recognizer:
        """The recognizer; trained and saved, where there are no weights yet.

        Raises:
            ZeroOutError: data or weights are missing, or do not fit.
        """
        run, task = RunDirectory.create(self.directory, "benchmark", resume=True), self.task
        if self.source is not None and not run.recognizer.is_file():
            self.source.open(progress=progress)
            task = with_weights(task, RunDirectory(self.source.directory).recognizer)
        return open_recognizer(task, run, progress=progress)


@dataclass(frozen=True)
class Job:
    """What a run needs to know, in plain values that any process can read.

    Attributes:
        key: names the run.
        entry: the policy.
        policy: its name; the entry's, or that of a controller which another run trains.
        task: resolved.
        base: the network that it starts from.
        directory: of the run.
        seconds: that it may take.
        controller: settings of the one that is trained, if the policy is that.
        settings: of the policy, beside those of the entry.
        home: working directory, to which relative paths belong.
    """

    key: Key
    entry: Entry
    policy: str
    task: TaskConfig
    base: Base
    directory: Path
    seconds: float
    controller: "R2D2Settings | None" = None
    settings: dict[str, Any] = field(default_factory=dict)
    home: Path = field(default_factory=Path.cwd)

    @property
    def spreads(self) -> bool:
        """Whether a controller is trained that has processes of its own, beside that of the run."""
        settings = self.controller
        return settings is not None and bool(settings.sampling.num_env_runners or settings.learners.num_learners)

    def failed(self, reason: str) -> Row:
        """The row of a failure."""
        return Row(task=self.key.task, label=self.key.label, seed=self.key.seed, failure=reason)


def perform(job: Job, baseline: Baseline, *, progress: bool = False) -> Row:
    """Run a policy on a base network.

    Whatever goes wrong becomes a row with the reason; the traceback is in ``failure.txt`` of the run's directory.
    """
    os.chdir(job.home)
    _seed_all(job.key.seed)
    baseline.forget()  # what another run measured would spare this one its seconds
    failure = job.directory / "failure.txt"
    failure.unlink(missing_ok=True)
    return attempt(
        lambda: _perform(job, baseline, progress=progress),
        job.seconds,
        failure,
        lambda error: job.failed(_reason(job, error)),
    )


def out_of_time(seconds: float) -> str:
    """The reason of a run that took too long."""
    return f"not finished within {seconds:g} seconds (time_limit)"


def _perform(job: Job, baseline: Baseline, *, progress: bool) -> Row:
    run = RunDirectory(job.directory)
    if job.controller is None and not (run.path / "finetuning.checkpoint").exists():
        shutil.rmtree(run.path, ignore_errors=True)  # left by a run that was cut short
    task = with_weights(job.task, RunDirectory(job.base.directory).recognizer)
    if job.controller is not None:
        env = _environment(task, baseline)
        done = _train(job, job.controller, run, env, progress=progress)
        result = done.result
    else:
        policy = make_policy(job.policy, seed=job.key.seed, **{**job.entry.settings, **job.settings})
        env = _environment(suited(task, policy), baseline)
        run.write_settings(RunSettings(command="benchmark", task=env.task, seed=job.key.seed, policy=job.policy))
        done = run_policy(env, policy, job.key.label, seed=job.key.seed)
        write_episodes(run.episodes, done.episodes[:1])
        result = done.result
        save_outcome(run, env, result)
        save_plans(run, policy)
    if job.entry.finetune:
        finetuned = finetune_outcome(run, env, progress=progress, resume=True)
        result = result.model_copy(update={"finetuned": finetuned})
    return _row(job, env, done, result)


def _row(job: Job, env: PruningEnv, done: Run, result: Result) -> Row:
    chosen, own = done.choice.candidate.episode, done.episodes[0]
    return Row(
        task=job.key.task,
        label=job.key.label,
        seed=job.key.seed,
        result=result,
        actions=env.task.actions.kind,
        chosen=chosen,
        steps=done.choice.candidate.steps,
        own=None if own is chosen else own,
        device=device_name(env.recognizer.device),
        precision=env.recognizer.baseline.resolved_precision,
    )


def _environment(task: TaskConfig, baseline: Baseline) -> PruningEnv:
    task = with_precision(task, baseline.resolved_precision)
    return PruningEnv(task, recognizer=make_recognizer(task, baseline=baseline))


def _train(job: Job, controller: "R2D2Settings", run: RunDirectory, env: PruningEnv, *, progress: bool) -> Run:
    # RLlib takes seconds to import, and most policies do without it.
    from agents.controller import train_controller  # noqa: PLC0415

    resume = (run.checkpoints / "progress.json").is_file()
    if not resume:
        shutil.rmtree(run.path, ignore_errors=True)  # left by a run that was killed before its first checkpoint
    run = RunDirectory.create(run.path, "benchmark", resume=True)
    run.write_settings(
        RunSettings(
            command="benchmark",
            task=env.task,
            seed=job.key.seed,
            policy=job.key.label,
            controller=controller.model_dump(),
        )
    )
    done = train_controller(
        controller, run, env, seed=job.key.seed, resume=resume, progress=progress, name=job.key.label
    )
    save_outcome(run, env, done.result)
    return done


def _seed_all(seed: int) -> None:
    """Seed the global generators, which a user's policy may draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _reason(job: Job, error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, TimeLimitExceeded):
        return f"{out_of_time(job.seconds)}{_place(error)}"
    text = in_one_line(error) or "no message"
    if isinstance(error, ZeroOutError):
        return f"{type(error).__name__}: {text}"
    return f"{type(error).__name__}: {text}{_place(error)}"


def _place(error: BaseException) -> str:
    """Where it happened; the code that watches the time is not meant."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != limits.__file__]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
