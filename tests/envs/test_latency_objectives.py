"""Objectives that count latency by a table: rewards, ends, replay, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import Episode, EpisodeError, PruningEnv, replay, validate
from envs.episodes import play
from recognizers.errors import ConfigurationError, FileError
from recognizers.latency_table import LatencyTable, write_latency_table
from tests.recognizers.latency_tables import Seconds, made_up_table

MakeEnv = Callable[..., PruningEnv]
TOLERANCE = {"kind": "tolerance", "drop": 0.3, "count": "latency"}


def _table(env: PruningEnv, seconds: Seconds) -> LatencyTable:
    baseline = env.recognizer.baseline
    example = baseline.normalization.normalize(baseline.splits.train.images[:1])
    return made_up_table(baseline.network, baseline.table, example, seconds, architecture="convnet", remainder=2.0)


@pytest.fixture(scope="module")
def make(make_env: MakeEnv, tmp_path_factory: pytest.TempPathFactory) -> MakeEnv:
    """An environment with a table of these seconds by kept outputs and inputs; sections as ``make_env`` takes them."""
    plain = make_env()

    def build(seconds: Seconds = lambda out, into: float(out * into + out), **sections: Any) -> PruningEnv:
        path: Path = tmp_path_factory.mktemp("tables") / "latency.json"
        write_latency_table(path, _table(plain, seconds))
        recognizer = {**plain.task.recognizer.model_dump(), "latency_table": str(path)}
        return make_env(recognizer=recognizer, **{"objective": TOLERANCE, **sections})

    return build


def _record(env: PruningEnv, seed: int = 0) -> Episode:
    generator = np.random.default_rng(seed)
    return play(
        env, lambda _, info: int(generator.choice(np.flatnonzero(info["action_mask"]))), seed=seed, policy="random"
    )


def test_the_return_is_the_latency_reduction(make: MakeEnv) -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert observation["reduction"] == 0 and info["latency_reduction"] == 0.0
    total = 0.0
    while True:
        before = info["latency_reduction"]
        probe = env.probe([int(info["action_mask"].argmax())])[0]
        observation, reward, terminated, _, info = env.step(probe.action)
        assert (probe.measurement, probe.reward) == (env.measurement, reward)
        assert info["latency_reduction"] == env.recognizer.reductions.latency
        assert observation["reduction"] == np.float32(info["latency_reduction"])
        if terminated:
            break
        total += reward
        assert total == pytest.approx(info["latency_reduction"])
    assert reward == (0.0 if info["accuracy"] < info["baseline_accuracy"] - 0.3 else info["latency_reduction"] - before)


def test_a_slower_network_costs_and_is_observed_as_no_reduction(make: MakeEnv) -> None:
    env = make(lambda out, into: 1 / (out * into))
    env.reset(seed=0)
    observation, reward, _, _, info = env.step(0)
    assert reward == info["latency_reduction"] < 0
    assert observation["reduction"] == 0 and env.observation_space.contains(observation)
    assert "latency +" in str(env.render())


def test_a_budget_is_met_and_not_overshot(make: MakeEnv) -> None:
    env = make(objective={"kind": "budget", "latency": 0.5})
    episode = _record(env)
    assert episode.terminated
    assert episode.states[-1].reduction("latency") >= 0.5 > episode.states[-2].reduction("latency")
    assert episode.episode_return == pytest.approx(episode.accuracies[-1] - env.baseline_accuracy)


def test_a_budget_out_of_reach(make: MakeEnv) -> None:
    with pytest.raises(ConfigurationError, match=r"objective\.latency=0\.001 is out of reach"):
        make(objective={"kind": "budget", "latency": 0.001})


@pytest.mark.parametrize("objective", [TOLERANCE, {"kind": "budget", "latency": 0.5}])
def test_without_a_table_the_error_says_how_to_make_one(make_env: MakeEnv, objective: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"zeroout recognizer latency --task TASK --out FILE"):
        make_env(objective=objective)


def test_a_table_that_is_missing(make_env: MakeEnv) -> None:
    recognizer = {**make_env().task.recognizer.model_dump(), "latency_table": "nowhere.json"}
    with pytest.raises(FileError, match=r"nowhere\.json"):
        make_env(recognizer=recognizer)


class TestReplay:
    def test_as_recorded(self, make: MakeEnv) -> None:
        env = make()
        episode = _record(env)
        assert episode.latency_sha256 == env.recognizer.latency_sha256
        assert replay(env, episode) == episode == Episode.model_validate_json(episode.model_dump_json())
        validate(env, episode)
        validate(make(), episode)

    def test_another_table_is_refused(self, make: MakeEnv, make_env: MakeEnv) -> None:
        episode = _record(make())
        for env in (make(lambda out, into: float(out * into)), make_env()):
            with pytest.raises(EpisodeError, match="with another latency table"):
                validate(env, episode)
        with pytest.raises(EpisodeError, match="with another latency table"):
            validate(make(), _record(make_env()))

    def test_a_changed_figure_is_found(self, make: MakeEnv) -> None:
        env = make()
        episode = _record(env)
        assert episode.latency_reductions is not None
        changed = (episode.latency_reductions[0] + 1e-4, *episode.latency_reductions[1:])
        with pytest.raises(EpisodeError, match=r"step 0 .*recorded latency_reductions"):
            validate(env, episode.model_copy(update={"latency_reductions": changed}))

    @pytest.mark.parametrize("field", ["latency_reductions", "latency_sha256"])
    def test_half_of_a_record(self, make: MakeEnv, field: str) -> None:
        tree = _record(make()).model_dump()
        with pytest.raises(ValueError, match="go together"):
            Episode.model_validate({**tree, field: None})

    def test_records_without_latency_have_states_without(self, make_env: MakeEnv) -> None:
        tree = _record(make_env()).model_dump(exclude={"latency_reductions", "latency_sha256"})
        episode = Episode.model_validate(tree)
        assert all(state.latency_reduction is None for state in episode.states)
        with pytest.raises(ConfigurationError, match="zeroout recognizer latency"):
            episode.states[0].reduction("latency")
