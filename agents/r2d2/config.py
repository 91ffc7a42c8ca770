"""RLlib configuration of R2D2."""

from dataclasses import asdict, replace
from typing import Any, Literal, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.dqn.dqn import DQNConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override

from agents.r2d2.connectors import PrevActionReward
from agents.r2d2.env_runner import R2D2EnvRunner
from agents.r2d2.exploration import LookaheadSchedule, Rank
from agents.r2d2.guide import GuidedLookahead
from agents.r2d2.learner import R2D2TorchLearner
from agents.r2d2.module import R2D2TorchRLModule
from agents.r2d2.network import NetworkConfig, Part
from recognizers.errors import ConfigurationError


def _guided_lookahead(env: Any = None, spaces: Any = None) -> GuidedLookahead:
    del env, spaces  # RLlib's signature; the runner hands over its environment, which it may make anew
    guide: GuidedLookahead = GuidedLookahead()
    return guide


def _previous_action_and_reward(env: Any = None, spaces: Any = None, device: Any = None) -> PrevActionReward:
    del env, spaces, device  # RLlib's signature; named function because workers unpickle it
    return PrevActionReward()


class R2D2Config(DQNConfig):
    """Settings of R2D2 (Kapturowski et al. 2019) on RLlib's new API stack.

    What DQN has already keeps its name: ``gamma``, ``lr``, ``n_step``, ``burn_in_len``, ``td_error_loss_fn``,
    ``grad_clip``, ``target_network_update_freq`` (environment steps), ``num_steps_sampled_before_learning_starts``;
    ``train_batch_size_per_learner`` counts sequences. What R2D2 adds is set by :meth:`training`, :meth:`ladder`,
    :meth:`guidance`, :meth:`demonstrations` and :meth:`network`.
    """

    @override(DQNConfig)
    def __init__(self, algo_class: type | None = None) -> None:
        # The algorithm names this class as its default configuration, so it cannot be imported above.
        from agents.r2d2.algorithm import R2D2  # noqa: PLC0415

        super().__init__(algo_class=algo_class or R2D2)
        self.env_runner_cls = R2D2EnvRunner
        self._env_to_module_connector = _previous_action_and_reward
        self._module_to_env_connector = _guided_lookahead
        # The algorithm itself sends weights and step counter; the connectors have no state to be merged.
        self._dont_auto_sync_env_runner_states = True
        self.merge_env_runner_states = False
        self.train_batch_size_per_learner = 32
        self.n_step = 5
        self.gamma = 0.997
        self.burn_in_len = 40
        self.target_network_update_freq = 2500
        self.min_sample_timesteps_per_iteration = 500

        self.network_config = NetworkConfig()
        self.action_table: dict[str, Any] | None = None
        self.replay_capacity = 100_000
        self.replay_stride = 40
        self.train_len = 80
        self.priority_exponent = 0.9
        self.importance_exponent = 0.6
        self.priority_eta = 0.9
        self.updates_per_step = 0.125
        self.reward_scale = 1.0
        self.recurrent_lr: float | None = None
        self.reset_interval = 0
        self.reset_part: Part = "head"
        self.value_rescaling = True
        self.exploration_base = 0.4
        self.exploration_exponent = 7.0
        self.exploration_anneal_steps = 0
        self.lookahead = LookaheadSchedule()
        self.branch_share = 0.25
        self.demonstration_share = 0.0
        self.demonstration_anneal_steps = 0
        self.run_directory: str | None = None

    @override(DQNConfig)
    def training(
        self,
        *,
        replay_capacity: int = NotProvided,
        replay_stride: int = NotProvided,
        train_len: int = NotProvided,
        priority_exponent: float = NotProvided,
        importance_exponent: float = NotProvided,
        priority_eta: float = NotProvided,
        updates_per_step: float = NotProvided,
        reward_scale: float = NotProvided,
        value_rescaling: bool = NotProvided,
        recurrent_lr: float | None = NotProvided,
        reset_interval: int = NotProvided,
        reset_part: Part = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Set how to learn.

        Args:
            replay_capacity: environment steps held for replay.
            replay_stride: steps between the starts of two sequences.
            train_len: trained steps of a sequence, beside ``burn_in_len`` steps of warm-up.
            priority_exponent: alpha of prioritised replay.
            importance_exponent: beta of prioritised replay.
            priority_eta: weight of the largest error against the mean one in a sequence's priority.
            updates_per_step: learner updates per environment step. It throttles the learner; the runners throttle
                themselves, as each has one sampling request at a time.
            reward_scale: factor on rewards in targets and inputs. Recorded episodes keep the plain rewards.
            value_rescaling: learn values on the scale of :func:`~agents.r2d2.targets.rescale`.
            recurrent_lr: learning rate of the LSTM; ``None``: that of the rest, ``lr``.
            reset_interval: environment steps between resets of a part of the network; 0 for none.
            reset_part: ``head`` or ``all_but_encoder``.
            **kwargs: see :meth:`DQNConfig.training`.
        """
        super().training(**kwargs)
        return self._assign(
            replay_capacity=replay_capacity,
            replay_stride=replay_stride,
            train_len=train_len,
            priority_exponent=priority_exponent,
            importance_exponent=importance_exponent,
            priority_eta=priority_eta,
            updates_per_step=updates_per_step,
            reward_scale=reward_scale,
            value_rescaling=value_rescaling,
            recurrent_lr=recurrent_lr,
            reset_interval=reset_interval,
            reset_part=reset_part,
        )

    def ladder(
        self, *, base: float = NotProvided, exponent: float = NotProvided, anneal_steps: int = NotProvided
    ) -> Self:
        """Set how to explore.

        Args:
            base: exploration rate of the most curious actor.
            exponent: spread of the ladder; the least curious actor has ``base^(1 + exponent)``.
            anneal_steps: environment steps over which every rate falls from 1 to its rung; 0 for none.
        """
        return self._assign(exploration_base=base, exploration_exponent=exponent, exploration_anneal_steps=anneal_steps)

    def guidance(
        self,
        *,
        k: int = NotProvided,
        k_start: int = NotProvided,
        anneal_steps: int = NotProvided,
        rank: Rank = NotProvided,
        branch_share: float = NotProvided,
    ) -> Self:
        """Set how many proposed actions the environment measures before one is taken.

        Args:
            k: proposals measured per step; 1 for none.
            k_start: at the beginning of the training.
            anneal_steps: environment steps over which the number goes from ``k_start`` to ``k``.
            rank: ``value`` or ``efficiency``, see :func:`agents.r2d2.lookahead.best_of`.
            branch_share: share of each batch that are measured actions which were not taken.
        """
        given: dict[str, Any] = {"k": k, "k_start": k_start, "anneal_steps": anneal_steps, "rank": rank}
        changed = {name: value for name, value in given.items() if value is not NotProvided}
        return self._assign(lookahead=replace(self.lookahead, **changed), branch_share=branch_share)

    def demonstrations(self, *, share: float = NotProvided, anneal_steps: int = NotProvided) -> Self:
        """Set how to learn from demonstrations, see :meth:`~agents.r2d2.algorithm.R2D2.add_demonstrations`.

        Args:
            share: of each batch that are demonstrations, once there are any.
            anneal_steps: environment steps over which the share falls to 0; 0 for a constant one.
        """
        return self._assign(demonstration_share=share, demonstration_anneal_steps=anneal_steps)

    def network(
        self,
        *,
        head: Literal["unit", "flat"] = NotProvided,
        encoder_size: int = NotProvided,
        lstm_size: int = NotProvided,
        embedding_size: int = NotProvided,
        action_embedding: bool = NotProvided,
        features: bool = NotProvided,
        recurrent: bool = NotProvided,
        action_table: dict[str, Any] | None = NotProvided,
    ) -> Self:
        """Set the network.

        Args:
            head: ``unit`` or ``flat``.
            encoder_size: width of the layer before the LSTM.
            lstm_size: width of the recurrent state.
            embedding_size: width of an action's embedding.
            action_embedding: learn an embedding per action and per layer (``unit`` head).
            features: the action table describes the actions' units, too.
            recurrent: carry the LSTM's state from step to step.
            action_table: ``layer_of_action``, ``action_of_unit`` and ``features`` as lists (``unit`` head).
        """
        fields = asdict(self.network_config)
        given = {
            "head": head,
            "encoder_size": encoder_size,
            "lstm_size": lstm_size,
            "embedding_size": embedding_size,
            "action_embedding": action_embedding,
            "features": features,
            "recurrent": recurrent,
        }
        fields.update({name: value for name, value in given.items() if value is not NotProvided})
        return self._assign(network_config=NetworkConfig(**fields), action_table=action_table)

    def run(self, *, directory: str | None = NotProvided) -> Self:
        """Set where the algorithm runs.

        Args:
            directory: for RLlib's own files. Without one a temporary directory is used and removed again; nothing is
                written to the user's home.
        """
        return self._assign(run_directory=directory)

    def _assign(self, **values: Any) -> Self:
        for name, value in values.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @override(DQNConfig)
    def validate(self) -> None:
        """Check the settings.

        Raises:
            ConfigurationError: a setting is out of its range, or two contradict each other.
        """
        requirements = {
            "burn_in_len must not be negative": self.burn_in_len >= 0,
            "train_len must be at least 1": self.train_len >= 1,
            "n_step must be a whole number from 1": isinstance(self.n_step, int) and self.n_step >= 1,
            "replay_stride must be from 1 to train_len, or steps would never be trained": (
                1 <= self.replay_stride <= self.train_len
            ),
            "replay_capacity must hold at least one sequence (burn_in_len + train_len)": (
                self.replay_capacity >= self.burn_in_len + self.train_len
            ),
            "gamma must be above 0 and at most 1": 0.0 < self.gamma <= 1.0,
            "priority_exponent and importance_exponent must not be negative": (
                min(self.priority_exponent, self.importance_exponent) >= 0.0
            ),
            "priority_eta must be from 0 to 1": 0.0 <= self.priority_eta <= 1.0,
            "updates_per_step must be positive": self.updates_per_step > 0.0,
            "reward_scale must be positive": self.reward_scale > 0.0,
            "the exploration base must be from 0 to 1, its exponent not negative": (
                0.0 <= self.exploration_base <= 1.0 and self.exploration_exponent >= 0.0
            ),
            "lookahead must measure at least 1 proposal": min(self.lookahead.k, self.lookahead.k_start) >= 1,
            "branch_share must be at least 0 and below 1": 0.0 <= self.branch_share < 1.0,
            "the demonstrations' share must be at least 0 and below 1": 0.0 <= self.demonstration_share < 1.0,
            "recurrent_lr must be positive": self.recurrent_lr is None or self.recurrent_lr > 0.0,
            "reset_interval must not be negative": self.reset_interval >= 0,
            "num_atoms > 1 and noisy networks are not part of R2D2": self.num_atoms == 1 and not self.noisy,
            "R2D2 is trained by a single agent": not self.is_multi_agent,
        }
        for requirement, met in requirements.items():
            if not met:
                raise ConfigurationError(f"{requirement}; got {self._settings_text()}")
        try:
            super().validate()
        except ValueError as error:
            raise ConfigurationError(f"RLlib refuses the configuration: {error}") from error

    def _settings_text(self) -> str:
        names = ("burn_in_len", "train_len", "n_step", "replay_stride", "replay_capacity", "gamma", "updates_per_step")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    @override(DQNConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The R2D2 module."""
        return RLModuleSpec(module_class=R2D2TorchRLModule, model_config=self.model_config)

    @override(DQNConfig)
    def get_default_learner_class(self) -> type[R2D2TorchLearner]:
        """The R2D2 learner."""
        return R2D2TorchLearner

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {
            **super()._model_config_auto_includes,
            "network": {**asdict(self.network_config), "reward_scale": self.reward_scale},
            "action_table": self.action_table,
            "burn_in_len": self.burn_in_len,
            "exploration_anneal_steps": self.exploration_anneal_steps,
            "lookahead": asdict(self.lookahead),
            "learning": {
                "gamma": self.gamma,
                "reward_scale": self.reward_scale,
                "value_rescaling": self.value_rescaling,
            },
        }
