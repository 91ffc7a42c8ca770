"""A training whose learners die: from where it goes on, and how often."""

import json
import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError
from tiny_controller import TINY

from agents import controller
from agents.cluster import start_ray
from agents.controller import ControllerTraining, load_controller
from agents.r2d2.algorithm import R2D2
from agents.r2d2.settings import LearnerSettings
from agents.run_directory import RunDirectory
from agents.workbench import open_environment
from envs.episodes import read_episodes
from envs.tasks import TaskConfig

WITH_LEARNERS = [*TINY, "sampling.num_env_runners=0", "learners.num_learners=2", "learners.cpus_per_learner=0.5"]


@pytest.fixture(scope="module", autouse=True)
def ray_() -> None:
    start_ray()


class Watched(ControllerTraining):
    """Counts what it begins, and has something done in certain rounds, each about 200 environment steps."""

    rounds = 0
    begun = 0
    strike_in: Collection[int] = ()

    def strike(self, algorithm: R2D2) -> None:
        """Lose a learner."""
        raise ActorDiedError

    def _algorithm(self) -> R2D2:
        algorithm = self._built()
        train: Callable[[], Any] = algorithm.train
        self.begun += 1

        def counted() -> Any:
            self.rounds += 1
            if self.rounds in self.strike_in:
                self.strike(algorithm)
            return train()

        algorithm.train = counted
        return algorithm

    def _built(self) -> R2D2:
        """One that learns in this process, although the training reckons with learners that can die."""
        settings = self.controller
        self.controller = settings.model_copy(update={"learners": LearnerSettings()})
        try:
            return super()._algorithm()
        finally:
            self.controller = settings


def trained(
    kind: type[Watched], task: TaskConfig, strike_in: Collection[int], steps: int, interval: int, *settings: str
) -> tuple[Watched, RayError | None]:
    """A training to its end, and what ended it before its time."""
    run = RunDirectory.create(Path("run"), "train")
    env = open_environment(task, run, progress=False)
    changes = [*WITH_LEARNERS, f"total_steps={steps}", f"evaluation_interval={interval}", *settings]
    training = kind(load_controller("quickstart", changes), run, env, seed=1, progress=False)
    training.strike_in = strike_in
    try:
        training.train()
    except RayError as error:
        return training, error
    finally:
        training.stop()
    return training, None


def assert_recorded_once(training: Watched) -> None:
    steps = [json.loads(line)["environment_steps"] for line in training.run.learning.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == training.progress.steps
    assert list(read_episodes(training.run.episodes)) == training.episodes
    own = [episode for episode in training.episodes if (episode.phase, episode.policy) == ("training", "r2d2")]
    played = sum(len(episode.actions) for episode in own)
    # Each of the two environments has an episode under way.
    assert training.progress.steps - 2 * 12 <= played <= training.progress.steps


def test_before_the_first_checkpoint_all_begins_anew(home: Path, task: TaskConfig) -> None:
    demonstrations = ["demonstrations.policies=[random]", "replay.train_length=4", "replay.stride=2"]
    training, error = trained(Watched, task, {3}, 800, 800, *demonstrations, "learning.n_step=4")
    assert error is None
    assert (training.begun, training.rounds) == (2, 2 + 1 + 4)
    assert_recorded_once(training)
    assert [episode.policy for episode in training.episodes].count("random") == 1
    assert training.algorithm._demonstrated.demonstrations.num_episodes == 1


def test_after_a_checkpoint_all_goes_on_from_there(home: Path, task: TaskConfig) -> None:
    training, error = trained(Watched, task, {4}, 800, 400)
    assert error is None
    assert (training.begun, training.rounds) == (2, 3 + 1 + 2)
    assert_recorded_once(training)


def test_it_gives_up_after_three_restarts_without_a_checkpoint(home: Path, task: TaskConfig) -> None:
    training, error = trained(Watched, task, range(2, 100), 800, 200)
    assert isinstance(error, ActorDiedError)
    assert (training.begun, training.rounds) == (1 + controller.RESTARTS, 1 + 1 + controller.RESTARTS)
    # It can be resumed.
    assert 200 <= training.progress.steps < 400
    assert (training.run.checkpoints / training.progress.checkpoint).is_dir()


def test_a_checkpoint_between_two_deaths_makes_up_for_the_first(
    home: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "RESTARTS", 1)
    training, error = trained(Watched, task, {2, 4}, 600, 200)
    assert error is None
    assert training.begun == 3
    assert_recorded_once(training)


def test_an_error_of_a_training_without_learners_is_not_tried_again(home: Path, task: TaskConfig) -> None:
    training, error = trained(Watched, task, {2}, 800, 400, "learners.num_learners=0")
    assert isinstance(error, ActorDiedError)
    assert (training.begun, training.rounds) == (1, 2)


class Killed(Watched):
    """Has two learners in earnest, of which the second dies."""

    def _built(self) -> R2D2:
        return ControllerTraining._algorithm(self)

    def strike(self, algorithm: R2D2) -> None:
        """Kill it."""
        _, second = algorithm.learner_group.foreach_learner(lambda _: os.getpid())
        os.kill(second.get(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("death", "interval"), [(2, 600), (3, 200)])
def test_a_training_survives_the_death_of_one_of_two_learners(
    home: Path, task: TaskConfig, death: int, interval: int
) -> None:
    training, error = trained(Killed, task, {death}, 600, interval)
    assert error is None
    assert training.begun == 2
    assert_recorded_once(training)
