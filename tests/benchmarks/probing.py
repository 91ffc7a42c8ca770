"""Cases of probing: what all actions would give, by ``env.probe`` and by stepping each of them.

Seconds of steps in ``probe.csv`` are those of a sample, scaled to all actions. ``steps_cold_s``: every step begins with
nothing remembered, as one by one in environments of their own; ``steps_shuffled_s`` and ``steps_in_order_s``: one
environment steps them in a shuffled order or layer by layer, so that each finds tensors that earlier ones have kept.
``share_...``: the probe's seconds over theirs.
"""

import time
from typing import Never

import numpy as np
from tqdm import tqdm

from envs.objectives import Measurement
from tests.benchmarks.cases import Case
from tests.benchmarks.tables import Row


def time_probe(case: Case, *, seed: int, sample: int) -> Row:
    """Probe all actions of the complete network, and step a sample of them from the same state, in three ways.

    Each of the four starts from an environment of its own that remembers nothing. A step's time is that of ``step``
    alone, without the ``reset`` that leads back.

    Args:
        case: what.
        seed: of the episodes and of the shuffled order.
        sample: actions that are stepped, spread evenly over the layers; their seconds are scaled to all actions.

    Returns:
        The row of the case. ``unequal`` counts the steps, in all three ways, that gave other figures than the probe.
    """
    env = case.environment()
    env.reset(seed=seed)
    actions = env.valid_actions()
    # Evenly spaced rather than every n-th: n may divide the blocks per layer, and then it is always the same block.
    chosen = actions[np.unique(np.linspace(0, len(actions) - 1, min(sample, len(actions))).round().astype(int))]
    with tqdm(desc=f"{case.name} probe", total=len(actions) + 3 * len(chosen), unit="evaluation") as bar:
        started = time.perf_counter()
        probes = env.probe(actions.tolist())
        probe_seconds = time.perf_counter() - started
        bar.update(len(actions))
        expected = {probe.action: probe.measurement for probe in probes}
        shuffled = np.random.default_rng(seed).permutation(chosen)
        seconds: dict[str, float] = {}
        unequal = 0
        for way, order in (("cold", shuffled), ("shuffled", shuffled), ("in_order", chosen)):
            spent, differing = _step_each(case, order, expected, seed=seed, cold=way == "cold", bar=bar)
            seconds[way] = spent * len(actions) / len(chosen)
            unequal += differing
    return {
        **case.key,
        "actions": len(actions),
        "actions_stepped": len(chosen),
        "probe_s": probe_seconds,
        **{f"steps_{way}_s": spent for way, spent in seconds.items()},
        **{f"share_{way}": probe_seconds / spent for way, spent in seconds.items()},
        "unequal": unequal,
        **case.circumstances(env),
    }


def _step_each(
    case: Case, actions: np.ndarray, expected: dict[int, Measurement], *, seed: int, cold: bool, bar: "tqdm[Never]"
) -> tuple[float, int]:
    """Seconds of one step per action, each from the complete network, and how many gave unexpected figures."""
    env = case.environment()
    total, unequal = 0.0, 0
    for action in actions.tolist():
        env.reset(seed=seed)
        if cold:
            env.recognizer.forget()
        started = time.perf_counter()
        env.step(action)
        total += time.perf_counter() - started
        unequal += env.measurement != expected[action]
        bar.update()
        bar.set_postfix_str(f"{unequal} steps differ from the probe")
    return total, unequal
