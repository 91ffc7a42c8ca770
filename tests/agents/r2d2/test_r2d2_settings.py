"""Settings from YAML, and what the configuration refuses."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from r2d2_toys import TMaze, ToyPruning

import configs
from agents.r2d2.config import R2D2Config
from agents.r2d2.settings import R2D2Settings, action_table_of
from recognizers.errors import ConfigurationError

DIRECTORY = Path(configs.__file__).parent / "r2d2"


@pytest.mark.parametrize("name", ["default", "quickstart"])
def test_shipped_settings_are_valid(name):
    settings = R2D2Settings.model_validate(yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text()))
    config = settings.to_config("some-env", {"task": "digits"}, action_table=action_table_of(ToyPruning()), seed=3)
    assert config.env_config == {"task": "digits"}
    assert config.train_len == settings.replay.train_length
    assert config.lr == settings.learning.lr
    assert config.model_config["network"]["reward_scale"] == 5.0
    assert config.exploration_anneal_steps == settings.exploration.anneal_steps
    assert config.min_sample_timesteps_per_iteration == 200


def test_every_field_says_what_it_is():
    def walk(model):
        for name, field in model.model_fields.items():
            assert field.description, name
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation)

    walk(R2D2Settings)


def test_unknown_and_impossible_fields_are_refused():
    with pytest.raises(ValidationError, match="lerning"):
        R2D2Settings.model_validate({"lerning": {}})
    with pytest.raises(ValidationError, match="gamma"):
        R2D2Settings.model_validate({"learning": {"gamma": 1.5}})
    with pytest.raises(ConfigurationError, match="replay_stride"):
        R2D2Settings.model_validate({"replay": {"stride": 30, "train_length": 20}}).to_config("some-env")
    with pytest.raises(ConfigurationError, match="rollout_fragment_length"):
        R2D2Settings.model_validate({"sampling": {"rollout_length": 5}}).to_config("some-env")


@pytest.mark.parametrize(
    "bad",
    [
        {"replay_capacity": 10},
        {"burn_in_len": -1},
        {"updates_per_step": 0.0},
        {"priority_eta": 2.0},
        {"num_atoms": 51},
        {"n_step": (1, 3)},
    ],
)
def test_configuration_errors_are_clear(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad)).split("_")[0]):
        R2D2Config().environment("some-env").training(**bad).validate()


def test_action_table_of_an_environment():
    table = action_table_of(ToyPruning())
    assert table["layer_of_action"] == [0, 0, 0, 1, 1]
    assert table["action_of_unit"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(table["features"]) == 5
    assert action_table_of(TMaze()) is None


def test_features_of_units_are_averaged_over_actions(monkeypatch):
    env = ToyPruning()
    env.recognizer = object()
    of_unit = np.arange(20, dtype=np.float32).reshape(10, 2)
    monkeypatch.setattr("agents.r2d2.settings.unit_features", lambda recognizer: of_unit)
    features = np.array(action_table_of(env, features=True)["features"])
    np.testing.assert_allclose(features[:, :2], action_table_of(env)["features"])
    np.testing.assert_allclose(features[:, 2:], (of_unit[0::2] + of_unit[1::2]) / 2)
