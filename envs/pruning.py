"""``zeroout/Pruning-v0``: prune a network step by step."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from envs.actions import Action, Actions, ActionTable, DiscreteActions, build_actions
from envs.errors import InvalidActionError
from envs.objectives import Measurement
from envs.tasks import TaskConfig, load_task, make_recognizer
from recognizers.errors import ConfigurationError
from recognizers.recognizer import Recognizer
from recognizers.unit_features import kept_shares, unit_feature_bounds, unit_features

Observation = dict[str, np.ndarray]


@dataclass(frozen=True)
class Probe:
    """What an action would give.

    Attributes:
        action: the action.
        measurement: accuracy and reductions after it.
        reward: its reward.
        terminated: whether the episode would end.
        efficiency: how good the step looks by itself, see :meth:`~envs.objectives.Objective.efficiency`.
        observation: what :meth:`PruningEnv.step` would return; it follows from the rest and is not compared.
        action_mask: what its info would say, likewise.
    """

    action: Action
    measurement: Measurement
    reward: float
    terminated: bool
    efficiency: float
    observation: Observation = field(compare=False, repr=False)
    action_mask: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True)
class Seconds:
    """Time spent in the phases of steps, and in probes. It says nothing about results: any two compare equal."""

    zero_out: float = field(default=0.0, compare=False)
    recover: float = field(default=0.0, compare=False)
    measure: float = field(default=0.0, compare=False)
    probe: float = field(default=0.0, compare=False)

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(
            self.zero_out + other.zero_out,
            self.recover + other.recover,
            self.measure + other.measure,
            self.probe + other.probe,
        )

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(
            self.zero_out - other.zero_out,
            self.recover - other.recover,
            self.measure - other.measure,
            self.probe - other.probe,
        )


class PruningEnv(gymnasium.Env[Observation, Any]):
    """Prune a convolutional network by zeroing out groups of its units.

    ## Description
    A trained network, the recognizer, starts complete. Each action zeroes out a group of units (filters, neurons,
    or sets of them that are tied by residual sums); the recognizer then recovers as the task says (nothing,
    batch-norm recalibration, or a little retraining) and measures its accuracy on the reward split. Parameters and
    multiply-accumulates are those of the physically sliced network; its latency, where `recognizer.latency_table`
    names a table of it, is interpolated from measured layers, so that equal masks have equal latencies.

    ## Action space
    `Discrete(n)`, or `MultiBinary(n_units)` for kind `mask`. What an action removes is set by `actions.kind` of the
    task:

    | kind  | an action removes                                                             | n      |
    |-------|-------------------------------------------------------------------------------|--------|
    | unit  | one unit                                                                      | units  |
    | block | a fixed block of units of one layer, formed along the order of a criterion    | blocks |
    | layer | the least important remaining chunk of one layer, in the order of a criterion | layers |
    | mask  | all units whose bits are 0, in all layers at once                             |        |

    `info["action_mask"]` (int8, 1 valid) marks the actions that remove something and leave their layer at least one
    unit (for kind `mask`, the units that may go). Any other action raises `InvalidActionError` (a
    `gymnasium.error.InvalidAction`) and changes nothing.

    ## Observation space
    `Dict`:

    | key         | space                | meaning                                                         |
    |-------------|----------------------|-----------------------------------------------------------------|
    | accuracy    | Box(0, 1, (1,))      | accuracy on the reward split                                    |
    | reduction   | Box(0, 1, (1,))      | fraction removed, of what the objective counts; 0 where the     |
    |             |                      | latency has risen                                               |
    | mask        | MultiBinary(n_units) | 1 kept, 0 zeroed out                                            |
    | action_mask | MultiBinary(n)       | 1 valid; only with `action_mask=True`, for learners that mask   |
    | features    | Box((n_units, 7))    | only with `features=True`: of each unit, norm, batch-norm scale |
    |             |                      | and rank of its maps within its layer, reconstruction error,    |
    |             |                      | share of parameters and of MACs (`recognizers.unit_features`),  |
    |             |                      | kept share of its layer; all but the last never change          |

    ## Rewards
    Set by `objective.kind` of the task:

    - `tolerance`: the reduction gained by the step; 0 for the step that leaves the tolerance. The return is the
      reduction reached within tolerance. A step after which the network is slower by the table costs something
      where latency counts.
    - `budget`: the change of accuracy. The return is the final accuracy minus the baseline accuracy.

    ## Starting state
    The complete network with its base weights: all mask bits 1, reduction 0.

    ## Episode end
    Terminated when accuracy leaves the tolerance (`tolerance`), when the target is reached (`budget`; the last action
    is trimmed to meet it within one unit), or when no action is valid. Never truncated.

    ## Info
    `accuracy`, `standard_error` (of the accuracy, as measured on a sample of images: sqrt(p (1 - p) / images)),
    `baseline_accuracy`, `parameter_reduction`, `macs_reduction`, `latency_reduction` (only with a latency table),
    `reward` (of the last step),
    `kept_units` (kept units per layer), `action_mask`, `episode_seed` (`reset(seed=...)` with it and
    the same actions gives the same episode), `seconds` (of the last step: `zero_out`, `recover`, `measure`).

    What was spent over all episodes is on the environment itself: `environment_steps`, `evaluations` (in which probes
    count, too) and `seconds` (with those of probes under `probe`). `probes` lists what was probed since the last step.
    `on_evaluation`, where set, is called with the number of evaluations so far and what each has measured.

    ## Arguments
    ```python
    import gymnasium, envs
    env = gymnasium.make("zeroout/Pruning-v0", task="digits/convnet", overrides=["actions.kind=unit"])
    ```

    - `task`: name of a shipped task, path of a YAML file, or a `TaskConfig`.
    - `overrides`: dotted `key=value` settings of the task.
    - `recognizer`: one that exists already, in place of building the task's.
    - `action_mask`: put the action mask into the observation, too.
    - `features`: put features of the units into the observation, too. They are computed once per baseline.
    - `render_mode`: `"ansi"`: kept units per layer as text.

    Environments of equal tasks in one process share data and base weights, those of
    `gymnasium.make_vec("zeroout/Pruning-v0", num_envs=4, task="digits/convnet")`, too.

    ## Speed
    A step runs the network that remains, from the first layer that it changes: tensors before that are kept (up to
    `recognizer.cache_megabytes`, for all environments of a task in a process). After `none` and `bn` the accuracy
    follows from the mask, so masks that were seen before are looked up. `data.validation_images` measures on fewer
    images.

    ## Version history
    - v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's own

    def __init__(
        self,
        task: str | TaskConfig = "digits/convnet",
        *,
        overrides: Iterable[str] = (),
        recognizer: Recognizer | None = None,
        action_mask: bool = False,
        features: bool = False,
        render_mode: Literal["ansi"] | None = None,
    ) -> None:
        if isinstance(task, TaskConfig) and list(overrides):
            raise ConfigurationError("overrides go with the name or the path of a task, not with a TaskConfig")
        self.task = task if isinstance(task, TaskConfig) else load_task(task, overrides)
        if recognizer is not None and recognizer.recovery != self.task.recovery:
            raise ConfigurationError(
                f"the recognizer recovers by {recognizer.recovery!r}, the task by {self.task.recovery!r}"
            )
        self.recognizer = recognizer or make_recognizer(self.task)
        self.objective = self.task.objective
        self.actions: Actions = build_actions(self.recognizer, self.task.actions)
        self.objective.check(self.actions.reach(), self.recognizer.costs)
        self.render_mode = render_mode
        self._observe_action_mask = action_mask
        observation: dict[str, spaces.Space[Any]] = {
            "accuracy": spaces.Box(0.0, 1.0, (1,), np.float32),
            "reduction": spaces.Box(0.0, 1.0, (1,), np.float32),
            "mask": spaces.MultiBinary(self.recognizer.n_units),
        }
        if action_mask:
            observation["action_mask"] = spaces.MultiBinary(len(self.actions.valid(self.recognizer.mask)))
        self._features = unit_features(self.recognizer) if features else None
        if self._features is not None:
            low, high = unit_feature_bounds(self.recognizer.n_units)
            observation["features"] = spaces.Box(
                np.pad(low, ((0, 0), (0, 1))), np.pad(high, ((0, 0), (0, 1)), constant_values=1.0), dtype=np.float32
            )
        self.observation_space = spaces.Dict(observation)  # type: ignore[assignment]
        self.action_space = self.actions.space
        self.baseline_accuracy = self.recognizer.baseline_accuracy("reward")
        self.evaluations = 0
        self.on_evaluation: Callable[[int, Measurement], None] | None = None
        self.environment_steps = 0
        self.seconds = Seconds()
        self.probes: list[Probe] = []
        self._state = Measurement.complete(self.baseline_accuracy)
        self._generator = torch.Generator()
        self._episode_seed = 0
        self._terminated = True

    @property
    def action_table(self) -> ActionTable:
        """What is known of the actions beforehand.

        Raises:
            ConfigurationError: the actions are no indices.
        """
        return self._discrete().table

    @property
    def measurement(self) -> Measurement:
        """Accuracy and reductions of the current state."""
        return self._state

    @property
    def observation(self) -> Observation:
        """What is observed of the current state."""
        return self._observe(self._state, self.recognizer.mask, self._action_mask())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Without ``seed`` the episode's seed is drawn from the environment's generator."""
        super().reset(seed=seed)
        self._episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._generator.manual_seed(self._episode_seed)
        self.recognizer.reset()
        self.recognizer.holder = self
        self._state = Measurement.complete(self.baseline_accuracy)
        self._terminated = False
        self.probes = []
        return self.observation, self._info(0.0, Seconds(), self._action_mask())

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Zero out the action's units, recover, measure.

        Raises:
            InvalidActionError: the action does not exist or is not valid now, or the episode has ended.
        """
        units = self._checked_units(action)
        before = self._state
        self._state, seconds = self._advance(units)
        self.environment_steps += 1
        self.probes = []
        mask = self.recognizer.mask
        self._terminated, action_mask = self._outlook(self._state, mask)
        reward = self.objective.reward(before, self._state, self.baseline_accuracy)
        info = self._info(reward, seconds, action_mask)
        return self._observe(self._state, mask, action_mask), reward, self._terminated, False, info

    def probe(self, actions: Sequence[Action]) -> list[Probe]:
        """What each action would give, without taking it: exactly the figures of :meth:`step`.

        What the actions have in common is computed once, so this costs far less than as many steps. Each action counts
        as one evaluation. Accuracies are remembered: a step that was probed is not measured again (but for recoveries
        that depend on how the mask was reached, like ``finetune``).

        Raises:
            InvalidActionError: an action does not exist or is not valid now; nothing was measured.
        """
        plans = [(action, self._checked_units(action)) for action in actions]
        mask, recognizer = self.recognizer.mask, self.recognizer
        started = time.perf_counter()
        accuracies = recognizer.probe([units for _, units in plans], self._generator)
        self.seconds += Seconds(probe=time.perf_counter() - started)
        probes = []
        for (action, units), accuracy in zip(plans, accuracies, strict=True):
            after = mask.copy()
            after[units] = 0
            state = Measurement(accuracy, *recognizer.costs.reductions(after))
            self._count(state)
            reward = self.objective.reward(self._state, state, self.baseline_accuracy)
            efficiency = self.objective.efficiency(self._state, state, self.baseline_accuracy)
            terminated, action_mask = self._outlook(state, after)
            observation = self._observe(state, after, action_mask)
            probes.append(Probe(action, state, reward, terminated, efficiency, observation, action_mask))
        self.probes += probes
        return probes

    def valid_actions(self) -> np.ndarray:
        """The indices of actions that are valid now, ``[k]`` int64; none after the end of an episode.

        Raises:
            ConfigurationError: the actions are no indices.
        """
        self._discrete()
        return np.flatnonzero(self._action_mask())

    def units_of(self, action: Action, mask: np.ndarray) -> np.ndarray:
        """The units, ``[k]`` int64, that a valid action removes under ``mask``, ``[U]``, trimmed by the objective."""
        return self.objective.trim(self.actions.units(action, mask), mask, self.recognizer.costs)

    def render(self) -> str:  # type: ignore[override]
        """Kept units per layer as bars."""
        state = self._state
        lines = [
            f"accuracy {state.accuracy:.4f} (baseline {self.baseline_accuracy:.4f})  "
            f"parameters -{state.parameter_reduction:.1%}  MACs -{state.macs_reduction:.1%}"
            + ("" if self.recognizer.costs.latency is None else f"  latency {-state.reduction('latency'):+.1%}")
        ]
        kept_units = self.recognizer.kept_units
        for layer in self.recognizer.table.layers:
            kept = kept_units[layer.name]
            bar = "#" * max(1, round(40 * kept / len(layer)))
            lines.append(f"{layer.name:<24} {bar:<40} {kept}/{len(layer)}")
        return "\n".join(lines)

    def _discrete(self) -> DiscreteActions:
        if not isinstance(self.actions, DiscreteActions):
            raise ConfigurationError(
                f"actions.kind={self.task.actions.kind} has no list of actions: choose unit, block or layer"
            )
        return self.actions

    def _checked_units(self, action: Action) -> np.ndarray:
        """The units that ``action`` removes now, trimmed to the objective."""
        if self._terminated:
            raise InvalidActionError("the episode has ended (or not begun): call reset() first")
        if self.recognizer.holder is not self:
            raise ConfigurationError("another environment has taken over this recognizer: give each one of its own")
        if not self.action_space.contains(action):
            raise InvalidActionError(f"action {action!r} is not {self.actions.domain}")
        mask = self.recognizer.mask
        if fault := self.actions.fault(action, mask):
            raise InvalidActionError(f"action {action} is not valid: {fault}")
        return self.units_of(action, mask)

    def _advance(self, units: np.ndarray) -> tuple[Measurement, Seconds]:
        started = time.perf_counter()
        self.recognizer.zero_out(units)
        zeroed = time.perf_counter()
        self.recognizer.recover(self._generator)
        recovered = time.perf_counter()
        accuracy = self.recognizer.accuracy("reward")
        measured = time.perf_counter()
        state = Measurement(accuracy, *self.recognizer.costs.reductions(self.recognizer.mask))
        self._count(state)
        seconds = Seconds(zeroed - started, recovered - zeroed, measured - recovered)
        self.seconds += seconds
        return state, seconds

    def _count(self, state: Measurement) -> None:
        self.evaluations += 1
        if self.on_evaluation is not None:
            self.on_evaluation(self.evaluations, state)

    def _outlook(self, state: Measurement, mask: np.ndarray) -> tuple[bool, np.ndarray]:
        """Whether an episode ends in a state, and its valid actions; none after the end."""
        valid = self.actions.valid(mask)
        ends = self.objective.terminated(state, self.baseline_accuracy) or not valid.any()
        return ends, np.zeros_like(valid) if ends else valid

    def _action_mask(self) -> np.ndarray:
        valid = self.actions.valid(self.recognizer.mask)
        return np.zeros_like(valid) if self._terminated else valid

    def _observe(self, state: Measurement, mask: np.ndarray, action_mask: np.ndarray) -> Observation:
        observation = {
            "accuracy": np.array([state.accuracy], dtype=np.float32),
            "reduction": np.clip([state.reduction(self.objective.measure)], 0, 1).astype(np.float32),
            "mask": mask,
        }
        if self._observe_action_mask:
            observation["action_mask"] = action_mask.copy()
        if self._features is not None:
            shares = kept_shares(self.recognizer, mask)
            observation["features"] = np.concatenate([self._features, shares[:, None]], axis=1)
        return observation

    def _info(self, reward: float, seconds: Seconds, action_mask: np.ndarray) -> dict[str, Any]:
        accuracy, images = self._state.accuracy, len(self.recognizer.splits.reward.labels)
        info = {
            "accuracy": accuracy,
            "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / images)),
            "baseline_accuracy": self.baseline_accuracy,
            "parameter_reduction": self._state.parameter_reduction,
            "macs_reduction": self._state.macs_reduction,
            "reward": reward,
            "kept_units": self.recognizer.kept_units,
            "action_mask": action_mask,
            "episode_seed": self._episode_seed,
            "seconds": seconds,
        }
        if self.recognizer.costs.latency is not None:
            info["latency_reduction"] = self._state.latency_reduction
        return info
