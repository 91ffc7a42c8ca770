"""The trained controller, by name: ``r2d2:RUN_DIRECTORY`` or ``r2d2:CHECKPOINT``. Importing this registers it."""

from pathlib import Path
from typing import Literal

from agents.policy import Policy, register_policy
from recognizers.errors import ConfigurationError


@register_policy("r2d2")
def r2d2_policy(
    source: str | None = None, seed: int = 0, k: int | None = None, rank: Literal["value", "efficiency"] | None = None
) -> Policy:
    """The greedy policy of a trained controller.

    Args:
        source: run directory of ``zeroout train``, or a checkpoint.
        seed: not used; the policy draws nothing.
        k: proposals that are measured per step, 1 for none; by default as in training.
        rank: what the best of them is, see :class:`~agents.r2d2.policy.R2D2Controller`; by default as in training.
    """
    # RLlib takes seconds to import, and most policies do without it.
    from agents.r2d2.logs import quiet  # noqa: PLC0415
    from agents.r2d2.policy import R2D2Controller  # noqa: PLC0415

    if source is None:
        raise ConfigurationError("policy 'r2d2' needs a trained controller: r2d2:RUN_DIRECTORY or r2d2:CHECKPOINT")
    quiet()
    best = Path(source) / "checkpoints" / "best"
    return R2D2Controller(best if best.is_dir() else source, k, rank)
