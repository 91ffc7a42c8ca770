"""The algorithm: asynchronous sampling, throttled learning from prioritised sequences, exact checkpoints."""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn.dqn import DQN
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    REPLAY_BUFFER_ADD_DATA_TIMER,
    REPLAY_BUFFER_SAMPLE_TIMER,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
    WEIGHTS_SEQ_NO,
)

from agents.r2d2.config import R2D2Config
from agents.r2d2.connectors import PREVIOUS_ACTION, PREVIOUS_REWARD
from agents.r2d2.demonstrations import MixedReplay, share_of_demonstrations
from agents.r2d2.episodes import FinishedEpisode, Fragment
from agents.r2d2.learner import MEAN_STEPS, PRIORITIES, SLOTS, TRAIN_LENGTHS, WEIGHTS
from agents.r2d2.module import BURN_IN_LENGTHS
from agents.r2d2.replay import PrioritizedSequenceReplayBuffer, SequenceBatch
from agents.r2d2.waiting import Absence, all_needs_of, needs_of, warn_of_lack
from recognizers.errors import ConfigurationError

COMPONENT_R2D2 = "r2d2"
"""Key of R2D2's own part of an algorithm's state."""
NUM_UPDATES_LIFETIME = "num_updates_lifetime"
"""Result: learner updates so far."""
NUM_ENV_STEPS_LIFETIME = "num_env_steps_lifetime"
"""Result: environment steps that have reached the replay buffer so far."""
NUM_EVALUATIONS_LIFETIME = "num_evaluations_lifetime"
"""Result: environment steps and probes so far."""
REPLAY_BRANCHES = "replay_branches"
"""Result: probed steps that can be drawn from the replay buffer."""
REPLAY_AGE = "replay_age"
"""Result: environment steps since what was drawn last had come in, on average."""
RUNNERS_ALIVE = "runners_alive"
"""Result: remote runners at work."""
REPLAY_SEQUENCES = "replay_sequences"
"""Result: sequences that can be drawn from the replay buffer."""

SAMPLE_WAIT_S = 0.05
"""How long to wait for runners in one round; short, because a round waits for all of them."""
DEATH_WAIT_S = 1.0
"""How long to wait in one round for a runner's return while all are dead."""


def to_learner_batch(batch: SequenceBatch) -> MultiAgentBatch:
    """A batch of sequences as RLlib's learners take it."""
    columns = {
        Columns.OBS: {
            **batch.observations,
            PREVIOUS_ACTION: batch.previous_actions,
            PREVIOUS_REWARD: batch.previous_rewards,
        },
        Columns.ACTIONS: batch.actions,
        Columns.REWARDS: batch.rewards,
        Columns.TERMINATEDS: batch.terminated,
        Columns.STATE_IN: batch.states,
        BURN_IN_LENGTHS: batch.burn_in_lengths,
        TRAIN_LENGTHS: batch.train_lengths,
        MEAN_STEPS: np.full(len(batch.slots), batch.train_lengths.mean(), dtype=np.float32),
        WEIGHTS: batch.weights,
        SLOTS: batch.slots,
    }
    return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=int(batch.train_lengths.sum()))


class R2D2(DQN):
    """Recurrent Experience Replay in Distributed Reinforcement Learning (Kapturowski et al. 2019)."""

    local_replay_buffer: PrioritizedSequenceReplayBuffer
    config: R2D2Config

    @classmethod
    @override(DQN)
    def get_default_config(cls) -> R2D2Config:
        """R2D2's default settings."""
        config: R2D2Config = R2D2Config()
        return config

    @override(DQN)
    def setup(self, config: R2D2Config) -> None:
        """Build runners, learner and replay buffer."""
        self._env_steps = 0
        self._evaluations = 0
        self._updates = 0
        self._replay_age = 0.0
        self._demonstrated: MixedReplay | None = None
        self._updates_due = 0.0
        self._absence = Absence(config.num_env_runners, needs_of(config))
        warn_of_lack(all_needs_of(config))
        super().setup(config)

    @override(Algorithm)
    def _setup_logdir(self) -> None:
        # RLlib would make a directory in the user's home for every algorithm.
        self._temporary_directory: tempfile.TemporaryDirectory[str] | None = None
        if self._storage:
            super()._setup_logdir()
        elif self.config.run_directory is not None:
            Path(self.config.run_directory).mkdir(parents=True, exist_ok=True)
            self._logdir = self.config.run_directory
        else:
            self._temporary_directory = tempfile.TemporaryDirectory(prefix="r2d2-", ignore_cleanup_errors=True)
            self._logdir = self._temporary_directory.name

    @override(Algorithm)
    def cleanup(self) -> None:
        """Stop runners and learners, and remove the temporary directory."""
        super().cleanup()
        if self._temporary_directory is not None:
            self._temporary_directory.cleanup()

    @override(Algorithm)
    def _create_local_replay_buffer_if_necessary(self, config: R2D2Config) -> PrioritizedSequenceReplayBuffer:
        return self._new_buffer(config.replay_capacity)

    def _new_buffer(self, capacity: int) -> PrioritizedSequenceReplayBuffer:
        config = self.config
        return PrioritizedSequenceReplayBuffer(
            capacity,
            burn_in=config.burn_in_len,
            train_length=config.train_len,
            stride=config.replay_stride,
            priority_exponent=config.priority_exponent,
            importance_exponent=config.importance_exponent,
            branch_share=config.branch_share,
            seed=config.seed,
        )

    def add_demonstrations(self, fragments: Sequence[Fragment]) -> None:
        """Seed a second replay buffer, which nothing leaves, with whole episodes of other policies.

        Raises:
            ConfigurationError: they do not fit the observations of the training.
        """
        if not fragments:
            return
        expected = set(self.env_runner.get_spaces()[INPUT_ENV_SINGLE_SPACES][0].spaces)
        if found := expected.symmetric_difference(fragments[0].observations):
            raise ConfigurationError(f"demonstrations and training differ in the observations {sorted(found)}")
        transitions = sum(len(fragment.actions) + len(fragment.branches) for fragment in fragments)
        buffer = self._new_buffer(transitions)
        buffer.add(fragments)
        buffer.drain_finished_episodes()
        self._demonstrated = MixedReplay(self.local_replay_buffer, buffer)

    @override(DQN)
    def training_step(self) -> None:
        """Take in what the runners have sampled, and learn as much as that entitles to.

        Runners sample on while the learner works, but each has a single request open: if learning is the slower part,
        they wait. If sampling is, the learner does. So the ratio of updates to steps holds on any machine.
        """
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            samples = self._collect_samples()
        with self.metrics.log_time((TIMERS, REPLAY_BUFFER_ADD_DATA_TIMER)):
            for fragments, _ in samples:
                self.local_replay_buffer.add(fragments)
        steps = sum(len(fragment.actions) for fragments, _ in samples for fragment in fragments)
        self._env_steps += steps
        self._evaluations += steps + sum(fragment.probes for fragments, _ in samples for fragment in fragments)
        self.metrics.aggregate([results for _, results in samples], key=ENV_RUNNER_RESULTS)

        warm = self._env_steps >= self.config.num_steps_sampled_before_learning_starts
        if warm and self.local_replay_buffer.num_sequences > 0:
            self._updates_due += steps * self.config.updates_per_step
            while self._updates_due >= 1.0:
                self._updates_due -= 1.0
                self._update()
        if samples:
            self._sync_runners()
        self.metrics.log_dict(
            {
                NUM_ENV_STEPS_LIFETIME: self._env_steps,
                NUM_UPDATES_LIFETIME: self._updates,
                NUM_EVALUATIONS_LIFETIME: self._evaluations,
                REPLAY_SEQUENCES: self.local_replay_buffer.num_sequences,
                REPLAY_BRANCHES: self.local_replay_buffer.num_branches,
                REPLAY_AGE: self._replay_age,
                RUNNERS_ALIVE: self.env_runner_group.num_healthy_remote_workers(),
            },
            window=1,
        )

    def _collect_samples(self) -> list[tuple[list[Fragment], Any]]:
        if self.config.num_env_runners == 0:
            return [self.env_runner.sample_fragments()]
        samples: list[tuple[list[Fragment], Any]] = self.env_runner_group.foreach_env_runner_async_fetch_ready(
            func="sample_fragments", tag="sample_fragments", timeout_seconds=SAMPLE_WAIT_S
        )
        return samples

    def _sync_runners(self) -> None:
        """Send the weights and the step counter, on which annealing depends, in one message.

        RLlib would send them separately, and drop whichever comes while the other is still waiting for its runner.
        """
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            state = self.learner_group.get_state(
                components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
            )[COMPONENT_LEARNER]
            self.env_runner_group.sync_env_runner_states(
                config=self.config,
                env_steps_sampled=self._env_steps,
                rl_module_state={key: state[key] for key in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)},
                env_to_module=self.env_to_module_connector,
                module_to_env=self.module_to_env_connector,
            )

    def _update(self) -> None:
        with self.metrics.log_time((TIMERS, REPLAY_BUFFER_SAMPLE_TIMER)):
            sampled = self._sample()
            self._replay_age = float(sampled.ages.mean())
            batch = to_learner_batch(sampled)
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                batch=batch, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._env_steps}
            )
        self._updates += 1
        for result in results:  # of each learner: its part of the batch
            # They are large and of no use in a report.
            slots = np.concatenate(result[DEFAULT_MODULE_ID].pop(SLOTS).peek())
            priorities = np.concatenate(result[DEFAULT_MODULE_ID].pop(PRIORITIES).peek())
            (self._demonstrated or self.local_replay_buffer).update_priorities(slots, priorities)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def _sample(self) -> SequenceBatch:
        config = self.config
        if self._demonstrated is None:
            return self.local_replay_buffer.sample(config.total_train_batch_size)
        share = share_of_demonstrations(config.demonstration_share, config.demonstration_anneal_steps, self._env_steps)
        return self._demonstrated.sample(config.total_train_batch_size, share)

    def finished_episodes(self) -> list[FinishedEpisode]:
        """Records of the episodes completed since the last call."""
        return self.local_replay_buffer.drain_finished_episodes()

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Take runners back into service that Ray has started again.

        RLlib would wait for the dead ones in each round. Here each has one request open, which it answers when it is
        back.
        """
        alive = set(env_runner_group.healthy_worker_ids())
        dead = [index for index in range(1, env_runner_group.num_remote_workers() + 1) if index not in alive]
        self._absence.watch(all_gone=bool(dead) and not alive)
        if not dead:
            return []
        answers = env_runner_group.foreach_env_runner_async_fetch_ready(
            func="ping",
            tag="ping",
            timeout_seconds=0.0 if alive else DEATH_WAIT_S,
            mark_healthy=True,
            healthy_only=False,
            remote_worker_ids=dead,
            return_actor_ids=True,
        )
        restored = [index for index, _ in answers]
        if restored:
            self._sync_runners()
        return restored

    @override(Algorithm)
    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """RLlib's state, and the replay contents and counters, which RLlib leaves out."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_R2D2, components, not_components):
            state[COMPONENT_R2D2] = {
                "replay": self.local_replay_buffer.get_state(),
                "demonstrations": self._demonstrated and self._demonstrated.demonstrations.get_state(),
                "env_steps": self._env_steps,
                "evaluations": self._evaluations,
                "updates": self._updates,
                "updates_due": self._updates_due,
            }
        return state

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`get_state`.

        Where this process samples, episodes go on where they were. Remote runners start new ones; what replay holds of
        the old ones stays as it is.
        """
        super().set_state(state)
        if COMPONENT_R2D2 in state:
            own = state[COMPONENT_R2D2]
            self.local_replay_buffer.set_state(own["replay"])
            if saved := own["demonstrations"]:
                buffer = self._new_buffer(saved["capacity"])
                buffer.set_state(saved)
                self._demonstrated = MixedReplay(self.local_replay_buffer, buffer)
            self._env_steps = own["env_steps"]
            self._evaluations = own["evaluations"]
            self._updates = own["updates"]
            self._updates_due = own["updates_due"]
