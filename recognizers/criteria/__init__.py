"""Criteria: how important each unit is. The least important go first."""

from recognizers.criteria import consumers, flow, gradients, ranks, weights
from recognizers.criteria.registry import (
    Criterion,
    comparable_scores,
    criteria,
    criterion,
    layer_normalised,
    register_criterion,
)

__all__ = [
    "Criterion",
    "comparable_scores",
    "consumers",
    "criteria",
    "criterion",
    "flow",
    "gradients",
    "layer_normalised",
    "ranks",
    "register_criterion",
    "weights",
]
