"""What a training run carries from epoch to epoch, and its checkpoint file."""

import dataclasses
import io
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recognizers.errors import ConfigurationError, FileError
from recognizers.files import write_bytes
from recognizers.training.config import TrainingConfig

_FORMAT = "zeroout training checkpoint 2"
# What zipfile and torch.load raise on damaged files.
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss in nats.
        train_accuracy: 0..1, on the augmented images as they passed by; of mixtures, by the main label.
        held_out_accuracy: 0..1, on the selection split after the epoch.
        learning_rate: of the last step.
        seconds: wall time, evaluation included.
    """

    epoch: int
    loss: float
    train_accuracy: float
    held_out_accuracy: float
    learning_rate: float
    seconds: float


@dataclass
class TrainingState:
    """A run between two epochs. `save` and `load` make a resumed run equal to an uninterrupted one.

    Attributes:
        network: being trained, on ``device``.
        optimizers: of its parameters.
        generator: draws the order of the images and the augmentation, on the CPU.
        device: where the network is; its global random state (dropout) belongs to the run.
        history: one record for each epoch that is done.
        best_epoch: the epoch of the best held-out accuracy so far, 0 before the first.
        best_weights: the network's state dict after that epoch.
    """

    network: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    generator: torch.Generator
    device: torch.device
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, record: EpochRecord) -> None:
        """Append the record of the epoch just done; keep its weights if none before was better."""
        self.history.append(record)
        # Of equals the later one is kept: small held-out sets have many ties, and later weights are more settled.
        if self.best_epoch == 0 or record.held_out_accuracy >= self.history[self.best_epoch - 1].held_out_accuracy:
            self.best_epoch = record.epoch
            self.best_weights = {name: value.clone() for name, value in self.network.state_dict().items()}

    def save(self, path: Path, config: TrainingConfig) -> None:
        """Write the checkpoint atomically: tensors and plain types alone.

        Raises:
            FileError: the file cannot be written.
        """
        on_cuda = self.device.type == "cuda"
        content = {
            "format": _FORMAT,
            "config": config.model_dump(mode="json"),
            "network": dict(self.network.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "cpu_random_state": torch.get_rng_state(),
            "cuda_random_state": torch.cuda.get_rng_state(self.device) if on_cuda else None,
            "history": [dataclasses.asdict(record) for record in self.history],
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_bytes(path, buffer.getbuffer())

    def load(self, path: Path, config: TrainingConfig) -> None:
        """Take over the checkpoint at ``path``.

        Raises:
            FileError: the file is corrupt, not a checkpoint, or of another network.
            ConfigurationError: it was written under other settings than ``config``.
        """
        content = _read(path)
        current = config.model_dump(mode="json")
        changed = [key for key in current if content["config"].get(key) != current[key]]
        if changed:
            raise ConfigurationError(
                f"cannot resume from {path}: {', '.join(changed)} differ from the settings that it was trained with"
            )
        try:
            self.network.load_state_dict(content["network"])
            for optimizer, values in zip(self.optimizers, content["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            self.generator.set_state(content["generator"])
            torch.set_rng_state(content["cpu_random_state"])
            if self.device.type == "cuda" and content["cuda_random_state"] is not None:
                torch.cuda.set_rng_state(content["cuda_random_state"], self.device)
            self.history = [EpochRecord(**record) for record in content["history"]]
            self.best_epoch = content["best_epoch"]
            self.best_weights = {name: value.to(self.device) for name, value in content["best_weights"].items()}
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"checkpoint {path} does not fit this network: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not compare the checksums that torch.save writes.
            if archive.testzip() is not None:
                raise FileError(f"{path} is a damaged checkpoint: its checksum does not match")
        # Random states must stay on the CPU; load_state_dict moves the rest.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch's messages run over many lines, the first says what is wrong; some errors have none.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FileError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FileError(f"{path} is not a training checkpoint of this version")
    return content
