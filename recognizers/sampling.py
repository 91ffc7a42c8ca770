"""Seeded subsets of the training images, as networks take them."""

import numpy as np
import torch
from torch import Tensor

from recognizers.evaluation import to_inputs
from recognizers.recognizer import Recognizer


def training_sample(recognizer: Recognizer, images: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """So many training images (all where there are fewer), drawn without replacement, and their labels.

    Returns:
        Normalised float32 ``[N, C, H, W]`` and int64 ``[N]``, on the recognizer's device.
    """
    train = recognizer.splits.train
    chosen = torch.from_numpy(generator.permutation(len(train.labels))[:images])
    inputs = to_inputs(train.images[chosen].to(recognizer.device), recognizer.normalization, "float32")
    return inputs, train.labels[chosen].to(recognizer.device)
