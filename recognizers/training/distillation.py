"""Learning from another network: from its outputs, and from its feature maps on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recognizers.errors import ConfigurationError
from recognizers.evaluation import autocast, network_device, resolve_precision, training_mode
from recognizers.execution.fusion import fuse
from recognizers.execution.stages import Stage
from recognizers.training.config import TrainingConfig


@dataclass(frozen=True)
class Teacher:
    """A network that others with the same module paths learn from.

    Attributes:
        network: in evaluation mode; left unchanged.
        stages: of it, in order.
        kept: for every stage but the last, the channels of its output that a learner has, ``[K]`` int64; None for all.
    """

    network: nn.Module
    stages: Sequence[Stage]
    kept: Sequence[Tensor | None]


class Lesson:
    """What one network learns from a teacher, under the settings of a training.

    Args:
        teacher: from whom.
        network: the learner.
        config: the settings, which ask for distillation or hints.

    Attributes:
        chain: the learner as a chain of modules, each of which puts out what the lesson looks at. With hints what is
            no module, such as a functional dropout, runs as in evaluation: that is how the stages were traced.

    Raises:
        ConfigurationError: the settings ask for hints, and the teacher has no stages to take feature maps from.
    """

    def __init__(self, teacher: Teacher, network: nn.Module, config: TrainingConfig) -> None:
        if config.hints and len(teacher.stages) < 2:
            raise ConfigurationError(
                "hints compare feature maps between layers, and this network cannot be cut there: set hints=0"
            )
        self._teacher, self._config = teacher, config
        self.chain: list[nn.Module] = [stage.module(network) for stage in teacher.stages] if config.hints else [network]
        device = network_device(network)
        dtype = resolve_precision(config.precision, device)
        fused = [
            teacher.network if stage.graph is None else fuse(stage.graph, teacher.network, lambda _: "same", dtype)
            for stage in teacher.stages
        ]
        self._shown: list[nn.Module] = [*fused] if config.hints else [nn.Sequential(*fused)]
        self._kept = [None if kept is None else kept.to(device) for kept in teacher.kept]

    def __call__(self, inputs: Tensor, outputs: Sequence[Tensor], loss: Tensor) -> Tensor:
        """The loss that the learner is to make small.

        Args:
            inputs: a batch, ``[B, C, H, W]``.
            outputs: what the learner's :attr:`chain` makes of it; the last are logits, ``[B, classes]``.
            loss: against the labels.
        """
        config = self._config
        with (
            training_mode(self._teacher.network, False),
            torch.no_grad(),
            autocast(config.precision, inputs.device),
        ):
            *wanted, logits = run_chain(self._shown, inputs)
        if config.distillation:
            soft = distillation_loss(outputs[-1].float(), logits.float(), config.temperature)
            loss = (1 - config.distillation) * loss + config.distillation * soft
        if config.hints:
            shown = [
                features if kept is None else features.index_select(1, kept)
                for features, kept in zip(wanted, self._kept, strict=True)
            ]
            loss = loss + config.hints * hint_loss(outputs[:-1], shown)
        return loss


def run_chain(chain: Sequence[nn.Module], inputs: Tensor) -> list[Tensor]:
    """What each module of a chain puts out; the first takes ``inputs``, each other one what the one before puts out."""
    outputs = []
    for module in chain:
        inputs = module(inputs)
        outputs.append(inputs)
    return outputs


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Divergence of softened outputs from those of a teacher (Hinton et al. 2015, "Distilling the knowledge").

    Args:
        logits: [N, classes].
        wanted: of the teacher, [N, classes].
        temperature: both are divided by it; the result is multiplied by its square, so that gradients keep their size.

    Returns:
        The mean Kullback-Leibler divergence in nats, times the squared temperature.
    """
    student = nn.functional.log_softmax(logits / temperature, 1)
    target = nn.functional.log_softmax(wanted / temperature, 1)
    return temperature**2 * nn.functional.kl_div(student, target, reduction="batchmean", log_target=True)


def hint_loss(features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Squared differences of feature maps from those of a teacher (Romero et al. 2015, "FitNets", eq. 3).

    Args:
        features: of several layers, ``[N, C, ...]`` each.
        wanted: the teacher's, of the same shapes.

    Returns:
        The mean over the layers of the mean squared difference relative to the teacher's mean square, without unit.
    """
    errors = []
    for own, other in zip(features, wanted, strict=True):
        target = other.float()
        errors.append(nn.functional.mse_loss(own.float(), target) / target.square().mean().clamp(min=1e-12))
    return torch.stack(errors).mean()
