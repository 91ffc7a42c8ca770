"""``zeroout/Pruning-v0`` keeps Gymnasium's contract and its own: what it returns, refuses, probes and repeats."""

import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import InvalidActionError, PruningEnv, TaskConfig
from recognizers.errors import ConfigurationError, ZeroOutError
from recognizers.execution.engine import Engine
from recognizers.unit_features import unit_features

MakeEnv = Callable[..., PruningEnv]
Play = Callable[..., list[tuple[int, dict[str, np.ndarray], float, bool, dict[str, Any]]]]
ID = "zeroout/Pruning-v0"
ACTIONS = ("unit", "block", "layer")
OBJECTIVES = ("tolerance", "tolerance of MACs", "budget of MACs", "budget of parameters")
RECOVERIES = ("none", "bn", "finetune")


def _state(env: PruningEnv) -> tuple[Any, ...]:
    recognizer = env.recognizer
    values = {name: value.clone() for name, value in recognizer.network.state_dict().items()}
    compact = {name: value.clone() for name, value in recognizer.compact().state_dict().items()}
    return (
        recognizer.mask.tolist(),
        values,
        compact,
        env.measurement,
        recognizer.accuracy(),
        env.valid_actions().tolist(),
    )


def _assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for before, after in zip(one, other, strict=True):
        if isinstance(before, dict):
            assert [name for name in before if not torch.equal(before[name], after[name])] == []
        else:
            assert before == after


class TestGymnasium:
    @pytest.mark.parametrize("recovery", RECOVERIES)
    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize("actions", ACTIONS)
    def test_checker_has_nothing_to_say(self, make_env: MakeEnv, actions: str, objective: str, recovery: str) -> None:
        env = make_env(
            actions=actions,
            objective=objective,
            recovery=recovery,
            action_mask=actions == "layer",
            render_mode="ansi",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*was not initialised with.*spec.*")
            warnings.filterwarnings("ignore", message=".*not able to test alternative render modes.*")
            check_env(env)

    def test_make(self, task: TaskConfig, tmp_path: Path) -> None:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(task.model_dump(mode="json")))
        for given_task in (task, path, str(path)):
            env = gymnasium.make(ID, task=given_task)
            observation, info = env.reset(seed=0)
            assert env.observation_space.contains(observation)
            action = int(np.flatnonzero(info["action_mask"])[0])
            observation, _, terminated, truncated, _ = env.step(action)
            assert env.observation_space.contains(observation)
            assert not (terminated or truncated)
            assert isinstance(env.unwrapped, PruningEnv)

    def test_make_with_overrides(self, task: TaskConfig, tmp_path: Path) -> None:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(task.model_dump(mode="json")))
        env = gymnasium.make(ID, task=str(path), overrides=["actions.kind=unit", "objective.drop=0.25"])
        assert env.action_space.n == 22
        assert env.unwrapped.task.objective.drop == 0.25
        with pytest.raises(ConfigurationError, match="did you mean 'drop'"):
            gymnasium.make(ID, task=str(path), overrides=["objective.dropp=0.25"])

    def test_overrides_hold_for_a_task_object(self, task: TaskConfig) -> None:
        """Overrides that are silently ignored would be worse than refused ones."""
        try:
            env = PruningEnv(task=task, overrides=["actions.kind=unit"])
        except ConfigurationError:
            return
        assert env.task.actions.kind == "unit"

    def test_make_vec(self, task: TaskConfig) -> None:
        envs = gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync", task=task)
        observations, infos = envs.reset(seed=[3, 4])
        assert observations["mask"].shape == (2, 22)
        generator = np.random.default_rng(0)
        ends = 0
        for _ in range(40):
            masks = infos["action_mask"]
            actions = np.array([generator.choice(np.flatnonzero(mask)) if mask.any() else 0 for mask in masks])
            observations, _, terminations, _, infos = envs.step(actions)
            assert envs.observation_space.contains(observations)
            ends += int(terminations.sum())
        assert ends >= 2
        envs.close()

    @pytest.mark.parametrize("action_mask", [False, True])
    def test_observations_lie_in_the_space_and_say_the_state(
        self, make_env: MakeEnv, play_randomly: Play, action_mask: bool
    ) -> None:
        env = make_env(action_mask=action_mask)
        keys = {"accuracy", "reduction", "mask"} | ({"action_mask"} if action_mask else set())
        assert set(env.reset(seed=0)[0]) == keys
        for _, observation, _, _, info in play_randomly(env, 0):
            assert env.observation_space.contains(observation)
            assert observation["accuracy"] == np.float32(info["accuracy"])
            assert observation["reduction"] == np.float32(info["parameter_reduction"])
            if action_mask:
                assert np.array_equal(observation["action_mask"], info["action_mask"])
        assert np.array_equal(observation["mask"], env.recognizer.mask)

    def test_observed_reduction_is_what_the_objective_counts(self, make_env: MakeEnv) -> None:
        env = make_env(objective="budget of MACs")
        env.reset(seed=0)
        observation, *_, info = env.step(0)
        assert observation["reduction"] == np.float32(info["macs_reduction"])
        assert info["macs_reduction"] != info["parameter_reduction"]

    def test_render(self, make_env: MakeEnv) -> None:
        env = make_env(render_mode="ansi")
        env.reset(seed=0)
        env.step(0)
        text = env.render()
        kept = env.recognizer.kept_units["features.conv1"]
        assert f"{kept}/6" in text
        assert "8/8" in text

    def test_info(self, make_env: MakeEnv) -> None:
        env = make_env(recovery="bn")
        _, info = env.reset(seed=11)
        assert info["episode_seed"] == 11
        assert info["action_mask"].dtype == np.int8
        assert info["action_mask"].all()
        assert info["accuracy"] == info["baseline_accuracy"] == env.recognizer.baseline_accuracy("reward")
        _, reward, _, _, info = env.step(0)
        assert info["reward"] == reward
        assert info["kept_units"] == env.recognizer.kept_units
        assert info["accuracy"] == env.recognizer.accuracy("reward")
        assert (info["parameter_reduction"], info["macs_reduction"]) == env.recognizer.reductions[:2]
        assert "latency_reduction" not in info and env.recognizer.reductions.latency is None
        assert min(info["seconds"].zero_out, info["seconds"].recover, info["seconds"].measure) > 0

    def test_standard_error_is_that_of_a_sample(self, make_env: MakeEnv) -> None:
        env = make_env()
        images = len(env.recognizer.splits.reward.labels)
        _, info = env.reset(seed=0)
        for action in (0, 5):
            right = info["accuracy"] * images
            variance = right * (1 - right / images) / images  # of one image
            assert info["standard_error"] == pytest.approx((variance / images) ** 0.5)
            assert 0 < info["standard_error"] < 0.05
            *_, info = env.step(action)
        assert type(info["standard_error"]) is float

    def test_seconds_by_phase(self, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
        """By a clock that moves on by one second whenever it is looked at."""
        env = make_env()
        env.reset(seed=0)
        ticks = itertools.count()
        monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
        env.probe([0, 1, 2])
        seconds = env.step(0)[-1]["seconds"]
        env.probe([1])
        assert (seconds.zero_out, seconds.recover, seconds.measure, seconds.probe) == (1, 1, 1, 0)
        total = env.seconds
        assert (total.zero_out, total.recover, total.measure, total.probe) == (1, 1, 1, 2)

    def test_plain_types(self, make_env: MakeEnv) -> None:
        env = make_env()
        env.reset(seed=0)
        _, reward, terminated, truncated, _ = env.step(np.int64(0))
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)


class TestRefusals:
    @pytest.mark.parametrize("action", [-1, 12, 10**9, 1.0, "0", None, np.array([0])])
    def test_no_such_action(self, make_env: MakeEnv, action: object) -> None:
        env = make_env(objective="never ends")
        env.reset(seed=0)
        env.step(1)
        before, steps = _state(env), env.environment_steps
        with pytest.raises(InvalidActionError, match=r"is not an integer in 0\.\.11"):
            env.step(action)  # type: ignore[arg-type]
        _assert_same(before, _state(env))
        assert env.environment_steps == steps

    @pytest.mark.parametrize("recovery", RECOVERIES)
    def test_spent_action(self, make_env: MakeEnv, recovery: str) -> None:
        env = make_env(recovery=recovery, objective="never ends")
        env.reset(seed=0)
        env.step(1)
        before = _state(env)
        with pytest.raises(InvalidActionError, match=r"not valid.*'features\.conv1'.*action_mask"):
            env.step(1)
        _assert_same(before, _state(env))

    def test_last_unit_of_a_layer(self, make_env: MakeEnv) -> None:
        env = make_env(actions="unit", objective="never ends")
        _, info = env.reset(seed=0)
        for unit in range(5):
            *_, info = env.step(unit)
        assert info["action_mask"][:6].tolist() == [0] * 6
        before = _state(env)
        with pytest.raises(InvalidActionError, match=r"last of layer 'features\.conv1'"):
            env.step(5)
        _assert_same(before, _state(env))

    def test_before_and_after_an_episode(self, make_env: MakeEnv, play_randomly: Play) -> None:
        env = make_env()
        with pytest.raises(InvalidActionError, match="reset"):
            env.step(0)
        *_, (_, _, _, terminated, info) = play_randomly(env, 0)
        assert terminated
        assert not info["action_mask"].any()
        assert env.valid_actions().size == 0
        before = _state(env)
        with pytest.raises(InvalidActionError, match="ended"):
            env.step(0)
        with pytest.raises(InvalidActionError, match="ended"):
            env.probe([0])
        _assert_same(before, _state(env))

    def test_is_an_error_of_gymnasium_and_of_zeroout(self) -> None:
        assert issubclass(InvalidActionError, gymnasium.error.InvalidAction)
        assert issubclass(InvalidActionError, ZeroOutError)

    @pytest.mark.parametrize("target", [{"macs": 0.001}, {"parameters": 0.001}])
    @pytest.mark.parametrize("actions", ACTIONS)
    def test_budget_out_of_reach(self, make_env: MakeEnv, actions: str, target: dict[str, float]) -> None:
        with pytest.raises(
            ConfigurationError, match=rf"objective\.{next(iter(target))}=0\.001 is out of reach.*remain"
        ):
            make_env(actions=actions, objective={"kind": "budget", **target})

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("remaining", [0.1, 0.2, 0.3, 0.4])
    @pytest.mark.parametrize("actions", [*ACTIONS, "large block"])
    def test_a_budget_that_is_accepted_is_always_met(
        self, make_env: MakeEnv, play_randomly: Play, actions: str, remaining: float, seed: int
    ) -> None:
        """Whatever the actions: blocks cannot take a layer down to one unit if its last block is larger."""
        try:
            env = make_env(actions=actions, objective={"kind": "budget", "parameters": remaining})
        except ConfigurationError:
            return
        *_, (*_, info) = play_randomly(env, seed)
        assert info["parameter_reduction"] >= 1 - remaining - 1e-9


class TestReturns:
    @pytest.fixture(scope="class")
    def envs(self, make_env: MakeEnv) -> dict[tuple[str, str], PruningEnv]:
        return {
            (actions, objective): make_env(actions=actions, objective=objective)
            for actions in ACTIONS
            for objective in OBJECTIVES
        }

    @pytest.mark.parametrize("objective", ["tolerance", "tolerance of MACs"])
    @pytest.mark.parametrize("actions", ACTIONS)
    @given(seed=st.integers(0, 2**31 - 1))
    @settings(max_examples=8, deadline=None)
    def test_return_is_the_reduction_within_tolerance(
        self,
        envs: dict[tuple[str, str], PruningEnv],
        play_randomly: Play,
        actions: str,
        objective: str,
        seed: int,
    ) -> None:
        env = envs[actions, objective]
        steps = play_randomly(env, seed)
        count, drop = env.objective.measure, env.objective.drop  # type: ignore[attr-defined]
        reductions = [
            0.0,
            *(info["macs_reduction" if count == "macs" else "parameter_reduction"] for *_, info in steps),
        ]
        floor = env.baseline_accuracy - drop
        within = [info["accuracy"] >= floor - 1e-9 for *_, info in steps]
        assert all(within[:-1])
        reached = reductions[-1] if within[-1] else reductions[-2]
        assert sum(reward for _, _, reward, *_ in steps) == pytest.approx(reached, abs=1e-12)
        assert within[-1] or steps[-1][2] == 0.0
        assert not within[-1] or set(env.recognizer.kept_units.values()) <= {1, 2}, (
            "ends only when nothing is left to do"
        )

    @pytest.mark.parametrize("actions", ACTIONS)
    def test_ends_when_nothing_is_left_to_do(self, make_env: MakeEnv, play_randomly: Play, actions: str) -> None:
        env = make_env(actions=actions, objective="never ends")
        steps = play_randomly(env, 0)
        assert [terminated for _, _, _, terminated, _ in steps] == [False] * (len(steps) - 1) + [True]
        assert not env.actions.valid(env.recognizer.mask).any()
        assert sum(reward for _, _, reward, *_ in steps) == pytest.approx(env.recognizer.parameter_reduction)

    @pytest.mark.parametrize("objective", ["budget of MACs", "budget of parameters"])
    @pytest.mark.parametrize("actions", ACTIONS)
    @given(seed=st.integers(0, 2**31 - 1))
    @settings(max_examples=8, deadline=None)
    def test_return_is_the_change_of_accuracy_at_the_target(
        self,
        envs: dict[tuple[str, str], PruningEnv],
        play_randomly: Play,
        actions: str,
        objective: str,
        seed: int,
    ) -> None:
        env = envs[actions, objective]
        steps = play_randomly(env, seed)
        final = steps[-1][-1]
        assert sum(reward for _, _, reward, *_ in steps) == pytest.approx(
            final["accuracy"] - env.baseline_accuracy, abs=1e-12
        )
        index = 1 if env.objective.measure == "macs" else 0
        target = env.objective.target  # type: ignore[attr-defined]
        mask = env.recognizer.mask
        assert env.recognizer.costs.reductions(mask)[index] >= target - 1e-12
        before = steps[-2][1]["mask"] if len(steps) > 1 else np.ones_like(mask)
        removed = np.flatnonzero(before != mask)
        assert removed.size
        for unit in removed:  # those of one action are of one layer, so any of them may count as the last
            one_more = mask.copy()
            one_more[unit] = 1
            assert env.recognizer.costs.reductions(one_more)[index] < target

    @pytest.mark.parametrize("actions", ACTIONS)
    @given(seed=st.integers(0, 2**31 - 1))
    @settings(max_examples=5, deadline=None)
    def test_every_step_removes_units_of_one_layer_and_valid_means_valid(
        self, envs: dict[tuple[str, str], PruningEnv], play_randomly: Play, actions: str, seed: int
    ) -> None:
        env = envs[actions, "tolerance"]
        before = np.ones(22, dtype=np.int8)
        for action, observation, _, terminated, info in play_randomly(env, seed):
            removed = np.flatnonzero(before & ~observation["mask"].astype(bool))
            assert removed.size > 0
            assert (before >= observation["mask"]).all()
            layers = env.recognizer.table.layer_of_unit[removed]
            assert set(layers) == {env.action_table.layer_of_action[action]}
            assert min(info["kept_units"].values()) >= 1
            assert terminated or info["action_mask"].any()
            before = observation["mask"]


def test_features_tell_of_units_and_of_what_is_left_of_their_layers(make_env: MakeEnv) -> None:
    env = make_env(features=True, actions="unit")
    check_env(env, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    known = unit_features(env.recognizer)
    np.testing.assert_array_equal(observation["features"][:, :-1], known)
    assert (observation["features"][:, -1] == 1).all()
    layer = env.recognizer.table.layers[0]
    (probe,) = env.probe([layer.start])
    observation, *_ = env.step(layer.start)
    np.testing.assert_array_equal(observation["features"][:, :-1], known)
    np.testing.assert_allclose(observation["features"][layer.units, -1], 1 - 1 / len(layer), rtol=1e-6)
    assert (observation["features"][layer.stop :, -1] == 1).all()
    np.testing.assert_array_equal(observation["features"], probe.observation["features"])
    assert "features" not in make_env().reset(seed=0)[0]


class TestProbe:
    @pytest.mark.parametrize("recovery", RECOVERIES)
    @pytest.mark.parametrize("actions", ACTIONS)
    def test_probes_say_what_steps_give_and_leave_no_trace(
        self, make_env: MakeEnv, actions: str, recovery: str
    ) -> None:
        env = make_env(
            actions=actions,
            recovery=recovery,
            objective={"kind": "budget", "parameters": 0.5} if actions == "block" else "tolerance",
            action_mask=True,
        )
        env.reset(seed=7)
        generator = np.random.default_rng(0)
        terminated = False
        for _ in range(4):
            valid = env.valid_actions()
            before = _state(env)
            probes = env.probe(valid.tolist())
            _assert_same(before, _state(env))
            assert [probe.action for probe in probes] == valid.tolist()
            assert len({probe.measurement for probe in probes}) > 1
            assert env.probe(valid.tolist()[::-1]) == probes[::-1], "the order does not matter"
            chosen = probes[int(generator.integers(len(probes)))]
            env.recognizer.forget()  # else the step would look up what the probe left
            assert env.probes == [*probes, *probes[::-1]]
            before_step = env.measurement
            observation, reward, terminated, _, info = env.step(chosen.action)
            assert env.probes == []
            assert env.measurement == chosen.measurement
            assert chosen.efficiency == env.objective.efficiency(before_step, chosen.measurement, env.baseline_accuracy)
            assert observation.keys() == chosen.observation.keys()
            for key, value in observation.items():
                np.testing.assert_array_equal(value, chosen.observation[key], strict=True)
            np.testing.assert_array_equal(info["action_mask"], chosen.action_mask, strict=True)
            assert (info["accuracy"], info["parameter_reduction"], info["macs_reduction"]) == (
                chosen.measurement.accuracy,
                chosen.measurement.parameter_reduction,
                chosen.measurement.macs_reduction,
            )
            assert (reward, terminated) == (chosen.reward, chosen.terminated)
            if terminated:
                break

    @pytest.mark.parametrize("recovery", RECOVERIES)
    def test_an_episode_with_probes_equals_one_without(self, make_env: MakeEnv, recovery: str) -> None:
        outcomes = []
        for probing in (False, True):
            env = make_env(recovery=recovery, objective="never ends")
            env.reset(seed=7)
            for action in (0, 5, 9):
                if probing:
                    env.probe(env.valid_actions().tolist())
                env.step(action)
            outcomes.append(_state(env))
        _assert_same(*outcomes)

    def test_counts(self, make_env: MakeEnv) -> None:
        """Each action of a probe is an evaluation, asked before or not; resets are none."""
        env = make_env()
        env.reset(seed=0)
        env.probe([0, 1, 2])
        assert (env.evaluations, env.environment_steps) == (3, 0)
        env.step(0)
        env.reset(seed=1)
        assert (env.evaluations, env.environment_steps) == (4, 1)
        assert env.probe([]) == []
        env.probe([2, 1, 2])
        assert (env.evaluations, env.environment_steps) == (7, 1)

    @pytest.mark.parametrize("recovery", RECOVERIES)
    def test_the_same_action_twice(self, make_env: MakeEnv, recovery: str) -> None:
        env = make_env(recovery=recovery)
        env.reset(seed=0)
        first, other, again = env.probe([3, 0, 3])
        assert first == again
        assert first.action != other.action

    @pytest.mark.parametrize("recovery", RECOVERIES)
    def test_a_step_that_was_probed_is_measured_again_only_where_it_depends_on_the_way(
        self, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch, recovery: str
    ) -> None:
        env = make_env(recovery=recovery)
        env.recognizer.forget()
        env.reset(seed=0)
        (probe,) = env.probe([3])
        measured: list[int] = []
        logits = Engine.logits
        monkeypatch.setattr(Engine, "logits", lambda self: measured.append(1) or logits(self))
        *_, info = env.step(3)
        assert info["accuracy"] == probe.measurement.accuracy
        assert len(measured) == (1 if recovery == "finetune" else 0)

    def test_of_a_recognizer_that_another_environment_took_over(self, make_env: MakeEnv) -> None:
        env = make_env()
        env.reset(seed=0)
        other = PruningEnv(task=env.task, recognizer=env.recognizer)
        other.reset(seed=0)
        with pytest.raises(ConfigurationError, match="another environment"):
            env.probe([0])
        assert env.evaluations == 0
        assert len(other.probe([0])) == 1

    def test_an_invalid_action_among_them_measures_nothing(self, make_env: MakeEnv) -> None:
        env = make_env()
        env.reset(seed=0)
        env.step(0)
        before, evaluations = _state(env), env.evaluations
        for actions in ([1, 0], [1, 99]):
            with pytest.raises(InvalidActionError):
                env.probe(actions)
        assert env.evaluations == evaluations
        _assert_same(before, _state(env))

    def test_an_error_on_the_way_leaves_no_trace(self, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
        env = make_env(recovery="finetune")
        env.reset(seed=0)
        before = _state(env)

        def out_of_memory(*_: str) -> float:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(env.recognizer, "accuracy", out_of_memory)
            with pytest.raises(RuntimeError):
                env.probe([0])
        _assert_same(before, _state(env))


class TestSeeds:
    @pytest.mark.parametrize("recovery", RECOVERIES)
    def test_same_seed_same_episode(self, make_env: MakeEnv, play_randomly: Play, recovery: str) -> None:
        env, other = (make_env(recovery=recovery) for _ in range(2))
        first = play_randomly(env, 5)
        play_randomly(env, 6)
        for again in (play_randomly(env, 5), play_randomly(other, 5)):
            assert len(again) == len(first)
            for one, two in zip(first, again, strict=True):
                assert (one[0], one[2], one[3]) == (two[0], two[2], two[3])
                assert all(np.array_equal(one[1][key], two[1][key]) for key in one[1])
                assert one[4]["accuracy"] == two[4]["accuracy"]

    def test_another_seed_retrains_otherwise(self, make_env: MakeEnv) -> None:
        env = make_env(recovery="finetune")
        weights = []
        for seed in (0, 1):
            env.reset(seed=seed)
            env.step(0)
            weights.append(env.recognizer.compact().linear.weight.clone())
        assert not torch.equal(*weights)

    def test_unseeded_resets_follow_from_the_first_seed(self, make_env: MakeEnv) -> None:
        env = make_env()

        def seeds() -> list[int]:
            return [env.reset(seed=9)[1]["episode_seed"], *(env.reset()[1]["episode_seed"] for _ in range(3))]

        first = seeds()
        assert first == seeds()
        assert len(set(first)) == 4

    def test_the_seed_in_info_repeats_an_unseeded_episode(self, make_env: MakeEnv) -> None:
        env = make_env(recovery="finetune")
        _, info = env.reset()
        env.step(0)
        first = _state(env)
        env.reset(seed=info["episode_seed"])
        env.step(0)
        _assert_same(first, _state(env))

    def test_the_global_random_state_is_left_alone(self, make_env: MakeEnv, play_randomly: Play) -> None:
        env = make_env(recovery="finetune")
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
        play_randomly(env, 0)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002

    @pytest.mark.parametrize("recovery", RECOVERIES)
    def test_reset_forgets_everything(self, make_env: MakeEnv, play_randomly: Play, recovery: str) -> None:
        env = make_env(recovery=recovery)
        env.reset(seed=0)
        first = _state(env)
        play_randomly(env, 3)
        observation, _ = env.reset(seed=0)
        _assert_same(first, _state(env))
        assert observation["mask"].all()
        assert observation["reduction"] == 0
