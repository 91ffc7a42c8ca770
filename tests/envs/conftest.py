"""A tiny task on digits: an episode takes milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.config import DataConfig, RecognizerConfig, prepare, save_weights
from recognizers.training import TrainingConfig, train

torch.set_num_threads(1)

MakeEnv = Callable[..., PruningEnv]
Play = Callable[..., list[tuple[int, dict[str, np.ndarray], float, bool, dict[str, Any]]]]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "actions": {
        "unit": {"kind": "unit"},
        "block": {"kind": "block", "per_layer": 4},
        "large block": {"kind": "block", "per_layer": 2},
        "layer": {"kind": "layer", "per_layer": 4},
    },
    "objective": {
        "tolerance": {"kind": "tolerance", "drop": 0.3},
        "tolerance of MACs": {"kind": "tolerance", "drop": 0.05, "count": "macs"},
        "never ends": {"kind": "tolerance", "drop": 0.999},
        "budget of MACs": {"kind": "budget", "macs": 0.6},
        "budget of parameters": {"kind": "budget", "parameters": 0.6},
    },
    "recovery": {
        "none": {"kind": "none"},
        "bn": {"kind": "bn", "images": 48},
        "finetune": {
            "kind": "finetune",
            "steps": 1,
            "learning_rate": 0.1,
            "images": 48,
            "batch_size": 32,
            "padding": 1,
        },
    },
}


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskConfig:
    """A convnet of widths 6, 8, 8 that is right on most digits; 22 units, blocks of one or two."""
    data = DataConfig(spec="digits", held_out=0.4, selection_share=0.6)
    recognizer = RecognizerConfig(
        architecture="convnet",
        arguments={"widths": [6, 8, 8]},
        precision="float32",
        batch_size=1024,
        training=TrainingConfig(epochs=4, learning_rate=0.1, precision="float32"),
    )
    parts = prepare(recognizer, data)
    train(parts.network, parts.splits, parts.normalization, recognizer.training)
    path: Path = tmp_path_factory.mktemp("weights") / "convnet.safetensors"
    save_weights(path, parts.network.state_dict(), parts.blueprint)
    return TaskConfig.model_validate(
        {
            "name": "digits/tiny",
            "recognizer": recognizer.model_copy(update={"weights": str(path)}),
            "data": data,
            "actions": PRESETS["actions"]["block"],
            "recovery": PRESETS["recovery"]["bn"],
            "objective": PRESETS["objective"]["tolerance"],
        }
    )


@pytest.fixture(scope="session")
def make_env(task: TaskConfig) -> MakeEnv:
    """An environment of the tiny task; sections given by keyword, or by the name of a preset, replace the task's."""

    def make(
        *,
        action_mask: bool = False,
        features: bool = False,
        render_mode: Any = None,
        **sections: dict[str, Any] | str,
    ) -> PruningEnv:
        chosen = {key: PRESETS[key][value] if isinstance(value, str) else value for key, value in sections.items()}
        changed = TaskConfig.model_validate({**task.model_dump(), **chosen})
        return PruningEnv(task=changed, action_mask=action_mask, features=features, render_mode=render_mode)

    return make


@pytest.fixture(scope="session")
def play_randomly() -> Play:
    """Play an episode with random valid actions; (action, observation, reward, terminated, info) of each step."""

    def play(env: PruningEnv, seed: int) -> list[tuple[int, dict[str, np.ndarray], float, bool, dict[str, Any]]]:
        generator = np.random.default_rng(seed)
        _, info = env.reset(seed=seed)
        steps, terminated = [], False
        while not terminated:
            action = int(generator.choice(np.flatnonzero(info["action_mask"])))
            observation, reward, terminated, truncated, info = env.step(action)
            assert not truncated
            steps.append((action, observation, reward, terminated, info))
        return steps

    return play
