"""Baselines in Ray's object store: runners read them without copies, never write to them, and need no files."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from runner_memory import SMAPS, measure
from tiny_controller import TINY
from torch import nn

from agents.cluster import start_ray
from agents.controller import ControllerTraining, load_controller, make_env
from agents.object_store import NAMESPACE, Publication, fetch
from agents.r2d2.algorithm import RUNNERS_ALIVE
from agents.run_directory import RunDirectory
from agents.workbench import open_environment
from envs.episodes import Episode, play
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig
from recognizers.baseline import Baseline
from recognizers.blueprint import Blueprint
from recognizers.config import save_weights
from recognizers.costs import Cost
from recognizers.data import load_dataset
from recognizers.errors import ConfigurationError
from recognizers.masks import weights_sha256
from recognizers.recognizer import Recognizer
from recognizers.zoo import create, register_architecture, registry
from tests.waiting import wait_until

RECOVERIES = [{"kind": "none"}, {"kind": "bn", "images": 64}, {"kind": "finetune", "steps": 2, "images": 64}]
REMOTE = [*TINY, "sampling.cpus_per_env_runner=0.1", "evaluation_interval=60"]


@pytest.fixture(scope="module", autouse=True)
def ray_() -> Iterator[None]:
    start_ray()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # other processes cannot import it
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def files(tmp_path: Path, task: TaskConfig) -> TaskConfig:
    """The small task with data and weights in files of this test."""
    digits = load_dataset("digits")
    np.savez(
        tmp_path / "digits.npz",
        train_images=digits.train_images[:, 0].numpy(),
        train_labels=digits.train_labels.numpy(),
        test_images=digits.test_images[:, 0].numpy(),
        test_labels=digits.test_labels.numpy(),
    )
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(Path(str(task.recognizer.weights)).read_bytes())
    return task.model_copy(
        update={
            "data": task.data.model_copy(update={"spec": f"npz:{tmp_path / 'digits.npz'}"}),
            "recognizer": task.recognizer.model_copy(update={"weights": str(weights)}),
        }
    )


def remove_files(task: TaskConfig) -> None:
    Path(str(task.recognizer.weights)).unlink()
    Path(task.data.spec.removeprefix("npz:")).unlink()


def with_recovery(task: TaskConfig, recovery: dict[str, Any]) -> TaskConfig:
    return TaskConfig.model_validate({**task.model_dump(), "recovery": recovery})


def contents(baseline: Baseline) -> str:
    """A checksum of all that a baseline shares."""
    images = {
        f"{name} {side}": getattr(getattr(baseline.splits, name), side)
        for name in ("train", "reward", "selection", "test")
        for side in ("images", "labels")
    }
    return weights_sha256({**images, **baseline.state, **baseline.inputs})


def first_valid(_: Any, info: dict[str, Any]) -> int:
    return int(info["action_mask"].argmax())


def remote(env: PruningEnv, publication: Publication, **changes: Any) -> dict[str, Any]:
    """What make_env takes."""
    task = env.task.model_copy(update=changes)
    return {"task": task.model_dump(mode="json"), "baseline": publication.name}


class Runner:
    """A process that builds environments and looks into them."""

    def __init__(self) -> None:
        self.envs: list[PruningEnv] = []

    def process(self) -> int:
        return os.getpid()

    def play(self, seed: int) -> Episode:
        return play(self.envs[-1], first_valid, seed=seed, policy="first")

    def contents(self) -> str:
        return contents(self.envs[-1].recognizer.baseline)

    def build(self, config: dict[str, Any]) -> dict[str, Any]:
        env = make_env(config)
        self.envs.append(env)
        baseline = env.recognizer.baseline
        tensors = [*baseline.splits.train, *baseline.splits.reward, *baseline.inputs.values()]
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        stores = [
            tuple(int(end, 16) for end in fields[0].split("-"))
            for fields in maps
            if len(fields) > 5 and ("plasma" in fields[5] or "/dev/shm" in fields[5])
        ]
        outside = [
            tensor.shape
            for tensor in [*tensors, *baseline.state.values(), *env.recognizer._compact.module.parameters()]
            if not any(start <= tensor.data_ptr() < end for start, end in stores)
        ]
        return {
            "outside the store": outside,
            "users": sum(other.recognizer.baseline is baseline for other in self.envs),
            "inputs": sorted(baseline.inputs),
            "threads": torch.get_num_threads(),
        }

    def look_at_tied(self, name: str) -> tuple[Cost, np.ndarray]:
        register_architecture("tied")(Tied)
        recognizer = Recognizer(fetch(name))
        return recognizer.costs.baseline, recognizer.logits().numpy()


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    actor = ray.remote(Runner).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    yield actor
    ray.kill(actor)


@pytest.fixture
def published(files: TaskConfig) -> Iterator[tuple[PruningEnv, Publication]]:
    """An environment in this process that has been used, and its baseline in the object store; the files are gone."""
    env = PruningEnv(files)
    play(env, first_valid, seed=0, policy="first")
    remove_files(files)
    publication = Publication(env.recognizer, to_runners=True)
    yield env, publication
    publication.close()


class TestRunner:
    def test_reads_without_copies_and_without_files(
        self, runner: Any, published: tuple[PruningEnv, Publication]
    ) -> None:
        env, publication = published
        _, state = (ray.get(runner.build.remote(remote(env, publication))) for _ in range(2))
        assert state["outside the store"] == []
        assert state["users"] == 2
        assert state["inputs"] == ["calibration 64", "reward"]
        assert state["threads"] == 1
        assert ray.get(runner.contents.remote()) == contents(env.recognizer.baseline)

    @pytest.mark.parametrize("recovery", RECOVERIES, ids=lambda recovery: recovery["kind"])
    def test_plays_as_here_and_leaves_what_is_shared_alone(
        self, runner: Any, files: TaskConfig, recovery: dict[str, Any]
    ) -> None:
        env = PruningEnv(with_recovery(files, recovery))
        episodes = [play(env, first_valid, seed=seed, policy="first") for seed in (3, 4)]
        env.recognizer.network  # noqa: B018 - what looks at it must not write into it, either
        publication = Publication(env.recognizer, to_runners=True)
        try:
            runner.build.remote(remote(env, publication))
            before = ray.get(runner.contents.remote())
            assert [ray.get(runner.play.remote(seed)) for seed in (3, 4)] == episodes
            assert ray.get(runner.contents.remote()) == before == contents(env.recognizer.baseline)
        finally:
            publication.close()

    def test_a_restarted_one_finds_the_baseline_again(
        self, runner: Any, published: tuple[PruningEnv, Publication]
    ) -> None:
        env, publication = published
        process = ray.get(runner.process.remote())
        # The actor that knows the reference may die, too, while nobody reads.
        ray.kill(ray.get_actor(publication.name, NAMESPACE), no_restart=False)
        ray.kill(runner, no_restart=False)
        wait_until(lambda: ray.get(runner.process.remote()) != process, "another runner comes", 60)
        assert ray.get(runner.build.remote(remote(env, publication)))["outside the store"] == []

    def test_nothing_is_left_once_it_is_closed(self, runner: Any, published: tuple[PruningEnv, Publication]) -> None:
        env, publication = published
        publication.close()
        publication.close()
        with pytest.raises(ray.exceptions.RayTaskError, match=r"published no more.*--resume"):
            ray.get(runner.build.remote(remote(env, publication)))
        wait_until(lambda: not is_published(publication.name), "the publication goes")


def is_published(name: str) -> bool:
    try:
        return ray.get_actor(name, NAMESPACE) is not None
    except ValueError:
        return False


class Tied(nn.Module):
    """The same weights in two places, and a buffer that no state dict holds."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = create("convnet", classes=classes, in_channels=in_channels, widths=[6, 8, 8])
        self.first, self.second = nn.Linear(classes, classes), nn.Linear(classes, classes)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * self.second(self.first(self.body(images)))


def test_tied_weights_stay_tied(runner: Any, task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = PruningEnv(task).recognizer.baseline
    blueprint = Blueprint("tied", 10, 1)
    monkeypatch.setitem(registry._ARCHITECTURES._entries, "tied", Tied)
    tied = Baseline(blueprint.create(), baseline.splits, baseline.normalization, batch_size=1024, blueprint=blueprint)
    publication = Publication(Recognizer(tied), to_runners=True)
    try:
        costs, logits = ray.get(runner.look_at_tied.remote(publication.name))
    finally:
        publication.close()
    assert costs == tied.costs.baseline
    assert np.array_equal(logits, Recognizer(tied).logits().numpy())


class TestThisProcess:
    def test_shares_the_baseline_as_it_is(self, task: TaskConfig) -> None:
        env = PruningEnv(task)
        publication = Publication(env.recognizer, to_runners=False)
        assert fetch(publication.name) is env.recognizer.baseline
        assert make_env(remote(env, publication)).recognizer.baseline is env.recognizer.baseline
        assert not is_published(publication.name)

    def test_unknown_name(self) -> None:
        with pytest.raises(ConfigurationError, match="baseline-x is published no more"):
            fetch("baseline-x")

    def test_a_network_without_a_name_is_refused(self, task: TaskConfig) -> None:
        baseline = PruningEnv(task).recognizer.baseline
        nameless = Baseline(baseline.network, baseline.splits, baseline.normalization, table=baseline.table)
        with pytest.raises(ConfigurationError, match="was not created by name"):
            Publication(Recognizer(nameless), to_runners=True)


def training(
    run: RunDirectory, task: TaskConfig, runners: int, steps: int, *, resume: bool = False
) -> ControllerTraining:
    env = open_environment(task, run, progress=False)
    settings = [*REMOTE, f"sampling.num_env_runners={runners}", f"total_steps={steps}"]
    return ControllerTraining(load_controller("quickstart", settings), run, env, seed=1, resume=resume, progress=False)


class TestTraining:
    def test_runners_share_it_and_checkpoints_know_nothing_of_it(self, home: Path, files: TaskConfig) -> None:
        run = RunDirectory.create(Path("run"), "train")
        trained = training(run, files, 1, 60)
        name = trained.algorithm.config.env_config["baseline"]
        remove_files(files)
        try:
            trained.train()
            assert is_published(name)
            states = trained.algorithm.env_runner_group.foreach_env_runner(look, local_env_runner=False)
            assert states == [(2, 1, contents(trained.env.recognizer.baseline))]
        finally:
            trained.stop()
        wait_until(lambda: not is_published(name), "the publication goes")
        pickles = [path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()]
        assert any(name.encode() in pickle for pickle in pickles)
        assert not any(b"ObjectRef" in pickle for pickle in pickles)

    def test_one_that_cannot_begin_leaves_nothing_behind(
        self, home: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names: list[str] = []
        close = Publication.close
        monkeypatch.setattr(Publication, "close", lambda self: (names.append(self.name), close(self)))
        with pytest.raises(ValueError, match="scheduled"):
            monkeypatch.setattr("agents.controller.R2D2", lambda config: (_ for _ in ()).throw(ValueError("scheduled")))
            training(RunDirectory.create(Path("run"), "train"), task, 1, 60)
        wait_until(lambda: not is_published(names[0]), "the publication goes")

    @pytest.mark.slow
    def test_a_killed_runner_comes_back(self, home: Path, files: TaskConfig) -> None:
        run = RunDirectory.create(Path("run"), "train")
        trained = training(run, files, 2, 3000)
        remove_files(files)
        algorithm, group = trained.algorithm, trained.algorithm.env_runner_group
        try:
            algorithm.train()
            group.foreach_env_runner(lambda _: os._exit(1), remote_worker_ids=[1], local_env_runner=False)
            assert algorithm.train()[RUNNERS_ALIVE] == 1
            wait_until(lambda: algorithm.train()[RUNNERS_ALIVE] == 2, "it comes back", 120)
            states = group.foreach_env_runner(look, local_env_runner=False)
            assert states == [(2, 1, contents(trained.env.recognizer.baseline))] * 2
        finally:
            trained.stop()

    @pytest.mark.slow
    def test_a_resumed_one_does_not_look_for_the_old_name(self, home: Path, task: TaskConfig) -> None:
        run = RunDirectory.create(Path("run"), "train")
        first = training(run, task, 1, 60)
        try:
            first.train()
        finally:
            first.stop()
        second = training(run, task, 1, 400, resume=True)
        try:
            second.train()
            assert second.progress.steps >= 400
            states = second.algorithm.env_runner_group.foreach_env_runner(look, local_env_runner=False)
            assert states == [(2, 1, contents(second.env.recognizer.baseline))]
        finally:
            second.stop()


def look(runner: Any) -> tuple[int, int, str]:
    """Of an RLlib runner: its environments, their baselines, and what those hold."""
    baselines = [env.unwrapped.recognizer.baseline for env in runner.env.unwrapped.envs]
    return len(baselines), len(set(map(id, baselines))), contents(baselines[0])


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's figures of private memory")
def test_four_runners_hold_the_data_once(tmp_path: Path, task: TaskConfig) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        f"{part}_images": generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        for part, count in (("train", 30_000), ("test", 100))
    }
    labels = {f"{part}_labels": generator.integers(0, 10, count) for part, count in (("train", 30_000), ("test", 100))}
    np.savez(tmp_path / "large.npz", **arrays, **labels)
    blueprint = Blueprint("convnet", 10, 3, {"widths": [6, 8, 8]})
    save_weights(tmp_path / "weights.safetensors", blueprint.create().state_dict(), blueprint)
    data = {"spec": f"npz:{tmp_path / 'large.npz'}", "held_out": 0.05, "validation_images": 100}
    recognizer = {"weights": str(tmp_path / "weights.safetensors")}
    large = task.model_copy(
        update={
            "data": task.data.model_copy(update=data),
            "recognizer": task.recognizer.model_copy(update=recognizer),
        }
    )
    gc.collect()
    figures = measure(large, tmp_path)
    print(figures)
    assert figures.copy > 90e6
    assert figures.data_own > 3.5 * figures.copy, "the measurement does not see what runners load themselves"
    assert figures.copy + figures.data_shared < 1.2 * figures.copy, str(figures)
