"""``zeroout validate``: check a run by playing its episodes again."""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

from agents.cli.arguments import add_command, add_common


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "validate",
        "replay the recorded episodes of a run and refuse any that give other rewards or accuracies",
        "zeroout validate runs/quickstart --limit 100",
    )
    parser.add_argument("directory", type=Path, help="run directory")
    parser.add_argument("--limit", type=int, metavar="N", help="replay the first N episodes only")
    parser.add_argument(
        "--accuracy-tolerance",
        type=float,
        default=1e-6,
        metavar="X",
        help="largest accepted difference, as a fraction (default: 1e-6); other processors may round differently",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Validate."""
    from tqdm import tqdm

    from agents.run_directory import RunDirectory
    from agents.workbench import task_of
    from envs.episodes import read_episodes, validate
    from envs.errors import EpisodeError
    from envs.pruning import PruningEnv
    from recognizers.masks import load_mask

    directory = RunDirectory.open(arguments.directory)
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
