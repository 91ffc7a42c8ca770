"""The naive reference: what a hand-made pruning loop does at every step."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recognizers.data import Examples, Normalization
from recognizers.errors import ConfigurationError
from recognizers.evaluation import Precision, accuracy
from recognizers.recognizer import Recognizer
from recognizers.reconstruction.recipe import Recipe
from recognizers.recovery import Subject, recalibrate
from recognizers.zero_out import insert_zero_outs, set_mask

BATCH_SIZE = 128
"""Images per forward pass of the evaluation."""


class NaiveLoop(Subject):
    """The dense network with ZeroOut layers: all validation images at each step, in float32, nothing kept.

    Weights, images and recovery are those of a recognizer; the network is one of its own. The inputs are normalised
    once, in advance: a hand-made loop has them in memory, too.

    Args:
        recognizer: at any state.
        memory_format: layout of the activations; PyTorch's default is what a hand-made loop gets.
    """

    def __init__(self, recognizer: Recognizer, *, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        self._recovery, self._splits = recognizer.recovery, recognizer.splits
        self._normalization, self._device = recognizer.normalization, recognizer.device
        self._memory_format = memory_format
        self._network: nn.Module = recognizer.blueprint.create().to(self._device)
        self.load(recognizer.base_state)
        insert_zero_outs(self._network, recognizer.table)
        self._network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._network.eval()
        if memory_format == torch.contiguous_format:
            self._network.register_forward_pre_hook(_default_layout)
        self._inputs = self._normalized(self._splits.reward.images)
        self._labels = self._splits.reward.labels.to(self._device)
        # The images that the baseline chooses; its own copies are in its precision.
        chosen = np.random.default_rng(0).permutation(len(self.train.images))[: self._recovery.calibration_images]
        self._calibration = self._normalized(self.train.images[torch.from_numpy(chosen)])

    @property
    def network(self) -> nn.Module:
        """The dense network."""
        return self._network

    @property
    def train(self) -> Examples:
        """The training images."""
        return self._splits.train

    @property
    def normalization(self) -> Normalization:
        """Of the images."""
        return self._normalization

    @property
    def precision(self) -> Precision:
        """Always float32."""
        return "float32"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._device

    def recalibrate(self, images: int, batch_size: int) -> None:
        """Recalibrate all batch norms, on the images that zeroout takes."""
        recalibrate(self._network, self._calibration[:images], batch_size, "float32")

    def reconstruct(self, recipe: Recipe) -> None:
        """Refused: hand-made loops do not do it at every step."""
        raise ConfigurationError("the naive loop knows recoveries none, bn and finetune")

    def changed(self) -> None:
        """Nothing is kept, so nothing has to be brought up to date."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights and statistics: the state dict of a dense network."""
        self._network.load_state_dict(state)

    def warm_up(self) -> None:
        """Run the smallest work that makes PyTorch allocate and choose its kernels."""
        with torch.inference_mode():
            self._network(self._inputs[:BATCH_SIZE])

    def step(self, mask: np.ndarray, generator: torch.Generator) -> tuple[Tensor, float]:
        """Zero out, recover, measure.

        Args:
            mask: after the step, ``[n_units]``, 1 kept.
            generator: of the recovery.

        Returns:
            Logits of the validation images, ``[N, classes]`` float32, and the accuracy on them.
        """
        set_mask(self._network, mask)
        self._recovery(self, generator)
        with torch.inference_mode():
            logits = torch.cat([self._network(batch) for batch in self._inputs.split(BATCH_SIZE)])
        return logits, accuracy(logits, self._labels)

    def _normalized(self, images: Tensor) -> Tensor:
        return self._normalization.normalize(images.to(self._device)).to(memory_format=self._memory_format)


@dataclass(frozen=True)
class Agreement:
    """How far the logits of zeroout are from the naive loop's, on the same images.

    Attributes:
        different_predictions: images whose predicted class differs.
        logit_difference: the largest, over images and classes.
        accuracy_difference: absolute, as a fraction of the images.
    """

    different_predictions: int
    logit_difference: float
    accuracy_difference: float

    @classmethod
    def of(cls, logits: Tensor, accuracy: float, naive_logits: Tensor, naive_accuracy: float) -> "Agreement":
        """Compare logits ``[N, classes]`` and accuracies."""
        return cls(
            int((logits.argmax(1) != naive_logits.argmax(1)).sum()),
            float((logits - naive_logits).abs().max()),
            abs(accuracy - naive_accuracy),
        )


def _default_layout(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put a batch that a recovery drew in zeroout's layout into PyTorch's default one."""
    batch = inputs[0]
    # By way of a flat tensor: of a single channel contiguous() alone would keep the strides of the other layout.
    return (batch.contiguous().flatten().view(batch.shape), *inputs[1:])
