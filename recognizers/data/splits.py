"""Splitting held-out data off the training data, stratified by class and seeded."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from recognizers.data.dataset import Dataset
from recognizers.errors import ConfigurationError, DataError


class Examples(NamedTuple):
    """Labelled images."""

    images: torch.Tensor  # uint8 [N, C, H, W]
    labels: torch.Tensor  # int64 [N]

    def to(self, device: torch.device | str) -> "Examples":
        """Return the examples on a device."""
        return Examples(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Splits:
    """The four parts of a data set, by who may look at them.

    Attributes:
        train: for training and fine-tuning.
        reward: held out; what policies and rewards see.
        selection: held out; chooses among finished masks and checkpoints.
        test: only reports.
    """

    train: Examples
    reward: Examples
    selection: Examples
    test: Examples

    def to(self, device: torch.device | str) -> "Splits":
        """Return all parts on a device."""
        return Splits(self.train.to(device), self.reward.to(device), self.selection.to(device), self.test.to(device))


def split(
    dataset: Dataset,
    *,
    held_out: float = 0.05,
    selection_share: float = 0.5,
    seed: int = 0,
    validation_images: int | None = None,
) -> Splits:
    """Divide a data set into its four parts.

    Args:
        dataset: where it has validation data of its own, those are the held-out data and all training images train.
        held_out: fraction of the training images that is held out (unused with own validation data).
        selection_share: fraction of the held-out data that goes to ``selection``; the rest goes to ``reward``.
        seed: the same seed gives the same parts.
        validation_images: of the ``reward`` split, only a stratified subset of so many images is kept; the other splits
            are the same with and without. All are kept by default.

    Raises:
        ConfigurationError: a fraction is not between 0 and 1, or the reward split has less than the images asked for.
        DataError: the data are too few, so that a part would be empty.
    """
    for name, fraction in (("held_out", held_out), ("selection_share", selection_share)):
        if not 0 < fraction < 1:
            raise ConfigurationError(f"{name} must lie between 0 and 1, got {fraction}")
    generator = np.random.default_rng(seed)
    train = Examples(dataset.train_images, dataset.train_labels)
    if dataset.val_images is not None and dataset.val_labels is not None:
        held = Examples(dataset.val_images, dataset.val_labels)
    else:
        train, held = _divide(train, held_out, generator)
    reward, selection = _divide(held, selection_share, generator)
    splits = Splits(train, reward, selection, Examples(dataset.test_images, dataset.test_labels))
    for name in ("train", "reward", "selection"):
        if len(getattr(splits, name).labels) == 0:
            raise DataError(
                f"{dataset.name}: the {name} split would be empty (held_out={held_out}, "
                f"selection_share={selection_share}, {len(dataset.train_labels)} training images)"
            )
    if validation_images is None:
        return splits
    return replace(splits, reward=_subset(reward, validation_images, generator, dataset.name))


def stratified_choice(labels: torch.Tensor, fraction: float, generator: np.random.Generator) -> torch.Tensor:
    """Choose a fraction of the examples, class by class.

    In total ``round(fraction * N)`` are chosen, and of each class its share rounded up or down (the largest remainders
    are rounded up).

    Args:
        labels: int64 [N].
        fraction: between 0 and 1.
        generator: draws which examples.

    Returns:
        bool [N], true for the chosen ones.
    """
    values = labels.cpu().numpy()
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    shares = counts * fraction
    taken = np.floor(shares).astype(np.int64)
    missing = round(len(values) * fraction) - int(taken.sum())
    taken[np.argsort(taken - shares, kind="stable")[:missing]] += 1
    chosen = np.zeros(len(values), dtype=bool)
    for index, count in enumerate(taken):
        chosen[generator.permutation(np.flatnonzero(group == index))[:count]] = True
    return torch.from_numpy(chosen)


def _divide(examples: Examples, fraction: float, generator: np.random.Generator) -> tuple[Examples, Examples]:
    """Return the rest and the chosen fraction."""
    chosen = stratified_choice(examples.labels, fraction, generator)
    return (
        Examples(examples.images[~chosen], examples.labels[~chosen]),
        Examples(examples.images[chosen], examples.labels[chosen]),
    )


def _subset(reward: Examples, count: int, generator: np.random.Generator, name: str) -> Examples:
    """A stratified choice of ``count`` examples."""
    available = len(reward.labels)
    if not 1 <= count <= available:
        raise ConfigurationError(
            f"{name}: validation_images={count}, but the reward split has {available} images: ask for 1 to "
            f"{available}, or hold out more (held_out, selection_share)"
        )
    return _divide(reward, count / available, generator)[1]
