"""What ``export``, ``measure`` and ``finetune`` start from: a run directory, or a mask file in or outside of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.run_directory import RunDirectory
from agents.workbench import task_of
from envs.tasks import TaskConfig, load_task, make_recognizer
from recognizers.compact_file import load_compact
from recognizers.errors import ConfigurationError, FileError
from recognizers.export import PrunedNetwork
from recognizers.masks import MaskMetadata, load_mask
from recognizers.recognizer import Recognizer


@dataclass(frozen=True)
class Source:
    """A mask and where it lies.

    Attributes:
        mask: the mask file.
        run: its run directory, if any.
    """

    mask: Path
    run: RunDirectory | None

    @classmethod
    def at(cls, path: Path) -> "Source":
        """The best mask of a run directory, or a mask file.

        Raises:
            FileError: a directory that is no run, or whose run left no mask.
        """
        if path.is_dir():
            run = RunDirectory.open(path)
            if not run.mask.is_file():
                raise FileError(f"{path} holds no mask: its run has not finished, or was none that prunes")
            return cls(run.mask, run)
        folders = [path.parent, path.parent.parent] if path.parent.name == "masks" else [path.parent]
        runs = [run for run in map(RunDirectory, folders) if run.config.is_file()]
        return cls(path, runs[0] if runs else None)

    def task(self, name: str, overrides: Sequence[str]) -> TaskConfig:
        """The named task, or that of the run, on the run's base weights.

        Raises:
            ConfigurationError: there is neither.
        """
        if name:
            return load_task(name, overrides)
        if self.run is None:
            raise ConfigurationError(f"{self.mask} lies in no run directory: name its task with --task")
        return task_of(self.run, overrides)

    def open(self, task: TaskConfig, *, progress: bool) -> "OpenedMask":
        """The recognizer of the task, in its base state, and the mask.

        Raises:
            FileError: a file is missing, truncated or corrupt.
            MaskError: the mask is one of other base weights or of another network.
        """
        recognizer = make_recognizer(task, progress=progress)
        return OpenedMask(self, recognizer, *load_mask(self.mask, recognizer.table, recognizer.base_sha256))


@dataclass(frozen=True)
class OpenedMask:
    """A mask and the recognizer that it is of.

    Attributes:
        source: of the mask.
        recognizer: in its base state.
        mask: ``[n_units]``, 1 kept.
        metadata: of the mask file.
    """

    source: Source
    recognizer: Recognizer
    mask: np.ndarray
    metadata: MaskMetadata

    def pruned(self) -> PrunedNetwork:
        """The network with the weights that its run left under the mask; without a run, recovered from base weights."""
        self.recognizer.load_mask(self.mask)
        pruned, run = PrunedNetwork.of(self.recognizer), self.source.run
        if run is None or self.source.mask != run.mask or not run.compact.is_file():
            return pruned
        # A recovery like finetune depends on the way to the mask, so the run's weights need not be those of today.
        return pruned.with_weights(load_compact(run.compact).state_dict(), str(run.compact))

    def finetuned(self) -> PrunedNetwork:
        """The network with the weights that fine-tuning left.

        Raises:
            FileError: its run has fine-tuned nothing.
        """
        run = self.source.run
        if run is None or self.source.mask != run.mask or not run.finetuned.is_file():
            raise FileError(f"beside {self.source.mask} there is no fine-tuned network: run `zeroout finetune` first")
        self.recognizer.load_mask(self.mask)
        tuned = load_compact(run.finetuned).state_dict()
        return PrunedNetwork.of(self.recognizer).with_weights(tuned, str(run.finetuned))
