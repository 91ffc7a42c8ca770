"""Training the R2D2 controller on a task: iterations, greedy evaluations, checkpoints, candidate masks, logs."""

import itertools
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import RayError
from ray.tune.registry import register_env
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.cluster import start_ray
from agents.demonstrations import demonstrate
from agents.learning_figures import episode_figures, exploration_rates, iteration_figures, postfix, write_scalars
from agents.object_store import Publication, fetch
from agents.r2d2.algorithm import NUM_ENV_STEPS_LIFETIME, NUM_EVALUATIONS_LIFETIME, R2D2
from agents.r2d2.episodes import FinishedEpisode
from agents.r2d2.policy import MODULE_IN_CHECKPOINT, R2D2Controller
from agents.r2d2.settings import R2D2Settings, action_table_of
from agents.run_directory import RunDirectory
from agents.running import Run, Spent, run_policy
from agents.scores import BestSoFar
from agents.selection import choose
from envs.episodes import Episode, measured, play, read_episodes, write_episodes
from envs.objectives import Measurement
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, make_recognizer
from recognizers.errors import FileError
from recognizers.files import read_json, read_text, write_json, write_text
from recognizers.settings import find, read_yaml, validate

RLLIB_ENV = "zeroout/Pruning-v0"
RECENT = 20
"""Episodes that the running means cover."""
RESTARTS = 3
"""How often a training goes on from the same checkpoint after a learner's death."""


def make_env(config: dict[str, Any]) -> PruningEnv:
    """An environment in a runner, from plain values.

    Args:
        config: ``task``, the settings; ``baseline``, the name under which the task's baseline is published.
    """
    # Runners share the machine's cores among themselves; a thread pool in each would only fight for them.
    torch.set_num_threads(1)
    task = validate(TaskConfig, config["task"], "task")
    recognizer = make_recognizer(task, baseline=fetch(config["baseline"]))
    return PruningEnv(task, recognizer=recognizer, action_mask=True)


def load_controller(name: str, overrides: Iterable[str] = ()) -> R2D2Settings:
    """Shipped controller settings by name, or any by the path of a YAML file, with dotted overrides."""
    return validate(R2D2Settings, read_yaml(find("r2d2", name)), f"controller {name}", overrides)


class ControllerTraining:
    """One training run in a run directory, resumable.

    Args:
        controller: settings of what to train.
        run: where.
        env: an environment of the task in this process, for evaluations and the choice of masks; runners share its
            data and base weights.
        seed: of the controller, its exploration, its replay and the environments.
        resume: go on from the run's last checkpoint.
        progress: show a progress bar.
        on_evaluation: called with the figures of each iteration that ends with a greedy evaluation.

    Raises:
        FileError: there is no checkpoint to resume from, or it is corrupt.
    """

    def __init__(
        self,
        controller: R2D2Settings,
        run: RunDirectory,
        env: PruningEnv,
        *,
        seed: int = 0,
        resume: bool = False,
        progress: bool = True,
        on_evaluation: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.controller, self.run, self.env = controller, run, env
        self.seed, self.show_progress, self._on_evaluation = seed, progress, on_evaluation
        self._restarts = 0
        self._begin()
        if resume:
            self._read_progress()
        register_env(RLLIB_ENV, make_env)
        self._published = Publication(env.recognizer, to_runners=controller.sampling.num_env_runners > 0)
        try:
            self.algorithm = self._algorithm()
        except BaseException:
            self._published.close()
            raise
        if self.progress.checkpoint:
            self._restore(run.checkpoints / self.progress.checkpoint)

    def _begin(self) -> None:
        self.progress = Progress()
        self.episodes: list[Episode] = []
        self._evaluated: list[tuple[str, Episode]] = []
        self._best = BestSoFar(self.env.objective, self.env.baseline_accuracy)
        self._recent = deque[Episode](maxlen=RECENT)

    def _algorithm(self) -> R2D2:
        controller, env = self.controller, self.env
        return R2D2(
            config=controller.to_config(
                RLLIB_ENV,
                {"task": env.task.model_dump(mode="json"), "baseline": self._published.name},
                action_table=action_table_of(env, features=controller.network.features),
                seed=self.seed,
            )
        )

    def train(self) -> None:
        """Train until the settings' environment steps, evaluations or seconds are spent.

        Runners may die: Ray starts them again. A learner that dies takes the network with it, so all begin anew from
        the last checkpoint.

        Raises:
            RayError: a learner died again and again without reaching another checkpoint.
        """
        while True:
            try:
                self._train()
                return
            except RayError as error:
                if not self.controller.learners.num_learners or self._restarts == RESTARTS:
                    raise
                self._restarts += 1
                self._restart(error)

    def _restart(self, error: RayError) -> None:
        """Go on from the last checkpoint, or from the beginning, with new learners and runners."""
        lost = self.progress.steps
        self.algorithm.stop()
        self._begin()
        if (self.run.checkpoints / "progress.json").is_file():
            self._read_progress()
        else:
            write_episodes(self.run.episodes, [])
            write_text(self.run.learning, "")
        if self.show_progress:
            reason = type(error).__name__
            tqdm.write(f"a learner was lost at step {lost} ({reason}): going on from step {self.progress.steps}")
        self.algorithm = self._algorithm()
        if self.progress.checkpoint:
            self._restore(self.run.checkpoints / self.progress.checkpoint)

    def _train(self) -> None:
        controller, progress = self.controller, self.progress
        total = controller.total_steps
        bar = tqdm(total=total, initial=progress.steps, desc="r2d2", unit="step", disable=not self.show_progress)
        with SummaryWriter(str(self.run.tensorboard)) as writer, bar:
            began = time.perf_counter() - progress.seconds
            if not progress.checkpoint:
                self._demonstrate()
            while not self._finished():
                before, evaluations = progress.steps, progress.all_evaluations
                metrics = self.algorithm.train()
                progress.steps = int(metrics[NUM_ENV_STEPS_LIFETIME])
                progress.evaluations = int(metrics[NUM_EVALUATIONS_LIFETIME])
                finished = [self._episode(episode) for episode in self.algorithm.finished_episodes()]
                self._best.take(finished, evaluations, progress.all_evaluations)
                self._take(finished)
                record = self._record(metrics)
                due = before // controller.evaluation_interval != progress.steps // controller.evaluation_interval
                progress.seconds = time.perf_counter() - began
                if due := due or self._finished():
                    record |= self._evaluate()
                    progress.seconds = time.perf_counter() - began
                record |= {"evaluations": progress.all_evaluations, "seconds": progress.seconds}
                self._log(writer, record)
                if due:
                    self._checkpoint()
                    if self._on_evaluation is not None:
                        self._on_evaluation(record)
                bar.update(progress.steps - before)
                bar.set_postfix_str(postfix(record))

    def finish(self, name: str = "r2d2") -> Run:
        """Choose the best evaluated controller and the best mask of all episodes; measure the latter once.

        The controller is chosen by its greedy episode, the mask among those of all episodes, both with the selection
        split. The result's own episode is that of the chosen controller.
        """
        chosen = choose(self.env, [episode for _, episode in self._evaluated]).candidate.episode
        module = next(module for module, episode in self._evaluated if episode is chosen)
        best = self.run.checkpoints / "best"
        _copy_directory(self.run.checkpoints / module, best)
        progress = self.progress
        steps = progress.steps + progress.other_steps
        return run_policy(
            self.env,
            R2D2Controller(best),
            name,
            seed=self.seed,
            also=self.episodes,
            spent=Spent(steps, progress.all_evaluations, progress.seconds, rises=tuple(self._best.rises)),
        )

    def stop(self) -> None:
        """Stop runners and learner, and withdraw what was published for them."""
        try:
            self.algorithm.stop()
        finally:
            self._published.close()

    def _restore(self, checkpoint: Path) -> None:
        try:
            self.algorithm.restore_from_path(str(checkpoint.absolute()))
        except Exception as error:  # pickles that were cut short raise nearly anything
            self.stop()
            raise FileError(f"cannot read the checkpoint {checkpoint} (truncated or corrupt): {error!r}") from error

    def _finished(self) -> bool:
        controller, progress = self.controller, self.progress
        return (
            progress.steps >= controller.total_steps
            or (controller.total_evaluations is not None and progress.all_evaluations >= controller.total_evaluations)
            or (controller.max_seconds is not None and progress.seconds >= controller.max_seconds)
        )

    # --- episodes ---

    def _episode(self, finished: FinishedEpisode) -> Episode:
        """A runner's episode as a replayable record; the reductions follow from the actions."""
        env, mask = self.env, np.ones(self.env.recognizer.n_units, dtype=np.int8)
        states = []
        for action, accuracy in zip(finished.actions, (finished.accuracy or [])[1:], strict=True):
            mask[env.units_of(action, mask)] = 0
            states.append(Measurement(accuracy, *env.recognizer.costs.reductions(mask)))
        return Episode(
            task=env.task.name,
            base_sha256=env.recognizer.base_sha256,
            policy="r2d2",
            seed=finished.episode_seed or 0,
            actions=tuple(finished.actions),
            rewards=tuple(finished.rewards),
            **measured(env, states),
            terminated=finished.terminated,
            phase="training",
        )

    def _take(self, episodes: Sequence[Episode]) -> None:
        """Keep and record episodes."""
        self._recent.extend(filter(_sampled, episodes))
        self.episodes += episodes
        self.run.add_episodes(episodes)

    def _demonstrate(self) -> None:
        """Seed replay with the episodes of other policies that the settings name."""
        settings = self.controller.demonstrations
        with self._counted():
            shown = [
                demonstrate(self.env, name, seed=self.seed + number, lstm_size=self.controller.network.lstm_size)
                for name in settings.policies
                for number in range(settings.episodes)
            ]
        self.algorithm.add_demonstrations([demonstration.fragment for demonstration in shown])
        self._take([demonstration.episode for demonstration in shown])

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """What is measured in this process counts as the controller's effort, too, and may be its best so far."""
        steps, evaluations = self.env.environment_steps, self.env.evaluations
        with self._best.watching(self.env, self.progress.all_evaluations):
            yield
        self.progress.other_steps += self.env.environment_steps - steps
        self.progress.other_evaluations += self.env.evaluations - evaluations

    # --- evaluation and checkpoints ---

    def _evaluate(self) -> dict[str, float]:
        """Save the algorithm, play one greedy episode with its module, which is kept for the choice at the end."""
        progress, checkpoints = self.progress, self.run.checkpoints
        # The full state is large (replay), so only the newest is kept; progress.json says which one is complete.
        state, module = f"state-{progress.steps:08d}", f"module-{progress.steps:08d}"
        shutil.rmtree(checkpoints / state, ignore_errors=True)  # what a kill may have left of it
        self.algorithm.save_to_path(str((checkpoints / state).absolute()))
        _copy_directory(checkpoints / state / MODULE_IN_CHECKPOINT, checkpoints / module)
        controller = R2D2Controller(checkpoints / module)
        controller.reset(self.env)
        with self._counted():
            episode = play(self.env, controller.act, seed=self.seed, policy="r2d2", phase="evaluation")
        progress.checkpoint = state
        self._evaluated.append((module, episode))
        self._take([episode])
        return self._best_score() | {
            "evaluation_return": episode.episode_return,
            "evaluation_reduction": episode.parameter_reductions[-1],
            "evaluation_accuracy": episode.accuracies[-1],
        }

    def _checkpoint(self) -> None:
        """Declare the state that was saved last the one to resume from, and remove the older ones."""
        progress = self.progress
        progress.episodes, progress.rises = len(self.episodes), list(self._best.rises)
        progress.modules = {module: self.episodes.index(episode) for module, episode in self._evaluated}
        write_json(self.run.checkpoints / "progress.json", progress.model_dump())
        self._restarts = 0
        for old in self.run.checkpoints.glob("state-*"):
            if old.name != progress.checkpoint:
                shutil.rmtree(old, ignore_errors=True)

    def _read_progress(self) -> None:
        """Take up the last checkpoint; what was recorded after it is cut off, as it will be sampled anew."""
        path = self.run.checkpoints / "progress.json"
        if not path.is_file():
            raise FileError(f"{self.run.path} has no checkpoint to resume from: start again without --resume")
        self.progress = progress = validate(Progress, read_json(path), str(path))
        self._best = BestSoFar(self.env.objective, self.env.baseline_accuracy, progress.rises)
        self.episodes = list(itertools.islice(read_episodes(self.run.episodes), progress.episodes))
        write_episodes(self.run.episodes, self.episodes)
        self._evaluated = [(module, self.episodes[index]) for module, index in progress.modules.items()]
        self._recent.extend([episode for episode in self.episodes if _sampled(episode)][-RECENT:])
        lines = read_text(self.run.learning).splitlines(keepends=True)[: progress.records]
        write_text(self.run.learning, "".join(lines))

    # --- logs ---

    def _record(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The figures of an iteration that a person looks at."""
        progress = self.progress
        rates = exploration_rates(self.controller, progress.steps)
        return {
            "environment_steps": progress.steps,
            **iteration_figures(metrics, progress.steps),
            **self._best_score(),
            **episode_figures(list(self._recent)),
            "epsilon_max": max(rates),
            "epsilon_min": min(rates),
        }

    def _best_score(self) -> dict[str, float]:
        return {} if self._best.score is None else {"best_score": self._best.score}

    def _log(self, writer: SummaryWriter, record: Mapping[str, float]) -> None:
        self.run.add_line(self.run.learning, record)
        self.progress.records += 1
        write_scalars(writer, record, exploration_rates(self.controller, self.progress.steps))


def train_controller(
    controller: R2D2Settings,
    run: RunDirectory,
    env: PruningEnv,
    *,
    seed: int,
    resume: bool = False,
    progress: bool = True,
    name: str = "r2d2",
    address: str | None = None,
) -> Run:
    """Train to the end, choose and measure; runners and learner are stopped in any case.

    Args:
        controller: see :class:`ControllerTraining`, as for the further ones.
        run: where.
        env: in this process.
        seed: of everything drawn.
        resume: go on from the run's last checkpoint.
        progress: show a progress bar.
        name: of the policy, for the result.
        address: of a Ray cluster; this machine by default.
    """
    start_ray(address)
    training = ControllerTraining(controller, run, env, seed=seed, resume=resume, progress=progress)
    try:
        training.train()
        return training.finish(name)
    finally:
        training.stop()


class Progress(BaseModel):
    """Where a training run stands, beside the algorithm's own state."""

    model_config = ConfigDict(extra="forbid")
    checkpoint: str = Field("", description="folder of the algorithm's state to resume from")
    steps: int = Field(0, description="environment steps of training")
    other_steps: int = Field(0, description="environment steps of greedy evaluations and demonstrations")
    evaluations: int = Field(0, description="environment steps and probes of training")
    other_evaluations: int = Field(0, description="evaluations of greedy evaluations and demonstrations")
    seconds: float = Field(0.0, description="spent training")
    rises: list[tuple[int, float]] = Field(
        default_factory=list, description="evaluations spent and best objective score of any state, wherever it rose"
    )
    episodes: int = Field(0, description="lines of episodes.jsonl that belong to the checkpoint")
    records: int = Field(0, description="lines of learning.jsonl that belong to the checkpoint")
    modules: dict[str, int] = Field(default_factory=dict, description="evaluated modules and their greedy episodes")

    @property
    def all_evaluations(self) -> int:
        """What all of it cost."""
        return self.evaluations + self.other_evaluations


def _copy_directory(source: Path, target: Path) -> None:
    """Copy a directory so that ``target`` is complete as soon as it exists."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, temporary)
        temporary.rename(target)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error}") from error


def _sampled(episode: Episode) -> bool:
    """Whether an episode comes from the controller's own training, not from an evaluation or a demonstration."""
    return episode.phase == "training" and episode.policy == "r2d2"
