"""``zeroout validate``: check a run, or a benchmark, by playing its episodes again."""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

from agents.cli.arguments import absolute_spec, add_command, add_common
from recognizers.errors import ConfigurationError, FileError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "validate",
        "replay the recorded episodes of a run or a benchmark and refuse any that give other rewards or accuracies",
        "zeroout validate runs/quickstart --limit 100\n  zeroout validate runs/smoke/results.jsonl",
    )
    parser.add_argument("path", type=Path, help="run directory, or a benchmark's directory or results.jsonl")
    parser.add_argument("--limit", type=int, metavar="N", help="replay the first N episodes, or rows, only")
    parser.add_argument(
        "--accuracy-tolerance",
        type=float,
        default=1e-6,
        metavar="X",
        help="largest accepted difference, as a fraction (default: 1e-6); other processors may round differently",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="base weights of a benchmark that was run elsewhere: a file, or a folder of files",
    )
    parser.add_argument("--data", metavar="SPEC", help="data in place of a benchmark's, e.g. npz:PATH")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Validate."""
    path: Path = arguments.path
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise FileError(f"no such file: {path}")
        return _benchmark(arguments, path)
    if (path / "results.jsonl").is_file():
        return _benchmark(arguments, path / "results.jsonl")
    if arguments.weights or arguments.data:
        raise ConfigurationError(f"--weights and --data go with a benchmark; {path} holds no results.jsonl")
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from agents.run_directory import RunDirectory
    from agents.workbench import task_of
    from envs.episodes import read_episodes, validate
    from envs.errors import EpisodeError
    from envs.pruning import PruningEnv
    from recognizers.masks import load_mask

    directory = RunDirectory.open(arguments.path)
    env = PruningEnv(task_of(directory))
    masks = [path for path in [directory.mask, *sorted(directory.masks.glob("*.mask.safetensors"))] if path.is_file()]
    for path in masks:
        load_mask(path, env.recognizer.table, env.recognizer.base_sha256)
    episodes = list(islice(read_episodes(directory.episodes), arguments.limit))
    for number, episode in enumerate(tqdm(episodes, desc="replay", unit="episode", disable=arguments.json), start=1):
        try:
            validate(env, episode, tolerance=arguments.accuracy_tolerance)
        except EpisodeError as error:
            raise EpisodeError(f"{directory.episodes}, line {number} ({episode.policy}): {error}") from error
    steps = sum(len(episode.actions) for episode in episodes)
    text = (
        f"valid: {len(episodes)} episodes ({steps:,} steps) replayed as recorded, {len(masks)} masks fit their weights"
    )
    return {"command": "validate", "episodes": len(episodes), "steps": steps, "masks": len(masks), "_text": text}


def _benchmark(arguments: argparse.Namespace, results: Path) -> dict[str, Any]:
    from tqdm import tqdm

    from agents.benchmark import read_rows
    from agents.benchmark.rows import read_settings
    from agents.benchmark.validation import find_weights, validate_rows

    config = read_settings(results.parent / "config.json")
    if arguments.data is not None:
        config = config.with_overrides([f"data.spec={absolute_spec(arguments.data)}"])
    rows = read_rows(results)
    finished = [row for row in rows if row.result is not None][: arguments.limit]
    bases = results.parent / "bases"
    weights = find_weights([*([bases] if bases.is_dir() else []), *arguments.weights])
    checked = validate_rows(config, finished, weights, results.parent, tolerance=arguments.accuracy_tolerance)
    count = sum(1 for _ in tqdm(checked, desc="replay", unit="run", total=len(finished), disable=arguments.json))
    failed = sum(row.failure is not None for row in rows)
    text = f"valid: {count} runs replayed as recorded" + (
        f"; {failed} failed runs hold nothing to check" if failed else ""
    )
    return {"command": "validate", "runs": count, "failed": failed, "_text": text}
