"""Asking a controller over HTTP: the actions of the policy itself, whatever comes at once; nothing else gets in."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from starlette.testclient import TestClient

from agents.client import Client, ServerError
from agents.r2d2.policy import R2D2Controller
from envs.objectives import Tolerance
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig

Step = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def client(serve, checkpoint: Path) -> TestClient:
    return serve(controllers={"small": checkpoint}, limits={"batch": 4})


@pytest.fixture(scope="module")
def episodes(task: TaskConfig) -> list[list[Step]]:
    """What three random episodes show, five steps of each."""
    env = PruningEnv(task.model_copy(update={"objective": Tolerance(drop=0.99)}))
    shown = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        steps = [env.reset(seed=seed)]
        while len(steps) < 5:
            observation, _, _, _, info = env.step(generator.choice(env.valid_actions()))
            steps.append((observation, info))
        shown.append(steps)
    return shown


@pytest.fixture(scope="module")
def expected(checkpoint: Path, episodes: list[list[Step]], task: TaskConfig) -> list[list[int]]:
    controller, env, actions = R2D2Controller(checkpoint), PruningEnv(task), []
    for steps in episodes:
        controller.reset(env)
        actions.append([controller.act(observation, info) for observation, info in steps])
    return actions


def asked(client: Client, episodes: list[list[Step]]) -> list[list[int]]:
    """The actions in some episodes side by side."""
    state, actions = None, []
    for steps in zip(*episodes, strict=True):
        observations, infos = zip(*steps, strict=True)
        rewards = [info["reward"] for info in infos] if state else None
        masks = [info["action_mask"] for info in infos]
        taken, state = client.act("small", observations, masks, rewards, state)
        actions.append(taken)
    return [list(taken) for taken in zip(*actions, strict=True)]


def test_actions_are_those_of_the_policy(client: TestClient, episodes, expected) -> None:
    assert len({tuple(actions) for actions in expected}) > 1
    with Client("", http=client) as http:
        (described,) = http.controllers()
        assert described["name"] == "small" and described["observation"]["mask"] == [22]
        assert asked(http, episodes) == expected


def test_requests_at_once_do_not_mix(client: TestClient, episodes, expected) -> None:
    http = Client("", http=client)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: asked(http, [episodes[number % 3]]), range(12)))
    assert answers == [[expected[number % 3]] for number in range(12)]


def _request(episodes: list[list[Step]]) -> dict[str, Any]:
    observation, info = episodes[0][0]
    return {
        "observations": [{key: value.tolist() for key, value in observation.items()}],
        "action_masks": [info["action_mask"].tolist()],
    }


def _changed_state(text: str, **changes: torch.Tensor) -> str:
    tensors = safetensors.torch.load(base64.b64decode(text))
    return base64.b64encode(safetensors.torch.save({**tensors, **changes})).decode()


def test_what_does_not_fit_is_refused(client: TestClient, episodes) -> None:
    right = _request(episodes)
    path = "/v1/controllers/small/act"
    state = client.post(path, json=right).json()["state"]
    (observation,), (mask,) = right["observations"], right["action_masks"]
    wrong = [
        {"observations": []},
        {"observations": [observation] * 5, "action_masks": [mask] * 5},
        {"observations": [observation, observation]},
        {"observations": [{**observation, "accuracy": [[0.5]]}]},
        {"observations": [{**observation, "accuracy": ["x"]}]},
        {"observations": [{**observation, "accuracy": [1.5]}]},
        {"observations": [{**observation, "accuracy": [10**400]}]},
        {"observations": [{**observation, "mask": observation["mask"][1:]}]},
        {"observations": [{**observation, "extra": [1.0]}]},
        {"observations": [{"accuracy": [0.5]}]},
        {"action_masks": [[0] * len(mask)]},
        {"action_masks": [[2] * len(mask)]},
        {"action_masks": [mask[1:]]},
        {"rewards": [0.0, 0.0]},
        {"state": ""},
        {"state": "?" * 10},
        {"state": "A" * 10**5},
        {"state": state[:-4]},
        {"state": _changed_state(state, h=torch.full((1, 16), torch.nan))},
        {"state": _changed_state(state, h=torch.zeros(2, 16))},
        {"state": _changed_state(state, h=torch.zeros(1, 16, dtype=torch.float64))},
        {"state": _changed_state(state, previous_action=torch.tensor([99]))},
        {"state": _changed_state(state, controller=torch.zeros(16, dtype=torch.uint8))},
    ]
    for change in wrong:
        answer = client.post(path, json={**right, **change})
        assert answer.status_code == 422, (change, answer.text)
    raw = client.post(path, content=b'{"observations": [{"accuracy": NaN}], "action_masks": [[1]]}')
    assert raw.status_code == 422
    with pytest.raises(ServerError, match="no such controller") as refused:
        Client("", http=client).act("large", [observation], [mask])
    assert refused.value.status == 404
