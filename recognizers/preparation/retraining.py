"""Filter replacement and the retraining after it, applied to a baseline."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recognizers.baseline import Baseline
from recognizers.criteria import criterion
from recognizers.preparation.config import FilterReplacement, Provenance
from recognizers.preparation.replacement import replaced_network
from recognizers.recognizer import Recognizer
from recognizers.training import EpochRecord, train


def replace_filters(
    baseline: Baseline,
    settings: FilterReplacement,
    *,
    seed: int = 0,
    progress: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Baseline:
    """A baseline whose least important filters were replaced, and which was retrained.

    Where the settings ask for distillation or hints, the network before the replacement is the teacher.

    Args:
        baseline: the trained network; left unchanged.
        settings: what to replace, and how to retrain.
        seed: of what the criterion draws.
        progress: show a progress bar.
        checkpoint: of the retraining; see :func:`recognizers.training.train`.
        resume: go on from ``checkpoint`` if it exists.
        on_epoch: called with each epoch of the retraining; epochs are counted on from the baseline's history.

    Raises:
        UnknownNameError: no such criterion.
        ConfigurationError: the retraining diverged.
    """
    scores = criterion(settings.criterion)(Recognizer(baseline), np.random.default_rng(seed))
    network = replaced_network(baseline.network, baseline.table, scores, settings)
    before = len(baseline.history)

    def counted_on(record: EpochRecord) -> EpochRecord:
        return dataclasses.replace(record, epoch=before + record.epoch)

    result = train(
        network,
        baseline.splits,
        baseline.normalization,
        settings.training,
        teacher=baseline.teacher(),
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        on_epoch=None if on_epoch is None else lambda record: on_epoch(counted_on(record)),
    )
    return baseline.with_weights(
        network,
        provenance=Provenance(preparation=settings),
        history=(*baseline.history, *map(counted_on, result.history)),
    )
