"""Fine-tuning a finished, pruned network."""

import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from agents.results import Finetuned
from recognizers.data import Examples
from recognizers.evaluation import accuracy, predict
from recognizers.recognizer import Recognizer
from recognizers.training import EpochRecord, TrainingConfig, train


def finetune(
    recognizer: Recognizer,
    config: TrainingConfig,
    *,
    progress: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> tuple[nn.Module, Finetuned]:
    """Fine-tune the compact network of a recognizer in its current state, which stays as it is.

    Returns:
        The fine-tuned compact network (weights of the epoch that was best on the selection split), and its figures.
    """
    started = time.perf_counter()
    network = recognizer.compact()
    train(
        network,
        recognizer.splits,
        recognizer.normalization,
        config,
        teacher=recognizer.baseline.teacher(recognizer.mask),
        device=recognizer.device,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        on_epoch=on_epoch,
    )
    seconds = time.perf_counter() - started

    def measured(examples: Examples) -> float:
        logits = predict(
            network, examples.images, recognizer.normalization, batch_size=recognizer.batch_size, precision="float32"
        )
        return accuracy(logits, examples.labels)

    return network, Finetuned(
        epochs=config.epochs,
        validation_accuracy=measured(recognizer.splits.reward),
        selection_accuracy=measured(recognizer.splits.selection),
        test_accuracy=measured(recognizer.splits.test),
        seconds=seconds,
    )
