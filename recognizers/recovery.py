"""Recovery: what the recognizer does with its remaining weights after units were zeroed out.

Each recovery is its own configuration and works in place on a plain (compact) network.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from recognizers.data import Normalization
from recognizers.evaluation import Precision, autocast, to_inputs
from recognizers.training import sgd_steps

Changes = Literal["nothing", "statistics", "everything"]


@dataclass(frozen=True, eq=False)
class RecoveryData:
    """What a recovery may use: the training images, never held-out ones.

    Attributes:
        images: ``[N, C, H, W]`` uint8.
        labels: ``[N]`` int64.
        normalization: of the recognizer's inputs.
        precision: of the forward passes.
        batch_size: images per forward pass.
        device: where the network is.
    """

    images: Tensor
    labels: Tensor
    normalization: Normalization
    precision: Precision
    batch_size: int
    device: torch.device
    _calibration: dict[int, Tensor] = field(default_factory=dict)

    def calibration(self, count: int) -> Tensor:
        """A fixed seeded subset of ``count`` normalised training images, ``[count, C, H, W]`` float32."""
        if count not in self._calibration:
            chosen = np.random.default_rng(0).permutation(len(self.images))[:count]
            images = self.images[torch.from_numpy(chosen)].to(self.device)
            self._calibration[count] = to_inputs(images, self.normalization, self.precision)
        return self._calibration[count]


class Recovery(BaseModel, ABC):
    """Base of the recoveries.

    Class attributes:
        changes: what of the network it may change; the rest need not be copied back or reset.
        memoryless: whether the recovered network follows from base weights and mask alone, however it was reached.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    changes: ClassVar[Changes]
    memoryless: ClassVar[bool]

    @abstractmethod
    def __call__(self, network: nn.Module, data: RecoveryData, generator: torch.Generator) -> None:
        """Recover ``network`` in place, drawing from ``generator`` alone."""


class NoRecovery(Recovery):
    """Leave the network as the selection left it."""

    kind: Literal["none"] = "none"
    changes: ClassVar[Changes] = "nothing"
    memoryless: ClassVar[bool] = True

    def __call__(self, network: nn.Module, data: RecoveryData, generator: torch.Generator) -> None:
        """Do nothing."""


class BatchNormRecovery(Recovery):
    """Recalibrate the batch-norm statistics on training images; weights stay."""

    kind: Literal["bn"] = "bn"
    images: int = Field(512, ge=2, description="calibration images: a fixed seeded subset of the training images")
    changes: ClassVar[Changes] = "statistics"
    memoryless: ClassVar[bool] = True

    def __call__(self, network: nn.Module, data: RecoveryData, generator: torch.Generator) -> None:
        """Recalibrate."""
        recalibrate(network, data.calibration(self.images), data.batch_size, data.precision)


class FinetuneRecovery(Recovery):
    """The original method: a few mini-batches of SGD, between two recalibrations of the batch norms.

    Running statistics lag behind the weights, so retraining without recalibration is worse than recalibration
    alone; before the steps it keeps the first gradients sane.
    """

    kind: Literal["finetune"] = "finetune"
    steps: int = Field(8, ge=1, description="mini-batches of SGD per environment step (k)")
    learning_rate: float = Field(0.01, gt=0, description="of SGD, constant")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; starts afresh at each recovery")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty of SGD")
    batch_size: int = Field(128, ge=2, description="images per mini-batch")
    images: int = Field(512, ge=2, description="calibration images of the two recalibrations")
    flip: bool = Field(False, description="augment by random horizontal flips")
    padding: int = Field(0, ge=0, description="augment by random crops after padding by this many pixels")
    changes: ClassVar[Changes] = "everything"
    memoryless: ClassVar[bool] = False

    def __call__(self, network: nn.Module, data: RecoveryData, generator: torch.Generator) -> None:
        """Recalibrate, retrain, recalibrate."""
        calibration = data.calibration(self.images)
        recalibrate(network, calibration, data.batch_size, data.precision)
        sgd_steps(
            network,
            data.images,
            data.labels,
            data.normalization,
            steps=self.steps,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            flip=self.flip,
            padding=self.padding,
            generator=generator,
            device=data.device,
            precision=data.precision,
        )
        recalibrate(network, calibration, data.batch_size, data.precision)


AnyRecovery = Annotated[NoRecovery | BatchNormRecovery | FinetuneRecovery, Field(discriminator="kind")]
RECOVERIES: dict[str, type[Recovery]] = {"none": NoRecovery, "bn": BatchNormRecovery, "finetune": FinetuneRecovery}


def recalibrate(network: nn.Module, images: Tensor, batch_size: int, precision: Precision) -> None:
    """Set every batch norm's running statistics to their averages over ``images`` (normalised, ``[N, C, H, W]``).

    Only batch norms run in training mode: dropout stays off. A network without batch norm is left as it is.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over the batches
        norm.train()
    try:
        with torch.no_grad(), autocast(precision, images.device):
            # Batches of (nearly) equal size, as each counts the same in the average; never of a single image.
            for batch in images.tensor_split(max(1, len(images) // max(batch_size, 2))):
                network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
