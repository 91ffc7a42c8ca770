"""Pruned networks for other programs: `torch.nn.utils.prune` buffers, compact weights with kept indices, ONNX."""

from recognizers.export.kept import KeptChannels, KeptFile, export_compact, load_pruned, read_kept, rebuild
from recognizers.export.onnx_file import export_onnx
from recognizers.export.pruned import PrunedNetwork, check_agreement
from recognizers.export.rounding import round_up
from recognizers.export.torch_prune import export_torch_prune, load_torch_prune, parameter_masks

__all__ = [
    "KeptChannels",
    "KeptFile",
    "PrunedNetwork",
    "check_agreement",
    "export_compact",
    "export_onnx",
    "export_torch_prune",
    "load_pruned",
    "load_torch_prune",
    "parameter_masks",
    "read_kept",
    "rebuild",
    "round_up",
]
