"""The run directory: what every command leaves behind, and where."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from envs.episodes import Episode, append_episodes, repair_episodes
from recognizers.errors import ConfigurationError, FileError
from recognizers.files import write_json
from recognizers.settings import write_yaml


class RunDirectory:
    """Paths of a run, and writing to them so that a kill leaves the last good version.

    ``config.yaml`` (resolved settings), ``recognizer.safetensors`` (base weights), ``episodes.jsonl`` (replayable),
    ``best.mask.safetensors``, ``compact.safetensors`` (the pruned network), ``summary.json``, ``checkpoints/``,
    TensorBoard events in ``tensorboard/``, ``report.html``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.recognizer = path / "recognizer.safetensors"
        self.episodes = path / "episodes.jsonl"
        self.mask = path / "best.mask.safetensors"
        self.compact = path / "compact.safetensors"
        self.summary = path / "summary.json"
        self.learning = path / "learning.jsonl"
        self.training = path / "training.jsonl"
        self.finetuning = path / "finetuning.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    @classmethod
    def create(cls, path: Path | None, command: str, *, resume: bool = False) -> "RunDirectory":
        """Make the directory of a new run, or take up that of an interrupted one.

        Args:
            path: where; by default ``runs/COMMAND-DATE-TIME``.
            command: for the default name.
            resume: go on in a directory that holds a run.

        Raises:
            ConfigurationError: the directory holds a run, and ``resume`` is not set.
            FileError: it cannot be made.
        """
        run = cls(path or Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}")
        if run.config.exists() and not resume:
            raise ConfigurationError(f"{run.path} holds a run already: choose another --out, or pass --resume")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the run directory {run.path}: {error}") from error
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

    def write_config(self, settings: BaseModel) -> None:
        """Write the resolved settings."""
        write_yaml(self.config, settings)

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
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {path}: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
