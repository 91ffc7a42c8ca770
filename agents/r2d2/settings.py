"""The controller's settings as a user writes them in YAML."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from agents.r2d2.config import R2D2Config
from recognizers.unit_features import unit_features

ITERATION_STEPS = 200
"""Environment steps of one ``train()`` call; few, so that progress shows often."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Section):
    """The network."""

    head: Literal["unit", "flat"] = Field(
        default="unit", description="unit: score every action by a description of it; flat: one output per action"
    )
    lstm_size: int = Field(default=128, ge=1, description="width of the recurrent state (R2D2 uses 512 for Atari)")
    encoder_size: int = Field(default=128, ge=1, description="width of the layer before the LSTM")
    embedding_size: int = Field(default=32, ge=1, description="width of an action's embedding")
    action_embedding: bool = Field(
        default=True,
        description="learn an embedding per action and per layer beside their descriptions (head 'unit'); a controller "
        "without can be carried to another network",
    )
    features: bool = Field(
        default=False,
        description="describe actions by norm, batch-norm scale, feature-map rank, reconstruction error and cost of "
        "their units, too (head 'unit'); takes training images, and seconds to minutes at the start",
    )
    recurrent: bool = Field(
        default=True,
        description="carry the LSTM's state from step to step; false: it starts from zeros at each (for comparisons)",
    )

    @property
    def transferable(self) -> bool:
        """Whether a controller can be carried to other actions: no parameter belongs to a certain one."""
        return self.head == "unit" and not self.action_embedding


class ReplaySettings(_Section):
    """Prioritised replay of sequences (R2D2, section 2.3)."""

    capacity: int = Field(
        default=100_000, ge=1, description="transitions held: environment steps, and probes of actions not taken"
    )
    train_length: int = Field(default=24, ge=1, description="trained steps of a sequence (R2D2: 80)")
    burn_in: int = Field(default=8, ge=0, description="steps that warm the recurrent state up before them (R2D2: 40)")
    stride: int = Field(default=12, ge=1, description="steps between the starts of sequences (R2D2: 40, half of 80)")
    priority_exponent: float = Field(default=0.9, ge=0, description="alpha, no unit; 0 draws uniformly (R2D2: 0.9)")
    importance_exponent: float = Field(default=0.6, ge=0, description="beta, no unit; 0 leaves the bias (R2D2: 0.6)")
    priority_eta: float = Field(
        default=0.9, ge=0, le=1, description="weight of the largest error in a priority (R2D2: 0.9)"
    )
    warmup: int = Field(default=500, ge=0, description="environment steps before learning starts")


class LearningSettings(_Section):
    """Targets and updates."""

    lr: float = Field(default=5e-4, gt=0, description="learning rate of Adam (R2D2: 1e-4 at batch 64)")
    recurrent_lr: float | None = Field(default=None, gt=0, description="learning rate of the LSTM; lr if none")
    gamma: float = Field(default=0.997, gt=0, le=1, description="discount per step (R2D2: 0.997)")
    n_step: int = Field(
        default=10, ge=1, description="rewards summed in a target; many, as episodes are long and updates few"
    )
    batch_size: int = Field(default=32, ge=1, description="sequences per update (R2D2: 64)")
    updates_per_step: float = Field(default=0.125, gt=0, description="learner updates per environment step")
    target_update_steps: int = Field(
        default=1000, ge=1, description="environment steps between copies of the target network"
    )
    loss: Literal["huber", "squared"] = Field(
        default="huber", description="squared: R2D2; huber: bounded gradient per error"
    )
    value_rescaling: bool = Field(
        default=False, description="learn rescaled values (R2D2: true); returns here are small"
    )
    grad_clip: float = Field(default=40.0, gt=0, description="largest norm of the gradient (Ape-X: 40)")
    reward_scale: float = Field(
        default=1.0, gt=0, description="factor that brings returns to about 3-10; learning only"
    )
    reset_interval: int = Field(
        default=0,
        ge=0,
        description="environment steps between resets of a part of the network, for many updates per step (Nikishin "
        "et al. 2022); 0: never",
    )
    reset_part: Literal["head", "all_but_encoder"] = Field(
        default="head", description="what is reset: the layers behind the LSTM, or the LSTM, too"
    )


class ExplorationSettings(_Section):
    """The ladder of exploration rates, base^(1 + exponent i / (N - 1)) over N actors (Ape-X, section 4.1)."""

    base: float = Field(default=0.4, ge=0, le=1, description="rate of the most curious actor (Ape-X: 0.4)")
    exponent: float = Field(default=2.0, ge=0, description="spread of the ladder (Ape-X: 7 for hundreds of actors)")
    anneal_steps: int = Field(
        default=1000, ge=0, description="environment steps over which rates fall from 1 to their rungs"
    )


class LookaheadSettings(_Section):
    """Guided lookahead: the controller proposes, the environment measures the proposals, the best is taken."""

    k: int = Field(default=1, ge=1, description="proposals measured per step, in training and use; 1: plain R2D2")
    k_start: int | None = Field(default=None, ge=1, description="the number at the training's beginning; k if none")
    anneal_steps: int = Field(default=0, ge=0, description="environment steps over which it goes from k_start to k")
    rank: Literal["value", "efficiency"] = Field(
        default="value",
        description="the best is that of the highest measured reward plus learned value of what follows (value), or "
        "that which looks best to the objective by itself (efficiency)",
    )
    branch_share: float = Field(
        default=0.25, ge=0, lt=1, description="share of a batch's rows that are measured actions which were not taken"
    )


class DemonstrationSettings(_Section):
    """Episodes of baseline policies that replay is seeded with (R2D3, Paine et al. 2019)."""

    policies: tuple[str, ...] = Field(
        default=(), description="names, e.g. [lookahead, 'search:random']; what they cost counts as evaluations"
    )
    episodes: int = Field(default=1, ge=1, description="of each; one suffices for a policy that draws nothing")
    share: float = Field(default=0.25, ge=0, lt=1, description="share of each batch that are demonstrations")
    anneal_steps: int = Field(
        default=0, ge=0, description="environment steps over which the share falls to 0; 0: constant"
    )


class SamplingSettings(_Section):
    """The runners; an actor is one environment of one runner."""

    num_env_runners: int = Field(default=2, ge=0, description="processes that sample; 0 samples in the learner's own")
    num_envs_per_env_runner: int = Field(default=4, ge=1, description="environments in each")
    cpus_per_env_runner: float = Field(default=1.0, gt=0, description="CPU cores each one reserves")
    gpus_per_env_runner: float = Field(default=0.0, ge=0, description="GPUs each one reserves, e.g. 0.25")
    rollout_length: int = Field(
        default=20, ge=1, description="steps of each environment per sampling request, from n_step"
    )


class LearnerSettings(_Section):
    """The processes that learn. If one dies, training goes on from the last checkpoint."""

    num_learners: int = Field(
        default=0, ge=0, description="processes that share each update, with a batch each; 0 learns in the driver's own"
    )
    cpus_per_learner: float = Field(default=1.0, gt=0, description="CPU cores each one reserves")
    gpus_per_learner: float = Field(default=0.0, ge=0, description="GPUs each one reserves; of the driver's own, too")


class R2D2Settings(_Section):
    """All settings of the controller's training."""

    network: NetworkSettings = Field(default_factory=NetworkSettings, description="the network")
    replay: ReplaySettings = Field(default_factory=ReplaySettings, description="the replay buffer")
    learning: LearningSettings = Field(default_factory=LearningSettings, description="targets and updates")
    exploration: ExplorationSettings = Field(default_factory=ExplorationSettings, description="exploration rates")
    lookahead: LookaheadSettings = Field(default_factory=LookaheadSettings, description="guided lookahead")
    demonstrations: DemonstrationSettings = Field(
        default_factory=DemonstrationSettings, description="episodes of other policies"
    )
    sampling: SamplingSettings = Field(default_factory=SamplingSettings, description="the runners")
    learners: LearnerSettings = Field(default_factory=LearnerSettings, description="the processes that learn")
    total_steps: int = Field(default=20_000, ge=1, description="environment steps of the whole training")
    total_evaluations: int | None = Field(
        default=None,
        ge=1,
        description="end the training early after so many evaluations (environment steps and probes, those of greedy "
        "evaluations and demonstrations included); none by default",
    )
    max_seconds: float | None = Field(
        default=None, gt=0, description="end the training early after so many seconds; none by default"
    )
    evaluation_interval: int = Field(
        default=1000, ge=1, description="environment steps between greedy evaluations, each with a checkpoint"
    )

    def to_config(
        self,
        env: str | type,
        env_config: Mapping[str, Any] | None = None,
        *,
        action_table: Mapping[str, Any] | None = None,
        seed: int | None = None,
        directory: str | None = None,
    ) -> R2D2Config:
        """The RLlib configuration of these settings.

        Args:
            env: registered name or class of the environment.
            env_config: its arguments.
            action_table: see :func:`action_table_of`; needed by the ``unit`` head.
            seed: seeds environments, networks, exploration and replay.
            directory: for RLlib's own files; a temporary one if not given.
        """
        config: R2D2Config = (
            R2D2Config()
            .environment(env, env_config=dict(env_config or {}))
            .env_runners(
                num_env_runners=self.sampling.num_env_runners,
                num_envs_per_env_runner=self.sampling.num_envs_per_env_runner,
                num_cpus_per_env_runner=self.sampling.cpus_per_env_runner,
                num_gpus_per_env_runner=self.sampling.gpus_per_env_runner,
                rollout_fragment_length=self.sampling.rollout_length,
            )
            .learners(
                num_learners=self.learners.num_learners,
                num_cpus_per_learner=self.learners.cpus_per_learner,
                num_gpus_per_learner=self.learners.gpus_per_learner,
            )
            .network(**self.network.model_dump(), action_table=None if action_table is None else dict(action_table))
            .training(
                replay_capacity=self.replay.capacity,
                train_len=self.replay.train_length,
                burn_in_len=self.replay.burn_in,
                replay_stride=self.replay.stride,
                priority_exponent=self.replay.priority_exponent,
                importance_exponent=self.replay.importance_exponent,
                priority_eta=self.replay.priority_eta,
                num_steps_sampled_before_learning_starts=self.replay.warmup,
                lr=self.learning.lr,
                recurrent_lr=self.learning.recurrent_lr,
                reset_interval=self.learning.reset_interval,
                reset_part=self.learning.reset_part,
                gamma=self.learning.gamma,
                n_step=self.learning.n_step,
                train_batch_size_per_learner=self.learning.batch_size,
                updates_per_step=self.learning.updates_per_step,
                target_network_update_freq=self.learning.target_update_steps,
                td_error_loss_fn={"huber": "huber", "squared": "mse"}[self.learning.loss],
                value_rescaling=self.learning.value_rescaling,
                grad_clip=self.learning.grad_clip,
                reward_scale=self.learning.reward_scale,
            )
            .ladder(**self.exploration.model_dump())
            .guidance(**{**self.lookahead.model_dump(), "k_start": self.lookahead.k_start or self.lookahead.k})
            .demonstrations(share=self.demonstrations.share, anneal_steps=self.demonstrations.anneal_steps)
            .reporting(min_sample_timesteps_per_iteration=min(self.evaluation_interval, ITERATION_STEPS))
            .debugging(seed=seed)
            .run(directory=directory)
        )
        config.validate()
        return config


def action_table_of(env: Any, *, features: bool = False) -> dict[str, Any] | None:
    """The description of an environment's actions as plain lists, or ``None`` if it has none.

    Args:
        env: the environment.
        features: add the means over each action's units of :func:`recognizers.unit_features.unit_features`.
    """
    table = getattr(env.unwrapped, "action_table", None)
    if table is None:
        return None
    described: dict[str, Any] = {
        name: np.asarray(getattr(table, name)) for name in ("layer_of_action", "action_of_unit", "features")
    }
    if features:
        of_unit = unit_features(env.unwrapped.recognizer)  # [U, F]
        means = np.zeros((len(described["features"]), of_unit.shape[1]), dtype=np.float32)
        np.add.at(means, described["action_of_unit"], of_unit)
        sizes = np.bincount(described["action_of_unit"], minlength=len(means))
        described["features"] = np.concatenate([described["features"], means / np.maximum(sizes, 1)[:, None]], axis=1)
    return {name: value.tolist() for name, value in described.items()}
