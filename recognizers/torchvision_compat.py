"""torchvision, importable also where its compiled operators do not match the installed torch.

A torchvision wheel built for CUDA cannot load its extension beside a CPU build of torch. Its models and data sets do
not need the extension, but ``import torchvision`` registers fake kernels for ``nms`` and ``qnms`` and so fails with
"operator torchvision::nms does not exist". Declaring the two operators is enough for the import to succeed.

Use ``from recognizers.torchvision_compat import torchvision`` everywhere instead of ``import torchvision``.
"""

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # the declarations live as long as this object

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    _library = torch.library.Library("torchvision", "DEF")
    for _operator in ("nms", "qnms"):
        _library.define(_operator + _SCHEMA)
    import torchvision

__all__ = ["torchvision"]
