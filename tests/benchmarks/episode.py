"""The episode that all cases play: planned in advance, then taken step by step by zeroout and by the naive loop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from envs.pruning import PruningEnv, Seconds
from tests.benchmarks.naive import Agreement, NaiveLoop

MACS_REDUCTION = 0.9
"""The episode stops here, or where no action is valid any more."""


@dataclass(frozen=True)
class Plan:
    """An episode.

    Attributes:
        actions: in order.
        masks: before the first step and after every step, ``[steps + 1, n_units]`` int8.
        macs: of the compact network under each of the masks, for one image, ``[steps + 1]``.
    """

    actions: tuple[int, ...]
    masks: np.ndarray
    macs: np.ndarray

    def __len__(self) -> int:
        return len(self.actions)

    def removed(self, step: int) -> np.ndarray:
        """The units that a step, counted from 0, removes, ``[k]`` int64."""
        return np.flatnonzero(self.masks[step] != self.masks[step + 1])


def plan_episode(env: PruningEnv, *, seed: int, max_steps: int | None = None) -> Plan:
    """Draw random valid actions until :data:`MACS_REDUCTION` is reached; nothing is measured.

    Args:
        env: whose actions; it stays as it is.
        seed: of the draws.
        max_steps: at most so many.
    """
    generator, costs = np.random.default_rng(seed), env.recognizer.costs
    mask = np.ones(env.recognizer.n_units, dtype=np.int8)
    actions: list[int] = []
    masks = [mask]
    while len(actions) != max_steps and costs.reductions(mask)[1] < MACS_REDUCTION:
        valid = np.flatnonzero(env.actions.valid(mask))
        if not valid.size:
            break
        action = int(generator.choice(valid))
        mask = mask.copy()
        mask[env.actions.units(action, mask)] = 0
        actions.append(action)
        masks.append(mask)
    return Plan(tuple(actions), np.stack(masks), np.array([costs(mask).macs for mask in masks]))


@dataclass(frozen=True)
class Step:
    """A step as it was measured.

    Attributes:
        number: counted from 1.
        action: that was taken.
        macs_reduction: after it, a fraction.
        accuracy: after it, a fraction.
        seconds: zeroout's, by phase.
        total: zeroout's seconds for all of the step.
        naive: the naive loop's seconds; None where it did not run.
        agreement: of the two; None where the naive loop did not run.
    """

    number: int
    action: int
    macs_reduction: float
    accuracy: float
    seconds: Seconds
    total: float
    naive: float | None
    agreement: Agreement | None


def play(env: PruningEnv, naive: NaiveLoop, plan: Plan, *, seed: int, naive_every: int) -> Iterator[Step]:
    """Take the steps of a plan, and every so many of them by the naive loop as well, from zeroout's state before it.

    Args:
        env: reset here.
        naive: of the same recognizer.
        plan: of the same environment.
        seed: of the episode, from which recoveries draw.
        naive_every: the naive loop takes the first and the last step and every ``naive_every``-th one between.
    """
    recognizer, generator = env.recognizer, torch.Generator()
    env.reset(seed=seed)
    for index, action in enumerate(plan.actions):
        with_naive = index % naive_every == 0 or index == len(plan) - 1
        if with_naive:
            # What the recovery is about to draw from; the environment has no other way to tell.
            generator.set_state(env._generator.get_state())
            if not recognizer.recovery.memoryless:  # otherwise base weights and mask are all there is to take over
                naive.load(recognizer.network.state_dict())
        started = time.perf_counter()
        _, _, _, _, info = env.step(action)
        total = time.perf_counter() - started
        seconds, agreement = None, None
        if with_naive:
            started = time.perf_counter()
            naive_logits, naive_accuracy = naive.step(plan.masks[index + 1], generator)
            seconds = time.perf_counter() - started
            agreement = Agreement.of(recognizer.logits(), info["accuracy"], naive_logits, naive_accuracy)
        yield Step(
            index + 1, action, info["macs_reduction"], info["accuracy"], info["seconds"], total, seconds, agreement
        )
