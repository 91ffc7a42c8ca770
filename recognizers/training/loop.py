"""The training loop, and the single step of SGD that recovery shares with it."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import torch
from torch import nn
from tqdm import tqdm

from recognizers.data import Examples, Mixing, Normalization, Splits, augment
from recognizers.errors import ConfigurationError
from recognizers.evaluation import Precision, accuracy, autocast, network_device, predict, to_inputs, training_mode
from recognizers.execution.reshaping import small_maps
from recognizers.execution.strided import safe_strides
from recognizers.execution.wide_norm import wide_norms
from recognizers.training.config import TrainingConfig
from recognizers.training.distillation import Lesson, Teacher, run_chain
from recognizers.training.optimizers import make_optimizers
from recognizers.training.state import EpochRecord, TrainingState


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training run; the network itself holds the weights of the best epoch.

    Attributes:
        history: one record per epoch.
        best_epoch: the epoch, counted from 1, of the best held-out accuracy (the last of equals).
    """

    history: tuple[EpochRecord, ...]
    best_epoch: int

    @property
    def best(self) -> EpochRecord:
        """The record of the best epoch."""
        return self.history[self.best_epoch - 1]


def train(
    network: nn.Module,
    splits: Splits,
    normalization: Normalization,
    config: TrainingConfig,
    *,
    teacher: Teacher | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Train a network in place on the train split; at the end it holds the weights best on the selection split.

    The run draws from generators of its own, seeded by the configuration: torch's global random state is left as found.

    Args:
        network: maps [N, C, H, W] to logits [N, classes]; random, trained or pruned.
        splits: only ``train`` and ``selection`` are looked at.
        normalization: of the images.
        config: the settings.
        teacher: to come close to, where the settings ask for distillation or hints; left unchanged.
        device: where to train; the network is moved there. By default where the network is.
        progress: show a progress bar on standard error.
        checkpoint: file written after every epoch, atomically.
        resume: go on from ``checkpoint`` if it exists; the result equals that of an uninterrupted run.
        on_epoch: called with the record of each epoch once its checkpoint is written.

    Raises:
        ConfigurationError: the training diverged, ``checkpoint`` was written under other settings, or the settings ask
            for a teacher and there is none, or for hints that it cannot give.
        FileError: ``checkpoint`` cannot be written, is corrupt, or is of another network.
    """
    if config.learns and teacher is None:
        raise ConfigurationError("distillation and hints need a network to learn from: they belong to fine-tuning")
    device = network_device(network) if device is None else torch.device(device)
    network.to(device)
    lesson = Lesson(teacher, network, config) if teacher and config.learns else None
    examples, held_out = splits.train.to(device), splits.selection.to(device)
    steps = max(1, len(examples.labels) // config.batch_size)
    randomness = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with training_mode(network, True), _adapted(network), randomness:
        torch.manual_seed(config.seed)
        state = TrainingState(
            network,
            make_optimizers(network, config),
            torch.Generator().manual_seed(config.seed),
            device,
        )
        if checkpoint is not None and resume and checkpoint.exists():
            state.load(checkpoint, config)
        first = len(state.history)
        with tqdm(
            total=config.epochs * steps, initial=first * steps, disable=not progress, unit="step", desc="training"
        ) as bar:
            for _ in range(first, config.epochs):
                record = _train_epoch(
                    state, examples, held_out, normalization=normalization, config=config, lesson=lesson, bar=bar
                )
                state.add(record)
                if checkpoint is not None:
                    state.save(checkpoint, config)
                if on_epoch is not None:
                    on_epoch(record)
    network.load_state_dict(state.best_weights)
    return TrainingResult(tuple(state.history), state.best_epoch)


def sgd_steps(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    normalization: Normalization,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    flip: bool,
    padding: int,
    generator: torch.Generator,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    chain: Sequence[nn.Module] | None = None,
) -> float:
    """Train a network in place by a few mini-batches of SGD at a constant learning rate.

    Images are drawn without replacement until all were seen, then anew. The modes of the modules are left as found.

    Args:
        network: maps [N, C, H, W] to logits [N, classes].
        images: uint8 [N, C, H, W], on any device.
        labels: int64 [N].
        normalization: of the images.
        steps: mini-batches; 0 changes nothing.
        learning_rate: constant.
        momentum: starts afresh at each call.
        weight_decay: L2 penalty.
        batch_size: images per mini-batch.
        flip: as in `augment`.
        padding: as in `augment`, in pixels.
        generator: draws images and augmentation.
        device: where to train; the network is moved there. By default where the network is.
        precision: of the forward and backward passes.
        chain: modules to call one after the other in place of the network, with the same parameters.

    Returns:
        The mean loss over the steps in nats (nan for no steps).
    """
    device = network_device(network) if device is None else torch.device(device)
    network.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    loss = torch.zeros((), device=device)
    with training_mode(network, True), _adapted(network):
        for index in itertools.islice(_endless_batches(len(labels), batch_size, generator), steps):
            batch = _draw(
                Examples(images, labels), index, device=device, flip=flip, padding=padding, generator=generator
            )
            loss += _step(network, [optimizer], batch, normalization=normalization, precision=precision, chain=chain)[0]
    return loss.item() / steps if steps else math.nan


@contextmanager
def _adapted(network: nn.Module) -> Iterator[None]:
    """Within, the network computes the same, fast and safely where it is narrow."""
    with wide_norms(network.modules()), safe_strides(network.modules()), small_maps(network.modules()):
        yield


def _train_epoch(
    state: TrainingState,
    examples: Examples,
    held_out: Examples,
    *,
    normalization: Normalization,
    config: TrainingConfig,
    lesson: Lesson | None,
    bar: "tqdm[Never]",
) -> EpochRecord:
    """Do one epoch and measure it."""
    begin = time.perf_counter()
    epoch = len(state.history)  # counted from 0
    # Summed on the device, so that no step waits for the one before.
    loss = torch.zeros((), device=state.device)
    correct = torch.zeros((), device=state.device)
    batches = _batches(len(examples.labels), config.batch_size, state.generator)
    rate = config.learning_rate
    seen = 0
    for position, index in enumerate(batches):
        rate = config.learning_rate_at(epoch * len(batches) + position, len(batches))
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in state.optimizers):
            group["lr"] = rate
        batch = _draw(
            examples,
            index,
            device=state.device,
            flip=config.flip,
            padding=config.padding,
            generator=state.generator,
        )
        batch_loss, logits = _step(
            state.network,
            state.optimizers,
            batch,
            normalization=normalization,
            precision=config.precision,
            label_smoothing=config.label_smoothing,
            mixup=config.mixup,
            lesson=lesson,
        )
        loss += batch_loss * len(index)
        correct += (logits.argmax(1) == batch.labels).sum()
        seen += len(index)
        bar.update()
    if not math.isfinite(loss.item()):
        raise ConfigurationError(f"training diverged in epoch {epoch + 1} (loss {loss.item()}): lower learning_rate")
    logits = predict(state.network, held_out.images, normalization, precision=config.precision, device=state.device)
    record = EpochRecord(
        epoch=epoch + 1,
        loss=loss.item() / seen,
        train_accuracy=correct.item() / seen,
        held_out_accuracy=accuracy(logits, held_out.labels),
        learning_rate=rate,
        seconds=time.perf_counter() - begin,
    )
    bar.set_postfix(
        epoch=f"{record.epoch}/{config.epochs}",
        loss=f"{record.loss:.3f}",
        train=f"{record.train_accuracy:.2%}",
        held_out=f"{record.held_out_accuracy:.2%}",
    )
    return record


def _step(
    network: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Examples,
    *,
    normalization: Normalization,
    precision: Precision,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    lesson: Lesson | None = None,
    chain: Sequence[nn.Module] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do one step of the optimizers; return the loss [] and the logits [N, classes], both detached."""
    inputs = to_inputs(batch.images, normalization, precision)
    mixing = Mixing.draw(len(inputs), mixup, inputs.device) if mixup else None
    if mixing:
        inputs = mixing(inputs)
    with autocast(precision, batch.images.device):
        outputs = run_chain(lesson.chain if lesson else chain or [network], inputs)
    logits = outputs[-1]
    labels = mixing(nn.functional.one_hot(batch.labels, logits.shape[1]).float()) if mixing else batch.labels
    loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    if lesson:
        loss = lesson(inputs, outputs, loss)
    network.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach(), logits.detach()


def _draw(
    examples: Examples,
    index: torch.Tensor,
    *,
    device: torch.device,
    flip: bool,
    padding: int,
    generator: torch.Generator,
) -> Examples:
    """Gather a batch by its index, int64 [B], onto a device and augment it."""
    index = index.to(examples.images.device)
    batch = Examples(examples.images[index], examples.labels[index]).to(device)
    return Examples(augment(batch.images, flip=flip, padding=padding, generator=generator), batch.labels)


def _batches(count: int, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Divide a random order of ``count`` examples into full batches of indices (into one, if there are fewer)."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    batches: tuple[torch.Tensor, ...] = order.split(batch_size)
    # Batch norm fails on a single image and is noisy on a few; the next epoch's order is another.
    return batches[: count // batch_size] or batches


def _endless_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        yield from _batches(count, batch_size, generator)
