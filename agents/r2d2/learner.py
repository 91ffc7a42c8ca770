"""The learner: R2D2's loss on one batch of sequences, and the priorities that follow from it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_learner import (
    QF_LOSS_KEY,
    QF_MAX_KEY,
    QF_MEAN_KEY,
    QF_PREDS,
    QF_TARGET_NEXT_PREDS,
    TD_ERROR_MEAN_KEY,
    DQNLearner,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import DEFAULT_OPTIMIZER
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import LAST_TARGET_UPDATE_TS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor, nn

from agents.r2d2.targets import double_q_values, n_step_targets, rescale, sequence_priorities, unrescale

if TYPE_CHECKING:
    from agents.r2d2.config import R2D2Config
    from agents.r2d2.module import R2D2TorchRLModule

TRAIN_LENGTHS = "train_lengths"
"""Batch column: trained steps of each row, ``[B]``."""
WEIGHTS = "weights"
"""Batch column: importance weights, ``[B]``."""
SLOTS = "slots"
"""Batch column and result: places of the sequences in the replay buffer, ``[B]``."""
MEAN_STEPS = "mean_steps"
"""Batch column: trained steps of a row, averaged over the whole batch, of which each learner has a part, ``[B]``."""
PRIORITIES = "priorities"
"""Result: new priorities of the sequences, ``[B]``."""
PRIORITY_MEAN = "priority_mean"
"""Result: mean of the new priorities."""
LAST_RESET = "last_reset"
"""Key of a learner's state: environment steps at which a part of the network was reset last."""
RECURRENT_OPTIMIZER = "recurrent_optimizer"
"""Name of the LSTM's optimizer, where it has one of its own."""


class R2D2TorchLearner(DQNLearner, TorchLearner):
    """Squared or Huber error of n-step double-Q targets over the trained steps, weighted by importance.

    Target networks are copied by :class:`DQNLearner`, every ``target_network_update_freq`` environment steps. RLlib
    clips gradients by their global norm and reports the norm; those of the LSTM by themselves where it has a learning
    rate of its own.
    """

    @override(DQNLearner)
    def build(self) -> None:
        """Build module, target network and optimizers."""
        self._last_reset = 0
        super().build()

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: "R2D2Config | None" = None) -> None:
        """Adam for all parameters, or one for the LSTM and one for the others."""
        rate = self.config.recurrent_lr
        if rate is None:
            super().configure_optimizers_for_module(module_id, config)
            return
        module = self.module[module_id]
        recurrent = list(module.unwrapped().network.lstm.parameters())
        known = {id(parameter) for parameter in recurrent}
        others = [parameter for parameter in self.get_parameters(module) if id(parameter) not in known]
        for name, parameters, lr in (
            (DEFAULT_OPTIMIZER, others, self.config.lr),
            (RECURRENT_OPTIMIZER, recurrent, rate),
        ):
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(parameters),
                params=parameters,
                lr_or_lr_schedule=lr,
            )

    @override(DQNLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Copy the target network when it is due, and reset a part of the network when that is.

        Periodic resets keep a network that learns often from few steps able to learn (Nikishin et al. 2022, *The
        Primacy Bias in Deep Reinforcement Learning*); the replay buffer stays.
        """
        super().after_gradient_based_update(timesteps=timesteps)
        steps, interval = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0), self.config.reset_interval
        if interval and steps // interval > self._last_reset // interval:
            for module in self.module._rl_modules.values():
                self._reset(module.unwrapped(), steps)
            self._last_reset = steps

    def _reset(self, module: "R2D2TorchRLModule", steps: int) -> None:
        # The seed makes learners that share the work forget alike.
        seed = int(np.random.SeedSequence([self.config.seed or 0, steps]).generate_state(1)[0])
        forgotten = module.network.reinitialize(self.config.reset_part, seed)
        for optimizer in self._named_optimizers.values():
            for parameter in forgotten:
                optimizer.state.pop(parameter, None)
        for online, target in module.get_target_network_pairs():
            target.load_state_dict(online.state_dict())

    @override(TorchLearner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, and the times of the last target copy and of the last reset, which RLlib leaves out."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        return {**state, LAST_TARGET_UPDATE_TS: dict(self.last_update_ts_by_mid), LAST_RESET: self._last_reset}

    @override(TorchLearner)
    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        super().set_state(state)
        self.last_update_ts_by_mid.update(state.get(LAST_TARGET_UPDATE_TS, {}))
        self._last_reset = state.get(LAST_RESET, self._last_reset)

    @override(TorchLearner)
    def compute_loss_for_module(
        self, *, module_id: str, config: "R2D2Config", batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Loss of one batch; logs the metrics and, sequence by sequence, the priorities."""
        online, target = fwd_out[QF_PREDS], fwd_out[QF_TARGET_NEXT_PREDS]  # [B, T + 1, A]
        mask = self.module[module_id].unwrapped().network.action_mask(batch[Columns.OBS])[:, -online.shape[1] :]
        lengths = batch[TRAIN_LENGTHS]  # [B]
        valid = torch.arange(online.shape[1] - 1, device=online.device) < lengths.unsqueeze(1)  # [B, T]

        values = double_q_values(online.detach(), target, mask)  # [B, T + 1]
        targets = n_step_targets(
            batch[Columns.REWARDS] * config.reward_scale,
            unrescale(values) if config.value_rescaling else values,
            lengths,
            batch[Columns.TERMINATEDS],
            gamma=config.gamma,
            n_step=config.n_step,
        )  # [B, T]
        targets = rescale(targets) if config.value_rescaling else targets
        chosen = online[:, :-1].gather(-1, batch[Columns.ACTIONS].long().unsqueeze(-1)).squeeze(-1)  # [B, T]

        error_of = nn.functional.huber_loss if config.td_error_loss_fn == "huber" else nn.functional.mse_loss
        errors = error_of(chosen, targets, reduction="none") * batch[WEIGHTS].unsqueeze(1)  # [B, T]
        # Gradients are averaged over learners, whose parts differ in steps; so each divides by its fair share of steps.
        loss: Tensor = errors[valid].sum() / batch[MEAN_STEPS].sum()

        td_errors = (targets - chosen).detach()
        priorities = sequence_priorities(td_errors, valid, config.priority_eta)
        # As series, not means: with several learners their parts are put together again.
        self.metrics.log_value((module_id, PRIORITIES), priorities, reduce="item_series")
        self.metrics.log_value((module_id, SLOTS), batch[SLOTS], reduce="item_series")
        self.metrics.log_dict(
            {
                QF_LOSS_KEY: loss.detach(),
                QF_MEAN_KEY: chosen[valid].mean().detach(),
                QF_MAX_KEY: chosen[valid].max().detach(),
                TD_ERROR_MEAN_KEY: td_errors.abs()[valid].mean(),
                PRIORITY_MEAN: priorities.mean(),
            },
            key=module_id,
            window=1,
        )
        return loss
