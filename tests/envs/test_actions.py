"""Actions: which units they stand for, when they are valid, and what is known of them beforehand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from envs import ActionsConfig, PruningEnv
from envs.actions import Actions, build_actions
from recognizers.baseline import Baseline
from recognizers.criteria import criterion
from recognizers.errors import ConfigurationError, UnknownNameError
from recognizers.recognizer import Recognizer


@pytest.fixture(scope="module")
def recognizer(make_env: Callable[..., PruningEnv]) -> Recognizer:
    return make_env().recognizer


def _build(recognizer: Recognizer, **settings: Any) -> Actions:
    return build_actions(recognizer, ActionsConfig.model_validate(settings))


ACTIONS = ("unit", "block", "layer")
FULL = np.ones(22, dtype=np.int8)


class TestUnit:
    def test_one_action_for_each_unit(self, recognizer: Recognizer) -> None:
        actions = _build(recognizer, kind="unit")
        assert len(actions) == 22
        assert [actions.units(action, FULL).tolist() for action in range(22)] == [[unit] for unit in range(22)]
        assert actions.table.layer_of_action.tolist() == [0] * 6 + [1] * 8 + [2] * 8
        assert actions.table.action_of_unit.tolist() == list(range(22))


class TestBlock:
    def test_blocks_divide_every_layer_in_the_order_of_the_criterion(self, recognizer: Recognizer) -> None:
        actions = _build(recognizer, kind="block", per_layer=4)
        scores = criterion("l1")(recognizer, np.random.default_rng(0))
        assert [len(actions.units(action, FULL)) for action in range(12)] == [2, 2, 1, 1, *[2] * 8]
        for layer, (start, stop) in enumerate([(0, 6), (6, 14), (14, 22)]):
            ranked = np.concatenate([actions.units(4 * layer + block, FULL) for block in range(4)])
            assert ranked.tolist() == (start + np.argsort(scores[start:stop], kind="stable")).tolist()

    def test_no_more_blocks_than_units(self, recognizer: Recognizer) -> None:
        assert len(_build(recognizer, kind="block", per_layer=100)) == 22

    def test_a_block_whose_first_units_are_gone_removes_the_rest(self, recognizer: Recognizer) -> None:
        actions = _build(recognizer, kind="block", per_layer=4)
        first, second = actions.units(0, FULL)
        mask = FULL.copy()
        mask[first] = 0
        assert actions.units(0, mask).tolist() == [second]
        assert actions.valid(mask)[0]

    def test_the_last_block_of_a_layer_is_not_valid(self, recognizer: Recognizer) -> None:
        actions = _build(recognizer, kind="block", per_layer=4)
        mask = FULL.copy()
        for block in (0, 1, 2):
            mask[actions.units(block, FULL)] = 0
        assert actions.valid(mask).tolist() == [0, 0, 0, 0, *[1] * 8]


class TestLayer:
    def test_chunks_follow_the_criterion(self, recognizer: Recognizer) -> None:
        actions = _build(recognizer, kind="layer", per_layer=4)
        scores = criterion("l1")(recognizer, np.random.default_rng(0))
        ranked = 6 + np.argsort(scores[6:14], kind="stable")
        mask = FULL.copy()
        assert len(actions) == 3
        for expected in (ranked[:2], ranked[2:4], ranked[4:6], ranked[6:7]):  # one unit stays
            assert actions.valid(mask)[1]
            assert actions.units(1, mask).tolist() == expected.tolist()
            mask[actions.units(1, mask)] = 0
        assert actions.valid(mask).tolist() == [1, 0, 1]

    def test_more_chunks_than_units(self, recognizer: Recognizer) -> None:
        actions = _build(recognizer, kind="layer", per_layer=100)
        assert [len(actions.units(action, FULL)) for action in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("kind", ACTIONS)
@given(bits=st.lists(st.integers(0, 1), min_size=22, max_size=22))
@settings(max_examples=40, deadline=None)
def test_valid_means_removes_something_and_leaves_something(recognizer: Recognizer, kind: str, bits: list[int]) -> None:
    mask = np.array(bits, dtype=np.int8)
    for layer in recognizer.table.layers:
        if not mask[layer.start : layer.stop].any():
            mask[layer.start] = 1
    actions = _build(recognizer, kind=kind, per_layer=4)
    valid = actions.valid(mask)
    assert valid.dtype == np.int8
    assert valid.shape == (len(actions),)
    for action in range(len(actions)):
        units = actions.units(action, mask)
        layer = recognizer.table.layers[actions.table.layer_of_action[action]]
        kept = set(layer.units[mask[layer.units] == 1].tolist())
        assert set(units.tolist()) <= kept
        assert bool(valid[action]) == (0 < len(units) < len(kept))


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_unit_has_its_action(recognizer: Recognizer, kind: str) -> None:
    actions = _build(recognizer, kind=kind, per_layer=4)
    table = actions.table
    assert table.action_of_unit.shape == (22,)
    assert np.array_equal(table.layer_of_action[table.action_of_unit], recognizer.table.layer_of_unit)
    if kind != "layer":
        for unit in range(22):
            assert unit in actions.units(int(table.action_of_unit[unit]), FULL)


@pytest.mark.parametrize("kind", ACTIONS)
def test_features(recognizer: Recognizer, kind: str) -> None:
    actions = _build(recognizer, kind=kind, per_layer=4)
    features = actions.table.features
    assert features.shape == (len(actions), 5)
    assert features.dtype == np.float32
    assert features.min() >= 0
    assert features.max() <= 1
    for action, row in enumerate(features):
        units = actions.units(action, FULL)
        mask = FULL.copy()
        mask[units] = 0
        layer = actions.table.layer_of_action[action]
        assert row[0] == pytest.approx(layer / 2)
        assert row[2:4].tolist() == pytest.approx(recognizer.costs.reductions(mask)[:2])
        assert row[4] == pytest.approx(len(units) / len(recognizer.table.layers[layer]))
    for layer in range(3):
        positions = features[actions.table.layer_of_action == layer, 1]
        assert positions.tolist() == pytest.approx(np.linspace(0, 1, len(positions)).tolist())


def test_the_order_is_that_of_the_base_weights_and_fixed(make_env: Callable[..., PruningEnv]) -> None:
    env = make_env(actions={"kind": "block", "per_layer": 4, "criterion": "random"}, objective="never ends")
    again = make_env(actions={"kind": "block", "per_layer": 4, "criterion": "random"})
    before = [env.actions.units(action, FULL).tolist() for action in range(12)]
    env.reset(seed=1)
    env.step(0)
    env.reset(seed=2)
    assert before == [env.actions.units(action, FULL).tolist() for action in range(12)]
    assert before == [again.actions.units(action, FULL).tolist() for action in range(12)]
    assert before != [make_env().actions.units(action, FULL).tolist() for action in range(12)]


def test_unknown_criterion_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(UnknownNameError, match="unknown criterion 'l11'"):
        _build(recognizer, kind="block", criterion="l11")


def test_nothing_to_prune(recognizer: Recognizer) -> None:
    class Linear(nn.Sequential):
        pass

    baseline = Baseline(
        Linear(nn.Flatten(), nn.Linear(64, 10)),
        recognizer.splits,
        recognizer.normalization,
        device=torch.device("cpu"),
    )
    bare = Recognizer(baseline)
    with pytest.raises(ConfigurationError, match="Linear has no prunable layer"):
        _build(bare, kind="unit")
