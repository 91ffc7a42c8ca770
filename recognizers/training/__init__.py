"""Supervised training by SGD: from scratch, the final fine-tuning, and a few steps of recovery."""

from recognizers.training.config import RetrainingConfig, TrainingConfig
from recognizers.training.loop import TrainingResult, distillation_loss, sgd_steps, train
from recognizers.training.state import EpochRecord

__all__ = [
    "EpochRecord",
    "RetrainingConfig",
    "TrainingConfig",
    "TrainingResult",
    "distillation_loss",
    "sgd_steps",
    "train",
]
