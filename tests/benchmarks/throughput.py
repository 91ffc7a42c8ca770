"""R2D2 and RLlib's own DQN side by side: ``python -m tests.benchmarks.throughput`` fills a table.

Both train on the same task with as many runners, environments and transitions in an update, one after the other,
several times. Their networks are of equal width: an encoder or fully connected layer, then an LSTM; DQN also without.
RLlib's DQN with an LSTM knows uniform replay and single steps only, and one environment per runner. Where episodes end
within a sequence, an update of either has fewer transitions.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from ray.tune.registry import register_env

from agents.cluster import start_ray
from agents.r2d2.algorithm import NUM_ENV_STEPS_LIFETIME, NUM_UPDATES_LIFETIME
from agents.r2d2.settings import R2D2Settings, action_table_of
from agents.run_directory import RunDirectory
from agents.workbench import open_environment, with_weights
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, load_task
from recognizers.settings import override, validate
from tests.benchmarks.stock_dqn import Unmasked, stock_config
from tests.benchmarks.tables import Row, replace_rows, rounded

RESULTS = Path(__file__).parent / "results" / "throughput.csv"
KEY = ("case", "repetition")
RUNNERS = 2
SEQUENCES, STEPS = 32, 24
"""Of an update: R2D2's sequences and their trained steps; DQN gets as many transitions."""
UPDATES_PER_STEP = 0.125
WIDTH = 128
WARM_UP_STEPS = 1000


def r2d2(task: TaskConfig, env: PruningEnv) -> Algorithm:
    """The controller with its default settings."""
    register_env("throughput-r2d2", lambda _: PruningEnv(task, action_mask=True))
    changes = [f"sampling.num_env_runners={RUNNERS}", "sampling.num_envs_per_env_runner=1", "replay.warmup=500"]
    changes += [f"network.{name}={WIDTH}" for name in ("lstm_size", "encoder_size")]
    changes += [f"learning.batch_size={SEQUENCES}", f"replay.train_length={STEPS}"]
    changes += [f"learning.updates_per_step={UPDATES_PER_STEP}", "sampling.cpus_per_env_runner=0.5"]
    settings = validate(R2D2Settings, override({}, changes), "throughput")
    return settings.to_config("throughput-r2d2", action_table=action_table_of(env), seed=0).build_algo()


def dqn(task: TaskConfig, env: PruningEnv, *, lstm: bool) -> Algorithm:
    """RLlib's DQN."""
    register_env("throughput-dqn", lambda _: Unmasked(PruningEnv(task), last_step=sys.maxsize))
    model = DefaultModelConfig(fcnet_hiddens=[WIDTH] if lstm else [WIDTH, WIDTH], use_lstm=lstm)
    model.lstm_cell_size, model.max_seq_len = WIDTH, STEPS
    transitions = SEQUENCES * STEPS
    config = stock_config("throughput-dqn", seed=0).rl_module(model_config=model)
    config.env_runners(num_env_runners=RUNNERS, num_cpus_per_env_runner=0.5, rollout_fragment_length=20)
    # RLlib reckons with the samples of one runner more than there are.
    intensity = transitions * UPDATES_PER_STEP * RUNNERS / (RUNNERS + 1)
    config.training(train_batch_size_per_learner=transitions, training_intensity=intensity)
    return config.build_algo()


CASES: dict[str, Callable[[TaskConfig, PruningEnv], Algorithm]] = {
    "R2D2": r2d2,
    "DQN, LSTM": lambda task, env: dqn(task, env, lstm=True),
    "DQN": lambda task, env: dqn(task, env, lstm=False),
}


def counted(case: str, metrics: dict[str, Any]) -> tuple[float, float]:
    """Environment steps and updates so far."""
    if case == "R2D2":
        return metrics[NUM_ENV_STEPS_LIFETIME], metrics[NUM_UPDATES_LIFETIME]
    updates = metrics.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {}).get(WEIGHTS_SEQ_NO, 0)
    return metrics[ENV_RUNNER_RESULTS][NUM_ENV_STEPS_SAMPLED_LIFETIME], updates


def measure(case: str, task: TaskConfig, env: PruningEnv, seconds: float) -> Row:
    """Train past the warm-up, then count for so many seconds."""
    algorithm = CASES[case](task, env)
    try:
        while (begun := counted(case, algorithm.train()))[0] < WARM_UP_STEPS or begun[1] == 0:
            pass
        started = time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            ended = counted(case, algorithm.train())
    finally:
        algorithm.stop()
    steps, updates = (after - before for after, before in zip(ended, begun, strict=True))
    return {
        "environment steps per second": steps / spent,
        "updates per second": updates / spent,
        "updates per environment step": updates / steps,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cases in turn."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (default: 60)")
    parser.add_argument("--repetitions", type=int, default=3, help="default: 3")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="CSV", help="the table")
    parser.add_argument("overrides", nargs="*", help="dotted key=value settings of the task, digits/convnet")
    given = parser.parse_args(arguments)
    start_ray()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="throughput-") as directory:
        run = RunDirectory.create(Path(directory) / "run", "train")
        env = open_environment(load_task("digits/convnet", given.overrides), run, progress=False)
        task = with_weights(env.task, run.recognizer)
        for repetition in range(given.repetitions):
            for case in given.case or CASES:
                figures = measure(case, task, env, given.seconds)
                row = rounded({"case": case, "repetition": repetition, **figures})
                replace_rows(given.out, KEY, [row])
                print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
