"""Cases of steps: a whole episode by zeroout and by the naive loop, timed, or compared at every step.

Columns of ``steps.csv`` whose names do not say it all; those in ``_s`` are seconds:

- ``naive_s``: mean of the ``naive_steps_run`` steps that the naive loop took, times ``steps``; ``zeroout_s``: sum of
  all steps.
- ``first_step_s``, ``last_steps_s``: zeroout's first step, and the mean of the last tenth of its steps.
- ``full_first_step_s``, ``full_last_step_s``: the first and the last step again, with nothing remembered before them;
  ``step_cost_ratio`` is last over first, ``macs_ratio`` the same ratio of the MACs of their networks.
- ``peak_gmacs_per_s``: what a large matrix product reaches, in 10^9 multiply-accumulates per second, in the precision
  ``computes_in`` and on the same threads.
- ``peak_share``: MACs that the compact networks of the episode need where nothing is remembered, per second of
  ``zeroout_s``, over that peak; so it can exceed 1 where much is remembered. ``peak_share_full_first_step``: that of
  ``full_first_step_s``, where nothing is.
- ``peak_rss_mib``: largest resident memory of the process, the naive loop's network and images included.
- ``different_predictions``: images of which zeroout predicts another class than the naive loop, at the worst step that
  was compared; ``max_accuracy_difference``: a fraction, at the worst step.
"""

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields

import torch
from tqdm import tqdm

from recognizers.recognizer import Recognizer
from recognizers.recovery import FinetuneRecovery, Recovery
from tests.benchmarks.cases import Case
from tests.benchmarks.episode import Plan, Step, plan_episode, play
from tests.benchmarks.machine import matmul_peak, peak_memory
from tests.benchmarks.naive import Agreement, NaiveLoop
from tests.benchmarks.tables import Row


def time_steps(
    case: Case, *, seed: int, naive_every: int, max_steps: int | None, repeats: int
) -> tuple[Row, list[Row]]:
    """Play the episode of a case.

    Args:
        case: what.
        seed: of the episode.
        naive_every: the naive loop takes every so many of the steps, and the first and the last one.
        max_steps: stop early; None for the whole episode.
        repeats: full steps without caches, of which the median counts.

    Returns:
        The row of the case, and a row per step.
    """
    env = case.environment()
    recognizer = env.recognizer
    peak = matmul_peak(recognizer.baseline.dtype, recognizer.device)
    plan = plan_episode(env, seed=seed, max_steps=max_steps)
    naive = NaiveLoop(recognizer)
    naive.warm_up()
    steps = list(_shown(case, plan, play(env, naive, plan, seed=seed, naive_every=naive_every), times=True))
    memory = peak_memory()
    images = images_per_step(recognizer.recovery, len(recognizer.splits.reward.labels), len(recognizer.splits.train[1]))
    first, last = full_steps(recognizer, plan, (0, len(plan) - 1), repeats)
    naive_seconds = [step.naive for step in steps if step.naive is not None]
    naive_total, total = statistics.mean(naive_seconds) * len(steps), sum(step.total for step in steps)
    row: Row = {
        **case.key,
        "steps": len(steps),
        "macs_reduction": steps[-1].macs_reduction,
        "naive_s": naive_total,
        "zeroout_s": total,
        "ratio": naive_total / total,
        "naive_steps_run": len(naive_seconds),
        **{f"{phase}_s": sum(getattr(step.seconds, phase) for step in steps) for phase in PHASES},
        "first_step_s": steps[0].total,
        "last_steps_s": statistics.mean(step.total for step in steps[-max(1, len(steps) // 10) :]),
        "full_first_step_s": first,
        "full_last_step_s": last,
        "step_cost_ratio": last / first,
        "macs_ratio": float(plan.macs[-1] / plan.macs[1]),
        "peak_gmacs_per_s": peak / 1e9,
        "peak_share": float(plan.macs[1:].sum()) * images / total / peak,
        "peak_share_full_first_step": float(plan.macs[1]) * images / first / peak,
        "peak_rss_mib": memory,
        **_worst(steps),
        **case.circumstances(env),
    }
    return row, [{**case.key, **_step_row(step)} for step in steps]


def verify_steps(case: Case, *, seed: int, max_steps: int | None) -> tuple[Row, list[Row]]:
    """Compare every step of a case's episode with the dense masked network in float32, without timing anything.

    Returns:
        The row of the case, and a row per step.
    """
    env = case.environment()
    plan = plan_episode(env, seed=seed, max_steps=max_steps)
    # The layout changes the time alone.
    naive = NaiveLoop(env.recognizer, memory_format=torch.channels_last)
    steps = list(_shown(case, plan, play(env, naive, plan, seed=seed, naive_every=1), times=False))
    row: Row = {**case.key, "steps": len(steps), **_worst(steps), **case.circumstances(env)}
    return row, [{**case.key, **_agreement_row(step)} for step in steps]


PHASES = ("zero_out", "recover", "measure")
"""Fields of ``envs.pruning.Seconds``."""


def images_per_step(recovery: Recovery, reward: int, train: int) -> int:
    """Forward passes of a step in images, when nothing is remembered; a backward pass counts as two of them.

    Args:
        recovery: of the step.
        reward: images of the reward split.
        train: training images.
    """
    calibration = min(recovery.calibration_images, train)
    if isinstance(recovery, FinetuneRecovery):
        return reward + calibration + 3 * recovery.steps * min(recovery.batch_size, train)
    return reward + calibration


def full_steps(recognizer: Recognizer, plan: Plan, steps: Sequence[int], repeats: int) -> list[float]:
    """Median seconds of steps of the plan, counted from 0, with every memo and cache dropped before each.

    They are taken in turn, as others slow the machine down for minutes. The recognizer arrives at each from base
    weights in a single recovery: time depends on the mask, not on the values. Before a step it measures, as it has in
    an episode; else the step would pay for what the weights copied back have driven out of the processor's cache.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for _, (step, taken) in itertools.product(range(repeats), zip(steps, seconds, strict=True)):
        recognizer.load_mask(plan.masks[step])
        recognizer.accuracy("reward")
        recognizer.forget()
        generator = torch.Generator().manual_seed(0)
        started = time.perf_counter()
        recognizer.zero_out(plan.removed(step))
        recognizer.recover(generator)
        recognizer.accuracy("reward")
        taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def _shown(case: Case, plan: Plan, steps: Iterable[Step], *, times: bool) -> Iterator[Step]:
    """The same steps, with a progress bar."""
    ours, naive, different = [], [], 0
    with tqdm(steps, desc=case.name, total=len(plan), unit="step") as bar:
        for step in bar:
            ours.append(step.total)
            if step.naive is not None and step.agreement is not None:
                naive.append(step.naive)
                different = max(different, step.agreement.different_predictions)
            figures = [f"MACs -{step.macs_reduction:.1%}", f"at most {different} predictions differ"]
            if times:
                mean, naive_mean = statistics.mean(ours), statistics.mean(naive)
                figures.append(f"{mean:.3g} s, naive {naive_mean:.3g} s, x{naive_mean / mean:.3g}")
            bar.set_postfix_str(", ".join(figures))
            yield step


def _worst(steps: list[Step]) -> Row:
    """The largest differences of an episode."""
    agreements = [step.agreement for step in steps if step.agreement is not None]
    return {
        "different_predictions": max(agreement.different_predictions for agreement in agreements),
        "max_logit_difference": max(agreement.logit_difference for agreement in agreements),
        "max_accuracy_difference": max(agreement.accuracy_difference for agreement in agreements),
    }


def _step_row(step: Step) -> Row:
    seconds: Row = {f"{phase}_s": getattr(step.seconds, phase) for phase in PHASES}
    return {**_agreement_row(step), **seconds, "zeroout_s": step.total, "naive_s": step.naive}


def _agreement_row(step: Step) -> Row:
    return {
        "step": step.number,
        "action": step.action,
        "macs_reduction": step.macs_reduction,
        "accuracy": step.accuracy,
        **dict.fromkeys(field.name for field in fields(Agreement)),
        **({} if step.agreement is None else asdict(step.agreement)),
    }
