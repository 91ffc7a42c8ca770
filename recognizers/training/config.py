"""Settings of a training run, and the learning rate that follows from them."""

import bisect
import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recognizers.evaluation import Precision


class TrainingConfig(BaseModel):
    """How to train a network. The defaults train `convnet` on digits in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(30, ge=1, description="passes over the training images")
    batch_size: int = Field(64, ge=2, description="images per step; an incomplete last batch is left out")
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        "sgd",
        description="SGD with momentum; AdamW (Loshchilov & Hutter 2019), which wants smaller learning rates; or Muon "
        "(Jordan et al. 2024) for the weights of convolutions and linear layers, with AdamW for the rest, which comes "
        "farther in a few epochs, at a learning rate of 0.003, say",
    )
    learning_rate: float = Field(
        0.05, gt=0, allow_inf_nan=False, description="peak step size (He et al. 2016: 0.1 at 128 images, by SGD)"
    )
    momentum: float = Field(
        0.9, ge=0, lt=1, description="sgd, muon: share of the previous update kept (He et al. 2016: 0.9)"
    )
    nesterov: bool = Field(True, description="sgd, muon: Nesterov's form of momentum (Sutskever et al. 2013)")
    weight_decay: float = Field(
        5e-4,
        ge=0,
        allow_inf_nan=False,
        description="L2 penalty on all parameters (Zagoruyko & Komodakis 2016: 5e-4); adamw, muon: decoupled",
    )
    schedule: Literal["cosine", "constant", "step"] = Field(
        "cosine",
        description="learning rate over time: half a cosine down to 0 (Loshchilov & Hutter 2017), constant, "
        "or divided by 10 at each milestone (He et al. 2016)",
    )
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="epochs at whose start the 'step' schedule divides the learning rate, ascending"
    )
    warmup_epochs: float = Field(
        1.0, ge=0, description="epochs in which the learning rate rises linearly to its peak (Goyal et al. 2017)"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread evenly over all classes (Szegedy et al. 2016: 0.1)"
    )
    distillation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the loss that is the divergence from the outputs of the unpruned network "
        "(Hinton et al. 2015); for fine-tuning only",
    )
    temperature: float = Field(4.0, gt=0, description="that soften both outputs for distillation (Hinton et al. 2015)")
    hints: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the squared differences of feature maps from those of the unpruned network, relative to "
        "the latter's, on average over the network's stages (Romero et al. 2015); for fine-tuning only",
    )
    flip: bool = Field(False, description="augment by left-right flips (He et al. 2016: on for CIFAR; off for digits)")
    padding: int = Field(
        1, ge=0, description="augment by crops from a frame of this many zero pixels (He et al. 2016: 4 for CIFAR)"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="augment by mixing pairs of images, with shares drawn from Beta(mixup, mixup) (Zhang et al. 2018: "
        "0.1 to 0.4; with distillation 1 does well, Beyer et al. 2022); 0 for none",
    )
    precision: Precision = Field(
        "auto", description="of the forward and backward passes; auto is bfloat16 where the hardware gains by it"
    )
    seed: int = Field(0, ge=0, description="of the order of the images, the augmentation and dropout")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be less than epochs ({self.epochs})")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones belong to schedule 'step', which needs at least one")
        if any(later <= sooner for sooner, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones must ascend, got {list(self.milestones)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @property
    def learns(self) -> bool:
        """Whether there has to be a network to learn from."""
        return self.distillation > 0 or self.hints > 0

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole training."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "cosine":
            share = (step - warmup) / (self.epochs * steps_per_epoch - warmup)
            return self.learning_rate * (1 + math.cos(math.pi * share)) / 2
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** bisect.bisect(self.milestones, step // steps_per_epoch)
        return self.learning_rate


class RetrainingConfig(TrainingConfig):
    """How to go on training a network that is trained already: shorter, in smaller steps."""

    epochs: int = Field(10, ge=1, description="passes over the training images")
    learning_rate: float = Field(0.02, gt=0, allow_inf_nan=False, description="peak step size")
