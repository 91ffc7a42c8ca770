"""Criteria: how important each unit is. The least important go first."""

from recognizers.criteria import consumers, weights
from recognizers.criteria.registry import Criterion, criteria, criterion, layer_normalised, register_criterion

__all__ = [
    "Criterion",
    "consumers",
    "criteria",
    "criterion",
    "layer_normalised",
    "register_criterion",
    "weights",
]
