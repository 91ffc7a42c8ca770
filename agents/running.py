"""Running one policy on one task: play, choose the final mask, measure it once on the test split."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Never

from tqdm import tqdm

from agents.policy import Policy, Search
from agents.results import Curve, Result
from agents.scores import BestSoFar
from agents.selection import Choice, choose
from envs.episodes import Episode, play
from envs.pruning import PruningEnv, Seconds


@dataclass(frozen=True)
class Run:
    """What came of a run. The environment's recognizer is left in the final state.

    Attributes:
        result: the figures.
        episodes: all episodes that the policy played, its own (last) one first.
        choice: where the final mask comes from.
    """

    result: Result
    episodes: list[Episode]
    choice: Choice


@dataclass(frozen=True)
class Spent:
    """Effort that was spent elsewhere, e.g. in distributed training."""

    environment_steps: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    phases: Seconds = field(default_factory=Seconds)
    rises: tuple[tuple[int, float], ...] = ()
    """Best scores, see :class:`~agents.scores.BestSoFar`."""


def run_policy(
    env: PruningEnv,
    policy: Policy,
    name: str,
    *,
    seed: int,
    progress: bool = False,
    also: Sequence[Episode] = (),
    spent: Spent | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Let a policy prune, then choose and measure its final mask.

    Args:
        env: the environment, unwrapped.
        policy: what acts.
        name: of the policy, for records.
        seed: of the episode.
        progress: show a progress bar of the policy's own episode.
        also: episodes played before, whose masks are candidates, too.
        spent: what they cost.
        on_step: called with the info of every step of the policy's own episode.
    """
    spent = spent or Spent()
    steps, evaluations, phases = env.environment_steps, env.evaluations, env.seconds
    best = BestSoFar(env.objective, env.baseline_accuracy, spent.rises)
    started = time.perf_counter()
    with best.watching(env, spent.evaluations), tqdm(desc=name, unit="step", disable=not progress) as bar:

        def after(info: dict[str, Any]) -> None:
            _advance(bar, info)
            if on_step is not None:
                on_step(info)

        policy.reset(env)
        own = play(env, policy.act, seed=seed, policy=name, on_step=after)
    played = time.perf_counter()
    spent = Spent(
        spent.environment_steps + env.environment_steps - steps,
        spent.evaluations + env.evaluations - evaluations,
        spent.seconds + played - started,
        spent.phases + env.seconds - phases,
    )
    searched = policy.episodes if isinstance(policy, Search) else []
    episodes = [own, *searched, *also]
    choice = choose(env, episodes)
    result = measure(env, choice, own, name, seed, spent, choosing=time.perf_counter() - played)
    return Run(result.model_copy(update={"scores": tuple(best.rises)}), episodes, choice)


def _advance(bar: "tqdm[Never]", info: dict[str, Any]) -> None:
    """Show a step."""
    bar.set_postfix_str(
        f"accuracy {info['accuracy']:.4f}, parameters -{info['parameter_reduction']:.1%}, "
        f"MACs -{info['macs_reduction']:.1%}",
        refresh=False,
    )
    bar.update()


def measure(
    env: PruningEnv, choice: Choice, own: Episode, name: str, seed: int, spent: Spent, *, choosing: float
) -> Result:
    """The figures of a choice, whose state the recognizer is in; the only place that looks at the test split."""
    recognizer = env.recognizer
    reductions, original = recognizer.reductions, recognizer.original_reductions
    return Result(
        task=env.task.name,
        policy=name,
        seed=seed,
        recovery=env.task.recovery.model_dump(),
        objective=env.task.objective.model_dump(),
        baseline_validation_accuracy=env.baseline_accuracy,
        baseline_selection_accuracy=recognizer.baseline_accuracy("selection"),
        baseline_test_accuracy=recognizer.baseline_accuracy("test"),
        validation_accuracy=choice.candidate.measurement.accuracy,
        selection_accuracy=choice.selection_accuracy,
        test_accuracy=recognizer.accuracy("test"),
        parameter_reduction=reductions.parameters,
        macs_reduction=reductions.macs,
        latency_reduction=reductions.latency,
        original_parameter_reduction=original.parameters,
        original_macs_reduction=original.macs,
        episode_return=own.episode_return,
        kept_units=recognizer.kept_units,
        units={layer.name: len(layer) for layer in recognizer.table.layers},
        environment_steps=spent.environment_steps,
        evaluations=spent.evaluations,
        seconds={
            "policy": spent.seconds,
            "zero_out": spent.phases.zero_out,
            "recover": spent.phases.recover,
            "measure": spent.phases.measure,
            "choose": choosing,
        },
        curve=path_to(env, choice),
    )


def path_to(env: PruningEnv, choice: Choice) -> Curve:
    """The path of an episode from the complete network to the chosen state."""
    episode, steps = choice.candidate.episode, choice.candidate.steps
    return Curve(
        accuracy=(env.baseline_accuracy, *episode.accuracies[:steps]),
        parameter_reduction=(0.0, *episode.parameter_reductions[:steps]),
        macs_reduction=(0.0, *episode.macs_reductions[:steps]),
        latency_reduction=(None if episode.latency_reductions is None else (0.0, *episode.latency_reductions[:steps])),
    )
