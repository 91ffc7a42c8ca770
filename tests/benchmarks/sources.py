"""Images and weights of a task: the user's where there are any, random ones where not."""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents.cli.arguments import absolute_spec
from envs.tasks import TaskConfig, make_recognizer
from recognizers.config import find_weights, prepare, save_weights
from recognizers.errors import DataError, FileError
from recognizers.recovery import recalibrate
from tests.benchmarks.cases import Sources, load_settings, slug

_CALIBRATION_IMAGES = 512


def find_sources(
    task: str, *, data: str | None, weights_dir: Path | None, overrides: list[str], folder: Path
) -> Sources:
    """Find images and weights of a task.

    Args:
        task: name of a shipped task, or path of a YAML file.
        data: specification that takes the place of ``cifar10``; None looks where every command looks, and makes
            random images where CIFAR-10 is missing.
        weights_dir: holds ``ARCHITECTURE.safetensors``; None looks in $ZEROOUT_WEIGHTS_DIR. Where there are none, they
            are trained if the task does that on demand, else they are random.
        overrides: the user's own settings.
        folder: for what is made here; it must outlive the measurement.

    Raises:
        DataError: the data are missing or malformed.
        FileError: there is no such folder of weights.
        WeightsError: the weights do not fit.
    """
    config = load_settings(task, overrides)
    chosen, data_name = [], config.data.spec
    if config.data.spec == "cifar10":
        if data is not None:
            chosen.append(f"data.spec={absolute_spec(data)}")
            data_name = data
        elif (problem := _missing(config)) is not None:
            tqdm.write(f"{task}: random images, as {problem}", file=sys.stderr)
            chosen.append(f"data.spec=npz:{_random_images(folder / 'random.npz')}")
            data_name = "random"
    kind, colon, place = data_name.partition(":")
    data_name = f"{kind}{colon}{Path(place).name}"
    config = load_settings(task, [*chosen, *overrides])
    path, weights_name = _weights(config, weights_dir, folder / f"{slug(task)}.safetensors")
    return Sources(data_name, weights_name, (*chosen, f"recognizer.weights={path}", *overrides))


def _missing(config: TaskConfig) -> DataError | None:
    """Why the data cannot be loaded, None where they can."""
    try:
        prepare(config.recognizer, config.data)
    except DataError as error:
        return error
    return None


def _random_images(path: Path) -> Path:
    """Random images and labels in the numbers of CIFAR-10."""
    if not path.exists():
        generator = np.random.default_rng(0)
        arrays: dict[str, np.ndarray] = {}
        for part, count in (("train", 50_000), ("test", 10_000)):
            arrays[f"{part}_images"] = generator.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
            arrays[f"{part}_labels"] = generator.integers(10, size=count)
        np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def _weights(config: TaskConfig, folder: Path | None, made: Path) -> tuple[Path, str]:
    """Path of the weights and what to call them; ``made`` is written where there are none."""
    settings = config.recognizer
    if folder is not None and not folder.is_dir():
        raise FileError(f"no such folder of weights: {folder}")
    if folder is not None and settings.weights is None:
        candidate = folder / f"{settings.architecture}.safetensors"
        found = candidate if candidate.is_file() else None
    else:
        found = find_weights(settings)
    if found is not None:
        return found.absolute(), found.name
    if settings.train_on_demand:
        recognizer = make_recognizer(config, progress=True)
        save_weights(made, recognizer.base_state, recognizer.blueprint)
        return made, "trained"
    parts = prepare(settings, config.data)
    # Statistics of its activations, as training would leave them; without them activations vanish or explode.
    images = parts.normalization.normalize(parts.splits.train.images[:_CALIBRATION_IMAGES])
    recalibrate(parts.network, images, 128, "float32")
    save_weights(made, parts.network.state_dict(), parts.blueprint)
    return made, "random"
