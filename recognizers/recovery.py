"""Recovery: what the recognizer does with its remaining weights after units were zeroed out.

Each recovery is its own configuration and works in place on a plain (compact) network.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from recognizers.data import Examples, Normalization
from recognizers.evaluation import Precision, autocast
from recognizers.execution.wide_norm import wide_norms
from recognizers.reconstruction.recipe import Recipe
from recognizers.training import sgd_steps

Changes = Literal["nothing", "statistics", "everything"]


class Subject(ABC):
    """What a recovery works on: a compact network, and training images, never held-out ones."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The compact network, in evaluation mode; to be changed in place."""

    @property
    def chain(self) -> Sequence[nn.Module]:
        """Modules that compute one after the other, and with the same parameters, what the network computes."""
        return [self.network]

    @property
    @abstractmethod
    def train(self) -> Examples:
        """The training images."""

    @property
    @abstractmethod
    def normalization(self) -> Normalization:
        """Of the images."""

    @property
    @abstractmethod
    def precision(self) -> Precision:
        """Of forward and backward passes."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network is."""

    @abstractmethod
    def recalibrate(self, images: int, batch_size: int) -> None:
        """What :func:`recalibrate` does, on a fixed seeded subset of ``images`` training images."""

    @abstractmethod
    def reconstruct(self, recipe: Recipe) -> None:
        """Bring all layers to what a reconstruction from base weights and mask gives."""

    @abstractmethod
    def changed(self) -> None:
        """To be called after the network's parameters were changed."""


class Recovery(BaseModel, ABC):
    """Base of the recoveries.

    Class attributes:
        changes: what of the network it may change; the rest need not be copied back or reset.
        memoryless: whether the recovered network follows from base weights and mask alone, however it was reached,
            and what becomes of a layer from the mask up to that layer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    changes: ClassVar[Changes]
    memoryless: ClassVar[bool]

    @property
    def calibration_images(self) -> int:
        """Training images that it looks at, beside those of mini-batches."""
        return 0

    @property
    def kept_images(self) -> int:
        """Images whose tensors between stages are worth keeping, each pass counting for itself."""
        return self.calibration_images

    @property
    def layerwise(self) -> "Recovery":
        """What stands in for it where one layer at a time is tried: as good there, and as cheap as can be."""
        return self

    @abstractmethod
    def __call__(self, subject: Subject, generator: torch.Generator) -> None:
        """Recover the subject's network in place, drawing from ``generator`` alone."""


class NoRecovery(Recovery):
    """Leave the network as the selection left it."""

    kind: Literal["none"] = "none"
    changes: ClassVar[Changes] = "nothing"
    memoryless: ClassVar[bool] = True

    def __call__(self, subject: Subject, generator: torch.Generator) -> None:
        """Do nothing."""


class CalibratedRecovery(Recovery):
    """Base of those that look at calibration images."""

    images: int = Field(512, ge=2, description="calibration images: a fixed seeded subset of the training images")

    @property
    def calibration_images(self) -> int:
        """As configured."""
        return self.images


class BatchNormRecovery(CalibratedRecovery):
    """Recalibrate the batch-norm statistics on training images; weights stay."""

    kind: Literal["bn"] = "bn"
    batch_size: int = Field(128, ge=2, description="images per batch; the statistics are averaged over the batches")
    changes: ClassVar[Changes] = "statistics"
    memoryless: ClassVar[bool] = True

    def __call__(self, subject: Subject, generator: torch.Generator) -> None:
        """Recalibrate."""
        subject.recalibrate(self.images, self.batch_size)


class FinetuneRecovery(CalibratedRecovery):
    """The original method: a few mini-batches of SGD, then a recalibration of the batch norms.

    Running statistics lag behind the weights, so retraining without recalibration is worse than recalibration
    alone. Before the steps it would change nothing: they normalise by the statistics of their own batches.
    """

    kind: Literal["finetune"] = "finetune"
    steps: int = Field(8, ge=1, description="mini-batches of SGD per environment step (k)")
    learning_rate: float = Field(0.01, gt=0, description="of SGD, constant")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; starts afresh at each recovery")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty of SGD")
    batch_size: int = Field(128, ge=2, description="images per mini-batch")
    flip: bool = Field(False, description="augment by random horizontal flips")
    padding: int = Field(0, ge=0, description="augment by random crops after padding by this many pixels")
    changes: ClassVar[Changes] = "everything"
    memoryless: ClassVar[bool] = False

    def __call__(self, subject: Subject, generator: torch.Generator) -> None:
        """Retrain, recalibrate."""
        sgd_steps(
            subject.network,
            subject.train.images,
            subject.train.labels,
            subject.normalization,
            steps=self.steps,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            flip=self.flip,
            padding=self.padding,
            generator=generator,
            device=subject.device,
            precision=subject.precision,
            chain=subject.chain,
        )
        subject.changed()
        subject.recalibrate(self.images, self.batch_size)


class SampledRecovery(CalibratedRecovery):
    """Base of those that change weights by what layers see at random positions of their feature maps."""

    images: int = Field(2000, ge=2, description="calibration images: a fixed seeded subset of the training images")
    positions: int = Field(32, ge=1, description="random positions of a feature map that each image gives")
    batch_size: int = Field(250, ge=2, description="images per batch")
    changes: ClassVar[Changes] = "everything"
    memoryless: ClassVar[bool] = True


class ReconstructRecovery(SampledRecovery):
    """Least squares of the weights that read removed units, on unlabelled training images (REAP).

    No gradient step is made. The result follows from base weights and mask alone. `asymmetric` walks along the network
    and makes each layer give what the original network has there, from what the pruned one hands it; behind a residual
    sum it makes up for the other summand, too. `independent` costs a small downdate per removed unit and no forward
    pass, for policies that take many steps.
    """

    kind: Literal["reconstruct"] = "reconstruct"
    form: Literal["asymmetric", "symmetric", "independent"] = Field(
        "asymmetric",
        description="asymmetric: from inputs in the pruned network to outputs in the original one; symmetric: from "
        "inputs in the pruned network to what the old weights would make of them; independent: from and to the "
        "original network, by downdates of one inverse per layer",
    )
    ridge: float = Field(1e-4, ge=0, description="penalty on weights, relative to the mean second moment of an input")
    refit: float | None = Field(
        0.01,
        ge=0,
        description="asymmetric: fit layers behind a pruned one that have lost no inputs, too, with this penalty on "
        "changes of their weights (relative likewise); null leaves them as they are",
    )
    rectified: int = Field(
        3, ge=0, description="asymmetric: rounds of fitting such layers to what is behind their ReLU; 0: before it"
    )
    recalibrate: bool = Field(False, description="recalibrate the batch norms afterwards, on the same images")

    @property
    def kept_images(self) -> int:
        """Those of the original and of the pruned network, and of the recalibration."""
        passes = 0 if self.form == "independent" else 2
        return self.images * (passes + self.recalibrate)

    @property
    def layerwise(self) -> Recovery:
        """The independent form: what one layer gets to see is the same in the pruned and in the original network."""
        return self.model_copy(update={"form": "independent", "recalibrate": False})

    @property
    def recipe(self) -> Recipe:
        """For the reconstruction alone."""
        return Recipe(**self.model_dump(exclude={"kind", "recalibrate"}))

    def __call__(self, subject: Subject, generator: torch.Generator) -> None:
        """Reconstruct."""
        subject.reconstruct(self.recipe)
        if self.recalibrate:
            subject.recalibrate(self.images, self.batch_size)


class UnifyRecovery(SampledRecovery):
    """Neuron unification: the weights that read a removed unit go to the kept unit that behaves most like it."""

    kind: Literal["unify"] = "unify"

    @property
    def kept_images(self) -> int:
        """None: it makes no pass."""
        return 0

    def __call__(self, subject: Subject, generator: torch.Generator) -> None:
        """Merge."""
        subject.reconstruct(Recipe(form="unify", **self.model_dump(exclude={"kind"})))


AnyRecovery = Annotated[
    NoRecovery | BatchNormRecovery | FinetuneRecovery | ReconstructRecovery | UnifyRecovery,
    Field(discriminator="kind"),
]
RECOVERIES: dict[str, type[Recovery]] = {
    "none": NoRecovery,
    "bn": BatchNormRecovery,
    "finetune": FinetuneRecovery,
    "reconstruct": ReconstructRecovery,
    "unify": UnifyRecovery,
}


def recalibrate(network: nn.Module, images: Tensor, batch_size: int, precision: Precision) -> None:
    """Set every batch norm's running statistics to their averages over ``images`` (normalised, ``[N, C, H, W]``).

    Only batch norms run in training mode: dropout stays off. A network without batch norm is left as it is.
    """
    norms = batch_norms(network.modules())
    if not norms:
        return
    network.eval()
    with torch.no_grad(), recalibrating(norms), autocast(precision, images.device):
        for batch in calibration_batches(images, batch_size):
            network(batch)


def batch_norms(modules: Iterable[nn.Module]) -> list[BatchNorm]:
    """Those of ``modules`` that are batch norms with running statistics."""
    return [module for module in modules if isinstance(module, BatchNorm) and module.running_mean is not None]


def calibration_batches(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Batches of (nearly) equal size, as each counts the same in the average; never of a single image."""
    return images.tensor_split(max(1, len(images) // max(batch_size, 2)))


@contextmanager
def recalibrating(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Forget the statistics of batch norms, and average those of the batches that run within; then as before."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over the batches
        norm.train()
    try:
        with wide_norms(norms):
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
