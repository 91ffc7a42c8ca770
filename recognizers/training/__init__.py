"""Supervised training: from scratch, the final fine-tuning, and a few steps of recovery."""

from recognizers.training.config import RetrainingConfig, TrainingConfig
from recognizers.training.distillation import Teacher
from recognizers.training.loop import TrainingResult, sgd_steps, train
from recognizers.training.state import EpochRecord

__all__ = [
    "EpochRecord",
    "RetrainingConfig",
    "Teacher",
    "TrainingConfig",
    "TrainingResult",
    "sgd_steps",
    "train",
]
