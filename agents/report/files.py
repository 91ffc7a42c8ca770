"""What a run directory holds, and what to do with it next."""

import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote

from agents.report.run import Run
from recognizers.errors import FileError

_MEANINGS = (
    ("best.mask.safetensors", "the best mask"),
    ("*.mask.safetensors", "a mask"),
    ("recognizer.safetensors", "base weights of the recognizer"),
    ("*.torch-prune.safetensors", "the complete network with torch.nn.utils.prune masks"),
    ("*compact.json", "kept indices of the compact network"),
    ("finetuned.safetensors", "the compact network, fine-tuned"),
    ("*compact*", "the compact network: pruned filters are gone"),
    ("*.onnx", "the network for ONNX runtimes"),
    ("latency.json", "the table that latency is counted by"),
    ("episodes.jsonl", "recorded episodes, for replay and validation"),
    ("config.yaml", "resolved configuration"),
    ("summary.json", "all results"),
    ("polylines.json", "what each layer can lose, as PRO measured it"),
    ("learning.jsonl", "learning of the controller, per iteration"),
    ("training.jsonl", "training of the recognizer, per epoch"),
    ("finetuning.jsonl", "fine-tuning, per epoch"),
    ("overview.png", "overview picture"),
    ("checkpoints", "checkpoints of the controller"),
    ("events.out.tfevents*", "TensorBoard events"),
    ("tensorboard", "TensorBoard events"),
)


@dataclass(frozen=True)
class Listed:
    """A file or folder of the run directory."""

    name: str
    link: str
    meaning: str
    size: str


@dataclass(frozen=True)
class Command:
    """A command line for the next step."""

    line: str
    purpose: str


def listing(directory: Path) -> list[Listed]:
    """Files and folders, without the report itself and temporary files."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise FileError(f"cannot list {directory}: {error}") from error
    listed = []
    for path in paths:
        if path.name.startswith(".") or path.name == "report.html":
            continue
        name = path.name + ("/" if path.is_dir() else "")
        meaning = next((text for pattern, text in _MEANINGS if fnmatch(path.name, pattern)), "")
        # The dot keeps a name with a colon from being read as a scheme.
        listed.append(Listed(name, "./" + quote(name), meaning, "" if path.is_dir() else _size(path.stat().st_size)))
    return listed


def commands(run: Run) -> list[Command]:
    """What to do next with the run directory."""
    directory = _shown(run.directory)
    mask = shlex.quote(str(Path(directory) / "best.mask.safetensors"))
    lines = [
        Command(f"zeroout validate {shlex.quote(directory)}", "Replay the recorded episodes and check their figures")
    ]
    if all(entry.result.finetuned is None for entry in run.entries):
        lines.append(Command(f"zeroout finetune {mask}", "Fine-tune the network that the best mask leaves"))
    if (run.directory / "tensorboard").is_dir():
        lines.append(Command(f"tensorboard --logdir {shlex.quote(directory)}", "Browse everything that was logged"))
    return lines


def _shown(directory: Path) -> str:
    """The directory as it is best typed: relative where it lies under the current one."""
    absolute, current = directory.resolve(), Path.cwd().resolve()
    return str(absolute.relative_to(current)) if absolute.is_relative_to(current) else str(directory)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return (
                f"{size:.0f}\N{NO-BREAK SPACE}{unit}"
                if size >= 10 or unit == "B"
                else f"{size:.1f}\N{NO-BREAK SPACE}{unit}"
            )
        size /= 1000
    return f"{size:.1f}\N{NO-BREAK SPACE}GB"
