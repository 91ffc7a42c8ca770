"""What a training leaves behind epoch by epoch: a line in the run directory, and TensorBoard events."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Literal

from torch.utils.tensorboard import SummaryWriter

from agents.run_directory import RunDirectory
from recognizers.training import EpochRecord


@contextmanager
def epoch_log(run: RunDirectory, which: Literal["training", "finetuning"]) -> Iterator[Callable[[EpochRecord], None]]:
    """A function that records an epoch.

    Args:
        run: where.
        which: of its JSON-lines files; also the group of the TensorBoard scalars, ``finetuning/held_out_accuracy``.
    """
    lines = run.training if which == "training" else run.finetuning
    with SummaryWriter(str(run.tensorboard)) as writer:

        def record(epoch: EpochRecord) -> None:
            figures = asdict(epoch)
            run.add_line(lines, figures)
            for name in figures.keys() - {"epoch"}:
                writer.add_scalar(f"{which}/{name}", figures[name], epoch.epoch)

        yield record
