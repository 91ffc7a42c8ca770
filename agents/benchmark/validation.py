"""Checking a benchmark's rows by playing the recorded actions again."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from agents.benchmark.config import BenchmarkConfig, table_path
from agents.benchmark.rows import Row, objective_of
from agents.selection import Candidate, restore
from agents.workbench import with_latency_table, with_precision, with_weights
from envs.episodes import Episode, validate
from envs.errors import EpisodeError
from envs.objectives import Measurement
from envs.pruning import PruningEnv
from recognizers.device import device_name
from recognizers.errors import ConfigurationError, WeightsError, ZeroOutError
from recognizers.files import read_tensors
from recognizers.masks import weights_sha256


def find_weights(places: Iterable[Path]) -> dict[str, Path]:
    """Weight files by the SHA-256 of what they hold, and of what a network holds that has loaded them.

    Args:
        places: files, and folders that are searched with all below them.

    Raises:
        FileError: a file is missing or corrupt.
    """
    paths = [path for place in places for path in (sorted(place.rglob("*.safetensors")) if place.is_dir() else [place])]
    found: dict[str, Path] = {}
    for path in paths:
        tensors, _ = read_tensors(path)
        found |= {weights_sha256(state): path for state in (tensors, _with_counters(tensors))}
    return found


def _with_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the batch counters that early PyTorch did not save, as loading sets them: to zero."""
    norms = [name.removesuffix("running_mean") for name in tensors if name.split(".")[-1] == "running_mean"]
    return {**{f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}, **tensors}


def validate_rows(
    config: BenchmarkConfig,
    rows: Iterable[Row],
    weights: Mapping[str, Path],
    directory: Path,
    *,
    tolerance: float = 1e-6,
) -> Iterator[Row]:
    """Replay the recorded episodes of all results; yields each row that gives what it records.

    What a network was fine-tuned to is not checked, and neither is what a policy says that it spent.

    Args:
        config: of the benchmark.
        rows: to check; failed runs are passed over.
        weights: base weights by their SHA-256, see :func:`find_weights`.
        directory: of the benchmark, where its latency tables lie.
        tolerance: largest accepted difference of rewards, accuracies and reductions.

    Raises:
        EpisodeError: a row gives other figures than it records, or cannot be checked; it is named.
        WeightsError: the base weights of a row are not there.
    """
    keys = set(config.runs())
    # One base network after the other: environments of equal ones share it, as long as one of them is there.
    finished = [row for row in rows if row.result is not None]
    for row in sorted(finished, key=lambda row: (row.seed, row.chosen.base_sha256 if row.chosen else "", row.key)):
        try:
            if row.key not in keys:
                raise EpisodeError("the benchmark's config.json has no such run")
            env = _environment(config, row, weights, directory)
            _check(env, row, tolerance)
        except (WeightsError, ConfigurationError) as error:
            raise WeightsError(f"{row.key}: {error}") from error
        except ZeroOutError as error:
            raise EpisodeError(f"{row.key}: {error}{_elsewhere(row)}") from error
        yield row


def _elsewhere(row: Row) -> str:
    """What to consider where a row was made on another device than this one."""
    here = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if row.device in (None, here):
        return ""
    return f" (it ran on {row.device}; this is {here}, where SGD and bfloat16 may round otherwise)"


def _environment(config: BenchmarkConfig, row: Row, weights: Mapping[str, Path], directory: Path) -> PruningEnv:
    if row.chosen is None:
        raise EpisodeError("the row records no actions, so it cannot be checked")
    sha256 = row.chosen.base_sha256
    if sha256 not in weights:
        raise WeightsError(
            f"needs the base weights with SHA-256 {sha256[:16]}..., which are not in the benchmark's directory: pass "
            "--weights with their file, or with a folder that holds it"
        )
    task = with_weights(config.settings(row.key), weights[sha256])
    task = with_latency_table(task, table_path(directory, row.key))
    task = with_precision(task, row.precision or "auto")
    task = task.model_copy(update={"actions": task.actions.model_copy(update={"kind": row.actions})})
    return PruningEnv(task)


def _check(env: PruningEnv, row: Row, tolerance: float) -> None:
    chosen, result = row.chosen, row.result
    assert chosen is not None and result is not None
    own = chosen if row.own is None else row.own
    for episode in {id(episode): episode for episode in (chosen, own)}.values():
        validate(env, episode, tolerance=tolerance)
    if objective_of(result) != env.objective:
        raise EpisodeError(f"recorded objective {result.objective}, that of the benchmark is {env.objective!r}")
    steps = len(chosen.actions) if row.steps is None else row.steps
    if not 0 <= steps <= len(chosen.actions):
        raise EpisodeError(f"the final mask is after {steps} actions, and there are {len(chosen.actions)}")
    restore(env, Candidate(chosen, steps, Measurement.complete(0.0), 0.0))
    for name, actual in _figures(env, own, chosen, steps).items():
        recorded = getattr(result, name)
        if not abs(recorded - actual) <= tolerance:
            raise EpisodeError(f"recorded {name} {recorded:.6f}, replayed {actual:.6f}")
    if result.kept_units != env.recognizer.kept_units:
        raise EpisodeError("the recorded kept_units are not those of the replayed mask")


def _figures(env: PruningEnv, own: Episode, chosen: Episode, steps: int) -> dict[str, float]:
    """The figures of a result as they follow from its episodes, with the recognizer in the final state."""
    recognizer = env.recognizer
    return {
        "baseline_validation_accuracy": env.baseline_accuracy,
        "baseline_selection_accuracy": recognizer.baseline_accuracy("selection"),
        "baseline_test_accuracy": recognizer.baseline_accuracy("test"),
        "validation_accuracy": (env.baseline_accuracy, *chosen.accuracies)[steps],
        "selection_accuracy": recognizer.accuracy("selection"),
        "test_accuracy": recognizer.accuracy("test"),
        "parameter_reduction": recognizer.parameter_reduction,
        "macs_reduction": recognizer.macs_reduction,
        **({} if recognizer.reductions.latency is None else {"latency_reduction": recognizer.reductions.latency}),
        "episode_return": own.episode_return,
    }
