"""Does the controller use its memory? ``python -m tests.benchmarks.maze`` fills a table that can be resumed.

In a T-maze the way to turn at the end of a corridor is shown at its beginning only. A controller that remembers
reaches a return of 1; one that does not, 0.5. Every row is one training: it ends as soon as a hundred greedy episodes
reach 95 % of the optimal return, or when the steps are spent. The same controller then plays with its recurrent state
zeroed before each step.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ray.tune.registry import register_env

from agents.cluster import start_ray
from agents.r2d2.algorithm import NUM_ENV_STEPS_LIFETIME, NUM_UPDATES_LIFETIME
from agents.r2d2.policy import R2D2Controller
from tests.agents.r2d2.r2d2_toys import TMaze, maze_config, mean_return
from tests.benchmarks.tables import Row, read_rows, replace_rows, rounded

RESULTS = Path(__file__).parent / "results" / "maze.csv"
KEY = ("delay", "seed")
ENOUGH = 0.95
EPISODES = 100


def train_maze(delay: int, seed: int, max_steps: int) -> Row:
    """One row of the table."""
    name = f"r2d2-maze-{delay}"
    register_env(name, lambda _: TMaze(delay))
    started = time.perf_counter()
    algorithm = maze_config(name, delay).debugging(seed=seed).build_algo()
    try:
        while True:
            figures = algorithm.train()
            with tempfile.TemporaryDirectory() as directory:
                algorithm.env_runner.module.save_to_path(directory)
                controller = R2D2Controller(directory)
            reached, steps = mean_return(controller, TMaze(delay), EPISODES), int(figures[NUM_ENV_STEPS_LIFETIME])
            if reached >= ENOUGH or steps >= max_steps:
                break
    finally:
        algorithm.stop()
    return rounded(
        {
            "delay": delay,
            "seed": seed,
            "return": reached,
            "return with zeroed state": mean_return(controller, TMaze(delay), EPISODES, forget=True),
            "environment steps": steps,
            "updates": int(figures[NUM_UPDATES_LIFETIME]),
            "seconds": time.perf_counter() - started,
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what the table lacks. Exit status 1 if a row misses the return, or is above chance without memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.maze", description=__doc__.splitlines()[0])
    parser.add_argument("--delay", action="append", type=int, help="steps between cue and turn (default: 8 and 30)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each (default: 5)")
    parser.add_argument("--max-steps", type=int, default=30_000, help="environment steps of a training at most")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="CSV", help="the table")
    given = parser.parse_args(arguments)
    start_ray()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = {tuple(row[column] for column in KEY) for row in read_rows(given.out)}
    for delay in given.delay or [8, 30]:
        for seed in range(given.seeds):
            if (str(delay), str(seed)) not in known:
                row = train_maze(delay, seed, given.max_steps)
                replace_rows(given.out, KEY, [row])
                print(json.dumps(row), flush=True)
    rows = read_rows(given.out)
    # Of a hundred fair coins, 65 or more heads are a matter of one in a thousand.
    met = [float(row["return"]) >= ENOUGH and float(row["return with zeroed state"]) <= 0.65 for row in rows]
    print(f"{sum(met)} of {len(met)} reach {ENOUGH:.0%} of the optimal return by memory alone")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
