"""Training the controller in a run directory: what it leaves, resume, and the trained policy."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_controller import TINY

from agents.cluster import start_ray
from agents.controller import ControllerTraining, load_controller
from agents.policy import make_policy
from agents.run_directory import RunDirectory
from agents.workbench import open_environment
from envs.episodes import Episode, play, read_episodes, validate
from envs.tasks import TaskConfig
from recognizers.errors import ConfigurationError, FileError

LOCAL = [*TINY, "sampling.num_env_runners=0", "evaluation_interval=200"]


@pytest.fixture(scope="module", autouse=True)
def ray_() -> None:
    start_ray()


def training(
    run: RunDirectory, task: TaskConfig, steps: int, *settings: str, resume: bool = False
) -> ControllerTraining:
    env = open_environment(task, run, progress=False)
    controller = load_controller("quickstart", [*LOCAL, f"total_steps={steps}", *settings])
    return ControllerTraining(controller, run, env, seed=1, resume=resume, progress=False)


def test_training_leaves_replayable_episodes_and_a_policy(home: Path, task: TaskConfig) -> None:
    run = RunDirectory.create(Path("run"), "train")
    trained = training(run, task, 400)
    try:
        trained.train()
        done = trained.finish()
    finally:
        trained.stop()
    assert done.result.parameter_reduction > 0
    assert done.result.environment_steps >= 400
    episodes = list(read_episodes(run.episodes))
    assert {episode.phase for episode in episodes} == {"training", "evaluation"}
    for episode in episodes[::10]:
        validate(trained.env, episode)
    lines = [json.loads(line) for line in run.learning.read_text().splitlines()]
    assert lines[-1]["environment_steps"] >= 400 and "evaluation_return" in lines[-1]
    assert lines[-1]["best_score"] == pytest.approx(
        max(
            c
            for e in episodes
            for c, a in zip(e.parameter_reductions, e.accuracies, strict=True)
            if _within(trained, a)
        )
    )
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        *(f"controller/{name}" for line in lines for name in line if name != "environment_steps"),
        "epsilon/0",
        "epsilon/1",
    }
    figures = {name for line in lines for name in line}
    assert figures >= {
        *("episode_return_mean", "episode_reduction_mean", "episode_accuracy_mean", "evaluation_reduction"),
        *("mean_q", "td_error", "priority", "replay_age", "updates_per_step", "evaluations"),
        *(f"{phase}_milliseconds" for phase in ("zero_out", "recover", "measure", "probe")),
    }
    assert lines[-1]["updates_per_step"] == pytest.approx(0.125, abs=0.03)
    assert lines[-1]["recover_milliseconds"] > 0 == lines[-1]["probe_milliseconds"]

    policy = make_policy(f"r2d2:{run.path}")
    policy.reset(trained.env)
    episode = play(trained.env, policy.act, seed=1, policy="r2d2")
    assert episode.actions == done.episodes[0].actions
    assert not list((home).glob("ray_results"))


def test_lookahead_counts_every_evaluation_and_ends_when_they_are_spent(home: Path, task: TaskConfig) -> None:
    run = RunDirectory.create(Path("run"), "train")
    trained = training(run, task, 10_000, "lookahead.k=3", "total_evaluations=1000")
    try:
        trained.train()
        progress = trained.progress
        done = trained.finish()
    finally:
        trained.stop()
    # An iteration has 200 steps, and four evaluations for most of them.
    assert 1000 <= progress.all_evaluations < 2000
    assert progress.steps < progress.evaluations <= 4 * progress.steps
    own = done.episodes[0]
    assert done.result.environment_steps == progress.steps + progress.other_steps + len(own.actions)
    assert progress.all_evaluations < done.result.evaluations <= progress.all_evaluations + 4 * len(own.actions)
    last = json.loads(run.learning.read_text().splitlines()[-1])
    assert last["evaluations"] == progress.all_evaluations
    assert 0 < last["replay_branches"] <= progress.evaluations - 2 * progress.steps

    guided, plain = make_policy(f"r2d2:{run.path}"), make_policy(f"r2d2:{run.path}", k=1)
    for policy, probes in ((guided, True), (plain, False)):
        policy.reset(trained.env)
        before = trained.env.evaluations
        episode = play(trained.env, policy.act, seed=1, policy="r2d2")
        assert (trained.env.evaluations - before > len(episode.actions)) is probes
        assert not probes or episode.actions == own.actions


def test_demonstrations_seed_replay_and_are_paid_for(home: Path, task: TaskConfig) -> None:
    run = RunDirectory.create(Path("run"), "train")
    settings = ["demonstrations.policies=[lookahead, random]", "demonstrations.episodes=2", "replay.train_length=4"]
    trained = training(run, task, 200, *settings, "replay.stride=2", "learning.n_step=4")
    try:
        trained.train()
        shown = [e for e in trained.episodes if e.policy != "r2d2"]
        evaluation = trained.episodes[-1]
        assert [e.policy for e in shown] == ["lookahead", "lookahead", "random", "random"]
        assert shown == trained.episodes[:4]
        buffer = trained.algorithm._demonstrated.demonstrations
        assert buffer.num_episodes == 4
        steps = sum(len(e.actions) for e in shown)
        # Greedy lookahead measures all actions; what it did not take is a branch.
        valid = 2 * sum(_valid_actions(trained, shown[0]))
        assert buffer.num_branches == valid - 2 * len(shown[0].actions) > 0
        assert trained.progress.other_steps == steps + len(evaluation.actions)
        assert trained.progress.other_evaluations == steps + valid + len(evaluation.actions)
        # None of them counts as the controller's own learning.
        own = [e for e in trained.episodes if e.policy == "r2d2" and e.phase == "training"]
        assert list(trained._recent) == own[-20:]
        done = trained.finish()
        assert done.result.evaluations > valid
    finally:
        trained.stop()
    with pytest.raises(ConfigurationError, match="kind 'mask'"):
        refused = training(RunDirectory.create(Path("other"), "train"), task, 200, "demonstrations.policies=['pro:l1']")
        try:
            refused.train()
        finally:
            refused.stop()


def _valid_actions(trained: ControllerTraining, episode: Episode) -> list[int]:
    """How many actions were valid before each step."""
    counts = []

    def choose(observation: object, info: dict[str, Any]) -> int:
        counts.append(int(info["action_mask"].sum()))
        return int(episode.actions[len(counts) - 1])

    play(trained.env, choose, seed=episode.seed, policy="again")
    return counts


def _within(trained: ControllerTraining, accuracy: float) -> bool:
    env = trained.env
    return accuracy >= env.baseline_accuracy - env.objective.drop - 1e-6  # type: ignore[attr-defined]


def test_resume_goes_on_from_the_checkpoint(home: Path, task: TaskConfig) -> None:
    run = RunDirectory.create(Path("run"), "train")
    first = training(run, task, 200)
    try:
        first.train()
    finally:
        first.stop()
    at_checkpoint = len(first.episodes)
    run.add_episodes(first.episodes[:3])  # as if a kill had come after more sampling
    second = training(run, task, 400, resume=True)
    try:
        assert len(second.episodes) == at_checkpoint
        assert second.progress.steps == first.progress.steps
        second.train()
        assert second.progress.steps >= 400
        assert second.algorithm.local_replay_buffer.num_sequences > 0
        done = second.finish()
    finally:
        second.stop()
    assert done.result.environment_steps >= 400
    assert len(list(read_episodes(run.episodes))) == len(second.episodes)
    steps = [json.loads(line)["environment_steps"] for line in run.learning.read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_corrupt_checkpoint_is_said(home: Path, task: TaskConfig) -> None:
    run = RunDirectory.create(Path("run"), "train")
    first = training(run, task, 100)
    try:
        first.train()
    finally:
        first.stop()
    for path in (run.checkpoints / first.progress.checkpoint).rglob("*.pkl"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(FileError, match="truncated or corrupt"):
        training(run, task, 200, resume=True)


def test_nothing_to_resume_from_is_said(home: Path, task: TaskConfig) -> None:
    run = RunDirectory.create(Path("run"), "train")
    with pytest.raises(FileError, match="no checkpoint to resume from"):
        training(run, task, 200, resume=True)


def test_a_controller_of_another_network_is_refused(home: Path, task: TaskConfig) -> None:
    run = RunDirectory.create(Path("run"), "train")
    trained = training(run, task, 100)
    try:
        trained.train()
        trained.finish()
    finally:
        trained.stop()
    other = task.model_copy(update={"actions": task.actions.model_copy(update={"kind": "unit"})})
    policy = make_policy(f"r2d2:{run.path}")
    with pytest.raises(ConfigurationError, match="trained for"):
        policy.reset(open_environment(other, RunDirectory.create(Path("other"), "prune"), progress=False))
