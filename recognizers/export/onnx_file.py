"""ONNX files of compact networks, checked by ONNX Runtime before they are written. Needs the extra ``onnx``."""

import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.data import Normalization
from recognizers.errors import ConfigurationError, in_one_line
from recognizers.export.pruned import PrunedNetwork
from recognizers.files import write_bytes

INPUT, OUTPUT = "images", "logits"


class Normalized(nn.Module):
    """A network that takes images as files have them.

    Args:
        network: takes normalised float32 images.
        normalization: of the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(normalization.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(normalization.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """From uint8 ``[N, C, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.network((images.float() / 255 - self.mean) / self.std)
        return logits


def export_onnx(path: str | os.PathLike[str], pruned: PrunedNetwork, *, normalization: bool = False) -> float:
    """Write the compact network as ONNX, with any batch size.

    Its input ``images`` is float32 ``[N, C, H, W]``, normalised as the metadata ``mean`` and ``std`` say; its output
    ``logits`` is float32 ``[N, classes]``.

    Args:
        path: of the file.
        pruned: the network.
        normalization: put the normalisation into the file; then ``images`` is uint8.

    Returns:
        The largest difference, in ONNX Runtime, of its logits from the masked network's.

    Raises:
        ConfigurationError: the extra is not installed, or the network cannot be expressed in ONNX.
        WeightsError: the file does not compute what the masked network computes; nothing was written.
        FileError: the file cannot be written.
    """
    network = Normalized(pruned.compact, pruned.normalization) if normalization else pruned.compact
    images = pruned.images if normalization else pruned.normalization.normalize(pruned.images)
    metadata = {
        "architecture": pruned.blueprint.architecture,
        "base_sha256": pruned.base_sha256,
        "mean": json.dumps(pruned.normalization.mean),
        "std": json.dumps(pruned.normalization.std),
        "normalization": "included" if normalization else "of the input, by mean and std of values in 0..1",
    }
    content = to_onnx(network, images[:2], metadata)
    run = onnx_runner(content)
    # Also one by one: a batch size that was traced into the file would show.
    logits = torch.cat([run(images[:1]), run(images[1:])])
    difference = pruned.check(logits, "the ONNX file")
    write_bytes(path, content)
    return difference


def to_onnx(network: nn.Module, example: Tensor, metadata: dict[str, str]) -> bytes:
    """A network in evaluation mode as the content of an ONNX file.

    Args:
        network: maps ``[N, C, H, W]`` to ``[N, classes]``.
        example: input of at least two images; their size and type stay fixed.
        metadata: of the file.

    Raises:
        ConfigurationError: the extra is not installed, or the network cannot be expressed in ONNX.
    """
    _require("onnxscript")
    batch = {0: torch.export.Dim("batch")}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network.eval(),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(batch,),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = in_one_line(error.__cause__ or error, 300)
        raise ConfigurationError(f"{type(network).__name__} cannot be written as ONNX: {reason}") from error
    assert program is not None
    program.model.metadata_props.update(metadata)
    content: bytes = program.model_proto.SerializeToString()
    return content


def onnx_runner(content: bytes, threads: int | None = None) -> Callable[[Tensor], Tensor]:
    """ONNX Runtime on the CPU: a function from inputs to logits.

    Args:
        content: of an ONNX file.
        threads: of its own; by default as many as it likes.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    runtime = _require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        logits: np.ndarray = session.run([OUTPUT], {INPUT: images.contiguous().numpy()})[0]
        return torch.from_numpy(logits)

    return run


def _require(module: str) -> Any:
    """Import a module of the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"ONNX needs the package {module}: pip install 'zeroout[onnx]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on itself, which no user can act on, off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
