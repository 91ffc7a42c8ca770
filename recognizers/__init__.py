"""Recognizers: networks that are being pruned, with their data, recovery, costs and files. No RL, no Ray.

The public names are imported on first use, so that `zeroout --help` does not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recognizers.compact_file import load_compact, save_compact
    from recognizers.config import build_recognizer
    from recognizers.costs import Cost, CostModel, count_cost
    from recognizers.dependency import build_unit_table
    from recognizers.errors import ZeroOutError
    from recognizers.masks import MaskMetadata, load_mask, save_mask
    from recognizers.recognizer import Recognizer
    from recognizers.units import UnitTable

_MODULES = {
    "compact_file": ("load_compact", "save_compact"),
    "config": ("build_recognizer",),
    "costs": ("Cost", "CostModel", "count_cost"),
    "errors": ("ZeroOutError",),
    "masks": ("MaskMetadata", "load_mask", "save_mask"),
    "recognizer": ("Recognizer",),
    "dependency": ("build_unit_table",),
    "units": ("UnitTable",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Cost",
    "CostModel",
    "MaskMetadata",
    "Recognizer",
    "UnitTable",
    "ZeroOutError",
    "build_recognizer",
    "build_unit_table",
    "count_cost",
    "load_compact",
    "load_mask",
    "save_compact",
    "save_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recognizers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"recognizers.{_HOMES[name]}"), name)
