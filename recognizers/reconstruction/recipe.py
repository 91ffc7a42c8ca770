"""How the weights of a pruned network are reconstructed, as the parts that do it need to know."""

from dataclasses import dataclass
from typing import Literal

Form = Literal["asymmetric", "symmetric", "independent", "unify"]


@dataclass(frozen=True)
class Recipe:
    """Settings of a reconstruction; :class:`recognizers.recovery.ReconstructRecovery` says what they mean."""

    form: Form = "asymmetric"
    images: int = 2000
    positions: int = 32
    ridge: float = 1e-4
    refit: float | None = 0.01
    rectified: int = 3
    batch_size: int = 250
