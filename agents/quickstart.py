"""The quickstart: recognizer, controls, controller, comparison, fine-tuning, report."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agents.controller import train_controller
from agents.policy import make_policy
from agents.r2d2.settings import R2D2Settings
from agents.report import save_overview, write_report
from agents.results import Result
from agents.run_directory import RunDirectory, RunSettings
from agents.running import Run, run_policy
from agents.selection import restore, worth
from agents.workbench import finetune_outcome, open_environment, save_outcome
from envs.tasks import TaskConfig

CONTROLS = ("random", "uniform:l1", "global:l1", "lookahead")


@dataclass(frozen=True)
class Quickstart:
    """What came of it.

    Attributes:
        results: of every policy.
        best: the one of them that was fine-tuned.
        summary: as written to ``summary.json``.
    """

    results: list[Result]
    best: Result
    summary: dict[str, Any]


def quickstart(
    task: TaskConfig,
    controller: R2D2Settings,
    directory: RunDirectory,
    *,
    seed: int,
    progress: bool,
    say: Callable[[str], None],
) -> Quickstart:
    """Go the whole way once.

    Args:
        task: what to prune.
        controller: how to train the controller.
        directory: a new run's.
        seed: of policies and controller.
        progress: show progress bars.
        say: told what is about to happen.
    """
    started = time.perf_counter()
    say(f"1/4  {task.name}: the recognizer")
    env = open_environment(task, directory, progress=progress)
    directory.write_settings(
        RunSettings(command="quickstart", task=env.task, seed=seed, controller=controller.model_dump())
    )

    say(f"2/4  the controls: {', '.join(CONTROLS)}")
    runs: list[Run] = []
    for name in CONTROLS:
        runs.append(run_policy(env, make_policy(name, seed=seed), name, seed=seed, progress=progress))
        directory.add_episodes(runs[-1].episodes)
        save_outcome(directory, env, runs[-1].result, name=name)

    say(f"3/4  R2D2, {controller.total_steps:,} environment steps")
    runs.append(train_controller(controller, directory, env, seed=seed, progress=progress))
    save_outcome(directory, env, runs[-1].result, name="r2d2")

    best = max(runs, key=lambda done: worth(env, done.choice))
    say(f"4/4  fine-tuning the best mask, by {best.result.policy}")
    restore(env, best.choice.candidate)
    save_outcome(directory, env, best.result)
    tuned = best.result.model_copy(update={"finetuned": finetune_outcome(directory, env, progress=progress)})
    results = [tuned if done is best else done.result for done in runs]
    summary = directory.write_summary(
        "quickstart",
        {
            "task": task.name,
            "results": [result.model_dump() for result in results],
            "best": tuned.policy,
            "total_seconds": time.perf_counter() - started,
        },
    )
    save_overview(directory.path)
    write_report(directory.path)
    return Quickstart(results, tuned, summary)
