"""Several environments at once: Gymnasium's vector environments, and environments of equal settings in one process."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from envs.pruning import PruningEnv
from envs.tasks import TaskConfig

MakeEnv = Callable[..., PruningEnv]
ENVS = 3


def vector(task: TaskConfig, mode: str, **arguments: Any) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec("zeroout/Pruning-v0", num_envs=ENVS, vectorization_mode=mode, task=task, **arguments)


def with_recovery(task: TaskConfig, recovery: dict[str, Any]) -> TaskConfig:
    return TaskConfig.model_validate({**task.model_dump(), "recovery": recovery})


def follow(task: TaskConfig, envs: VectorEnv[Any, Any, Any], steps: int) -> None:
    """Step a vector environment at random; each of its environments must do what a lone one of its own would do."""
    # All images are one batch in any case, but the baselines are two, so that nothing to be tested is looked up.
    settings = task.recognizer.model_copy(update={"batch_size": 1000})
    alone = [PruningEnv(task.model_copy(update={"recognizer": settings})) for _ in range(ENVS)]
    generator = np.random.default_rng(0)
    observation, info = envs.reset(seed=[5, 6, 7])
    for seed, env in zip((5, 6, 7), alone, strict=True):
        env.reset(seed=seed)
    ended = np.zeros(ENVS, dtype=bool)
    for _ in range(steps):
        actions = np.array(
            [generator.choice(np.flatnonzero(mask)) if mask.any() else 0 for mask in info["action_mask"]]
        )
        observation, rewards, terminated, truncated, info = envs.step(actions)
        for index in np.flatnonzero(~ended):  # the others have begun another episode
            env = alone[index]
            env.recognizer.baseline.forget()
            expected, reward, ends, _, details = env.step(actions[index])
            assert {key: values[index].tolist() for key, values in observation.items()} == {
                key: value.tolist() for key, value in expected.items()
            }
            assert (rewards[index], terminated[index]) == (pytest.approx(reward), ends)
            assert info["accuracy"][index] == details["accuracy"]
            assert {name: kept[index] for name, kept in info["kept_units"].items() if name[0] != "_"} == details[
                "kept_units"
            ]
        assert not truncated.any()
        ended |= terminated
    assert len(np.unique(observation["mask"], axis=0)) == ENVS


@pytest.mark.parametrize(
    "recovery",
    [{"kind": "none"}, {"kind": "bn", "images": 48}, {"kind": "finetune", "steps": 1, "images": 48, "batch_size": 32}],
    ids=lambda recovery: recovery["kind"],
)
def test_sync_shares_one_baseline_and_steps_each_on_its_own(task: TaskConfig, recovery: dict[str, Any]) -> None:
    task = with_recovery(task, recovery)
    envs = vector(task, "sync")
    assert isinstance(envs, SyncVectorEnv)
    recognizers = [env.unwrapped.recognizer for env in envs.envs]  # type: ignore[attr-defined]
    assert len({id(recognizer) for recognizer in recognizers}) == ENVS
    assert len({id(recognizer.baseline) for recognizer in recognizers}) == 1
    before = {name: tensor.clone() for name, tensor in recognizers[0].base_state.items()}
    follow(task, envs, steps=12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in recognizers[0].base_state.items())


def test_a_mask_is_measured_once_for_all(task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = PruningEnv(task), PruningEnv(task)
    for env in (first, second):
        env.reset(seed=0)
    accuracy = first.step(3)[-1]["accuracy"]
    monkeypatch.setattr(type(second.recognizer), "logits", lambda _: pytest.fail("measured again"))
    assert second.step(3)[-1]["accuracy"] == accuracy


@pytest.mark.parametrize("threads", [None, 2])
def test_async_by_fork(task: TaskConfig, threads: int | None) -> None:
    """A process that is forked from one whose OpenMP threads have run must not wait for threads of its own."""
    settings = task.recognizer.model_copy(update={"threads": threads})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.randn(1000, 1000).exp_()  # runs in parallel
        envs = vector(task.model_copy(update={"recognizer": settings}), "async", vector_kwargs={"context": "fork"})
        assert isinstance(envs, AsyncVectorEnv)
        try:
            follow(task, envs, steps=6)
        finally:
            envs.close()
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_async_by_spawn(task: TaskConfig) -> None:
    envs = vector(task, "async", vector_kwargs={"context": "spawn"})
    try:
        follow(task, envs, steps=6)
    finally:
        envs.close()


@pytest.mark.parametrize("count", [40, 100])
def test_validation_images(make_env: MakeEnv, task: TaskConfig, count: int) -> None:
    env = make_env(data={**task.data.model_dump(), "validation_images": count})
    _, info = env.reset(seed=0)
    _, _, _, _, info = env.step(int(info["action_mask"].argmax()))
    accuracy = info["accuracy"]
    assert accuracy * count == pytest.approx(round(accuracy * count))
    assert info["standard_error"] == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / count))
