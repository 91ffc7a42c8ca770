"""Actions that are whole masks: what they remove, when they are refused, how they are trimmed and recorded."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from envs import Episode, EpisodeError, PruningEnv, read_episodes, replay, validate, write_episodes
from envs.actions import MaskActions
from envs.episodes import Recording
from envs.errors import InvalidActionError
from recognizers.errors import ConfigurationError

MakeEnv = Callable[..., PruningEnv]
MASK = {"kind": "mask"}
LAYERS = (slice(0, 6), slice(6, 14), slice(14, 22))
BITS = st.lists(st.booleans(), min_size=22, max_size=22).map(lambda bits: np.array(bits, dtype=np.int8))


@pytest.fixture(scope="module")
def env(make_env: MakeEnv) -> PruningEnv:
    return make_env(actions=MASK, objective="never ends")


@pytest.fixture(scope="module")
def budget(make_env: MakeEnv) -> PruningEnv:
    """40 % of the MACs must go."""
    return make_env(actions=MASK, objective="budget of MACs", recovery="none")


@pytest.fixture(scope="module")
def actions(env: PruningEnv) -> MaskActions:
    assert isinstance(env.actions, MaskActions)
    return env.actions


def _without(*units: int) -> np.ndarray:
    bits = np.ones(22, dtype=np.int8)
    bits[list(units)] = 0
    return bits


class TestMeaning:
    @given(BITS, BITS)
    @settings(max_examples=150)
    def test_units_validity_and_faults(self, actions: MaskActions, bits: np.ndarray, mask: np.ndarray) -> None:
        for layer in LAYERS:
            mask[layer][0] |= not mask[layer].any()
        before = mask.copy()
        gone = [unit for unit in range(22) if mask[unit] and not bits[unit]]
        assert actions.units(bits, mask).tolist() == gone
        after = mask.copy()
        after[gone] = 0
        fault = actions.fault(bits, mask)
        assert (fault is None) == (bool(gone) and all(after[layer].any() for layer in LAYERS))
        may = [int(mask[unit] and mask[layer].sum() > 1) for layer in LAYERS for unit in range(layer.start, layer.stop)]
        assert actions.valid(mask).tolist() == may
        assert actions.valid(mask).dtype == np.int8
        assert np.array_equal(mask, before)

    def test_the_space_and_its_reach(self, env: PruningEnv, actions: MaskActions) -> None:
        assert env.action_space == spaces.MultiBinary(22)
        assert actions.fault(actions.reach(), np.ones(22)) is None
        assert [actions.reach()[layer].sum() for layer in LAYERS] == [1, 1, 1]

    def test_there_is_no_list_of_actions(self, env: PruningEnv) -> None:
        for ask in (lambda: env.action_table, env.valid_actions):
            with pytest.raises(ConfigurationError, match=r"actions\.kind=mask has no list of actions: choose unit"):
                ask()


class TestSteps:
    @pytest.mark.parametrize("recovery", ["none", "bn", "finetune"])
    @pytest.mark.parametrize("objective", ["tolerance", "budget of MACs", "budget of parameters"])
    def test_checker_has_nothing_to_say(self, make_env: MakeEnv, objective: str, recovery: str) -> None:
        env = make_env(
            actions=MASK, objective=objective, recovery=recovery, action_mask=recovery == "bn", render_mode="ansi"
        )
        env.action_space.seed(0)  # one mask in forty leaves a layer empty
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*was not initialised with.*spec.*")
            warnings.filterwarnings("ignore", message=".*not able to test alternative render modes.*")
            check_env(env)

    def test_steps_add_up_and_bits_of_gone_units_count_for_nothing(self, env: PruningEnv) -> None:
        env.reset(seed=0)
        env.step(_without(0, 7))
        observation, _, _, _, info = env.step(_without(9))
        assert np.flatnonzero(observation["mask"] == 0).tolist() == [0, 7, 9]
        assert list(info["kept_units"].values()) == [5, 6, 8]
        assert np.flatnonzero(info["action_mask"] == 0).tolist() == [0, 7, 9]

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            (_without(), "removes nothing: the bits of some kept units must be 0"),
            (_without(1), "removes nothing"),
            (_without(*range(6)), "would leave no unit of layer 'features.conv1'"),
            (_without(0, *range(14, 22)), "would leave no unit of layer 'features.conv3'"),
            (np.zeros(21, dtype=np.int8), r"is not a vector of 22 bits"),
            (2 * _without(0), r"is not a vector of 22 bits"),
            (3, r"action 3 is not a vector of 22 bits"),
        ],
    )
    def test_invalid_ones_are_refused_and_change_nothing(self, env: PruningEnv, action: Any, message: str) -> None:
        env.reset(seed=0)
        env.step(_without(1))
        state = env.measurement, env.evaluations, env.environment_steps
        for ask in (env.step, lambda action: env.probe([_without(2), action])):
            with pytest.raises(InvalidActionError, match=message):
                ask(action)
        assert (env.measurement, env.evaluations, env.environment_steps) == state
        assert np.flatnonzero(env.recognizer.mask == 0).tolist() == [1]

    @pytest.mark.parametrize("recovery", ["bn", "finetune"])
    def test_probes_are_what_steps_give(self, make_env: MakeEnv, recovery: str) -> None:
        env = make_env(actions=MASK, objective="never ends", recovery=recovery)
        masks = [_without(0), _without(1, 8, 20), _without(*range(1, 6))]
        env.reset(seed=3)
        probes = env.probe(masks)
        assert env.evaluations == 3
        for mask, probe in zip(masks, probes, strict=True):
            env.reset(seed=3)
            _, reward, terminated, _, _ = env.step(mask)
            assert (probe.measurement, probe.reward, probe.terminated) == (env.measurement, reward, terminated)

    @given(bits=BITS)
    @settings(max_examples=25, deadline=None)
    def test_they_are_trimmed_to_the_budget(self, budget: PruningEnv, bits: np.ndarray) -> None:
        """The shortest leading part that meets it is removed; all of them, if none does."""
        budget.reset(seed=0)
        costs = budget.recognizer.costs
        assume(budget.actions.fault(bits, budget.recognizer.mask) is None)
        _, _, terminated, _, info = budget.step(bits)
        units, gone = np.flatnonzero(bits == 0), np.flatnonzero(budget.recognizer.mask == 0)
        assert gone.tolist() == units[: len(gone)].tolist()
        assert terminated == (info["macs_reduction"] >= 0.4 - 1e-12)
        if terminated:
            assert costs.reductions(_without(*gone[:-1]))[1] < 0.4
        else:
            assert len(gone) == len(units)


class TestRecords:
    @given(BITS)
    def test_round_trip(self, actions: MaskActions, bits: np.ndarray) -> None:
        record = actions.record(bits)
        assert len(record) == 6
        again = actions.recall(json.loads(json.dumps(record)))
        assert again.dtype == np.int8 and np.array_equal(again, bits)

    @pytest.mark.parametrize("record", [3, "", "ff", "ffffffff", "zzzzzz", "ff ff ", "ffffff\n", None])
    def test_others_are_no_masks(self, env: PruningEnv, actions: MaskActions, record: Any) -> None:
        with pytest.raises(ValueError, match=r"no mask of 22 units"):
            actions.recall(record)

    @pytest.fixture(scope="class")
    def episode(self, env: PruningEnv) -> Episode:
        generator = np.random.default_rng(0)
        recording = Recording(env, seed=5, policy="mine")
        for _ in range(3):
            recording.step(_without(int(generator.choice(np.flatnonzero(recording.info["action_mask"])))))
        return recording.episode()

    def test_episodes_are_written_read_and_validated(self, env: PruningEnv, episode: Episode, tmp_path: Path) -> None:
        assert all(isinstance(action, str) for action in episode.actions)
        write_episodes(tmp_path / "episodes.jsonl", [episode])
        (again,) = read_episodes(tmp_path / "episodes.jsonl")
        assert again == episode == Episode.model_validate_json(episode.model_dump_json())
        validate(env, again)
        assert replay(env, again) == episode
        assert (env.recognizer.mask == 0).sum() == 3

    def test_digits_alone_stay_a_mask(self, env: PruningEnv) -> None:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex("123456"), dtype=np.uint8))[:22].astype(np.int8)
        recording = Recording(env, seed=0, policy="mine")
        recording.step(bits)
        episode = recording.episode()
        again = Episode.model_validate_json(episode.model_dump_json())
        assert again.actions == (env.actions.record(bits),)
        validate(env, again)

    def test_a_doctored_action_is_found_out(self, env: PruningEnv, episode: Episode) -> None:
        other = env.actions.record(_without(6, 7, 8, 9))
        with pytest.raises(EpisodeError, match=f"step 2 .action {other}.: recorded"):
            validate(env, episode.model_copy(update={"actions": (*episode.actions[:2], other)}))
        for wrong, message in ((7, "with actions.kind=mask: 7 is no mask of 22 units"), ("000000", "no unit of layer")):
            with pytest.raises(EpisodeError, match=message):
                validate(env, episode.model_copy(update={"actions": (wrong, *episode.actions[1:])}))

    def test_it_is_no_episode_of_other_actions(self, make_env: MakeEnv, episode: Episode) -> None:
        blocks = make_env(objective="never ends")
        with pytest.raises(EpisodeError, match=r"with actions\.kind=block: '[0-9a-f]{6}' is no index of an action"):
            validate(blocks, episode)
