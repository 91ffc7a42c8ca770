"""The run directory: what every command leaves behind, and where."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from envs.episodes import Episode, append_episodes, repair_episodes
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError, FileError
from recognizers.files import append_text, write_json
from recognizers.settings import read_yaml, validate, write_yaml


class RunSettings(BaseModel):
    """What a command ran: the content of ``config.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    command: str
    task: TaskConfig
    seed: int = Field(ge=0, description="of everything random beside the data's division and the recognizer's training")
    policy: str | None = Field(None, description="the policy that ran")
    controller: dict[str, Any] | None = Field(None, description="settings of the controller that was trained")
    mask: str | None = Field(None, description="the mask that was fine-tuned")


class RunDirectory:
    """Paths of a run, and writing to them so that a kill leaves the last good version.

    ``config.yaml`` (resolved settings), ``recognizer.safetensors`` (base weights), ``latency.json`` (the table that
    latency is counted by), ``episodes.jsonl`` (replayable), ``best.mask.safetensors``, ``masks/`` (of every policy,
    where several ran), ``compact.safetensors`` (the pruned network), ``finetuned.safetensors`` (the same, fine-tuned),
    ``polylines.json`` (what PRO measured), ``summary.json``, ``checkpoints/``, TensorBoard events in ``tensorboard/``,
    ``report.html``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.recognizer = path / "recognizer.safetensors"
        self.latency_table = path / "latency.json"
        self.episodes = path / "episodes.jsonl"
        self.mask = path / "best.mask.safetensors"
        self.masks = path / "masks"
        self.compact = path / "compact.safetensors"
        self.finetuned = path / "finetuned.safetensors"
        self.summary = path / "summary.json"
        self.polylines = path / "polylines.json"
        self.learning = path / "learning.jsonl"
        self.training = path / "training.jsonl"
        self.finetuning = path / "finetuning.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"

    @classmethod
    def create(cls, path: Path | None, command: str, *, resume: bool = False) -> "RunDirectory":
        """The directory of a new run, made with its first file, or that of an interrupted one.

        Args:
            path: where; by default ``runs/COMMAND-DATE-TIME``.
            command: for the default name.
            resume: go on in a directory that holds a run.

        Raises:
            ConfigurationError: the directory holds a run, and ``resume`` is not set.
        """
        run = cls(path or Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}")
        if run.config.exists() and not resume:
            raise ConfigurationError(f"{run.path} holds a run already: choose another --out, or pass --resume")
        if run.episodes.exists():
            repair_episodes(run.episodes)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run.

        Raises:
            FileError: there is none.
        """
        run = cls(path)
        if not run.config.is_file():
            raise FileError(f"{path} is not a run directory: it has no config.yaml")
        return run

    def write_settings(self, settings: RunSettings) -> None:
        """Write the resolved settings."""
        write_yaml(self.config, settings)

    def read_settings(self) -> RunSettings:
        """Read the settings of an existing run.

        Raises:
            FileError: there is none.
            ConfigurationError: the file is not one of this zeroout.
        """
        return validate(RunSettings, read_yaml(self.config), str(self.config))

    def write_summary(self, command: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``summary.json`` and return it."""
        summary = {"command": command, "run_directory": str(self.path), "created": _now(), **content}
        write_json(self.summary, summary)
        return summary

    def add_episodes(self, episodes: Iterable[Episode]) -> None:
        """Append episodes."""
        append_episodes(self.episodes, episodes)

    def add_line(self, path: Path, record: Mapping[str, Any]) -> None:
        """Append a record to one of the JSON-lines files."""
        append_text(path, json.dumps(record) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
