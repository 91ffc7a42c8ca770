"""Recognizers: networks that are being pruned, with their data, recovery, costs and files. No RL, no Ray."""

from recognizers.costs import Cost, CostModel, count_cost
from recognizers.errors import ZeroOutError
from recognizers.masks import MaskMetadata, load_mask, save_mask
from recognizers.recognizer import Recognizer
from recognizers.units import UnitTable, build_unit_table

__all__ = [
    "Cost",
    "CostModel",
    "MaskMetadata",
    "Recognizer",
    "UnitTable",
    "ZeroOutError",
    "build_unit_table",
    "count_cost",
    "load_mask",
    "save_mask",
]
